"""The exercises of the chapter on applications: the F1 of an answer, and the best span."""

from collections.abc import Callable
from typing import Any

import torch

from companion.exercises.comparison import as_number, as_pair, call, compare


def check_token_f1(f: Callable[..., Any]) -> None:
    """Check the F1 of an answer (Rajpurkar et al., 2016, arXiv:1606.05250): ``f(predicted, right) -> f1``.

    ``predicted`` and ``right`` are lists of tokens. Precision is the share of the predicted ones that are among the
    right ones, recall the share of the right ones that are among the predicted ones, a token as often as it occurs on
    both sides; F1 is their harmonic mean, 0 where nothing is shared. Two empty lists, "no answer" on both sides, have
    an F1 of 1.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_token_f1(lambda predicted, right: float(predicted == right))
        Traceback (most recent call last):
        AssertionError: This is exact match: an answer that shares some tokens gets some of the score.
    """
    cases: list[tuple[str, str, float, dict[str, float]]] = [
        (
            "the old red house",
            "the red house by the lake",
            2 * 3 / (4 + 6),
            {
                "This is exact match: an answer that shares some tokens gets some of the score.": 0.0,
                "This is the precision alone: F1 is the harmonic mean of precision and recall.": 3 / 4,
                "This is the recall alone: F1 is the harmonic mean of precision and recall.": 3 / 6,
                "This is the arithmetic mean of precision and recall: take the harmonic one.": (3 / 4 + 3 / 6) / 2,
                "This is shared tokens over all tokens of either side: F1 counts the shared ones twice.": 3 / 7,
                "Tokens that occur twice are counted once: count them as often as they occur.": 2 * 3 / (4 + 5),
            },
        ),
        (
            "the house the lake",
            "the house",
            2 * 2 / (4 + 2),
            {
                "A token counts as shared more often than the other side has it: take the smaller number of both.": (
                    2 * 3 / (4 + 2)
                ),
            },
        ),
        ("", "", 1.0, {"Two empty answers are equal, so that their F1 is 1.": 0.0}),
        ("the lake", "", 0.0, {"Where only one side has an answer they share nothing, so that the F1 is 0.": 1.0}),
        ("the lake", "a red house", 0.0, {"Answers that share no token have an F1 of 0.": 1.0}),
    ]
    for predicted, right, score, mistakes in cases:
        compare(
            f"F1 of {predicted!r} against {right!r}",
            as_number(call(f, predicted.split(), right.split()), float),
            torch.tensor(score, dtype=torch.float64),
            {sentence: torch.tensor(wrong, dtype=torch.float64) for sentence, wrong in mistakes.items()},
            atol=1e-6,
        )
    print("Right: shared tokens count on both sides, as often as both have them.")


def check_best_span(f: Callable[..., Any]) -> None:
    """Check the choice of a span: ``f(start_logits, end_logits) -> (start, end)``, ``(length,)`` each.

    The span is the one with the largest sum of its two logits, of all with ``0 < start <= end``, and ``(0, 0)``, which
    stands for "no answer" (Devlin et al., 2019, section 4.3, arXiv:1810.04805).

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_best_span(lambda start, end: (int(start.argmax()), int(end.argmax())))
        Traceback (most recent call last):
        AssertionError: The ends are chosen each by itself, so that one lies before its start: choose the best pair.
    """
    cases: list[tuple[list[float], list[float], tuple[int, int], dict[str, tuple[int, int]]]] = [
        (
            [0.0, 2.0, 1.0, 3.0, 0.0],
            [0.0, 1.0, 4.0, 0.5, 0.2],
            (1, 2),
            {
                "The ends are chosen each by itself, so that one lies before its start: choose the best pair.": (3, 2),
                "The ends are exchanged where one lies before its start: choose the best pair that does not.": (2, 3),
                "The best start is kept and the best end after it taken: another pair has the larger sum.": (3, 3),
            },
        ),
        (
            [0.0, 0.5, 5.0, 1.0, 0.0],
            [0.0, 1.0, 5.0, 1.0, 0.0],
            (2, 2),
            {"A span has at least two tokens here: it may start and end at the same one.": (2, 3)},
        ),
        (
            [2.0, 1.0, 0.0, 1.0, 0.0],
            [2.0, 0.0, 2.5, 1.0, 0.0],
            (0, 0),
            {
                "A span begins at position 0: that one stands for no answer, and goes with no other end.": (0, 2),
                "There is always an answer here: (0, 0) stands for none and may win.": (1, 2),
            },
        ),
    ]
    for start_logits, end_logits, span, mistakes in cases:
        start, end = as_pair(call(f, torch.tensor(start_logits), torch.tensor(end_logits)), "start and end")
        compare(
            f"span of start logits {start_logits} and end logits {end_logits}",
            torch.stack((as_number(start, int), as_number(end, int))),
            torch.tensor(span),
            {sentence: torch.tensor(wrong) for sentence, wrong in mistakes.items()},
        )
    print("Right: the best pair of ends, none of them before its start, or no answer.")
