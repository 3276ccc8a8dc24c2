"""The exercise of the chapter of questions: a softmax under a mask, with a gradient that is finite everywhere."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from companion.exercises.comparison import call, compare, random_tensors


def check_masked_softmax(f: Callable[..., Any]) -> None:
    """Check the softmax under a mask: ``f(scores, mask) -> weights``.

    ``scores`` is ``(batch, query, key)`` and ``mask`` a bool of the same shape, ``True`` = may attend. Each row of
    weights, ``(batch, query, key)``, sums to 1 over the keys that it may attend to; a row that may attend nowhere gets
    zeros. The gradient of the scores is finite, and zero where the mask is ``False``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> def masked_softmax(scores, mask):
        ...     return scores.masked_fill(~mask, float("-inf")).softmax(-1).masked_fill(~mask, 0.0)
        >>> check_masked_softmax(masked_softmax)
        Right: weights over what the mask allows, zeros where that is nothing, and a finite gradient.
        >>> check_masked_softmax(lambda scores, mask: scores.masked_fill(~mask, -1e9).softmax(-1))
        Traceback (most recent call last):
        AssertionError: A row that may attend nowhere gets equal weights, as a large negative number in place of -inf \
gives: set them to 0.
    """
    scores, upstream = random_tensors((2, 3, 4), (2, 3, 4))
    mask = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]], [[0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0]]]).bool()
    nowhere = ~mask.any(-1, keepdim=True)
    masked = scores.masked_fill(~mask, -math.inf).softmax(-1)
    right = masked.masked_fill(~mask, 0.0)

    attempt = scores.clone().requires_grad_()
    weights = call(f, attempt, mask)
    compare(
        "weights",
        weights,
        right,
        {
            "The mask is inverted: True = may attend, so fill the scores where it is False.": (
                scores.masked_fill(mask, -math.inf).softmax(-1)
            ),
            "The mask is ignored: where it is False, set the score to -inf before the softmax.": scores.softmax(-1),
            "A row that may attend nowhere gets NaN, the softmax of nothing but -inf: set its weights to 0.": masked,
            "A row that may attend nowhere gets equal weights, as a large negative number in place of -inf gives: "
            "set them to 0.": right.masked_fill(nowhere, 1 / 4),
            "A row that may attend nowhere attends as without a mask, as a large negative number added to the scores "
            "gives: set its weights to 0.": torch.where(nowhere, scores.softmax(-1), right),
            "The mask is applied after the softmax, and the weights no longer sum to 1: set the scores to -inf before "
            "it.": scores.softmax(-1) * mask,
            "The scores are multiplied by the mask, and a score of 0 still has a weight: set it to -inf.": (
                (scores * mask).softmax(-1)
            ),
            "The softmax runs over the queries: let it run over the keys, dim=-1.": (
                scores.masked_fill(~mask, -math.inf).softmax(-2)
            ),
        },
    )
    compare(
        "gradient of the scores",
        _gradient(weights, attempt, upstream),
        right * (upstream - (right * upstream).sum(-1, keepdim=True)),
        {
            "The weights are right, but the gradient of a row that may attend nowhere is NaN, for its softmax is: fill "
            "the scores where the mask is False instead of adding -inf, so that no gradient passes there.": (
                torch.zeros_like(scores).masked_fill(nowhere, math.nan)
                + right * (upstream - (right * upstream).sum(-1, keepdim=True))
            ),
            "The weights carry no gradient: compute them from the scores by functions of torch, without detach.": (
                torch.zeros_like(scores)
            ),
        },
    )
    print("Right: weights over what the mask allows, zeros where that is nothing, and a finite gradient.")


def _gradient(weights: Tensor, scores: Tensor, upstream: Tensor) -> Tensor:
    """Return the gradient of ``scores``; zeros where ``weights`` has none to give."""
    if not weights.requires_grad:
        return torch.zeros_like(scores)
    return torch.autograd.grad(weights, scores, upstream)[0]
