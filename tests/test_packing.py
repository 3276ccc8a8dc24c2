"""Packed sequences against each of them alone, against the padded batch, and against PyTorch and ``transformers``."""

import copy
import math
import re
from functools import partial

import pytest
import test_albert
import torch
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion.albert import (
    AlbertForPreTraining,
    AlbertForSequenceClassification,
    AlbertModel,
    AlbertTextClassifier,
    AlbertTextConfig,
)
from companion.attention import MultiHeadAttention, causal_mask
from companion.cache import KeyValueCache
from companion.configs import ClassifierConfig, Seq2SeqConfig, SpanConfig, TokenClassifierConfig
from companion.efficient_attention import LinearAttention, SlidingWindowAttention
from companion.feed_forward import FeedForward
from companion.layers import Encoder
from companion.models import Seq2SeqTransformer, SpanExtractor, TextClassifier, TokenClassifier
from companion.packing import Packing, encode_tokens, keep_padding
from companion.positions import RotaryEmbedding, alibi_bias

pytestmark = pytest.mark.usefixtures("one_thread", "always_packed")

HEADS, D_MODEL, LENGTH = 2, 8, 6
POSITIONS = ["sinusoidal", "learned", "rotary", "alibi", "none"]
TOKENS = {
    "behind the tokens": [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]],
    "before them": [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]],
    "between them": [[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0], [0, 1, 0, 1, 0, 0]],
    "a whole row": [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
    "every row": [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    "nowhere": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
}
SKIPPED = ("behind the tokens", "a whole row")
IDS = torch.tensor([[5, 2, 7, 1, 2, 9], [10, 4, 5, 0, 0, 0], [6, 4, 4, 3, 0, 0], [4, 0, 0, 0, 0, 0]])

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
property_test = settings(max_examples=25)
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
wherever_padding_stands = pytest.mark.parametrize("where", TOKENS)


def tokens_of(where):
    return torch.tensor(TOKENS[where]).bool()


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def scatter(module):
    """Make every parameter count: no bias at 0, no scale at 1, no padding vector at 0."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def make_encoder(**changes):
    return scatter(Encoder(2, D_MODEL, HEADS, 12, **{"dropout": 0.0} | changes))


def rows_fed_forward(module, call):
    """Return how many rows reach the feed-forward networks of a module, a number for each call of one."""
    rows, networks = [], [part for part in module.modules() if isinstance(part, FeedForward)]
    hooks = [part.register_forward_pre_hook(lambda _, x: rows.append(x[0][..., 0].numel())) for part in networks]
    call()
    for hook in hooks:
        hook.remove()
    return rows


# --- Packing ----------------------------------------------------------------------------------------------------------


token_masks = st.integers(0, 5).flatmap(
    lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=5)
)


@property_test
@given(token_masks, st.integers(1, 4), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_tokens_are_packed_in_order_and_put_back_where_they_stood(rows, width, dtype):
    tokens = torch.tensor(rows, dtype=torch.bool)
    x = torch.randn(width, *tokens.shape).to(dtype).permute(1, 2, 0)  # not contiguous
    packing = Packing(tokens.T.contiguous().T)
    packed = packing.pack(x)
    assert packing.lengths == [sum(row) for row in rows if any(row)]
    assert torch.equal(packed, x[tokens][None])
    assert torch.equal(packing.unpack(packed), torch.where(tokens[..., None], x, 0.0))


@property_test
@given(token_masks)
def test_gradients_are_packed_and_put_back_too(rows):
    tokens = torch.tensor(rows, dtype=torch.bool)
    x, packed, packing = randn(*tokens.shape, 3), randn(1, tokens.sum(), 3), Packing(tokens)
    along = torch.randn(1, tokens.sum(), 3, dtype=torch.float64)
    (found,) = torch.autograd.grad((packing.pack(x) * along).sum(), x)
    expected = torch.zeros_like(x)
    expected[tokens] = along[0]
    assert torch.equal(found, expected)
    along = torch.randn(x.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad((packing.unpack(packed) * along).sum(), packed)
    assert torch.equal(found, along[tokens][None])


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Packing(torch.ones(2, 3)),
            TypeError,
            "tokens has dtype torch.float32; expected torch.bool, True where",
        ),
        (lambda: Packing(torch.ones(3).bool()), ValueError, "tokens has shape (3,); expected (batch, length)"),
        (
            lambda: Packing(torch.ones(2, 3).bool()).pack(torch.ones(2, 4, 5)),
            ValueError,
            "x has shape (2, 4, 5); expected (2, 3, width)",
        ),
        (
            lambda: Packing(torch.ones(2, 3).bool()).pack(torch.ones(2, 3)),
            ValueError,
            "x has shape (2, 3); expected (2, 3, width)",
        ),
        (
            lambda: Packing(torch.eye(3).bool()).unpack(torch.ones(1, 4, 5)),
            ValueError,
            "x has shape (1, 4, 5); expected (1, 3, width)",
        ),
        (
            lambda: encode_tokens(nn.Identity(), torch.ones(2, 3, 4), torch.ones(2, 3).long()),
            TypeError,
            "tokens has dtype torch.int64; expected torch.bool, True where a token stands",
        ),
        (
            lambda: encode_tokens(nn.Identity(), torch.ones(2, 3, 4), torch.ones(3, 2).bool()),
            ValueError,
            "tokens has shape (3, 2); expected (2, 3), that of x",
        ),
        (
            lambda: encode_tokens(nn.Identity(), torch.ones(2, 3, 4), torch.ones(2, 3, device="meta").bool()),
            ValueError,
            "tokens is on meta; expected cpu, the x's",
        ),
    ],
)
def test_what_does_not_fit_a_packing_is_refused(call, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()


# --- Attention --------------------------------------------------------------------------------------------------------


SHAPES = {  # of masks and biases, for heads h and a longest sequence of n
    "none": lambda h, n: None,
    "scalar": lambda h, n: (),
    "keys": lambda h, n: (n,),
    "one key": lambda h, n: (1,),
    "queries and keys": lambda h, n: (n, n),
    "queries": lambda h, n: (n, 1),
    "heads": lambda h, n: (h, 1, 1),
    "heads, queries and keys": lambda h, n: (h, n, n),
    "keys of a batch": lambda h, n: (1, 1, 1, n),
    "all": lambda h, n: (1, h, n, n),
}
shape_kinds = st.sampled_from(sorted(SHAPES))


def corner(x, longest, length):
    return None if x is None else x.expand(1, HEADS, longest, longest)[:, :, :length, :length]


class Stretch(nn.Module):
    """Positions of which, unlike those of a rotary embedding, more than the distance counts."""

    def forward(self, x, offset=0):
        return x * torch.arange(offset + 1, offset + x.size(2) + 1)[:, None]


@property_test
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    shape_kinds,
    shape_kinds,
    st.sampled_from([{}, {"num_kv_heads": 1}, {"rotary": RotaryEmbedding(4)}, {"rotary": Stretch(), "head_dim": 6}]),
    st.booleans(),
)
def test_packed_sequences_attend_as_each_does_alone(lengths, mask_kind, bias_kind, changes, training):
    attention = scatter(MultiHeadAttention(D_MODEL, HEADS, **changes)).train(training)
    longest, packed = max(lengths), randn(1, sum(lengths), D_MODEL)
    mask_shape, bias_shape = SHAPES[mask_kind](HEADS, longest), SHAPES[bias_kind](HEADS, longest)
    mask = None if mask_shape is None else torch.rand(mask_shape) < 0.7
    bias = None if bias_shape is None else randn(*bias_shape)

    found = attention(packed, mask=mask, bias=bias, lengths=lengths)
    alone = [
        attention(x, mask=corner(mask, longest, n), bias=corner(bias, longest, n), need_weights=True).output
        for x, n in zip(packed.split(lengths, dim=1), lengths, strict=True)
    ]

    assert found.weights is None
    expected, inputs = torch.cat(alone, dim=1), [packed, *attention.parameters(), *([] if bias is None else [bias])]
    close(found.output, expected)
    close(gradients(found.output, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("lengths", [[4, 6, 1], (3, 3), [1]])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        partial(LinearAttention, D_MODEL, HEADS),
        partial(SlidingWindowAttention, D_MODEL, HEADS, window=2),
        partial(SlidingWindowAttention, D_MODEL, HEADS, window=3, rotary=RotaryEmbedding(4)),
    ],
)
def test_efficient_attention_keeps_packed_sequences_apart(make, lengths, masked):
    attention, packed = scatter(make()), randn(1, sum(lengths), D_MODEL)
    mask = torch.tensor([True, False, True, True, False, True])[: max(lengths)][None, None, None] if masked else None
    found = attention(packed, mask=mask, lengths=lengths).output
    alone = [
        attention(x, mask=None if mask is None else mask[..., : x.size(1)]).output
        for x in packed.split(list(lengths), dim=1)
    ]
    expected, inputs = torch.cat(alone, dim=1), [packed, *attention.parameters()]
    close(found, expected)
    close(gradients(found, inputs), gradients(expected, inputs))


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": torch.zeros(1, 5, 8)}, "lengths are given beside key, cache or need_weights; packed sequences allow"),
        ({"need_weights": True}, "lengths are given beside key, cache or need_weights"),
        (
            {"lengths": [2, 2]},
            "query has shape (1, 5, 8); expected (1, 4, d_model), packed sequences of the lengths [2, 2]",
        ),
        ({"lengths": [3, 3]}, "query has shape (1, 5, 8); expected (1, 6, d_model)"),
        (
            {"lengths": [5, 0]},
            "query has shape (1, 5, 8); expected (1, 5, d_model), packed sequences of the lengths [5, 0], ",
        ),
        ({"lengths": [6, -1]}, "query has shape (1, 5, 8); expected (1, 5, d_model), packed sequences of the lengths"),
        ({"lengths": []}, "query has shape (1, 5, 8); expected (1, 0, d_model)"),
        ({"query": torch.zeros(2, 5, 8)}, "query has shape (2, 5, 8); expected (1, 5, d_model), packed sequences"),
        ({"query": torch.zeros(5)}, "query has shape (5,); expected (batch, length, d_model=8)"),
        ({"query": torch.zeros(1, 5, 7)}, "query has shape (1, 5, 7); expected (batch, length, d_model=8)"),
        ({"mask": torch.ones(2, 2).bool()}, "mask has shape (2, 2); expected one that broadcasts to (1, 2, 3, 3)"),
        ({"bias": torch.ones(3, 1, 3, 3)}, "bias has shape (3, 1, 2, 2); expected one that broadcasts to (1, 2, 2, 2)"),
    ],
)
def test_what_does_not_fit_packed_sequences_is_refused(arguments, message):
    given = {"query": torch.zeros(1, 5, 8), "lengths": [2, 3]} | arguments
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        MultiHeadAttention(8, 2)(**given)


def test_a_cache_and_packed_sequences_exclude_each_other():
    with pytest.raises(ValueError, match=r"^lengths are given beside key, cache or need_weights"):
        MultiHeadAttention(8, 2)(torch.zeros(1, 5, 8), cache=KeyValueCache(), lengths=[2, 3])


@pytest.mark.parametrize("p", [0.2, 0.6])
def test_dropout_acts_on_the_weights_of_packed_sequences(p):
    """Each of 10 sequences weighs its 64 keys alike, and its values are the identity: weights come out."""
    n, times = 64, 10
    attention = MultiHeadAttention(n, 1, dropout=p, bias=False)
    with torch.no_grad():
        attention.in_proj.weight.copy_(torch.cat([torch.zeros(2 * n, n), torch.eye(n)]))
        attention.out_proj.weight.copy_(torch.eye(n))
    packed = torch.eye(n).repeat(times, 1)[None]
    torch.manual_seed(1)
    weights = attention(packed, lengths=[n] * times).output
    dropped = weights == 0
    torch.testing.assert_close(weights[~dropped], torch.full_like(weights[~dropped], 1 / (n * (1 - p))))
    # Five standard deviations of the share of zeros in N independent draws.
    assert dropped.double().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / weights.numel()))
    assert len({tuple(row) for row in dropped[0].tolist()}) == times * n
    torch.manual_seed(1)
    assert torch.equal(attention(packed, lengths=[n] * times).output, weights)
    whole = torch.full_like(weights, 1 / n)
    torch.testing.assert_close(attention.eval()(packed, lengths=[n] * times).output, whole)


# --- Encoders ---------------------------------------------------------------------------------------------------------


@wherever_padding_stands
@modes
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_of_tokens_is_that_of_torch_on_the_tokens(where, training, norm_first):
    tokens = tokens_of(where)
    layer = nn.TransformerEncoderLayer(D_MODEL, HEADS, 12, dropout=0.0, batch_first=True, norm_first=norm_first)
    theirs = scatter(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).train(training)
    ours, x = Encoder.from_torch(theirs), randn(*tokens.shape, D_MODEL)
    some = tokens.any(dim=1)  # of a row of padding alone theirs makes NaN
    if not some.any():
        assert encode_tokens(ours, x, tokens).isfinite().all()
        return
    found = encode_tokens(ours, x, tokens)[tokens]
    expected = theirs(x[some], src_key_padding_mask=~tokens[some])[tokens[some]]
    close(found, expected)
    (ours_x, *ours_all), (theirs_x, *theirs_all) = (
        gradients(output, [x, *module.parameters()]) for output, module in ((found, ours), (expected, theirs))
    )
    close(ours_x, theirs_x)
    assert not ours_x[~tokens].any()
    twin = copy.deepcopy(theirs)
    for parameter, gradient in zip(twin.parameters(), theirs_all, strict=True):
        parameter.data = gradient
    close(ours_all, [parameter.detach() for parameter in Encoder.from_torch(twin).parameters()])


@wherever_padding_stands
@modes
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_first": True, "num_kv_heads": 1},
        {"rotary": RotaryEmbedding(4), "norm": "rms_norm", "activation": "swiglu"},
        {"alibi": True},
    ],
    ids=str,
)
def test_an_encoder_of_tokens_gives_them_what_it_gives_in_the_padded_batch(where, training, causal, changes):
    """Rows of padding alone get something else: zeros where they are skipped."""
    encoder = make_encoder(**{name: value for name, value in changes.items() if name != "alibi"}).train(training)
    tokens, mask = tokens_of(where), causal_mask(LENGTH) if causal else None
    bias = alibi_bias(HEADS, LENGTH).double().requires_grad_() if "alibi" in changes else None
    x = randn(*tokens.shape, D_MODEL)
    found = encode_tokens(encoder, x, tokens, mask, bias=bias)
    keys = tokens[:, None, None, :]
    expected = encoder(x, keys if mask is None else keys & mask, bias=bias)
    close(found[tokens], expected[tokens])
    if where in SKIPPED:
        assert not found[~tokens].any()
    else:
        close(found, expected)
    inputs = [x, *encoder.parameters(), *([] if bias is None else [bias])]
    found, expected = (gradients(output[tokens], inputs) for output in (found, expected))
    close(found, expected)
    assert not found[0][~tokens].any()


@pytest.mark.parametrize(("a_text", "rows"), [(21, 10), (22, 18)])
def test_on_a_cpu_the_padding_a_text_decides_what_is_left_out(monkeypatch, a_text, rows):
    """Of 3 texts in 18 places 8 are padding: 64 elements, 21.3 a text."""
    monkeypatch.setattr("companion.packing.FEWEST_A_TEXT", a_text)
    encoder, tokens = make_encoder(), tokens_of("behind the tokens")
    call = partial(encode_tokens, encoder, randn(*tokens.shape, D_MODEL), tokens)
    assert rows_fed_forward(encoder, call) == [rows] * 2


@pytest.mark.parametrize(("fewest", "rows"), [(0, 10), (8 * D_MODEL, 10), (8 * D_MODEL + 1, 18), (None, 18)])
def test_little_padding_is_left_in_where_leaving_it_out_costs_more(monkeypatch, fewest, rows):
    """Of 18 places 10 are tokens."""
    monkeypatch.setattr("companion.packing._fewest_to_leave_out", lambda x, *, plain: fewest)
    encoder, tokens = make_encoder(), tokens_of("behind the tokens")
    x = randn(*tokens.shape, D_MODEL)
    assert rows_fed_forward(encoder, partial(encode_tokens, encoder, x, tokens)) == [rows] * 2
    close(encode_tokens(encoder, x, tokens)[tokens], encoder(x, tokens[:, None, None, :])[tokens])


@wherever_padding_stands
def test_only_tokens_are_computed_where_padding_stands_behind_them(where):
    encoder, tokens = make_encoder(), tokens_of(where)
    encode = partial(encode_tokens, encoder, randn(*tokens.shape, D_MODEL), tokens)
    computed = int(tokens.sum()) if where in SKIPPED else tokens.numel()
    assert rows_fed_forward(encoder, encode) == [computed] * 2
    with keep_padding():
        assert rows_fed_forward(encoder, encode) == [tokens.numel()] * 2


def test_a_batch_without_padding_is_encoded_as_it_is():
    x, seen = randn(3, LENGTH, D_MODEL), []
    assert encode_tokens(lambda *given, **options: seen.append((given, options)) or x, x, tokens_of("nowhere")) is x
    assert seen == [((x, None), {})]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_a_batch_without_anything_is_encoded(shape):
    encoder = make_encoder()
    assert encode_tokens(encoder, randn(*shape, D_MODEL), torch.ones(shape).bool()).shape == (*shape, D_MODEL)


def test_tokens_are_encoded_in_inference_mode_from_slices_and_on_the_meta_device():
    encoder, tokens = make_encoder().eval(), tokens_of("behind the tokens")
    x = randn(D_MODEL, LENGTH, 3)
    expected = encode_tokens(encoder, x.permute(2, 1, 0).contiguous(), tokens)
    with torch.inference_mode():
        close(encode_tokens(encoder, x.permute(2, 1, 0), tokens.T.contiguous().T), expected)
    meta = encode_tokens(encoder.to("meta"), torch.empty(3, 6, D_MODEL, device="meta").double(), tokens.to("meta"))
    assert (meta.device.type, meta.shape) == ("meta", (3, 6, D_MODEL))


def test_under_autocast_packed_tokens_are_within_the_rounding_of_the_padded_batch():
    model = make_model(TextClassifier, ClassifierConfig).float()
    with torch.autocast("cpu", torch.bfloat16):
        packed = model(IDS)
        with keep_padding():
            padded = model(IDS)
    expected = model.double()(IDS)
    assert packed.dtype == padded.dtype == torch.bfloat16
    for found in (packed, padded):  # 8 bits of mantissa, in some 12 maps in a row
        assert (found - expected).norm() < 12 * 2**-8 * expected.norm()


def test_padding_is_kept_until_the_last_block_ends_whatever_ends_it():
    encoder, tokens = make_encoder(), tokens_of("behind the tokens")
    encode = partial(encode_tokens, encoder, randn(*tokens.shape, D_MODEL), tokens)
    packed, padded = [int(tokens.sum())] * 2, [tokens.numel()] * 2
    with keep_padding():
        with keep_padding():
            assert rows_fed_forward(encoder, encode) == padded
        assert rows_fed_forward(encoder, encode) == padded
        with pytest.raises(KeyError), keep_padding():
            raise KeyError
        assert rows_fed_forward(encoder, encode) == padded
    assert rows_fed_forward(encoder, encode) == packed
    with pytest.raises(KeyError), keep_padding():
        raise KeyError
    assert rows_fed_forward(encoder, encode) == packed


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_sequences_are_mapped_one_by_one_where_padding_is_kept():
    model = make_model(TextClassifier, ClassifierConfig)
    with keep_padding():
        close(torch.func.vmap(lambda ids: model(ids[None])[0])(IDS), model(IDS))


# --- Models -----------------------------------------------------------------------------------------------------------


def make_model(cls, config, **changes):
    sizes = {"vocab_size": 11, "d_model": D_MODEL, "num_heads": HEADS, "d_ff": 12, "num_layers": 2, "max_length": 9}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
    return scatter(cls(config(**sizes | still | changes)))


def alone(ids):
    return [row[row != 0][None] for row in ids]


def assert_same(model, found, expected):
    """Compare lists of outputs, and the gradients of all parameters."""
    close(found, expected)
    found, expected = (
        gradients(torch.cat([y.flatten() for y in ys]), list(model.parameters())) for ys in (found, expected)
    )
    close(found, expected)


every_kind_of_positions = pytest.mark.parametrize("positions", POSITIONS)
both_places_of_norms = pytest.mark.parametrize("norm_first", [False, True])


@every_kind_of_positions
@both_places_of_norms
@modes
def test_a_text_is_classified_in_a_batch_as_alone(positions, norm_first, training):
    model = make_model(TextClassifier, ClassifierConfig, positions=positions, norm_first=norm_first).train(training)
    assert_same(model, list(model(IDS)), [model(ids)[0] for ids in alone(IDS)])
    assert rows_fed_forward(model, partial(model, IDS)) == [int((IDS != 0).sum())] * 2


@every_kind_of_positions
@both_places_of_norms
@modes
@pytest.mark.parametrize("causal", [False, True])
def test_tokens_are_classified_in_a_batch_as_in_their_text_alone(positions, norm_first, training, causal):
    changes = {"positions": positions, "norm_first": norm_first, "causal": causal, "num_labels": 5}
    model = make_model(TokenClassifier, TokenClassifierConfig, **changes).train(training)
    found = [logits[ids != 0] for logits, ids in zip(model(IDS), IDS, strict=True)]
    assert_same(model, found, [model(ids)[0] for ids in alone(IDS)])
    assert rows_fed_forward(model, partial(model, IDS)) == [int((IDS != 0).sum())] * 2


@every_kind_of_positions
@both_places_of_norms
def test_spans_are_extracted_in_a_batch_as_alone(positions, norm_first):
    model = make_model(SpanExtractor, SpanConfig, positions=positions, norm_first=norm_first, separator_id=4)
    ids = torch.tensor([[2, 5, 4, 6, 7, 9], [2, 5, 5, 4, 7, 0], [2, 4, 8, 0, 0, 0]])
    found = [logits[row][logits[row].isfinite()] for row in range(3) for logits in model(ids)]
    expected = [logits[0][logits[0].isfinite()] for text in alone(ids) for logits in model(text)]
    assert_same(model, found, expected)
    assert rows_fed_forward(model, partial(model, ids)) == [14] * 2


@every_kind_of_positions
@both_places_of_norms
@modes
def test_a_pair_is_computed_in_a_batch_as_alone(positions, norm_first, training):
    sizes = {"source_vocab_size": 11, "target_vocab_size": 12, "d_model": D_MODEL, "num_heads": HEADS, "d_ff": 12}
    changes = {"num_layers": 2, "max_length": 9, "dropout": 0.0, "positions": positions, "norm_first": norm_first}
    model = scatter(Seq2SeqTransformer(Seq2SeqConfig(**sizes | changes))).train(training)
    target = torch.tensor([[2, 5, 6], [2, 11, 3], [2, 7, 1], [2, 2, 2]])
    expected = [model(source, row[None])[0] for source, row in zip(alone(IDS), target, strict=True)]
    assert_same(model, list(model(IDS, target)), expected)
    assert rows_fed_forward(model.transformer.encoder, partial(model, IDS, target)) == [int((IDS != 0).sum())] * 2


@every_kind_of_positions
@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([[5, 0, 7, 1, 0, 9], [0, 4, 5, 0, 0, 0], [6, 4, 4, 3, 0, 0]]),
        torch.tensor([[0, 0, 7, 1, 8, 9], [0, 4, 5, 1, 1, 2]]),
        torch.tensor([[5, 3, 7, 1, 0, 0], [0, 0, 0, 0, 0, 0]]),
        torch.zeros(2, 6, dtype=torch.long),
    ],
    ids=["between", "before", "a whole row", "every row"],
)
@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (TextClassifier, ClassifierConfig),
        (TokenClassifier, partial(TokenClassifierConfig, num_labels=5, causal=True)),
    ],
)
def test_padding_anywhere_leaves_the_tokens_what_they_are_in_the_padded_batch(positions, ids, cls, config):
    model = make_model(cls, config, positions=positions)
    with keep_padding():
        expected = model(ids)
    found = model(ids)
    if found.dim() == 3:
        found, expected = found[ids != 0], expected[ids != 0]
    assert_same(model, [found], [expected])


def test_no_parameter_learns_from_padding():
    """Positions 4 and 5 hold padding alone, and so does the embedding's row of padding, here no zeros."""
    model = make_model(TokenClassifier, TokenClassifierConfig, positions="learned", num_labels=5)
    ids = IDS[1:]
    model(ids)[ids != 0].square().sum().backward()
    assert not model.positions.table.grad[4:].any()
    assert model.positions.table.grad[:4].all()
    assert not model.embedding.weight.grad[0].any()


def test_a_fixed_seed_drops_the_same_in_packed_batches():
    changes = {"dropout": 0.3, "attention_dropout": 0.3, "embedding_dropout": 0.3}
    model = make_model(TextClassifier, ClassifierConfig, **changes).train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model(IDS))
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).all()


# --- ALBERT -----------------------------------------------------------------------------------------------------------


SEEN = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
HOLES = test_albert.SEEN
LEFT = SEEN.flip(1)
inputs_of_albert = partial(dict, token_type_ids=test_albert.TYPES)
either_mask = pytest.mark.parametrize(("seen", "rows"), [(SEEN, 15), (SEEN.bool(), 15), (HOLES, 21), (LEFT, 21)])


@either_mask
@modes
def test_albert_classifies_padded_inputs_as_transformers_does(seen, rows, training):
    ours, theirs = test_albert.make_pair(AlbertForSequenceClassification)
    call = partial(ours.train(training), test_albert.IDS, **inputs_of_albert(attention_mask=seen))
    expected = theirs.train(training)(test_albert.IDS, **inputs_of_albert(attention_mask=seen.long()))
    assert rows_fed_forward(ours, call) == [rows] * 3
    test_albert.assert_same(ours, theirs, call(), expected.to_tuple())


@either_mask
def test_albert_is_pretrained_on_padded_inputs_as_transformers_is(seen, rows):
    ours, theirs = test_albert.make_pair(AlbertForPreTraining)
    masked = test_albert.MASKED & seen.bool()
    call = partial(ours, test_albert.IDS, **inputs_of_albert(attention_mask=seen), masked=masked)
    words, order = theirs(test_albert.IDS, **inputs_of_albert(attention_mask=seen.long())).to_tuple()
    assert rows_fed_forward(ours, call) == [rows] * 3
    test_albert.assert_same(ours, theirs, call(), (words[masked], order))


def test_where_hidden_positions_are_masked_albert_computes_them_too():
    ours, theirs = test_albert.make_pair(AlbertForPreTraining)
    masked = test_albert.MASKED | (SEEN == 0)
    call = partial(ours, test_albert.IDS, SEEN, masked=masked)
    words, order = theirs(test_albert.IDS, SEEN).to_tuple()
    assert rows_fed_forward(ours, call) == [21] * 3
    test_albert.assert_same(ours, theirs, call(), (words[masked], order))


@pytest.mark.unhooked
def test_a_wrong_mask_beside_masked_positions_is_refused_by_name():
    model = AlbertForPreTraining(test_albert.make_config())
    with pytest.raises(ValueError, match=r"^attention_mask has shape \(3, 6\); expected \(3, 7\), input_ids'$"):
        model(test_albert.IDS, SEEN[:, :6], masked=test_albert.MASKED)
    with pytest.raises(TypeError, match=r"^attention_mask has dtype torch.float32; expected torch.bool or torch.int64"):
        model(test_albert.IDS, SEEN.float(), masked=test_albert.MASKED)


@modes
def test_albert_skips_padding_only_when_it_is_told_to(training):
    ours, theirs = test_albert.make_pair(AlbertModel)
    ours.train(training)
    whole, pooled = ours(test_albert.IDS, SEEN)
    close((whole, pooled), theirs.train(training)(test_albert.IDS, SEEN).to_tuple())
    skipped, same = ours(test_albert.IDS, SEEN, skip_padding=True)
    close((skipped, same), (whole * SEEN[..., None], pooled))
    assert rows_fed_forward(ours, partial(ours, test_albert.IDS, SEEN)) == [21] * 3
    assert rows_fed_forward(ours, partial(ours, test_albert.IDS, SEEN, skip_padding=True)) == [15] * 3
    assert rows_fed_forward(ours, partial(ours.hidden_states, test_albert.IDS, SEEN)) == [21] * 3
    with keep_padding():
        close(ours(test_albert.IDS, SEEN, skip_padding=True), (whole, pooled))
    close(ours(test_albert.IDS, skip_padding=True), ours(test_albert.IDS))


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("cls", [AlbertForSequenceClassification, AlbertForPreTraining])
def test_a_compiled_albert_computes_on_the_padded_batch_what_the_other_does_without(cls):
    model = scatter(cls(test_albert.make_config()))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    close(compiled(test_albert.IDS, SEEN), model(test_albert.IDS, SEEN))


@modes
def test_an_albert_text_classifier_reads_a_text_in_a_batch_as_alone(training):
    """Eleven tokens take two windows of 7 and 8 with their special ones, the others one each: 7 + 8 + 7 + 3."""
    config = AlbertTextConfig(**test_albert.SMALL, max_length=20)
    model = scatter(AlbertTextClassifier(config)).train(training)
    ids = torch.tensor([[5, 2, 7, 1, 2, 9, 10, 4, 5, 6, 6], [6, 4, 4, 3, 7, 0, 0, 0, 0, 0, 0], [8] + [0] * 10])
    assert_same(model, list(model(ids)), [model(text)[0] for text in alone(ids)])
    assert rows_fed_forward(model, partial(model, ids)) == [25] * 3
