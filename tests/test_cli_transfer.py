"""The commands ``pretrain``, ``finetune``, ``label``, on a small archive whose splits each hold a word of their own."""

import contextlib
import dataclasses
import io
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import companion.cli.corpora
import companion.cli.runs
import companion.cli.transfer
import companion.corpus
from companion import toy
from companion.albert import AlbertConfig, AlbertForPreTraining, AlbertModel, save_albert
from companion.baselines import NBSVM
from companion.batching import labelled_batches
from companion.cli import main
from companion.distillation import run_teacher
from companion.losses import classification_loss
from companion.prediction import EVALUATION_TOKENS, load_run
from companion.pretraining import PreTrainingTask, pretraining_batches, pretraining_loss
from companion.records import TrainingRecord
from companion.text import SentencePieceTokenizer, hold_out, load_imdb
from companion.training import evaluate
from companion.transfer import load_pretrained, warm_start
from tests.imdb_files import write_archive

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = [
    *("--model.vocab-size", "80", "--model.embedding-size", "6", "--model.hidden-size", "8"),
    *("--model.num-hidden-layers", "1", "--model.num-attention-heads", "2", "--model.intermediate-size", "8"),
    *("--model.max-position-embeddings", "64"),
]
COMMON = ["--training.learning-rate", "0.01", "--training.mixed-precision", "fp32", "--max-tokens", "4096"]
PRETRAIN = ["pretrain", "albert", *MODEL, *COMMON, "--training.epochs", "2"]
FINETUNE = ["finetune", "imdb", "--max-length", "40", *COMMON, "--training.epochs", "2"]
WORDS = {"dev": "δδδ", "test": "τττ", "unsup": "ууу"}
"""A word for each split that is in no other; no other word has its letter."""


def written(sizes: dict[str, int]) -> dict[str, str]:
    """Write the files of an archive: reviews of the grammar, the last 250 of the training split with the dev word."""
    files = {}
    for split, size in sizes.items():
        numbers = {0: 0, 1: 0}
        for text, label in toy.reviews(size, seed=len(split)):
            number, kind = numbers[label], ("neg", "pos")[label]
            numbers[label] += 1
            if split == "train" and number >= 500:
                text = f"{text} {WORDS['dev']}"
            if split != "train":
                text = f"{text} {WORDS[split]}"
            name = (
                f"train/unsup/{number + 1_000 * label}_0.txt" if split == "unsup" else f"{split}/{kind}/{number}_1.txt"
            )
            files[name] = text
    return files


FILES = written({"train": 1_250, "unsup": 100, "test": 200})


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("data") / "aclImdb_v1.tar.gz", FILES)


@pytest.fixture(scope="module")
def archive_without_test(tmp_path_factory):
    """Write an archive whose test split cannot be read: it holds an empty review."""
    files = {**FILES, "test/neg/0_1.txt": ""}
    return write_archive(tmp_path_factory.mktemp("data") / "aclImdb_v1.tar.gz", files)


@pytest.fixture(autouse=True)
def imdb(archive, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(archive))
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path_factory.mktemp("cache")))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_command(*words: object) -> str:
    """Run a command that is to end well, and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(word) for word in words])
    assert (code, err.getvalue()) == (0, "")
    return out.getvalue()


@pytest.fixture(scope="module")
def pretrained(archive_without_test, tmp_path_factory):
    """Pre-train where the test split cannot be read; return the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("runs") / "albert"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_DATA", str(archive_without_test))
        return folder, run_command(*PRETRAIN, "--output", folder)


@pytest.fixture(scope="module")
def fine_tuned(pretrained, archive, tmp_path_factory):
    """Fine-tune; return the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("runs") / "albert-imdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_DATA", str(archive))
        patch.setenv("COMPANION_CACHE", str(tmp_path_factory.mktemp("cache")))
        return folder, run_command(*FINETUNE, "--from", pretrained[0], "--output", folder)


@pytest.fixture
def copied(tmp_path):
    """Return what copies a run folder."""

    def copy(folder):
        for name, content in files_of(folder).items():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / name).write_bytes(content)
        return tmp_path / "copy"

    return copy


def assert_refused(capsys, words, *named: str) -> None:
    """The command ends with exit code 2 and at most two lines on stderr, which name the input and the mend."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert 1 <= len(captured.err.splitlines()) <= 2
    assert captured.err.startswith("error: ")
    for words in named:
        assert words in captured.err


def training_texts() -> tuple[list[str], list[str]]:
    """Return the texts to pre-train on, labelled ones first, and those held out."""
    labelled, dev = hold_out(load_imdb("train"))
    return [review.text for review in [*labelled, *load_imdb("unsup")]], [review.text for review in dev]


def expected_batches(tokenizer, task=None, seed=0):
    """Return the training batches and the dev batches of a pre-training."""
    return [
        pretraining_batches(
            [tokenizer.encode(text) for text in texts],
            tokenizer,
            task,
            max_length=64,
            max_tokens=4_096,
            shuffle=shuffle,
            seed=seed,
        )
        for texts, shuffle in zip(training_texts(), (True, False), strict=True)
    ]


def figures(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def test_pretraining_leaves_a_whole_run_folder_and_prints_its_dev_figures(pretrained):
    folder, printed = pretrained
    record = TrainingRecord.load(folder / "record.json")
    assert printed == f"{folder}: dev {figures(record.dev)}\n"
    assert list(record.dev) == ["loss", "mlm_loss", "mlm_accuracy", "sentence_loss", "sentence_accuracy"]
    assert {name.split("/")[0] for name in files_of(folder)} == {
        *("config.json", "model.safetensors", "spiece.model", "record.json", "checkpoints")
    }
    assert record.config == json.loads((folder / "config.json").read_text())
    shape = {"embedding_size": 6, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"vocab_size": 80, "intermediate_size": 8, "max_position_embeddings": 64, "initializer_range": 0.05}
    assert record.config["model"] == {"kind": "AlbertForPreTraining", **dataclasses.asdict(AlbertConfig(**shape))}
    task = {"sentence_task": "sop", "mask_probability": 0.15, "max_n": 3}
    assert record.config["data"] == {
        "corpus": "imdb",
        "max_tokens": 4_096,
        "vocab_size": 80,
        "task": task,
        "start": "counts",
    }
    assert len(record.history) == 2
    assert record.history[1]["dev"]["mlm_loss"] < record.history[0]["dev"]["mlm_loss"] < math.log(80)
    assert record.test is None
    assert record.command.startswith("python -m companion ")
    assert len(load_file(folder / "model.safetensors")) == len(AlbertForPreTraining(AlbertConfig(**shape)).state_dict())


def test_the_dev_figures_are_those_of_the_kept_weights_on_the_held_out_reviews(pretrained):
    folder, _ = pretrained
    record = TrainingRecord.load(folder / "record.json")
    shape = {name: value for name, value in record.config["model"].items() if name != "kind"}
    model = AlbertForPreTraining(AlbertConfig(**shape))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    _, dev = expected_batches(SentencePieceTokenizer.load(folder / "spiece.model"))
    assert evaluate(model, dev, loss_fn=pretraining_loss) == pytest.approx(record.dev, abs=2e-6)


def test_the_pieces_are_of_the_training_reviews_with_and_without_labels_alone(pretrained, tmp_path):
    """The splits that are not trained on stand out: each has a letter of its own."""
    folder, _ = pretrained
    training, dev = training_texts()
    assert (len(training), len(dev)) == (1_100, 250)
    expected = SentencePieceTokenizer.train(training, 80, tmp_path / "spiece.model")
    assert (folder / "spiece.model").read_bytes() == (tmp_path / "spiece.model").read_bytes()
    letters = "".join(expected.vocabulary.decode(range(len(expected.vocabulary))))
    for split, word in WORDS.items():
        assert (word[0] in letters) is (split == "unsup")
    with_dev = SentencePieceTokenizer.train([*training, *dev], 80, tmp_path / "other.model")
    assert WORDS["dev"][0] in "".join(with_dev.vocabulary.decode(range(80)))


class Stopped(KeyboardInterrupt):
    pass


@pytest.fixture
def handed_over(monkeypatch):
    """Let no command train; return what each would have trained, and with what."""
    calls = []

    def train(model, batches, config, **options):
        calls.append({"model": model, "batches": batches, "config": config, **options})
        raise Stopped

    monkeypatch.setattr(companion.cli.runs, "train", train)
    return calls


def assert_same_batches(found, expected, epoch):
    found.batch_sampler.set_epoch(epoch)
    expected.batch_sampler.set_epoch(epoch)
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, batch, other))


@pytest.mark.parametrize(
    ("options", "task", "seed", "begins"),
    [
        ([], None, 0, warm_start),
        (
            ["--task.sentence-task", "none", "--task.mask-probability", "0.3", "--task.max-n", "1"],
            PreTrainingTask(sentence_task="none", mask_probability=0.3, max_n=1),
            0,
            warm_start,
        ),
        (
            ["--task.sentence-task", "nsp", "--training.seed", "3", "--start", "random"],
            PreTrainingTask(sentence_task="nsp"),
            3,
            lambda model, sequences: None,
        ),
    ],
    ids=["as in the paper", "masks alone", "another seed"],
)
def test_what_is_pretrained_on_is_every_training_review_and_no_other(
    tmp_path, handed_over, options, task, seed, begins
):
    assert main([*PRETRAIN, "--output", str(tmp_path / "run"), *options]) == 130
    (call,) = handed_over
    tokenizer = SentencePieceTokenizer.load(tmp_path / "run" / "spiece.model")
    found_batches = call["batches"], call["eval_batches"]
    for found, expected in zip(found_batches, expected_batches(tokenizer, task, seed), strict=True):
        for epoch in (0, 1):
            assert_same_batches(found, expected, epoch)
    torch.manual_seed(seed)
    fresh = AlbertForPreTraining(call["model"].config)
    reviews = [*hold_out(load_imdb("train"))[0], *load_imdb("unsup")]
    begins(fresh, [tokenizer.encode(review.text) for review in reviews])
    assert call["model"].state_dict().keys() == fresh.state_dict().keys()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(call["model"].state_dict()[name], tensor)
    assert call["loss_fn"] is pretraining_loss
    assert (call["output"], call["resume"], call["checkpoint_every"]) == (tmp_path / "run", False, None)


def test_a_model_of_pieces_that_a_broken_start_left_is_not_taken(pretrained, tmp_path, handed_over):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spiece.model").write_bytes(b"of a run that never began")
    (tmp_path / "run" / "vocabulary.txt").write_text("of another one")
    assert main([*PRETRAIN, "--output", str(tmp_path / "run"), "--resume"]) == 130
    assert files_of(tmp_path / "run") == {"spiece.model": (pretrained[0] / "spiece.model").read_bytes()}


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_resuming_a_finished_run_changes_nothing(pretrained, fine_tuned, command, monkeypatch):
    """Nothing is measured again, and the record says what was run in the first place."""
    monkeypatch.setattr(companion.cli.corpora, "evaluate", None)
    monkeypatch.setattr(sys, "argv", ["companion", "another", "command"])
    folder, printed = {"pretrain": pretrained, "finetune": fine_tuned}[command]
    words = PRETRAIN if command == "pretrain" else [*FINETUNE, "--from", pretrained[0]]
    before = files_of(folder)
    assert run_command(*words, "--output", folder, "--resume") == printed
    assert files_of(folder) == before


def interrupting(monkeypatch, module: ModuleType, name: str, call: int) -> None:
    """Let a loss function be interrupted at a call in training mode."""
    loss_fn, calls = getattr(module, name), []

    def interrupted(model, batch):
        calls.append(model.training)
        if calls.count(True) == call:
            raise KeyboardInterrupt
        return loss_fn(model, batch)

    monkeypatch.setattr(module, name, interrupted)


@pytest.mark.parametrize("options", [[], ["--checkpoint-every", "2"]], ids=["after an epoch", "within an epoch"])
def test_an_interrupted_pretraining_goes_on_to_the_same_end_with_the_same_pieces(
    pretrained, tmp_path, monkeypatch, capsys, options
):
    finished, _ = pretrained
    folder = tmp_path / "run"
    words = [*PRETRAIN, "--output", str(folder), *options]
    batches = len(expected_batches(SentencePieceTokenizer.load(finished / "spiece.model"))[0])
    with monkeypatch.context() as patch:
        interrupting(patch, companion.cli.transfer, "pretraining_loss", batches + 4)
        assert main(words) == 130
    assert capsys.readouterr().err == "interrupted; run it again, with --resume where the command has that\n"
    assert not (folder / "record.json").exists()
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == ("epoch-0001-batch-000002" if options else "epoch-0001")
    assert (folder / "spiece.model").read_bytes() == (finished / "spiece.model").read_bytes()

    def train(*args):
        raise AssertionError("the pieces are those of the run")

    monkeypatch.setattr(SentencePieceTokenizer, "train", train)
    run_command(*words, "--resume")
    for name in ("model.safetensors", "spiece.model", "config.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    one, other = (TrainingRecord.load(path / "record.json") for path in (folder, finished))
    assert one.dev == other.dev


def test_an_interrupted_fine_tuning_goes_on_to_the_same_end(pretrained, fine_tuned, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    words = [*FINETUNE, "--from", str(pretrained[0]), "--output", str(folder)]
    with monkeypatch.context() as patch:
        interrupting(patch, companion.cli.runs, "classification_loss", 12)
        assert main(words) == 130
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["epoch-0001"]
    run_command(*words, "--resume")
    assert (folder / "model.safetensors").read_bytes() == (fine_tuned[0] / "model.safetensors").read_bytes()
    one, other = (TrainingRecord.load(path / "record.json") for path in (folder, fine_tuned[0]))
    assert (one.dev, one.test) == (other.dev, other.test)


def test_fine_tuning_leaves_a_whole_run_folder_and_prints_its_figures(pretrained, fine_tuned):
    folder, printed = fine_tuned
    record = TrainingRecord.load(folder / "record.json")
    assert list(record.dev) == list(record.test) == ["loss", "accuracy"]
    assert printed == f"{folder}: dev {figures(record.dev)}, test {figures(record.test)}\n"
    assert {name.split("/")[0] for name in files_of(folder)} == {
        *("config.json", "model.safetensors", "spiece.model", "record.json", "checkpoints")
    }
    assert (folder / "spiece.model").read_bytes() == (pretrained[0] / "spiece.model").read_bytes()
    shape = TrainingRecord.load(pretrained[0] / "record.json").config["model"]
    changes = {"kind": "AlbertTextClassifier", "max_length": 40, "unknown_id": 1, "mask_id": 4, "word_dropout": 0.1}
    dropout = {"hidden_dropout_prob": 0.1, "classifier_dropout_prob": 0.1}
    assert record.config["model"] == shape | changes | dropout
    data = {"corpus": "imdb", "max_tokens": 4_096, "tokenizer": "sentencepiece", "from": str(pretrained[0])}
    data |= {"start": "pretrained", "teacher": None}
    assert record.config["data"] == data
    assert len(record.history) == 2


def test_the_figures_of_fine_tuning_are_those_of_the_run_on_the_reviews_of_each_split(fine_tuned, capsys):
    folder, _ = fine_tuned
    record, predictor = TrainingRecord.load(folder / "record.json"), load_run(folder)
    _, dev = hold_out(load_imdb("train"))
    for reviews, metrics in ((dev, record.dev), (load_imdb("test"), record.test)):
        logits = predictor.logits([text for text, _ in reviews])
        labels = torch.tensor([float(label) for _, label in reviews])
        right = ((logits > 0) == (labels == 1)).float().mean().item()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels).item()
        assert metrics == pytest.approx({"loss": loss, "accuracy": right}, abs=2e-6)
    assert json.loads(run_command("evaluate", folder)) == pytest.approx(record.test, abs=1e-6)
    texts = ["the plot was good .", "The plot was bad!", "unheard of"]
    lines = run_command("predict", folder, *texts).splitlines()
    assert lines == [f"{label} {probability:.2f}" for label, probability in predictor.predict(texts)]


def test_the_test_split_is_read_once_after_the_training(pretrained, tmp_path, monkeypatch):
    asked = []

    def tokenize_imdb(split, *, tokenizer):
        asked.append((split, type(tokenizer), (tmp_path / "run" / "model.safetensors").exists()))
        return companion.corpus.tokenize_imdb(split, tokenizer=tokenizer)

    monkeypatch.setattr(companion.cli.corpora, "tokenize_imdb", tokenize_imdb)
    monkeypatch.setattr(companion.cli.corpora, "load_imdb", None)
    run_command(*FINETUNE, "--from", pretrained[0], "--output", tmp_path / "run", "--training.epochs", "1")
    assert asked == [("train", SentencePieceTokenizer, False), ("test", SentencePieceTokenizer, True)]


@pytest.mark.parametrize("source", ["a run", "a checkpoint of transformers"])
def test_fine_tuning_begins_with_the_encoder_and_its_pieces_on_the_training_reviews(
    pretrained, tmp_path, handed_over, source
):
    """The very batches, against reviews encoded one by one."""
    folder, _ = pretrained
    encoder, tokenizer = load_pretrained(folder)
    if source != "a run":
        folder = tmp_path / "checkpoint"
        save_albert(encoder, folder)
        tokenizer.save(folder / "spiece.model")
    options = ["--dropout", "0.25", "--max-tokens", "640", "--training.seed", "2", "--checkpoint-every", "7"]
    assert main([*FINETUNE, "--from", str(folder), "--output", str(tmp_path / "run"), *options]) == 130
    (call,) = handed_over
    model = call["model"]
    config = model.config
    assert (config.hidden_dropout_prob, config.classifier_dropout_prob, config.max_length) == (0.25, 0.25, 40)
    begun = model.albert.state_dict()
    assert begun.keys() == AlbertModel(config, add_pooling_layer=False).state_dict().keys()
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in begun.items())
    splits = hold_out(load_imdb("train"))
    for found, reviews, settings in zip(
        (call["batches"], call["eval_batches"]),
        splits,
        ({"max_tokens": 640, "seed": 2}, {"max_tokens": EVALUATION_TOKENS, "shuffle": False}),
        strict=True,
    ):
        ids = [tokenizer.encode(text)[:40] for text, _ in reviews]
        assert_same_batches(found, labelled_batches(ids, [label for _, label in reviews], **settings), epoch=1)
    assert SentencePieceTokenizer.load(tmp_path / "run" / "spiece.model") == tokenizer
    assert call["loss_fn"] is classification_loss
    assert call["config"].seed == 2
    assert (call["output"], call["resume"], call["checkpoint_every"]) == (tmp_path / "run", False, 7)


def test_fine_tuning_from_random_begins_with_weights_that_the_seed_draws(pretrained, tmp_path, handed_over):
    encoder, _ = load_pretrained(pretrained[0])
    words = [*FINETUNE, "--from", str(pretrained[0]), "--output", str(tmp_path / "run"), "--start", "random"]
    assert main([*words, "--training.seed", "4"]) == 130
    (call,) = handed_over
    torch.manual_seed(4)
    expected = AlbertModel(encoder.config).state_dict()
    begun = call["model"].albert.state_dict()
    assert len(begun) > 10
    assert all(torch.equal(tensor, expected[name]) for name, tensor in begun.items())
    assert call["data"]["start"] == "random"


@pytest.fixture(scope="module")
def teacher(fine_tuned, archive, tmp_path_factory):
    """Label the unlabelled reviews; return the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_DATA", str(archive))
        return folder, run_command("label", "imdb", "--from", fine_tuned[0], "--output", folder)


def test_a_teacher_is_the_fine_tuned_run_and_nb_svm_on_the_reviews_of_each_split(fine_tuned, teacher, tmp_path):
    folder, printed = teacher
    record = TrainingRecord.load(folder / "record.json")
    assert printed == f"{folder}: dev {figures(record.dev)}, test {figures(record.test)}\n"
    splits = *hold_out(load_imdb("train")), load_imdb("test"), load_imdb("unsup")
    run_teacher(load_run(fine_tuned[0]), NBSVM(max_n=3), *splits, output=tmp_path / "expected")
    found, expected = (load_file(path / "outputs.safetensors") for path in (folder, tmp_path / "expected"))
    assert {name: len(values) for name, values in found.items()} == {"dev": 250, "test": 200, "unsup": 100}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert record.config["data"] == {"corpus": "imdb", "from": str(fine_tuned[0])}
    assert record.command.startswith("python -m companion ")


def test_a_student_learns_from_its_teachers_labels_as_well(pretrained, teacher, tmp_path, handed_over):
    """The labelled reviews with their labels, the unlabelled ones with the probabilities; no more is chosen by."""
    tokenizer = load_pretrained(pretrained[0]).tokenizer
    words = [*FINETUNE, "--from", str(pretrained[0]), "--output", str(tmp_path / "run"), "--teacher", str(teacher[0])]
    assert main(words) == 130
    (call,) = handed_over
    training, dev = hold_out(load_imdb("train"))
    soft = load_file(teacher[0] / "outputs.safetensors")["unsup"].double()
    unlabelled = load_imdb("unsup")
    ids = [tokenizer.encode(review.text)[:40] for review in [*training, *unlabelled]]
    labels = [float(review.label) for review in training] + (1 / (1 + (-soft).exp())).tolist()
    assert len({round(label, 3) for label in labels}) > 20
    found, expected = call["batches"], labelled_batches(ids, labels, max_tokens=4_096)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        torch.testing.assert_close(one.labels, other.labels, rtol=0, atol=1e-6)  # a sigmoid in float32
    dev_batches = labelled_batches(
        [tokenizer.encode(text)[:40] for text, _ in dev],
        [label for _, label in dev],
        max_tokens=EVALUATION_TOKENS,
        shuffle=False,
    )
    assert_same_batches(call["eval_batches"], dev_batches, epoch=0)
    assert call["data"]["teacher"] == str(teacher[0])


@pytest.mark.unhooked
def test_what_is_no_teacher_is_refused_and_nothing_is_written(pretrained, fine_tuned, teacher, tmp_path, capsys):
    words = [*FINETUNE, "--from", pretrained[0], "--output", tmp_path / "run", "--teacher"]
    assert_refused(capsys, [*words, fine_tuned[0]], "outputs.safetensors does not exist", "folder of label imdb")
    for name, tensors in (("few", {"unsup": torch.zeros(99)}), ("other", {"test": torch.zeros(100)})):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "outputs.safetensors")
        count = 99 if name == "few" else 0
        assert_refused(capsys, [*words, tmp_path / name], f"labels {count} of 100 unlabelled", "run label imdb again")
    assert not (tmp_path / "run").exists()
    label = ["label", "imdb", "--output", tmp_path / "labels", "--from"]
    assert_refused(capsys, [*label, tmp_path / "none"], "none does not exist; name the folder of a trained run")
    assert_refused(capsys, [*label[:3], teacher[0], "--from", fine_tuned[0]], "already holds a run")
    assert not (tmp_path / "labels").exists()


def test_the_new_head_is_drawn_by_the_seed(pretrained, tmp_path, handed_over):
    for number, seed in enumerate((0, 0, 1)):
        words = [*FINETUNE, "--from", str(pretrained[0]), "--output", str(tmp_path / str(number))]
        torch.manual_seed(number)
        assert main([*words, "--training.seed", str(seed)]) == 130
    first, again, other = (call["model"].output.weight for call in handed_over)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_dry_run_prints_model_and_plan_and_writes_nothing(pretrained, fine_tuned, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    finished, words = pretrained[0], PRETRAIN
    if command == "finetune":
        finished, words = fine_tuned[0], [*FINETUNE, "--from", finished]
    out = run_command(*words, "--output", "run", "--dry-run", "--checkpoint-every", "50")
    record = TrainingRecord.load(finished / "record.json")
    assert out.startswith(f"{record.config['model']['kind']}(\n")
    assert re.search(rf"^parameters +{record.parameters:,}$", out, re.MULTILINE)
    assert "run, a checkpoint after each epoch and every 50 updates" in out
    if command == "finetune":
        tokens = record.history[0]["tokens"]
        assert re.search(rf"^training +1,000 examples, {tokens:,} tokens, \d+ batches", out, re.MULTILINE)
        assert re.search(r"^dev +250 examples", out, re.MULTILINE)
    else:
        batches, dev = expected_batches(SentencePieceTokenizer.load(finished / "spiece.model"))
        for name, loader in (("training", batches), ("dev", dev)):
            assert re.search(rf"^{name} .* {len(loader):,} batches", out, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model.vocab-size", "9"], ["vocab_size=9 does not do for these texts"]),
        (["--model.max-position-embeddings", "4"], ["=4 has no room for three tokens", "choose more"]),
        (["--model.num-attention-heads", "3"], ["num_attention_heads=3 does not divide hidden_size=8"]),
        (["--max-tokens", "20"], ["max_tokens=20 is below the longest example, 64 tokens", "raise max_tokens"]),
        (["--task.mask-probability", "1"], ["mask_probability=1.0; choose 0 < mask_probability < 1"]),
        (["--task.max-n", "0"], ["max_n=0; choose 1 or more"]),
        (["--task.sentence-task", "order"], ["--task.sentence-task", "sop"]),
        (["--training.optimizer", "sgd"], ["--training.optimizer", "lamb"]),
        (["--from", "nowhere"], ["--from"]),
        (["--model.type-vocab-size", "1"], ["type_vocab_size=1; choose 2, for two segments"]),
        (["--model.pad-token-id", "7"], ["pad_token_id=7; choose 0, as the tokenizer has it"]),
        (["--model.eos-token-id", "7"], ["eos_token_id=7; choose 3, as the tokenizer has it"]),
    ],
)
def test_a_pretraining_that_cannot_work_is_refused_and_leaves_nothing_behind(tmp_path, capsys, options, named):
    assert_refused(capsys, [*PRETRAIN, "--output", tmp_path / "run", *options], *named)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_without_unlabelled_reviews_is_refused(tmp_path, capsys, monkeypatch):
    files = {name: text for name, text in FILES.items() if "unsup" not in name}
    path = write_archive(tmp_path / "data" / "aclImdb_v1.tar.gz", files)
    monkeypatch.setenv("COMPANION_DATA", str(path))
    assert_refused(capsys, [*PRETRAIN, "--output", tmp_path / "run"], str(path), "holds no unsup reviews")
    assert not (tmp_path / "run").exists()


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        ("nowhere", [], ["nowhere does not exist; name the folder of a checkpoint"]),
        ("fine-tuned", [], ["is no run of pretrain albert; name one, or the folder of a checkpoint"]),
        ("empty", [], ["holds no config.json and model.safetensors or pytorch_model.bin; name the folder"]),
        ("without weights", [], ["model.safetensors does not exist; pretrain albert has not finished an epoch"]),
        ("without pieces", [], ["spiece.model does not exist; name a SentencePiece model"]),
        ("other pieces", [], ["spiece.model has 60 pieces", "expected vocab_size=80"]),
        ("pretrained", ["--max-length", "0"], ["max_length=0; choose 1 or more"]),
        ("pretrained", ["--dropout", "1"], ["dropout_prob=1.0"]),
        ("pretrained", ["--max-tokens", "20"], ["max_tokens=20 is below the longest example, 40 tokens"]),
        (None, [], ["--from"]),
    ],
)
def test_a_fine_tuning_that_cannot_work_is_refused_and_leaves_nothing_behind(
    pretrained, fine_tuned, copied, tmp_path, capsys, source, options, named
):
    place = tmp_path / str(source)
    if source == "fine-tuned":
        place = fine_tuned[0]
    elif source == "empty":
        place.mkdir()
    elif source in ("without weights", "without pieces", "other pieces", "pretrained"):
        place = copied(pretrained[0])
    if source == "without weights":
        (place / "model.safetensors").unlink()
    elif source == "without pieces":
        (place / "spiece.model").unlink()
    elif source == "other pieces":
        SentencePieceTokenizer.train(training_texts()[0], 60, place / "spiece.model")
    begun = [] if source is None else ["--from", place]
    assert_refused(capsys, [*FINETUNE, *begun, "--output", tmp_path / "run", *options], *named)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(pretrained, fine_tuned, copied, capsys, command):
    """Nor with the other command, nor with a file in its place."""
    folder = copied({"pretrain": pretrained, "finetune": fine_tuned}[command][0])
    before = files_of(folder)
    pretrain, finetune = PRETRAIN, [*FINETUNE, "--from", pretrained[0]]
    own, other = (pretrain, finetune) if command == "pretrain" else (finetune, pretrain)
    assert_refused(capsys, [*own, "--output", folder], str(folder), "resume it or name another folder")
    assert_refused(capsys, [*other, "--output", folder], str(folder), "resume it or name another folder")
    assert_refused(capsys, [*other, "--output", folder, "--resume"], str(folder), "other settings", "model.kind")
    settings = {
        "pretrain": [
            ("--task.max-n", "2", "data.task"),
            ("--model.vocab-size", "60", "data.vocab_size"),
            ("--model.hidden-size", "4", "model.hidden_size"),
        ],
        "finetune": [("--dropout", "0.2", "model.hidden_dropout_prob"), ("--max-length", "30", "model.max_length")],
    }
    for option, value, name in [*settings[command], ("--training.epochs", "3", "training.epochs")]:
        words = [*own, "--output", folder, "--resume", option, value]
        assert_refused(capsys, words, str(folder), "was started with other settings", name)
    path = folder / "model.safetensors"
    assert_refused(capsys, [*own, "--output", path], f"{path} is a file; name a folder for the run")
    assert files_of(folder) == before


def test_a_fine_tuning_is_not_resumed_with_other_pieces(pretrained, fine_tuned, copied, tmp_path, capsys):
    folder, source = copied(fine_tuned[0]), tmp_path / "checkpoint"
    before = files_of(folder)
    save_albert(load_pretrained(pretrained[0]).model, source)
    other = SentencePieceTokenizer.train(training_texts()[1], 80, source / "spiece.model")
    assert len(other.vocabulary) == 80
    words = [*FINETUNE, "--from", source, "--output", folder, "--resume"]
    assert_refused(capsys, words, f"{folder} was started with another vocabulary; name another folder")
    assert files_of(folder) == before


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_pretrained_run_is_no_classifier(pretrained, capsys, command):
    words = [command, pretrained[0], *["good"] * (command == "predict")]
    assert_refused(capsys, words, f"{pretrained[0] / 'config.json'} does not describe a classifier")


@pytest.mark.unhooked
@pytest.mark.parametrize(("command", "what"), [("pretrain", "albert"), ("finetune", "imdb")])
def test_the_commands_say_what_they_train(command, what, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, what, "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: python -m companion {command} ")
    assert f"Example: python -m companion {command} {what} " in shown
    assert_refused(capsys, [command], what)
    assert_refused(capsys, [command, what], "--output")
    options = ["--from", tmp_path] if command == "finetune" else []
    assert_refused(capsys, [command, "bert", "--output", tmp_path / "run", *options], "bert", what)
    assert list(tmp_path.iterdir()) == []
