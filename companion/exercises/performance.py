"""The exercises of the chapter on speed: packing a padded batch, and the ratio of times that were taken in turns."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from companion.exercises.comparison import as_number, as_pair, call, compare, random_tensors, without_leading_ones


def check_pack(f: Callable[..., Any]) -> None:
    """Check the packing of a padded batch: ``f(x, tokens) -> (packed, lengths)``.

    ``x`` is ``(batch, length, width)``; ``tokens``, a bool ``(batch, length)``, is ``True`` where a token stands, and
    padding follows the tokens. ``packed``, ``(1, all tokens, width)``, holds the tokens alone, one sequence after the
    other; ``lengths``, a list of ints, the number of tokens of each sequence that has any.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_pack(lambda x, tokens: (x.flatten(0, 1)[None], [x.size(1)] * len(x)))
        Traceback (most recent call last):
        AssertionError: Padding is packed too: take the rows of x where tokens is True alone.
    """
    (x,) = random_tensors((4, 5, 3))
    counts = torch.tensor([2, 0, 5, 1])
    tokens = torch.arange(5) < counts[:, None]
    right = x[tokens][None]
    padded = (x * tokens[..., None]).flatten(0, 1)[None]
    packed, lengths = as_pair(call(f, x, tokens), "(packed, lengths)")
    if isinstance(packed, Tensor) and packed.dim() == 2 and packed.shape == right.shape[1:]:
        raise AssertionError("packed has no batch axis: an encoder takes (1, tokens, width), a batch of one.")
    compare(
        "packed tokens",
        packed,
        right,
        {
            "Padding is packed too: take the rows of x where tokens is True alone.": x.flatten(0, 1)[None],
            "Padding is set to zero but packed all the same, and costs as much: leave it out.": padded,
            "The batch is as it was: put the tokens of all sequences on one axis, one sequence after the other.": x,
            "The batch is as it was, its padding set to zero, and costs as much: leave it out.": (
                padded.unflatten(1, (4, 5)).squeeze(0)
            ),
            "The tokens stand position by position, one of each sequence in turn: a sequence must stay in one piece.": (
                x.transpose(0, 1)[tokens.T][None]
            ),
            "tokens is inverted: what is packed is the padding.": x[~tokens][None],
            "The longest sequence comes first: keep the order of the batch.": (
                torch.cat([x[row, : counts[row]] for row in counts.argsort(descending=True)])[None]
            ),
        },
        atol=1e-6,
        any_float=True,
    )
    if isinstance(lengths, list | tuple):
        lengths = torch.tensor([int(length) for length in lengths])
    wanted = counts[counts > 0]
    compare(
        "lengths",
        without_leading_ones(lengths, 1),
        wanted,
        {
            "A sequence without a token has a length of 0: leave it out, for nothing of it is packed.": counts,
            "The lengths count padding: sum tokens over each sequence.": torch.full((4,), 5),
            "The lengths count padding: sum tokens over each sequence that has any.": torch.full((3,), 5),
            "The sum runs over the batch: sum tokens over the length, dim=1.": tokens.sum(0),
            "The lengths are those of the padding: sum tokens, not its inverse.": (~tokens).sum(1),
            "These are the places where sequences end: return how long each is.": wanted.cumsum(0),
            "These are the places between which sequences stand: return how long each is.": (
                torch.cat([torch.zeros(1, dtype=torch.long), wanted.cumsum(0)])
            ),
        },
    )
    print("Right: the tokens alone, one sequence after the other, and how long each sequence is.")


def check_ratio(f: Callable[..., Any]) -> None:
    """Check the ratio of times taken in turns: ``f(ours, theirs) -> float``.

    ``ours`` and ``theirs`` are lists of seconds, one entry a round, the same rounds in both. The ratio is the median
    over the rounds of their time divided by ours: above 1 where ours is the faster one.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_ratio(lambda ours, theirs: sum(theirs) / sum(ours))
        Traceback (most recent call last):
        AssertionError: The means (or sums) are divided, and the slowest rounds decide: divide round by round, then \
take the median.
    """
    ours, theirs = [0.5, 2.25, 1.0, 0.75, 3.75], [6.5, 2.5, 2.25, 6.25, 5.75]
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    of_sorted = [other / own for own, other in zip(sorted(ours), sorted(theirs), strict=True)]
    median, mean = statistics.median, statistics.mean
    compare(
        "ratio",
        as_number(call(f, list(ours), list(theirs)), float),
        torch.tensor(median(ratios), dtype=torch.float64),
        {
            sentence: torch.tensor(wrong, dtype=torch.float64)
            for sentence, wrong in {
                "The medians are divided, which may be of different rounds: divide round by round, then take the "
                "median.": median(theirs) / median(ours),
                "The medians are divided, and upside down: divide their time by ours round by round, then take the "
                "median.": median(ours) / median(theirs),
                "The times are sorted, and those of different rounds are divided: divide round by round.": (
                    median(of_sorted)
                ),
                "The ratio is upside down: their time stands above, ours below.": 1 / median(ratios),
                "The mean of the ratios is taken, which one disturbed round can move anywhere: take the median.": (
                    mean(ratios)
                ),
                "The means (or sums) are divided, and the slowest rounds decide: divide round by round, then take "
                "the median.": mean(theirs) / mean(ours),
                "The fastest rounds are divided, one of each: divide round by round, then take the median.": (
                    min(theirs) / min(ours)
                ),
                "The slowest rounds are divided, one of each: divide round by round, then take the median.": (
                    max(theirs) / max(ours)
                ),
                "The times are subtracted: divide them.": median(
                    other - own for own, other in zip(ours, theirs, strict=True)
                ),
            }.items()
        },
        atol=1e-6,
    )
    compare(
        "ratio of an even number of rounds",
        as_number(call(f, [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 4.0, 8.0]), float),
        torch.tensor(3.0, dtype=torch.float64),
        {
            "Of an even number of rounds the lower middle one is taken, as torch.median does: take the mean of both.": (
                torch.tensor(2.0)
            ),
            "Of an even number of rounds the upper middle one is taken: take the mean of both.": torch.tensor(4.0),
        },
        atol=1e-6,
    )
    print("Right: divided round by round, and the median of the ratios.")
