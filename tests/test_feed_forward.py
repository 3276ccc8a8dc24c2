import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from gradients import gradients
from torch import nn

import companion.linear
from companion.feed_forward import FeedForward

D_MODEL, D_FF = 8, 12

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)

# x -> activation(inner(x)), written out; swiglu's inner(x) is W x, followed by V x
FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "swiglu": lambda x: x[:D_FF] / (1 + torch.exp(-x[:D_FF])) * x[D_FF:],
}
activations = pytest.mark.parametrize("activation", FORMULAS)


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def scattered(activation, **settings):
    module = FeedForward(D_MODEL, D_FF, activation=activation, **settings).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@activations
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_feed_forward_equals_its_formula_position_by_position(activation, leading, training):
    module = scattered(activation).train(training)
    x = randn(*leading, D_MODEL)
    w1, w2 = module.inner.weight, module.outer.weight
    b1, b2 = (0.0, 0.0) if activation == "swiglu" else (module.inner.bias, module.outer.bias)
    assert (w1.shape, w2.shape) == ((D_FF * (1 + (activation == "swiglu")), D_MODEL), (D_MODEL, D_FF))

    positions = [w2 @ FORMULAS[activation](w1 @ position + b1) + b2 for position in x.view(-1, D_MODEL)]
    expected = torch.stack(positions).view_as(x)

    close(module(x), expected)
    inputs = [x, *module.parameters()]
    close(gradients(module(x), inputs), gradients(expected, inputs))


@pytest.mark.parametrize(
    ("activation", "x", "expected"),
    [
        ("relu", 2.0, 2.0),
        ("relu", -2.0, 0.0),
        ("gelu", 1.0, 0.8413447461),  # the normal distribution puts 84.13 % below one deviation
        ("gelu", -2.0, -0.0455002639),
        ("gelu_new", 1.0, 0.8411919906),
        ("gelu_new", -2.0, -0.0454023059),
        ("gelu_new", 0.5, 0.3457140098),
        ("swiglu", 1.0, 2.1931757358),  # W x = 1, V x = 3, and silu(1) = 1 / (1 + 1 / e) = 0.7310585786
        ("swiglu", -1.0, 0.8068242642),  # silu(-1) = -0.2689414214, times -3
    ],
)
def test_activations_at_hand_computed_values(activation, x, expected):
    module = FeedForward(1, 1, activation=activation).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.inner.weight[:, 0] = torch.tensor([1.0, 3.0])[: len(module.inner.weight)]
        module.outer.weight.fill_(1.0)
    assert module(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(expected, abs=5e-10)


def test_feed_forward_uses_gelu_unless_told_otherwise():
    x = randn(2, D_MODEL)
    module = FeedForward(D_MODEL, D_FF).double()
    close(module(x), module.outer(F.gelu(module.inner(x))))


def test_number_of_parameters():
    def count(*sizes, **settings):
        return sum(parameter.numel() for parameter in FeedForward(*sizes, **settings).parameters())

    assert count(6, 9, activation="gelu") == 2 * 6 * 9 + 9 + 6
    assert count(6, 9, activation="swiglu") == 3 * 6 * 9
    assert count(6, 8, activation="swiglu") == count(6, 12, activation="relu") - 12 - 6  # 8 is 2 / 3 of 12


@pytest.mark.parametrize("p", [0.2, 0.6])
@pytest.mark.parametrize(
    ("activation", "value"),
    [("relu", 1.0), ("gelu", 0.8413447461), ("gelu_new", 0.8411919906), ("swiglu", 0.7310585786)],
)
def test_dropout_in_training_zeroes_its_share_of_the_activations_and_scales_the_rest(activation, value, p):
    n = 128
    module = FeedForward(n, n, activation=activation, dropout=p).double()
    with torch.no_grad():  # inner and outer hand on what they get, plus 0 and 2
        module.inner.weight.copy_(torch.eye(n).repeat(len(module.inner.weight) // n, 1))
        module.outer.weight.copy_(torch.eye(n))
        if activation != "swiglu":
            module.inner.bias.zero_(), module.outer.bias.fill_(2.0)
    x = torch.ones(n, n, dtype=torch.float64)
    bias = 0.0 if activation == "swiglu" else 2.0

    dropped = module(x) - bias

    zeros = dropped.abs() < 1e-12
    torch.testing.assert_close(dropped[~zeros], torch.full_like(dropped[~zeros], value / (1 - p)), rtol=0, atol=2e-9)
    # The share of zeros in N independent draws has the standard deviation sqrt(p (1 - p) / N).
    share = pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / zeros.numel()))
    assert zeros.double().mean().item() == share
    assert (dropped.mean() / value).item() == pytest.approx(1, abs=5 * math.sqrt(p / (1 - p) / zeros.numel()))
    assert len({tuple(row) for row in zeros.tolist()}) == n
    torch.testing.assert_close(module.eval()(x) - bias, torch.full_like(x, value), rtol=0, atol=1e-9)


@activations
def test_dropout_draws_what_torchs_draws_after_the_activation(activation):
    module, x = scattered(activation, dropout=0.3), randn(2, 3, D_MODEL)
    torch.manual_seed(1)
    activated = torch.stack([FORMULAS[activation](y) for y in module.inner(x).flatten(0, 1)]).unflatten(0, (2, 3))
    expected = module.outer(F.dropout(activated, 0.3))
    torch.manual_seed(1)
    close(module(x), expected)
    assert not torch.allclose(module(x), expected)


@activations
def test_in_float32_products_of_few_rows_and_dropout_leave_torchs_out(activation, monkeypatch):
    monkeypatch.setattr(companion.linear, "FEWEST_WEIGHTS", 0)
    module, x = scattered(activation, dropout=0.3).float(), torch.randn(3, D_MODEL)
    torch.manual_seed(1)
    expected = module(x)  # with gradients the products are torch's
    monkeypatch.delattr(F, "linear")
    monkeypatch.delattr(F, "dropout")
    torch.manual_seed(1)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected.detach())


@activations
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_an_input_of_either_dtype_gives_bfloat16(activation, dtype):
    module, x = scattered(activation).float(), randn(3, D_MODEL).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        actual = module(x)
    assert torch.equal(actual, module.bfloat16()(x.bfloat16()))  # equal in dtype, too


@activations
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_low_precision_stays_within_its_rounding_of_float64(activation, precision):
    exact, x = FeedForward(64, 128, activation=activation).double(), randn(16, 64)
    dtype = getattr(torch, precision)
    expected = exact(x)
    actual = exact.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    # In bfloat16 what is stored is rounded, by half an epsilon at most: input, up to three weights, what they make, the
    # gate, its product, output. In float32 each term of the sums of 64 and 128 products rounds too. Independent
    # roundings add up to the square root of their number.
    roundings = 64 + 128 if precision == "float32" else 9
    tolerance = math.sqrt(roundings) / 2 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
@activations
def test_feed_forward_compiles_to_one_graph_that_computes_the_same(activation):
    module, x = scattered(activation), randn(2, 3, D_MODEL)
    inputs = [x, *module.parameters()]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    close(compiled(x), module(x))
    close(gradients(compiled(x), inputs), gradients(module(x), inputs))


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.tensor(1.0), ValueError, r"x has shape \(\); expected \(\.\.\., d_model=8\)"),
        (torch.zeros(2, 7), ValueError, r"x has shape \(2, 7\); expected \(\.\.\., d_model=8\)"),
        (torch.zeros(8, 9), ValueError, r"x has shape \(8, 9\); expected \(\.\.\., d_model=8\)"),
        (torch.zeros(2, 8, device="meta"), ValueError, "x is on meta; expected cpu, the module's"),
        (torch.zeros(2, 8).double(), TypeError, "x has dtype torch.float64; expected torch.float32, the module's"),
        (torch.zeros(2, 8).int(), TypeError, "x has dtype torch.int32; expected torch.float32, the module's"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        FeedForward(8, 12)(x)


@pytest.mark.unhooked
def test_an_integer_is_refused_under_autocast_too():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"x has dtype torch\.int64"):
        FeedForward(8, 12)(torch.zeros(2, 8).long())


@pytest.mark.unhooked
def test_an_unknown_activation_is_refused():
    message = r"activation='tanh' is unknown; choose one of \('relu', 'gelu', 'gelu_new', 'swiglu'\)"
    with pytest.raises(ValueError, match=message):
        FeedForward(8, 12, activation="tanh")
