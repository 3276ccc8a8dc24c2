"""The command line: ``python -m companion train | evaluate | predict | measure``."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
import tyro

from companion import comparison, experiments, toy
from companion.batching import labelled_batches
from companion.corpus import TokenizedCorpus, tokenize_imdb
from companion.devices import default_device
from companion.imdb import Review, Split, hold_out, load_imdb
from companion.losses import classification_loss
from companion.models import ClassifierConfig, TextClassifier
from companion.plans import training_plan
from companion.prediction import Predictor, evaluation_batches, load_run
from companion.records import Measurement, TrainingRecord, git_commit, hardware, package_versions
from companion.runs import RunFolder
from companion.text import SentencePieceTokenizer, Tokenizer, Vocabulary, WordTokenizer, load_vectors
from companion.training import TrainingConfig, evaluate, train

Corpus = Literal["imdb", "toy"]

TOY_SIZE, TOY_TEST_SIZE = 7_000, 1_000
"""Reviews that the grammar writes for ``train toy``, no two alike, and how many of them are the test split."""


@dataclass(frozen=True, kw_only=True)
class _TrainClassifier:
    """Train a classifier, choose its weights on the dev split and measure them once on the test split."""

    output: Path
    """The run folder to write."""
    resume: bool = False
    """Go on after the last checkpoint in the run folder, whatever has stopped the run."""
    checkpoint_every: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Updates between two checkpoints, besides the one after each epoch."""
    tensorboard: bool = False
    """Write the figures for TensorBoard too, into tensorboard/ in the run folder."""
    dry_run: bool = False
    """Print the model and the plan, and write nothing."""
    max_tokens: int = 8_192
    """Tokens a batch, padding included."""
    tokenizer: Literal["words", "sentencepiece"] = "words"
    """What splits the texts; a SentencePiece model is trained on the training split."""
    vectors: Path | None = None
    """A text file of word vectors, such as GloVe's, to begin the embedding with; as wide as the model."""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True, kw_only=True)
class TrainIMDB(_TrainClassifier):
    """Train on the real IMDB reviews; a tenth of the training split, films apart, is the dev split.

    A run that was stopped goes on with --resume. The book's page on GPUs has the commands for several processes.

    Example: python -m companion train imdb --output runs/imdb --checkpoint-every 200
    """

    model: ClassifierConfig = field(
        default_factory=lambda: ClassifierConfig(
            vocab_size=10_000, d_model=32, d_ff=128, max_length=1_024, word_dropout=0.3
        )
    )

    def run(self) -> None:
        """Train, measure, print."""
        _train(self, "imdb")


@dataclass(frozen=True, kw_only=True)
class TrainToy(_TrainClassifier):
    """Train on reviews written by a grammar; needs no download, takes less than a minute.

    Example: python -m companion train toy --output runs/toy
    """

    max_tokens: int = 1_024
    """Tokens a batch, padding included."""
    model: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(num_layers=2, max_length=64))
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=5, learning_rate=2e-3))

    def run(self) -> None:
        """Train, measure, print."""
        _train(self, "toy")


@dataclass(frozen=True)
class Train:
    """Train a classifier."""

    corpus: Annotated[
        Annotated[TrainIMDB, tyro.conf.subcommand("imdb")] | Annotated[TrainToy, tyro.conf.subcommand("toy")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Train on the chosen corpus."""
        self.corpus.run()


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained run on the test split of its corpus."""

    folder: tyro.conf.Positional[Path]
    """The run folder."""

    def run(self) -> None:
        """Print loss and accuracy as JSON."""
        predictor = load_run(self.folder)
        if predictor.config.get("data", {}).get("corpus") not in get_args(Corpus):
            raise ValueError(
                f"{self.folder} does not say which corpus it is of; evaluate takes runs of the train command"
            )
        print(json.dumps(_test(predictor)))


@dataclass(frozen=True)
class Predict:
    """Classify texts: print a line with label and probability for each."""

    folder: tyro.conf.Positional[Path]
    """The run folder."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts; without any, each line of standard input is one."""

    def run(self) -> None:
        """Print one prediction a line."""
        predictor = load_run(self.folder)
        texts = self.texts or [line.removesuffix("\n") for line in sys.stdin]
        if not texts:
            raise ValueError("there is no text to classify; give one as an argument, or lines on standard input")
        for label, probability in predictor.predict(texts):
            print(f"{label} {probability:.2f}")


@dataclass(frozen=True, kw_only=True)
class MeasurePositions:
    """Train small models on tasks that need order and on one that does not, with each kind of positions.

    Runs that are finished in the folder are not repeated, and one that is not goes on.
    """

    output: Path
    """The folder to write: the runs, and record.json."""
    seeds: int = 3
    """How often each model is trained."""

    def run(self) -> None:
        """Train, measure, write the record."""
        rows = experiments.position_ablation(self.output, seeds=self.seeds)
        runs = [TrainingRecord.load(path) for path in self.output.glob("*/record.json")]
        measurement = Measurement(
            command=_command_line(),
            commit=git_commit(),
            versions=package_versions(),
            hardware=hardware(default_device(), 1),
            wall_seconds=round(sum(run.wall_seconds for run in runs), 1),
            rows=rows,
        )
        measurement.save(self.output / "record.json")
        print(f"{self.output / 'record.json'}: {len(rows)} rows")


@dataclass(frozen=True, kw_only=True)
class MeasureIMDB:
    """Train each row of the results table, from the article's model to the best one, and the baselines.

    Runs that are finished in the folder are not repeated, and one that is not goes on.
    """

    output: Path
    """The folder to write: a run folder for each row and seed, and records/, what the package ships."""
    rows: tuple[str, ...] = ()
    """The rows to train; without any, all of them."""

    def run(self) -> None:
        """Train, measure, write the records."""
        comparison.run_rows(self.rows, self.output, command=_command_line(), report=print)


@dataclass(frozen=True)
class Measure:
    """Train what the book draws from records."""

    what: Annotated[
        Annotated[MeasurePositions, tyro.conf.subcommand("positions")]
        | Annotated[MeasureIMDB, tyro.conf.subcommand("imdb")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Measure what was chosen."""
        self.what.run()


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The words of the command line; ``None`` takes those of the process.

    Returns:
        The exit code: 0; 2 after bad input, which one or two lines on stderr name; 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _parse(arguments).run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{str(stop) or 'interrupted'}; train goes on with --resume, measure as it is", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: Sequence[str]) -> Train | Evaluate | Predict | Measure:
    """Parse the command line; what tyro prints on bad input, many lines, becomes one ValueError."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                Command,
                prog="python -m companion",
                args=arguments,
                description="Train, measure and use a classifier; --help after a command lists its options.",
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        # A title, the message, further help, with rules between them; where stdout is UTF-8, in a drawn box.
        parts = re.split(r"^(?:[│ ]*[─-]{3}|╭).*$", stderr.getvalue(), flags=re.MULTILINE)
        message = " ".join(parts[min(1, len(parts) - 1)].replace("│", " ").split())
        raise ValueError(f"{re.sub(r'Error parsing __.*?: ', '', message)} (see --help)") from None


def _train(command: _TrainClassifier, corpus: Corpus) -> None:
    run = RunFolder(command.output)
    if _is_main_process() and not command.resume:
        run.check_free()
    tokenizer = _tokenizer(command, corpus)
    tokenized = _tokenized(corpus, "train", tokenizer).truncate(command.model.max_length)
    training, dev = (tokenized.select(rows) for rows in hold_out(range(len(tokenized))))
    vocabulary = _vocabulary(command, training, tokenizer)
    torch.manual_seed(command.training.seed)
    model = TextClassifier(dataclasses.replace(command.model, vocab_size=len(vocabulary)))
    if command.vectors is not None:
        _load_embedding(model, command.vectors, vocabulary)
    data = {
        "corpus": corpus,
        "max_tokens": command.max_tokens,
        "tokenizer": command.tokenizer,
        "vectors": command.vectors and command.vectors.name,
    }
    predictor = Predictor(model, vocabulary, {"data": data}, tokenizer)
    batches = labelled_batches(
        training.encode(vocabulary), training.labels, max_tokens=command.max_tokens, seed=command.training.seed
    )
    dev_batches = evaluation_batches(predictor, dev)
    options = {"output": run.folder, "resume": command.resume, "checkpoint_every": command.checkpoint_every}
    if command.dry_run:
        plan = training_plan(model, batches, dev_batches, command.training, **options)
        if _is_main_process():
            print(plan)
        return
    _save_words(predictor, run)
    record = train(
        model,
        batches,
        command.training,
        loss_fn=classification_loss,
        eval_batches=dev_batches,
        tensorboard=command.tensorboard,
        data=data,
        **options,
    )
    if record.test is None:
        record = dataclasses.replace(record, test=_test(predictor), command=_command_line())
    if _is_main_process():
        record.save(run.record)
        print(f"{run.folder}: {_figures('dev', record.dev)}, {_figures('test', record.test)}")


def _command_line() -> str:
    return shlex.join(["python", "-m", "companion", *sys.argv[1:]])


def _figures(split: str, metrics: dict[str, float] | None) -> str:
    return f"{split} " + " ".join(f"{name} {value:.4f}" for name, value in (metrics or {}).items())


def _test(predictor: Predictor) -> dict[str, float]:
    tokenized = _tokenized(predictor.config["data"]["corpus"], "test", predictor.tokenizer)
    return evaluate(predictor.model, evaluation_batches(predictor, tokenized), loss_fn=classification_loss)


def _tokenizer(command: _TrainClassifier, corpus: Corpus) -> Tokenizer:
    if command.tokenizer == "words":
        return WordTokenizer()
    training, _ = hold_out(load_imdb("train") if corpus == "imdb" else _toy_reviews("train"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spiece.model")
        return SentencePieceTokenizer.train((text for text, _ in training), command.model.vocab_size, path)


def _vocabulary(command: _TrainClassifier, training: TokenizedCorpus, tokenizer: Tokenizer) -> Vocabulary:
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.vocabulary
    return training.build_vocabulary(max_size=command.model.vocab_size)


def _load_embedding(model: TextClassifier, path: Path, vocabulary: Vocabulary) -> None:
    vectors = load_vectors(path, vocabulary)
    if vectors.size(1) != model.config.d_model:
        raise ValueError(f"{path} has {vectors.size(1)} numbers a token; choose --model.d-model {vectors.size(1)}")
    model.embedding.load_state_dict({"weight": vectors})


def _tokenized(corpus: Corpus, split: Split, tokenizer: Tokenizer) -> TokenizedCorpus:
    if corpus == "imdb":
        return tokenize_imdb(split, tokenizer=tokenizer)
    return TokenizedCorpus.build(_toy_reviews(split), tokenizer)


def _toy_reviews(split: Split) -> list[Review]:
    reviews = toy.reviews(TOY_SIZE, seed=0)
    return reviews[:-TOY_TEST_SIZE] if split == "train" else reviews[-TOY_TEST_SIZE:]


def _save_words(predictor: Predictor, run: RunFolder) -> None:
    """Write what `load_run` makes tokens and ids with: the vocabulary, or the SentencePiece model, which holds one."""
    if isinstance(predictor.tokenizer, SentencePieceTokenizer):
        words, path, other = predictor.tokenizer, run.pieces, run.vocabulary
    else:
        words, path, other = predictor.vocabulary, run.vocabulary, run.pieces
    if run.config.exists() and (other.exists() or (path.exists() and type(words).load(path) != words)):
        raise ValueError(f"{run.folder} was started with another vocabulary; name another folder")
    if _is_main_process():
        run.folder.mkdir(parents=True, exist_ok=True)
        words.save(path)
        other.unlink(missing_ok=True)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by torchrun
