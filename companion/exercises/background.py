"""The exercises of the chapter on the background: softmax, recurrence, heads, pooling."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from companion.exercises.comparison import call, compare, random_tensors


def check_softmax(f: Callable[..., Any]) -> None:
    """Check a softmax over the last axis: ``f(scores) -> weights``, both ``(..., n)``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_softmax(lambda scores: torch.softmax(scores, dim=-1))
        Right: exponentials, a sum over the last axis, and scores of any size.
        >>> check_softmax(lambda scores: torch.softmax(scores, dim=0))
        Traceback (most recent call last):
        AssertionError: The softmax runs over the first axis: sum over the last one, dim=-1.
    """
    (scores,) = random_tensors((2, 3, 4))
    compare(
        "weights",
        call(f, scores),
        scores.softmax(-1),
        {
            "The softmax runs over the first axis: sum over the last one, dim=-1.": scores.softmax(0),
            "The softmax runs over the queries (dim=-2): sum over the last axis, dim=-1.": scores.softmax(-2),
            "The softmax runs over all entries at once: sum over the last axis alone, dim=-1.": (
                scores.flatten().softmax(0).view_as(scores)
            ),
            "The scores are divided by their sum without an exponential: take exp(scores) first.": (
                scores / scores.sum(-1, keepdim=True)
            ),
            "The exponentials are not normalised: divide them by their sum over the last axis.": scores.exp(),
        },
    )
    large = scores + torch.tensor([[1000.0], [-1000.0], [0.0]])

    def after_subtracting(maximum: Tensor | float) -> Tensor:
        exponentials = (large - maximum).exp()
        return exponentials / exponentials.sum(-1, keepdim=True)

    compare(
        "weights of large scores",
        call(f, large),
        large.softmax(-1),
        {
            "Large scores overflow in exp and give NaN: subtract from each row its maximum first.": (
                after_subtracting(0.0)
            ),
            "One maximum is subtracted from all rows, so that a row far below it gives 0 / 0 = NaN: subtract from each "
            "row its own.": after_subtracting(large.max()),
        },
    )
    wide = call(f, scores * 1000)
    if isinstance(wide, Tensor) and wide.isnan().any():
        raise AssertionError(
            "What is subtracted from a row is not its maximum, so that a larger score still overflows: subtract "
            "scores.amax(dim=-1, keepdim=True)."
        )
    compare("weights of scores far apart", wide, (scores * 1000).softmax(-1), {})
    print("Right: exponentials, a sum over the last axis, and scores of any size.")


def check_recurrence(f: Callable[..., Any]) -> None:
    """Check a recurrent network (Elman, 1990): ``f(x, w_x, w_h, bias) -> states``.

    ``h_t = tanh(x_t @ w_x + h_(t-1) @ w_h + bias)`` from ``h_0 = 0``, with ``x`` ``(length, d_x)``, ``w_x``
    ``(d_x, d_h)``, ``w_h`` ``(d_h, d_h)``, ``bias`` ``(d_h,)`` and the states ``h_1, h_2, ...`` ``(length, d_h)``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_recurrence(lambda x, w_x, w_h, bias: torch.tanh(x @ w_x + bias))
        Traceback (most recent call last):
        AssertionError: The state is not carried from step to step: add h @ w_h, h being the state before.
    """
    # In float32, since a reader starts from torch.zeros(d_h).
    x, w_x, w_h, bias = (tensor.float() for tensor in random_tensors((5, 3), (3, 4), (4, 4), (4,)))

    def run(step: Callable[[Tensor, Tensor], Tensor], x: Tensor = x) -> Tensor:
        states = [x.new_zeros(4)]
        for x_t in x:
            states.append(step(x_t, states[-1]))
        return torch.stack(states[1:])

    def elman(x_t: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x_t @ w_x + h @ w_h + bias)

    right = run(elman)
    compare(
        "states",
        call(f, x, w_x, w_h, bias),
        right,
        {
            "The state is not carried from step to step: add h @ w_h, h being the state before.": (
                torch.tanh(x @ w_x + bias)
            ),
            "The tanh is missing: take it of the whole sum, at every step.": run(
                lambda x_t, h: x_t @ w_x + h @ w_h + bias
            ),
            "The tanh is taken of the input alone: take it of the whole sum, h @ w_h included.": run(
                lambda x_t, h: torch.tanh(x_t @ w_x + bias) + h @ w_h
            ),
            "w_h is transposed: multiply from the right, h @ w_h.": run(
                lambda x_t, h: torch.tanh(x_t @ w_x + h @ w_h.T + bias)
            ),
            "The bias is missing: add it before the tanh.": run(lambda x_t, h: torch.tanh(x_t @ w_x + h @ w_h)),
            "The sequence is read from its end: begin with x[0].": run(elman, x.flip(0)).flip(0),
            "The sequence is read from its end, and the states stand in that order: begin with x[0].": (
                run(elman, x.flip(0))
            ),
            "The zero state h_0 is among the states: return those from h_1 on.": torch.cat((x.new_zeros(1, 4), right)),
            "Only the last state is returned: stack the states of all steps.": right[-1],
        },
        atol=1e-6,
    )
    print("Right: one step after the other, each from the state before.")


def check_split_heads(f: Callable[..., Any]) -> None:
    """Check how a width is split into heads: ``f(x, num_heads) -> heads``.

    ``x`` is ``(batch, length, d_model)``, and the heads are ``(batch, num_heads, length, head_dim)``: head 0 has the
    first ``head_dim`` features of every position.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_split_heads(lambda x, num_heads: x.view(len(x), num_heads, x.size(1), -1))
        Traceback (most recent call last):
        AssertionError: A view straight to (batch, num_heads, length, head_dim) mixes the positions: ...
    """
    (x,) = random_tensors((2, 6, 12))
    split = x.view(2, 6, 3, 4)
    compare(
        "heads",
        call(f, x, 3),
        split.transpose(1, 2),
        {
            "A view straight to (batch, num_heads, length, head_dim) mixes the positions: view as (batch, length, "
            "num_heads, head_dim), then transpose(1, 2).": x.view(2, 3, 6, 4),
            "The length is split instead of the width: split the last axis.": x.view(2, 3, 2, 12),
            "The features are dealt out to the heads in turn: give head 0 the first head_dim, head 1 the next.": (
                x.view(2, 6, 4, 3).permute(0, 3, 1, 2)
            ),
            "The heads still stand after the length: exchange the two with transpose(1, 2).": split,
            "num_heads is taken for the width of a head: the width is d_model / num_heads.": (
                x.view(2, 6, 4, 3).transpose(1, 2)
            ),
        },
    )
    print("Right: the width is split, and the heads stand before the length.")


def check_mean_pooling(f: Callable[..., Any]) -> None:
    """Check the mean of a text's tokens: ``f(x, mask) -> means``.

    ``x`` is ``(batch, length, d)``, ``mask`` a bool ``(batch, length)``, ``True`` where a token stands and ``False`` at
    padding; the means are ``(batch, d)``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_mean_pooling(lambda x, mask: x.mean(dim=1))
        Traceback (most recent call last):
        AssertionError: The padding is pooled too: multiply x by the mask, and divide by the number of tokens.
    """
    (x,) = random_tensors((3, 5, 4))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1]]).bool()
    kept = x * mask[..., None]
    count = mask.sum(1, keepdim=True)
    compare(
        "means",
        call(f, x, mask),
        kept.sum(1) / count,
        {
            "The padding is pooled too: multiply x by the mask, and divide by the number of tokens.": x.mean(1),
            "The sum of the tokens is divided by the whole length: divide it by their number, mask.sum(dim=1).": (
                kept.mean(1)
            ),
            "The mask is inverted: True marks a token, and only padding is pooled here.": (
                (x - kept).sum(1) / (5 - count)
            ),
            "The mean is taken over the batch: sum over the length, dim=1.": x.mean(0),
            "All texts are pooled into one mean: sum over the length alone, dim=1.": x[mask].mean(0),
            "The sums are divided by the number of tokens in the batch: divide each by its own text's.": (
                kept.sum(1) / mask.sum()
            ),
            "Only the first token is taken: sum over all tokens of a text.": x[:, 0],
            "The first positions are pooled, as many as there are tokens: take those where the mask is True.": (
                torch.stack([text[: int(n)].mean(0) for text, n in zip(x, count, strict=True)])
            ),
            "The tokens are summed: divide by their number, mask.sum(dim=1).": kept.sum(1),
        },
    )
    print("Right: the mean of each text's tokens, whatever its padding.")
