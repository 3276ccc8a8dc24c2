import dataclasses
import re

import pytest
import torch

import companion.results
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
    assert {name for name in RESULTS if name not in ("imdb", "positions")} == names.keys()
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
