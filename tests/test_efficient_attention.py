import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from companion.attention import MultiHeadAttention, padding_mask, scaled_dot_product_attention, sliding_window_mask
from companion.cache import KeyValueCache
from companion.efficient_attention import (
    LinearAttention,
    SlidingWindowAttention,
    linear_attention,
    sliding_window_attention,
)
from companion.layers import Encoder, EncoderLayer
from companion.positions import RotaryEmbedding

BATCH, HEADS, LENGTH, D_MODEL = 3, 2, 11, 8

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)  # float64 throughout: rounding is 1e-16 a step
property_test = settings(max_examples=30)


def randn(*shape, requires_grad=True):
    return torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)


def padding(length):
    """Leave all keys of the first text, one fewer of the second, and none of the third."""
    return (torch.arange(length) < torch.tensor([length, length - 1, 0])[:, None])[:, None, None, :]


def explicit_linear_attention(query, key, value, mask=None):
    """Form the weights, every query with every key; exp(x) below 0 and x + 1 above is elu(x) + 1."""
    features = [torch.where(x < 0, x.exp(), x + 1) for x in (query, key)]
    weights = torch.einsum("bhqd,bhkd->bhqk", *features)
    if mask is not None:
        weights = weights * mask
    total = weights.sum(-1, keepdim=True)
    return (weights / torch.where(total == 0, 1.0, total)) @ value


def explicit_window_attention(query, key, value, window, mask=None):
    near = sliding_window_mask(query.size(-2), window)
    return scaled_dot_product_attention(query, key, value, near if mask is None else near & mask).output


class LargestOutput(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(output) if torch.is_tensor(x)]
        self.size = max(self.size, *sizes, 0)
        return output


masks = pytest.mark.parametrize("mask", [None, padding(LENGTH)], ids=["none", "padding"])


@masks
@pytest.mark.parametrize("queries", [LENGTH, 4, 1])
def test_linear_attention_equals_its_weights_formed_one_by_one(mask, queries):
    inputs = [randn(BATCH, HEADS, n, d) for n, d in ((queries, 4), (LENGTH, 4), (LENGTH, 3))]
    actual, expected = linear_attention(*inputs, mask), explicit_linear_attention(*inputs, mask)
    close(actual, expected)
    close(gradients(actual, inputs), gradients(expected, inputs))


def test_linear_attention_of_a_masked_text_is_that_of_the_text_without_padding():
    query, key, value = (randn(BATCH, HEADS, LENGTH, 4) for _ in range(3))
    output = linear_attention(query, key, value, padding(LENGTH))
    close(output[1:2], linear_attention(query[1:2], key[1:2, :, :-1], value[1:2, :, :-1]))
    assert (output[2] == 0).all()


def test_linear_and_softmax_attention_agree_where_there_is_nothing_to_choose():
    query, value = (randn(BATCH, HEADS, LENGTH, 4) for _ in range(2))
    key = randn(BATCH, HEADS, 1, 4).expand(-1, -1, LENGTH, -1)  # all keys alike
    close(linear_attention(query, key, value), scaled_dot_product_attention(query, key, value).output)
    one = [randn(BATCH, HEADS, 1, 4) for _ in range(3)]
    close(linear_attention(*one), one[2])


def test_linear_attention_of_features_that_all_vanish_is_zero_and_so_are_its_gradients():
    inputs = [torch.full((1, 1, 3, 2), x).requires_grad_() for x in (-1e4, 0.0, 1.0)]
    output = linear_attention(*inputs)
    assert (output == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients(output, inputs))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_linear_attention_loses_nothing_of_small_features(dtype, rtol):
    query, key, value = torch.randn(3, 1, 1, 20, 4)
    inputs = [x.to(dtype) for x in (query - 9, key - 20, value)]  # elu(-20) + 1 is 0 in float32
    expected = explicit_linear_attention(*(x.double() for x in inputs))
    torch.testing.assert_close(linear_attention(*inputs).double(), expected, rtol=rtol, atol=rtol * 0.1)


@pytest.mark.parametrize("attend", [linear_attention, partial(sliding_window_attention, window=5)])
def test_the_products_grow_with_the_length_alone(attend):
    counts = []
    for length in (200, 400):
        x = torch.zeros(1, 1, length, 4)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            attend(x, x, x)
        counts.append(counter.get_total_flops())
    assert counts[1] == 2 * counts[0]


def test_a_window_far_beyond_the_text_costs_no_more_than_the_text():
    x = torch.zeros(1, 1, 11, 4)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sliding_window_attention(x, x, x, 10**5)
    assert counter.get_total_flops() == 2 * 2 * 11 * 33 * 4  # scores and weighted sum over 3 blocks


@pytest.mark.parametrize("attend", [linear_attention, partial(sliding_window_attention, window=3)])
def test_everything_is_made_on_the_device_of_the_inputs(attend):
    x, mask = torch.zeros(2, 1, 9, 4, device="meta"), torch.ones(2, 1, 1, 9, dtype=torch.bool, device="meta")
    assert attend(x, x, x, mask=mask).device.type == "meta"


@property_test
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31))
def test_sliding_window_attention_equals_full_attention_under_its_mask(length, window, seed):
    torch.manual_seed(seed)
    inputs = [randn(2, HEADS, length, d) for d in (4, 4, 3)]
    mask = None if seed % 3 == 0 else torch.rand(2, 1, 1, length) > 0.4
    actual = sliding_window_attention(*inputs, window, mask)
    expected = explicit_window_attention(*inputs, window, mask)
    close(actual, expected)
    close(gradients(actual, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("window", [LENGTH, LENGTH + 1, 100])
def test_a_window_as_wide_as_the_text_is_full_attention(window):
    inputs = [randn(BATCH, HEADS, LENGTH, 4) for _ in range(3)]
    close(sliding_window_attention(*inputs, window), scaled_dot_product_attention(*inputs).output)


def test_a_window_of_one_position_gives_back_its_value():
    query, key, value = (randn(BATCH, HEADS, LENGTH, 4) for _ in range(3))
    close(sliding_window_attention(query, key, value, 1), value)


@pytest.mark.parametrize("attend", [linear_attention, partial(sliding_window_attention, window=2)])
def test_gradcheck(attend):
    inputs, mask = [randn(2, 1, 5, 2) for _ in range(3)], torch.tensor([True, True, False, True, True])
    assert torch.autograd.gradcheck(lambda *x: attend(*x, mask=mask), inputs)


@pytest.mark.parametrize("attend", [linear_attention, partial(sliding_window_attention, window=3)])
@pytest.mark.parametrize("shape", [(), (1,), (LENGTH,), (1, LENGTH), (BATCH, 1, 1, 1), (1, 1, 1, LENGTH)])
def test_masks_of_any_dimension_broadcast(attend, shape):
    inputs, mask = [randn(BATCH, HEADS, LENGTH, 4) for _ in range(3)], torch.rand(shape) > 0.3
    close(attend(*inputs, mask=mask), attend(*inputs, mask=mask.expand(BATCH, 1, 1, LENGTH)))


def test_linear_attention_takes_another_mask_for_each_head():
    inputs, mask = [randn(BATCH, HEADS, LENGTH, 4) for _ in range(3)], torch.rand(BATCH, HEADS, 1, LENGTH) > 0.3
    close(linear_attention(*inputs, mask), explicit_linear_attention(*inputs, mask))


@pytest.mark.parametrize("attend", [linear_attention, partial(sliding_window_attention, window=3)])
def test_a_text_without_tokens_has_no_output(attend):
    assert attend(*(randn(BATCH, HEADS, 0, 4) for _ in range(3))).shape == (BATCH, HEADS, 0, 4)


@pytest.mark.parametrize(
    "attend", [linear_attention, partial(sliding_window_attention, window=8)], ids=["linear", "window"]
)
def test_the_largest_tensor_grows_with_the_length_not_with_its_square(attend):
    sizes = []
    for length in (256, 512, 1024):
        inputs = [torch.randn(1, HEADS, length, 4) for _ in range(3)]
        with LargestOutput() as largest, torch.no_grad():
            attend(*inputs)
        sizes.append(largest.size)
    assert sizes[0] < HEADS * 256**2 / 4
    # A few blocks of margin at the ends do not grow.
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.01)
    assert sizes[2] < 2.1 * sizes[1]


MODULES = {
    "linear": (LinearAttention, explicit_linear_attention),
    "window": (
        partial(SlidingWindowAttention, window=3),
        partial(explicit_window_attention, window=3),
    ),
}
modules = pytest.mark.parametrize(("make", "explicit"), MODULES.values(), ids=MODULES)


@modules
@masks
@pytest.mark.parametrize("settings", [{}, {"head_dim": 5, "bias": False}], ids=["default", "other"])
def test_a_module_projects_attends_and_projects_back_with_the_weights_of_multi_head_attention(
    make, explicit, mask, settings
):
    full = MultiHeadAttention(D_MODEL, HEADS, **settings).double()
    for parameter in full.parameters():
        torch.nn.init.normal_(parameter)
    attention = make(D_MODEL, HEADS, **settings).double()
    attention.load_state_dict(full.state_dict())
    x = randn(BATCH, LENGTH, D_MODEL)

    q, k, v = (y.view(BATCH, LENGTH, HEADS, -1).transpose(1, 2) for y in full.in_proj(x).chunk(3, dim=-1))
    expected = full.out_proj(torch.cat(explicit(q, k, v, mask=mask).unbind(1), dim=-1))
    actual = attention(x, mask=mask)

    assert actual.weights is None
    close(actual.output, expected)
    ours, theirs = [x, *attention.parameters()], [x, *full.parameters()]
    close(gradients(actual.output, ours), gradients(expected, theirs))


def test_the_windows_of_a_module_may_be_turned_by_rotary_positions_and_thinned_by_dropout():
    rotary, x = RotaryEmbedding(4), randn(BATCH, LENGTH, D_MODEL)
    full = MultiHeadAttention(D_MODEL, HEADS, rotary=rotary).double()
    attention = SlidingWindowAttention(D_MODEL, HEADS, 3, rotary=rotary, dropout=0.5).double()
    attention.load_state_dict(full.state_dict())
    expected = full(x, mask=sliding_window_mask(LENGTH, 3)).output
    close(attention.eval()(x).output, expected)
    assert not torch.allclose(attention.train()(x).output, expected)
    q, k, v = attention._project(x, None, None, None)
    torch.manual_seed(1)
    dropped = attention(x).output
    torch.manual_seed(1)
    heads = sliding_window_attention(q, k, v, 3, dropout_p=0.5)
    close(dropped, attention.out_proj(heads.transpose(1, 2).flatten(2)))


def test_dropout_leaves_the_mean_of_the_windows_weighted_values():
    query = key = torch.zeros(1, 1, 4_000, 1)
    output = sliding_window_attention(query, key, torch.ones(1, 1, 4_000, 1), 2, dropout_p=0.25)
    # 4,000 independent means of 3 weights (2 at the ends), each of variance 1/3: 1/9 in all; 5 deviations of their mean
    # are 0.027, and of their variance less than 0.15 of it.
    assert output.mean().item() == pytest.approx(1.0, abs=0.03)
    assert output[0, 0, 1:-1].var().item() == pytest.approx(1 / 9, rel=0.15)


@modules
def test_a_module_takes_the_place_of_an_encoder_layer_s_attention(make, explicit):
    encoder = Encoder(2, D_MODEL, HEADS, 16).double()
    for layer in encoder.layers:
        layer.attention = make(D_MODEL, HEADS).double()
    ids = torch.tensor([[3, 4, 5, 6, 0, 0]])
    x = randn(1, 6, D_MODEL)
    output = encoder(x, padding_mask(ids))
    close(output[:, :4], encoder(x[:, :4]))  # padding changes nothing
    assert all(gradient.abs().sum() > 0 for gradient in gradients(output, list(encoder.parameters())))


@pytest.mark.parametrize(("window", "num_layers"), [(1, 2), (2, 1), (3, 2), (4, 3)])
def test_a_stack_of_windows_reaches_layers_times_window_less_one_and_no_further(window, num_layers):
    encoder = Encoder(num_layers, D_MODEL, HEADS, 16).double()
    for layer in encoder.layers:
        layer.attention = SlidingWindowAttention(D_MODEL, HEADS, window).double()
    x = randn(1, 24, D_MODEL)
    reached = torch.autograd.grad(encoder(x)[0, -1].cos().sum(), x)[0][0].abs().sum(-1) > 0
    assert reached.tolist() == [23 - position <= num_layers * (window - 1) for position in range(24)]


def test_linear_attention_in_a_layer_is_not_softmax_attention():
    layer, x = EncoderLayer(D_MODEL, HEADS, 16).double(), randn(1, LENGTH, D_MODEL)
    full = layer(x)
    linear = LinearAttention(D_MODEL, HEADS).double()
    linear.load_state_dict(layer.attention.state_dict())
    layer.attention = linear
    assert (layer(x) - full).abs().max() > 1e-3


Q = torch.zeros(BATCH, HEADS, 5, 4)


@pytest.mark.unhooked
@pytest.mark.parametrize("attend", [linear_attention, partial(sliding_window_attention, window=2)])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": Q[0]}, ValueError, "query has shape (2, 5, 4); expected (batch, heads, length, d_k)"),
        ({"query": Q.long()}, TypeError, "query has dtype torch.int64; expected a floating one"),
        ({"key": Q[..., :3]}, ValueError, "key has shape (3, 2, 5, 3); expected (3, 2, 5, 4)"),
        ({"key": Q[0]}, ValueError, "key has shape (2, 5, 4); expected (3, 2, 4, 4)"),
        ({"key": Q.double()}, TypeError, "key has dtype torch.float64; expected torch.float32, the query's"),
        ({"value": Q[:, :, :4]}, ValueError, "value has shape (3, 2, 4, 4); expected (3, 2, 5, 4)"),
        ({"value": Q[:1]}, ValueError, "value has shape (1, 2, 5, 4); expected (3, 2, 5, 4)"),
        ({"value": Q.to("meta")}, ValueError, "value is on meta; expected cpu, the query's"),
        ({"mask": torch.ones(5)}, TypeError, "mask has dtype torch.float32; expected torch.bool, True where"),
        ({"mask": torch.ones(5, 5) > 0}, ValueError, "mask has shape (5, 5); expected one that broadcasts to (3, "),
        ({"mask": torch.ones(4) > 0}, ValueError, "mask has shape (4,); expected one that broadcasts to (3, "),
        ({"mask": torch.ones(5, device="meta") > 0}, ValueError, "mask is on meta; expected cpu, the query's"),
    ],
)
def test_what_does_not_fit_is_named(attend, change, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        attend(**{"query": Q, "key": Q, "value": Q} | change)


@pytest.mark.unhooked
def test_a_window_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"^key has length 4; expected 5, the query's"):
        sliding_window_attention(Q, Q[:, :, :4], Q[:, :, :4], 2)
    with pytest.raises(ValueError, match=r"^window=0; choose 1 or more, for each position sees itself"):
        sliding_window_attention(Q, Q, Q, 0)
    with pytest.raises(ValueError, match=r"^window=0; choose 1 or more"):
        SlidingWindowAttention(8, 2, 0)
    with pytest.raises(ValueError, match=r"^mask has shape .*; expected one that broadcasts to \(3, 1, 1, 5\)"):
        sliding_window_attention(Q, Q, Q, 2, torch.ones(BATCH, HEADS, 1, 5) > 0)


@pytest.mark.unhooked
@modules
@pytest.mark.parametrize("name", ["key", "value", "bias", "cache", "need_weights"])
def test_a_module_refuses_what_it_has_no_use_for(make, explicit, name):
    module, x = make(D_MODEL, HEADS), torch.zeros(1, 5, D_MODEL)
    given = {"key": x + 1, "value": x + 1, "bias": torch.zeros(5, 5), "cache": KeyValueCache(), "need_weights": True}
    with pytest.raises(ValueError, match=f"^{name} is given to {type(module).__name__}, which .*; leave it out"):
        module(x, **{name: given[name]})
    assert torch.equal(module(x, x, x).output, module(x).output)


@modules
def test_autocast_and_bfloat16(make, explicit):
    module, x = make(D_MODEL, HEADS), torch.randn(2, LENGTH, D_MODEL)
    expected = module(x).output
    with torch.autocast("cpu", torch.bfloat16):
        # bfloat16 has 8 bits: three maps of values around 1 in a row, each rounded to a relative 2 ** -9.
        torch.testing.assert_close(module(x).output.float(), expected, rtol=0, atol=0.05)
    assert module.bfloat16()(x.bfloat16()).output.dtype == torch.bfloat16


def test_features_are_the_paper_s():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    unit = torch.eye(13, dtype=torch.float64)[None, None]
    weights = linear_attention(torch.zeros(1, 1, 1, 1, dtype=torch.float64), x[None, None, :, None], unit)
    features = F.elu(x) + 1
    close(weights[0, 0, 0], features / features.sum())
