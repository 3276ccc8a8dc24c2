"""ALBERT against Hugging Face's ``transformers``: outputs, losses and the gradient of every parameter.

Ours is Google's code where the two differ: dropout after the feed-forward network, none before the order's classifier.
All weights are drawn wide, those of the norms and all biases too.
"""

import copy
import dataclasses
import itertools
import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion.albert import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForPreTraining,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
    AlbertModel,
    num_parameters,
    save_albert,
)
from companion.albert.checkpoints import hugging_face_tensors
from companion.albert.config import count_parameters
from companion.albert.model import AttentionSublayer

pytestmark = pytest.mark.usefixtures("one_thread")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

CLASSES = (
    AlbertModel,
    AlbertForMaskedLM,
    AlbertForPreTraining,
    AlbertForSequenceClassification,
    AlbertForQuestionAnswering,
)
SHARINGS = ("all", "attention", "ffn", "none")
SMALL = {
    **{"vocab_size": 23, "embedding_size": 6, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"intermediate_size": 12, "max_position_embeddings": 9, "type_vocab_size": 3},
    **{"layer_norm_eps": 0.1, "classifier_dropout_prob": 0.0},
}
IDS = torch.tensor([[2, 5, 9, 3, 5, 17, 3], [2, 22, 4, 1, 3, 0, 0], [2, 8, 3, 0, 0, 0, 0]])
SEEN = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
TYPES = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 2, 2, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
MASKED = torch.tensor([[0, 1, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]).bool()
WHOLE_INPUT = {"attention_mask": SEEN, "token_type_ids": TYPES}
TOLERANCES = {torch.float32: (1e-5, 1e-3), torch.float64: (1e-10, 1e-10)}  # of outputs, of gradients

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
every_class = pytest.mark.parametrize("cls", CLASSES)
property_test = settings(max_examples=15)


def make_config(**changes):
    return AlbertConfig(**SMALL | changes)


def scatter(model):
    """Make every parameter count: no bias at 0, no scale at 1, no padding vector at 0."""
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float(name.endswith("orm.weight")), std=0.5)
    return model


def make_theirs(cls, config):
    entries = dataclasses.asdict(config)
    assert entries.pop("sharing") == "all"
    theirs = transformers.AlbertConfig(**entries, attn_implementation="eager")
    return getattr(transformers, cls.__name__)(theirs)


def by_their_names(model):
    prefix = "albert." if isinstance(model, AlbertModel) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in hugging_face_tensors(model).items()}


def make_pair(cls, dtype=torch.float64, **changes):
    """Make a model of ours and one of theirs, of the same weights."""
    ours = cls(make_config(**changes)).to(dtype)
    theirs = scatter(make_theirs(cls, ours.config)).to(dtype)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            by_their_names(ours)[name].copy_(parameter)
    return ours.eval(), theirs.eval()


def listed(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def project(outputs):
    generator = torch.Generator().manual_seed(1)
    return sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs)


def gradient_of(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def our_gradients(model):
    """Return the gradients of a model of ours under their names: through a twin that has them as parameters."""
    twin = copy.deepcopy(model)
    for copied, parameter in zip(twin.parameters(), model.parameters(), strict=True):
        copied.data = gradient_of(parameter)
    return by_their_names(twin)


def assert_same_gradients(found, expected, tolerance=1e-10):
    """Compare each relative to its norm, and to a bit of all, as that of the keys' bias is 0 but for rounding."""
    assert found.keys() == expected.keys()
    floor = 1e-3 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * (gradient.norm() + floor), name


def assert_same(ours, theirs, outputs, expected):
    """Compare outputs, and the gradients of all parameters by a random projection of the outputs."""
    outputs, expected = listed(outputs), listed(expected)
    tolerance, relative = TOLERANCES[outputs[0].dtype]
    torch.testing.assert_close(outputs, expected, rtol=tolerance, atol=tolerance)
    project(outputs).backward()
    project(expected).backward()
    theirs = {name: gradient_of(parameter) for name, parameter in theirs.named_parameters()}
    assert_same_gradients(our_gradients(ours), theirs, relative)


def groups(theirs):
    albert = theirs if isinstance(theirs, transformers.AlbertModel) else theirs.albert
    return albert.encoder.albert_layer_groups


def first_layer(theirs):
    return groups(theirs)[0].albert_layers[0]


@pytest.mark.parametrize(
    ("dtype", "training", "inputs"),
    [
        (torch.float64, False, {}),
        (torch.float32, False, {"attention_mask": SEEN}),
        (torch.float64, True, {"attention_mask": SEEN.bool(), "token_type_ids": TYPES}),
    ],
    ids=["float64", "float32-padding", "float64-padding-types-training"],
)
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu_new"},
        {"hidden_act": "gelu", "pad_token_id": 1},
        {"hidden_act": "relu", "embedding_size": 8},
        {"num_hidden_groups": 2},
        {"num_hidden_groups": 3, "num_attention_heads": 4},
        {"num_hidden_groups": 2, "inner_group_num": 2, "num_hidden_layers": 2},
        {"num_hidden_groups": 14, "num_hidden_layers": 18},
    ],
    ids=str,
)
@every_class
def test_outputs_and_gradients_are_those_of_transformers(cls, changes, dtype, training, inputs):
    ours, theirs = make_pair(cls, dtype, **changes)
    theirs_inputs = {name: x.long() for name, x in inputs.items()}
    outputs, expected = ours.train(training)(IDS, **inputs), theirs.train(training)(IDS, **theirs_inputs)
    assert_same(ours, theirs, outputs, expected.to_tuple())


@st.composite
def shapes(draw):
    fields = ("num_hidden_layers", "num_attention_heads", "embedding_size", "intermediate_size", "inner_group_num")
    changes = {field: draw(st.integers(1, 6)) for field in (*fields, "hidden_size", "type_vocab_size")}
    changes["hidden_size"] *= changes["num_attention_heads"]
    changes["num_hidden_groups"] = draw(st.integers(1, changes["num_hidden_layers"]))
    return changes | {"max_position_embeddings": draw(st.integers(7, 19)), "vocab_size": draw(st.integers(23, 50))}


@property_test
@given(shapes())
def test_a_model_of_any_shape_computes_what_transformers_does(changes):
    ours, theirs = make_pair(AlbertForPreTraining, **changes)
    inputs = {"attention_mask": SEEN, "token_type_ids": TYPES % changes["type_vocab_size"]}
    assert_same(ours, theirs, ours(IDS, **inputs), theirs(IDS, **inputs).to_tuple())


PARTS = {
    "embeddings": (AlbertModel, lambda m, x: m.embeddings(IDS, TYPES), lambda m, x: m.embeddings(IDS, TYPES)),
    "attention": (
        AlbertModel,
        lambda m, x: m.attentions[0](x, SEEN.bool()[:, None, None]),
        lambda m, x: first_layer(m).attention(x, torch.where(SEEN.bool(), 0.0, -1e9)[:, None, None])[0],
    ),
    "feed-forward network": (
        AlbertModel,
        lambda m, x: m.feed_forwards[0](x),
        lambda m, x: first_layer(m).full_layer_layer_norm(x + first_layer(m).ff_chunk(x)),
    ),
    "map": (AlbertModel, lambda m, x: m.embedding_map(x), lambda m, x: m.encoder.embedding_hidden_mapping_in(x)),
    "pooler": (AlbertModel, lambda m, x: m.pooler(x).tanh(), lambda m, x: m.pooler_activation(m.pooler(x))),
    "predictions": (
        AlbertForMaskedLM,
        lambda m, x: m.predictions(x, m.albert.embeddings.word.weight),
        lambda m, x: m.predictions(x),
    ),
    "order": (AlbertForPreTraining, lambda m, x: m.sop_classifier(x), lambda m, x: m.sop_classifier(x)),
    "labels": (AlbertForSequenceClassification, lambda m, x: m.classifier(x), lambda m, x: m.classifier(x)),
    "span": (AlbertForQuestionAnswering, lambda m, x: m.span(x), lambda m, x: m.qa_outputs(x)),
}


@pytest.mark.parametrize("hidden_act", ["relu", "gelu", "gelu_new"])
@pytest.mark.parametrize(("cls", "our_part", "their_part"), PARTS.values(), ids=PARTS)
def test_each_part_is_that_of_transformers(cls, our_part, their_part, hidden_act):
    ours, theirs = make_pair(cls, hidden_act=hidden_act, embedding_size=8)
    x = torch.randn(*IDS.shape, 8, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    assert_same(ours, theirs, our_part(ours, x), their_part(theirs, y))
    close(x.grad, y.grad)


@pytest.mark.parametrize(
    ("cls", "labels", "weight"),
    [
        (AlbertForMaskedLM, {"labels": IDS.where(MASKED, -100)}, 1),
        (AlbertForPreTraining, {"labels": IDS.where(MASKED, -100), "sentence_order_label": torch.tensor([0, 1, 1])}, 1),
        (AlbertForSequenceClassification, {"labels": torch.tensor([3, 0, 2])}, 1),
        (
            AlbertForQuestionAnswering,
            {"start_positions": torch.tensor([1, 0, 2]), "end_positions": torch.tensor([4, 1, 2])},
            0.5,
        ),
    ],
)
def test_cross_entropies_and_their_gradients_are_the_losses_of_transformers(cls, labels, weight):
    ours, theirs = make_pair(cls, **{"num_labels": 4} if cls is AlbertForSequenceClassification else {})
    pairs = zip(listed(ours(IDS, **WHOLE_INPUT)), labels.values(), strict=True)
    loss = weight * sum(F.cross_entropy(logits.flatten(0, -2), target.flatten()) for logits, target in pairs)
    assert_same(ours, theirs, loss, theirs(IDS, **WHOLE_INPUT, **labels).loss)


@pytest.mark.parametrize(("layers", "num_groups"), [(6, 6), (7, 3)])
@pytest.mark.parametrize("inner", [1, 2])
def test_hidden_states_are_those_of_transformers_and_end_with_the_output(layers, num_groups, inner):
    changes = {"num_hidden_layers": layers, "num_hidden_groups": num_groups, "inner_group_num": inner}
    ours, theirs = make_pair(AlbertModel, **changes)
    found = ours.hidden_states(IDS, **WHOLE_INPUT)
    expected = theirs(IDS, **WHOLE_INPUT, output_hidden_states=True).hidden_states
    assert len(found) == layers + 1
    close(found, list(expected[::inner]))
    assert torch.equal(found[-1], ours(IDS, **WHOLE_INPUT).last_hidden_state)


def test_the_group_of_a_layer_is_reckoned_in_floats():
    differing = []
    for layers, num_groups in itertools.combinations_with_replacement(range(48, 0, -1), 2):
        config = make_config(num_hidden_layers=layers, num_hidden_groups=num_groups)
        found = [config.group(layer) for layer in range(layers)]
        assert found == [int(i / (layers / num_groups)) for i in range(layers)]
        if found != [i * num_groups // layers for i in range(layers)]:
            differing.append((layers, num_groups))
    assert [shape for shape in reversed(differing) if shape[0] < 36] == [(18, 14), (27, 21)]


class Scale(nn.Module):
    """A dropout without chance, which shows in the output where it stands."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@every_class
def test_dropout_stands_where_google_has_it(cls):
    changes = {"hidden_dropout_prob": 0.5, "classifier_dropout_prob": 0.5, "num_hidden_groups": 2}
    ours, theirs = make_pair(cls, **changes)
    our_albert = ours if cls is AlbertModel else ours.albert
    their_albert = theirs if cls is AlbertModel else theirs.albert
    our_albert.embeddings.dropout = their_albert.embeddings.dropout = Scale(2)
    for sublayer in our_albert.attentions:
        sublayer.dropout = Scale(3)
    for sublayer in our_albert.feed_forwards:
        sublayer.dropout = Scale(5)
    for layer in (group.albert_layers[0] for group in groups(theirs)):
        layer.attention.output_dropout = Scale(3)
        layer.ffn_output = nn.Sequential(layer.ffn_output, Scale(5))
    if cls is AlbertForSequenceClassification:
        ours.dropout = theirs.dropout = Scale(7)
    assert [m for m in ours.modules() if isinstance(m, nn.Dropout) and m.p > 0] == []
    found, expected = ours.train()(IDS, **WHOLE_INPUT), theirs(IDS, **WHOLE_INPUT)
    close(listed(found), list(expected.to_tuple()))


def assert_dropped(x, dropped, p):
    """Ask for zeros in a share of about ``p``, five deviations at most away, and for the rest divided by 1 - p."""
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / (1 - p))
    assert abs((~kept).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / kept.numel())


def test_training_draws_a_mask_at_each_dropout_and_evaluation_none():
    config = make_config(hidden_dropout_prob=0.25, classifier_dropout_prob=0.75)
    model = scatter(AlbertForSequenceClassification(config))
    ids, calls = torch.randint(1, 23, (300, 9)), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.register_forward_hook(lambda _, args, y, name=name: calls.setdefault(name, []).append((*args, y)))
    model(ids)
    shares = {"albert.embeddings": 0.25, "albert.attentions.0": 0.25, "albert.feed_forwards.0": 0.25, "": 0.75}
    shares = {f"{place}.dropout".removeprefix("."): p for place, p in shares.items()}
    assert {name: len(pairs) for name, pairs in calls.items()} == dict(zip(shares, (1, 3, 3, 1), strict=True))
    for name, p in shares.items():
        for x, dropped in calls[name]:
            assert_dropped(x, dropped, p)
    first, second, _ = (y == 0 for _, y in calls["albert.attentions.0.dropout"])
    assert not torch.equal(first, second)
    still = AlbertForSequenceClassification(make_config())
    still.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(ids), still(ids))


def test_training_drops_attention_weights_and_evaluation_none():
    sublayer = scatter(AttentionSublayer(make_config(attention_probs_dropout_prob=0.25)))
    x, mixed = torch.randn(500, 1, 8), []
    sublayer.attention.out_proj.register_forward_pre_hook(lambda _, args: mixed.append(args[0]))
    sublayer(x, None)
    sublayer.eval()(x, None)
    values = sublayer.attention.in_proj(x)[..., -8:]  # of one token alone, whose weight is 1
    torch.testing.assert_close(mixed[1], values)
    by_head = [y.unflatten(-1, (2, 4)) for y in (values, mixed[0])]
    dropped = by_head[1] == 0
    assert torch.equal(dropped.any(dim=-1), dropped.all(dim=-1))
    assert_dropped(*(y[..., 0] for y in by_head), 0.25)


@pytest.mark.parametrize("masked", [MASKED, MASKED & False, MASKED | True], ids=["some", "none", "all"])
def test_masked_picks_rows_of_the_logits_with_the_gradients_of_those(masked):
    ours, theirs = make_pair(AlbertForPreTraining)
    expected = theirs(IDS, **WHOLE_INPUT)
    found = ours(IDS, **WHOLE_INPUT, masked=masked)
    assert_same(ours, theirs, found, [expected.prediction_logits[masked], expected.sop_logits])


def test_the_gradient_of_the_tied_embedding_is_the_sum_of_both_uses():
    model = scatter(AlbertForMaskedLM(make_config()).double())
    table = model.albert.embeddings.word.weight
    (together,) = torch.autograd.grad(project([model(IDS)]), table)
    output_table = table.detach().clone().requires_grad_()
    separate = project([model.predictions(model.albert(IDS).last_hidden_state, output_table)])
    first, last = torch.autograd.grad(separate, [table, output_table])
    assert first.norm() > 0.1
    assert last.norm() > 0.1
    close(together, first + last)


@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_what_is_shared_computes_as_copies_do_and_sums_their_gradients(sharing, inner, tmp_path):
    layers, num_groups = 5, 2
    changes = {"num_hidden_layers": layers, "num_hidden_groups": num_groups, "inner_group_num": inner}
    ours = scatter(AlbertForPreTraining(make_config(sharing=sharing, **changes)).double()).eval()
    save_albert(ours, tmp_path)
    copies = transformers.AlbertForPreTraining.from_pretrained(tmp_path, attn_implementation="eager")
    of_theirs = [int(i / (layers / copies.config.num_hidden_groups)) for i in range(layers)]
    copies.albert.encoder.albert_layer_groups = nn.ModuleList(copy.deepcopy(groups(copies)[g]) for g in of_theirs)
    copies.config.num_hidden_groups = layers
    found, expected = ours(IDS, **WHOLE_INPUT), copies(IDS, **WHOLE_INPUT).to_tuple()
    close(listed(found), list(expected))
    project(found).backward()
    project(expected).backward()
    gradients, sums = {name: gradient_of(parameter) for name, parameter in copies.named_parameters()}, {}
    for name in by_their_names(ours):
        group = re.search(r"groups\.(\d+)", name)
        if group is None:
            sums[name] = gradients[name]
            continue
        shared = sharing in ("all", "attention" if ".attention." in name else "ffn")
        sets = [int(i / (layers / num_groups)) if shared else i for i in range(layers)]
        alike = [i for i in range(layers) if sets[i] == sets[of_theirs.index(int(group[1]))]]
        sums[name] = sum(gradients[name.replace(group[0], f"groups.{i}")] for i in alike)
    assert_same_gradients(our_gradients(ours), sums)


def test_as_many_groups_as_layers_share_nothing():
    models = [AlbertModel(make_config(num_hidden_groups=groups, sharing=s)) for groups, s in [(3, "all"), (1, "none")]]
    models[1].load_state_dict(scatter(models[0]).state_dict())
    outputs = [model(IDS, **WHOLE_INPUT) for model in models]
    close(*outputs)
    for output in outputs:
        project(output).backward()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one.grad, other.grad)


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@property_test
@given(shapes(), st.sampled_from(SHARINGS))
def test_parameters_are_counted_as_they_are_built_here_and_in_transformers(changes, sharing):
    config = make_config(**changes, sharing=sharing)
    with torch.device("meta"):
        model = AlbertModel(config)
        num_groups = config.num_hidden_layers if sharing == "none" else config.num_hidden_groups
        theirs = make_theirs(AlbertModel, dataclasses.replace(config, sharing="all", num_hidden_groups=num_groups))
    assert count_parameters(config) == {
        "embeddings": size(model.embeddings),
        "embedding_map": size(model.embedding_map),
        "attention": size(model.attentions),
        "feed_forward": size(model.feed_forwards),
        "pooler": size(model.pooler),
    }
    assert num_parameters(config) == size(model)
    if sharing in ("all", "none"):
        assert num_parameters(config) == size(theirs)


def test_the_released_models_have_their_shapes_and_sizes():
    # layers, H, heads; encoder and pooler of the released weights, with 30,000 tokens of width 128
    expected = {
        AlbertConfig.base: (12, 768, 12, 11_683_584),
        AlbertConfig.large: (24, 1024, 16, 17_683_968),
        AlbertConfig.xlarge: (24, 2048, 16, 58_724_864),
        AlbertConfig.xxlarge: (12, 4096, 64, 222_595_584),
    }
    for make, (layers, hidden, heads, parameters) in expected.items():
        config = make()
        assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (layers, hidden, heads)
        assert (config.intermediate_size, config.embedding_size, config.vocab_size) == (4 * hidden, 128, 30_000)
        assert num_parameters(config) == parameters
        assert num_parameters(make(embedding_size=64)) == parameters - 64 * (30_000 + 512 + 2 + 2 + hidden)
    assert list(count_parameters(AlbertConfig.base()).values()) == [3_906_048, 99_072, 2_363_904, 4_723_968, 590_592]
    assert num_parameters(AlbertConfig.base(embedding_size=768)) == 31_705_344


@pytest.mark.parametrize(
    ("embedding_size", "sharing", "millions"),
    [
        *((64, "none", 87), (128, "none", 89), (256, "none", 93), (768, "none", 108)),  # table 3
        *((64, "all", 10), (128, "all", 12), (256, "all", 16), (768, "all", 31)),
        *((768, "attention", 83), (768, "ffn", 57), (128, "attention", 64), (128, "ffn", 38)),  # table 4, the rest
    ],
)
def test_the_papers_tables_3_and_4_follow_from_the_count(embedding_size, sharing, millions):
    """By one rule: no map where E = H, as in Google's code; the pooler counts where anything is shared."""
    parts = count_parameters(AlbertConfig.base(embedding_size=embedding_size, sharing=sharing))
    left_out = {"embedding_map": embedding_size == 768, "pooler": sharing == "none"}
    assert round(sum(count for part, count in parts.items() if not left_out.get(part)) / 1e6) == millions


@every_class
def test_initial_weights_are_normal_and_cut_at_two_deviations(cls):
    wide = {"vocab_size": 997, "embedding_size": 24, "hidden_size": 48, "intermediate_size": 96, "pad_token_id": 5}
    std = 0.3
    model = cls(make_config(**wide, num_attention_heads=4, sharing="none", initializer_range=std, num_labels=4))
    table = model.get_submodule("embeddings" if cls is AlbertModel else "albert.embeddings").word.weight
    assert not table[5].any()
    assert (table != 0).any(dim=1).sum() == 996
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    cut = std * math.sqrt(1 - 4 * density / math.erf(math.sqrt(2)))  # the deviation of what is left of a normal one
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            drawn = parameter[parameter != 0]
            assert 1.7 * std < drawn.abs().max() <= 2 * std, name
            assert abs(drawn.std() / cut - 1) < 5 / math.sqrt(2 * drawn.numel()), name
            assert abs(drawn.mean()) < 5 * cut / math.sqrt(drawn.numel()), name


def test_what_a_config_leaves_out_is_the_base_model_and_else_as_in_transformers():
    found = dataclasses.asdict(AlbertConfig.xxlarge())
    assert (found.pop("sharing"), found["num_labels"]) == ("all", 2)
    theirs = transformers.AlbertConfig()
    assert found == {field: getattr(theirs, field) for field in found}
    base = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "sharing": "all"}
    assert dataclasses.asdict(AlbertConfig()) == dataclasses.asdict(AlbertConfig.base()) == found | base
    changes = {"vocab_size": 9, "intermediate_size": 32}
    for make in (AlbertConfig.base, AlbertConfig.large, AlbertConfig.xlarge, AlbertConfig.xxlarge):
        assert make(**changes) == dataclasses.replace(make(), **changes)


SIZES = (*list(SMALL)[:8], "num_hidden_groups", "inner_group_num", "num_labels")
ACTIVATIONS = ("relu", "gelu", "gelu_new", "swiglu")


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({field: n}, f"{field}={n}; choose 1 or more") for field in SIZES for n in (0, -1)),
        ({"num_hidden_groups": 4}, "num_hidden_groups=4; choose at most num_hidden_layers=3"),
        ({"num_attention_heads": 3}, "num_attention_heads=3 does not divide hidden_size=8"),
        *(
            ({field: p}, f"{field}={p}; choose 0 <= {field} < 1")
            for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")
            for p in (-0.1, 1.0, math.nan)
        ),
        *(
            ({field: x}, f"{field}={x}; choose more than 0, at most 1")
            for field in ("initializer_range", "layer_norm_eps")
            for x in (0.0, -0.1, 1e308, math.nan)
        ),
        *(
            ({field: n}, f"{field}={n}; choose 0 <= {field} < vocab_size=23")
            for field in ("pad_token_id", "bos_token_id", "eos_token_id")
            for n in (-1, 23)
        ),
        ({"hidden_act": "silu"}, f"hidden_act='silu'; choose one of {ACTIVATIONS}"),
        (
            {"hidden_act": "swiglu"},
            f"hidden_act='swiglu' has no weights in ALBERT's checkpoints; choose one of {ACTIVATIONS[:3]}",
        ),
        ({"sharing": "heads"}, f"sharing='heads'; choose one of {SHARINGS}"),
    ],
    ids=str,
)
def test_a_config_refuses_what_is_out_of_range(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_config(**changes)


META = IDS.to("meta")
INT_OR_BOOL = "expected torch.bool or torch.int64, where tokens stand"


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((IDS.double(),), TypeError, "input_ids has dtype torch.float64; expected torch.int64, token ids"),
        ((IDS[0],), ValueError, "input_ids has shape (7,); expected (batch, length)"),
        ((IDS.repeat(1, 2),), ValueError, "input_ids has length 14; expected at most max_position_embeddings=9"),
        ((META,), ValueError, "input_ids is on meta; expected cpu, the embedding's"),
        ((IDS, SEEN.float()), TypeError, f"attention_mask has dtype torch.float32; {INT_OR_BOOL}"),
        ((IDS, SEEN.cfloat()), TypeError, f"attention_mask has dtype torch.complex64; {INT_OR_BOOL}"),
        ((IDS, SEEN[:2]), ValueError, "attention_mask has shape (2, 7); expected (3, 7), input_ids'"),
        ((IDS, SEEN[:, None]), ValueError, "attention_mask has shape (3, 1, 7); expected (3, 7), input_ids'"),
        ((IDS, META), ValueError, "attention_mask is on meta; expected cpu, the embedding's"),
        ((IDS, None, TYPES.half()), TypeError, "token_type_ids has dtype torch.float16; expected torch.int64"),
        ((IDS, None, TYPES.bool()), TypeError, "token_type_ids has dtype torch.bool; expected torch.int64"),
        ((IDS, None, TYPES[:, :3]), ValueError, "token_type_ids has shape (3, 3); expected (3, 7), input_ids'"),
        ((IDS, SEEN, META), ValueError, "token_type_ids is on meta; expected cpu, the embedding's"),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", [*CLASSES, AlbertModel.hidden_states])
def test_a_model_refuses_inputs_that_do_not_fit(call, inputs, error, message):
    model = (call if isinstance(call, type) else AlbertModel)(make_config())
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        model(*inputs) if isinstance(call, type) else call(model, *inputs)


def test_the_longest_input_fits_and_int32_ids_count_as_int64():
    ours, theirs = make_pair(AlbertForPreTraining)
    ids = torch.randint(0, 23, (2, 9))
    expected = theirs(ids, token_type_ids=ids % 3)
    assert_same(ours, theirs, ours(ids.int(), token_type_ids=ids.int() % 3), expected.to_tuple())


def test_where_nothing_may_be_attended_to_attention_adds_its_bias_alone():
    model = scatter(AlbertModel(make_config()).double())
    sublayer, x = model.attentions[0], torch.randn(*IDS.shape, 8, dtype=torch.float64)
    seen = torch.tensor([1, 0, 1])[:, None] * SEEN
    alone = sublayer.norm(x[1] + sublayer.attention.out_proj.bias)
    close(sublayer(x, seen.bool()[:, None, None])[1], alone)
    output = model(IDS, seen)
    others = model(IDS[::2], seen[::2])
    close([y[::2] for y in output], list(others))
    project(output).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(y.isfinite().all() for y in output)


def test_under_bf16_autocast_a_model_computes_nearly_what_it_does_in_float32():
    model = AlbertForPreTraining(make_config(initializer_range=0.3)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(IDS, **WHOLE_INPUT)
    assert found.prediction_logits.dtype == torch.bfloat16
    for low, high in zip(found, model(IDS, **WHOLE_INPUT), strict=True):
        # 8 bits of mantissa: each of some 15 maps in a row rounds its inputs by up to 2^-9 of their size.
        assert 0 < (low.float() - high).norm() / high.norm() < 15 * 2**-8
