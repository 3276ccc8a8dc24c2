import dataclasses
import inspect
import itertools
import re
from typing import get_args

import jaxtyping
import pytest

from companion.configs import ClassifierConfig, Positions, Seq2SeqConfig, SpanConfig, TokenClassifierConfig
from companion.feed_forward import Activation
from companion.layers import Norm

POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "none")
ACTIVATIONS = ("relu", "gelu", "gelu_new", "swiglu")
CLASSIFIER = {"vocab_size": 11, "d_model": 8, "num_heads": 2, "d_ff": 12, "num_layers": 2, "max_length": 9}
SEQ2SEQ = {
    "source_vocab_size": 11,
    "target_vocab_size": 13,
    **{field: CLASSIFIER[field] for field in ("d_model", "num_heads", "d_ff", "num_layers", "max_length")},
}
SMALL = {ClassifierConfig: CLASSIFIER, Seq2SeqConfig: SEQ2SEQ}
SIZES = {
    ClassifierConfig: ("vocab_size", "d_model", "num_heads", "d_ff", "max_length"),
    Seq2SeqConfig: (
        "source_vocab_size",
        "target_vocab_size",
        "d_model",
        "num_heads",
        "d_ff",
        "num_layers",
        "max_length",
    ),
}
PROBABILITIES = {
    ClassifierConfig: ("dropout", "attention_dropout", "embedding_dropout", "word_dropout"),
    Seq2SeqConfig: ("dropout", "attention_dropout", "label_smoothing"),
}
IDS = {
    ClassifierConfig: (("vocab_size", 11, ("pad_id", "unknown_id")),),
    Seq2SeqConfig: (
        ("source_vocab_size", 11, ("pad_id",)),
        ("target_vocab_size", 13, ("bos_id", "eos_id")),
    ),
}
CONFIGS = [ClassifierConfig, Seq2SeqConfig]

every_config = pytest.mark.parametrize("config", CONFIGS)


def make(config, **changes):
    return config(**SMALL[config] | changes)


def test_what_a_seq2seq_config_leaves_out_is_the_base_model_of_the_paper():
    config = Seq2SeqConfig(source_vocab_size=5, target_vocab_size=6)
    # Vaswani et al., 2017: table 3, base; sections 3.1 (post-norm), 3.3 (ReLU), 3.4 (tied output), 3.5 (sinusoids).
    assert (config.num_layers, config.d_model, config.d_ff, config.num_heads) == (6, 512, 2048, 8)
    assert (config.dropout, config.label_smoothing) == (0.1, 0.1)
    assert (config.norm_first, config.norm, config.activation) == (False, "layer_norm", "relu")
    assert (config.positions, config.tie_output) == ("sinusoidal", True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            ClassifierConfig(),
            {
                "vocab_size": 30_000,
                "d_model": 64,
                "num_heads": 2,
                "d_ff": 256,
                "num_layers": 1,
                "max_length": 512,
                "dropout": 0.1,
                "attention_dropout": 0.0,
                "embedding_dropout": 0.1,
                "word_dropout": 0.0,
                "positions": "learned",
                "norm_first": False,
                "activation": "gelu",
                "pad_id": 0,
                "unknown_id": 1,
            },
        ),
        (
            Seq2SeqConfig(source_vocab_size=5, target_vocab_size=6),
            {
                "source_vocab_size": 5,
                "target_vocab_size": 6,
                "d_model": 512,
                "num_heads": 8,
                "d_ff": 2048,
                "num_layers": 6,
                "max_length": 512,
                "dropout": 0.1,
                "attention_dropout": 0.0,
                "label_smoothing": 0.1,
                "positions": "sinusoidal",
                "norm_first": False,
                "norm": "layer_norm",
                "activation": "relu",
                "head_dim": None,
                "num_kv_heads": None,
                "share_embeddings": False,
                "tie_output": True,
                "pad_id": 0,
                "bos_id": 2,
                "eos_id": 3,
            },
        ),
    ],
    ids=["classifier", "seq2seq"],
)
def test_defaults_and_nothing_beside_them(config, expected):
    assert dataclasses.asdict(config) == expected


def test_a_seq2seq_config_asks_for_both_vocabularies():
    with pytest.raises(TypeError, match="source_vocab_size"):
        Seq2SeqConfig(target_vocab_size=5)
    with pytest.raises(TypeError, match="target_vocab_size"):
        Seq2SeqConfig(source_vocab_size=5)


@every_config
def test_every_field_is_kept_as_given_and_documented(config):
    given = {"positions": "alibi", "norm_first": True, "activation": "swiglu", "dropout": 0.5, "pad_id": 4}
    if config is Seq2SeqConfig:
        given |= {"norm": "rms_norm", "head_dim": 5, "num_kv_heads": 1, "tie_output": False, "bos_id": 1, "eos_id": 2}
    made = make(config, **given)
    assert dataclasses.asdict(made) == dataclasses.asdict(make(config)) | given
    for field in dataclasses.fields(config):
        assert re.search(rf"^ +{field.name}: ", inspect.getdoc(config), re.MULTILINE), field.name


@every_config
def test_a_config_is_frozen_and_takes_keywords_only(config):
    with pytest.raises(AttributeError, match="cannot assign to field 'd_model'"):
        make(config).d_model = 4
    with pytest.raises(TypeError, match="positional"):
        config(100, 100)


@every_config
def test_configs_with_the_same_values_are_equal_and_have_one_hash(config):
    assert make(config) == make(config)
    assert hash(make(config)) == hash(make(config))
    assert make(config) != make(config, d_ff=13)


def test_choices_are_those_documented():
    assert get_args(Positions) == POSITIONS
    assert get_args(Activation) == ACTIVATIONS
    assert get_args(Norm) == ("layer_norm", "rms_norm")


@every_config
@pytest.mark.parametrize(
    ("field", "value"), [("positions", "relative"), ("activation", "tanh"), ("d_ff", "12"), ("norm_first", 1)]
)
def test_the_hook_checks_the_types_of_a_config_in_the_other_tests(config, field, value):
    with pytest.raises(jaxtyping.TypeCheckError, match=field):
        make(config, **{field: value})


@every_config
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_choice_is_taken(config, positions, activation):
    made = make(config, positions=positions, activation=activation)
    assert (made.positions, made.activation) == (positions, activation)


ALLOWED = [
    *(
        (config, {field: 1, **({"num_heads": 1, "positions": "none"} if field == "d_model" else {})})
        for config in CONFIGS
        for field in SIZES[config]
        if "vocab" not in field
    ),
    (ClassifierConfig, {"vocab_size": 1, "unknown_id": 0}),
    (Seq2SeqConfig, {"source_vocab_size": 1}),
    (Seq2SeqConfig, {"target_vocab_size": 3, "eos_id": 1}),
    *((config, {field: value}) for config in CONFIGS for field in PROBABILITIES[config] for value in (0.0, 0.999)),
    *(
        (config, {field: value} | ({"pad_id": 5} if field != "pad_id" else {}))
        for config in CONFIGS
        for _, size, fields in IDS[config]
        for field in fields
        for value in (0, size - 1)
    ),
    (ClassifierConfig, {"num_heads": 8}),
    (ClassifierConfig, {"d_model": 7, "num_heads": 1, "positions": "learned"}),
    (ClassifierConfig, {"d_model": 7, "num_heads": 7, "positions": "alibi"}),
    (ClassifierConfig, {"num_heads": 4, "positions": "rotary"}),
    (ClassifierConfig, {"pad_id": 1, "unknown_id": 1}),
    (Seq2SeqConfig, {"num_heads": 3, "head_dim": 1}),
    (Seq2SeqConfig, {"num_heads": 3, "head_dim": 2, "positions": "rotary"}),
    (Seq2SeqConfig, {"d_model": 6, "num_heads": 2, "head_dim": 4, "positions": "rotary"}),
    (Seq2SeqConfig, {"d_model": 7, "num_heads": 7, "positions": "alibi"}),
    (Seq2SeqConfig, {"num_heads": 4, "num_kv_heads": 1}),
    (Seq2SeqConfig, {"num_heads": 4, "num_kv_heads": 2}),
    (Seq2SeqConfig, {"num_heads": 4, "num_kv_heads": 4}),
    (Seq2SeqConfig, {"norm": "rms_norm"}),
    (Seq2SeqConfig, {"source_vocab_size": 13, "share_embeddings": True}),
    (Seq2SeqConfig, {"source_vocab_size": 13, "share_embeddings": True, "tie_output": False}),
]


@pytest.mark.unhooked
@pytest.mark.parametrize(("config", "changes"), ALLOWED)
def test_what_lies_just_inside_its_range_is_taken(config, changes):
    assert dataclasses.asdict(make(config, **changes)).items() >= changes.items()


REFUSED = [
    *(
        (config, {field: value}, f"{field}={value}; choose 1 or more")
        for config in CONFIGS
        for field in SIZES[config]
        for value in (0, -1)
    ),
    *(
        (config, {field: value}, f"{field}={value}; choose 0 <= {field} < 1")
        for config in CONFIGS
        for field in PROBABILITIES[config]
        for value in (-0.001, 1.0, float("nan"))
    ),
    *(
        (config, {field: value}, f"{field}={value}; choose 0 <= {field} < {vocab}={size}")
        for config in CONFIGS
        for vocab, size, fields in IDS[config]
        for field in fields
        for value in (-1, size)
    ),
    (
        Seq2SeqConfig,
        {"source_vocab_size": 15, "pad_id": 13},
        "pad_id=13; choose 0 <= pad_id < target_vocab_size=13",
    ),
    *((config, {"num_heads": 3}, "num_heads=3 does not divide d_model=8") for config in CONFIGS),
    *((config, {"num_heads": 16}, "num_heads=16 does not divide d_model=8") for config in CONFIGS),
    *(
        (config, {"d_model": 7, "num_heads": 1, "positions": "sinusoidal"}, message)
        for config in CONFIGS
        for message in ["d_model=7 is odd; sinusoidal positions need an even one"]
    ),
    *(
        (config, {"d_model": 6, "num_heads": 2, "positions": "rotary"}, message)
        for config in CONFIGS
        for message in ["head_dim=3 is odd; rotary positions need an even one"]
    ),
    (
        Seq2SeqConfig,
        {"head_dim": 5, "positions": "rotary"},
        "head_dim=5 is odd; rotary positions need an even one",
    ),
    (Seq2SeqConfig, {"head_dim": 0}, "head_dim=0; choose 1 or more"),
    (Seq2SeqConfig, {"head_dim": -1}, "head_dim=-1; choose 1 or more"),
    *(
        (
            Seq2SeqConfig,
            {"num_heads": 4, "num_kv_heads": number},
            f"num_kv_heads={number} does not divide num_heads=4",
        )
        for number in (-1, 0, 3, 8)
    ),
    *((config, {"positions": "relative"}, f"positions='relative'; choose one of {POSITIONS}") for config in CONFIGS),
    *((config, {"activation": "tanh"}, f"activation='tanh'; choose one of {ACTIVATIONS}") for config in CONFIGS),
    (Seq2SeqConfig, {"norm": "batch_norm"}, "norm='batch_norm'; choose one of ('layer_norm', 'rms_norm')"),
    *(
        (
            Seq2SeqConfig,
            {first: 5, second: 5},
            "{}; choose three that differ".format(
                ", ".join(
                    f"{name}={5 if name in (first, second) else default}"
                    for name, default in (("pad_id", 0), ("bos_id", 2), ("eos_id", 3))
                )
            ),
        )
        for first, second in (("pad_id", "bos_id"), ("pad_id", "eos_id"), ("bos_id", "eos_id"))
    ),
    (
        Seq2SeqConfig,
        {"share_embeddings": True},
        "share_embeddings=True with source_vocab_size=11 and target_vocab_size=13; "
        "choose equal ones, or share_embeddings=False",
    ),
]


@pytest.mark.unhooked
@pytest.mark.parametrize(("config", "changes", "message"), REFUSED)
def test_a_config_that_cannot_work_is_refused_by_name_and_value(config, changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(config, **changes)


IN_ORDER = [
    *((config, first, second, 0) for config in CONFIGS for first, second in itertools.pairwise(SIZES[config])),
    *(
        (config, first, second, 1.0)
        for config in CONFIGS
        for first, second in itertools.pairwise(PROBABILITIES[config])
    ),
    (ClassifierConfig, "pad_id", "unknown_id", -1),
    *((Seq2SeqConfig, first, second, 13) for first, second in itertools.pairwise(("pad_id", "bos_id", "eos_id"))),
]


@pytest.mark.unhooked
@pytest.mark.parametrize(("config", "first", "second", "value"), IN_ORDER)
def test_of_two_values_that_cannot_work_the_first_is_named(config, first, second, value):
    room = {"source_vocab_size": 20} if value == 13 else {}
    with pytest.raises(ValueError, match=f"^{first}={value}; choose"):
        make(config, **room, **{first: value, second: value})


def test_a_token_classifiers_config_is_a_classifiers_and_two_settings():
    config = TokenClassifierConfig(**CLASSIFIER, num_labels=1)
    assert (config.num_labels, config.causal) == (1, False)
    assert {name: value for name, value in vars(config).items() if name not in ("num_labels", "causal")} == vars(
        ClassifierConfig(**CLASSIFIER)
    )
    with pytest.raises(ValueError, match="num_labels=0; choose 1 or more"):
        TokenClassifierConfig(**CLASSIFIER, num_labels=0)
    with pytest.raises(ValueError, match="num_heads=3 does not divide"):
        TokenClassifierConfig(**CLASSIFIER | {"num_heads": 3}, num_labels=2)


def test_a_classifier_may_have_no_layers():
    assert make(ClassifierConfig, num_layers=0).num_layers == 0
    with pytest.raises(ValueError, match="num_layers=-1; choose 0 or more"):
        make(ClassifierConfig, num_layers=-1)


def test_a_span_config_is_a_classifier_config_with_a_separator():
    config = SpanConfig(**CLASSIFIER, separator_id=2)
    assert config.separator_id == 2
    assert SpanConfig(**CLASSIFIER).separator_id == 3
    with pytest.raises(ValueError, match="num_heads=3 does not divide"):
        SpanConfig(**CLASSIFIER | {"num_heads": 3})


@pytest.mark.parametrize("separator_id", [-1, CLASSIFIER["vocab_size"]])
def test_a_separator_outside_the_vocabulary_is_refused(separator_id):
    with pytest.raises(ValueError, match=rf"separator_id={separator_id}; choose 0 <= separator_id < vocab_size="):
        SpanConfig(**CLASSIFIER, separator_id=separator_id)


@pytest.mark.parametrize("separator_id", [0, 1])
def test_a_separator_that_is_padding_or_the_unknown_token_is_refused(separator_id):
    with pytest.raises(ValueError, match=rf"separator_id={separator_id}; choose another one than pad_id=0 and unknown"):
        SpanConfig(**CLASSIFIER, separator_id=separator_id)
