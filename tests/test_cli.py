import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import companion.cli.corpora
import companion.cli.runs
import companion.corpus
import companion.experiments
from companion import toy
from companion.batching import labelled_batches
from companion.cli import main
from companion.prediction import load_run
from companion.records import Measurement, TrainingRecord
from companion.text import SentencePieceTokenizer, Vocabulary, hold_out, load_imdb
from tests.terminal import in_terminal

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    *("--model.d-model", "8", "--model.d-ff", "8", "--model.num-layers", "1", "--model.max-length", "16"),
    *("--training.epochs", "2", "--training.learning-rate", "0.01"),
]
DEV_WORD = "kaleidoscopic"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Write 1,250 toy reviews as an IMDB archive; one word stands in its dev split alone, reviews 1,000 to 1,249."""
    path = tmp_path_factory.mktemp("data") / "aclImdb_v1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for split, seed in (("train", 1), ("test", 2)):
            reviews = toy.reviews(1_250, seed=seed)
            numbers = {0: iter(range(1_250)), 1: iter(range(1_250))}
            for text, label in reviews:
                number = next(numbers[label])
                text += f" {DEV_WORD}" if split == "train" and number >= 500 else ""
                member = tarfile.TarInfo(f"aclImdb/{split}/{('neg', 'pos')[label]}/{number}_{1 + 8 * label}.txt")
                member.size = len(text.encode())
                tar.addfile(member, BytesIO(text.encode()))
    return path


@pytest.fixture
def imdb(archive, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(archive))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("COMPANION_CACHE", str(folder))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train_small(corpus: str, folder: Path, *options: str) -> int:
    return main(["train", corpus, "--output", str(folder), *SMALL, *options])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train on the grammar's reviews, and return the folder."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    assert train_small("toy", folder) == 0
    return folder


def assert_refused(capsys, code: int, *named: str) -> None:
    """The command ended with exit code 2 and at most two lines on stderr, which name the input and the mend."""
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert 1 <= len(captured.err.splitlines()) <= 2
    assert captured.err.startswith("error: ")
    for words in named:
        assert words in captured.err


def test_training_leaves_a_whole_run_folder_and_prints_its_figures(tmp_path, capsys):
    folder = tmp_path / "runs" / "toy"
    assert train_small("toy", folder) == 0
    record = TrainingRecord.load(folder / "record.json")
    assert capsys.readouterr().out == (
        f"{folder}: dev loss {record.dev['loss']:.4f} accuracy {record.dev['accuracy']:.4f}, "
        f"test loss {record.test['loss']:.4f} accuracy {record.test['accuracy']:.4f}\n"
    )
    assert {name.split("/")[0] for name in files_of(folder)} == {
        *("config.json", "model.safetensors", "vocabulary.txt", "record.json", "checkpoints")
    }
    assert record.config == json.loads((folder / "config.json").read_text())
    assert record.config["data"] == {"corpus": "toy", "max_tokens": 1_024, "tokenizer": "words", "vectors": None}
    assert record.config["model"]["d_model"] == 8
    assert record.config["model"]["vocab_size"] == len((folder / "vocabulary.txt").read_text().splitlines())
    assert record.command.startswith("python -m companion ")


def test_test_figures_are_those_of_the_kept_weights_on_the_held_out_reviews(run, capsys):
    predictor = load_run(run)
    reviews = toy.reviews(7_000, seed=0)[-1_000:]
    found = predictor.predict([review.text for review in reviews])
    labels = [int(prediction.label == "positive") for prediction in found]
    right = sum(label == review.label for label, review in zip(labels, reviews, strict=True))
    record = TrainingRecord.load(run / "record.json")
    assert record.test["accuracy"] == pytest.approx(right / 1_000, abs=1e-6)
    assert main(["evaluate", str(run)]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(record.test, abs=1e-6)


def test_imdb_is_trained_without_its_dev_and_test_splits(tmp_path, imdb, monkeypatch):
    asked = []

    def tokenize_imdb(split, *, tokenizer):
        asked.append((split, (tmp_path / "run" / "model.safetensors").exists()))
        return companion.corpus.tokenize_imdb(split, tokenizer=tokenizer)

    monkeypatch.setattr(companion.cli.corpora, "tokenize_imdb", tokenize_imdb)
    assert train_small("imdb", tmp_path / "run", "--training.epochs", "1") == 0
    assert asked == [("train", False), ("test", True)]
    words = (tmp_path / "run" / "vocabulary.txt").read_text().splitlines()
    assert "film" in words
    assert DEV_WORD not in words
    record = TrainingRecord.load(tmp_path / "run" / "record.json")
    assert record.config["data"]["corpus"] == "imdb"
    assert len(record.history) == 1


def test_imdb_is_batched_as_without_the_cache(tmp_path, imdb, cache, monkeypatch):
    """What reaches training, against torchtext's tokenizer, a count of lists and ids in lists."""
    from torchtext.data import get_tokenizer

    tokenize = get_tokenizer("basic_english")
    training, dev = hold_out(load_imdb("train"))
    texts = [tokenize(review.text)[:16] for review in training]
    vocabulary = Vocabulary.build(texts, max_size=200)
    expected = [
        labelled_batches([vocabulary.encode(text) for text in texts], [label for _, label in training], max_tokens=640),
        labelled_batches(
            [vocabulary.encode(tokenize(text)[:16]) for text, _ in dev],
            [label for _, label in dev],
            max_tokens=companion.prediction.EVALUATION_TOKENS,
            shuffle=False,
        ),
    ]
    handed_over = []

    def train(model, batches, config, *, eval_batches, **options):
        handed_over.append((batches, eval_batches))
        raise KeyboardInterrupt

    monkeypatch.setattr(companion.cli.runs, "train", train)
    for name in ("made", "from the cache"):
        options = ["--model.vocab-size", "200", "--max-tokens", "640"]
        assert train_small("imdb", tmp_path / name, *options) == 130
        assert Vocabulary.load(tmp_path / name / "vocabulary.txt") == vocabulary
        assert len(list(cache.iterdir())) == 1
    for pair in handed_over:
        for found, loader in zip(pair, expected, strict=True):
            assert len(found) == len(loader)
            for batch, other in zip(found, loader, strict=True):
                assert torch.equal(batch.input_ids, other.input_ids)
                assert torch.equal(batch.labels, other.labels)


@pytest.fixture(scope="module")
def run_of_pieces(tmp_path_factory):
    """Train on pieces of the words of the grammar's reviews, and return the folder."""
    folder = tmp_path_factory.mktemp("runs") / "pieces"
    assert train_small("toy", folder, "--tokenizer", "sentencepiece", "--model.vocab-size", "80") == 0
    return folder


def test_a_run_of_pieces_holds_its_model_in_the_place_of_the_vocabulary(run_of_pieces, tmp_path, capsys):
    assert (run_of_pieces / "spiece.model").exists()
    assert not (run_of_pieces / "vocabulary.txt").exists()
    training, _ = hold_out(toy.reviews(7_000, seed=0)[:-1_000])
    expected = SentencePieceTokenizer.train([text for text, _ in training], 80, tmp_path / "spiece.model")
    assert (run_of_pieces / "spiece.model").read_bytes() == (tmp_path / "spiece.model").read_bytes()
    predictor = load_run(run_of_pieces)
    assert predictor.config["model"]["vocab_size"] == 80
    assert predictor.config["data"]["tokenizer"] == "sentencepiece"
    reviews = toy.reviews(7_000, seed=0)[-1_000:]
    for text, _ in reviews[:50]:
        assert predictor.encode(text) == expected.encode(text)[:16]
    found = [prediction.label == "positive" for prediction in predictor.predict([text for text, _ in reviews])]
    right = sum(positive == review.label for positive, review in zip(found, reviews, strict=True))
    record = TrainingRecord.load(run_of_pieces / "record.json")
    assert record.test["accuracy"] == pytest.approx(right / 1_000, abs=1e-6)
    assert main(["evaluate", str(run_of_pieces)]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(record.test, abs=1e-6)
    assert main(["predict", str(run_of_pieces), "the plot was good ."]) == 0
    assert capsys.readouterr().out.startswith(("positive ", "negative "))


def test_what_a_broken_start_left_does_not_stand_beside_the_vocabulary(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spiece.model").write_bytes(b"of a run that never began")
    assert train_small("toy", tmp_path / "run", "--training.epochs", "1") == 0
    assert not (tmp_path / "run" / "spiece.model").exists()
    load_run(tmp_path / "run")


def test_imdb_can_be_trained_on_pieces(tmp_path, imdb, cache):
    options = ["--tokenizer", "sentencepiece", "--model.vocab-size", "80", "--training.epochs", "1"]
    assert train_small("imdb", tmp_path / "run", *options) == 0
    predictor = load_run(tmp_path / "run")
    assert DEV_WORD not in "".join(predictor.vocabulary.decode(range(80)))
    assert len(list(cache.iterdir())) == 2  # the training and the test split


def test_a_finished_run_of_pieces_is_resumed_and_not_with_words(run_of_pieces, capsys):
    before = files_of(run_of_pieces)
    options = ["--model.vocab-size", "80", "--resume"]
    assert train_small("toy", run_of_pieces, "--tokenizer", "sentencepiece", *options) == 0
    assert files_of(run_of_pieces) == before
    capsys.readouterr()
    assert_refused(capsys, train_small("toy", run_of_pieces, *options), str(run_of_pieces), "another vocabulary")
    options = ["--model.vocab-size", "70", "--resume", "--tokenizer", "sentencepiece"]
    assert_refused(capsys, train_small("toy", run_of_pieces, *options), str(run_of_pieces), "another vocabulary")
    assert files_of(run_of_pieces) == before


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_damaged_model_of_pieces_is_refused_by_the_name_of_the_file(run_of_pieces, tmp_path, capsys, content):
    folder = tmp_path / "copy"
    shutil.copytree(run_of_pieces, folder)
    (folder / "spiece.model").write_bytes(content)
    assert_refused(capsys, main(["predict", str(folder), "good"]), f"{folder / 'spiece.model'} is no SentencePiece")


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("good 1 2 3 4 5 6 7 8\nplot -1 0 0 0 0 0 0 0.5\nunheard 9 9 9 9 9 9 9 9\n")
    return path


def test_the_embedding_begins_with_the_vectors_of_a_file(tmp_path, vectors, monkeypatch):
    begun = {}

    def train(model, batches, config, **options):
        begun["embedding"] = model.embedding.weight.detach().clone()
        return companion.training.train(model, batches, config, **options)

    monkeypatch.setattr(companion.cli.runs, "train", train)
    assert train_small("toy", tmp_path / "run", "--vectors", str(vectors), "--training.epochs", "1") == 0
    predictor = load_run(tmp_path / "run")
    expected = torch.zeros(len(predictor.vocabulary), 8)
    good, plot = predictor.vocabulary.encode(["good", "plot"])
    expected[good] = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
    expected[plot] = torch.tensor([-1, 0, 0, 0, 0, 0, 0, 0.5])
    assert torch.equal(begun["embedding"], expected)
    assert predictor.config["data"]["vectors"] == "vectors.txt"
    assert not torch.equal(predictor.model.embedding.weight.cpu(), expected)  # it is trained on


def test_a_run_is_not_resumed_with_other_vectors(copied, vectors, capsys):
    before = files_of(copied)
    code = train_small("toy", copied, "--resume", "--vectors", str(vectors))
    assert_refused(capsys, code, str(copied), "other settings (data.vectors)")
    assert files_of(copied) == before


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "does not exist; name a text file of word vectors"),
        ("", "holds no word vectors"),
        ("\x00\x01\n" * 9, "holds no word vectors"),
        ("good 1 2 3 4 5 6 7 8\nplot 1 2 3\n", "holds no word vectors"),
        ("good 1 2 3 4 5 6 7\n", "has 7 numbers a token; choose --model.d-model 7"),
        ("unheard 1 2 3 4 5 6 7 8\n", "has a vector for none of the"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_and_leave_nothing_behind(tmp_path, vectors, capsys, content, named):
    vectors.write_text(content) if content is not None else vectors.unlink()
    code = train_small("toy", tmp_path / "run", "--vectors", str(vectors))
    assert_refused(capsys, code, str(vectors), named)
    assert not (tmp_path / "run").exists()


def test_pieces_without_room_for_the_characters_are_refused_and_leave_nothing_behind(tmp_path, capsys):
    options = ["--tokenizer", "sentencepiece", "--model.vocab-size", "9"]
    assert_refused(capsys, train_small("toy", tmp_path / "run", *options), "vocab_size=9 does not do")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_refused_and_leaves_nothing_behind(tmp_path, imdb, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "file"))
    assert_refused(capsys, train_small("imdb", tmp_path / "run"), str(tmp_path / "file"), "COMPANION_CACHE")
    assert not (tmp_path / "run").exists()


def test_same_seed_same_run_and_another_seed_another_one(tmp_path, run):
    assert train_small("toy", tmp_path / "again") == 0
    assert train_small("toy", tmp_path / "other", "--training.seed", "1", "--training.epochs", "1") == 0
    first, again, other = (
        load_file(folder / "model.safetensors") for folder in (run, tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_the_vocabulary_holds_at_most_what_the_config_allows(tmp_path):
    assert train_small("toy", tmp_path / "run", "--model.vocab-size", "20", "--training.epochs", "1") == 0
    assert len((tmp_path / "run" / "vocabulary.txt").read_text().splitlines()) == 20


def test_resuming_a_finished_run_changes_nothing(run, capsys):
    before = files_of(run)
    assert train_small("toy", run, "--resume") == 0
    assert files_of(run) == before
    assert capsys.readouterr().out.startswith(f"{run}: dev loss")


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path, run, monkeypatch, capsys):
    folder, calls = tmp_path / "run", []

    def interrupted(model, batch):
        calls.append(model.training)
        if calls.count(True) == 150:  # in the second epoch of about 100 batches
            raise KeyboardInterrupt
        return companion.losses.classification_loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(companion.cli.runs, "classification_loss", interrupted)
        assert train_small("toy", folder) == 130
    assert capsys.readouterr().err == "interrupted; run it again, with --resume where the command has that\n"
    assert not (folder / "record.json").exists()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["epoch-0001"]
    assert train_small("toy", folder, "--resume") == 0
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    one, other = (TrainingRecord.load(path / "record.json") for path in (folder, run))
    assert (one.dev, one.test) == (other.dev, other.test)


def test_resume_starts_afresh_where_nothing_is_saved(tmp_path, run):
    assert train_small("toy", tmp_path / "run", "--resume") == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_predict_prints_a_line_for_each_text(run, capsys):
    texts = ["the plot was good .", "the plot was bad .", "unheard of"]
    assert main(["predict", str(run), *texts]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = load_run(run).predict(texts)
    assert lines == [f"{label} {probability:.2f}" for label, probability in expected]
    assert all(re.fullmatch(r"(positive|negative) (0\.\d\d|1\.00)", line) for line in lines)


def test_predict_reads_lines_from_standard_input(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", iter(["the plot was good .\n", "a film \u2028 on one line"]))
    assert main(["predict", str(run)]) == 0
    from_stdin = capsys.readouterr().out
    assert main(["predict", str(run), "the plot was good .", "a film \u2028 on one line"]) == 0
    assert capsys.readouterr().out == from_stdin
    assert len(from_stdin.splitlines()) == 2


def test_predict_needs_a_text(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", iter([]))
    assert_refused(capsys, main(["predict", str(run)]), "there is no text to classify; give one")


@pytest.mark.parametrize("text", ["", "\t"])
def test_an_empty_text_is_refused(run, capsys, text):
    assert_refused(capsys, main(["predict", str(run), "good", text]), f"text 2 holds no words: {text!r}")


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_missing_run_is_refused(tmp_path, capsys, command):
    code = main([command, str(tmp_path / "nowhere"), *["good"] * (command == "predict")])
    assert_refused(capsys, code, f"{tmp_path / 'nowhere'} does not exist; name the folder of a trained run")


@pytest.fixture
def copied(run, tmp_path):
    folder = tmp_path / "copy"
    for name, content in files_of(run).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda whole: whole[:-100]),
        ("model.safetensors", lambda whole: b"not weights"),
        ("config.json", lambda whole: whole[:-10]),
        ("config.json", lambda whole: b'{"model": {"d_model": 16}}'),
        ("vocabulary.txt", lambda whole: whole[:-40]),
        ("vocabulary.txt", lambda whole: b"the\n"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_damaged_run_is_refused_by_the_name_of_the_file(copied, capsys, name, damage, command):
    path = copied / name
    path.write_bytes(damage(path.read_bytes()))
    code = main([command, str(copied), *["good"] * (command == "predict")])
    assert_refused(capsys, code, str(path))


def test_a_damaged_checkpoint_is_refused_by_the_name_of_the_file(copied, capsys):
    (copied / "record.json").unlink()
    path = copied / "checkpoints" / "epoch-0002" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert_refused(capsys, train_small("toy", copied, "--resume"), str(path))


def test_evaluate_refuses_a_run_on_another_corpus(copied, capsys):
    entries = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**entries, "data": {}}))
    assert_refused(capsys, main(["evaluate", str(copied)]), f"{copied} does not say which corpus it is of")


def test_a_run_is_not_overwritten(copied, capsys):
    before = files_of(copied)
    assert_refused(capsys, train_small("toy", copied), str(copied), "resume it or name another folder")
    assert files_of(copied) == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--training.learning-rate", "0.02"], "other settings (training.learning_rate)"),
        (["--model.d-ff", "4"], "other settings (model.d_ff)"),
        (["--max-tokens", "512"], "other settings (data.max_tokens)"),
        (["--model.vocab-size", "30"], "another vocabulary"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(copied, capsys, options, named):
    before = files_of(copied)
    assert_refused(capsys, train_small("toy", copied, "--resume", *options), str(copied), named)
    assert files_of(copied) == before


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (lambda folder, whole: folder / "nowhere", "does not exist"),
        (lambda folder, whole: folder, "holds neither an aclImdb folder nor an aclImdb*.tar.gz"),
        (lambda folder, whole: written(folder / "cut.tar.gz", whole[: len(whole) // 2]), "is not a whole"),
        (lambda folder, whole: written(folder / "text.tar.gz", b"hello"), "is not a whole"),
        (lambda folder, whole: foreign(folder / "foreign.tar.gz"), "is it the IMDB archive?"),
        (lambda folder, whole: written(folder / "bad.tar.gz", whole[:-9] + b"!" + whole[-8:]), "is not a whole"),
        (lambda folder, whole: foreign(folder / "a.tar.gz", "aclImdb/{}/pos/1_9.txt", b"good"), "kind ['neg']"),
        (lambda folder, whole: foreign(folder / "a.tar.gz", "aclImdb/{}/pos/1_9.txt", b""), "1_9.txt is empty"),
        (lambda folder, whole: foreign(folder / "a.tar.gz", "aclImdb/{}/pos/1_9.txt", b"\xe9"), "is not UTF-8 text"),
    ],
    ids=["missing", "empty folder", "cut", "no archive", "foreign", "corrupted", "one class", "empty", "not UTF-8"],
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_data_that_is_not_imdb_is_refused_and_leaves_nothing_behind(
    command, tmp_path, archive, cache, copied, capsys, monkeypatch, place, named
):
    (tmp_path / "data").mkdir()
    data = place(tmp_path / "data", archive.read_bytes())
    monkeypatch.setenv("COMPANION_DATA", str(data))
    if command == "train":
        code = train_small("imdb", tmp_path / "run")
        assert not (tmp_path / "run").exists()
    else:
        entries = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**entries, "data": {"corpus": "imdb"}}))
        code = main(["evaluate", str(copied)])
    assert_refused(capsys, code, str(data), named)
    assert list(cache.iterdir()) == []


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def foreign(path: Path, name: str = "mnist/{}/0.png", content: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for split in ("train", "test"):
            member = tarfile.TarInfo(name.format(split))
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return path


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "{train, pretrain, finetune, label, evaluate, predict, measure}"),
        (["train"], "{imdb, toy}"),
        (["trian", "toy"], "trian"),
        (["train", "toy"], "--output"),
        (["train", "toy", "--output", "{run}", "--model.d-model", "wide"], "--model.d-model"),
        (["train", "toy", "--output", "{run}", "--model.d-model", "7"], "num_heads=2 does not divide d_model=7"),
        (["train", "toy", "--output", "{run}", "--model.positions", "absolute"], "--model.positions"),
        (["train", "toy", "--output", "{run}", "--training.epochs", "0"], "epochs=0; choose 1 or more"),
        (["train", "toy", "--output", "{run}", "--max-tokens", "9"], "max_tokens=9 is below the longest example"),
        (["train", "toy", "--output", "{run}", "--model.pad-id", "2"], "pad_id=2"),
        (["train", "toy", "--output", "{run}", "--colour", "red"], "--colour"),
        (["predict"], "The run folder. (required)"),
        (["measure"], "positions, imdb"),
        (["measure", "quantization", "--output", "{run}"], "--from"),
        (["measure", "quantization", "--from", "{run}", "--output", "{run}"], "does not exist; name the folder"),
        (["measure", "position", "--output", "{run}"], "position"),
        (["measure", "imdb", "--output", "{run}", "--rows", "bets"], "there is no row 'bets'; choose of article, "),
        (["measure", "positions"], "--output"),
        (["measure", "positions", "--output", "{run}", "--seeds", "0"], "seeds=0; choose 1 or more"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # tyro draws boxes around its messages in UTF-8
def test_a_command_line_that_cannot_work_is_refused_and_leaves_nothing_behind(
    tmp_path, capsys, monkeypatch, arguments, named, encoding
):
    monkeypatch.setattr(type(sys.stdout), "encoding", encoding, raising=False)
    run = tmp_path / "run"
    code = main([argument.format(run=run) for argument in arguments])
    assert_refused(capsys, code, named)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_run_is_refused(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert_refused(capsys, train_small("toy", tmp_path / "run"), f"{tmp_path / 'run'} is a file; name a folder")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "imdb", "--help"], ["predict", "--help"]])
def test_help_is_printed_and_ends_well(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "usage: python -m companion" in capsys.readouterr().out


def test_training_shows_loss_accuracy_speed_and_the_time_left_in_a_terminal(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    command = [sys.executable, "-m", "companion", "train", "toy", "--output", str(tmp_path / "run"), *SMALL]
    code, stderr = in_terminal(command, env=environment)
    assert code == 0, stderr
    last = re.findall(r"epoch 2/2: [^\r\n]*", stderr)[-1]
    record = TrainingRecord.load(tmp_path / "run" / "record.json")
    # Elapsed and remaining time, batches a second, and the means over the whole epoch.
    assert re.search(r"100%\|.*\| (\d+)/\1 \[\d\d:\d\d<\d\d:\d\d, .*batch/s, loss=", last)
    figures = record.history[-1]["train"]
    assert f"loss={figures['loss']:.3f}, accuracy={figures['accuracy']:.3f}, tokens/s=" in last
    (shown,) = re.findall(r"tokens/s=([\d,]+)", last)
    measured = record.history[-1]["tokens"] / record.history[-1]["seconds"]
    assert int(shown.replace(",", "")) == pytest.approx(measured, rel=0.1)


def test_training_is_quiet_where_stderr_is_no_terminal(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    command = [sys.executable, "-m", "companion", "train", "toy", "--output", tmp_path / "run", *SMALL]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(ran.stdout.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals, as Windows cannot")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on_to_the_same_end(tmp_path, run, number, capsys):
    folder = tmp_path / "run"
    words = ["train", "toy", "--output", str(folder), *SMALL, "--checkpoint-every", "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many threads as here: the bits depend on them
    command = [sys.executable, "-m", "companion", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not list(folder.glob("checkpoints/epoch-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    message = (
        r"stopped in epoch [12], update \d+, with a checkpoint; "
        r"run it again, with --resume where the command has that\n"
    )
    assert re.fullmatch(message, stderr)
    assert not (folder / "record.json").exists()
    assert main([*words, "--resume"]) == 0
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    one, other = (TrainingRecord.load(path / "record.json") for path in (folder, run))
    assert (one.dev, one.test) == (other.dev, other.test)


def test_a_loss_that_is_not_finite_is_one_line_that_names_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    calls = []

    def spoiled(model, batch):
        calls.append(model.training)
        loss = companion.losses.classification_loss(model, batch)
        return loss._replace(loss_sum=loss.loss_sum * (math.nan if calls.count(True) == 150 else 1))

    monkeypatch.setattr(companion.cli.runs, "classification_loss", spoiled)
    code = train_small("toy", tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch-0001"
    assert_refused(capsys, code, "the loss is nan in epoch 2, update 150; lower", f"{checkpoint} is whole, and resume")
    for path in (checkpoint / "model.safetensors", tmp_path / "run" / "model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


def test_a_dry_run_prints_model_and_plan_and_writes_nothing(tmp_path, run, capsys):
    assert train_small("toy", tmp_path / "run", "--dry-run", "--checkpoint-every", "50") == 0
    captured = capsys.readouterr()
    record = TrainingRecord.load(run / "record.json")
    assert captured.out.startswith("TextClassifier(\n  (embedding): Embedding(")
    assert re.search(rf"^parameters +{record.parameters:,}$", captured.out, re.MULTILINE)
    tokens = record.history[0]["tokens"]
    assert re.search(rf"^training +5,500 examples, {tokens:,} tokens, \d+ batches", captured.out, re.MULTILINE)
    assert re.search(r"^dev +500 examples", captured.out, re.MULTILINE)
    assert f"{tmp_path / 'run'}, a checkpoint after each epoch and every 50 updates" in captured.out
    assert captured.err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_module_runs_as_a_program_with_exit_codes_and_without_a_traceback(run, tmp_path):
    companion = [sys.executable, "-m", "companion"]
    good = subprocess.run([*companion, "predict", run], input="the plot was good .\n", capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    (expected,) = load_run(run).predict(["the plot was good ."])
    assert good.stdout == f"{expected.label} {expected.probability:.2f}\n"
    bad = subprocess.run([*companion, "predict", tmp_path / "nowhere", "good"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"error: {tmp_path / 'nowhere'} does not exist; name the folder of a trained run\n"


def test_measured_rows_are_written_with_where_they_come_from(tmp_path, run, monkeypatch, capsys):
    rows = [{"task": "reverse", "accuracy": 0.5}, {"task": "histogram", "accuracy": 1.0}]

    def position_ablation(output, *, seeds):
        assert (output, seeds) == (tmp_path / "runs", 2)
        for name in ("reverse-none-0", "reverse-none-1"):
            (output / name).mkdir(parents=True)
            (output / name / "record.json").write_bytes((run / "record.json").read_bytes())
        return rows

    monkeypatch.setattr(companion.experiments, "position_ablation", position_ablation)
    words = ["measure", "positions", "--output", str(tmp_path / "runs"), "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["companion", *words])
    assert main() == 0
    path = tmp_path / "runs" / "record.json"
    assert capsys.readouterr().out == f"{path}: 2 rows\n"
    measurement = Measurement.load(path)
    assert measurement.rows == rows
    assert measurement.command == " ".join(["python", "-m", "companion", *words])
    assert measurement.versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert measurement.hardware["cores"] == os.cpu_count()
    assert measurement.wall_seconds == round(2 * TrainingRecord.load(run / "record.json").wall_seconds, 1)


def test_a_run_is_measured_beside_its_quantized_copy_on_the_test_split(tmp_path, run, monkeypatch, capsys):
    words = ["measure", "quantization", "--from", str(run), "--output", str(tmp_path / "measured")]
    monkeypatch.setattr(sys, "argv", ["companion", *words])
    assert main() == 0
    path = tmp_path / "measured" / "record.json"
    assert capsys.readouterr().out == f"{path}: 2 rows\n"
    measurement = Measurement.load(path)
    assert measurement.command == " ".join(["python", "-m", "companion", *words])
    assert measurement.hardware["device"] == "cpu"
    floats, integers = measurement.rows
    trained = TrainingRecord.load(run / "record.json")
    assert floats["accuracy"] == pytest.approx(trained.test["accuracy"], abs=1e-9)
    assert floats["loss"] == pytest.approx(trained.test["loss"], abs=1e-5)
    assert sum(floats["bytes"].values()) == 4 * trained.parameters
    assert integers["bytes"]["linear"] < floats["bytes"]["linear"] / 2
    assert 0.9 < integers["agreement"] <= 1.0


def test_a_run_of_no_known_corpus_is_not_measured(tmp_path, copied, capsys):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "data": {}}))
    code = main(["measure", "quantization", "--from", str(copied), "--output", str(tmp_path / "measured")])
    assert_refused(capsys, code, f"{copied} does not say which corpus it is of")
    assert not (tmp_path / "measured").exists()
