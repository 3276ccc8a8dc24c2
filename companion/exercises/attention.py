"""The exercises of the chapter on attention: attention, masks, heads, the softmax's gradient."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from companion.attention import causal_mask, padding_mask, scaled_dot_product_attention
from companion.exercises.comparison import as_pair, broadcast, call, compare, random_tensors, without_leading_ones


def check_attention(f: Callable[..., Any]) -> None:
    """Check attention: ``f(query, key, value, mask=None) -> (output, weights)``.

    ``query`` is ``(batch, heads, query, d_k)``, ``key`` ``(batch, heads, key, d_k)``, ``value``
    ``(batch, heads, key, d_v)`` and ``mask`` a bool that broadcasts to the weights, ``True`` = may attend. The output
    is ``(batch, heads, query, d_v)``, the weights are ``(batch, heads, query, key)``. A query that may attend nowhere
    gets zeros.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_attention(scaled_dot_product_attention)
        Right: scale, softmax, mask, and a query that may attend nowhere.
    """
    query, key, value = random_tensors((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7))
    query = query / 2  # so that no softmax is so sharp that two mistakes look alike
    unscaled = query @ key.mT
    scores = unscaled / math.sqrt(5)

    def compare_both(result: object, weights: Tensor, mistakes: Mapping[str, Tensor]) -> None:
        output, got = as_pair(result, "(output, weights)")
        wrong_output = {"The weights are multiplied with the keys: multiply them with the values.": weights @ key}
        compare("output", output, weights @ value, {m: w @ value for m, w in mistakes.items()} | wrong_output)
        wrong_weights = {
            "The scores are returned in place of the weights: return their softmax.": scores,
            "The unscaled scores are returned in place of the weights: return the softmax.": unscaled,
        }
        compare("weights", got, weights, wrong_weights | dict(mistakes))

    compare_both(
        call(f, query, key, value),
        scores.softmax(-1),
        {
            "The scores are not scaled: divide them by sqrt(d_k).": unscaled.softmax(-1),
            "The scores are divided by d_k: divide them by its square root.": (unscaled / 5).softmax(-1),
            "The scores are multiplied by sqrt(d_k): divide them by it.": (unscaled * math.sqrt(5)).softmax(-1),
            "The scores are divided by the root of the number of keys: the root is that of d_k, the width of a key.": (
                (unscaled / math.sqrt(6)).softmax(-1)
            ),
            "The softmax runs over the queries: let it run over the keys, dim=-1.": scores.softmax(-2),
            "The softmax is missing: take it of the scores, over the keys.": scores,
        },
    )
    mask = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]]).bool()
    mask = torch.stack((mask, mask.flip(0)))[:, None]  # (b, 1, q, k)
    masked = scores.masked_fill(~mask, -math.inf).softmax(-1)
    compare_both(
        call(f, query, key, value, mask),
        masked,
        {
            "The mask is inverted: True = may attend, so fill the scores where it is False.": (
                scores.masked_fill(mask, -math.inf).softmax(-1)
            ),
            "The mask is ignored: where it is False, set the score to -inf before the softmax.": scores.softmax(-1),
            "The mask is applied after the softmax, so that the weights no longer sum to 1: set the scores to -inf "
            "before it.": scores.softmax(-1) * mask,
            "The scores are multiplied by the mask, and a score of 0 still has a weight: set it to -inf.": (
                (scores * mask).softmax(-1)
            ),
            "The mask is added to the scores as 0 and 1: set the scores to -inf where it is False.": (
                (scores + mask).softmax(-1)
            ),
        },
    )
    mask = mask.clone()
    mask[0, :, 2] = False
    right = masked * mask
    somewhere = mask.any(-1, keepdim=True)
    compare_both(
        call(f, query, key, value, mask),
        right,
        {
            "A query that may attend nowhere gets NaN, the softmax of nothing but -inf: set its weights to 0.": (
                right.masked_fill(~somewhere, math.nan)
            ),
            "A query that may attend nowhere gets equal weights, as a large negative number in place of -inf gives: "
            "set its weights to 0.": right.masked_fill(~somewhere, 1 / 6),
            "A query that may attend nowhere attends as without a mask, as a large negative number added to the scores "
            "gives: set its weights to 0.": torch.where(somewhere, right, scores.softmax(-1)),
        },
    )
    print("Right: scale, softmax, mask, and a query that may attend nowhere.")


def check_causal_mask(f: Callable[..., Any]) -> None:
    """Check the mask that hides the future: ``f(length) -> mask``, a bool ``(length, length)``, ``True`` = may attend.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_causal_mask(causal_mask)
        Right: each position sees itself and what stands before it.
        >>> check_causal_mask(lambda length: torch.ones(length, length).tril())
        Traceback (most recent call last):
        AssertionError: The mask holds numbers: make it bool, True = may attend.
    """
    right = causal_mask(5)
    compare(
        "mask",
        without_leading_ones(call(f, 5), 2),
        right,
        {
            "The mask is inverted: True = may attend, so the lower triangle with its diagonal is True.": ~right,
            "The mask is transposed, and a position sees only the future: row = query, column = key.": right.mT,
            "The mask is off by one, and a position sees the next one, the future: keep the diagonal and what is "
            "below.": torch.ones(5, 5).tril(1),
            "The mask is off by one, and a position misses itself: keep the diagonal.": torch.ones(5, 5).tril(-1),
            "The mask lets every position see all others: set what is above the diagonal to False.": torch.ones(5, 5),
            "The mask is one of 0 and -inf, to be added to scores: make it bool, True = may attend.": (
                torch.zeros(5, 5).masked_fill(~right, -math.inf)
            ),
            "The mask holds numbers: make it bool, True = may attend.": right.int(),
        },
    )
    print("Right: each position sees itself and what stands before it.")


def check_padding_mask(f: Callable[..., Any]) -> None:
    """Check the mask that hides padding: ``f(input_ids, pad_id=0) -> mask``.

    ``input_ids`` is ``(batch, length)``; the mask, a bool that broadcasts to ``(batch, heads, query, key)``, is
    ``False`` at the keys that are padding.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_padding_mask(lambda input_ids, pad_id=0: input_ids != pad_id)
        Traceback (most recent call last):
        AssertionError: The mask has no axes for the heads and the queries: index it with [:, None, None, :].
    """
    ids = torch.tensor([[7, 4, 2, 0, 0], [5, 0, 0, 0, 0], [3, 8, 6, 1, 0]])
    right = padding_mask(ids)  # (b, 1, 1, k)
    every_query = right.expand(3, 1, 5, 5)
    compare(
        "mask",
        broadcast(call(f, ids), every_query),
        every_query,
        {
            "The mask is inverted: True = may attend, so it is False at padding.": ~every_query,
            "The mask hides queries: put the new axes before the keys, [:, None, None, :].": every_query.mT,
            "The mask hides queries as well, which then may attend nowhere: hide the keys alone.": right & right.mT,
            "The mask has no axes for the heads and the queries: index it with [:, None, None, :].": ids != 0,
            "The mask has one axis too few: index it with [:, None, None, :], for heads and queries.": right[:, 0],
            "The mask holds numbers: make it bool, True = may attend.": every_query.int(),
        },
    )
    swapped = torch.where(ids == 0, 9, torch.where(ids == 8, 0, ids))  # padding is 9, and 0 a token
    compare(
        "mask with pad_id=9",
        broadcast(call(f, swapped, 9), every_query),
        every_query,
        {"pad_id is ignored: compare with it, not with 0.": padding_mask(swapped).expand(3, 1, 5, 5)},
    )
    print("Right: every query sees the keys that are tokens, whatever the pad_id.")


def check_multi_head_attention(f: Callable[..., Any]) -> None:
    """Check self-attention in several heads: ``f(x, w_q, w_k, w_v, w_o, num_heads) -> output``.

    ``x`` and the output are ``(batch, length, d_model)``; the four weights are ``(d_model, d_model)``, applied from the
    right (``x @ w_q``), without biases.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_multi_head_attention(
        ...     lambda x, w_q, w_k, w_v, w_o, num_heads: F.scaled_dot_product_attention(x @ w_q, x @ w_k, x @ w_v) @ w_o
        ... )
        Traceback (most recent call last):
        AssertionError: num_heads is ignored, and one head attends in the whole width: split the width into heads.
    """
    x, *weights = random_tensors((2, 5, 12), *[(12, 12)] * 4)
    weights = [weight / 3 for weight in weights]

    def right_split(x: Tensor, num_heads: int) -> Tensor:
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    def right_join(heads: Tensor) -> Tensor:
        return heads.transpose(1, 2).flatten(2)

    def attend(
        weights: list[Tensor] = weights,
        num_heads: int = 3,
        factor: float = 1.0,
        split: Callable[[Tensor, int], Tensor] = right_split,
        join: Callable[[Tensor], Tensor] = right_join,
    ) -> Tensor:
        w_q, w_k, w_v, w_o = weights
        q, k, v = (split(x @ w, num_heads) for w in (w_q * factor, w_k, w_v))
        return join(scaled_dot_product_attention(q, k, v).output) @ w_o

    def by_view(x: Tensor, num_heads: int) -> Tensor:
        return x.view(2, num_heads, 5, -1)

    def back_by_view(heads: Tensor) -> Tensor:
        return heads.reshape(2, 5, 12)

    compare(
        "output",
        call(f, x, *weights, 3),
        attend(),
        {
            "The heads are split by a view straight to (batch, num_heads, length, head_dim), which mixes the "
            "positions: view as (batch, length, num_heads, head_dim), then transpose(1, 2).": attend(split=by_view),
            "The heads are split and joined by views alone, which mixes the positions: transpose(1, 2) after the first "
            "and before the last.": attend(split=by_view, join=back_by_view),
            "The heads are joined without transposing back: transpose(1, 2) before the reshape.": (
                attend(join=back_by_view)
            ),
            "The scores are divided by sqrt(d_model): divide them by sqrt(head_dim), the width of a head.": (
                attend(factor=1 / math.sqrt(3))
            ),
            "The scores are not scaled: divide them by sqrt(head_dim).": attend(factor=math.sqrt(4)),
            "num_heads is ignored, and one head attends in the whole width: split the width into heads.": (
                attend(num_heads=1)
            ),
            "The output projection is missing: multiply the joined heads by w_o.": (
                attend([*weights[:3], torch.eye(12, dtype=x.dtype)])
            ),
            "The weights are transposed, as F.linear takes them: multiply from the right, x @ w_q.": (
                attend([w.T for w in weights])
            ),
        },
    )
    print("Right: each head attends in its own part of the width, and w_o joins them.")


def check_softmax_gradient(f: Callable[..., Any]) -> None:
    """Check the way back through a softmax: ``f(weights, upstream) -> gradient``.

    ``weights`` are the softmax of the scores, ``upstream`` is the gradient of the loss with respect to them; the
    result is the gradient with respect to the scores. All three are ``(..., n)``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_softmax_gradient(lambda weights, upstream: weights * upstream)
        Traceback (most recent call last):
        AssertionError: The sum is missing: subtract (weights * upstream).sum over the row from upstream first.
    """
    scores, upstream = random_tensors((2, 3, 4), (2, 3, 4))
    weights = scores.softmax(-1)
    product = weights * upstream
    right = product - weights * product.sum(-1, keepdim=True)
    compare(
        "gradient",
        call(f, weights, upstream),
        right,
        {
            "Only the diagonal of the Jacobian is taken: each score moves all weights of its row, not its own alone.": (
                product * (1 - weights)
            ),
            "The sum is missing: subtract (weights * upstream).sum over the row from upstream first.": product,
            "The sign is wrong: the gradient is weights * (upstream - sum), not the negative of it.": -right,
            "The plain mean of upstream is subtracted: subtract its mean weighted by the weights.": (
                weights * (upstream - upstream.mean(-1, keepdim=True))
            ),
            "The plain sum of upstream is subtracted: subtract its sum weighted by the weights.": (
                weights * (upstream - upstream.sum(-1, keepdim=True))
            ),
            "The sum runs over the queries: let it run over the last axis, keepdim=True.": (
                product - weights * product.sum(-2, keepdim=True)
            ),
            "The outer weights are missing: multiply upstream - sum by them.": upstream - product.sum(-1, keepdim=True),
        },
    )
    print("Right: each weight times what its upstream gradient exceeds the row's weighted mean by.")
