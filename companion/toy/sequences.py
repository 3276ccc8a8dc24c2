"""Sequences of token ids with a label for each token."""

import random
from collections import Counter
from typing import NamedTuple


class TaggedSequence(NamedTuple):
    """Token ids, and a label for each of them.

    Attributes:
        ids: From 1 on; 0 is padding.
        labels: From 1 on; 0 would mark a token without a label.

    Example:
        >>> toy.TaggedSequence(ids=[3, 8], labels=[8, 3])
        TaggedSequence(ids=[3, 8], labels=[8, 3])
    """

    ids: list[int]
    labels: list[int]


def reverse(n: int, seed: int = 0, *, length: int = 16, num_symbols: int = 64) -> list[TaggedSequence]:
    """Write ``n`` random sequences of different tokens, each labelled by the one that stands in its place from the end.

    Which one that is, only order tells. To a model that sees none, each of the others is as likely, so that its
    expected accuracy is at most ``1 / (length - 1)``.

    Args:
        n: Number of sequences.
        seed: Same seed, same sequences.
        length: Tokens a sequence, even: else the one in the middle is its own label.
        num_symbols: The ids are 1 to this; at least ``length``.

    Returns:
        ``n`` sequences; a label is an id.

    Raises:
        ValueError: If ``length`` is odd or larger than ``num_symbols``.

    Example:
        >>> ids, labels = toy.reverse(1, length=4)[0]
        >>> labels == ids[::-1]
        True
    """
    if length % 2 or length > num_symbols:
        raise ValueError(f"length={length}; choose an even one of at most num_symbols={num_symbols}")
    rng = random.Random(seed)
    sequences = [rng.sample(range(1, num_symbols + 1), length) for _ in range(n)]
    return [TaggedSequence(ids, ids[::-1]) for ids in sequences]


def histogram(n: int, seed: int = 0, *, length: int = 16, num_symbols: int = 10) -> list[TaggedSequence]:
    """Write ``n`` random sequences, each token labelled by how often it occurs in its sequence.

    Order does not matter here: the label is the same wherever the tokens stand.

    Args:
        n: Number of sequences.
        seed: Same seed, same sequences.
        length: Tokens a sequence.
        num_symbols: The ids are 1 to this.

    Returns:
        ``n`` sequences; a label is a count, 1 to ``length``.

    Example:
        >>> ids, labels = toy.histogram(1, length=4)[0]
        >>> labels == [ids.count(token) for token in ids]
        True
    """
    rng = random.Random(seed)
    sequences = [rng.choices(range(1, num_symbols + 1), k=length) for _ in range(n)]
    counts = [Counter(ids) for ids in sequences]
    return [TaggedSequence(ids, [count[i] for i in ids]) for ids, count in zip(sequences, counts, strict=True)]
