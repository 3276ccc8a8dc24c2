"""The comparison, on the toy reviews: every row's record against predictions of the run that it left."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from companion import comparison, toy
from companion.article import ArticleClassifier, ArticleConfig
from companion.baselines import NBSVM, run_baseline
from companion.comparison import (
    BASE,
    BEST,
    ROWS,
    BaselineRow,
    EnsembleRow,
    Row,
    Splits,
    collect_outputs,
    run_row,
    run_rows,
)
from companion.configs import ClassifierConfig
from companion.corpus import TokenizedCorpus
from companion.imdb import Review
from companion.losses import classification_loss
from companion.models import TextClassifier
from companion.ngrams import NGramClassifier, NGramConfig
from companion.optimization import TrainingConfig
from companion.prediction import evaluation_batches, load_run
from companion.records import TrainingRecord
from companion.text import Vocabulary, WordTokenizer
from companion.training import evaluate
from tests.imdb_files import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

REVIEWS = toy.reviews(1_200)
TRAINING = TrainingConfig(epochs=2, learning_rate=3e-3)
SHAPES = {
    TextClassifier: ClassifierConfig(d_model=16, d_ff=32, max_length=16),
    ArticleClassifier: ArticleConfig(d_model=16, head_dim=8, max_length=16, mask=True),
    NGramClassifier: NGramConfig(d_model=16, d_ff=32, max_length=16),
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
    predictor = load_run(tmp_path / "run")
    assert predictor.vocabulary == Vocabulary.build(WordTokenizer()(text)[:16] for text, _ in splits.training)
    test = evaluate(predictor.model, evaluation_batches(predictor, splits.test_tokens), loss_fn=classification_loss)
    assert record.test == pytest.approx(test, abs=2e-6)  # both are rounded to six digits
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
    expected = run_baseline(
        NBSVM(max_n=2), splits.training, splits.dev, splits.test, outputs=tmp_path / "expected.safetensors"
    )
    assert (record.dev, record.test) == (expected.dev, expected.test)
    outputs, wanted = load_file(tmp_path / "run" / "outputs.safetensors"), load_file(tmp_path / "expected.safetensors")
    assert {split: values.tolist() for split, values in outputs.items()} == {
        split: values.tolist() for split, values in wanted.items()
    }


def test_an_ensemble_is_the_mean_of_its_members_in_standard_units(splits, tmp_path):
    quick = TrainingConfig(epochs=1)
    network = Row(name="network", model=SHAPES[TextClassifier], training=quick, max_tokens=1_024, seeds=2)
    linear = BaselineRow(name="linear", baseline=NBSVM(max_n=1))
    row = EnsembleRow(name="both", members=(network, linear), seeds=2)
    for member, seed in ((network, 1), (linear, 0)):
        trained = run_row(member, splits, tmp_path / f"{member.name}-{seed}", seed=seed, corpus="toy")
        dataclasses.replace(trained, wall_seconds=2.5 + seed).save(tmp_path / f"{member.name}-{seed}" / "record.json")
    record = run_row(row, splits, tmp_path / "both-1", seed=1, corpus="toy", command="make results")
    members = [TrainingRecord.load(tmp_path / name / "record.json") for name in ("network-1", "linear-0")]
    assert [member.seed for member in members] == [1, 0]
    assert (record.command, record.seed) == ("make results", 1)
    assert record.config == {
        "model": {"kind": "Ensemble", "members": ["network-1", "linear-0"]},
        "training": {},
        "data": {"corpus": "toy", "share": 1.0},
    }
    assert record.parameters == members[0].parameters + members[1].parameters
    assert record.wall_seconds == 6.0
    assert {"torch", "scikit-learn"} <= record.versions.keys()

    texts = {"dev": splits.dev, "test": splits.test}
    model = NBSVM(max_n=1).fit([WordTokenizer()(text) for text, _ in splits.training], splits.training_tokens.labels)
    for split, reviews in texts.items():
        said = []
        for wanted in ("dev", split):
            words = [text for text, _ in texts[wanted]]
            said.append(load_run(tmp_path / "network-1").logits(words).double())
            said.append(torch.from_numpy(model.decision([WordTokenizer()(text) for text in words])))
        expected = (said[2] / said[0].std() + said[3] / said[1].std()) / 2
        outputs = load_file(tmp_path / "both-1" / "outputs.safetensors")[split]
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)
        hits = [(output > 0) == label for output, (_, label) in zip(expected.tolist(), reviews, strict=True)]
        assert getattr(record, split) == {"accuracy": sum(hits) / len(hits)}


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


def test_outputs_of_the_test_split(tmp_path):
    reviews = [Review("It isn't good, no.", 0), Review("never not without charm", 1)]
    (tmp_path / "run").mkdir()
    save_file({"dev": torch.zeros(3), "test": torch.tensor([-1.5, 2.0])}, tmp_path / "run" / "outputs.safetensors")
    outputs = collect_outputs({"model": tmp_path / "run"}, TokenizedCorpus.build(reviews, WordTokenizer()))
    assert {name: values.tolist() for name, values in outputs.items()} == {
        "label": [0, 1],
        "tokens": [8, 4],  # it isn ' t good , no .
        "negations": [2, 3],
        "model": [-1.5, 2.0],
    }


def test_rows_are_what_the_table_says():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    pieces = ("mask", "positions", "residual_norm", "feed_forward")
    ladder = [row.model for row in ROWS if row.name.startswith("article")]
    assert [[getattr(model, piece) for piece in pieces] for model in ladder] == [
        [place < count for place in range(4)] for count in range(5)
    ]
    assert all((model.vocab_size, model.d_model, model.num_heads) == (10_000, 64, 2) for model in (*ladder, BASE))
    assert {row.name: row.seeds for row in ROWS if row.seeds > 1} == {"base": 3, "best": 3, "ensemble": 3}
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
        BaselineRow(name="nbsvm-trigrams", baseline=NBSVM(max_n=3), share=0.1),
    )
    rows = (*rows, EnsembleRow(name="ensemble", members=rows[:2]))
    monkeypatch.setattr(comparison, "ROWS", rows)
    lines = []
    run_rows((), tmp_path / "runs", command="make results", report=lines.append)
    assert [line.partition(":")[0] for line in lines] == [
        "base-0",
        "base-1",
        "best-0",
        "nbsvm-trigrams-0",
        "ensemble-0",
    ]
    record = TrainingRecord.load(tmp_path / "runs" / "nbsvm-trigrams-0" / "record.json")
    assert record.config["training"]["reviews"] == round(0.1 * 1_050)  # a block of 250 is held out
    assert lines[3] == f"nbsvm-trigrams-0: dev {record.dev['accuracy']:.4f}, test {record.test['accuracy']:.4f}"
    records = tmp_path / "runs" / "records"
    names = [
        "baselines-nbsvm-trigrams-0.json",
        "imdb-base-0.json",
        "imdb-base-1.json",
        "imdb-best-0.json",
        "imdb-ensemble-0.json",
    ]
    assert sorted(path.name for path in records.iterdir()) == [*names, "imdb-test.safetensors"]
    ensemble = TrainingRecord.load(records / "imdb-ensemble-0.json")
    assert ensemble.config["model"]["members"] == ["base-0", "best-0"]
    assert TrainingRecord.load(records / "baselines-nbsvm-trigrams-0.json") == record
    outputs, base = load_file(records / "imdb-test.safetensors"), TrainingRecord.load(records / "imdb-base-0.json")
    right = (outputs["base"] > 0) == outputs["label"].bool()
    assert right.double().mean().item() == pytest.approx(base.test["accuracy"], abs=1e-6)
    run_rows(("best",), tmp_path / "again", command="make results", report=lines.append)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["best-0", "records"]
    with pytest.raises(ValueError, match="there is no row 'bets'; choose of base, best, nbsvm-trigrams, ensemble"):
        run_rows(("bets",), tmp_path / "runs", command="make results", report=lines.append)
