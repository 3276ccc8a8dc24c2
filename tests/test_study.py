"""The study of ALBERT's choices, on the toy reviews: every row's record against the two runs that it left."""

import dataclasses
from collections import Counter

import pytest
import torch

from companion import study, toy
from companion.albert import AlbertConfig, num_parameters
from companion.corpus import TokenizedCorpus
from companion.imdb import hold_out
from companion.losses import classification_loss
from companion.optimization import TrainingConfig
from companion.prediction import evaluation_batches, load_run
from companion.pretraining import PreTrainingTask, pretraining_batches, pretraining_loss
from companion.records import TrainingRecord
from companion.runs import RunFolder, load_weights
from companion.study import ROWS, SMALL, TASK, Parts, StudyRow, StudySplits, run_study, run_study_row
from companion.text import SentencePieceTokenizer
from companion.training import evaluate
from tests.imdb_files import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = AlbertConfig(
    vocab_size=90,
    embedding_size=8,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    initializer_range=0.05,
)
ROW = StudyRow(
    name="tiny",
    model=TINY,
    task=dataclasses.replace(TASK, sentence_task="sop"),
    parts=2,
    pretraining=TrainingConfig(epochs=2, learning_rate=3e-3),
    finetuning=TrainingConfig(epochs=2, learning_rate=3e-3),
    max_tokens=512,
    max_length=20,
)

PHASES = ("pretraining", "finetuning")
CHOICES = {"sharing": "sharing", "embedding_size": "embedding", "sentence_task": "task", "max_n": "masking"}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    reviews = toy.reviews(600)
    texts = [review.text for review in reviews[:200]]
    path = tmp_path_factory.mktemp("pieces") / "spiece.model"
    tokenizer = SentencePieceTokenizer.train(texts, vocab_size=90, path=path)
    parts = (reviews[:200], reviews[200:400], reviews[400:500], reviews[500:])
    names = ("texts", "training", "dev", "test")
    corpora = (TokenizedCorpus.build(part, tokenizer) for part in parts)
    return StudySplits(tokenizer=tokenizer, **dict(zip(names, corpora, strict=True)))


@pytest.fixture(scope="module")
def finished(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny-3"
    return folder, run_study_row(ROW, splits, folder, seed=3, command="make results")


def test_the_figures_are_those_of_the_fine_tuned_model(finished, splits):
    folder, record = finished
    predictor = load_run(folder / "finetuning")
    assert record == TrainingRecord.load(folder / "record.json")
    for corpus, metrics in ((splits.dev, record.dev), (splits.test, record.test)):
        measured = evaluate(predictor.model, evaluation_batches(predictor, corpus), loss_fn=classification_loss)
        assert {name: metrics[name] for name in measured} == pytest.approx(measured, abs=2e-6)
    assert predictor.model.config.max_length == 20
    assert (record.command, record.seed) == ("make results", 3)


def test_the_figures_of_pretraining_are_those_of_the_pretrained_model(finished, splits):
    """Masks over single words, the same for every row."""
    folder, record = finished
    run = TrainingRecord.load(folder / "pretraining" / "record.json")
    model = study.AlbertForPreTraining(dataclasses.replace(TINY, vocab_size=len(splits.tokenizer.vocabulary)))
    RunFolder(folder / "pretraining").load_into(model)
    ids = splits.dev.encode(splits.tokenizer.vocabulary)
    measured = {}
    for task in ("sop", "nsp"):
        batches = pretraining_batches(
            ids,
            splits.tokenizer,
            dataclasses.replace(TASK, sentence_task=task),
            max_length=64,
            max_tokens=512,
            shuffle=False,
        )
        measured[task] = evaluate(model, batches, loss_fn=pretraining_loss)
    for name in ("mlm_loss", "mlm_accuracy"):
        assert record.dev[name] == pytest.approx(measured["sop"][name], abs=2e-6)
    for task, figures in measured.items():
        assert record.dev[f"{task}_accuracy"] == pytest.approx(figures["sentence_accuracy"], abs=2e-6)
    assert record.parameters == run.parameters == sum(p.numel() for p in model.parameters())
    assert record.tokens_per_second == run.tokens_per_second


def test_parts_take_turns():
    parts = Parts([["a", "b"], ["c"]])
    seen = []
    for epoch in range(3):
        parts.set_epoch(epoch)
        seen.append((list(parts), len(parts)))
    assert seen == [(["a", "b"], 2), (["c"], 1), (["a", "b"], 2)]


def test_the_history_and_the_settings_are_those_of_both_runs(finished, splits):
    folder, record = finished
    runs = [TrainingRecord.load(folder / phase / "record.json") for phase in PHASES]
    phases = Counter(entry["phase"] for entry in record.history)
    assert phases == {"pretraining": 2, "finetuning": 2}
    assert [entry["seconds"] for entry in record.history] == [e["seconds"] for run in runs for e in run.history]
    assert record.wall_seconds == pytest.approx(sum(run.wall_seconds for run in runs), abs=0.11)
    assert record.config["model"] == runs[0].config["model"]
    assert record.config["training"]["pretraining"]["learning_rate"] == 3e-3
    assert record.config["training"]["finetuning"]["epochs"] == 2
    assert {run.seed for run in runs} == {3}
    ids = splits.texts.encode(splits.tokenizer.vocabulary)
    batches = pretraining_batches(ids, splits.tokenizer, ROW.task, max_length=64, max_tokens=512)
    tokens = [entry["tokens"] for entry in runs[0].history]
    assert sum(tokens) == sum(int((batch.input_ids != 0).sum()) for batch in batches)  # each text once, in two parts
    assert min(tokens) > 0.4 * sum(tokens)
    assert record.config["data"]["task"] == {"sentence_task": "sop", "mask_probability": 0.2, "max_n": 1}


def test_fine_tuning_begins_where_pretraining_ended(splits, tmp_path):
    """At a learning rate of next to nothing it stays there, all but the pooler, which it does without."""
    still = dataclasses.replace(ROW, finetuning=TrainingConfig(epochs=1, learning_rate=1e-12))
    record = run_study_row(still, splits, tmp_path / "still")
    before, after = (load_weights(tmp_path / "still" / phase / "model.safetensors") for phase in PHASES)
    encoder = {name: tensor for name, tensor in after.items() if name.startswith("albert.")}
    assert len(encoder) > 10
    for name, tensor in encoder.items():
        torch.testing.assert_close(tensor, before[name], rtol=0.0, atol=1e-9)
    assert 0.4 < record.test["accuracy"] < 0.6  # of a head that has learnt nothing
    start = -torch.tensor(1 / 90).log()
    assert record.dev["mlm_loss"] < start - 0.3


def test_a_finished_row_is_not_repeated_and_an_unfinished_one_goes_on(splits, finished, tmp_path, monkeypatch):
    folder, record = finished
    calls = []
    original = study.train
    monkeypatch.setattr(study, "train", lambda *a, **k: calls.append(k["output"].name) or original(*a, **k))
    assert run_study_row(ROW, splits, folder, seed=3) == record
    assert calls == []
    (folder / "record.json").unlink()
    again = run_study_row(ROW, splits, folder, seed=3, command="make results")
    assert again == record
    assert calls == list(PHASES)


def test_seeds_give_other_weights(splits, finished, tmp_path):
    other = run_study_row(ROW, splits, tmp_path / "other", seed=4)
    assert other.dev["mlm_loss"] != finished[1].dev["mlm_loss"]
    assert other.seed == 4


def test_each_row_changes_one_choice():
    base, *others = ROWS
    assert (base.model.sharing, base.task) == ("all", TASK)
    for row in others:
        changed = [
            field.name
            for field in dataclasses.fields(StudyRow)
            if field.name != "name" and getattr(row, field.name) != getattr(base, field.name)
        ]
        assert len(changed) == 1, row.name
        (name,) = changed
        before, after = (dataclasses.asdict(getattr(one, name)) for one in (base, row))
        ((entry, value),) = after.items() - before.items()
        assert row.name == f"{CHOICES[entry]}-{value}"
    assert num_parameters(dataclasses.replace(SMALL, sharing="none")) > num_parameters(SMALL)


def test_rows_of_a_folder_of_reviews(tmp_path, monkeypatch):
    """The texts of the dev split and of the test split are in no pre-training, and the records are gathered."""
    files, counts = {}, Counter()
    for split in ("train", "test"):
        for text, label in toy.reviews(1_010 if split == "train" else 200, seed=len(split)):
            counts[split, label] += 1
            files[f"{split}/{('neg', 'pos')[label]}/{counts[split, label]}_{(1, 9)[label]}.txt"] = text
    for number, review in enumerate(toy.reviews(50, seed=9)):
        files[f"train/unsup/{number}_0.txt"] = review.text
    monkeypatch.setenv("COMPANION_DATA", str(write_folder(tmp_path / "aclImdb", files)))
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(study, "ROWS", (ROW, dataclasses.replace(ROW, name="other", task=PreTrainingTask(max_n=3))))
    monkeypatch.setattr(study, "SMALL", TINY)
    monkeypatch.setattr(study, "SEEDS", 2)
    monkeypatch.setattr(study, "TEXTS", 100)
    splits = StudySplits.build(tmp_path / "spiece.model")
    labelled, dev = hold_out(study.load_imdb("train"))
    assert len(splits.texts) == 100
    texts = [" ".join(splits.texts[index]) for index in range(100)]
    allowed = Counter(" ".join(splits.tokenizer(review.text)) for review in [*labelled, *study.load_imdb("unsup")])
    assert not Counter(texts) - allowed
    assert (len(splits.training), len(splits.dev), len(splits.test)) == (len(labelled), len(dev), 200)
    lines = []
    run_study(["other"], tmp_path / "runs", command="make results", report=lines.append)
    assert sorted(path.name for path in (tmp_path / "runs" / "records").iterdir()) == [
        "study-other-0.json",
        "study-other-1.json",
    ]
    record = TrainingRecord.load(tmp_path / "runs" / "records" / "study-other-1.json")
    assert lines[1] == (
        f"other-1: masked words {record.dev['mlm_loss']:.4f} nats, dev {record.dev['accuracy']:.4f}, "
        f"test {record.test['accuracy']:.4f}"
    )


def test_unknown_row(tmp_path):
    with pytest.raises(ValueError, match=r"there is no row 'bse'; choose of base, sharing-attention"):
        run_study(["bse"], tmp_path, command="", report=print)
    assert not list(tmp_path.iterdir())
