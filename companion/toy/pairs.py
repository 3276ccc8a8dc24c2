"""Pairs of texts: what goes in, what is to come out."""

import random
from collections.abc import Callable
from typing import NamedTuple

from companion.toy.writing import write_distinct


class TextPair(NamedTuple):
    """A text, and what a model is to make of it.

    Attributes:
        source: The tokens of the input, with spaces between them.
        target: Those of the output.

    Example:
        >>> toy.TextPair("the cat slept", "die Katze schlief").target.split()
        ['die', 'Katze', 'schlief']
    """

    source: str
    target: str


def write_pairs(n: int, seed: int, write: Callable[[random.Random], tuple[str, str]]) -> list[TextPair]:
    """Let a grammar write until there are ``n`` pairs, no two sources alike.

    Raises:
        ValueError: If ``n`` is negative or past 100,000.
    """
    rng = random.Random(seed)
    return [TextPair(*pair) for pair in write_distinct(n, "pairs", lambda _: write(rng)).items()]
