"""What the grammars of texts have in common: writing on until there are enough that differ."""

from collections.abc import Callable, Hashable
from typing import TypeVar

Text = TypeVar("Text", bound=Hashable)
Answer = TypeVar("Answer")


def write_distinct(n: int, what: str, write: Callable[[int], tuple[Text, Answer]]) -> dict[Text, Answer]:
    """Write until there are ``n`` different texts, each with its answer.

    Args:
        n: Number of texts, at most 100,000.
        what: What they are, for the message.
        write: From the number of those that there are to a text and its answer.

    Returns:
        The answers under their texts, in the order of writing.

    Raises:
        ValueError: If ``n`` is negative or past 100,000.
    """
    if not 0 <= n <= 100_000:
        raise ValueError(f"n={n}; choose 0 to 100,000 {what}")
    written: dict[Text, Answer] = {}
    while len(written) < n:
        text, answer = write(len(written))
        written.setdefault(text, answer)
    return written
