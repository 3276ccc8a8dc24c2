import copy
import itertools
import math
from functools import partial

import pytest
import torch
from gradients import gradients
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from companion.attention import MultiHeadAttention, causal_mask
from companion.cache import KeyValueCache
from companion.layers import Decoder

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
exactly = partial(torch.testing.assert_close, rtol=0, atol=0)


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def test_what_is_added_stands_behind_what_was_there():
    cache, attention, keys, values = KeyValueCache(), nn.Identity(), randn(2, 3, 5, 4), randn(2, 3, 5, 6)
    exactly(cache.extend(attention, keys[:, :, :2], values[:, :, :2]), (keys[:, :, :2], values[:, :, :2]))
    assert (cache.length, cache.length_in(attention)) == (2, 2)
    exactly(cache.extend(attention, keys[:, :, 2:3], values[:, :, 2:3]), (keys[:, :, :3], values[:, :, :3]))
    exactly(cache.extend(attention, keys[:, :, 3:], values[:, :, 3:]), (keys, values))
    assert (cache.length, cache.length_in(attention)) == (5, 5)


def test_the_bytes_are_those_of_all_keys_and_values():
    cache, first, second, cross, memory = KeyValueCache(), nn.Identity(), nn.Identity(), nn.Identity(), randn(1, 9, 8)
    assert cache.num_bytes == 0
    cache.extend(first, randn(2, 3, 5, 4), randn(2, 3, 5, 6))
    assert cache.num_bytes == 8 * 2 * 3 * 5 * (4 + 6)
    cache.extend(first, randn(2, 3, 1, 4), randn(2, 3, 1, 6))
    cache.extend(second, torch.zeros(2, 3, 7, 4), torch.zeros(2, 3, 7, 4))
    assert cache.num_bytes == 8 * 2 * 3 * 6 * (4 + 6) + 4 * 2 * 3 * 7 * (4 + 4)
    cache.once(cross, memory, memory, lambda key, value: (randn(1, 2, 9, 4), randn(1, 2, 9, 3)))
    assert cache.num_bytes == 8 * 2 * 3 * 6 * (4 + 6) + 4 * 2 * 3 * 7 * (4 + 4) + 8 * 2 * 9 * (4 + 3)


def test_each_attention_has_its_own_entry():
    cache, first, second = KeyValueCache(), nn.Identity(), nn.Identity()
    assert (cache.length, cache.length_in(first)) == (0, 0)
    key, other = randn(1, 2, 3, 4), randn(1, 2, 1, 4)
    cache.extend(first, key, -key)
    assert (cache.length, cache.length_in(first), cache.length_in(second)) == (3, 3, 0)
    exactly(cache.extend(second, other, -other), (other, -other))
    assert (cache.length, cache.length_in(first), cache.length_in(second)) == (3, 3, 1)
    exactly(cache.extend(first, other, -other), (torch.cat((key, other), 2), -torch.cat((key, other), 2)))


def test_equal_modules_are_not_taken_for_each_other():
    attention = MultiHeadAttention(8, 2).double()
    twin, cache, x = copy.deepcopy(attention), KeyValueCache(), randn(1, 3, 8)
    attention(x, cache=cache)
    close(twin(x, cache=cache).output, twin(x).output)


def test_a_memory_is_projected_at_the_first_call_alone():
    cache, attention, key, value, calls = KeyValueCache(), nn.Identity(), randn(1, 3, 8), randn(1, 3, 8), []

    def project(key, value):
        calls.append(1)
        return key + 1, value + 2

    for _ in range(3):
        exactly(cache.once(attention, key, value, project), (key + 1, value + 2))
    assert calls == [1]
    exactly(cache.once(nn.Identity(), value, key, project), (value + 1, key + 2))
    assert (calls, cache.length) == ([1, 1], 0)


@pytest.mark.unhooked
@pytest.mark.parametrize("changed", ["key", "value"])
def test_another_memory_is_refused_even_an_equal_one(changed):
    attention, cache = MultiHeadAttention(8, 2).double(), KeyValueCache()
    query, memory = randn(1, 1, 8), {"key": randn(1, 3, 8), "value": randn(1, 3, 8)}
    attention(query, **memory, cache=cache)
    attention(query, **memory, cache=cache)
    with pytest.raises(ValueError, match=r"^key and value are other tensors than those that filled the cache; .*leave"):
        attention(query, **memory | {changed: memory[changed].clone()}, cache=cache)


@pytest.mark.unhooked
def test_another_batch_is_refused_and_nothing_is_lost():
    attention, cache, x = MultiHeadAttention(8, 2).double(), KeyValueCache(), randn(2, 3, 8)
    attention(x[:, :2], cache=cache)
    with pytest.raises(ValueError, match=r"^query has batch 3; expected 2, the cache's$"):
        attention(randn(3, 1, 8), cache=cache)
    close(attention(x[:, 2:], cache=cache).output, attention(x, mask=causal_mask(3)).output[:, 2:])


@pytest.mark.parametrize("rows", [[1, 0, 2], [2, 2, 2], [0, 1, 2]])
def test_reordered_rows_go_on_from_those_they_continue(rows):
    decoder, cache, x = Decoder(2, 8, 2, 12).double(), KeyValueCache(), randn(3, 4, 8)
    memory = randn(1, 5, 8).repeat(3, 1, 1)
    decoder(x[:, :2], memory, causal_mask(2), cache=cache)
    cache.reorder(torch.tensor(rows))
    assert cache.length == 2
    output = decoder(x[:, 2:], memory, causal_mask(4)[2:], cache=cache)
    expected = decoder(torch.cat((x[rows, :2], x[:, 2:]), dim=1), memory, causal_mask(4))
    close(output, expected[:, 2:])


def test_reordering_leaves_memories_where_they_are():
    attention, cache, memory, query = MultiHeadAttention(8, 2).double(), KeyValueCache(), randn(2, 3, 8), randn(2, 1, 8)
    attention(query, memory, cache=cache)
    cache.reorder(torch.tensor([1, 0]))
    close(attention(query, memory, cache=cache).output, attention(query, memory).output)


# --- Room ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_pieces_of_any_lengths_give_what_they_give_in_a_row(mode, lengths, seed):
    torch.manual_seed(seed)
    keys, values = randn(2, 3, sum(lengths), 4), randn(2, 1, sum(lengths), 6)
    cache, attention, returned = KeyValueCache(), nn.Identity(), []
    with mode():
        for key, value in zip(keys.split(lengths, dim=2), values.split(lengths, dim=2), strict=True):
            returned.append(cache.extend(attention, key, value))
    for end, (key, value) in zip(torch.tensor(lengths).cumsum(0).tolist(), returned, strict=True):
        exactly(key, keys[:, :, :end])  # what was returned earlier is not overwritten later
        exactly(value, values[:, :, :end])
    assert cache.num_bytes == keys.nbytes + values.nbytes


def test_a_step_copies_one_position_and_moves_all_of_them_rarely():
    cache, attention, addresses = KeyValueCache(), nn.Identity(), []
    with torch.inference_mode():
        for _ in range(256):
            key, value = cache.extend(attention, randn(1, 2, 1, 4), randn(1, 2, 1, 4))
            addresses.append((key.data_ptr(), value.data_ptr()))
    moves = sum(one != other for one, other in itertools.pairwise(addresses))
    assert moves <= math.log2(256)


@pytest.mark.parametrize("first", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("then", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_cache_that_one_mode_filled_goes_on_in_another(first, then):
    cache, attention, x = KeyValueCache(), MultiHeadAttention(8, 2).double().requires_grad_(False), randn(2, 5, 8)
    with first():
        attention(x[:, :2], cache=cache)
        attention(x[:, 2:3], cache=cache)
    with then():
        outputs = [attention(x[:, i : i + 1], cache=cache).output for i in (3, 4)]
    close(torch.cat(outputs, dim=1), attention(x, mask=causal_mask(5)).output[:, 3:])


def test_gradients_flow_through_a_cache_to_all_that_filled_it():
    attention, cache, x = MultiHeadAttention(8, 2).double(), KeyValueCache(), randn(1, 4, 8).requires_grad_()
    outputs = [attention(x[:, i : i + 1], cache=cache).output for i in range(4)]
    whole = attention(x, mask=causal_mask(4)).output
    for actual, expected in zip(
        gradients(torch.cat(outputs, dim=1), [x, *attention.parameters()]),
        gradients(whole, [x, *attention.parameters()]),
        strict=True,
    ):
        close(actual, expected)


def test_keys_of_a_wider_dtype_are_not_rounded_to_that_of_earlier_ones():
    cache, attention, key, value = KeyValueCache(), nn.Identity(), randn(1, 1, 2, 4), randn(1, 1, 2, 4)
    with torch.no_grad():
        cache.extend(attention, key.float()[:, :, :1], value.float()[:, :, :1])
        wide, _ = cache.extend(attention, key[:, :, 1:], value[:, :, 1:])
    exactly(wide[:, :, 1:], key[:, :, 1:])


def test_rows_reordered_in_room_go_on_apart():
    """Two beams that continue one row write to different places."""
    cache, attention, keys = KeyValueCache(), nn.Identity(), randn(2, 1, 2, 4)
    with torch.inference_mode():
        for i in range(2):
            cache.extend(attention, keys[:, :, i : i + 1], keys[:, :, i : i + 1])
        cache.reorder(torch.tensor([1, 1]))
        new = randn(2, 1, 1, 4)
        key, _ = cache.extend(attention, new, new)
    exactly(key, torch.cat((keys[[1, 1]], new), dim=2))
