import math
import re
from functools import partial

import pytest
import torch
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion import toy
from companion.article import ArticleClassifier, ArticleConfig
from companion.batching import labelled_batches
from companion.layers import EncoderLayer
from companion.losses import classification_loss
from companion.positions import sinusoidal_encoding
from companion.text import Vocabulary
from companion.training import TrainingConfig, evaluate, train

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB, D_MODEL, HEADS, HEAD_DIM, D_FF, LENGTH = 13, 6, 2, 5, 11, 8
PIECES = ("mask", "positions", "residual_norm", "feed_forward")
ALL = dict.fromkeys(PIECES, True)

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)

IDS = torch.tensor([[5, 6, 7, 5, 0, 0], [8, 1, 12, 3, 4, 2], [9, 0, 0, 0, 0, 0]])
LENGTHS = (4, 6, 1)

every_step = pytest.mark.parametrize("steps", range(len(PIECES) + 1), ids=lambda n: "+".join(("bare", *PIECES[:n])))


def make(**changes):
    """Make a small float64 model in which every parameter counts: no bias at 0, no scale at 1."""
    small = {"vocab_size": VOCAB, "d_model": D_MODEL, "num_heads": HEADS, "head_dim": HEAD_DIM, "d_ff": D_FF}
    model = ArticleClassifier(ArticleConfig(**small | {"max_length": LENGTH} | changes)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def step(n):
    return make(**dict.fromkeys(PIECES[:n], True))


def attention_by_loops(model, x, kept):
    """Attend head by head and query by query; ``kept`` are the positions that may be attended to."""
    inner = HEADS * HEAD_DIM
    (wq, wk, wv), (bq, bk, bv) = model.attention.in_proj.weight.split(inner), model.attention.in_proj.bias.split(inner)
    rows = []
    for i in range(len(x)):
        heads = []
        for h in range(HEADS):
            part = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
            query = wq[part] @ x[i] + bq[part]
            scores = torch.stack([query @ (wk[part] @ x[j] + bk[part]) / math.sqrt(HEAD_DIM) for j in kept])
            values = torch.stack([wv[part] @ x[j] + bv[part] for j in kept])
            heads.append((scores.exp() / scores.exp().sum()) @ values)
        rows.append(model.attention.out_proj.weight @ torch.cat(heads) + model.attention.out_proj.bias)
    return torch.stack(rows)


def normalise(x, norm):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def logit_by_loops(model, ids, *, mask=False, positions=False, residual_norm=False, feed_forward=False):
    x = model.embedding.weight[ids]
    kept = [i for i, token in enumerate(ids.tolist()) if token != 0 or not mask]
    if positions:
        table = [
            [(math.sin, math.cos)[k % 2](i / 10_000 ** ((k - k % 2) / D_MODEL)) for k in range(D_MODEL)]
            for i in range(len(ids))
        ]
        x = x * D_MODEL**0.5 + torch.tensor(table)  # of float32, as the package's
    attended = attention_by_loops(model, x, kept)
    x = normalise(x + attended, model.attention_norm) if residual_norm else torch.cat([x, attended], dim=-1)
    if feed_forward:
        inner, outer = model.feed_forward.inner, model.feed_forward.outer
        y = (x @ inner.weight.T + inner.bias).clamp(min=0) @ outer.weight.T + outer.bias
        x = normalise(x + y, model.feed_forward_norm)
    else:
        x = (x @ model.dense.weight.T + model.dense.bias).clamp(min=0)
    mean = sum(x[i] for i in kept) / len(kept)
    return model.output.weight[0] @ mean + model.output.bias[0]


@every_step
def test_logits_and_gradients_are_those_of_plain_loops(steps):
    model = step(steps)
    found = model(IDS)
    expected = torch.stack([logit_by_loops(model, ids, **dict.fromkeys(PIECES[:steps], True)) for ids in IDS])
    close(found, expected)
    parameters = list(model.parameters())
    for ours, theirs in zip(gradients(found, parameters), gradients(expected, parameters), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("changes", [{"positions": True}, {"residual_norm": True}, {"mask": True, "positions": True}])
def test_a_piece_needs_none_of_those_before_it(changes):
    model = make(**changes)
    close(model(IDS), torch.stack([logit_by_loops(model, ids, **changes) for ids in IDS]))


def test_the_bare_model_is_the_article_s_in_torch_nn():
    """torch.nn's attention has no inner width of its own: heads of d_model / num_heads make the two comparable."""
    model = make(head_dim=D_MODEL // HEADS)
    theirs = nn.MultiheadAttention(D_MODEL, HEADS, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "in_proj_weight": model.attention.in_proj.weight,
            "in_proj_bias": model.attention.in_proj.bias,
            "out_proj.weight": model.attention.out_proj.weight,
            "out_proj.bias": model.attention.out_proj.bias,
        }
    )
    x = model.embedding(IDS)
    dense = nn.Sequential(model.dense, nn.ReLU())
    close(model(IDS), model.output(dense(torch.cat([x, theirs(x, x, x)[0]], dim=-1)).mean(dim=1))[:, 0])


def encoder_layer_of(model):
    layer = EncoderLayer(D_MODEL, HEADS, D_FF, activation="relu", head_dim=model.config.head_dim).double()
    state = {name: tensor for name, tensor in model.state_dict().items() if name in layer.state_dict()}
    layer.load_state_dict(state)
    assert model.state_dict().keys() - state.keys() == {"embedding.weight", "output.weight", "output.bias"}
    return layer


def test_with_every_piece_it_is_a_post_norm_encoder_layer():
    model = make(**ALL)
    layer = encoder_layer_of(model)
    x = model.embedding(IDS) * math.sqrt(D_MODEL) + sinusoidal_encoding(6, D_MODEL).double()
    tokens = IDS != 0
    y = layer(x, tokens[:, None, None])
    means = torch.stack([row[:length].mean(dim=0) for row, length in zip(y, LENGTHS, strict=True)])
    found, expected = model(IDS), model.output(means)[:, 0]
    close(found, expected)
    layer_parameters = dict(layer.named_parameters())
    ours = gradients(found, [p for name, p in model.named_parameters() if name in layer_parameters])
    theirs = gradients(expected, [layer_parameters[n] for n, _ in model.named_parameters() if n in layer_parameters])
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)


def test_with_every_piece_it_is_torch_s_encoder_layer():
    model = make(**ALL, head_dim=D_MODEL // HEADS)
    theirs = nn.TransformerEncoderLayer(D_MODEL, HEADS, D_FF, dropout=0.0, batch_first=True, dtype=torch.float64)
    for ours, name in (
        (model.attention.in_proj, "self_attn.in_proj_"),
        (model.attention.out_proj, "self_attn.out_proj."),
        (model.attention_norm, "norm1."),
        (model.feed_forward.inner, "linear1."),
        (model.feed_forward.outer, "linear2."),
        (model.feed_forward_norm, "norm2."),
    ):
        for kind in ("weight", "bias"):
            theirs.get_parameter(name + kind).data.copy_(getattr(ours, kind).data)
    x = model.positions(model.embedding(IDS) * math.sqrt(D_MODEL))
    y = theirs(x, src_key_padding_mask=IDS == 0)
    means = torch.stack([row[:length].mean(dim=0) for row, length in zip(y, LENGTHS, strict=True)])
    close(model(IDS), model.output(means)[:, 0])


ids_lists = st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=5)


@settings(max_examples=15)
@given(ids_lists, st.integers(1, 3), st.sampled_from(range(1, len(PIECES) + 1)))
def test_padding_changes_nothing_from_the_mask_on(ids, padding, steps):
    model = step(steps)
    close(model(torch.tensor([ids + [0] * padding])), model(torch.tensor([ids])))


def test_padding_counts_in_the_bare_model():
    model = make()
    padded, alone = model(IDS[:1]), model(IDS[:1, :4])
    assert (padded - alone).abs().item() > 1e-3
    zeros = IDS[:1].masked_fill(IDS[:1] == 0, 11)
    with torch.no_grad():
        model.embedding.weight[11] = model.embedding.weight[0]
    close(model(zeros), padded)  # padding is a token as any other


@settings(max_examples=15)
@given(st.permutations(range(1, 8)), st.booleans(), st.booleans())
def test_only_positions_tell_one_order_from_another(order, mask, residual_norm):
    model = make(mask=mask, residual_norm=residual_norm)
    close(model(torch.tensor([order])), model(torch.arange(1, 8)[None]))


def test_positions_tell_one_order_from_another():
    model = make(positions=True)
    assert (model(torch.tensor([[3, 4, 5]])) - model(torch.tensor([[5, 4, 3]]))).abs().item() > 1e-3


def test_a_review_of_padding_alone_has_the_logit_of_no_evidence():
    model = make(**ALL)
    close(model(torch.zeros(1, 3, dtype=torch.int64)), model.output.bias)


def test_another_padding_id():
    model = make(mask=True, pad_id=3)
    close(model(torch.tensor([[5, 6, 3]])), model(torch.tensor([[5, 6]])))
    assert (model(torch.tensor([[5, 6, 0]])) - model(torch.tensor([[5, 6]]))).abs().item() > 1e-3


def test_the_article_s_numbers():
    config = ArticleConfig()
    assert (config.vocab_size, config.d_model, config.num_heads, config.head_dim) == (10_000, 64, 2, 64)
    assert (config.max_length, config.pad_id, config.unknown_id, config.d_ff) == (512, 0, 1, 256)
    assert not any(getattr(config, piece) for piece in PIECES)
    shapes = {name: tuple(parameter.shape) for name, parameter in ArticleClassifier(config).named_parameters()}
    assert shapes == {
        "embedding.weight": (10_000, 64),
        "attention.in_proj.weight": (3 * 128, 64),
        "attention.in_proj.bias": (3 * 128,),
        "attention.out_proj.weight": (64, 128),
        "attention.out_proj.bias": (64,),
        "dense.weight": (64, 128),
        "dense.bias": (64,),
        "output.weight": (1, 64),
        "output.bias": (1,),
    }


@every_step
def test_it_starts_as_keras_starts(steps):
    """Uniform weights: the largest is near the bound, and the mean square a third of the bound's."""
    model = ArticleClassifier(ArticleConfig(**dict.fromkeys(PIECES[:steps], True)))
    projections = dict(zip("qkv", model.attention.in_proj.weight.split(128), strict=True))
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 2 and "in_proj" not in name} | projections
    for name, weight in weights.items():
        bound = 0.05 if name == "embedding.weight" else math.sqrt(6 / sum(weight.shape))
        assert weight.abs().max().item() <= bound
        assert weight.abs().max().item() > 0.9 * bound
        # The mean of n squares deviates by sqrt(4 / 45 / n) of the bound's square; four times that.
        mean_square = weight.square().mean().item() / bound**2
        assert mean_square == pytest.approx(1 / 3, abs=4 * math.sqrt(4 / 45 / weight.numel()))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all()
    assert model.embedding.weight[0].ne(0).any()


@every_step
def test_it_trains_with_the_package_s_loop(steps):
    reviews = toy.reviews(1_500)
    vocabulary = Vocabulary.build(review.text.split() for review in reviews)
    ids, labels = [vocabulary.encode(review.text.split()) for review in reviews], [review.label for review in reviews]
    batches = labelled_batches(ids[:1_200], labels[:1_200], max_tokens=1_024)
    dev = labelled_batches(ids[1_200:], labels[1_200:], max_tokens=1_024, shuffle=False)
    config = ArticleConfig(vocab_size=len(vocabulary), max_length=64, **dict.fromkeys(PIECES[:steps], True))
    model = ArticleClassifier(config)
    record = train(model, batches, TrainingConfig(epochs=5, learning_rate=1e-2), loss_fn=classification_loss)
    assert record.config["model"] == {"kind": "ArticleClassifier", **vars(config)}
    assert evaluate(model, dev, loss_fn=classification_loss)["accuracy"] > 0.6  # chance, and three deviations


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(1, 2), TypeError, "input_ids has dtype torch.float32; expected torch.int64, token ids"),
        (torch.tensor([1, 2]), ValueError, "input_ids has shape (2,); expected (batch, length)"),
        (torch.ones(1, 9, dtype=torch.int64), ValueError, "input_ids has length 9; expected at most max_length=8"),
    ],
)
def test_ids_that_do_not_fit_are_refused(ids, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()(ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            ({field: 0}, f"{field}=0; choose 1 or more")
            for field in ("vocab_size", "d_model", "num_heads", "head_dim", "max_length", "d_ff")
        ],
        ({"pad_id": -1}, "pad_id=-1; choose 0 <= pad_id < vocab_size=10000"),
        ({"unknown_id": 10_000}, "unknown_id=10000; choose 0 <= unknown_id < vocab_size=10000"),
        ({"d_model": 63, "positions": True}, "d_model=63 is odd; positions need an even one"),
        ({"feed_forward": True}, "feed_forward=True needs residual_norm=True"),
    ],
)
def test_the_config_checks_itself(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ArticleConfig(**changes)


def test_values_at_the_bounds_pass():
    config = ArticleConfig(
        vocab_size=2, d_model=1, num_heads=1, head_dim=1, max_length=1, d_ff=1, pad_id=1, unknown_id=0
    )
    assert ArticleClassifier(config)(torch.tensor([[1]])).shape == (1,)
