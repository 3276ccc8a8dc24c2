"""Experiments: trainings that a chapter draws from a record, since they are too long to run in it.

Each trains a `companion.TokenClassifier` on a corpus whose right answers are known by construction, and tests it on
sequences that are new to it, of the length trained on and of others.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from companion import toy
from companion.batching import tagged_batches
from companion.configs import Positions, TokenClassifierConfig
from companion.losses import tagging_loss
from companion.models import TokenClassifier
from companion.text import Vocabulary
from companion.toy import TaggedSequence
from companion.training import TrainingConfig, evaluate, train

POSITIONS: tuple[Positions, ...] = ("none", "sinusoidal", "learned", "rotary", "alibi")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is trained and tested on.

    Attributes:
        name: Its name in the record.
        vocab_size: Number of ids, padding included.
        num_labels: Number of labels, 0 included.
        causal: Whether each token sees only those up to itself.
        train: The sequences to train on.
        test: For each length, the sequences to test on; the first one is the length trained on.
        epochs: Passes over them.

    Example:
        >>> from companion.experiments import histogram
        >>> task = histogram()
        >>> ids, labels = task.train[0]
        >>> labels[0] == ids.count(ids[0])
        True
    """

    name: str
    vocab_size: int
    num_labels: int
    causal: bool
    train: Sequence[TaggedSequence]
    test: Mapping[int, Sequence[TaggedSequence]]
    epochs: int


def reverse() -> Task:
    """Label each token by the one in its place from the end; tested on twice and four times the length too."""
    return Task(
        name="reverse",
        vocab_size=65,
        num_labels=65,
        causal=False,
        train=toy.reverse(8_000),
        test={length: toy.reverse(500, seed=1, length=length) for length in (16, 32, 64)},
        epochs=12,
    )


def histogram() -> Task:
    """Label each token by how often it occurs."""
    return Task(
        name="histogram",
        vocab_size=11,
        num_labels=17,
        causal=False,
        train=toy.histogram(8_000),
        test={16: toy.histogram(500, seed=1)},
        epochs=10,
    )


def sentiment(*, causal: bool = False) -> Task:
    """Label the last token of a review by its verdict, which in half of them only the order of the words decides."""
    reviews = toy.reviews(7_000)
    vocabulary = Vocabulary.build(review.text.split() for review in reviews[:6_000])
    sequences = [vocabulary.encode(review.text.split()) for review in reviews]
    tagged = [
        TaggedSequence(ids, [*[0] * (len(ids) - 1), 2 if review.label else 1])
        for ids, review in zip(sequences, reviews, strict=True)
    ]
    return Task(
        name="causal sentiment" if causal else "sentiment",
        vocab_size=len(vocabulary),
        num_labels=3,
        causal=causal,
        train=tagged[:6_000],
        test={max(map(len, sequences)): tagged[6_000:]},
        epochs=8,
    )


def reverse_by_decoder() -> Task:
    """Continue a sequence of 8 tokens and a separator by the same tokens, last one first, as a language model does."""
    separator = 33

    def prompted(n: int, seed: int) -> list[TaggedSequence]:
        return [
            TaggedSequence([*ids, separator, *labels[:-1]], [*[0] * len(ids), *labels])
            for ids, labels in toy.reverse(n, seed, length=8, num_symbols=32)
        ]

    return Task(
        name="causal reverse",
        vocab_size=34,
        num_labels=33,
        causal=True,
        train=prompted(8_000, 0),
        test={16: prompted(500, 1)},
        epochs=15,
    )


def language_model() -> Task:
    """Predict the next word of reviews in a row, from 32 words; tested on 2, 4 and 8 times as many."""
    reviews = toy.reviews(40_000)
    vocabulary = Vocabulary.build(review.text.split() for review in reviews)
    ids = [i for review in reviews for i in vocabulary.encode(review.text.split())]
    held_out = ids[-32_769:]

    def windows(stream: Sequence[int], length: int) -> list[TaggedSequence]:
        starts = range(0, len(stream) - length, length)
        return [TaggedSequence([*stream[k : k + length]], [*stream[k + 1 : k + length + 1]]) for k in starts]

    return Task(
        name="language model",
        vocab_size=len(vocabulary),
        num_labels=len(vocabulary),
        causal=True,
        train=windows(ids[: -len(held_out)][:240_000], 32),
        test={length: windows(held_out, length) for length in (32, 64, 128, 256)},
        epochs=2,
    )


def train_and_test(
    task: Task,
    positions: Positions,
    *,
    seed: int = 0,
    epochs: int | None = None,
    output: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Train a `companion.TokenClassifier` of two pre-norm layers, 64 wide, and test it at each length.

    Args:
        task: What to train it on.
        positions: How it is told positions.
        seed: That of its weights and of the batches.
        epochs: Passes over the task's sequences; ``None`` = as many as the task says.
        output: The run folder to write, or to go on in; ``None`` writes nothing.

    Returns:
        A row for each length of the task's tests, with ``task``, ``positions``, ``seed``, ``length``, ``accuracy`` and
        ``loss``.

    Example:
        >>> from companion.experiments import Task, train_and_test
        >>> train, test = toy.reverse(64), {length: toy.reverse(8, length=length) for length in (16, 32)}
        >>> task = Task(name="short", vocab_size=65, num_labels=65, causal=False, train=train, test=test, epochs=1)
        >>> [row["length"] for row in train_and_test(task, "rotary")]
        [16, 32]
    """
    torch.manual_seed(seed)
    model = TokenClassifier(
        TokenClassifierConfig(
            vocab_size=task.vocab_size,
            num_labels=task.num_labels,
            causal=task.causal,
            positions=positions,
            num_layers=2,
            num_heads=4,
            max_length=max(task.test),
            norm_first=True,
            dropout=0.0,
            embedding_dropout=0.0,
        )
    )
    lengths = [len(sequence.ids) for sequence in task.train]
    batches = tagged_batches(*zip(*task.train, strict=True), max_tokens=64 * max(lengths), seed=seed)
    config = TrainingConfig(epochs=epochs or task.epochs, learning_rate=2e-3, seed=seed)
    train(model, batches, config, loss_fn=tagging_loss, output=output, resume=output is not None)
    rows = []
    for length, sequences in task.test.items():
        held_out = tagged_batches(*zip(*sequences, strict=True), max_tokens=64 * length, shuffle=False)
        figures = evaluate(model, held_out, loss_fn=tagging_loss)
        rows.append({"task": task.name, "positions": positions, "seed": seed, "length": length, **figures})
    return rows


def position_ablation(output: str | os.PathLike[str], *, seeds: int = 3) -> list[dict[str, Any]]:
    """Train and test the tasks with each kind of positions, and those of a decoder without any.

    Args:
        output: A folder for the runs; those that are finished in it are not repeated.
        seeds: How often each.

    Returns:
        The rows of `train_and_test`.

    Raises:
        ValueError: If ``seeds`` is not positive.

    Example:
        >>> from companion.experiments import position_ablation
        >>> position_ablation("positions", seeds=0)
        Traceback (most recent call last):
        ValueError: seeds=0; choose 1 or more
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}; choose 1 or more")
    plan: list[tuple[Task, tuple[Positions, ...]]] = [
        (reverse(), POSITIONS),
        (histogram(), POSITIONS),
        (sentiment(), POSITIONS),
        (sentiment(causal=True), ("none",)),
        (reverse_by_decoder(), ("none", "learned")),
        (language_model(), POSITIONS),
    ]
    rows = []
    for task, kinds in plan:
        for positions in kinds:
            for seed in range(seeds):
                run = Path(output) / f"{task.name} {positions} {seed}".replace(" ", "-")
                rows += train_and_test(task, positions, seed=seed, output=run)
    return rows
