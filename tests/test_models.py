import copy
import functools
import itertools
import math
import re
from collections import Counter
from functools import partial

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import companion.linear
import companion.models.seq2seq
from companion.attention import padding_mask
from companion.configs import ClassifierConfig, Seq2SeqConfig, SpanConfig, TokenClassifierConfig
from companion.decoding import beam_search
from companion.models import Seq2SeqTransformer, SpanExtractor, TextClassifier, TokenClassifier
from companion.packing import keep_padding
from companion.positions import sinusoidal_encoding

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB, D_MODEL, PAD = 11, 8, 0
SOURCE_VOCAB, TARGET_VOCAB, BOS, EOS, MAX_LENGTH = 11, 13, 2, 3, 9
POSITIONS = ["sinusoidal", "learned", "rotary", "alibi", "none"]

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
property_test = settings(max_examples=15)

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


def scatter(model):
    """Make every parameter count: no bias at 0, no scale at 1, no padding vector at 0."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def make_model(**changes):
    return scatter(TextClassifier(make_config(**changes)).double())


def make_seq2seq_config(**changes):
    small = {"d_model": D_MODEL, "num_heads": 2, "d_ff": 12, "num_layers": 2, "max_length": MAX_LENGTH}
    vocabularies = {"source_vocab_size": SOURCE_VOCAB, "target_vocab_size": TARGET_VOCAB}
    if changes.get("share_embeddings"):
        vocabularies["source_vocab_size"] = TARGET_VOCAB
    return Seq2SeqConfig(**small | vocabularies | {"dropout": 0.0} | changes)


def make_seq2seq(**changes):
    return scatter(Seq2SeqTransformer(make_seq2seq_config(**changes)).double())


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
    if "decoder" in name:
        name = name.replace("feed_forward_norm.", "norm3.")
    for ours, theirs in {
        "source_positions.table": "source_table",
        "target_positions.table": "target_table",
        "positions.table": "table",
        "cross_attention.in_proj.": "multihead_attn.in_proj_",
        "cross_attention.out_proj.": "multihead_attn.out_proj.",
        "cross_attention_norm.": "norm2.",
        "transformer.": "",
        "attention.in_proj.": "self_attn.in_proj_",
        "attention.out_proj.": "self_attn.out_proj.",
        "attention_norm.": "norm1.",
        "feed_forward.inner.": "linear1.",
        "feed_forward.outer.": "linear2.",
        "feed_forward_norm.": "norm2.",
    }.items():
        name = name.replace(ours, theirs)
    return name


class TorchSeq2Seq(nn.Module):
    """The same sequence-to-sequence model from torch's own layers."""

    def __init__(self, model):
        super().__init__()
        self.config = config = model.config
        settings = {"dropout": 0.0, "activation": config.activation, "batch_first": True}
        settings["norm_first"] = config.norm_first
        widths = config.d_model, config.num_heads, config.d_ff
        source, target = config.source_vocab_size, config.target_vocab_size
        self.target_embedding = nn.Embedding(target, config.d_model, padding_idx=config.pad_id)
        self.source_embedding = nn.Embedding(source, config.d_model, padding_idx=config.pad_id)
        if config.share_embeddings:
            self.source_embedding = self.target_embedding
        norms = [nn.LayerNorm(config.d_model) if config.norm_first else None for _ in range(2)]
        layer = nn.TransformerEncoderLayer(*widths, **settings)
        self.encoder = nn.TransformerEncoder(layer, config.num_layers, norms[0], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*widths, **settings), config.num_layers, norms[1]
        )
        table = torch.zeros(config.max_length, config.d_model)
        if config.positions == "sinusoidal":
            table = sinusoidal_encoding(config.max_length, config.d_model)
        if config.positions == "learned":
            self.source_table, self.target_table = nn.Parameter(table), nn.Parameter(table)
        else:
            self.source_table, self.target_table = table.double(), table.double()
        if not config.tie_output:
            self.output = nn.Linear(config.d_model, target, bias=False)
        self.double()
        with torch.no_grad():
            theirs = dict(self.named_parameters())
            ours = {torch_name(name): parameter for name, parameter in model.named_parameters()}
            assert set(ours) == set(theirs)
            for name, parameter in theirs.items():
                parameter.copy_(ours[name])

    def forward(self, source_ids, target_ids):
        scale = math.sqrt(self.config.d_model)
        source = self.source_embedding(source_ids) * scale + self.source_table[: source_ids.size(1)]
        target = self.target_embedding(target_ids) * scale + self.target_table[: target_ids.size(1)]
        padding = source_ids == self.config.pad_id
        later = torch.ones(target_ids.size(1), target_ids.size(1), dtype=torch.bool).triu(1)
        memory = self.encoder(source, src_key_padding_mask=padding)
        x = self.decoder(target, memory, tgt_mask=later, memory_key_padding_mask=padding)
        return x @ self.target_embedding.weight.T if self.config.tie_output else self.output(x)


class ByHand:
    """Either model written out, one row and one head at a time, on the model's own parameters."""

    def __init__(self, model):
        self.config, self.parameters = model.config, dict(model.named_parameters())
        self.head_dim = getattr(self.config, "head_dim", None) or self.config.d_model // self.config.num_heads
        self.num_kv_heads = getattr(self.config, "num_kv_heads", None) or self.config.num_heads

    def linear(self, x, name):
        y = x @ self.parameters[f"{name}.weight"].T
        return y + self.parameters[f"{name}.bias"] if f"{name}.bias" in self.parameters else y

    def norm(self, x, name):
        if getattr(self.config, "norm", "layer_norm") == "rms_norm":
            mean_square = x.pow(2).mean(dim=-1, keepdim=True)
            return x / (mean_square + torch.finfo(x.dtype).eps).sqrt() * self.parameters[f"{name}.weight"]
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.parameters[f"{name}.weight"] + self.parameters[f"{name}.bias"]

    def turn(self, x):
        """Turn pairs of features as complex numbers."""
        frequency = 10_000.0 ** (-torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        turns = torch.exp(1j * torch.arange(len(x))[:, None] * frequency)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)

    def attention(self, name, x, memory=None, causal=False):
        heads, width, itself = self.config.num_heads, self.head_dim, memory is None
        memory = x if itself else memory
        sizes = [heads * width, self.num_kv_heads * width, self.num_kv_heads * width]
        weights = self.parameters[f"{name}.in_proj.weight"].split(sizes)
        biases = self.parameters[f"{name}.in_proj.bias"].split(sizes)
        q, k, v = (
            (y @ weight.T + bias).split(width, dim=-1)
            for y, weight, bias in zip((x, memory, memory), weights, biases, strict=True)
        )
        outputs = []
        for head in range(heads):
            group = head // (heads // self.num_kv_heads)
            query, key = q[head], k[group]
            if itself and self.config.positions == "rotary":
                query, key = self.turn(query), self.turn(key)
            scores = query @ key.T / math.sqrt(width)
            i, j = torch.meshgrid(torch.arange(len(x)), torch.arange(len(memory)), indexing="ij")
            if itself and self.config.positions == "alibi":
                scores = scores - 2 ** (-8 * (head + 1) / heads) * (i - j).abs()
            if causal:
                scores = scores.masked_fill(j > i, -math.inf)
            outputs.append(scores.softmax(dim=-1) @ v[group])
        return self.linear(torch.cat(outputs, dim=-1), f"{name}.out_proj")

    def feed_forward(self, name, x):
        x = self.linear(x, f"{name}.inner")
        if self.config.activation == "swiglu":
            gate, x = x[:, : self.config.d_ff], x[:, self.config.d_ff :]
            x = gate / (1 + torch.exp(-gate)) * x
        elif self.config.activation == "relu":
            x = x.clamp(min=0)
        elif self.config.activation == "gelu":
            x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
        else:
            x = x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        return self.linear(x, f"{name}.outer")

    def add_and_norm(self, x, norm, sublayer):
        if self.config.norm_first:
            return x + sublayer(self.norm(x, norm))
        return self.norm(x + sublayer(x), norm)

    def stack(self, name, x, memory=None, causal=False):
        for i in range(self.config.num_layers):
            layer = f"{name}.layers.{i}"
            x = self.add_and_norm(
                x,
                f"{layer}.attention_norm",
                lambda y, at=f"{layer}.attention": self.attention(at, y, causal=causal or memory is not None),
            )
            if memory is not None:
                x = self.add_and_norm(
                    x,
                    f"{layer}.cross_attention_norm",
                    lambda y, at=f"{layer}.cross_attention": self.attention(at, y, memory),
                )
            x = self.add_and_norm(
                x, f"{layer}.feed_forward_norm", lambda y, at=f"{layer}.feed_forward": self.feed_forward(at, y)
            )
        return self.norm(x, f"{name}.norm") if self.config.norm_first else x

    def embed(self, ids, side=""):
        name = f"{side}embedding.weight"
        weight = self.parameters[name if name in self.parameters else "target_embedding.weight"]
        x = F.embedding(ids, weight, self.config.pad_id) * (math.sqrt(self.config.d_model) if side else 1)
        if self.config.positions == "sinusoidal":
            x = x + sinusoidal_encoding(len(ids), self.config.d_model).double()
        if self.config.positions == "learned":
            x = x + self.parameters[f"{side}positions.table"][: len(ids)]
        return x

    def classify(self, input_ids):
        rows = (row[row != self.config.pad_id] for row in input_ids)
        means = [self.stack("encoder", self.embed(row)).mean(dim=0) for row in rows]
        return self.linear(torch.stack(means), "output")[:, 0]

    def translate(self, source_ids, target_ids):
        rows = []
        for source, target in zip(source_ids, target_ids, strict=True):
            memory = self.stack("transformer.encoder", self.embed(source[source != self.config.pad_id], "source_"))
            rows.append(self.stack("transformer.decoder", self.embed(target, "target_"), memory))
        output = "target_embedding" if self.config.tie_output else "output"
        return self.linear(torch.stack(rows), output)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "rotary"},
        {"positions": "rotary", "norm_first": True, "num_heads": 4},
        {"positions": "alibi"},
        {"positions": "alibi", "norm_first": True, "num_heads": 4, "pad_id": 3},
        {"activation": "gelu_new"},
        {"activation": "swiglu"},
        {"positions": "learned", "activation": "relu"},
    ],
    ids=str,
)
def test_logits_and_gradients_equal_a_classifier_written_out(changes):
    model = make_model(**changes)
    ids = make_ids([5, 2, 7, 1, 2, 9], [10, 5], [4, 4, 4, 6], pad_id=model.config.pad_id)
    actual, expected = model(ids), ByHand(model).classify(ids)
    close(actual, expected)
    close(gradients(actual, [*model.parameters()]), gradients(expected, [*model.parameters()]))


texts = st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=5)


@property_test
@given(
    text=texts,
    amount=st.integers(0, 4),
    positions=st.sampled_from(POSITIONS),
    norm_first=st.sampled_from([False, True]),
)
def test_no_amount_of_padding_changes_a_logit(text, amount, positions, norm_first):
    model = make_model(positions=positions, norm_first=norm_first)
    close(model(torch.tensor([text + [PAD] * amount])), model(torch.tensor([text])))


@property_test
@given(
    text=texts,
    amount=st.integers(1, 4),
    positions=st.sampled_from(POSITIONS),
    norm_first=st.sampled_from([False, True]),
)
def test_a_text_further_back_has_the_same_logit_where_only_distances_count(text, amount, positions, norm_first):
    model = make_model(positions=positions, norm_first=norm_first)
    moved, still = model(torch.tensor([[PAD] * amount + text])), model(torch.tensor([text]))
    if positions in ("rotary", "alibi", "none"):
        close(moved, still)
    else:
        assert not torch.allclose(moved, still)


@property_test
@given(batch=st.lists(texts, min_size=2, max_size=4), positions=st.sampled_from(POSITIONS))
def test_a_text_is_classified_alone(batch, positions):
    model = make_model(positions=positions)
    together = model(make_ids(*batch))
    for text, logit in zip(batch, together, strict=True):
        close(model(torch.tensor([text])), logit[None])


@property_test
@given(text=st.permutations([1, 2, 3, 4, 5]))
def test_without_positions_the_order_of_the_words_does_not_matter(text):
    model = make_model(positions="none")
    close(model(torch.tensor([text])), model(torch.tensor([[1, 2, 3, 4, 5]])))


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_with_positions_every_order_of_the_words_has_its_own_logit(positions):
    logits = make_model(positions=positions)(torch.tensor(list(itertools.permutations([1, 2, 3, 4]))))
    assert logits.sort().values.diff().min() > 1e-6


def test_with_alibi_alone_a_text_and_its_mirror_image_have_one_logit_and_the_other_orders_their_own():
    orders = torch.tensor(list(itertools.permutations([1, 2, 3, 4])))
    model = make_model(positions="alibi")
    logits = model(orders)
    close(model(orders.flip(1)), logits)
    assert logits.sort().values[::2].diff().min() > 1e-6


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "alibi"])
def test_every_parameter_of_a_fresh_model_learns(norm_first, positions):
    model = TextClassifier(make_config(norm_first=norm_first, positions=positions))
    ids = make_ids(list(range(1, 10)), [10, 1])
    model(ids).backward(torch.tensor([1.0, -0.5]))
    for name, parameter in model.named_parameters():
        parts = list(parameter.grad.chunk(3)) if "in_proj" in name else [parameter.grad]
        if name.endswith("in_proj.bias") and positions != "rotary":
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


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_fresh_classifiers_embeddings_are_as_large_as_what_is_added_to_them(positions):
    weight = TextClassifier(make_config(vocab_size=2_000, positions=positions)).embedding.weight[1:]
    std = 1.0 if positions == "sinusoidal" else 0.02
    # Five standard deviations of the mean and of the standard deviation of N independent normal numbers.
    assert weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(weight.numel()))
    assert weight.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * weight.numel()))


def make_token_classifier(**changes):
    config = vars(make_config()) | {"num_labels": 5} | changes
    return scatter(TokenClassifier(TokenClassifierConfig(**config)).double())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "learned"},
        {"positions": "rotary", "norm_first": True, "pad_id": 3},
        {"positions": "alibi", "num_heads": 4},
        {"positions": "none", "activation": "relu"},
    ],
    ids=str,
)
def test_logits_and_gradients_equal_a_token_classifier_written_out(changes, causal):
    model = make_token_classifier(causal=causal, **changes)
    written_out = ByHand(model)
    texts = [5, 2, 7, 1, 2, 9], [10, 5], [4, 4, 4, 6]
    for index, text in enumerate(texts):
        row = model(make_ids(*texts, pad_id=model.config.pad_id))[index]
        expected = written_out.linear(
            written_out.stack("encoder", written_out.embed(torch.tensor(text)), causal=causal), "output"
        )
        close(row[: len(text)], expected)
        close(gradients(row[: len(text)], [*model.parameters()]), gradients(expected, [*model.parameters()]))


def test_a_token_classifier_refuses_what_every_classifier_refuses():
    with pytest.raises(ValueError, match="length 10"):
        make_token_classifier()(torch.ones(1, 10, dtype=torch.long))


def test_word_dropout_reaches_a_token_classifier():
    model = make_token_classifier(word_dropout=0.999, positions="none").train()
    ids = torch.full((1, 9), 5)
    torch.manual_seed(0)
    close(model(ids), model.eval()(torch.full((1, 9), model.config.unknown_id)))


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


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_an_odd_width_is_fine_without_sinusoids(positions):
    model = make_model(d_model=7, num_heads=1, positions=positions)
    ids = make_ids([5, 2, 7], [1])
    close(model(ids), TorchClassifier(model)(ids))


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.ones(4).long(), ValueError, "input_ids has shape (4,); expected (batch, length)"),
        (torch.ones(2, 3, 4).long(), ValueError, "input_ids has shape (2, 3, 4); expected (batch, length)"),
        (torch.ones(2, 10).long(), ValueError, "input_ids has length 10; expected at most max_length=9"),
        (torch.ones(2, 3), TypeError, "input_ids has dtype torch.float32; expected torch.int64, token ids"),
        (torch.ones(2, 3) > 0, TypeError, "input_ids has dtype torch.bool; expected torch.int64, token ids"),
        (
            torch.ones(2, 3, dtype=torch.long, device="meta"),
            ValueError,
            "input_ids is on meta; expected cpu, the embedding's",
        ),
    ],
)
@pytest.mark.parametrize("positions", POSITIONS)
def test_input_that_does_not_fit_is_refused(ids, error, message, positions):
    model = make_model(positions=positions)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        model(ids)


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_longest_input_fits_and_ids_may_be_int32(positions):
    model, ids = make_model(positions=positions), torch.randint(1, VOCAB, (2, 9))
    close(model(ids), ByHand(model).classify(ids))
    assert torch.equal(model(ids.int()), model(ids))


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_classifier_makes_everything_on_the_device_of_its_input(positions):
    model, ids = make_model(positions=positions, word_dropout=0.5), make_ids([5, 2, 7], [1])
    torch.manual_seed(1)
    expected = model(ids)
    torch.manual_seed(1)
    with torch.device("meta"):
        actual = model(ids)
    close(actual, expected)


SOURCE = make_ids([5, 2, 7, 1, 2, 9], [10, 5], [4, 4, 4, 6])
TARGET = make_ids([BOS, 5, 12, 3, 1], [BOS, 7], [BOS, 2, 2, 8])


def for_pad_id(ids, pad_id):
    """Exchange the ids 0 and ``pad_id``."""
    return torch.where(ids == PAD, pad_id, torch.where(ids == pad_id, PAD, ids))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_first": True},
        {"activation": "gelu", "num_layers": 1, "num_heads": 4},
        {"positions": "learned"},
        {"positions": "none"},
        {"share_embeddings": True},
        {"tie_output": False},
        {"share_embeddings": True, "tie_output": False, "norm_first": True, "positions": "learned"},
        {"pad_id": 7},
        {"pad_id": 4, "share_embeddings": True, "activation": "gelu", "norm_first": True},
    ],
    ids=str,
)
def test_logits_and_gradients_equal_a_seq2seq_model_made_of_torch_modules(changes, training):
    model = make_seq2seq(**changes).train(training)
    reference = TorchSeq2Seq(model).train(training)
    source, target = (for_pad_id(ids, model.config.pad_id) for ids in (SOURCE, TARGET))

    actual, expected = model(source, target), reference(source, target)

    close(actual, expected)
    names, parameters = zip(*model.named_parameters(), strict=True)
    theirs = [reference.get_parameter(torch_name(name)) for name in names]
    close(gradients(actual, parameters), gradients(expected, theirs))


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "learned", "pad_id": 4},
        {"positions": "rotary"},
        {"positions": "rotary", "norm_first": True, "head_dim": 6, "num_kv_heads": 1},
        {"positions": "alibi"},
        {"positions": "alibi", "norm_first": True, "num_heads": 4, "num_kv_heads": 2},
        {"norm": "rms_norm"},
        {"norm": "rms_norm", "norm_first": True, "tie_output": False},
        {"activation": "gelu_new"},
        {"activation": "swiglu", "share_embeddings": True},
        {"num_kv_heads": 1},
        {"head_dim": 3, "num_heads": 3},
    ],
    ids=str,
)
def test_logits_and_gradients_equal_a_seq2seq_model_written_out(changes):
    model = make_seq2seq(**changes)
    source, target = (for_pad_id(ids, model.config.pad_id) for ids in (SOURCE, TARGET))
    actual, expected = model(source, target), ByHand(model).translate(source, target)
    close(actual, expected)
    parameters = list(model.parameters())
    close(gradients(actual, parameters), gradients(expected, parameters))


def entering(model, *arguments):
    """Run a model and return what entered its encoder and its decoder."""
    entered = []
    stacks = model.transformer.encoder, model.transformer.decoder
    handles = [
        stack.register_forward_pre_hook(lambda module, arguments: entered.append(arguments[0])) for stack in stacks
    ]
    model(*arguments)
    for handle in handles:
        handle.remove()
    return entered


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_positions_are_added_to_embeddings_times_the_root_of_the_width(positions):
    model = make_seq2seq(positions=positions)
    with keep_padding():
        entered = entering(model, SOURCE, TARGET)
    for x, ids, side in zip(entered, (SOURCE, TARGET), ("source", "target"), strict=True):
        expected = model.get_parameter(f"{side}_embedding.weight")[ids] * 8**0.5
        if positions == "learned":
            expected = expected + model.get_parameter(f"{side}_positions.table")[: ids.size(1)]
        close(x, expected)


positions_and_orders = st.fixed_dictionaries(
    {"positions": st.sampled_from(POSITIONS), "norm_first": st.booleans(), "num_kv_heads": st.sampled_from([1, 2])}
)


@property_test
@given(changes=positions_and_orders, place=st.integers(0, 4), token=st.integers(1, TARGET_VOCAB - 1))
def test_a_token_changes_no_logit_before_its_own_place_and_every_one_from_there(changes, place, token):
    model = make_seq2seq(**changes, tie_output=False)
    other = TARGET.clone()
    other[:, place] = torch.where(TARGET[:, place] == token, PAD, token)
    before, after = model(SOURCE, TARGET), model(SOURCE, other)
    close(after[:, :place], before[:, :place])
    assert ((after - before)[:, place:].abs().amax(dim=-1) > 1e-6).all()


@property_test
@given(changes=positions_and_orders, source=texts, amount=st.integers(1, 4))
def test_no_amount_of_padding_changes_a_logit_of_the_target(changes, source, amount):
    model, target = make_seq2seq(**changes), TARGET[:1]
    expected = model(torch.tensor([source]), target)
    close(model(torch.tensor([source + [PAD] * amount]), target), expected)
    close(model(torch.tensor([source]), F.pad(target, (0, amount), value=PAD))[:, : target.size(1)], expected)


@property_test
@given(changes=positions_and_orders, sources=st.lists(texts, min_size=2, max_size=4), data=st.data())
def test_a_pair_is_computed_alone(changes, sources, data):
    model = make_seq2seq(**changes)
    targets = [data.draw(texts) for _ in sources]
    together = model(make_ids(*sources), make_ids(*targets))
    for source, target, logits in zip(sources, targets, together, strict=True):
        close(logits[: len(target)], model(torch.tensor([source]), torch.tensor([target]))[0])


def test_a_source_further_back_gives_the_same_logits_where_only_distances_count():
    for positions in POSITIONS:
        model = make_seq2seq(positions=positions)
        moved, still = model(F.pad(SOURCE, (3, 0), value=PAD), TARGET), model(SOURCE, TARGET)
        if positions in ("rotary", "alibi", "none"):
            close(moved, still)
        else:
            assert not torch.allclose(moved, still)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        *({"positions": positions} for positions in POSITIONS),
        {"share_embeddings": True},
        {"tie_output": False},
        {"norm": "rms_norm", "activation": "swiglu", "num_kv_heads": 1},
    ],
    ids=str,
)
def test_every_parameter_of_a_fresh_seq2seq_model_learns(norm_first, changes):
    model = Seq2SeqTransformer(make_seq2seq_config(norm_first=norm_first, max_length=6, **changes))
    source, target = make_ids(list(range(1, 7)), [8, 9, 10, 1]), make_ids([BOS, 5, 12, 3, 1, 4], [BOS, 7, 6])
    gradients = torch.autograd.grad(model.loss(model(source, target), target)[0], [*model.parameters()])
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        parts = [gradient]
        if "in_proj" in name:
            heads = model.config.num_heads, *[model.config.num_kv_heads or 2] * 2
            parts = list(gradient.split([number * 4 for number in heads]))
        if name.endswith("in_proj.bias") and (model.config.positions != "rotary" or "cross" in name):
            del parts[1]  # the same number added to all scores of a query changes no weight
        for part in parts:
            assert part.isfinite().all(), name
            assert part.abs().max() > 1e-8, name


def test_padding_is_learned_as_an_output_only():
    for tie_output in (True, False):
        model = make_seq2seq(tie_output=tie_output)
        model(SOURCE, TARGET).square().sum().backward()
        assert not model.source_embedding.weight.grad[PAD].any()
        assert bool(model.target_embedding.weight.grad[PAD].any()) is tie_output


@property_test
@given(smoothing=st.sampled_from([0.0, 0.1, 0.7]), pad_id=st.sampled_from([0, 5]), data=st.data())
def test_the_loss_is_the_cross_entropy_with_smoothed_labels_of_what_is_no_padding(smoothing, pad_id, data):
    model = make_seq2seq(label_smoothing=smoothing, pad_id=pad_id)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, TARGET_VOCAB - 1), min_size=6, max_size=6))).view(2, 3)
    logits = (3 * torch.randn(2, 3, TARGET_VOCAB, dtype=torch.float64)).requires_grad_()

    loss_sum, count = model.loss(logits, labels)

    expected, slope = 0.0, torch.zeros_like(logits)
    for i, j in itertools.product(range(2), range(3)):
        if labels[i, j] != pad_id:
            smoothed = torch.full((TARGET_VOCAB,), smoothing / TARGET_VOCAB, dtype=torch.float64)
            smoothed[labels[i, j]] += 1 - smoothing
            probabilities = logits[i, j].detach().exp() / logits[i, j].detach().exp().sum()
            expected -= (smoothed * probabilities.log()).sum().item()
            slope[i, j] = probabilities - smoothed
    assert loss_sum.item() == pytest.approx(expected, abs=1e-10)
    assert count.item() == sum(label != pad_id for label in labels.flatten().tolist())
    close(torch.autograd.grad(loss_sum, logits)[0], slope.detach())


def test_without_smoothing_the_loss_is_the_negative_log_probability_of_the_labels():
    model = make_seq2seq(label_smoothing=0.0)
    logits = model(SOURCE, TARGET[:, :-1])
    loss_sum, count = model.loss(logits, TARGET[:, 1:])
    labelled = [(i, j) for i in range(3) for j in range(4) if TARGET[i, j + 1] != PAD]
    expected = -sum(logits[i, j].log_softmax(0)[TARGET[i, j + 1]] for i, j in labelled)
    close(loss_sum, expected)
    assert count.item() == len(labelled) == 8


def test_the_loss_of_padding_alone_is_zero_and_its_gradient_too():
    logits = torch.randn(2, 3, TARGET_VOCAB, dtype=torch.float64, requires_grad=True)
    loss_sum, count = make_seq2seq().loss(logits, torch.zeros(2, 3, dtype=torch.long))
    assert (loss_sum.item(), count.item()) == (0.0, 0)
    assert not torch.autograd.grad(loss_sum, logits)[0].any()


def test_the_loss_takes_int32_labels_as_the_model_takes_int32_ids():
    model = make_seq2seq()
    logits = model(SOURCE.int(), TARGET.int())
    close(logits, model(SOURCE, TARGET))
    close(model.loss(logits, TARGET.int()), model.loss(logits, TARGET))


def test_fresh_embeddings_have_variance_one_after_the_product_with_the_root_of_the_width_and_padding_is_zero():
    config = make_seq2seq_config(source_vocab_size=2_000, target_vocab_size=3_000, d_model=16, pad_id=4)
    model = Seq2SeqTransformer(config)
    assert not torch.equal(model.source_embedding.weight, model.target_embedding.weight[:2_000])
    for weight in (model.source_embedding.weight, model.target_embedding.weight):
        assert weight.any(dim=1).tolist() == [row != 4 for row in range(len(weight))]
        scaled = torch.cat([weight[:4], weight[5:]]) * 4
        # Five standard deviations of the mean and of the standard deviation of N independent normal numbers.
        assert scaled.mean().item() == pytest.approx(0, abs=5 / math.sqrt(scaled.numel()))
        assert scaled.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * scaled.numel()))


def test_source_and_target_have_learned_positions_of_their_own():
    model = Seq2SeqTransformer(make_seq2seq_config(positions="learned", share_embeddings=True))
    assert not torch.equal(model.source_positions.table, model.target_positions.table)


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({}, (SOURCE_VOCAB + TARGET_VOCAB) * 8),
        ({"share_embeddings": True}, TARGET_VOCAB * 8),
        ({"tie_output": False}, (SOURCE_VOCAB + 2 * TARGET_VOCAB) * 8),
        ({"share_embeddings": True, "tie_output": False}, 2 * TARGET_VOCAB * 8),
        ({"positions": "learned"}, (SOURCE_VOCAB + TARGET_VOCAB + 2 * MAX_LENGTH) * 8),
        ({"positions": "rotary"}, (SOURCE_VOCAB + TARGET_VOCAB) * 8),
        ({"norm_first": True}, (SOURCE_VOCAB + TARGET_VOCAB) * 8 + 2 * 16),
    ],
    ids=str,
)
def test_parameters_of_a_seq2seq_model_are_as_many_as_the_formula_says(changes, extra):
    d, f, layers = 8, 12, 2
    attention, feed_forward, norm = 4 * (d * d + d), (d * f + f) + (f * d + d), 2 * d
    expected = layers * (attention + feed_forward + 2 * norm) + layers * (2 * attention + feed_forward + 3 * norm)
    model = Seq2SeqTransformer(make_seq2seq_config(**changes))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected + extra


def test_the_config_reaches_every_layer_of_both_stacks():
    model = Seq2SeqTransformer(make_seq2seq_config(dropout=0.3, attention_dropout=0.2))
    assert model.dropout.p == 0.3
    for stack in (model.transformer.encoder, model.transformer.decoder):
        assert len(stack.layers) == 2
        for layer in stack.layers:
            assert (layer.dropout.p, layer.feed_forward.dropout.p, layer.attention.dropout) == (0.3, 0.3, 0.2)
    for layer in model.transformer.decoder.layers:
        assert layer.cross_attention.dropout == 0.2


@pytest.mark.parametrize("field", ["dropout", "attention_dropout"])
def test_dropout_of_a_seq2seq_model_acts_in_training_only(field):
    model = make_seq2seq(**{field: 0.4})
    source, target = torch.tensor([[5, 2, 7, 3]]).expand(20, -1), torch.tensor([[BOS, 9, 4]]).expand(20, -1)
    assert model(source, target)[:, -1, 0].unique().numel() > 10
    torch.manual_seed(1)
    first, second = model(source, target), model(source, target)
    torch.manual_seed(1)
    assert torch.equal(model(source, target), first)
    assert not torch.equal(second, first)
    model.eval()
    close(model(source, target), ByHand(model).translate(source, target))
    assert torch.equal(model(source, target), model(source, target))


def test_dropout_zeroes_elements_of_embeddings_and_positions_on_either_side():
    model = make_seq2seq(dropout=0.4, positions="learned")
    source, target = torch.randint(1, SOURCE_VOCAB, (100, 9)), torch.randint(1, TARGET_VOCAB, (100, 9))
    dropped = entering(model, source, target)
    for x, whole in zip(dropped, entering(model.eval(), source, target), strict=True):
        kept = x != 0
        close(x[kept], whole[kept] / 0.6)
        # Five standard deviations of the share among N independent elements.
        assert 1 - kept.double().mean().item() == pytest.approx(0.4, abs=5 * math.sqrt(0.24 / kept.numel()))


@pytest.mark.parametrize("tie_output", [True, False])
def test_in_float32_products_of_few_rows_and_dropout_leave_torchs_out(tie_output, monkeypatch):
    monkeypatch.setattr(companion.linear, "FEWEST_WEIGHTS", 0)
    model = Seq2SeqTransformer(make_seq2seq_config(target_vocab_size=14, dropout=0.3, tie_output=tie_output))
    torch.manual_seed(1)
    expected = model(SOURCE, TARGET)  # with gradients the products are torch's
    monkeypatch.delattr(F, "linear")
    monkeypatch.delattr(F, "dropout")
    torch.manual_seed(1)
    with torch.no_grad():
        torch.testing.assert_close(model(SOURCE, TARGET), expected.detach())


@pytest.mark.unhooked
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (make_model, {"positions": "learned"}),
        (make_seq2seq, {}),
        (make_seq2seq, {"positions": "alibi", "num_kv_heads": 1, "norm_first": True}),
        (make_seq2seq, {"positions": "rotary", "tie_output": False, "norm": "rms_norm"}),
    ],
    ids=["classifier", "seq2seq", "seq2seq, alibi", "seq2seq, rotary"],
)
def test_a_model_compiled_whole_computes_the_same(make, changes):
    model = make(num_layers=1, **changes)
    inputs = (SOURCE,) if make is make_model else (SOURCE, TARGET)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    actual, expected, parameters = compiled(*inputs), model(*inputs), list(model.parameters())
    close(actual, expected)
    close(gradients(actual, parameters), gradients(expected, parameters))


def test_a_model_may_be_trained_on_what_it_has_generated():
    model = make_seq2seq()
    ids = model.eval().generate(SOURCE, max_length=5)
    loss, _ = model.train().loss(model(SOURCE, ids[:, :-1]), ids[:, 1:])
    loss.backward()
    ids[0, 0] = BOS
    assert model.target_embedding.weight.grad.norm() > 0


SOURCES = [[5, 2, 7, 1, 2, 9], [10, 5], [4, 4, 4, 6], [1]]


def draw_translator(seed, changes):
    torch.manual_seed(seed)
    model = make_seq2seq(**{"tie_output": False} | changes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0.1 if "bias" in name else 0.3 if "out_proj" in name else 0.4 if "feed" in name else 1)
    return model


@functools.cache
def seed_of_translator(start, changes):
    """Find a model that gives at least three of SOURCES a target of their own, one of which ends and one does not."""
    for seed in itertools.count(start):
        model = draw_translator(seed, dict(changes))
        targets = {tuple(greedy_by_forward(model, row, 8)) for row in SOURCES}
        if len(targets) >= 3 and {target[-1] == model.config.eos_id for target in targets} == {True, False}:
            return seed


def make_translator(seed=0, **changes):
    return draw_translator(seed_of_translator(seed, tuple(changes.items())), changes)


@torch.no_grad()
def greedy_by_forward(model, source, max_length):
    ids, config = [model.config.bos_id], model.config
    while len(ids) < max_length and (len(ids) == 1 or ids[-1] != config.eos_id):
        logits = model(torch.tensor([source]), torch.tensor([ids]))[0, -1]
        ids.append(max(set(range(config.target_vocab_size)) - {config.pad_id}, key=lambda token: logits[token].item()))
    return ids


@torch.no_grad()
def beams_by_forward(model, source, max_length, num_beams, length_penalty):
    def next_log_probs(ids, rows):
        return model(torch.tensor([source]).expand(len(ids), -1), ids)[:, -1].log_softmax(dim=-1)

    start = torch.tensor([[model.config.bos_id]])
    ends = {"max_length": max_length, "eos_id": model.config.eos_id, "pad_id": model.config.pad_id}
    return beam_search(next_log_probs, start, num_beams=num_beams, length_penalty=length_penalty, **ends)[0].tolist()


GENERATORS = [
    *({"positions": positions, "norm_first": norm_first} for positions in POSITIONS for norm_first in (False, True)),
    {"num_kv_heads": 1},
    {"num_kv_heads": 1, "positions": "rotary", "head_dim": 6},
    {"num_heads": 4, "num_kv_heads": 2, "positions": "alibi", "norm": "rms_norm", "activation": "swiglu"},
    {"tie_output": True, "share_embeddings": True},
    {"pad_id": 11, "bos_id": 0, "eos_id": 12, "source_vocab_size": 12},
]
every_generator = pytest.mark.parametrize("changes", GENERATORS, ids=str)


@every_generator
def test_greedy_generation_is_the_argmax_of_forward_token_by_token(changes):
    model = make_translator(**changes)
    source = make_ids(*SOURCES, pad_id=model.config.pad_id)
    expected = [greedy_by_forward(model, row, 8) for row in SOURCES]
    for use_cache in (True, False):
        actual = model.generate(source, max_length=8, use_cache=use_cache)
        assert torch.equal(actual, make_ids(*expected, pad_id=model.config.pad_id))


@every_generator
@pytest.mark.parametrize(("num_beams", "length_penalty"), [(3, 0.0), (5, 2.0)])
def test_generation_with_beams_is_beam_search_over_forward(changes, num_beams, length_penalty):
    model = make_translator(**changes)
    source = make_ids(*SOURCES, pad_id=model.config.pad_id)
    expected = [beams_by_forward(model, row, 8, num_beams, length_penalty) for row in SOURCES]
    for use_cache in (True, False):
        actual = model.generate(
            source, max_length=8, num_beams=num_beams, length_penalty=length_penalty, use_cache=use_cache
        )
        assert torch.equal(actual, make_ids(*expected, pad_id=model.config.pad_id))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("changes", GENERATORS[:11], ids=str)
def test_the_logits_of_each_step_are_those_of_forward(changes, use_cache):
    model, steps = make_translator(**changes), []
    source = make_ids(*SOURCES)
    handle = model.output.register_forward_hook(lambda module, arguments, logits: steps.append(logits))
    ids = model.generate(source, max_length=8, use_cache=use_cache)
    handle.remove()
    close(torch.stack(steps, dim=1), model(source, ids[:, :-1]).detach())


@property_test
@given(
    changes=positions_and_orders,
    sources=st.lists(texts, min_size=2, max_size=4),
    num_beams=st.integers(1, 4),
    amount=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_a_source_is_translated_alone_whatever_its_padding(changes, sources, num_beams, amount, seed):
    model = draw_translator(seed, changes)
    together = model.generate(F.pad(make_ids(*sources), (0, amount)), max_length=8, num_beams=num_beams)
    alone = [model.generate(torch.tensor([source]), max_length=8, num_beams=num_beams)[0] for source in sources]
    assert torch.equal(together, make_ids(*(row.tolist() for row in alone)))


@property_test
@given(num_beams=st.integers(1, 4), use_cache=st.booleans(), max_length=st.integers(2, 8), seed=st.integers(0, 100))
def test_a_target_begins_with_bos_and_after_eos_there_is_padding_alone(num_beams, use_cache, max_length, seed):
    model = draw_translator(seed, {})
    rows = model.generate(
        torch.randint(1, SOURCE_VOCAB, (8, 5)), max_length=max_length, num_beams=num_beams, use_cache=use_cache
    ).tolist()
    ends = [row.index(EOS) if EOS in row else len(row) for row in rows]
    assert len(rows[0]) == max(min(end + 1, max_length) for end in ends)
    for row, end in zip(rows, ends, strict=True):
        assert row[0] == BOS
        assert PAD not in row[:end]
        assert row[end + 1 :] == [PAD] * (len(row) - end - 1)
        assert end < len(row) or len(row) == max_length


def test_generation_is_greedy_and_cached_unless_told_otherwise():
    model, source = make_translator(), make_ids(*SOURCES)
    entered = []
    model.transformer.decoder.register_forward_pre_hook(lambda module, arguments: entered.append(arguments[0].size(1)))
    ids = model.generate(source, max_length=8)
    assert entered == [1] * (ids.size(1) - 1)
    entered.clear()
    assert torch.equal(model.generate(source, max_length=8, use_cache=False), ids)
    assert entered == list(range(1, ids.size(1)))
    assert torch.equal(model.generate(source, max_length=8, num_beams=1, length_penalty=2.0), ids)
    assert not torch.equal(model.generate(source, max_length=8, num_beams=3), ids)


@pytest.mark.parametrize(("sources", "masked"), [([[5, 6, 7], [8, 9, 4]], False), ([[5, 6, 7], [8, 9]], True)])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_mask_of_the_memory_is_made_only_where_there_is_padding(sources, masked, num_beams):
    model, masks = make_translator(), []
    model.transformer.decoder.register_forward_pre_hook(lambda module, arguments: masks.append(arguments[3]))
    model.generate(make_ids(*sources), max_length=4, num_beams=num_beams)
    assert masks
    expected = padding_mask(make_ids(*sources)).repeat_interleave(num_beams, dim=0)
    assert all(torch.equal(mask, expected) if masked else mask is None for mask in masks)


def test_the_length_penalty_is_none_unless_given(monkeypatch):
    given = []

    def search(next_log_probs, start, **settings):
        given.append(settings["length_penalty"])
        return start

    monkeypatch.setattr(companion.models.seq2seq, "beam_search", search)
    model, source = draw_translator(0, {}), make_ids(*SOURCES)
    model.generate(source, max_length=8, num_beams=4)
    model.generate(source, max_length=8, num_beams=4, length_penalty=0.6)
    assert given == [0.0, 0.6]


def test_a_greater_length_penalty_makes_targets_longer():
    source, shorter, longer = make_ids(*SOURCES), 0, 0
    for seed in range(8):
        model = draw_translator(seed, {})
        plain, long = (model.generate(source, max_length=8, num_beams=4, length_penalty=x) for x in (0.0, 3.0))
        grown = (long != PAD).sum(dim=1) - (plain != PAD).sum(dim=1)
        shorter, longer = shorter + (grown < 0).sum().item(), longer + (grown > 0).sum().item()
    assert longer > shorter


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_cache_projects_the_memory_once_and_of_the_target_only_the_new_token(monkeypatch, num_beams):
    model, linear = make_translator(), F.linear
    owners = {model.output.weight.data_ptr(): "output"}
    for layer in model.transformer.decoder.layers:
        owners[layer.attention.in_proj.weight.untyped_storage().data_ptr()] = "self"
        owners[layer.cross_attention.in_proj.weight.untyped_storage().data_ptr()] = "cross"
    products = Counter()

    def count(x, weight, bias=None):
        owner = owners.get(weight.untyped_storage().data_ptr())
        products[owner, tuple(x.shape[:-1])] += 1
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", count)
    rows, layers, memory_length = 4 * num_beams, 2, 8
    source = torch.randint(1, SOURCE_VOCAB, (4, memory_length))
    for use_cache in (True, False):
        products.clear()
        model.generate(source, max_length=8, num_beams=num_beams, use_cache=use_cache)
        steps = products["output", (rows,)]
        assert steps > 2
        expected = Counter({("output", (rows,)): steps})
        for step in range(1, steps + 1):
            length = 1 if use_cache else step
            expected["self", (rows, length)] += layers
            expected["cross", (rows, length)] += layers
        expected["cross", (rows, memory_length)] = 2 * layers * (1 if use_cache else steps)  # keys and values
        assert {key: number for key, number in products.items() if key[0]} == expected


@pytest.mark.parametrize("training", [True, False])
def test_generation_takes_no_gradient_and_leaves_the_mode_as_it_was(training):
    model, outputs = make_translator(dropout=0.5).train(training), []
    model.output.register_forward_hook(lambda module, arguments, logits: outputs.append(logits))
    source = make_ids(*SOURCES)
    first = model.generate(source, max_length=8)
    assert len(outputs) == first.size(1) - 1
    assert not any(logits.requires_grad for logits in outputs)
    assert {module.training for module in model.modules()} == {training}
    others = [model.generate(source, max_length=8) for _ in range(5)]
    assert all(torch.equal(first, other) for other in others) is not training
    assert model(source, TARGET[:1].expand(4, -1)).requires_grad


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_seq2seq_model_makes_everything_on_the_device_of_its_input(positions):
    model, source, target = make_translator(positions=positions), SOURCE, TARGET
    expected, greedy, beams = (
        model(source, target),
        model.generate(source, max_length=8),
        model.generate(source, max_length=8, num_beams=3),
    )
    with torch.device("meta"):
        close(model(source, target), expected)
        assert torch.equal(model.generate(source, max_length=8), greedy)
        assert torch.equal(model.generate(source, max_length=8, num_beams=3), beams)


def test_generation_in_float32_and_from_int32_ids_is_that_of_its_own_forward():
    model, source = make_translator().float(), make_ids(*SOURCES)
    ids = model.generate(source.int(), max_length=8)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, make_ids(*(greedy_by_forward(model, row, 8) for row in SOURCES)))


@pytest.mark.parametrize("num_beams", [1, 2])
def test_an_empty_source_is_translated_and_an_empty_batch_gives_no_target(num_beams):
    model = make_translator()
    empty = torch.empty(2, 0, dtype=torch.long)
    expected = beams_by_forward(model, [PAD], 8, num_beams, 0.0)
    assert model.generate(empty, max_length=8, num_beams=num_beams).tolist() == [expected] * 2
    assert model.generate(torch.empty(0, 4, dtype=torch.long), max_length=8, num_beams=num_beams).tolist() == []


@pytest.mark.parametrize("num_beams", [1, 2])
def test_the_longest_and_the_shortest_target_that_fit(num_beams):
    model, source = make_translator(), torch.randint(1, SOURCE_VOCAB, (6, MAX_LENGTH))
    model.output.weight.data[EOS] = 0
    model.output.weight.data[5] = 0
    longest = model.generate(source, max_length=MAX_LENGTH, num_beams=num_beams)
    shortest = model.generate(source, max_length=2, num_beams=num_beams)
    assert longest.size(1) == MAX_LENGTH
    for row, ids in zip(longest.tolist(), source.tolist(), strict=True):
        assert row == [*beams_by_forward(model, ids, MAX_LENGTH, num_beams, 0.0), *[PAD] * MAX_LENGTH][:MAX_LENGTH]
    assert shortest.tolist() == [beams_by_forward(model, ids, 2, num_beams, 0.0) for ids in source.tolist()]


IDS = torch.ones(2, 3, dtype=torch.long)
META = torch.ones(2, 3, dtype=torch.long, device="meta")


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *(
            (
                lambda model, n=n: model.generate(IDS, max_length=n),
                ValueError,
                f"max_length={n}; choose 2 to 9, the config's max_length",
            )
            for n in (-1, 1, 10)
        ),
        *(
            (
                lambda model, n=n: model.generate(IDS, max_length=5, num_beams=n),
                ValueError,
                f"num_beams={n}; choose 1 or more",
            )
            for n in (-1, 0)
        ),
        *(
            (
                lambda model, x=x, k=k: model.generate(IDS, max_length=5, num_beams=k, length_penalty=x),
                ValueError,
                f"length_penalty={x}; choose 0 or more",
            )
            for x, k in ((-0.1, 1), (-0.1, 2), (math.nan, 2))
        ),
        *(
            (call, error, message.format(name))
            for name, calls in {
                "source_ids": [
                    lambda model, ids: model(ids, IDS),
                    lambda model, ids: model.generate(ids, max_length=5),
                ],
                "target_ids": [lambda model, ids: model(IDS, ids)],
            }.items()
            for function in calls
            for ids, error, message in [
                (IDS.float(), TypeError, "{} has dtype torch.float32; expected torch.int64, token ids"),
                (IDS[0], ValueError, "{} has shape (3,); expected (batch, length)"),
                (IDS[None], ValueError, "{} has shape (1, 2, 3); expected (batch, length)"),
                (IDS.repeat(1, 4), ValueError, "{} has length 12; expected at most max_length=9"),
                (META, ValueError, "{} is on meta; expected cpu, the embedding's"),
            ]
            for call in [lambda model, function=function, ids=ids: function(model, ids)]
        ),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"positions": "rotary", "share_embeddings": True}], ids=str)
def test_what_does_not_fit_a_seq2seq_model_is_refused(call, error, message, changes):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call(make_seq2seq(**changes))


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_longest_source_and_target_fit(positions):
    model = make_seq2seq(positions=positions)
    source, target = torch.randint(1, SOURCE_VOCAB, (2, MAX_LENGTH)), torch.randint(1, TARGET_VOCAB, (2, MAX_LENGTH))
    close(model(source, target), ByHand(model).translate(source, target))


def test_the_hook_checks_the_shapes_of_a_models_inputs_in_the_other_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="source_ids"):
        make_seq2seq()(SOURCE[0], TARGET)
    with pytest.raises(jaxtyping.TypeCheckError, match="target_ids"):
        make_seq2seq()(SOURCE, TARGET[:2])


CLS, SEP = 2, 3


def make_span_extractor(**changes):
    return scatter(SpanExtractor(SpanConfig(**vars(make_config()) | {"separator_id": SEP} | changes)).double())


def ask(question, text, padding=0, pad_id=PAD):
    return torch.tensor([[CLS, *question, SEP, *text, *[pad_id] * padding]])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "learned"},
        {"positions": "rotary", "norm_first": True, "pad_id": 4},
        {"positions": "alibi"},
        {"separator_id": 5},
    ],
    ids=str,
)
def test_span_logits_and_gradients_equal_an_extractor_written_out(changes, training):
    model = make_span_extractor(**changes).train(training)
    written_out, separator = ByHand(model), model.config.separator_id
    ids = [CLS, 7, 8, separator, 9, 10, 6]
    padded = torch.tensor([[*ids, *[model.config.pad_id] * 2], [CLS, separator, *[9] * 7]])
    expected = written_out.linear(written_out.stack("encoder", written_out.embed(torch.tensor(ids))), "output")
    places = [0, 4, 5, 6]
    both = model(padded)
    parameters = [*model.parameters()]
    close(gradients(torch.stack(both, dim=-1)[0, places], parameters), gradients(expected[places], parameters))
    for which, logits in enumerate(both):
        close(logits[0, places], expected[places, which])
        assert logits[0, [1, 2, 3, 7, 8]].eq(-math.inf).all()
        assert logits[1].isfinite().tolist() == [True, False, *[True] * 7]


def test_a_second_separator_in_the_text_holds_no_answer():
    start, end = make_span_extractor()(ask([7], [8, SEP, 9]))
    assert start.isfinite().tolist() == end.isfinite().tolist() == [[True, False, False, True, False, True]]


@given(st.lists(st.integers(4, VOCAB - 1), max_size=2), st.lists(st.integers(4, VOCAB - 1), min_size=1, max_size=3))
@property_test
def test_extraction_takes_the_best_pair_of_ends_whatever_the_padding(question, text):
    model = make_span_extractor().eval()
    start, end = (logits[0].tolist() for logits in model(ask(question, text)))
    first, length = len(question) + 2, len(question) + 2 + len(text)
    pairs = [(0, 0)] + [(i, j) for i in range(first, length) for j in range(i, length)]
    expected = max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])
    assert model.extract(ask(question, text, padding=2)).tolist() == [list(expected)]
    short = max((pair for pair in pairs if pair[1] == pair[0]), key=lambda pair: start[pair[0]] + end[pair[1]])
    assert model.extract(ask(question, text), max_length=1).tolist() == [list(short)]


@pytest.mark.parametrize("positions", POSITIONS)
def test_fresh_embeddings_of_a_span_extractor_have_variance_one_and_that_of_padding_is_zero(positions):
    config = vars(make_config(vocab_size=2_000, positions=positions))
    weight = SpanExtractor(SpanConfig(**config)).embedding.weight.detach()
    assert weight[PAD].eq(0).all()
    assert weight[PAD + 1 :].std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * weight.numel()))


def test_extraction_takes_no_gradient():
    assert not make_span_extractor().extract(ask([7], [8])).requires_grad


def test_an_input_without_a_separator_is_refused():
    with pytest.raises(ValueError, match="row 1 of input_ids has no separator, id 3"):
        make_span_extractor()(torch.tensor([[CLS, 7, SEP, 8], [CLS, 7, 8, 9]]))
    with pytest.raises(ValueError, match="length 10"):
        make_span_extractor()(torch.full((1, 10), SEP))
