import copy
import math
import re
import shutil
from functools import partial

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion import attention as attention_module
from companion.attention import (
    MultiHeadAttention,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
    sliding_window_mask,
)
from companion.cache import KeyValueCache
from companion.positions import RotaryEmbedding, alibi_bias

BATCH, HEADS, QUERIES, KEYS, D_MODEL = 3, 2, 5, 7, 8

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
property_test = settings(max_examples=15)


def padding(keys):
    """Mask 0, 2 and all but one key away."""
    lengths = torch.tensor([keys, keys - 2, 1])
    return (torch.arange(keys) < lengths[:, None])[:, None, None, :]


def causal(queries, keys):
    return torch.arange(keys) <= torch.arange(queries)[:, None]


def nowhere(queries, keys):
    """Leave the first queries of the second text (padded on the left) and the whole third one without a key."""
    return (torch.arange(keys) >= torch.tensor([0, 2, keys])[:, None])[:, None, None, :] & causal(queries, keys)


MASKS = {
    "none": lambda queries, keys: None,
    "padding": lambda queries, keys: padding(keys),
    "causal": causal,
    "padding and causal": lambda queries, keys: padding(keys) & causal(queries, keys),
    "another for each head": lambda queries, keys: torch.stack([causal(queries, keys), ~causal(queries, keys)])[None],
    "nowhere": nowhere,
}

masks = pytest.mark.parametrize("make_mask", MASKS.values(), ids=MASKS)
lengths = pytest.mark.parametrize(("queries", "keys"), [(5, 5), (5, 7), (7, 5)], ids=["square", "wide", "tall"])
paths = pytest.mark.parametrize("need_weights", [True, False], ids=["explicit", "fused"])
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def randn(*shape, requires_grad=True):
    return torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)


def loop_attention(query, key, value, mask, bias):
    """Equation 1, a score at a time; the weights of a query that may attend nowhere stay 0."""
    weights = np.zeros((*query.shape[:-1], key.shape[-2]))
    for *row, position in np.ndindex(query.shape[:-1]):
        row = tuple(row)
        exponentials = {
            k: math.exp(query[row][position] @ key[row][k] / math.sqrt(query.shape[-1]) + bias[row][position, k])
            for k in range(key.shape[-2])
            if mask[row][position, k]
        }
        for k, exponential in exponentials.items():
            weights[row][position, k] = exponential / sum(exponentials.values())
    return np.einsum("...qk,...kd->...qd", weights, value), weights


def test_padding_mask_by_hand():
    ids = torch.tensor([[7, 4, 0], [0, 2, 5]])
    assert padding_mask(ids).tolist() == [[[[True, True, False]]], [[[False, True, True]]]]
    assert padding_mask(ids, pad_id=5).tolist() == [[[[True, True, True]]], [[[True, True, False]]]]


@pytest.mark.parametrize("length", [1, 2, 6])
def test_causal_mask_lets_a_query_see_itself_and_the_past(length):
    assert causal_mask(length).tolist() == [[key <= query for key in range(length)] for query in range(length)]


@pytest.mark.parametrize(("length", "window"), [(1, 1), (5, 1), (5, 2), (6, 4), (4, 9)])
def test_a_sliding_window_reaches_as_far_on_either_side(length, window):
    expected = [[abs(query - key) < window for key in range(length)] for query in range(length)]
    assert sliding_window_mask(length, window).tolist() == expected


def test_a_causal_window_leaves_the_last_positions_and_a_wide_one_all_of_them():
    assert (sliding_window_mask(6, 3) & causal_mask(6)).sum(-1).tolist() == [1, 2, 3, 3, 3, 3]
    assert torch.equal(sliding_window_mask(6, 6) & causal_mask(6), causal_mask(6))


@pytest.mark.parametrize("make", [causal_mask, partial(sliding_window_mask, window=2)])
def test_a_mask_is_made_where_it_is_asked_for(make):
    assert make(3).device.type == "cpu"
    assert make(3, device="meta").is_meta


@pytest.mark.unhooked
@pytest.mark.parametrize("window", [0, -1])
def test_a_window_without_the_position_itself_is_refused(window):
    with pytest.raises(ValueError, match=f"^window={window}; choose 1 or more"):
        sliding_window_mask(4, window)


@masks
@lengths
@pytest.mark.parametrize("biased", [False, True])
def test_scaled_dot_product_attention_equals_plain_loops(make_mask, queries, keys, biased):
    query, key, value = (
        randn(BATCH, HEADS, n, d, requires_grad=False) for n, d in ((queries, 4), (keys, 4), (keys, 3))
    )
    mask = make_mask(queries, keys)
    bias = randn(HEADS, queries, keys, requires_grad=False) if biased else None
    scores_shape = (BATCH, HEADS, queries, keys)
    full_mask = torch.ones(scores_shape, dtype=torch.bool) if mask is None else mask.expand(scores_shape)
    full_bias = torch.zeros(scores_shape) if bias is None else bias.expand(scores_shape)
    expected = loop_attention(*(x.numpy() for x in (query, key, value, full_mask, full_bias)))

    actual = scaled_dot_product_attention(query, key, value, mask, bias=bias)

    close(actual.output, torch.from_numpy(expected[0]))
    close(actual.weights, torch.from_numpy(expected[1]))


@masks
@lengths
@pytest.mark.parametrize("biased", [False, True])
def test_scaled_dot_product_attention_equals_torch_forward_and_backward(make_mask, queries, keys, biased):
    inputs = [randn(BATCH, HEADS, n, d) for n, d in ((queries, 4), (keys, 4), (keys, 3))]
    mask = make_mask(queries, keys)
    bias = randn(1, HEADS, queries, keys) if biased else None
    torch_mask = mask
    if biased:
        torch_mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)

    actual = scaled_dot_product_attention(*inputs, mask, bias=bias).output
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=torch_mask)

    close(actual, expected)
    inputs += [bias] if biased else []
    close(gradients(actual, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("leading", [(), (2,), (2, 3, 2)])
def test_scaled_dot_product_attention_takes_any_leading_dimensions(leading):
    query, key, value = (randn(*leading, n, 4) for n in (5, 7, 7))
    actual = scaled_dot_product_attention(query, key, value, causal(5, 7)).output
    close(actual, F.scaled_dot_product_attention(query, key, value, attn_mask=causal(5, 7)))


def test_gradcheck_of_scaled_dot_product_attention():
    inputs = [randn(1, n, 2) for n in (3, 4, 4)] + [randn(3, 4)]
    mask = torch.tensor([[True, False, True, True], [True, True, True, True], [False, False, False, False]])

    def attend(query, key, value, bias):
        return tuple(scaled_dot_product_attention(query, key, value, mask, bias=bias))

    assert torch.autograd.gradcheck(attend, inputs)


@st.composite
def attention_cases(draw):
    """Draw seeded inputs with a random mask, in which some rows may be all False."""
    queries, keys, width = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    query, key, value = (scale * randn(2, n, width, requires_grad=False) for n in (queries, keys, keys))
    mask = draw(st.lists(st.booleans(), min_size=queries * keys, max_size=queries * keys))
    return query, key, value, torch.tensor(mask).view(queries, keys)


@property_test
@given(attention_cases())
def test_weights_sum_to_one_or_to_nothing_and_masked_keys_weigh_exactly_zero(case):
    query, key, value, mask = case
    weights = scaled_dot_product_attention(query, key, value, mask).weights
    close(weights.sum(-1), mask.any(-1).double().expand(2, -1))
    assert (weights >= 0).all()
    assert (weights[:, ~mask] == 0).all()


@property_test
@given(attention_cases(), st.randoms())
def test_the_order_of_keys_does_not_matter(case, random):
    query, key, value, mask = case
    order = random.sample(range(key.size(1)), key.size(1))
    shuffled = scaled_dot_product_attention(query, key[:, order], value[:, order], mask[:, order])
    straight = scaled_dot_product_attention(query, key, value, mask)
    close(shuffled.output, straight.output)
    close(shuffled.weights, straight.weights[..., order])


def torch_attention(*, bias=True, batch_first=True, training=True):
    module = nn.MultiheadAttention(D_MODEL, HEADS, bias=bias, batch_first=batch_first, dtype=torch.float64)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.train(training)


def torch_mask(mask, queries, keys):
    """Turn ours into the one of torch.nn.MultiheadAttention: inverted, a row for each pair of text and head."""
    return None if mask is None else ~mask.expand(BATCH, HEADS, queries, keys).flatten(0, 1)


def torch_parameters(module):
    return [p for p in (module.in_proj_weight, module.in_proj_bias, *module.out_proj.parameters()) if p is not None]


@masks
@paths
@pytest.mark.parametrize(
    ("bias", "batch_first", "training"),
    [(True, True, True), (False, True, True), (True, False, True), (True, True, False)],
    ids=["train", "no bias", "length first", "eval"],
)
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_multi_head_attention_equals_torch(make_mask, need_weights, training, bias, batch_first, cross):
    reference = torch_attention(bias=bias, batch_first=batch_first, training=training)
    attention = MultiHeadAttention.from_torch(reference)
    keys = KEYS if cross else QUERIES
    inputs = [randn(BATCH, n, D_MODEL) for n in ((QUERIES, keys, keys) if cross else (QUERIES,))]
    mask = make_mask(QUERIES, keys)
    reference_inputs = inputs if cross else inputs * 3
    if not batch_first:
        reference_inputs = [x.transpose(0, 1) for x in reference_inputs]

    actual = attention(*inputs, mask=mask, need_weights=need_weights).output
    expected, _ = reference(*reference_inputs, attn_mask=torch_mask(mask, QUERIES, keys), need_weights=False)
    expected = expected if batch_first else expected.transpose(0, 1)

    close(actual, expected)
    close(
        gradients(actual, [*inputs, *attention.parameters()]),
        gradients(expected, [*inputs, *torch_parameters(reference)]),
    )


@masks
@pytest.mark.parametrize("averaged", [True, False])
def test_attention_weights_equal_torchs(make_mask, averaged):
    reference = torch_attention()
    query, key = randn(BATCH, QUERIES, D_MODEL), randn(BATCH, KEYS, D_MODEL)
    mask = make_mask(QUERIES, KEYS)

    weights = MultiHeadAttention.from_torch(reference)(query, key, mask=mask, need_weights=True).weights
    _, expected = reference(query, key, key, attn_mask=torch_mask(mask, QUERIES, KEYS), average_attn_weights=averaged)

    somewhere = torch.ones(1, dtype=torch.bool) if mask is None else mask.any(-1)
    somewhere = somewhere.expand(BATCH, HEADS, QUERIES)
    if averaged:
        weights, somewhere = weights.mean(1), somewhere[:, 0]
    assert expected[~somewhere].isnan().all()
    close(weights[somewhere], expected[somewhere])
    assert (weights[~somewhere] == 0).all()


@paths
def test_key_and_value_default_to_what_stands_before_them(need_weights):
    attention = MultiHeadAttention.from_torch(torch_attention())
    query, key = randn(BATCH, QUERIES, D_MODEL), randn(BATCH, KEYS, D_MODEL)
    attend = partial(attention, need_weights=need_weights)
    close(attend(query).output, attend(query, query, query).output)
    close(attend(query, key).output, attend(query, key, key).output)


@paths
@masks
@pytest.mark.parametrize("shape", [(QUERIES, KEYS), (HEADS, QUERIES, KEYS), (BATCH, 1, 1, KEYS)])
def test_bias_of_multi_head_attention_is_added_to_every_scaled_score(need_weights, make_mask, shape):
    attention = MultiHeadAttention.from_torch(torch_attention())
    query, key, bias = randn(BATCH, QUERIES, D_MODEL), randn(BATCH, KEYS, D_MODEL), randn(*shape)
    mask = make_mask(QUERIES, KEYS)

    weights = attention.in_proj.weight.unflatten(0, (3, HEADS, -1))  # (3, h, d / h, d)
    biases = attention.in_proj.bias.view(3, HEADS, 1, -1)
    q, k, v = (x[:, None] @ w.transpose(-2, -1) + b for x, w, b in zip((query, key, key), weights, biases, strict=True))
    added = bias if mask is None else torch.where(mask, bias, -math.inf)
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=added.expand(BATCH, HEADS, QUERIES, KEYS))
    expected = torch.cat(heads.unbind(1), dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias

    actual = attention(query, key, mask=mask, bias=bias, need_weights=need_weights).output

    close(actual, expected)
    inputs = [query, key, bias, *attention.parameters()]
    close(gradients(actual, inputs), gradients(expected, inputs))


@paths
@pytest.mark.parametrize("shape", [(), (1,), (KEYS,), (1, KEYS), (QUERIES, 1), (HEADS, 1, 1), (BATCH, 1, 1, 1)])
@pytest.mark.parametrize("kind", ["mask", "bias"])
def test_masks_and_biases_of_any_dimension_broadcast(need_weights, shape, kind):
    attention = MultiHeadAttention.from_torch(torch_attention())
    query, key = randn(BATCH, QUERIES, D_MODEL), randn(BATCH, KEYS, D_MODEL)
    given = torch.rand(shape) > 0.3 if kind == "mask" else randn(*shape)
    whole = given.expand(BATCH, HEADS, QUERIES, KEYS)
    attend = partial(attention, query, key, need_weights=need_weights)
    close(attend(**{kind: given}).output, attend(**{kind: whole}).output)


@paths
def test_without_any_key_the_output_is_that_of_a_query_that_may_attend_nowhere(need_weights):
    attention = MultiHeadAttention.from_torch(torch_attention())
    output = attention(randn(BATCH, QUERIES, D_MODEL), randn(BATCH, 0, D_MODEL), need_weights=need_weights).output
    close(output, attention.out_proj.bias.expand(BATCH, QUERIES, -1))


@paths
@pytest.mark.parametrize("same", [(0, 0, 1), (0, 1, 0), (0, 1, 1)], ids=["key", "value", "key and value"])
def test_three_inputs_are_told_apart_even_where_two_are_the_same_tensor(need_weights, same):
    attention = MultiHeadAttention.from_torch(torch_attention())
    pair = randn(BATCH, QUERIES, D_MODEL), randn(BATCH, QUERIES, D_MODEL)
    inputs = [pair[which] for which in same]
    close(
        attention(*inputs, need_weights=need_weights).output,
        attention(*[x.clone() for x in inputs], need_weights=need_weights).output,
    )


SHAPES = {
    "GQA": (4, 2, None),
    "MQA": (4, 1, None),
    "narrow heads": (4, 4, 1),
    "wide and grouped": (6, 3, 5),
    "as wide as many": (4, 2, 4),
    "as many groups as queries": (10, QUERIES, 2),
}
shapes = pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), SHAPES.values(), ids=SHAPES)


def scattered(attention):
    """Leave no bias at 0, so that each has its effect."""
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention.double()


def head_by_head(attention, query, key, mask, rotate=lambda x: x):
    """Project and attend one head at a time, from plain slices of the parameters."""
    h, kv, d = attention.num_heads, attention.num_kv_heads, attention.head_dim
    weights, biases = (list(p.split(d)) for p in (attention.in_proj.weight, attention.in_proj.bias))
    projections = list(zip(weights, biases, strict=True))  # h of queries, kv of keys, kv of values
    heads = []
    for head in range(h):
        shared = head // (h // kv)
        rows = projections[head], projections[h + shared], projections[h + kv + shared]
        q, k, v = (x @ w.T + b for x, (w, b) in zip((query, key, key), rows, strict=True))
        scores = rotate(q) @ rotate(k).transpose(1, 2) / math.sqrt(d)
        allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand(BATCH, h, -1, -1)[:, head]
        exponentials = torch.where(allowed, (scores - scores.amax(-1, keepdim=True)).exp(), 0.0)
        heads.append(exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300) @ v)
    return torch.cat(heads, dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias


@shapes
@paths
@pytest.mark.parametrize("mask_name", ["none", "padding and causal", "nowhere"])
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_heads_of_any_width_and_grouping_equal_one_head_at_a_time(
    num_heads, num_kv_heads, head_dim, need_weights, mask_name, cross
):
    attention = scattered(MultiHeadAttention(12, num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim))
    keys = KEYS if cross else QUERIES
    inputs = [randn(BATCH, n, 12) for n in ((QUERIES, keys) if cross else (QUERIES,))]
    mask = MASKS[mask_name](QUERIES, keys)
    actual = attention(*inputs, mask=mask, need_weights=need_weights).output
    expected = head_by_head(attention, inputs[0], inputs[-1], mask)
    close(actual, expected)
    inputs += attention.parameters()
    close(gradients(actual, inputs), gradients(expected, inputs))


@paths
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_grouped_queries_equal_repeated_keys_and_values_and_as_many_groups_as_heads_torch(need_weights, num_kv_heads):
    grouped = scattered(MultiHeadAttention(8, 4, num_kv_heads=num_kv_heads))
    reference = nn.MultiheadAttention(8, 4, batch_first=True, dtype=torch.float64)

    def repeat(parameter):
        query, key, value = parameter.split((8, 2 * num_kv_heads, 2 * num_kv_heads))
        repeated = (x.unflatten(0, (num_kv_heads, 2)).repeat_interleave(4 // num_kv_heads, dim=0) for x in (key, value))
        return torch.cat((query, *(x.flatten(0, 1) for x in repeated)))

    with torch.no_grad():
        reference.in_proj_weight.copy_(repeat(grouped.in_proj.weight))
        reference.in_proj_bias.copy_(repeat(grouped.in_proj.bias))
        reference.out_proj.load_state_dict(grouped.out_proj.state_dict())
    x = randn(BATCH, QUERIES, 8)

    output, weights = grouped(x, mask=causal_mask(QUERIES), need_weights=need_weights)
    expected, their_weights = reference(
        x, x, x, attn_mask=~causal_mask(QUERIES), need_weights=True, average_attn_weights=False
    )

    close(output, expected)
    close(gradients(output, [x]), gradients(expected, [x]))
    if need_weights:
        close(weights, their_weights)


@pytest.mark.parametrize("settings", [{"num_kv_heads": 4}, {"head_dim": 2}, {"num_kv_heads": 4, "head_dim": 2}])
def test_the_defaults_are_as_many_heads_of_keys_as_of_queries_and_an_even_share_of_the_width(settings):
    torch.manual_seed(1)
    plain = MultiHeadAttention(8, 4)
    torch.manual_seed(1)
    spelled_out = MultiHeadAttention(8, 4, **settings)
    assert plain.state_dict().keys() == spelled_out.state_dict().keys()
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), spelled_out.parameters(), strict=True))


@shapes
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_as_many_as_the_formula_says(num_heads, num_kv_heads, head_dim, bias):
    attention = MultiHeadAttention(12, num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, bias=bias)
    inner, kv = num_heads * (head_dim or 12 // num_heads), num_kv_heads * (head_dim or 12 // num_heads)
    expected = 12 * (inner + 2 * kv) + inner * 12 + bias * (inner + 2 * kv + 12)
    assert sum(p.numel() for p in attention.parameters()) == expected


def rotate_as_complex_numbers(x):
    """Turn pairs (2i, 2i + 1) of (b, n, d) as complex numbers, by position times 10000^(-2i / d)."""
    n, d = x.shape[-2:]
    angle = torch.arange(n)[:, None] * 10_000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


@paths
@pytest.mark.parametrize("num_kv_heads", [None, 1])
@pytest.mark.parametrize("said", ["once", "three times"])
def test_rotary_positions_turn_queries_and_keys_but_no_values(need_weights, num_kv_heads, said):
    attention = MultiHeadAttention(12, 3, num_kv_heads=num_kv_heads, rotary=RotaryEmbedding(4))
    attention, x = scattered(attention), randn(BATCH, QUERIES, 12)
    mask = padding(QUERIES)
    given = [x] if said == "once" else [x, x, x]
    actual = attention(*given, mask=mask, need_weights=need_weights).output
    expected = head_by_head(attention, x, x, mask, rotate_as_complex_numbers)
    close(actual, expected)
    inputs = [x, *attention.parameters()]
    close(gradients(actual, inputs), gradients(expected, inputs))


class Slowing(nn.Module):
    """Shrink what stands later: unlike a rotation, it tells where positions begin."""

    def forward(self, x, offset):
        position = torch.arange(offset, offset + x.size(2), dtype=x.dtype)[:, None]
        return x / (1 + position)


@paths
def test_positions_begin_at_0_and_with_a_cache_go_on_behind_it(need_weights):
    attention, x, cache = scattered(MultiHeadAttention(12, 3, rotary=Slowing())), randn(BATCH, 6, 12), KeyValueCache()
    expected = head_by_head(attention, x, x, causal_mask(6), lambda x: x / torch.arange(1, 7).double()[:, None])
    close(attention(x, mask=causal_mask(6), need_weights=need_weights).output, expected)
    parts = [
        attention(part, mask=causal_mask(6)[..., i : i + 2, : i + 2], cache=cache, need_weights=need_weights).output
        for i, part in zip((0, 2, 4), x.split(2, dim=1), strict=True)
    ]
    close(torch.cat(parts, dim=1), expected)


@paths
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_bias_may_have_another_floating_dtype_than_the_module(need_weights, dtype):
    attention, x = MultiHeadAttention(D_MODEL, HEADS), torch.randn(BATCH, QUERIES, D_MODEL)
    bias = alibi_bias(HEADS, QUERIES)  # powers of 2, exact in each of these
    attend = partial(attention, x, need_weights=need_weights)
    assert torch.equal(attend(bias=bias.to(dtype)).output, attend(bias=bias).output)


@paths
@pytest.mark.parametrize("shift", [1, 7, 500])
def test_with_rotary_positions_or_alibi_only_the_distance_between_tokens_counts(need_weights, shift):
    """A prefix that is masked away moves the sequence, and changes nothing."""
    x, prefix = randn(BATCH, QUERIES, 8), randn(BATCH, shift, 8)
    mask = torch.arange(shift + QUERIES) >= shift
    for rotary, bias in ((RotaryEmbedding(4), None), (None, alibi_bias)):
        attention = scattered(MultiHeadAttention(8, 2, rotary=rotary))
        here = attention(x, bias=bias and bias(2, QUERIES), need_weights=need_weights).output
        there = attention(
            torch.cat((prefix, x), dim=1), mask=mask, bias=bias and bias(2, shift + QUERIES), need_weights=need_weights
        ).output
        # Angles of up to 500 carry an error of 500 * 2^-52 each; ALiBi's biases are sums of powers of two, exact.
        torch.testing.assert_close(there[:, shift:], here, rtol=0, atol=1e-10)


STRAIGHT, REVERSED = list(range(6)), list(range(5, -1, -1))


@paths
@property_test
@given(order=st.permutations(range(6)), seed=st.integers(0, 2**31))
def test_with_positions_only_the_order_they_do_not_tell_apart_gives_permuted_outputs(need_weights, order, seed):
    torch.manual_seed(seed)
    x = randn(2, 6, 8)
    # A distance without its sign is the same from either end; a turn is not.
    for rotary, bias, alike in (
        (RotaryEmbedding(4), None, [STRAIGHT]),
        (None, alibi_bias(2, 6), [STRAIGHT, REVERSED]),
    ):
        attention = scattered(MultiHeadAttention(8, 2, rotary=rotary))
        permuted = attention(x[:, order], bias=bias, need_weights=need_weights).output
        output = attention(x, bias=bias, need_weights=need_weights).output[:, order]
        assert torch.allclose(permuted, output, rtol=0, atol=1e-10) == (order in alike)


@paths
@pytest.mark.parametrize("chunks", [[1] * 7, [4, 1, 2], [7]], ids=str)
@pytest.mark.parametrize(
    "settings", [{}, {"rotary": RotaryEmbedding(4)}, {"num_kv_heads": 1, "rotary": RotaryEmbedding(4)}], ids=str
)
@pytest.mark.parametrize("biased", [False, True], ids=["", "ALiBi"])
def test_with_a_cache_each_chunk_gets_the_output_it_has_in_the_whole_sequence(need_weights, chunks, settings, biased):
    attention, x, cache = scattered(MultiHeadAttention(8, 2, **settings)), randn(BATCH, 7, 8), KeyValueCache()
    mask = causal_mask(7) & sliding_window_mask(7, 5) & padding(7)
    bias = alibi_bias(2, 7) if biased else None
    whole = attention(x, mask=mask, bias=bias, need_weights=need_weights)

    outputs, seen = [], 0
    for chunk in x.split(chunks, dim=1):
        end = seen + chunk.size(1)
        rows = alibi_bias(2, chunk.size(1), end) if biased else None
        part = attention(chunk, mask=mask[..., seen:end, :end], bias=rows, cache=cache, need_weights=need_weights)
        outputs.append(part.output)
        if need_weights:
            close(part.weights, whole.weights[:, :, seen:end, :end])
        assert cache.length == end
        seen = end

    together = torch.cat(outputs, dim=1)
    close(together, whole.output)
    inputs = [x, *attention.parameters()]
    close(gradients(together, inputs), gradients(whole.output, inputs))


@paths
def test_cross_attention_projects_its_memory_once_for_all_calls_with_a_cache(need_weights):
    attention, memory = scattered(MultiHeadAttention(8, 2, num_kv_heads=1)), randn(BATCH, KEYS, 8)
    value, cache, queries = randn(BATCH, KEYS, 8), KeyValueCache(), randn(BATCH, QUERIES, 8)
    mask = padding(KEYS)
    attend = partial(attention, mask=mask, need_weights=need_weights)
    expected = attend(queries, memory, value).output
    outputs = [attend(query, memory, value, cache=cache).output for query in queries.split(1, dim=1)]
    close(torch.cat(outputs, dim=1), expected)
    assert cache.length == 0
    with torch.no_grad():
        attention.in_proj.weight[8:] = 0.0  # of keys and values: what is in the cache was projected before
    close(attend(queries, memory, value, cache=cache).output, expected)
    assert not torch.allclose(attend(queries, memory, value).output, expected)


@paths
@modes
@pytest.mark.parametrize("said_by", ["mask", "bias", "mask and bias"])
def test_a_query_that_may_attend_nowhere_gets_zeros_before_the_output_projection(need_weights, training, said_by):
    attention = MultiHeadAttention.from_torch(torch_attention(training=training))
    x = randn(BATCH, QUERIES, D_MODEL)
    allowed = nowhere(QUERIES, QUERIES)
    left, right = allowed.clone(), allowed.clone()
    left[..., 3:], right[..., :3] = True, True
    shut = partial(torch.zeros(BATCH, 1, QUERIES, QUERIES, dtype=torch.float64).masked_fill, value=-math.inf)
    mask, bias = {
        "mask": (allowed, None),
        "bias": (None, shut(~allowed)),
        "mask and bias": (left, shut(~right)),
    }[said_by]

    output = attention(x, mask=mask, bias=bias, need_weights=need_weights).output

    rows = ~allowed.any(-1).squeeze(1)
    assert rows.sum() == 2 + QUERIES
    close(output[rows], attention.out_proj.bias.expand(int(rows.sum()), -1))
    close(output, attention(x, mask=allowed).output)
    found = gradients(output, [x, *attention.parameters()])
    assert all(gradient.isfinite().all() for gradient in found)
    assert (found[0][2] == 0).all()


@paths
@property_test
@given(changed=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_a_later_token_never_changes_an_earlier_output_under_the_causal_mask(need_weights, changed, seed):
    torch.manual_seed(seed)
    attention = MultiHeadAttention(D_MODEL, HEADS).double()
    x = randn(2, 7, D_MODEL, requires_grad=False)
    other = x.clone()
    other[:, changed:] = randn(2, 7 - changed, D_MODEL, requires_grad=False)
    before, after = (attention(y, mask=causal_mask(7), need_weights=need_weights).output for y in (x, other))
    close(after[:, :changed], before[:, :changed])
    assert not torch.isclose(after[:, changed:], before[:, changed:]).any(-1).any()


@paths
@property_test
@given(order=st.permutations(range(6)), rows=st.permutations(range(3)), seed=st.integers(0, 2**31))
def test_permuted_tokens_and_texts_give_permuted_outputs(need_weights, order, rows, seed):
    torch.manual_seed(seed)
    attention = MultiHeadAttention(D_MODEL, HEADS).double()
    x, mask = randn(3, 6, D_MODEL), padding(6)
    attend = partial(attention, need_weights=need_weights)
    close(attend(x[:, order], mask=mask[..., order]).output, attend(x, mask=mask).output[:, order])
    close(attend(x[rows], mask=mask[rows]).output, attend(x, mask=mask).output[rows])


@paths
def test_a_text_is_attended_to_alone(need_weights):
    attention = MultiHeadAttention(D_MODEL, HEADS).double()
    x, mask = randn(BATCH, 6, D_MODEL), padding(6)
    together = attention(x, mask=mask, need_weights=need_weights).output
    for row in range(BATCH):
        alone = attention(x[row, None], mask=mask[row, None], need_weights=need_weights).output
        close(together[row, None], alone)


def test_only_the_explicit_path_returns_weights():
    attention, x = MultiHeadAttention(D_MODEL, HEADS).double(), randn(BATCH, QUERIES, D_MODEL)
    assert attention(x).weights is None
    q, k = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in attention.in_proj(x).chunk(3, dim=-1)[:2])
    expected = torch.softmax(q @ k.mT / math.sqrt(D_MODEL // HEADS), dim=-1)
    close(attention(x, need_weights=True).weights, expected)


def weight_revealer(width, dropout):
    """Weigh ``width`` keys alike and return the weights themselves, for the identity matrix as input."""
    attention = MultiHeadAttention(width, 1, dropout=dropout, bias=False)
    with torch.no_grad():
        attention.in_proj.weight.copy_(torch.cat([torch.zeros(2 * width, width), torch.eye(width)]))
        attention.out_proj.weight.copy_(torch.eye(width))
    return attention


@paths
@pytest.mark.parametrize("p", [0.2, 0.6])
def test_dropout_in_training_zeroes_its_share_of_the_weights_and_scales_the_rest(need_weights, p):
    n, batch = 64, 8
    output = weight_revealer(n, p)(torch.eye(n).expand(batch, n, n), need_weights=need_weights).output
    dropped = output == 0
    torch.testing.assert_close(output[~dropped], torch.full_like(output[~dropped], 1 / (n * (1 - p))))
    # The share of zeros in N independent draws has the standard deviation sqrt(p (1 - p) / N); five of them
    # are exceeded once in two million seeds.
    assert dropped.double().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / output.numel()))
    assert len({tuple(row) for row in dropped.flatten(0, 1).tolist()}) == batch * n


@pytest.mark.parametrize(
    ("dtype", "n", "tolerance"),
    [(torch.float32, 7, 1e-5), (torch.bfloat16, 7, 8 * 2**-8), (torch.bfloat16, 513, 8 * 2**-8)],
)
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_a_dropped_weight_has_no_part_in_the_output_nor_in_gradients(dtype, n, tolerance, p):
    """With the identity for values the weights come out; the same seed drops the same of them for other values."""
    attention = MultiHeadAttention(n, 1, dropout=p, bias=False)
    with torch.no_grad():
        attention.in_proj.weight[2 * n :] = attention.out_proj.weight.copy_(torch.eye(n))
    attention = attention.to(dtype)
    query, key, value = (torch.randn(2, length, n).to(dtype).requires_grad_() for length in (5, n, n))
    torch.manual_seed(1)
    kept = attention(query, key, torch.eye(n, dtype=dtype).expand(2, n, n)).output != 0
    torch.manual_seed(1)
    actual = attention(query, key, value).output
    q, k = (x.double() @ w.T.double() for x, w in zip((query, key), attention.in_proj.weight.chunk(3), strict=False))
    weights = (q @ k.mT / math.sqrt(n)).softmax(dim=-1) * kept / (1 - p)
    expected = weights @ value.double()
    assert (actual - expected).norm() <= tolerance * expected.norm()
    grads = (gradients(output.double(), [query, key, value]) for output in (actual, expected))
    for found, right in zip(*grads, strict=True):
        assert (found.double() - right.double()).norm() <= 2 * tolerance * right.double().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [1e-6, 0.999999])
def test_dropout_next_to_nothing_drops_next_to_nothing_and_next_to_all_next_to_all(dtype, p):
    attention = weight_revealer(64, p).to(dtype)
    dropped = (attention(torch.eye(64, dtype=dtype).expand(8, 64, 64)).output == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=1e-3)


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_acts_in_compiled_training_too(dtype):
    n, batch, p = 64, 8, 0.5
    attention, x = weight_revealer(n, p).to(dtype), torch.eye(n, dtype=dtype).expand(batch, n, n)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    output = compiled(x).output
    dropped = output == 0
    torch.testing.assert_close(output[~dropped], torch.full_like(output[~dropped], 1 / (n * (1 - p))))
    assert dropped.double().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / output.numel()))
    assert not torch.equal(compiled(x).output, output)


@paths
def test_dropout_is_off_in_evaluation(need_weights):
    attention = weight_revealer(64, 0.6).eval()
    output = attention(torch.eye(64)[None], need_weights=need_weights).output
    torch.testing.assert_close(output, torch.full_like(output, 1 / 64), rtol=0, atol=1e-7)


def test_returned_weights_are_those_that_mixed_the_values_dropout_included():
    query, key, value = (randn(2, 6, 4) for _ in range(3))
    output, weights = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    plain = scaled_dot_product_attention(query, key, value).weights
    kept = weights != 0
    assert 0 < kept.sum() < kept.numel()
    close(weights, torch.where(kept, 2 * plain, 0.0))
    close(output, weights @ value)


def test_a_module_made_from_torch_drops_the_same_weights_for_the_same_seed():
    reference = torch_attention()
    reference.dropout = 0.4
    attention, x = MultiHeadAttention.from_torch(reference), randn(BATCH, QUERIES, D_MODEL)
    torch.manual_seed(1)
    expected, _ = reference(x, x, x, need_weights=False)
    torch.manual_seed(1)
    close(attention(x).output, expected)
    assert not torch.allclose(attention(x).output, expected)


@modes
def test_from_torch_takes_over_settings_and_leaves_the_original_as_it_was(training):
    reference = nn.MultiheadAttention(12, 3, dropout=0.3, dtype=torch.bfloat16).train(training)
    before = copy.deepcopy(reference.state_dict())

    attention = MultiHeadAttention.from_torch(reference)

    assert (attention.d_model, attention.num_heads, attention.dropout) == (12, 3, 0.3)
    assert attention.training is training
    assert {p.dtype for p in attention.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in attention.parameters())
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(1)
    assert reference.training is training
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("setting", [{"kdim": 4}, {"vdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_from_torch_refuses_what_it_cannot_copy(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        MultiHeadAttention.from_torch(nn.MultiheadAttention(8, 2, **setting))


@pytest.mark.parametrize("bias", [True, False])
def test_fresh_projections_keep_the_variance_of_their_input(bias):
    attention = MultiHeadAttention(128, 4, bias=bias)
    for weight in (*attention.in_proj.weight.chunk(3), attention.out_proj.weight):
        # Glorot's uniform bound for a square matrix; the deviation of 128 x 128 draws scatters by 0.4 %.
        assert weight.abs().max().item() <= math.sqrt(3 / 128)
        assert weight.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.02)
    biases = [attention.in_proj.bias, attention.out_proj.bias]
    assert all((b == 0).all() for b in biases) if bias else biases == [None, None]


@paths
@masks
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_low_precision_stays_within_its_rounding_of_float64(need_weights, make_mask, precision):
    exact = MultiHeadAttention(64, HEADS).double()
    x = randn(BATCH, 16, 64, requires_grad=False)
    mask, bias = make_mask(16, 16), randn(HEADS, 16, 16, requires_grad=False)
    expected = exact(x, mask=mask, bias=bias, need_weights=True).output
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    attention = copy.deepcopy(exact).to(dtype)

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        actual = attention(x.to(dtype), mask=mask, bias=bias.float(), need_weights=need_weights).output

    assert actual.dtype == (torch.float32 if precision == "float32" else torch.bfloat16)
    # In bfloat16 what is stored is rounded, by half an epsilon: input, parameters, projections, scores, weights,
    # mixture, output; sums are kept in float32. In float32 the sums round too: four products in a row, each
    # of 64 terms, whose roundings add up to about sqrt(64) halves.
    roundings = 4 * math.sqrt(64) if precision == "float32" else 7
    tolerance = roundings / 2 * torch.finfo(actual.dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
@pytest.mark.parametrize(
    ("keys", "training", "dtype"),
    [(256, True, torch.float32), (257, True, torch.bfloat16), (256, False, torch.bfloat16)],
)
def test_a_short_training_step_in_bf16_attends_in_float32(monkeypatch, precision, keys, training, dtype):
    kernel, seen = F.scaled_dot_product_attention, []

    def record(query, key, value, mask, *arguments, **keywords):
        seen.append((query.dtype, torch.is_autocast_enabled("cpu") and query.dtype == torch.float32))
        return kernel(query, key, value, mask, *arguments, **keywords)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    attention, x = MultiHeadAttention(D_MODEL, HEADS), torch.randn(1, keys, D_MODEL)
    if precision == "bfloat16":
        attention, x = attention.bfloat16(), x.bfloat16()
    bias = torch.randn(HEADS, keys, keys)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        assert attention(x, bias=bias).output.dtype == torch.bfloat16
    assert seen == [(dtype, False)]


def test_gradients_of_a_short_training_step_in_bf16_are_within_its_rounding_of_float64():
    reference = MultiHeadAttention(16, 2).double()
    attention, x = copy.deepcopy(reference).bfloat16(), torch.randn(2, 9, 16).bfloat16()
    attention.load_state_dict(reference.state_dict())
    reference.load_state_dict(attention.state_dict())
    mask, bias = causal(9, 9), torch.randn(2, 9, 9).bfloat16()
    grads = [
        gradients(module(x.to(dtype), mask=mask, bias=bias.to(dtype)).output.double(), list(module.parameters()))
        for module, dtype in ((attention, torch.bfloat16), (reference, torch.float64))
    ]
    for actual, expected in zip(*grads, strict=True):  # a few roundings of half an epsilon, 2**-8, in a row
        assert (actual.double() - expected).norm() < 8 * 2**-8 * max(expected.norm().item(), 1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
@pytest.mark.parametrize(
    ("shape", "settings", "inputs", "training", "fused"),
    [
        ((9, 2_048), {}, {}, True, False),
        ((2_049, 9), {}, {}, True, False),
        ((9, 2_049), {}, {}, True, True),
        ((512, 512), {}, {}, False, True),
        ((512, 512), {}, {"mask": torch.ones(512).bool()}, True, True),
        ((512, 512), {}, {"bias": torch.ones(512)}, True, True),
        ((512, 512), {"num_kv_heads": 1}, {}, True, True),
    ],
    ids=["2,048 keys", "more queries", "2,049 keys", "no gradient", "mask", "bias", "grouped"],
)
def test_two_products_take_the_place_of_the_kernel_in_a_short_training_step_in_bf16(
    monkeypatch, precision, shape, settings, inputs, training, fused
):
    kernel, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *x, **y: calls.append(x[0].dtype) or kernel(*x, **y))
    attention = MultiHeadAttention(D_MODEL, HEADS, **settings)
    query, key = (torch.randn(1, length, D_MODEL) for length in shape)
    if precision == "bfloat16":
        attention, query, key = attention.bfloat16(), query.bfloat16(), key.bfloat16()
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        assert attention(query, key, **inputs).output.dtype == torch.bfloat16
    assert calls == [torch.bfloat16] * fused
    with torch.set_grad_enabled(training):  # in float32, which is no autocast's
        assert attention.float()(query.float(), key.float(), **inputs).output.dtype == torch.float32
    assert calls == [torch.bfloat16] * fused + [torch.float32]


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
@pytest.mark.parametrize("length", [1, 9, 511, 512, 513, 1_100, 2_049])
def test_a_training_step_in_bf16_is_within_its_rounding_of_float64_at_any_length(precision, length):
    reference = MultiHeadAttention(16, 2).double()
    attention = copy.deepcopy(reference).bfloat16()
    reference.load_state_dict(attention.state_dict())  # the same numbers, rounded beforehand
    x = torch.randn(2, length, 16).bfloat16()
    if precision == "autocast":
        attention, low = attention.float(), x.float().requires_grad_()
    else:
        low = x.clone().requires_grad_()
    high = x.double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        actual = attention(low).output
    expected = reference(high).output
    # Each tensor that is stored is rounded by half an epsilon, 2**-8, at most: queries, keys and values, their scaled
    # form, scores, weights, mixture, output; as many again on the way back.
    assert (actual.double() - expected).norm() <= 7 * 2**-8 * expected.norm()
    found = gradients(actual.double(), [low, *attention.parameters()])
    expected = gradients(expected, [high, *reference.parameters()])
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= 14 * 2**-8 * max(other.norm().item(), 1e-3)


@pytest.fixture
def formed(monkeypatch):
    """Collect the number of scores of each softmax."""
    numbers, softmax = [], torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: numbers.append(x.numel()) or softmax(x, dim=dim))
    return numbers


@pytest.mark.parametrize(("texts", "heads"), [(1, 1), (1, 3), (1, 4), (5, 1), (3, 3), (2, 4)])
@pytest.mark.parametrize("most", [1, 3 * 7 * 9, 10**9])
def test_texts_and_heads_taken_some_at_a_time_give_what_they_give_together(monkeypatch, formed, texts, heads, most):
    """Halves of 5 and of 3 are unequal; with 1 score at a time each text and each head stands alone."""
    monkeypatch.setattr(attention_module, "MOST_BYTES_OF_SCORES", 8 * most)
    inputs = [randn(texts, heads, length, 4).requires_grad_() for length in (7, 9, 9)]
    output = attention_module._attend_unfused(*inputs, None, 0.0)
    expected = F.scaled_dot_product_attention(*inputs)
    close(output, expected)
    for actual, right in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        close(actual, right)
    assert sum(formed) == texts * heads * 7 * 9
    assert max(formed) <= max(most, 7 * 9)
    assert (len(formed) == 1) is (sum(formed) <= max(most, 7 * 9))


HIDDEN = {
    "none": None,
    "causal": torch.ones(7, 9).tril(diagonal=2).bool(),
    "of keys": torch.arange(9) < torch.tensor([9, 4, 1])[:, None, None, None],
    "of each score": torch.rand(3, 2, 7, 9, generator=torch.Generator().manual_seed(0)) > 0.8,
    "nothing is seen": torch.zeros(9).bool(),
    "one for all": torch.tensor(True),
}


@pytest.mark.parametrize("most", [1, 10**9])
@pytest.mark.parametrize("mask", HIDDEN)
@pytest.mark.parametrize("biased", [(), (7, 9), (2, 7, 9), (3, 1, 7, 9)], ids=str)
def test_two_products_attend_under_a_mask_and_a_bias_as_the_explicit_path_does(monkeypatch, most, mask, biased):
    """Of the masks, that of each score leaves some queries without a key; a bias shuts one out by itself."""
    monkeypatch.setattr(attention_module, "_is_faster_unfused", lambda *_: True)
    monkeypatch.setattr(attention_module, "MOST_BYTES_OF_SCORES", 8 * most)
    inputs = [randn(3, 2, length, 4).requires_grad_() for length in (7, 9, 9)]
    bias = randn(*biased).index_fill(-2, torch.tensor(3), -math.inf).requires_grad_() if biased else None
    output = attention_module._fast_attention(*inputs, HIDDEN[mask], bias, 0.0)
    expected = scaled_dot_product_attention(*inputs, HIDDEN[mask], bias=bias).output
    close(output, expected)
    leaves = inputs if bias is None else [*inputs, bias]
    for actual, right in zip(gradients(output, leaves), gradients(expected, leaves), strict=True):
        close(actual, right)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["mask", "bias"])
def test_a_mask_or_a_bias_leaves_the_kernel_where_weights_are_dropped(monkeypatch, p, training, kind):
    called, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *x, **y: called.append(1) or kernel(*x, **y))
    attention = MultiHeadAttention(8, 2, dropout=p).train(training)
    given = {"mask": causal_mask(5)} if kind == "mask" else {"bias": torch.randn(5, 5)}
    attention(torch.randn(2, 5, 8), **given)
    assert bool(called) is (p == 0 or not training)


@pytest.mark.parametrize(("dtype", "length"), [(torch.bfloat16, 1_024), (torch.float32, 724)])
def test_so_many_scores_are_formed_at_a_time_as_two_heads_of_1024_positions_have_in_bf16(formed, dtype, length):
    """724 is the most at which two heads have no more bytes in float32."""
    attention, x = MultiHeadAttention(6, 3, dropout=0.5).to(dtype), torch.randn(1, length, 6).to(dtype)
    attention(x)
    assert formed == [2 * length**2, length**2]


def test_dropout_acts_on_heads_that_are_taken_one_at_a_time(monkeypatch):
    monkeypatch.setattr(attention_module, "MOST_BYTES_OF_SCORES", 4)
    n, heads, p = 64, 8, 0.25
    query = key = torch.zeros(1, heads, n, 4)
    weights = attention_module._attend_unfused(query, key, torch.eye(n).expand(1, heads, n, n), None, p)
    dropped = weights == 0
    torch.testing.assert_close(weights[~dropped], torch.full_like(weights[~dropped], 1 / (n * (1 - p))))
    assert dropped.double().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / weights.numel()))
    assert len({tuple(row) for row in dropped.flatten(0, 2).tolist()}) == heads * n  # each draws its own


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_in_a_short_training_step_in_bf16_zeroes_its_share_and_scales_the_rest(precision, p):
    n, batch = 64, 8
    attention, x = weight_revealer(n, p), torch.eye(n).repeat(batch, 1, 1)
    if precision == "bfloat16":
        attention, x = attention.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = attention(x).output
    dropped, weight = output == 0, torch.tensor(1 / (n * (1 - p)), dtype=torch.bfloat16)
    torch.testing.assert_close(output[~dropped], weight.expand(int((~dropped).sum())), rtol=2**-8, atol=0)
    # Five standard deviations of the share of zeros, as above.
    assert dropped.double().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / output.numel()))
    assert len({tuple(row) for row in dropped.flatten(0, 1).tolist()}) == batch * n


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
@paths
@pytest.mark.parametrize(
    "settings", [{}, {"num_kv_heads": 1, "head_dim": 6, "rotary": RotaryEmbedding(6)}], ids=["plain", "GQA and RoPE"]
)
def test_multi_head_attention_compiles_to_one_graph_that_computes_the_same(need_weights, settings):
    attention = MultiHeadAttention(D_MODEL, HEADS, **settings).double()
    x, mask = randn(BATCH, QUERIES, D_MODEL), nowhere(QUERIES, QUERIES)
    inputs = [x, *attention.parameters()]
    expected = attention(x, mask=mask, need_weights=need_weights)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")  # traced, differentiated, run as it is
    actual = compiled(x, mask=mask, need_weights=need_weights)
    close(actual, expected)
    close(gradients(actual.output, inputs), gradients(expected.output, inputs))


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_attention_decodes_with_a_cache():
    attention = MultiHeadAttention(D_MODEL, HEADS, num_kv_heads=1, rotary=RotaryEmbedding(4)).double()
    x, cache = randn(BATCH, 3, D_MODEL), KeyValueCache()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        steps = [compiled(token, cache=cache).output for token in x.split(1, dim=1)]
        close(torch.cat(steps, dim=1), attention(x, mask=causal_mask(3)).output)
    assert cache.length == 3


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's compiler uses them itself
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler, found none"
)
def test_scaled_dot_product_attention_compiles_to_machine_code_that_computes_the_same():
    query, key, value = (randn(BATCH, HEADS, QUERIES, 4, requires_grad=False) for _ in range(3))
    compiled = torch.compile(scaled_dot_product_attention, fullgraph=True)
    arguments = query, key, value, nowhere(QUERIES, QUERIES)
    close(tuple(compiled(*arguments)), tuple(scaled_dot_product_attention(*arguments)))


def test_the_hook_refuses_a_wrong_shape_in_the_other_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="key"):
        scaled_dot_product_attention(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3))


def unfit_masks_and_biases(*scores):
    """List masks and biases of wrong dtypes, and of shapes that do not broadcast to the scores'."""
    yield {"mask": torch.ones(scores)}, TypeError, "mask has dtype torch.float32; expected torch.bool"
    yield {"mask": torch.ones(scores).int()}, TypeError, "mask has dtype torch.int32; expected torch.bool"
    yield {"bias": torch.ones(scores) > 0}, TypeError, "bias has dtype torch.bool; expected a floating one"
    *_, queries, keys = scores
    yield {"mask": torch.ones(scores, device="meta") > 0}, ValueError, "mask is on meta; expected cpu, the query's"
    yield {"bias": torch.ones(scores, device="meta")}, ValueError, "bias is on meta; expected cpu, the query's"
    for shape in ((queries + 1, keys), (queries, keys + 1), (5, *scores[1:]), (1, *scores)):
        message = re.escape(f"has shape {shape}; expected one that broadcasts to {scores}")
        yield {"mask": torch.ones(shape) > 0}, ValueError, f"mask {message}"
        yield {"bias": torch.ones(shape)}, ValueError, f"bias {message}"


Q, K, V = torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), torch.zeros(1, 4, 3)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": torch.zeros(1, 4, 5)}, ValueError, "key has width 5; expected the query's width 3"),
        ({"key": torch.zeros(2, 4, 3)}, ValueError, r"key has batch dimensions \(2,\); expected the query's \(1,\)"),
        ({"value": torch.zeros(1, 3, 3)}, ValueError, "value has length 3; expected the key's length 4"),
        ({"value": torch.zeros(4, 3)}, ValueError, r"value has batch dimensions \(\); expected the query's \(1,\)"),
        ({"query": Q.long()}, TypeError, "query has dtype torch.int64; expected a floating one"),
        ({"key": K.double()}, TypeError, "key has dtype torch.float64; expected torch.float32, the query's"),
        ({"value": V.long()}, TypeError, "value has dtype torch.int64; expected torch.float32, the query's"),
        ({"key": K.to("meta")}, ValueError, "key is on meta; expected cpu, the query's"),
        ({"value": V.to("meta")}, ValueError, "value is on meta; expected cpu, the query's"),
        *unfit_masks_and_biases(1, 2, 4),
    ],
)
def test_scaled_dot_product_attention_says_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(**{"query": Q, "key": K, "value": V} | arguments)


@pytest.mark.unhooked
@paths
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"value": torch.zeros(1, 2, 6)}, ValueError, "value is given without key"),
        ({"query": torch.zeros(1, 2, 5)}, ValueError, r"query has shape \(1, 2, 5\); .*d_model=6"),
        ({"query": torch.zeros(2, 6)}, ValueError, r"query has shape \(2, 6\); .*d_model=6"),
        ({"key": torch.zeros(1, 3, 7)}, ValueError, r"key has shape \(1, 3, 7\); .*d_model=6"),
        (
            {"key": torch.zeros(1, 3, 6), "value": torch.zeros(1, 3, 4)},
            ValueError,
            r"value has shape \(1, 3, 4\); .*d_model=6",
        ),
        (
            {"key": torch.zeros(1, 3, 6), "value": torch.zeros(1, 4, 6)},
            ValueError,
            "value has length 4; expected 3, the key's",
        ),
        ({"key": torch.zeros(3, 2, 6)}, ValueError, "key has batch 3; expected 1, the query's"),
        (
            {"key": torch.zeros(1, 3, 6), "value": torch.zeros(2, 3, 6)},
            ValueError,
            "value has batch 2; expected 1, the query's",
        ),
        ({"query": torch.zeros(1, 2, 6).double()}, TypeError, "query has dtype torch.float64; expected torch.float32"),
        ({"query": torch.zeros(1, 2, 6).long()}, TypeError, "query has dtype torch.int64; expected torch.float32"),
        ({"key": torch.zeros(1, 2, 6).bfloat16()}, TypeError, "key has dtype torch.bfloat16; expected torch.float32"),
        ({"query": torch.zeros(1, 2, 6, device="meta")}, ValueError, "query is on meta; expected cpu, the module's"),
        ({"key": torch.zeros(1, 2, 6, device="meta")}, ValueError, "key is on meta; expected cpu, the module's"),
        (
            {"key": torch.zeros(1, 2, 6), "value": torch.zeros(1, 2, 6, device="meta")},
            ValueError,
            "value is on meta; expected cpu, the module's",
        ),
        *unfit_masks_and_biases(1, 2, 2, 2),
    ],
)
def test_multi_head_attention_says_what_does_not_fit(need_weights, arguments, error, message):
    attention = MultiHeadAttention(6, 2)
    with pytest.raises(error, match=message):
        attention(**{"query": torch.zeros(1, 2, 6), "need_weights": need_weights} | arguments)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 4}, "num_heads=4 does not divide d_model=6"),
        ({"num_heads": 0}, "num_heads=0 does not divide d_model=6"),
        ({"num_heads": -2}, "num_heads=-2 does not divide d_model=6"),
        ({"num_heads": 0, "head_dim": 3}, "num_heads=0 does not divide d_model=6"),
        ({"head_dim": 0}, "head_dim=0; choose 1 or more"),
        ({"num_heads": 4, "head_dim": -1}, "head_dim=-1; choose 1 or more"),
        ({"num_kv_heads": 0}, "num_kv_heads=0 does not divide num_heads=2"),
        ({"num_kv_heads": -1}, "num_kv_heads=-1 does not divide num_heads=2"),
        ({"num_kv_heads": 4}, "num_kv_heads=4 does not divide num_heads=2"),
        ({"dropout": 1.0}, "dropout=1.0 is not a probability"),
        ({"dropout": -0.1}, "dropout=-0.1 is not a probability"),
    ],
)
def test_multi_head_attention_refuses_settings_that_cannot_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**{"d_model": 6, "num_heads": 2} | arguments)


@pytest.mark.unhooked
@pytest.mark.parametrize("key", [torch.zeros(1, 3, 6), torch.zeros(1, 2, 6)])
def test_rotary_positions_are_refused_for_two_sequences(key):
    attention = MultiHeadAttention(6, 1, rotary=RotaryEmbedding(6))
    with pytest.raises(ValueError, match=r"^key is given to an attention with rotary positions; leave it out"):
        attention(torch.zeros(1, 2, 6), key)


@pytest.mark.unhooked
def test_a_rotary_embedding_of_another_width_is_refused():
    attention = MultiHeadAttention(6, 1, rotary=RotaryEmbedding(4))
    with pytest.raises(ValueError, match=r"^x has shape \(1, 1, 2, 6\); expected .*head_dim=4"):
        attention(torch.zeros(1, 2, 6))
