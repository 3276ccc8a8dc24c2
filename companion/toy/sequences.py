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


def recall(
    n: int,
    seed: int = 0,
    *,
    length: int = 64,
    num_keys: int = 16,
    num_values: int = 8,
    num_facts: int = 8,
    distance: int | None = None,
) -> list[TaggedSequence]:
    """Write ``n`` sequences that state facts, each a key and its value in one token, and end by asking for one of them.

    The last token is the question, a key alone, and its label the value that the key has in its fact; no other token
    has a label, and where no fact stands there is filler. The keys of a sequence differ, and the values are drawn
    independently, so that only the fact asked for helps: without a sight of it, no model has an expected accuracy above
    ``1 / num_values``.

    The ids: 1 is filler; ``2`` to ``num_keys + 1`` ask for a key; from there on come the facts, key by key:
    ``2 + num_keys + key * num_values + value``, both counted from 0. There are ``2 + num_keys * (num_values + 1)``,
    padding included.

    Args:
        n: Number of sequences.
        seed: Same seed, same sequences.
        length: Tokens a sequence, the question included.
        num_keys: Number of keys.
        num_values: Number of values.
        num_facts: Facts a sequence; at most ``num_keys``, and fewer than ``length``.
        distance: How far before the question the fact asked for stands, 1 to ``length - 1``; ``None`` = drawn
            for each sequence, all equally likely. With one seed, two distances give the same facts in other places.

    Returns:
        ``n`` sequences; the last label is a value, 1 to ``num_values``, the others are 0.

    Raises:
        ValueError: If ``num_facts`` or ``distance`` is out of range.

    Example:
        >>> ids, labels = toy.recall(1, length=6, num_keys=4, num_values=2, num_facts=2, distance=3)[0]
        >>> ids  # 5 asks for key 3; 12 = 2 + 4 + 3 * 2 + 0 says that its value is 0, the first
        [1, 1, 12, 1, 7, 5]
        >>> labels
        [0, 0, 0, 0, 0, 1]
    """
    if not 1 <= num_facts <= min(num_keys, length - 1):
        raise ValueError(
            f"num_facts={num_facts}; choose 1 to num_keys={num_keys}, and fewer than there are tokens, length={length}"
        )
    if distance is not None and not 1 <= distance < length:
        raise ValueError(f"distance={distance}; choose 1 to {length - 1}, below length={length}")
    rng = random.Random(seed)
    return [_write_recall(rng, length, num_keys, num_values, num_facts, distance) for _ in range(n)]


def _write_recall(
    rng: random.Random, length: int, num_keys: int, num_values: int, num_facts: int, distance: int | None
) -> TaggedSequence:
    asked = length - 1 - (rng.randint(1, length - 1) if distance is None else distance)
    others = rng.sample([place for place in range(length - 1) if place != asked], num_facts - 1)
    keys = rng.sample(range(num_keys), num_facts)
    values = rng.choices(range(num_values), k=num_facts)
    ids = [1] * (length - 1) + [2 + keys[0]]
    for place, key, value in zip([asked, *others], keys, values, strict=True):
        ids[place] = 2 + num_keys + key * num_values + value
    return TaggedSequence(ids, [0] * (length - 1) + [1 + values[0]])
