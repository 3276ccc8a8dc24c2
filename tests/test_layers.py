import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from companion.attention import MultiHeadAttention, causal_mask
from companion.layers import Encoder, EncoderLayer, FeedForward

BATCH, LENGTH, D_MODEL, HEADS, D_FF = 3, 5, 8, 2, 12
UNUSUAL_EPS = 0.1

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)

PADDING = (torch.arange(LENGTH) < torch.tensor([LENGTH, 3, 1])[:, None])[:, None, None, :]
LEFT_PADDING = (torch.arange(LENGTH) >= torch.tensor([0, 2, LENGTH])[:, None])[:, None, None, :]
MASKS = {
    "none": None,
    "padding": PADDING,
    "causal": causal_mask(LENGTH),
    "padding and causal": PADDING & causal_mask(LENGTH),
    "nowhere": LEFT_PADDING & causal_mask(LENGTH),
}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
orders = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])

NAMES = {
    "attention.in_proj.": "self_attn.in_proj_",
    "attention.out_proj.": "self_attn.out_proj.",
    "attention_norm.": "norm1.",
    "feed_forward.inner.": "linear1.",
    "feed_forward.outer.": "linear2.",
    "feed_forward_norm.": "norm2.",
}


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def torch_layer(**settings):
    defaults = {"dim_feedforward": D_FF, "dropout": 0.0, "batch_first": True, "dtype": torch.float64}
    return scatter(nn.TransformerEncoderLayer(D_MODEL, HEADS, **defaults | settings))


def torch_encoder(final_norm=False, **settings):
    norm = nn.LayerNorm(D_MODEL, eps=UNUSUAL_EPS, dtype=torch.float64) if final_norm else None
    return scatter(nn.TransformerEncoder(torch_layer(**settings), 2, norm, enable_nested_tensor=False))


def scatter(module):
    """Leave no bias at 0 and no scale at 1, and no two layers alike, so that each has to be copied."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


stacks = pytest.mark.parametrize(
    ("kind", "make"), [(EncoderLayer, torch_layer), (Encoder, torch_encoder)], ids=["layer", "stack"]
)


def torch_mask(mask):
    return None if mask is None else ~mask.expand(BATCH, HEADS, LENGTH, LENGTH).flatten(0, 1)


def torch_name(name):
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def copy_parameters(reference, module):
    theirs = reference.state_dict()
    module.load_state_dict({name: theirs[torch_name(name)] for name in module.state_dict()})


def gradients(output, inputs):
    """Differentiate a fixed weighting of the output, so that every element counts differently."""
    weighting = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).cos().view_as(output)
    return torch.autograd.grad((output * weighting).sum(), inputs)


def assert_same_computation(module, reference, mask):
    """Compare outputs, and the gradients of the input and of every parameter, matched by name."""
    x = randn(BATCH, LENGTH, D_MODEL)
    actual, expected = module(x, mask), reference(x, torch_mask(mask))
    close(actual, expected)
    ours, theirs = dict(module.named_parameters()), dict(reference.named_parameters())
    assert {torch_name(name) for name in ours} == set(theirs)
    close(
        gradients(actual, [x, *ours.values()]),
        gradients(expected, [x, *(theirs[torch_name(name)] for name in ours)]),
    )


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("gelu", lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
    ],
)
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_feed_forward_equals_its_formula_position_by_position(activation, function, leading):
    module = scatter(FeedForward(D_MODEL, D_FF, activation=activation).double())
    x = randn(*leading, D_MODEL)
    w1, b1, w2, b2 = module.inner.weight, module.inner.bias, module.outer.weight, module.outer.bias
    assert (w1.shape, w2.shape) == ((D_FF, D_MODEL), (D_MODEL, D_FF))

    expected = torch.empty_like(x)
    for index in torch.cartesian_prod(*map(torch.arange, (*leading, 1))).reshape(-1, len(leading) + 1).tolist():
        position = tuple(index[:-1])
        expected[position] = w2 @ function(w1 @ x[position] + b1) + b2

    close(module(x), expected)
    inputs = [x, w1, b1, w2, b2]
    close(gradients(module(x), inputs), gradients(expected, inputs))


def test_feed_forward_uses_gelu_unless_told_otherwise():
    x = randn(2, D_MODEL)
    module = FeedForward(D_MODEL, D_FF).double()
    close(module(x), module.outer(F.gelu(module.inner(x))))


def test_feed_forward_drops_activations_in_training_only():
    width, p = 4_096, 0.3
    module = FeedForward(1, width, activation="relu", dropout=p).double()
    with torch.no_grad():
        module.inner.weight.zero_(), module.inner.bias.fill_(1.0)
        module.outer.weight.fill_(1.0), module.outer.bias.zero_()
    x = torch.zeros(4, 1, dtype=torch.float64)
    # The sum of the kept of N activations, each 1 / (1 - p), has mean N and standard deviation sqrt(N p / (1 - p)).
    deviation = math.sqrt(width * p / (1 - p))
    kept = module(x) * (1 - p)
    assert ((module(x) - width).abs() < 5 * deviation).all()
    close(kept, kept.round())
    assert kept.unique().numel() > 1
    assert (module.eval()(x) == width).all()


@orders
@masks
@pytest.mark.parametrize(
    ("training", "settings"),
    [
        (True, {"activation": "relu"}),
        (True, {"activation": F.gelu}),
        (False, {"activation": nn.ReLU()}),
        (True, {"activation": nn.GELU(), "layer_norm_eps": UNUSUAL_EPS}),
        (True, {"activation": "gelu", "bias": False}),
    ],
    ids=["relu", "gelu", "ReLU module, eval", "GELU module and eps", "no bias"],
)
def test_encoder_layer_equals_torch(norm_first, mask, training, settings):
    reference = torch_layer(norm_first=norm_first, **settings).train(training)
    assert_same_computation(EncoderLayer.from_torch(reference), reference, mask)


@orders
@masks
@pytest.mark.parametrize(("training", "final_norm"), [(True, False), (False, True)])
def test_encoder_equals_torch(norm_first, mask, training, final_norm):
    reference = torch_encoder(final_norm, norm_first=norm_first, activation="gelu").train(training)
    assert_same_computation(Encoder.from_torch(reference), reference, mask)


@orders
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_encoder_built_here_equals_torchs_with_the_same_settings(norm_first, activation):
    norm = nn.LayerNorm(D_MODEL, dtype=torch.float64) if norm_first else None
    layer = torch_layer(norm_first=norm_first, activation=activation)
    reference = scatter(nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False))
    encoder = Encoder(2, D_MODEL, HEADS, D_FF, norm_first=norm_first, activation=activation).double()
    copy_parameters(reference, encoder)
    assert_same_computation(encoder, reference, PADDING)


@orders
@stacks
@pytest.mark.parametrize("attention_dropout", [None, 0.0])
def test_dropout_of_layers_built_here_falls_where_torchs_does(norm_first, kind, make, attention_dropout):
    reference = make(dropout=0.3, norm_first=norm_first, activation="gelu")
    for module in reference.modules():
        if isinstance(module, nn.MultiheadAttention) and attention_dropout is not None:
            module.dropout = attention_dropout
    settings = {"dropout": 0.3, "attention_dropout": attention_dropout, "norm_first": norm_first}
    ours = kind(*[2] * (kind is Encoder), D_MODEL, HEADS, D_FF, **settings).double()
    if kind is Encoder:
        ours.norm = nn.Identity()
    copy_parameters(reference, ours)
    assert_same_random_choices(ours, reference)


@orders
@stacks
def test_dropout_is_taken_over_from_torch(norm_first, kind, make):
    reference = make(dropout=0.3, norm_first=norm_first)
    assert_same_random_choices(kind.from_torch(reference), reference)


def assert_same_random_choices(ours, theirs):
    x = randn(1, LENGTH, D_MODEL)
    torch.manual_seed(1)
    expected = theirs(x)
    torch.manual_seed(1)
    close(ours(x), expected)
    assert not torch.allclose(ours(x), expected)
    ours.eval()
    close(ours(x), theirs.eval()(x))


@orders
@stacks
def test_bias_reaches_the_attention_of_every_layer(norm_first, kind, make):
    x, bias = randn(BATCH, LENGTH, D_MODEL), torch.randn(LENGTH, LENGTH, dtype=torch.float64)
    reference = make(norm_first=norm_first)
    ours = kind.from_torch(reference)
    close(ours(x, bias=bias), reference(x, bias))
    close(
        ours(x, causal_mask(LENGTH), bias=bias),
        reference(x, bias.masked_fill(~causal_mask(LENGTH), -math.inf)),
    )


def test_layers_of_a_stack_do_not_share_parameters():
    first, second = Encoder(2, D_MODEL, HEADS, D_FF).layers
    for name, parameter in first.named_parameters():
        assert parameter is not second.get_parameter(name)
    assert not torch.equal(first.attention.in_proj.weight, second.attention.in_proj.weight)


@modes
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@stacks
def test_from_torch_takes_over_mode_and_dtype_and_leaves_the_original_as_it_was(training, dtype, kind, make):
    reference = make().to(dtype).train(training)
    before = copy.deepcopy(reference.state_dict())

    ours = kind.from_torch(reference)

    assert {module.training for module in ours.modules()} == {training}
    assert {p.dtype for p in ours.parameters()} == {dtype}
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1)
    assert {module.training for module in reference.modules()} == {training}
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("activation", [torch.tanh, nn.SiLU(), nn.GELU(approximate="tanh"), lambda x: x], ids=str)
def test_from_torch_refuses_an_activation_it_does_not_know(activation):
    reference = torch_layer(activation=activation)
    with pytest.raises(ValueError, match=r"activation .* is unknown; from_torch takes relu and gelu"):
        EncoderLayer.from_torch(reference)
    with pytest.raises(ValueError, match="activation"):
        Encoder.from_torch(nn.TransformerEncoder(reference, 2, enable_nested_tensor=False))


@pytest.mark.parametrize("setting", [{"kdim": 4}, {"add_bias_kv": True}])
def test_from_torch_refuses_an_attention_it_cannot_copy(setting):
    reference = torch_layer()
    reference.self_attn = nn.MultiheadAttention(D_MODEL, HEADS, **setting)
    with pytest.raises(ValueError, match=next(iter(setting))):
        EncoderLayer.from_torch(reference)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FeedForward(8, 12, activation="tanh"), ValueError, r"activation='tanh' .*\('relu', 'gelu'\)"),
        (lambda: EncoderLayer(8, 2, 12, activation="tanh"), ValueError, "activation='tanh'"),
        (lambda: EncoderLayer(8, 3, 12), ValueError, "num_heads=3 does not divide d_model=8"),
        (lambda: EncoderLayer(8, 2, 12, attention_dropout=1.5), ValueError, "dropout=1.5"),
        (lambda: Encoder(2, 8, 3, 12), ValueError, "num_heads=3 does not divide d_model=8"),
        (lambda: EncoderLayer(8, 2, 12)(torch.zeros(1, 5, 8), torch.ones(5, 5)), TypeError, "mask has dtype"),
        (
            lambda: Encoder(2, 8, 2, 12)(torch.zeros(1, 5, 8), torch.ones(4, 4) > 0),
            ValueError,
            r"mask has shape \(4, 4\)",
        ),
        (lambda: EncoderLayer(8, 2, 12)(torch.zeros(1, 5, 6)), ValueError, r"query has shape \(1, 5, 6\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_attention_of_a_layer_is_the_packages_own():
    layer = EncoderLayer(D_MODEL, HEADS, D_FF, dropout=0.2, attention_dropout=0.1)
    assert isinstance(layer.attention, MultiHeadAttention)
    assert layer.attention.dropout == 0.1
