"""Linear layers against ``torch.nn.Linear`` in float64, and that the quicker product is where it is to be."""

import copy

import pytest
import torch
import torch.nn.functional as F
from gradients import gradients
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from companion.linear import Linear, linear

WIDE = (256, 256)  # 2^16 weights


@pytest.fixture
def halved(monkeypatch):
    """Record whether each call leaves ``torch.nn.functional.linear`` out."""
    calls, original = [], F.linear
    monkeypatch.setattr(F, "linear", lambda *arguments: calls.append(1) or original(*arguments))

    def was_halved(call):
        calls.clear()
        call()
        return not calls

    return was_halved


# Sums of n products of float32 in any order are off by n times 2^-24 of the sum of magnitudes, at the most.


@pytest.mark.parametrize("bias", [True, False])
@given(st.integers(1, 70), st.sampled_from([WIDE, (300, 222), (64, 1024), (1024, 64)]), st.integers(0, 2**32 - 1))
def test_outputs_are_those_of_float64_whatever_the_number_of_rows(bias, rows, shape, seed):
    torch.manual_seed(seed)
    layer, x = Linear(*shape, bias=bias), torch.randn(rows, shape[0])
    with torch.no_grad():
        actual = layer(x)
        wide = [x.double(), *(parameter.double() for parameter in layer.parameters())]
        exact, magnitudes = F.linear(*wide), F.linear(*map(torch.abs, wide))
    assert actual.is_contiguous()
    assert ((actual - exact).abs() <= 2**-24 * (shape[0] + 1) * magnitudes).all()


@pytest.mark.parametrize("shape", [(256,), (1, 256), (1, 1, 256), (2, 3, 256), (8, 2, 4, 256), (0, 256), (3, 0, 256)])
def test_shapes_and_strides_are_those_of_torch(shape, halved):
    layer, x = Linear(*WIDE), torch.randn(shape)
    with torch.inference_mode():
        expected = nn.Linear.forward(layer, x)
        assert halved(lambda: layer(x)) == (x.numel() > 0)
        torch.testing.assert_close(layer(x), expected, check_stride=True, rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_lie_side_by_side_are_read_in_their_order(halved):
    layer, x = Linear(*WIDE), torch.randn(256, 5, 3).transpose(0, 2)
    with torch.inference_mode():
        assert halved(lambda: layer(x))
        torch.testing.assert_close(layer(x), nn.Linear.forward(layer, x.contiguous()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", [0, 256])
def test_a_slice_of_the_weights_is_a_linear_layer_of_its_own(start, halved):
    weight, x = torch.randn(768, 256)[start : start + 256], torch.randn(3, 256)
    with torch.inference_mode():
        assert halved(lambda: linear(x, weight))
        torch.testing.assert_close(linear(x, weight), x @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "shape", "quick"),
    [
        (1, WIDE, True),
        (64, WIDE, True),
        (65, WIDE, False),
        (1, (256, 254), False),  # fewer than 2^16 weights
        (1, (256, 257), False),  # no halves
        (1, (255, 258), True),
    ],
)
def test_few_rows_and_many_weights_take_the_quick_product(rows, shape, quick, halved):
    layer, x = Linear(*shape), torch.randn(rows, shape[0])
    with torch.inference_mode():
        assert halved(lambda: layer(x)) is quick
    with torch.no_grad():
        assert halved(lambda: layer(x)) is quick
    assert not halved(lambda: layer(x))  # gradients may be wanted


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_take_torchs(dtype, halved):
    layer, x = Linear(*WIDE, dtype=dtype), torch.randn(1, 256).to(dtype)
    with torch.inference_mode():
        assert not halved(lambda: layer(x))
        torch.testing.assert_close(layer(x), nn.Linear.forward(layer, x), rtol=0, atol=0)


def test_autocast_decides_the_dtype(halved):
    layer, x = Linear(*WIDE), torch.randn(1, 256)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert not halved(lambda: layer(x))
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.unhooked
def test_mixed_dtypes_are_torchs_error():
    layer = Linear(*WIDE)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="same dtype"):
        layer(torch.randn(1, 256, dtype=torch.float64))


@pytest.mark.unhooked
def test_a_wrong_width_is_torchs_error():
    layer = Linear(*WIDE)
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode(), pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|size"):
            layer(torch.randn(1, 255))


def test_the_weights_are_drawn_and_named_as_in_torch():
    torch.manual_seed(0)
    ours = Linear(5, 7)
    torch.manual_seed(0)
    theirs = nn.Linear(5, 7)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=0, atol=0)


def test_gradients_are_torchs():
    ours = Linear(*WIDE)
    theirs, x = nn.Linear(*WIDE), torch.randn(3, 256).requires_grad_()
    theirs.load_state_dict(ours.state_dict())
    for actual, expected in zip(
        gradients(ours(x), [x, *ours.parameters()]), gradients(theirs(x), [x, *theirs.parameters()]), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiler_sees_one_product(halved):
    layer, x = Linear(*WIDE), torch.randn(2, 256)
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), nn.Linear.forward(layer, x), rtol=0, atol=0)
