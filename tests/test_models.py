import copy
import itertools
import math
from collections import Counter
from functools import partial

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion.models import ClassifierConfig, TextClassifier
from companion.positions import sinusoidal_encoding

VOCAB, D_MODEL, PAD = 11, 8, 0

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
property_test = settings(max_examples=15, deadline=None)

every_architecture = pytest.mark.parametrize(
    "changes",
    [
        {"positions": "sinusoidal"},
        {"positions": "learned"},
        {"positions": "none"},
        {"norm_first": True},
        {"activation": "relu", "num_layers": 1, "num_heads": 4},
        {"pad_id": 3},
    ],
    ids=str,
)


def make_config(**changes):
    small = {"vocab_size": VOCAB, "d_model": D_MODEL, "num_heads": 2, "d_ff": 12, "num_layers": 2, "max_length": 9}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0, "word_dropout": 0.0}
    rest = {"positions": "sinusoidal", "norm_first": False, "activation": "gelu", "pad_id": PAD}
    return ClassifierConfig(**small | still | rest | changes)


def make_model(**changes):
    """Build a classifier whose every parameter counts: no bias at 0, no scale at 1, no padding vector at 0."""
    model = TextClassifier(make_config(**changes)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def make_ids(*texts, pad_id=PAD):
    length = max(map(len, texts))
    return torch.tensor([[*text, *[pad_id] * (length - len(text))] for text in texts])


class TorchClassifier(nn.Module):
    """The same classifier from torch's own layers, and with a mean taken over one text at a time."""

    def __init__(self, model):
        super().__init__()
        self.config = config = model.config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, padding_idx=config.pad_id)
        layer = nn.TransformerEncoderLayer(
            config.d_model,
            config.num_heads,
            config.d_ff,
            dropout=0.0,
            activation=config.activation,
            batch_first=True,
            norm_first=config.norm_first,
        )
        norm = nn.LayerNorm(config.d_model) if config.norm_first else None
        self.encoder = nn.TransformerEncoder(layer, config.num_layers, norm, enable_nested_tensor=False)
        self.output = nn.Linear(config.d_model, 1)
        self.table = nn.Parameter(torch.zeros(config.max_length, config.d_model))
        if config.positions == "sinusoidal":
            self.table = nn.Parameter(sinusoidal_encoding(config.max_length, config.d_model))
        self.double()
        names = {torch_name(name): tensor for name, tensor in model.state_dict().items()}
        missing, unexpected = self.load_state_dict(names, strict=False)
        assert set(missing) <= {"table"}
        assert not unexpected

    def forward(self, input_ids):
        x = self.embedding(input_ids) + self.table[: input_ids.size(1)]
        padding = input_ids == self.config.pad_id
        x = self.encoder(x, src_key_padding_mask=padding)
        means = [row[~hidden].mean(dim=0) for row, hidden in zip(x, padding, strict=True)]
        return self.output(torch.stack(means)).flatten()


def torch_name(name):
    for ours, theirs in {
        "positions.table": "table",
        "attention.in_proj.": "self_attn.in_proj_",
        "attention.out_proj.": "self_attn.out_proj.",
        "attention_norm.": "norm1.",
        "feed_forward.inner.": "linear1.",
        "feed_forward.outer.": "linear2.",
        "feed_forward_norm.": "norm2.",
    }.items():
        name = name.replace(ours, theirs)
    return name


@every_architecture
def test_logits_and_gradients_equal_a_classifier_made_of_torch_modules(changes):
    model = make_model(**changes)
    reference = TorchClassifier(model)
    ids = make_ids([5, 2, 7, 1, 2, 9], [10, 5], [4, 4, 4, 6], pad_id=model.config.pad_id)

    actual, expected = model(ids), reference(ids)

    close(actual, expected)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    theirs = [reference.get_parameter(torch_name(name)) for name in names]
    close(torch.autograd.grad(actual, parameters, upstream), torch.autograd.grad(expected, theirs, upstream))


texts = st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=5)


@property_test
@given(
    text=texts, amount=st.integers(0, 4), changes=st.sampled_from([{}, {"norm_first": True}, {"positions": "learned"}])
)
def test_no_amount_of_padding_changes_a_logit(text, amount, changes):
    model = make_model(**changes)
    close(model(torch.tensor([text + [PAD] * amount])), model(torch.tensor([text])))


@property_test
@given(batch=st.lists(texts, min_size=2, max_size=4))
def test_a_text_is_classified_alone(batch):
    model = make_model()
    together = model(make_ids(*batch))
    for text, logit in zip(batch, together, strict=True):
        close(model(torch.tensor([text])), logit[None])


@property_test
@given(text=st.permutations([1, 2, 3, 4, 5]))
def test_without_positions_the_order_of_the_words_does_not_matter(text):
    model = make_model(positions="none")
    close(model(torch.tensor([text])), model(torch.tensor([[1, 2, 3, 4, 5]])))


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_with_positions_every_order_of_the_words_has_its_own_logit(positions):
    logits = make_model(positions=positions)(torch.tensor(list(itertools.permutations([1, 2, 3, 4]))))
    assert logits.sort().values.diff().min() > 1e-6


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_every_parameter_of_a_fresh_model_learns(norm_first, positions):
    model = TextClassifier(make_config(norm_first=norm_first, positions=positions))
    ids = make_ids(list(range(1, 10)), [10, 1])
    model(ids).backward(torch.tensor([1.0, -0.5]))
    for name, parameter in model.named_parameters():
        parts = list(parameter.grad.chunk(3)) if "in_proj" in name else [parameter.grad]
        if name.endswith("in_proj.bias"):
            del parts[1]  # the same number added to all scores of a query changes no weight
        for part in parts:
            assert part.isfinite().all(), name
            assert part.abs().max() > 1e-8, name
    assert (model.embedding.weight.grad[PAD] == 0).all()
    assert (model.embedding.weight.grad[1:].abs().max(dim=1).values > 0).all()


def test_only_the_vectors_of_words_that_occur_are_learned():
    model = make_model(positions="learned")
    model(make_ids([5, 2, 5], [2])).sum().backward()
    assert model.embedding.weight.grad.any(dim=1).nonzero().flatten().tolist() == [2, 5]
    assert model.positions.table.grad.any(dim=1).nonzero().flatten().tolist() == [0, 1, 2]


def test_a_text_of_padding_alone_gets_the_output_bias_and_leaves_the_others_alone():
    model = make_model()
    logits = model(make_ids([5, 2, 7], []))
    close(logits[1:], model.output.bias)
    close(logits[:1], model(make_ids([5, 2, 7])))
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_empty_text_gets_the_output_bias():
    model = make_model()
    close(model(torch.empty(2, 0, dtype=torch.long)), model.output.bias.expand(2))


def test_the_embedding_of_padding_starts_at_zero_and_the_others_do_not():
    weight = TextClassifier(make_config(pad_id=4)).embedding.weight
    assert weight.any(dim=1).tolist() == [row != 4 for row in range(VOCAB)]


def test_the_config_reaches_every_layer():
    model = TextClassifier(make_config(dropout=0.1, attention_dropout=0.2, embedding_dropout=0.3))
    assert model.dropout.p == 0.3
    for layer in model.encoder.layers:
        assert (layer.dropout.p, layer.feed_forward.dropout.p, layer.attention.dropout) == (0.1, 0.1, 0.2)


DROPOUTS = ["dropout", "attention_dropout", "embedding_dropout", "word_dropout"]


@pytest.mark.parametrize("field", DROPOUTS)
def test_each_dropout_acts_in_training_only(field):
    model = make_model(**{field: 0.4})
    still = copy.deepcopy(model)
    still.config = make_config()
    ids = torch.tensor([[5, 2, 7, 3]]).expand(20, -1)
    assert model(ids).unique().numel() > 5
    expected = TorchClassifier(still)(ids)
    close(model.eval()(ids), expected)
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("field", DROPOUTS)
def test_the_same_seed_drops_the_same(field):
    model, ids = make_model(**{field: 0.4}), make_ids([5, 2, 7, 3, 8, 6], [3, 9])
    torch.manual_seed(1)
    first = model(ids)
    second = model(ids)
    torch.manual_seed(1)
    assert torch.equal(model(ids), first)
    assert not torch.equal(second, first)


def test_embedding_dropout_zeroes_elements_of_what_enters_the_encoder():
    model = make_model(embedding_dropout=0.4)
    entered = []
    model.encoder.register_forward_pre_hook(lambda module, arguments: entered.append(arguments[0]))
    ids = torch.randint(1, VOCAB, (100, 9))
    model(ids), model.eval()(ids)
    dropped, whole = entered
    kept = dropped != 0
    close(dropped[kept], whole[kept] / 0.6)
    # Five standard deviations of the share among N independent elements.
    assert 1 - kept.double().mean().item() == pytest.approx(0.4, abs=5 * math.sqrt(0.24 / kept.numel()))


@pytest.mark.parametrize(("pad_id", "unknown_id"), [(0, 1), (3, 0)])
def test_word_dropout_replaces_each_word_with_its_probability_by_the_unknown_one(pad_id, unknown_id):
    p, rows, words = 0.3, 4_000, (5, 2, 7)
    model = make_model(word_dropout=p, pad_id=pad_id, unknown_id=unknown_id)
    padded = [*words, pad_id, pad_id]
    logits = model(torch.tensor([padded]).expand(rows, -1))
    model.eval()
    seen = Counter()
    for kept in itertools.product([False, True], repeat=len(words)):
        text = [word if keep else unknown_id for word, keep in zip(words, kept, strict=True)]
        seen[kept] = torch.isclose(logits, model(torch.tensor([text])), rtol=0, atol=1e-10).sum().item()
    assert seen.total() == rows
    for kept, count in seen.items():
        chance = math.prod(1 - p if keep else p for keep in kept)
        assert count == pytest.approx(rows * chance, abs=5 * math.sqrt(rows * chance * (1 - chance))), kept


def test_parameters_are_as_many_as_the_formula_says():
    d, f, layers, length = D_MODEL, 12, 2, 9
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    expected = VOCAB * d + length * d + layers * layer + d + 1
    model = TextClassifier(make_config(positions="learned"))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_config_is_frozen_and_takes_keywords_only():
    with pytest.raises(AttributeError, match="cannot assign to field 'd_model'"):
        make_config().d_model = 4
    with pytest.raises(TypeError, match="positional"):
        ClassifierConfig(100)


def test_the_hook_checks_the_types_of_a_config_in_the_other_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="positions"):
        make_config(positions="rotary")


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({field: value}, f"{field}={value}; choose 1 or more")
            for field in ("vocab_size", "d_model", "num_heads", "d_ff", "num_layers", "max_length")
            for value in (0, -1)
        ),
        *(({field: value}, f"{field}={value}; choose 0 <= {field} < 1") for field in DROPOUTS for value in (-0.1, 1.0)),
        ({"num_heads": 3}, "num_heads=3 does not divide d_model=8"),
        ({"d_model": 7, "num_heads": 1}, "d_model=7 is odd; sinusoidal positions need an even one"),
        *(
            ({field: value}, f"{field}={value}; choose 0 <= {field} < vocab_size=11")
            for field in ("pad_id", "unknown_id")
            for value in (-1, 11)
        ),
        ({"positions": "rotary"}, r"positions='rotary'; choose one of \('sinusoidal', 'learned', 'none'\)"),
        ({"activation": "tanh"}, r"activation='tanh'; choose one of \('relu', 'gelu'\)"),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_name_and_value(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_config(**changes)


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_an_odd_width_is_fine_without_sinusoids(positions):
    model = make_model(d_model=7, num_heads=1, positions=positions)
    ids = make_ids([5, 2, 7], [1])
    close(model(ids), TorchClassifier(model)(ids))


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4,), r"input_ids has shape \(4,\); expected \(batch, length\)"),
        ((2, 3, 4), r"input_ids has shape \(2, 3, 4\); expected \(batch, length\)"),
        ((2, 10), "input_ids has length 10; expected at most max_length=9"),
    ],
)
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
def test_input_of_another_shape_is_refused(shape, message, positions):
    model = make_model(positions=positions)
    with pytest.raises(ValueError, match=message):
        model(torch.ones(shape, dtype=torch.long))


def test_the_longest_input_fits():
    model, ids = make_model(), torch.randint(1, VOCAB, (2, 9))
    close(model(ids), TorchClassifier(model)(ids))
