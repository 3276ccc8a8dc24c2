"""What the commands that train have in common: their options, and how a run goes."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import nn
from torch.utils.data import DataLoader

from companion.batching import labelled_batches
from companion.cli import corpora
from companion.corpus import TokenizedCorpus
from companion.losses import LossFunction, classification_loss
from companion.optimization import TrainingConfig
from companion.plans import training_plan
from companion.prediction import Predictor, evaluation_batches
from companion.records import TrainingRecord
from companion.runs import RunFolder
from companion.text import SentencePieceTokenizer, Vocabulary
from companion.training import train


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run goes, and how it is done."""

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

    def folder(self) -> RunFolder:
        """Return the run folder, free unless the run is to be resumed."""
        run = RunFolder(self.output)
        if is_main_process() and not self.resume:
            run.check_free()
        return run


def run_training(
    options: RunOptions,
    model: nn.Module,
    batches: DataLoader[Any],
    dev_batches: DataLoader[Any],
    training: TrainingConfig,
    *,
    words: Vocabulary | SentencePieceTokenizer,
    loss_fn: LossFunction,
    data: Mapping[str, Any],
    test: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train, or say what would be trained; then measure on the test split, once, and print the figures.

    Args:
        options: Where, and how.
        model: The model.
        batches: The training batches.
        dev_batches: The dev split.
        training: How to train.
        words: The vocabulary, or the SentencePiece model, to keep beside the weights.
        loss_fn: The loss.
        data: Which data this is.
        test: What measures the trained model on the test split; ``None`` where there is none.
    """
    run = RunFolder(options.output)
    shared: dict[str, Any] = {
        "output": run.folder,
        "resume": options.resume,
        "checkpoint_every": options.checkpoint_every,
    }
    if options.dry_run:
        plan = training_plan(model, batches, dev_batches, training, **shared)
        if is_main_process():
            print(plan)
        return
    _save_words(words, run)
    record = train(
        model,
        batches,
        training,
        loss_fn=loss_fn,
        eval_batches=dev_batches,
        tensorboard=options.tensorboard,
        data=data,
        **shared,
    )
    if record.command == "companion.train":
        record = dataclasses.replace(record, test=test and test(), command=command_line())
    if is_main_process():
        record.save(run.record)
        print_figures(run.folder, record)


def run_classifier_training(
    options: RunOptions,
    predictor: Predictor,
    sequences: Sequence[Sequence[int]],
    labels: Sequence[int | float | None],
    dev_split: TokenizedCorpus,
    training: TrainingConfig,
) -> None:
    """Train a classifier as `run_training` does, chosen on the dev split, measured on the test split.

    Args:
        options: Where, and how.
        predictor: The classifier; its config says which data this is.
        sequences: The token ids to train on.
        labels: The label of each, 0 or 1 or between.
        dev_split: What to choose by.
        training: How to train.
    """
    vocabulary, tokenizer = predictor.vocabulary, predictor.tokenizer
    run_training(
        options,
        predictor.model,
        labelled_batches(sequences, labels, max_tokens=options.max_tokens, seed=training.seed),
        evaluation_batches(predictor, dev_split),
        training,
        words=tokenizer if isinstance(tokenizer, SentencePieceTokenizer) else vocabulary,
        loss_fn=classification_loss,
        data=predictor.config["data"],
        test=lambda: corpora.test(predictor),
    )


def command_line() -> str:
    """Return the command as it was typed."""
    return shlex.join(["python", "-m", "companion", *sys.argv[1:]])


def is_main_process() -> bool:
    """Return whether this is the only process, or the first that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def print_figures(folder: Path, record: TrainingRecord) -> None:
    """Print what a run has come to on each split."""
    splits = {"dev": record.dev, "test": record.test}
    print(f"{folder}: {', '.join(_figures(name, metrics) for name, metrics in splits.items() if metrics)}")


def _figures(split: str, metrics: dict[str, float]) -> str:
    return f"{split} " + " ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _save_words(words: Vocabulary | SentencePieceTokenizer, run: RunFolder) -> None:
    """Write what `load_run` makes tokens and ids with: the vocabulary, or the SentencePiece model, which holds one."""
    path, other = run.vocabulary, run.pieces
    if isinstance(words, SentencePieceTokenizer):
        path, other = other, path
    if run.config.exists() and (other.exists() or (path.exists() and type(words).load(path) != words)):
        raise ValueError(f"{run.folder} was started with another vocabulary; name another folder")
    if is_main_process():
        run.folder.mkdir(parents=True, exist_ok=True)
        words.save(path)
        other.unlink(missing_ok=True)
