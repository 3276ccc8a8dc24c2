"""A thousand damaged files of each kind, through the commands and the functions that read them.

DAMAGED_FILES and DAMAGED_FIRST, in the environment, choose how many and the first seed.
"""

import gzip
import io
import lzma
import math
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file

import companion.cli
import companion.files
import companion.imdb
import companion.loop
from companion import toy
from companion.albert import AlbertConfig, AlbertForPreTraining, AlbertTextClassifier, AlbertTextConfig, load_albert
from companion.albert import save_albert as save_checkpoint
from companion.article import ArticleClassifier
from companion.cli import corpora
from companion.cli.train import TrainToy
from companion.cli.transfer import FineTune
from companion.cli.use import Evaluate, Predict
from companion.configs import ArticleConfig, ClassifierConfig, NGramConfig
from companion.corpus import TokenizedCorpus, tokenize_imdb
from companion.imdb import load_imdb
from companion.models import TextClassifier
from companion.ngrams import NGramClassifier
from companion.optimization import TrainingConfig
from companion.prediction import load_run
from companion.records import Measurement, TrainingRecord, read_json, write_json
from companion.results import FOLDER
from companion.runs import RunFolder, load_weights, save_weights
from companion.text import Review, SentencePieceTokenizer, Vocabulary, WordTokenizer, load_vectors
from companion.training import _describe
from companion.transfer import load_pretrained
from tests.damage import damage_archive, damage_bytes, damage_json, damage_lines, damage_safetensors
from tests.imdb_files import REVIEWS, add_member, write_archive

FILES = int(os.environ.get("DAMAGED_FILES", 1_000))
FIRST = int(os.environ.get("DAMAGED_FIRST", 0))
MEMORY = 2**30  # bytes more than before the first file
SECONDS = 20  # for one file

REVIEW_LIST = [Review(*review) for review in toy.reviews(40, seed=0)]
SHAPE = {"d_model": 4, "num_heads": 1, "d_ff": 4, "max_length": 64}
ALBERT = {
    **{"hidden_size": 8, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 8},
    **{"num_hidden_layers": 2, "max_position_embeddings": 32},
}

pytestmark = [pytest.mark.unhooked, pytest.mark.usefixtures("one_thread")]


@dataclass(frozen=True)
class Place:
    """A file in a folder, and what reads it: a command, or a function of the folder."""

    file: Path
    folder: Path
    read: Callable[[Path], Any]
    rewritten: bool = False  # the reader writes to the folder


class HalfCorpus(TokenizedCorpus):
    """A corpus too small for `hold_out`, which asks for a thousand reviews."""

    def truncate(self, max_length):
        return HalfCorpus.of(super().truncate(max_length))

    def hold_out(self):
        half = len(self) // 2
        return self.select(range(half)), self.select(range(half, len(self)))

    @classmethod
    def of(cls, corpus):
        return cls(corpus._lexicon, corpus._numbers, corpus._bounds, corpus._labels)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Make the folder of all folders, with small corpora in the place of large ones, and a disk that never waits."""
    home = tmp_path_factory.mktemp("damaged")

    def tokenized(corpus, split, tokenizer):
        return HalfCorpus.of(TokenizedCorpus.build(REVIEW_LIST, tokenizer))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # fixtures of a module come before `unhooked`
        patch.setattr(corpora, "tokenized", tokenized)
        patch.setattr(companion.cli, "_parse", lambda command: command)
        patch.setattr(companion.files, "_sync", lambda path: None)
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setattr(tempfile, "tempdir", str(home / "nowhere"))
        (home / "nowhere").mkdir()
        yield home


@pytest.fixture(scope="module")
def words():
    return Vocabulary.build(map(WordTokenizer(), [review.text for review in REVIEW_LIST]))


@pytest.fixture(scope="module")
def pieces(home):
    return SentencePieceTokenizer.train([review.text for review in REVIEW_LIST], 60, home / "spiece.model")


def write_run(folder, model, vocabulary):
    run = RunFolder(folder)
    run.claim({"model": _describe(model), "training": {}, "data": {"corpus": "toy"}}, resume=False)
    save_weights(model.state_dict(), run.weights)
    vocabulary.save(run.pieces if isinstance(vocabulary, SentencePieceTokenizer) else run.vocabulary)
    return folder


@pytest.fixture(scope="module")
def runs(home, words, pieces):
    """Write a run of each kind of classifier, one of pre-training, and the last one's checkpoint for transformers."""
    size, albert = len(words), {**ALBERT, "vocab_size": len(pieces.vocabulary)}
    text = TextClassifier(ClassifierConfig(vocab_size=size, **SHAPE))
    article = ArticleConfig(vocab_size=size, d_model=4, num_heads=1, head_dim=4, max_length=64, positions=True)
    ngrams = NGramConfig(vocab_size=size, max_n=2, num_ngrams=3, **SHAPE)
    pretrained = AlbertForPreTraining(AlbertConfig(**albert))
    save_checkpoint(pretrained, home / "foreign")
    pieces.save(home / "foreign" / "spiece.model")
    save_checkpoint(pretrained, home / "pickled")
    torch.save(load_file(home / "pickled" / "model.safetensors"), home / "pickled" / "pytorch_model.bin")
    (home / "pickled" / "model.safetensors").unlink()
    return {
        "text": write_run(home / "text", text, words),
        "article": write_run(home / "article", ArticleClassifier(article), words),
        "ngrams": write_run(home / "ngrams", NGramClassifier(ngrams), words),
        "albert": write_run(home / "albert", AlbertTextClassifier(AlbertTextConfig(max_length=64, **albert)), pieces),
        "pretrained": write_run(home / "pretrained", pretrained, pieces),
        "foreign": home / "foreign",
        "pickled": home / "pickled",
    }


@pytest.fixture(scope="module")
def trainings(home):
    """Train a run to its end, and stop another one after the first of two epochs."""
    assert companion.cli.main(resume(home / "finished")) == 0
    save = companion.loop.Loop._save

    def save_and_stop(loop):
        save(loop)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(companion.loop.Loop, "_save", save_and_stop)
        assert companion.cli.main(resume(home / "stopped")) == 130
    return {"stopped": home / "stopped", "finished": home / "finished"}


def resume(folder):
    training = TrainingConfig(epochs=2, mixed_precision="fp32")
    return TrainToy(output=folder, resume=True, model=ClassifierConfig(**SHAPE), training=training)


def predict(folder):
    return Predict(folder, ("A good film",))


def plan_to_finetune(folder):
    return FineTune(corpus="imdb", source=str(folder), output=folder / "nowhere", dry_run=True)


def load_foreign(folder):
    return load_albert(folder, AlbertForPreTraining)


CLASSIFIERS = ("text", "article", "ngrams", "albert")


def places(folders, file, reads, *, rewritten=False):
    return [Place(Path(file), folders[name], read, rewritten) for name, read in reads]


@pytest.fixture
def configs(runs, trainings):
    predictions = [(name, predict) for name in CLASSIFIERS]
    others = [("text", Evaluate), ("pretrained", plan_to_finetune), ("foreign", load_foreign)]
    resumed = places(trainings, "config.json", [("stopped", resume)], rewritten=True)
    return places(runs, "config.json", [*predictions, *others, ("foreign", plan_to_finetune)]) + resumed


@pytest.fixture
def weights(home, runs, trainings):
    predictions = [(name, predict) for name in CLASSIFIERS]
    found = [*predictions, ("pretrained", load_pretrained), ("foreign", load_foreign)]
    checkpoint = "checkpoints/epoch-0001"
    teacher = home / "teacher"
    teacher.mkdir(exist_ok=True)
    save_weights({"unsup": torch.randn(len(REVIEW_LIST)), "dev": torch.randn(9)}, teacher / "outputs.safetensors")

    def learn_from(folder):
        options = {"source": str(runs["pretrained"]), "output": folder / "nowhere", "dry_run": True}
        return FineTune(corpus="imdb", teacher=folder, **options)

    return [
        *(4 * places(runs, "model.safetensors", found)),
        Place(Path("outputs.safetensors"), teacher, learn_from),
        *places(trainings, f"{checkpoint}/model.safetensors", [("stopped", resume)], rewritten=True),
        *places(trainings, f"{checkpoint}/optimizer.safetensors", [("stopped", resume)], rewritten=True),
        *places(trainings, "model.safetensors", [("finished", resume)], rewritten=True),
    ]


@pytest.fixture
def vocabularies(home, runs, words):
    folder = home / "vectors"
    folder.mkdir(exist_ok=True)
    rows = "".join(f"{token} 1 2 3 {number}\n" for number, token in enumerate(words.decode(range(2, len(words)))))
    (folder / "vectors.txt").write_text(rows)
    return [
        *places(runs, "vocabulary.txt", [("text", predict)]),
        *places(runs, "vocabulary.txt", [("text", lambda folder: Vocabulary.load(folder / "vocabulary.txt"))]),
        Place(Path("vectors.txt"), folder, lambda folder: load_vectors(folder / "vectors.txt", words)),
    ]


@pytest.fixture
def piece_models(runs):
    return places(runs, "spiece.model", [("albert", predict), ("pretrained", load_pretrained)])


@pytest.fixture
def records(home, trainings):
    folder = home / "records"
    folder.mkdir(exist_ok=True)
    for name in ("imdb", "positions"):
        shutil.copy(FOLDER / f"{name}.json", folder)
    quick = [
        Place(Path("imdb.json"), folder, lambda folder: TrainingRecord.load(folder / "imdb.json")),
        Place(Path("positions.json"), folder, lambda folder: Measurement.load(folder / "positions.json")),
    ]
    return [
        *(4 * quick),
        *places(trainings, "record.json", [("finished", resume)], rewritten=True),
        *places(trainings, "checkpoints/epoch-0001/state.json", [("stopped", resume)], rewritten=True),
    ]


@pytest.fixture
def archives(home):
    folder = home / "archive"
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "aclImdb.tar.gz", "w") as tar:
        for name, text in REVIEWS.items():
            add_member(tar, f"aclImdb/{name}", text.encode())

    def tokenize(folder):
        tokenize_imdb("train", folder / "aclImdb.tar.gz", cache=home / "cache")

    splits = [lambda folder, split=split: load_imdb(split, folder / "aclImdb.tar.gz") for split in ("train", "unsup")]
    return [Place(Path("aclImdb.tar.gz"), folder, read) for read in (*splits, tokenize)]


@pytest.fixture
def pickles(runs):
    return places(runs, "pytorch_model.bin", [("pickled", load_foreign)])


@pytest.fixture
def caches(home):
    """Keep the tokens of an archive; a cache that is damaged is made again."""
    archive = write_archive(home / "whole" / "aclImdb.tar.gz", REVIEWS)
    folder = home / "kept"
    tokenize_imdb("test", archive, cache=folder)

    def read(folder):
        corpus = tokenize_imdb("test", archive, cache=folder)
        assert [corpus[row] for row in range(len(corpus))] == [["bad", "film"], ["good", "film"]]

    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    return [Place(file, folder, read, rewritten=True) for file in files]


def damage_pickle(content, random):
    """Damage a file of the .zip that torch.save writes, its pickle before all, or the .zip."""
    if random.random() < 0.3:
        return damage_bytes(content, random)
    damaged = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(damaged, "w") as archive:
        names = whole.namelist()
        pickle = next(name for name in names if name.endswith("data.pkl"))
        victim = random.choice((pickle, random.choice(names)))
        for name in names:
            archive.writestr(name, damage_bytes(whole.read(name), random) if name == victim else whole.read(name))
    return damaged.getvalue()


def damage_cache(content, random):
    return damage_json(content, random) if content.startswith(b"{") else damage_bytes(content, random)


class Watch:
    """What the process writes or starts, as Python's audit events tell."""

    WRITES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod")
    STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")

    def __init__(self) -> None:
        self.on = False
        self.written: list[str] = []
        self.started: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if not self.on:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in self.WRITES:
            self.written += [os.fspath(path) for path in arguments[:2] if isinstance(path, str | os.PathLike)][:1]
        elif event in self.STARTS and not (event == "subprocess.Popen" and arguments[0] == "git"):
            self.started.append(event)


@pytest.fixture(scope="module")
def watch():
    watch = Watch()
    yield watch
    watch.on = False


@pytest.fixture
def bounded():
    """Let the process have little more memory, and each file little time."""
    if sys.platform != "linux":
        pytest.skip("the bound on memory and /proc are Linux's")
    import resource

    def give_up(*_):
        pytest.fail(f"it took more than {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.signal(signal.SIGALRM, handler)


def outcome(place, folder, capsys) -> str:
    """Read a file; return what its refusal says, nothing where it was taken."""
    try:
        command = place.read(folder)
    except (ValueError, OSError) as error:
        return str(error)
    if not hasattr(command, "run"):
        return ""
    code = companion.cli.main(command)
    said = capsys.readouterr().err
    assert (code, bool(said)) in ((0, False), (2, True)), (code, said)
    assert len(said.splitlines()) <= 2
    assert not said or said.startswith("error: ")
    assert said.strip().isprintable() or "\n" in said.strip()
    return said


KINDS = {
    "archives": (damage_archive, 0.25),
    "weights": (damage_safetensors, 0.1),
    "configs": (damage_json, 0.1),
    "vocabularies": (damage_lines, 0.1),
    "piece_models": (damage_bytes, 0.05),
    "records": (damage_json, 0.05),
    "pickles": (damage_pickle, 0.05),
    "caches": (damage_cache, 1.0),
}
"""The damage done to each kind, and the least part of the files that must get past all checks to tell them."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_in_a_line_or_does_no_harm(kind, request, home, watch, bounded, capsys):
    damage, least = KINDS[kind]
    found = request.getfixturevalue(kind)
    files = FILES if kind not in ("pickles", "piece_models", "caches") else FILES // 4
    taken, refusals = 0, set()
    capsys.readouterr()
    for seed in range(FIRST, FIRST + files):
        place = found[seed % len(found)]
        whole = (place.folder / place.file).read_bytes()
        folder = place.folder
        if place.rewritten:
            folder = home / "work"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(place.folder, folder)
        (folder / place.file).write_bytes(damage(whole, Random(f"{kind} {seed}")))
        watch.written, watch.started = [], []
        signal.alarm(SECONDS)
        watch.on = True
        try:
            said = outcome(place, folder, capsys)
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}: {place.folder.name}/{place.file}") from error
        finally:
            watch.on = False
            signal.alarm(0)
            (place.folder / place.file).write_bytes(whole)
        label = f"{kind}, seed {seed}, {place.folder.name}/{place.file}: {said}"
        named = str(folder) in said or "the model's logits are not finite" in said
        assert not said or named, label
        outside = [path for path in watch.written if not is_within(path, folder, home / "cache", home / "nowhere")]
        assert outside == [], label
        assert watch.started == [], label

        taken += not said
        refusals.add("".join(letter for letter in said.replace(str(folder), "") if letter.isalpha())[:60])
    assert taken >= least * files
    print(f"{kind}: {files} files, {taken} taken, {len(refusals - {''})} refusals")


def is_within(path: str, *folders: Path) -> bool:
    return any(Path(path).absolute().is_relative_to(folder) for folder in folders)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(companion.imdb, "_LARGEST_CONTENT", 2**22)
    path = tmp_path / "aclImdb.tar.gz"
    path.write_bytes(pack(bytes(2**22 + 1)))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} holds more than 4,194,304 bytes"):
        load_imdb("train", path)
    path.write_bytes(pack(bytes(2**22)))
    with pytest.raises(ValueError, match="holds no train reviews"):
        load_imdb("train", path)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("d_model", 10**9, "d_model=1000000000; choose at most 1,048,576"),
        ("d_model", 2**20, "does not fit"),
        ("vocab_size", 2**20, "does not fit"),
        ("num_layers", 100, "does not fit"),
        ("num_layers", 10**12, "num_layers is 1000000000000; choose at most 1,000 layers"),
        ("max_length", 64.0, "max_length=64.0 is no whole number"),
        ("num_heads", True, "num_heads=True is no whole number"),
    ],
)
def test_no_memory_is_taken_for_sizes_that_the_weights_do_not_have(runs, tmp_path, bounded, field, value, reason):
    folder = shutil.copytree(runs["text"], tmp_path / "run")
    entries = read_json(folder / "config.json")
    write_json(folder / "config.json", entries | {"model": entries["model"] | {field: value}})
    with pytest.raises(ValueError, match=reason) as refused:
        load_run(folder)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weight: weight.double(), r"expected \(1,\) of torch.float32"),
        (lambda weight: weight.fill_(float("nan")), "output.bias holds a number that is not finite"),
    ],
)
def test_weights_of_another_dtype_or_not_finite_are_named(runs, tmp_path, change, reason):
    path = shutil.copytree(runs["text"], tmp_path / "run") / "model.safetensors"
    weights = load_weights(path)
    save_weights(weights | {"output.bias": change(weights["output.bias"])}, path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} .*{reason}"):
        load_run(path.parent)


def test_no_table_is_made_that_is_larger_than_any_in_use(runs, tmp_path, bounded):
    folder = tmp_path / "run"
    shape = {"vocab_size": 9, "d_model": 128, "num_heads": 1, "num_layers": 0, "max_length": 16}
    config = ClassifierConfig(**shape, positions="sinusoidal")
    folder.mkdir()
    save_weights(TextClassifier(config).state_dict(), folder / "model.safetensors")
    shutil.copy(runs["text"] / "vocabulary.txt", folder)
    write_json(folder / "config.json", {"model": {**asdict(config), "max_length": 2**20}})
    with pytest.raises(ValueError, match=r"config.json asks for tables of 134,217,728 numbers; choose at most "):
        load_run(folder)


def test_weights_that_overflow_predict_nothing(runs, tmp_path):
    path = shutil.copytree(runs["text"], tmp_path / "run") / "model.safetensors"
    weights = load_weights(path)
    save_weights(weights | {"embedding.weight": torch.full_like(weights["embedding.weight"], 3e38)}, path)
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        load_run(path.parent).predict(["A good film"])


def test_what_a_file_says_does_not_reach_the_terminal_as_a_command(runs, tmp_path, capsys, home):
    path = shutil.copytree(runs["text"], tmp_path / "run") / "model.safetensors"
    save_weights(load_weights(path) | {"\x1b[2J\u202e": torch.zeros(1)}, path)
    assert companion.cli.main(predict(path.parent)) == 2
    said = capsys.readouterr().err
    assert r"\x1b[2J\u202e is surplus" in said
    assert said.strip().isprintable()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("optimizer", lambda tensors: {n: -t if n.endswith("step") else t for n, t in tensors.items()}, "below 0"),
        ("optimizer", lambda tensors: {n: t[None] for n, t in tensors.items()}, r"expected \("),
        ("model", lambda tensors: {n: t[None] for n, t in tensors.items()}, r"expected \("),
    ],
)
def test_a_checkpoint_of_another_shape_is_named(trainings, tmp_path, capsys, name, change, reason):
    folder = shutil.copytree(trainings["stopped"], tmp_path / "run")
    checkpoint = folder / "checkpoints" / "epoch-0001"
    save_weights(change(load_weights(checkpoint / f"{name}.safetensors")), checkpoint / f"{name}.safetensors")
    capsys.readouterr()
    assert companion.cli.main(resume(folder)) == 2
    said = capsys.readouterr().err
    assert re.search(reason, said), said
    assert str(checkpoint) in said


@pytest.mark.parametrize(
    "change",
    [
        {"history": [{}]},
        {"updates": "9"},
        {"updates": -1},
        {"sums": {"loss": 1}},
        {"batch": 3},
        {"history": []},
        {"wall_seconds": math.nan},
    ],
    ids=str,
)
def test_a_state_whose_figures_do_not_go_together_is_named(trainings, tmp_path, capsys, change):
    folder = shutil.copytree(trainings["stopped"], tmp_path / "run")
    path = folder / "checkpoints" / "epoch-0001" / "state.json"
    write_json(path, read_json(path) | change)
    assert companion.cli.main(resume(folder)) == 2
    assert f"{path} is not the state of a run: " in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "objects"])
def test_json_that_is_nested_too_deep_is_named(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(ValueError, match=r"record.json is not JSON \("):
        TrainingRecord.load(tmp_path / "record.json")


def test_a_config_without_parts_is_named(runs, tmp_path):
    folder = shutil.copytree(runs["text"], tmp_path / "run")
    write_json(folder / "config.json", {"model": 3})
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder / 'config.json'))} holds no settings under 'model'$"):
        load_run(folder)


def test_a_link_in_a_run_folder_is_replaced_and_not_followed(trainings, tmp_path, home):
    folder = shutil.copytree(trainings["stopped"], tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("whole")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(elsewhere / "precious")
    (folder / ".planted.tmp").symlink_to(elsewhere, target_is_directory=True)
    assert companion.cli.main(resume(folder)) == 0
    assert not (folder / "model.safetensors").is_symlink()
    assert not (folder / ".planted.tmp").is_symlink()
    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == {"precious": "whole"}
