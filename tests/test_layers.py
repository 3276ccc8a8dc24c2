import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from gradients import gradients
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from companion.attention import MultiHeadAttention, causal_mask
from companion.cache import KeyValueCache
from companion.layers import Decoder, DecoderLayer, Encoder, EncoderDecoder, EncoderLayer
from companion.positions import RotaryEmbedding, alibi_bias, sinusoidal_encoding

BATCH, LENGTH, MEMORY, D_MODEL, HEADS, D_FF = 3, 5, 7, 8, 4, 12
UNUSUAL_EPS = 0.1

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
property_test = settings(max_examples=15)


def padding(queries, keys):
    return (torch.arange(keys) < torch.tensor([keys, 3, 1])[:, None])[:, None, None, :]


def causal(queries, keys):
    return torch.arange(keys) <= torch.arange(queries)[:, None]


def nowhere(queries, keys):
    """Leave the first queries of the second text (padded on the left) and the whole third one without a key."""
    return (torch.arange(keys) >= torch.tensor([0, 2, keys])[:, None])[:, None, None, :] & causal(queries, keys)


MASKS = {
    "none": lambda queries, keys: None,
    "padding": padding,
    "causal": causal,
    "padding and causal": lambda queries, keys: padding(queries, keys) & causal(queries, keys),
    "nowhere": nowhere,
}
masks = pytest.mark.parametrize("make_mask", MASKS.values(), ids=MASKS)
memory_masks = pytest.mark.parametrize("make_memory_mask", MASKS.values(), ids=[f"{name} in memory" for name in MASKS])
orders = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
both_layers = pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer])
all_kinds = pytest.mark.parametrize("kind", [EncoderLayer, Encoder, DecoderLayer, Decoder, EncoderDecoder])
# torch.nn.Transformer makes its encoder with a setting that it then says it cannot use.
quiet = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")

# Our names and those of torch.nn; a name that is part of another one comes after it.
NAMES = {
    "cross_attention.in_proj.": "multihead_attn.in_proj_",
    "cross_attention.out_proj.": "multihead_attn.out_proj.",
    "cross_attention_norm.": "norm2.",
    "attention.in_proj.": "self_attn.in_proj_",
    "attention.out_proj.": "self_attn.out_proj.",
    "attention_norm.": "norm1.",
    "feed_forward.inner.": "linear1.",
    "feed_forward.outer.": "linear2.",
    "feed_forward_norm.": "norm3.",
}


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def scatter(module):
    """Leave no bias at 0 and no scale at 1, and no two layers alike, so that each has to be copied."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def torch_module(kind, final_norm=None, **settings):
    """Make what ``torch.nn`` has for one of our classes; a stack has 2 layers, and no final norm unless told."""
    defaults = {"dim_feedforward": D_FF, "dropout": 0.0, "batch_first": True, "dtype": torch.float64}
    settings = defaults | settings
    if kind is EncoderLayer:
        return scatter(nn.TransformerEncoderLayer(D_MODEL, HEADS, **settings))
    if kind is DecoderLayer:
        return scatter(nn.TransformerDecoderLayer(D_MODEL, HEADS, **settings))
    if kind is Encoder:
        layer = torch_module(EncoderLayer, **settings)
        return scatter(nn.TransformerEncoder(layer, 2, final_norm, enable_nested_tensor=False))
    if kind is Decoder:
        return scatter(nn.TransformerDecoder(torch_module(DecoderLayer, **settings), 2, final_norm))
    module = nn.Transformer(D_MODEL, HEADS, 2, 2, **settings)
    module.encoder.norm, module.decoder.norm = final_norm, copy.deepcopy(final_norm)
    return scatter(module)


def make(kind, **settings):
    sizes = (D_MODEL, HEADS, D_FF)
    return kind(*sizes, **settings) if kind in (EncoderLayer, DecoderLayer) else kind(2, *sizes, **settings)


def layer_norm(**settings):
    return nn.LayerNorm(D_MODEL, dtype=torch.float64, **settings)


def make_inputs(kind, batch=BATCH):
    """Make what the class takes first: one sequence, or two, of which an `EncoderDecoder` takes the source first."""
    one, both = (LENGTH,), (LENGTH, MEMORY)
    lengths = {EncoderLayer: one, Encoder: one, DecoderLayer: both, Decoder: both, EncoderDecoder: both[::-1]}[kind]
    return [randn(batch, length, D_MODEL) for length in lengths]


def make_masks(kind, make_mask, make_memory_mask=None):
    """Make what the class takes after its inputs."""
    make_memory_mask = make_memory_mask or make_mask
    own = make_mask(LENGTH, LENGTH)
    if kind in (EncoderLayer, Encoder):
        return [own]
    across = make_memory_mask(LENGTH, MEMORY)
    return [own, across] if kind in (DecoderLayer, Decoder) else [make_memory_mask(MEMORY, MEMORY), own, across]


def torch_mask(mask, queries):
    return None if mask is None else ~mask.expand(BATCH, HEADS, queries, -1).flatten(0, 1)


def torch_masks(masks):
    """Three masks are those of an `EncoderDecoder`, whose first one has the queries of the source."""
    return [torch_mask(mask, MEMORY if len(masks) - i == 3 else LENGTH) for i, mask in enumerate(masks)]


def torch_name(name, theirs):
    for ours, other in NAMES.items():
        name = name.replace(ours, other)
    return name if name in theirs else name.replace("norm3.", "norm2.")  # the last one of an encoder layer


def copy_parameters(reference, module):
    theirs = reference.state_dict()
    module.load_state_dict({name: theirs[torch_name(name, theirs)] for name in module.state_dict()})
    return module


def assert_same(actual, expected, inputs):
    close(actual, expected)
    close(gradients(actual, inputs), gradients(expected, inputs))


def assert_same_computation(module, reference, masks):
    """Compare outputs, and the gradients of the inputs and of every parameter, matched by name."""
    inputs = make_inputs(type(module))
    actual, expected = module(*inputs, *masks), reference(*inputs, *torch_masks(masks))
    close(actual, expected)
    ours, theirs = dict(module.named_parameters()), dict(reference.named_parameters())
    names = {name: torch_name(name, theirs) for name in ours}
    assert sorted(names.values()) == sorted(theirs)
    close(
        gradients(actual, [*inputs, *ours.values()]),
        gradients(expected, [*inputs, *(theirs[name] for name in names.values())]),
    )


torch_settings = pytest.mark.parametrize(
    ("training", "settings"),
    [
        (True, {"activation": "relu"}),
        (True, {"activation": F.gelu}),
        (False, {"activation": nn.ReLU()}),
        (True, {"activation": nn.GELU(), "layer_norm_eps": UNUSUAL_EPS}),
        (False, {"activation": nn.GELU(approximate="tanh")}),
        (True, {"activation": "gelu", "bias": False}),
    ],
    ids=["relu", "gelu", "ReLU module, eval", "GELU module and eps", "GELU module by tanh, eval", "no bias"],
)


@orders
@masks
@torch_settings
def test_encoder_layer_equals_torch(norm_first, make_mask, training, settings):
    reference = torch_module(EncoderLayer, norm_first=norm_first, **settings).train(training)
    assert_same_computation(EncoderLayer.from_torch(reference), reference, make_masks(EncoderLayer, make_mask))


@orders
@masks
@torch_settings
def test_decoder_layer_equals_torch(norm_first, make_mask, training, settings):
    reference = torch_module(DecoderLayer, norm_first=norm_first, **settings).train(training)
    assert_same_computation(DecoderLayer.from_torch(reference), reference, make_masks(DecoderLayer, make_mask, nowhere))


@orders
@masks
@memory_masks
def test_decoder_layer_equals_torch_under_every_pair_of_masks(norm_first, make_mask, make_memory_mask):
    reference = torch_module(DecoderLayer, norm_first=norm_first)
    decoder = DecoderLayer.from_torch(reference)
    assert_same_computation(decoder, reference, make_masks(DecoderLayer, make_mask, make_memory_mask))


@orders
@masks
@pytest.mark.parametrize("kind", [Encoder, Decoder])
@pytest.mark.parametrize(
    ("training", "final_norm", "activation"),
    [(True, None, "gelu"), (False, layer_norm(eps=UNUSUAL_EPS), "relu"), (True, None, nn.GELU())],
    ids=["train", "eval, final norm", "GELU module, which torch's decoder drops for relu when it copies its layer"],
)
def test_a_stack_equals_torch(norm_first, make_mask, kind, training, final_norm, activation):
    reference = torch_module(kind, final_norm, norm_first=norm_first, activation=activation).train(training)
    assert_same_computation(kind.from_torch(reference), reference, make_masks(kind, make_mask, nowhere))


@quiet
@orders
@masks
@memory_masks
def test_encoder_decoder_equals_torch(norm_first, make_mask, make_memory_mask):
    reference = torch_module(EncoderDecoder, layer_norm(eps=UNUSUAL_EPS), norm_first=norm_first, activation="gelu")
    ours = EncoderDecoder.from_torch(reference)
    assert_same_computation(ours, reference, make_masks(EncoderDecoder, make_mask, make_memory_mask))


@quiet
@pytest.mark.parametrize("name", ["source_mask", "target_mask", "memory_mask"])
def test_each_mask_of_an_encoder_decoder_reaches_its_own_attention_alone(name):
    reference = torch_module(EncoderDecoder)
    names = ["source_mask", "target_mask", "memory_mask"]
    masks = [
        mask if name == other else None for other, mask in zip(names, make_masks(EncoderDecoder, padding), strict=True)
    ]
    assert_same_computation(EncoderDecoder.from_torch(reference), reference, masks)


@quiet
@orders
def test_encoder_decoder_is_batch_first_whatever_torchs_is(norm_first):
    reference = scatter(nn.Transformer(D_MODEL, HEADS, 1, 3, D_FF, norm_first=norm_first, dtype=torch.float64)).eval()
    ours, inputs = EncoderDecoder.from_torch(reference), make_inputs(EncoderDecoder)
    all_masks = make_masks(EncoderDecoder, causal, padding)
    theirs = reference(*(x.transpose(0, 1) for x in inputs), *torch_masks(all_masks))
    assert_same(ours(*inputs, *all_masks), theirs.transpose(0, 1), inputs)


@quiet
@orders
@all_kinds
@pytest.mark.parametrize(
    ("activation", "theirs"), [("relu", "relu"), ("gelu", "gelu"), ("gelu_new", partial(F.gelu, approximate="tanh"))]
)
def test_what_is_built_here_equals_torchs_with_the_same_settings(norm_first, kind, activation, theirs):
    final_norm = layer_norm() if norm_first else None
    reference = torch_module(kind, final_norm, norm_first=norm_first, activation=theirs)
    ours = make(kind, norm_first=norm_first, activation=activation).double()
    assert_same_computation(copy_parameters(reference, ours), reference, make_masks(kind, padding, nowhere))


@all_kinds
def test_post_norm_and_gelu_are_the_defaults(kind):
    ours, explicit = make(kind), make(kind, norm_first=False, activation="gelu", norm="layer_norm")
    explicit.load_state_dict(ours.state_dict())
    inputs = [x.float() for x in make_inputs(kind)]
    assert torch.equal(ours(*inputs), explicit(*inputs))


@quiet
@orders
@all_kinds
@pytest.mark.parametrize("attention_dropout", [None, 0.0, 0.5])
@pytest.mark.parametrize("copied", [False, True], ids=["built here", "from torch"])
def test_dropout_falls_where_torchs_does(norm_first, kind, attention_dropout, copied):
    reference = torch_module(kind, dropout=0.3, norm_first=norm_first, activation="gelu")
    for module in reference.modules():
        if isinstance(module, nn.MultiheadAttention) and attention_dropout is not None:
            module.dropout = attention_dropout
    if copied:
        ours = kind.from_torch(reference)
    else:
        ours = make(kind, dropout=0.3, attention_dropout=attention_dropout, norm_first=norm_first).double()
        for stack in ours.modules():
            if isinstance(stack, Encoder | Decoder):
                stack.norm = nn.Identity()
        copy_parameters(reference, ours)

    inputs = make_inputs(kind, batch=1)  # of more, torch.nn.MultiheadAttention draws for the second axis first
    torch.manual_seed(1)
    expected = reference(*inputs)
    torch.manual_seed(1)
    close(ours(*inputs), expected)
    assert not torch.allclose(ours(*inputs), expected)
    close(ours.eval()(*inputs), reference.eval()(*inputs))


def by_formula(module, inputs, masks, options):
    """Compute what a module should, written out for all its settings; the module lends its parameters alone."""
    if isinstance(module, EncoderDecoder):
        source, target = inputs
        source_mask, target_mask, memory_mask = masks
        memory = by_formula(module.encoder, [source], [source_mask], options)
        return by_formula(module.decoder, [target, memory], [target_mask, memory_mask], options)
    if isinstance(module, EncoderLayer | DecoderLayer):
        return layer_by_formula(module, *inputs, *masks, options=options)
    x, *memory = inputs
    for layer in module.layers:
        x = layer_by_formula(layer, x, *memory, *masks, options=options)
    return norm_by_formula(module.norm, x, options) if options["norm_first"] else x


def layer_by_formula(layer, x, *memory_and_masks, options):
    if isinstance(layer, EncoderLayer):
        memory, mask, memory_mask = None, *memory_and_masks, None
    else:
        memory, mask, memory_mask = memory_and_masks
    rotary = options.get("rotary") is not None
    sublayers = {
        "attention": lambda y: attention_by_formula(layer.attention, y, y, mask, rotary, options),
        "cross_attention": lambda y: attention_by_formula(
            layer.cross_attention, y, memory, memory_mask, False, options
        ),
        "feed_forward": lambda y: feed_forward_by_formula(layer.feed_forward, y, options),
    }
    if memory is None:
        del sublayers["cross_attention"]
    for name, sublayer in sublayers.items():
        norm = partial(norm_by_formula, getattr(layer, f"{name}_norm"), options=options)
        x = x + sublayer(norm(x)) if options["norm_first"] else norm(x + sublayer(x))
    return x


def norm_by_formula(norm, x, options):
    if options.get("norm") == "rms_norm":
        return x / (x.square().mean(-1, keepdim=True) + 2**-52).sqrt() * norm.weight
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def feed_forward_by_formula(feed_forward, x, options):
    activation, inner = options.get("activation", "gelu"), x @ feed_forward.inner.weight.T
    if activation == "swiglu":
        gate, linear = inner[..., :D_FF], inner[..., D_FF:]
        return (gate / (1 + torch.exp(-gate)) * linear) @ feed_forward.outer.weight.T
    inner = inner + feed_forward.inner.bias
    inner = {
        "relu": inner.clamp(min=0),
        "gelu": inner * (1 + torch.erf(inner / math.sqrt(2))) / 2,
        "gelu_new": inner / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3))),
    }[activation]
    return inner @ feed_forward.outer.weight.T + feed_forward.outer.bias


def attention_by_formula(attention, query, key, mask, rotary, options):
    """Attend head after head; weights are exponentials over their sum, and 0 where nothing may be attended to."""
    width = options.get("head_dim") or D_MODEL // HEADS
    kv_heads = options.get("num_kv_heads") or HEADS
    w_q, w_k, w_v = attention.in_proj.weight.split([HEADS * width, kv_heads * width, kv_heads * width])
    b_q, b_k, b_v = attention.in_proj.bias.split([HEADS * width, kv_heads * width, kv_heads * width])
    heads = []
    for head in range(HEADS):
        own = slice(head * width, (head + 1) * width)
        kv_head = head * kv_heads // HEADS
        shared = slice(kv_head * width, (kv_head + 1) * width)
        q, k, v = query @ w_q[own].T + b_q[own], key @ w_k[shared].T + b_k[shared], key @ w_v[shared].T + b_v[shared]
        if rotary:
            q, k = turned(q), turned(k)
        exponentials = (q @ k.mT / math.sqrt(width)).exp() * mask[:, 0]
        heads.append(exponentials / exponentials.sum(-1, keepdim=True).clamp(min=1e-300) @ v)
    return torch.cat(heads, dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias


def turned(x):
    """Turn features 2i and 2i + 1 of position m, as one complex number, by the angle m / 10000^(2i / d)."""
    _, length, width = x.shape
    angle = torch.arange(length).double()[:, None] / 10_000 ** (torch.arange(0, width, 2).double() / width)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


SETTINGS = {
    "heads wider than usual": {"head_dim": 3},
    "two heads of keys": {"num_kv_heads": 2},
    "rotary": {"rotary": RotaryEmbedding(2)},
    "relu": {"activation": "relu"},
    "gelu_new": {"activation": "gelu_new"},
    "swiglu": {"activation": "swiglu"},
    "rms_norm": {"norm": "rms_norm"},
    "all at once": {
        "head_dim": 6,
        "num_kv_heads": 1,
        "rotary": RotaryEmbedding(6),
        "activation": "swiglu",
        "norm": "rms_norm",
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
}


@orders
@all_kinds
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_reaches_every_layer(norm_first, kind, options):
    options = options | {"norm_first": norm_first}
    module, inputs = scatter(make(kind, **options).double()), make_inputs(kind)
    all_masks = make_masks(kind, nowhere, padding)
    expected = by_formula(module, inputs, all_masks, options)
    assert_same(module(*inputs, *all_masks), expected, [*inputs, *module.parameters()])


@orders
@masks
@pytest.mark.parametrize("kind", [EncoderLayer, Encoder, DecoderLayer, Decoder])
def test_bias_reaches_the_self_attention_of_every_layer(norm_first, make_mask, kind):
    bias = randn(HEADS, LENGTH, LENGTH)
    reference = torch_module(kind, norm_first=norm_first)
    ours, inputs = kind.from_torch(reference), make_inputs(kind)
    mask, *memory_mask = make_masks(kind, make_mask, padding)
    full = bias.expand(BATCH, HEADS, LENGTH, LENGTH)
    full = full if mask is None else full.masked_fill(~mask, -math.inf)
    expected = reference(*inputs, full.flatten(0, 1), *torch_masks(memory_mask))
    assert_same(ours(*inputs, mask, *memory_mask, bias=bias), expected, [*inputs, bias])


def test_layers_of_a_stack_do_not_share_parameters():
    for stack in (make(Encoder), make(Decoder)):
        first, second = stack.layers
        for name, parameter in first.named_parameters():
            assert parameter is not second.get_parameter(name)
        assert not torch.equal(first.attention.in_proj.weight, second.attention.in_proj.weight)


CACHED = {
    "plain": {},
    "rotary": {"rotary": RotaryEmbedding(2)},
    "one head of keys": {"num_kv_heads": 1, "head_dim": 6, "rotary": RotaryEmbedding(6), "norm": "rms_norm"},
}


@orders
@pytest.mark.parametrize("kind", [DecoderLayer, Decoder])
@pytest.mark.parametrize("options", CACHED.values(), ids=CACHED)
@pytest.mark.parametrize("alibi", [False, True], ids=["no bias", "ALiBi"])
@pytest.mark.parametrize("chunks", [[1] * 7, [3, 1, 1, 2], [7]], ids=str)
def test_decoding_in_chunks_equals_decoding_at_once(norm_first, kind, options, alibi, chunks):
    module = scatter(make(kind, norm_first=norm_first, **options).double())
    x, memory, memory_mask = randn(BATCH, 7, D_MODEL), randn(BATCH, 4, D_MODEL), padding(7, 4)
    mask = nowhere(7, 7)
    whole = module(x, memory, mask, memory_mask, bias=alibi_bias(HEADS, 7) if alibi else None)

    cache, outputs = KeyValueCache(), []
    for chunk in x.split(chunks, dim=1):
        start, end = cache.length, cache.length + chunk.size(1)
        bias = alibi_bias(HEADS, end - start, end) if alibi else None
        part = mask[..., start:end, :end]
        outputs.append(module(chunk, memory, part, memory_mask, bias=bias, cache=cache))

    assert cache.length == 7
    assert_same(torch.cat(outputs, dim=1), whole, [x, memory, *module.parameters()])


@orders
@pytest.mark.parametrize("kind", [DecoderLayer, Decoder])
def test_a_token_at_a_time_needs_no_mask(norm_first, kind):
    module = scatter(make(kind, norm_first=norm_first).double())
    x, memory = make_inputs(kind)
    cache = KeyValueCache()
    steps = [module(token, memory, cache=cache) for token in x.split(1, dim=1)]
    close(torch.cat(steps, dim=1), module(x, memory, causal_mask(LENGTH)))


@pytest.mark.unhooked
@pytest.mark.parametrize("kind", [DecoderLayer, Decoder])
def test_a_cache_refuses_another_memory(kind):
    module, cache = make(kind).double(), KeyValueCache()
    x, memory = make_inputs(kind)
    module(x, memory, cache=cache)
    with pytest.raises(ValueError, match="other tensors than those that filled the cache"):
        module(x, memory.clone(), cache=cache)


settings_drawn = st.fixed_dictionaries(
    {
        "norm_first": st.booleans(),
        "norm": st.sampled_from(["layer_norm", "rms_norm"]),
        "num_kv_heads": st.sampled_from([1, 2, 4]),
        "rotary": st.sampled_from([None, RotaryEmbedding(2)]),
        "activation": st.sampled_from(["relu", "gelu", "gelu_new", "swiglu"]),
    }
)
seeds = st.integers(0, 2**31)


def seeded(seed, kind, options):
    torch.manual_seed(seed)
    return make(kind, **options).double()


@pytest.mark.parametrize("kind", [Encoder, Decoder, EncoderDecoder])
@property_test
@given(changed=st.integers(1, LENGTH - 1), seed=seeds, options=settings_drawn)
def test_a_later_token_never_changes_an_earlier_output_under_the_causal_mask(kind, changed, seed, options):
    module, inputs = seeded(seed, kind, options), make_inputs(kind)
    which = 1 if kind is EncoderDecoder else 0
    others = list(inputs)
    others[which] = torch.cat([inputs[which][:, :changed], randn(BATCH, LENGTH - changed, D_MODEL)], dim=1)
    masks = [None] * which + [causal_mask(LENGTH)]
    before, after = module(*inputs, *masks), module(*others, *masks)
    close(after[:, :changed], before[:, :changed])
    assert not torch.isclose(after[:, changed:], before[:, changed:], rtol=0, atol=1e-10).any()


def garbage(x, amount):
    return torch.cat([x, 100 * randn(x.size(0), amount, D_MODEL)], dim=1)


def without_last(amount, length):
    return torch.arange(length + amount) < length


@pytest.mark.parametrize("kind", [Encoder, Decoder, EncoderDecoder])
@property_test
@given(amount=st.integers(1, 4), more=st.integers(1, 4), seed=seeds, options=settings_drawn)
def test_padding_never_changes_the_output_of_a_token(kind, amount, more, seed, options):
    module, inputs = seeded(seed, kind, options), make_inputs(kind)
    padded = [garbage(x, n) for x, n in zip(inputs, (amount, more), strict=False)]
    own, memory = (without_last(n, x.size(1)) for n, x in zip((amount, more), inputs * 2, strict=False))
    masks = {Encoder: [own], Decoder: [own, memory], EncoderDecoder: [own, memory, own]}[kind]
    close(module(*padded, *masks)[:, :LENGTH], module(*inputs))


@all_kinds
@property_test
@given(row=st.integers(0, BATCH - 1), seed=seeds, options=settings_drawn)
def test_a_text_is_computed_as_if_alone(kind, row, seed, options):
    module, inputs = seeded(seed, kind, options), make_inputs(kind)
    masks = make_masks(kind, padding, nowhere)
    alone = module(*(x[row, None] for x in inputs), *(mask[row, None] for mask in masks))
    close(module(*inputs, *masks)[row, None], alone)


@pytest.mark.parametrize("positions", ["none", "rotary", "ALiBi", "sinusoids"])
@property_test
@given(order=st.permutations(range(LENGTH)), seed=seeds, norm_first=st.booleans())
def test_an_encoder_sees_the_order_of_tokens_through_positions_alone(positions, order, seed, norm_first):
    assume(order not in ([*range(LENGTH)], [*range(LENGTH)][::-1]))  # ALiBi's distances stay as they are in reverse
    rotary = RotaryEmbedding(2) if positions == "rotary" else None
    encoder = seeded(seed, Encoder, {"norm_first": norm_first, "rotary": rotary})
    added = sinusoidal_encoding(LENGTH, D_MODEL) if positions == "sinusoids" else 0.0
    bias = alibi_bias(HEADS, LENGTH) if positions == "ALiBi" else None
    x = randn(BATCH, LENGTH, D_MODEL)
    permuted, straight = encoder(x[:, order] + added, bias=bias), encoder(x + added, bias=bias)
    if positions == "none":
        close(permuted, straight[:, order])
    else:
        assert (permuted - straight[:, order]).abs().amax((1, 2)).min() > 1e-6


@pytest.mark.parametrize("kind", [DecoderLayer, Decoder])
@property_test
@given(order=st.permutations(range(MEMORY)), seed=seeds, options=settings_drawn)
def test_a_decoder_does_not_see_the_order_of_its_memory(kind, order, seed, options):
    module = seeded(seed, kind, options)
    x, memory = make_inputs(kind)
    mask = padding(LENGTH, MEMORY)
    close(module(x, memory[:, order], None, mask[..., order]), module(x, memory, None, mask))


@orders
@all_kinds
def test_dropout_is_off_in_evaluation_and_on_in_training(norm_first, kind):
    module, inputs = make(kind, dropout=0.3, norm_first=norm_first).double(), make_inputs(kind)
    assert not torch.equal(module(*inputs), module(*inputs))
    without = make(kind, norm_first=norm_first).double()
    without.load_state_dict(module.state_dict())
    assert torch.equal(module.eval()(*inputs), without(*inputs))


@all_kinds
@property_test
@given(seed=seeds, options=settings_drawn)
def test_every_parameter_of_a_fresh_module_gets_a_gradient(kind, seed, options):
    module, inputs = seeded(seed, kind, options), make_inputs(kind)
    output = module(*inputs, *make_masks(kind, causal, padding))
    for name, gradient in zip(
        dict(module.named_parameters()), gradients(output, list(module.parameters())), strict=True
    ):
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 1e-6, name


@pytest.mark.unhooked
@orders
@both_layers
def test_gradcheck_of_the_layers(norm_first, kind):
    layer = kind(4, 2, 3, norm_first=norm_first).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    lengths = (3,) if kind is EncoderLayer else (3, 2)
    inputs = [randn(1, length, 4) for length in lengths]
    masks = [causal(3, length) for length in lengths]

    def run(*tensors):
        values = dict(zip(names, tensors[len(inputs) :], strict=True))
        return torch.func.functional_call(layer, values, (*tensors[: len(inputs)], *masks))

    assert torch.autograd.gradcheck(run, (*inputs, *parameters))


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer, EncoderDecoder])
def test_modules_compile_to_one_graph_that_computes_the_same(kind):
    module, inputs = make(kind, norm_first=True, rotary=RotaryEmbedding(2), num_kv_heads=2).double(), make_inputs(kind)
    masks = make_masks(kind, nowhere, padding)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")  # traced, differentiated, run as it is
    assert_same(compiled(*inputs, *masks), module(*inputs, *masks), [*inputs, *module.parameters()])


@orders
@both_layers
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_low_precision_stays_within_its_rounding_of_float64(norm_first, kind, precision):
    exact = kind(64, HEADS, 128, norm_first=norm_first).double()
    inputs = [torch.randn(BATCH, length, 64, dtype=torch.float64) for length in (16, 16)[: 1 + (kind is DecoderLayer)]]
    masks = [nowhere(16, 16), padding(16, 16)][: len(inputs)]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    expected = exact(*inputs, *masks)

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        actual = copy.deepcopy(exact).to(dtype)(*(x.to(dtype) for x in inputs), *masks)

    assert actual.dtype == dtype
    # In bfloat16 what is stored is rounded, by half an epsilon at most: for each attention the seven of test_attention,
    # for the feed-forward network two weights, inner, activation, output, and for each sublayer the sum and the norm.
    # In float32 every term of a sum rounds too: four products of 64 terms for each attention, one of 64 and one of 128
    # for the feed-forward network. Independent roundings add up to the square root of their number.
    sublayers = len(inputs) + 1
    if precision == "float32":
        roundings, epsilon = len(inputs) * 4 * 64 + 64 + 128, 2**-23
    else:
        roundings, epsilon = len(inputs) * 7 + 5 + sublayers * 2, 2**-7
    tolerance = math.sqrt(roundings) / 2 * epsilon * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@quiet
@modes
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@all_kinds
def test_from_torch_takes_over_mode_and_dtype_and_leaves_the_original_as_it_was(training, dtype, kind):
    reference = torch_module(kind, layer_norm()).to(dtype).train(training)
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


@quiet
@all_kinds
@pytest.mark.parametrize("activation", [torch.tanh, lambda x: x], ids=["tanh", "identity"])
def test_from_torch_refuses_an_activation_it_does_not_know(kind, activation):
    with pytest.raises(ValueError, match=r"activation .* is unknown; from_torch takes relu and gelu"):
        kind.from_torch(torch_module(kind, activation=activation))


@both_layers
def test_from_torch_refuses_an_activation_module_it_does_not_know(kind):
    with pytest.raises(ValueError, match=r"activation SiLU\(\) is unknown; from_torch takes relu and gelu"):
        kind.from_torch(torch_module(kind, activation=nn.SiLU()))


@pytest.mark.parametrize("setting", [{"kdim": 4}, {"vdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}])
@pytest.mark.parametrize(
    ("kind", "name"), [(EncoderLayer, "self_attn"), (DecoderLayer, "self_attn"), (DecoderLayer, "multihead_attn")]
)
def test_from_torch_refuses_an_attention_it_cannot_copy(setting, kind, name):
    reference = torch_module(kind)
    setattr(reference, name, nn.MultiheadAttention(D_MODEL, HEADS, **setting))
    with pytest.raises(ValueError, match=next(iter(setting))):
        kind.from_torch(reference)


@pytest.mark.unhooked
@all_kinds
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "tanh"}, r"activation='tanh' .*\('relu', 'gelu', 'gelu_new', 'swiglu'\)"),
        ({"norm": "batch_norm"}, r"norm='batch_norm' is unknown; choose one of \('layer_norm', 'rms_norm'\)"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
        ({"head_dim": 0}, "head_dim=0; choose 1 or more"),
        ({"attention_dropout": 1.5}, "dropout=1.5 is not a probability"),
        ({"dropout": -0.5}, "dropout=-0.5 is not a probability"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **arguments)


@pytest.mark.unhooked
@both_layers
def test_a_number_of_heads_that_does_not_divide_the_width_is_refused(kind):
    with pytest.raises(ValueError, match="num_heads=3 does not divide d_model=8"):
        kind(8, 3, 12)


SOURCE, TARGET = torch.zeros(1, 7, 8), torch.zeros(1, 5, 8)
UNFIT = {
    "2d": (torch.zeros(5, 8), ValueError, r"has shape \(5, 8\); expected \(batch, length, d_model=8\)"),
    "4d": (torch.zeros(1, 1, 5, 8), ValueError, r"has shape \(1, 1, 5, 8\); expected \(batch, length, d_model=8\)"),
    "width": (torch.zeros(1, 5, 6), ValueError, r"has shape \(1, 5, 6\); expected \(batch, length, d_model=8\)"),
    "float64": (TARGET.double(), TypeError, "has dtype torch.float64; expected torch.float32, the module's"),
    "bfloat16": (TARGET.bfloat16(), TypeError, "has dtype torch.bfloat16; expected torch.float32, the module's"),
    "int64": (TARGET.long(), TypeError, "has dtype torch.int64; expected torch.float32, the module's"),
    "device": (TARGET.to("meta"), ValueError, "is on meta; expected cpu, the module's"),
}


@pytest.mark.unhooked
@orders
@both_layers
@pytest.mark.parametrize(("x", "error", "message"), UNFIT.values(), ids=UNFIT)
def test_an_input_that_does_not_fit_is_refused(norm_first, kind, x, error, message):
    layer = make(kind, norm_first=norm_first)
    with pytest.raises(error, match=f"^x {message}"):
        layer(x) if kind is EncoderLayer else layer(x, SOURCE)


@pytest.mark.unhooked
@orders
@pytest.mark.parametrize(("memory", "error", "message"), UNFIT.values(), ids=UNFIT)
def test_a_memory_that_does_not_fit_is_refused(norm_first, memory, error, message):
    with pytest.raises(error, match=f"^memory {message}"):
        make(DecoderLayer, norm_first=norm_first)(TARGET, memory)


@pytest.mark.unhooked
def test_a_memory_of_another_batch_is_refused():
    with pytest.raises(ValueError, match=r"^memory has batch 2; expected 1"):
        make(DecoderLayer)(TARGET, torch.zeros(2, 7, 8))


@pytest.mark.unhooked
@orders
@pytest.mark.parametrize(
    ("kind", "inputs", "name", "scores"),
    [
        (EncoderLayer, [TARGET], "mask", (1, 4, 5, 5)),
        (Encoder, [TARGET], "mask", (1, 4, 5, 5)),
        (DecoderLayer, [TARGET, SOURCE], "mask", (1, 4, 5, 5)),
        (DecoderLayer, [TARGET, SOURCE], "memory_mask", (1, 4, 5, 7)),
        (Decoder, [TARGET, SOURCE], "mask", (1, 4, 5, 5)),
        (Decoder, [TARGET, SOURCE], "memory_mask", (1, 4, 5, 7)),
        (EncoderDecoder, [SOURCE, TARGET], "source_mask", (1, 4, 7, 7)),
        (EncoderDecoder, [SOURCE, TARGET], "target_mask", (1, 4, 5, 5)),
        (EncoderDecoder, [SOURCE, TARGET], "memory_mask", (1, 4, 5, 7)),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(norm_first, kind, inputs, name, scores):
    module = make(kind, norm_first=norm_first)
    for mask, error, message in (
        (torch.ones(scores[-2:]), TypeError, "mask has dtype torch.float32; expected torch.bool"),
        (torch.ones(6, scores[-1]) > 0, ValueError, f"mask has shape (6, {scores[-1]}); expected .* to {scores}"),
        (torch.ones(1, device="meta") > 0, ValueError, "mask is on meta; expected cpu"),
    ):
        with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)")):
            module(*inputs, **{name: mask})


def test_attentions_of_a_layer_are_the_packages_own():
    layer = make(DecoderLayer, dropout=0.2, attention_dropout=0.1)
    for attention in (layer.attention, layer.cross_attention):
        assert isinstance(attention, MultiHeadAttention)
        assert attention.dropout == 0.1
