"""The comparison, on the toy reviews: every row's record against predictions of the run that it left."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from companion import comparison, toy
from companion.article import ArticleClassifier, ArticleConfig
from companion.baselines import NBSVM, run_baseline
from companion.comparison import BASE, BEST, ROWS, BaselineRow, Row, Splits, collect_outputs, run_row, run_rows
from companion.configs import ClassifierConfig
from companion.imdb import Review
from companion.models import TextClassifier
from companion.ngrams import NGramClassifier, NGramConfig
from companion.optimization import TrainingConfig
from companion.prediction import load_run
from companion.records import TrainingRecord
from companion.text import WordTokenizer
from tests.imdb_files import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

REVIEWS = toy.reviews(1_200)
TRAINING = TrainingConfig(epochs=2, learning_rate=3e-3)
SHAPES = {
    TextClassifier: ClassifierConfig(d_model=16, d_ff=32, max_length=64),
    ArticleClassifier: ArticleConfig(d_model=16, head_dim=8, max_length=64, mask=True),
    NGramClassifier: NGramConfig(d_model=16, d_ff=32, max_length=64),
}


@pytest.fixture(scope="module")
def splits():
    return Splits.build(REVIEWS[:800], REVIEWS[800:1_000], REVIEWS[1_000:])


def accuracy(folder, reviews):
    said = load_run(folder).predict([review.text for review in reviews])
    return sum((label == "positive") == review.label for (label, _), review in zip(said, reviews, strict=True)) / len(
        said
    )


@pytest.mark.parametrize("kind", SHAPES)
def test_a_record_says_what_the_run_predicts(kind, splits, tmp_path):
    row = Row(name="row", model=SHAPES[kind], training=TRAINING, max_tokens=1_024)
    record = run_row(row, splits, tmp_path / "run", seed=3, corpus="toy", command="make results")
    assert record == TrainingRecord.load(tmp_path / "run" / "record.json")
    assert type(load_run(tmp_path / "run").model) is kind
    assert record.test["accuracy"] == pytest.approx(accuracy(tmp_path / "run", splits.test), abs=1e-6)
    assert record.dev["accuracy"] == pytest.approx(accuracy(tmp_path / "run", splits.dev), abs=1e-6)
    assert record.dev["accuracy"] == max(entry["dev"]["accuracy"] for entry in record.history)
    assert (record.command, record.seed, record.config["model"]["kind"]) == ("make results", 3, kind.__name__)
    assert record.config["data"]["corpus"] == "toy"
    assert record.parameters == sum(p.numel() for p in load_run(tmp_path / "run").model.parameters())


def test_a_finished_row_is_not_repeated(splits, tmp_path):
    row = Row(name="row", model=SHAPES[TextClassifier], training=TrainingConfig(epochs=1), max_tokens=1_024)
    first = run_row(row, splits, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert run_row(row, splits, tmp_path / "run", command="another") == first
    assert weights.stat().st_mtime_ns == before


def test_seeds_give_other_weights(splits, tmp_path):
    row = Row(name="row", model=SHAPES[TextClassifier], training=TrainingConfig(epochs=1), max_tokens=1_024)
    losses = {run_row(row, splits, tmp_path / str(seed), seed=seed).dev["loss"] for seed in range(2)}
    assert len(losses) == 2


def test_a_baseline_row_is_the_baseline(splits, tmp_path):
    record = run_row(BaselineRow(name="row", baseline=NBSVM(max_n=2)), splits, tmp_path / "run")
    expected = run_baseline(NBSVM(max_n=2), splits.training, splits.dev, splits.test)
    assert (record.dev, record.test) == (expected.dev, expected.test)


def test_a_smaller_share_is_part_of_a_larger_one():
    large, small = (Splits.build(REVIEWS, REVIEWS[:10], REVIEWS[:10]).reduce(share).training for share in (0.1, 0.01))
    assert (len(large), len(small)) == (120, 12)
    assert set(small) < set(large) < set(REVIEWS)
    assert {review.label for review in small} == {0, 1}


def test_tokens_are_those_of_the_reviews():
    splits = Splits.build(REVIEWS[:50], REVIEWS[50:70], REVIEWS[70:90]).reduce(0.5)
    tokenize = WordTokenizer()
    for reviews, tokens in (
        (splits.training, splits.training_tokens),
        (splits.dev, splits.dev_tokens),
        (splits.test, splits.test_tokens),
    ):
        assert [tokens[index] for index in range(len(tokens))] == [tokenize(review.text) for review in reviews]


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range(share):
    with pytest.raises(ValueError, match=f"share={share}; choose 0 < share <= 1"):
        Splits.build(REVIEWS, REVIEWS, REVIEWS).reduce(share)


def test_outputs_of_the_test_split(splits, tmp_path):
    row = Row(name="row", model=SHAPES[TextClassifier], training=TrainingConfig(epochs=1), max_tokens=1_024)
    run_row(row, splits, tmp_path / "run")
    reviews = [Review("It isn't good, no.", 0), Review("never not without charm", 1)]
    outputs = collect_outputs({"model": tmp_path / "run"}, reviews)
    assert outputs["label"].tolist() == [0, 1]
    assert outputs["tokens"].tolist() == [8, 4]  # it isn ' t good , no .
    assert outputs["negations"].tolist() == [2, 3]
    said = load_run(tmp_path / "run").predict([review.text for review in reviews])
    positive = torch.tensor([p if label == "positive" else 1 - p for label, p in said])
    torch.testing.assert_close(outputs["model"].sigmoid(), positive, rtol=0, atol=1e-6)


def test_rows_are_what_the_table_says():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    pieces = ("mask", "positions", "residual_norm", "feed_forward")
    ladder = [row.model for row in ROWS if row.name.startswith("article")]
    assert [[getattr(model, piece) for piece in pieces] for model in ladder] == [
        [place < count for place in range(4)] for count in range(5)
    ]
    assert all((model.vocab_size, model.d_model, model.num_heads) == (10_000, 64, 2) for model in (*ladder, BASE))
    assert {row.name: row.seeds for row in ROWS if isinstance(row, Row) and row.seeds > 1} == {"base": 3, "best": 3}
    same = [row for row in ROWS if isinstance(row, Row) and row.name in ("base", "base-fp32", "base-bf16")]
    assert len({(row.model, dataclasses.replace(row.training, mixed_precision="auto")) for row in same}) == 1
    assert isinstance(BEST, NGramConfig)


def test_rows_of_a_folder_of_reviews(tmp_path, monkeypatch):
    files = {
        f"{'train' if number < 1_300 else 'test'}/{'pos' if review.label else 'neg'}/{number}_5.txt": review.text
        for number, review in enumerate(toy.reviews(1_500))
    }
    write_folder(tmp_path / "aclImdb", files)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "aclImdb"))
    quick = TrainingConfig(epochs=1)
    rows = (
        Row(name="base", model=SHAPES[TextClassifier], training=quick, max_tokens=1_024, seeds=2),
        Row(name="best", model=SHAPES[NGramClassifier], training=quick, max_tokens=1_024),
        BaselineRow(name="baseline", baseline=NBSVM(max_n=1), share=0.1),
    )
    monkeypatch.setattr(comparison, "ROWS", rows)
    lines = []
    run_rows((), tmp_path / "runs", command="make results", report=lines.append)
    assert [line.partition(":")[0] for line in lines] == ["base-0", "base-1", "best-0", "baseline-0"]
    record = TrainingRecord.load(tmp_path / "runs" / "baseline-0" / "record.json")
    assert record.config["training"]["reviews"] == round(0.1 * 1_050)  # a block of 250 is held out
    assert lines[3] == f"baseline-0: dev {record.dev['accuracy']:.4f}, test {record.test['accuracy']:.4f}"
    records = tmp_path / "runs" / "records"
    names = ["baselines-baseline-0.json", "imdb-base-0.json", "imdb-base-1.json", "imdb-best-0.json"]
    assert sorted(path.name for path in records.iterdir()) == [*names, "imdb-test.safetensors"]
    assert TrainingRecord.load(records / "baselines-baseline-0.json") == record
    outputs, base = load_file(records / "imdb-test.safetensors"), TrainingRecord.load(records / "imdb-base-0.json")
    right = (outputs["base"] > 0) == outputs["label"].bool()
    assert right.double().mean().item() == pytest.approx(base.test["accuracy"], abs=1e-6)
    run_rows(("best",), tmp_path / "again", command="make results", report=lines.append)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["best-0", "records"]
    with pytest.raises(ValueError, match="there is no row 'bets'; choose of base, best, baseline"):
        run_rows(("bets",), tmp_path / "runs", command="make results", report=lines.append)
