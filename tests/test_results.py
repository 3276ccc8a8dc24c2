import dataclasses
import re

import pytest
import torch

import companion.results
from companion import study
from companion.albert import AlbertForPreTraining
from companion.comparison import ROWS, BaselineRow, EnsembleRow, Row
from companion.records import Measurement, TrainingRecord
from companion.results import PUBLISHED_IMDB, load_measurement, load_outputs, load_result, load_results
from companion.runs import save_weights

RECORD = TrainingRecord(
    command="make results",
    config={},
    seed=0,
    commit="0" * 40,
    versions={},
    hardware={},
    wall_seconds=2.0,
    tokens_per_second=100,
    parameters=5,
    history=[],
    dev={"loss": 0.5, "accuracy": 0.75},
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(companion.results, "FOLDER", tmp_path)
    return tmp_path


def test_a_result_is_the_record_of_its_name(folder):
    RECORD.save(folder / "imdb.json")
    assert load_result("imdb") == RECORD


def test_an_unknown_result_is_refused_with_those_there_are(folder):
    for name in ("imdb", "albert"):
        RECORD.save(folder / f"{name}.json")
    with pytest.raises(FileNotFoundError, match=re.escape("no record 'imbd'; there are ['albert', 'imdb']")):
        load_result("imbd")


def test_results_of_a_prefix_come_by_name(folder):
    for name in ("imdb-base-1", "imdb-base-0", "imdb-best-0"):
        dataclasses.replace(RECORD, command=name).save(folder / f"{name}.json")
    assert [(name, record.command) for name, record in load_results("imdb-base-").items()] == [
        ("imdb-base-0", "imdb-base-0"),
        ("imdb-base-1", "imdb-base-1"),
    ]
    with pytest.raises(FileNotFoundError, match="no record 'imdb-bare-'"):
        load_results("imdb-bare-")


def test_outputs_are_tensors_by_name(folder):
    save_weights({"label": torch.tensor([1, 0])}, folder / "imdb-test.safetensors")
    assert load_outputs("imdb-test")["label"].tolist() == [1, 0]
    with pytest.raises(FileNotFoundError, match=re.escape("no record 'imdb-dev'; there are ['imdb-test']")):
        load_outputs("imdb-dev")


def test_published_figures_are_those_of_their_sources():
    table = {(row.system, row.source): row.accuracy for row in PUBLISHED_IMDB}
    assert len(table) == len(PUBLISHED_IMDB)
    wang = {system: accuracy for (system, source), accuracy in table.items() if source == "Wang & Manning, 2012"}
    assert wang == {  # table 2 of the paper, in per cent
        **{f"multinomial naive Bayes, {n}": figure for n, figure in (("unigrams", 0.8355), ("bigrams", 0.8659))},
        **{f"SVM, {n}": figure for n, figure in (("unigrams", 0.8695), ("bigrams", 0.8916))},
        **{f"NB-SVM, {n}": figure for n, figure in (("unigrams", 0.8829), ("bigrams", 0.9122))},
    }
    assert {row.trained_on.partition(",")[0] for row in PUBLISHED_IMDB} == {"labels"}
    assert all(row.url.startswith("https://") for row in PUBLISHED_IMDB)


RESULTS = sorted(path.stem for path in companion.results.FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", [name for name in RESULTS if name.startswith(("imdb", "baselines"))])
def test_every_result_on_imdb_was_measured_on_the_test_split(name):
    record = load_result(name)
    assert record.test is not None
    assert record.dev is not None
    assert 0.5 < record.test["accuracy"] <= 1.0
    epochs = record.config["training"].get("epochs", 0)  # neither a linear model nor an ensemble has any
    assert [entry["epoch"] for entry in record.history] == list(range(1, epochs + 1))
    assert not record.history or record.dev in [entry["dev"] for entry in record.history]


def test_every_row_of_the_comparison_has_a_record_for_each_seed():
    group = {BaselineRow: "baselines", Row: "imdb", EnsembleRow: "imdb"}
    names = {f"{group[type(row)]}-{row.name}-{seed}": row for row in ROWS for seed in range(row.seeds)}
    others = {"imdb", "positions", "albert", "quantization", "speed", "speed-gpu", *HEADLINE, *GPU}
    assert {name for name in RESULTS if not name.startswith("study-")} - others == names.keys()
    for name, row in names.items():
        record = load_result(name)
        assert record.seed == int(name[-1])
        assert record.config["data"]["share"] == row.share
        if isinstance(row, Row):
            shape = dataclasses.asdict(row.model) | {"vocab_size": None, "num_ngrams": None}
            assert {key: record.config["model"][key] for key in shape if shape[key] is not None} == {
                key: value for key, value in shape.items() if value is not None
            }
            training = record.config["training"]
            assert (training["epochs"], training["learning_rate"]) == (row.training.epochs, row.training.learning_rate)


GPU = {"h100-imdb": "fp32", "h100-imdb-wide": "bf16"}


def test_runs_on_a_gpu_learn_what_the_one_on_a_cpu_does():
    accuracy = load_result("imdb").test["accuracy"]
    for name, precision in GPU.items():
        record = load_result(name)
        assert record.hardware["device"] == "NVIDIA H100 80GB HBM3"
        assert record.config["training"]["mixed_precision"] == precision
        assert record.dev in [entry["dev"] for entry in record.history]
        assert record.test["accuracy"] == pytest.approx(accuracy, abs=0.01)
    found, expected = load_result("h100-imdb").config, load_result("imdb").config
    assert found["model"] == expected["model"]
    assert found["data"] == expected["data"]
    assert found["training"] == {**expected["training"], "optimizer": "adamw"}  # recorded since


DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")
STUDY = {f"study-{row.name}-{seed}": (row, seed) for row in study.ROWS for seed in range(study.SEEDS)}


def test_every_row_of_the_study_has_a_record_for_each_seed():
    assert {name for name in RESULTS if name.startswith("study-")} == STUDY.keys()


@pytest.mark.parametrize("name", STUDY)
def test_a_record_of_the_study_is_of_its_row(name):
    row, seed = STUDY[name]
    record = load_result(name)
    vocab_size = record.config["model"]["vocab_size"]
    model = dataclasses.replace(row.model, vocab_size=vocab_size)
    assert vocab_size <= row.model.vocab_size
    assert record.config["model"] == {"kind": "AlbertForPreTraining", **dataclasses.asdict(model)}
    assert record.config["data"]["task"] == dataclasses.asdict(row.task)
    assert record.config["data"]["texts"] == study.TEXTS
    for phase in ("pretraining", "finetuning"):
        training = dataclasses.asdict(dataclasses.replace(getattr(row, phase), seed=seed))
        assert record.config["training"][phase] == training | {"mixed_precision": "bf16"}
        epochs = [entry["epoch"] for entry in record.history if entry["phase"] == phase]
        assert epochs == list(range(1, training["epochs"] + 1))
    assert record.seed == seed
    assert record.test is not None
    with torch.device("meta"):
        assert record.parameters == sum(weights.numel() for weights in AlbertForPreTraining(model).parameters())


def test_the_study_is_of_one_commit_and_one_kind_of_machine():
    records = [load_result(name) for name in STUDY]
    assert len({record.commit for record in records}) == 1
    assert len({str(record.hardware) for record in records}) == 1


HEADLINE = ("albert-imdb", "albert-random", "albert-student", "albert-student-2", "albert-teacher")


def test_the_headline_and_what_it_is_compared_with_differ_in_the_pretraining_alone():
    pretrained, finetuned, random = map(load_result, ("albert", *HEADLINE[:2]))
    assert pretrained.config["data"]["corpus"] == "imdb"
    assert pretrained.test is None
    for record in (finetuned, random):
        shape = pretrained.config["model"].items()
        same = {name for name, value in shape if record.config["model"][name] == value}
        assert same >= pretrained.config["model"].keys() - {"kind", *DROPOUT}
        assert record.seed == pretrained.seed
        assert record.config["data"]["from"] == "runs/albert"
        assert record.test is not None
    settings = [record.config["data"] for record in (finetuned, random)]
    assert [data.pop("start") for data in settings] == ["pretrained", "random"]
    assert settings[0] == settings[1]
    assert finetuned.config["model"] == random.config["model"]
    assert finetuned.config["training"] == random.config["training"]
    assert finetuned.commit == random.commit


def test_the_teacher_is_of_the_run_that_learnt_from_labels_alone_and_the_students_are_its_own():
    teacher = load_result("albert-teacher")
    assert teacher.config["data"] == {"corpus": "imdb", "from": "runs/albert-imdb"}
    assert teacher.config["training"] == {"reviews": 22_500, "unlabelled": 50_000}
    assert load_result("albert-imdb").config["data"].get("teacher") is None
    students = [load_result(name) for name in HEADLINE[2:4]]
    for student, epochs in zip(students, (1, 2), strict=True):
        data = {"from": "runs/albert", "start": "pretrained", "teacher": "runs/albert-teacher"}
        assert data.items() <= student.config["data"].items()
        assert student.config["training"]["epochs"] == epochs
        assert student.test is not None
    assert students[0].config["model"] == students[1].config["model"]


def test_the_quantized_run_is_the_one_on_record():
    floats, integers = load_measurement("quantization").rows
    record = load_result("imdb")
    assert record.test is not None
    assert [row["model"] for row in (floats, integers)] == ["fp32", "int8"]
    assert floats["accuracy"] == pytest.approx(record.test["accuracy"], abs=2e-4)  # trained anew, perhaps elsewhere
    assert floats["loss"] == pytest.approx(record.test["loss"], abs=1e-3)
    assert sum(floats["bytes"].values()) == 4 * record.parameters
    assert integers["bytes"]["embedding"] == floats["bytes"]["embedding"]
    assert floats["bytes"]["linear"] / 4 < integers["bytes"]["linear"] < floats["bytes"]["linear"] / 3
    assert (floats["agreement"], floats["difference"]) == (1.0, 0.0)
    assert 0.99 < integers["agreement"] < 1.0


SPEED = {
    "imports": ("import torch",),
    "classifier": ("torch.nn", "transformers", "x-transformers"),
    "wide": ("torch.nn", "transformers", "x-transformers"),
    "attention": ("fused kernel",),
    "albert": ("transformers",),
    "decoding": ("transformers",),
    "epoch": ("torch.nn", "Keras"),
    "whole epoch": ("torch.nn", "Keras"),
    "compiled": ("torch.nn", "torch.nn, compiled", "companion, compiled"),
}
"""The parts of the record of speed that compare, and those whom each has beside the package at the least."""


def test_the_record_of_speed_says_of_every_row_what_it_was_measured_on():
    record = load_measurement("speed")
    assert record.command == "make bench"
    assert record.hardware["device"] == "cpu"
    assert record.versions.keys() >= {"torch", "transformers", "x-transformers", "curated-transformers", "keras"}
    assert {row["part"] for row in record.rows} - {"book"} == {*SPEED, "memory", "profile"}
    assert all(re.fullmatch(r"[0-9a-f]{40}(-dirty)?", row["commit"]) for row in record.rows)


@pytest.mark.parametrize("part", SPEED)
def test_speeds_were_compared_in_turns_after_the_outputs(part):
    for row in [row for row in load_measurement("speed").rows if row["part"] == part]:
        assert {"work", "amount", "unit", "aim", "threads", "difference"} <= row.keys()
        in_our_batches = part == "epoch" and "in buckets" in row["work"]
        assert {"companion", *(("torch.nn",) if in_our_batches else SPEED[part])} <= row["seconds"].keys()
        assert len({len(seconds) for seconds in row["seconds"].values()}) == 1
        assert min(map(min, row["seconds"].values())) > 0
        assert 0 <= row["difference"] <= (0.1 if row.get("precision") == "bfloat16" else 1e-4)


def test_speeds_are_of_fifteen_rounds_at_the_least():
    rows = [row for row in load_measurement("speed").rows if row["part"] in SPEED and row["part"] != "whole epoch"]
    assert min(len(seconds) for row in rows for seconds in row["seconds"].values()) >= 15


def test_the_record_of_a_gpu_was_made_by_the_same_rules():
    record = load_measurement("speed-gpu")
    assert record.command == "make bench"
    assert record.hardware["device"] != "cpu"
    for row in record.rows:
        assert {"companion", *SPEED[row["part"]]} <= row["seconds"].keys()
        assert all(len(seconds) >= 15 and min(seconds) > 0 for seconds in row["seconds"].values())
        assert 0 <= row["difference"] <= 1e-4
        assert re.fullmatch(r"[0-9a-f]{40}", row["commit"])


def test_the_record_of_speed_has_memory_and_profiles():
    rows = load_measurement("speed").rows
    memory = [row["bytes"] for row in rows if row["part"] == "memory"]
    assert len(memory) == 7
    assert all(min(peaks.values()) > 0 for peaks in memory)
    steps = {(row["part"], row["work"]) for row in rows if "training step" in row["work"]}
    profiles = {(row["of"], row["work"], row["contender"]): row["shares"] for row in rows if row["part"] == "profile"}
    assert profiles.keys() == {
        (part, work, name)
        for part, work in steps
        if part in ("classifier", "wide")
        for name in ("companion", "torch.nn")
    }
    assert all(sum(shares.values()) == pytest.approx(1, abs=0.01) for shares in profiles.values())


MEASUREMENT = Measurement(
    command="make results",
    commit="0" * 40,
    versions={},
    hardware={},
    wall_seconds=2.0,
    rows=[{"task": "reverse", "accuracy": 0.5}],
)


def test_a_measurement_is_the_one_of_its_name(folder):
    MEASUREMENT.save(folder / "positions.json")
    assert load_measurement("positions") == MEASUREMENT


def test_an_unknown_measurement_is_refused_with_those_there_are(folder):
    RECORD.save(folder / "imdb.json")
    with pytest.raises(FileNotFoundError, match=re.escape("there is no record 'position'; there are ['imdb']")):
        load_measurement("position")


def test_each_kind_of_record_is_told_from_the_other(folder):
    RECORD.save(folder / "imdb.json")
    MEASUREMENT.save(folder / "positions.json")
    with pytest.raises(ValueError, match=r"imdb\.json is not a measurement: \["):
        load_measurement("imdb")
    with pytest.raises(ValueError, match=r"positions\.json is not a training record: \["):
        load_result("positions")
