"""Exercises: checks that try a reader's function and name the usual mistake they see.

Each ``check_...(f)`` calls ``f`` on small inputs and prints a line that begins with ``Right:``, or raises an
AssertionError of one sentence: the mistake and its mend, or else where the result first differs. What ``f`` itself
raises comes through. ``f`` gets copies, so it may work in place.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.attention import causal_mask, padding_mask, scaled_dot_product_attention
from companion.positions import RotaryEmbedding, alibi_bias, sinusoidal_encoding

# Background


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
    (scores,) = _random((2, 3, 4))
    _compare(
        "weights",
        _call(f, scores),
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

    _compare(
        "weights of large scores",
        _call(f, large),
        large.softmax(-1),
        {
            "Large scores overflow in exp and give NaN: subtract from each row its maximum first.": (
                after_subtracting(0.0)
            ),
            "One maximum is subtracted from all rows, so that a row far below it gives 0 / 0 = NaN: subtract from each "
            "row its own.": after_subtracting(large.max()),
        },
    )
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
    x, w_x, w_h, bias = (tensor.float() for tensor in _random((5, 3), (3, 4), (4, 4), (4,)))

    def run(step: Callable[[Tensor, Tensor], Tensor], x: Tensor = x) -> Tensor:
        states = [x.new_zeros(4)]
        for x_t in x:
            states.append(step(x_t, states[-1]))
        return torch.stack(states[1:])

    def elman(x_t: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x_t @ w_x + h @ w_h + bias)

    right = run(elman)
    _compare(
        "states",
        _call(f, x, w_x, w_h, bias),
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
    (x,) = _random((2, 6, 12))
    split = x.view(2, 6, 3, 4)
    _compare(
        "heads",
        _call(f, x, 3),
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
    (x,) = _random((3, 5, 4))
    mask = torch.arange(5) < torch.tensor([[3], [1], [4]])
    kept = x * mask[..., None]
    count = mask.sum(1, keepdim=True)
    _compare(
        "means",
        _call(f, x, mask),
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
            "The tokens are summed: divide by their number, mask.sum(dim=1).": kept.sum(1),
        },
    )
    print("Right: the mean of each text's tokens, whatever its padding.")


# Attention


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
    query, key, value = _random((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7))
    query = query / 2  # so that no softmax is so sharp that two mistakes look alike
    unscaled = query @ key.mT
    scores = unscaled / math.sqrt(5)

    def compare(result: object, weights: Tensor, mistakes: Mapping[str, Tensor]) -> None:
        output, got = _pair(result, "(output, weights)")
        wrong_output = {"The weights are multiplied with the keys: multiply them with the values.": weights @ key}
        _compare("output", output, weights @ value, {m: w @ value for m, w in mistakes.items()} | wrong_output)
        wrong_weights = {
            "The scores are returned in place of the weights: return their softmax.": scores,
            "The unscaled scores are returned in place of the weights: return the softmax.": unscaled,
        }
        _compare("weights", got, weights, wrong_weights | dict(mistakes))

    compare(
        _call(f, query, key, value),
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
    compare(
        _call(f, query, key, value, mask),
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
    compare(
        _call(f, query, key, value, mask),
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
    _compare(
        "mask",
        _without_leading_ones(_call(f, 5), 2),
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
    _compare(
        "mask",
        _broadcast(_call(f, ids), every_query),
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
    _compare(
        "mask with pad_id=9",
        _broadcast(_call(f, swapped, 9), every_query),
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
    x, *weights = _random((2, 5, 12), *[(12, 12)] * 4)
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

    _compare(
        "output",
        _call(f, x, *weights, 3),
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
    scores, upstream = _random((2, 3, 4), (2, 3, 4))
    weights = scores.softmax(-1)
    product = weights * upstream
    right = product - weights * product.sum(-1, keepdim=True)
    _compare(
        "gradient",
        _call(f, weights, upstream),
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


# Positions


def check_positions(f: Callable[..., Any]) -> None:
    """Check the table of sinusoids (Vaswani et al., 2017, section 3.5): ``f(length, d_model) -> table``.

    The table is ``(length, d_model)``, float32 or float64, with ``sin(pos / 10000^(2i / d_model))`` in column ``2i``
    and the cosine of the same angle in column ``2i + 1``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_positions(sinusoidal_encoding)
        Right: sines and cosines in turn, pair by pair slower.
    """
    position, column = torch.arange(5, dtype=torch.float64)[:, None], torch.arange(6, dtype=torch.float64)
    exponent = column[::2] / 6

    def table(angle: Tensor) -> Tensor:
        return torch.where(column % 2 == 0, angle.sin(), angle.cos())  # one angle a column

    def twice(angle: Tensor) -> Tensor:
        return angle.repeat_interleave(2, dim=-1)

    angle = position * 10_000.0**-exponent
    right = sinusoidal_encoding(5, 6)
    _compare(
        "table",
        _call(f, 5, 6),
        right,
        {
            "The sines fill the first half and the cosines the second: let them take turns, columns 2i and 2i + 1.": (
                torch.cat((angle.sin(), angle.cos()), dim=-1)
            ),
            "Sine and cosine are exchanged: the sine stands in the even columns.": (
                torch.where(column % 2 == 0, twice(angle).cos(), twice(angle).sin())
            ),
            "The positions begin with 1: the first is 0.": sinusoidal_encoding(6, 6)[1:],
            "The exponent of pair i is i / d_model: make it 2i / d_model.": (
                table(twice(position * 10_000.0 ** -(exponent / 2)))
            ),
            "The exponent takes the column for the pair: columns 2i and 2i + 1 have the exponent 2i / d_model.": (
                table(position * 10_000.0 ** -(2 * column / 6))
            ),
            "The cosine has another angle than the sine of its pair: give both the exponent 2i / d_model.": (
                table(position * 10_000.0 ** -(column / 6))
            ),
            "The position is multiplied by 10000^(2i / d_model): divide by it.": (
                table(twice(position * 10_000.0**exponent))
            ),
            "The table is transposed: a row for each position, a column for each feature.": right.T,
            "All columns are sines: the odd ones are the cosines of the same angles.": twice(angle).sin(),
        },
        atol=1e-5,
        any_float=True,
    )
    print("Right: sines and cosines in turn, pair by pair slower.")


def check_shift_matrix(f: Callable[..., Any]) -> None:
    """Check the matrix that shifts sinusoids: ``f(k, d_model) -> matrix``.

    The matrix, ``(d_model, d_model)``, float32 or float64, is the one with
    ``encoding(pos + k) = matrix @ encoding(pos)`` for every ``pos``, the encoding as in `check_positions`.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_shift_matrix(lambda k, d_model: torch.eye(d_model))
        Traceback (most recent call last):
        AssertionError: f returned 1 for the matrix at [0, 0], the first entry that differs; expected -0.99.
    """

    def turns(angle: Tensor) -> Tensor:
        sine, cosine = angle.sin(), angle.cos()
        return torch.block_diag(*torch.stack((cosine, sine, -sine, cosine), dim=-1).view(-1, 2, 2))

    frequency = 10_000.0 ** -(torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    right = turns(3 * frequency)
    pairs_to_halves = [0, 2, 4, 1, 3, 5]
    _compare(
        "matrix",
        _call(f, 3, 6),
        right,
        {
            "The matrix turns the wrong way, from pos + k to pos: exchange sin and -sin.": right.T,
            "The matrix is made for sines in the first half and cosines in the second: put a 2 x 2 block for each pair "
            "along the diagonal.": right[pairs_to_halves][:, pairs_to_halves],
            "All pairs turn by the angle k: pair i turns by k / 10000^(2i / d_model).": turns(
                3 * torch.ones(3).double()
            ),
            "k is ignored, and the matrix shifts by 1: turn pair i by k / 10000^(2i / d_model).": turns(frequency),
            "The exponent of pair i is i / d_model: make it 2i / d_model.": turns(3 * frequency.sqrt()),
        },
        atol=1e-5,
        any_float=True,
    )
    print("Right: a rotation for each pair, by an angle that depends on the shift alone.")


def check_rotary(f: Callable[..., Any]) -> None:
    """Check rotary embeddings (Su et al., 2021, arXiv:2104.09864): ``f(x, offset=0) -> turned``.

    ``x`` and the result are ``(batch, heads, length, head_dim)``; features ``2i`` and ``2i + 1`` of position ``m``,
    counted from ``offset``, are turned by ``m / 10000^(2i / head_dim)``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_rotary(RotaryEmbedding(head_dim=8))
        Right: each pair is turned by its position, counted from the offset.
    """
    (x,) = _random((2, 3, 5, 8))
    x = x.float()  # so that float32 and float64 angles do alike
    rotary = RotaryEmbedding(8)
    to_halves, to_pairs, exchanged = [0, 4, 1, 5, 2, 6, 3, 7], [0, 2, 4, 6, 1, 3, 5, 7], [1, 0, 3, 2, 5, 4, 7, 6]
    _compare(
        "turned x",
        _call(f, x),
        rotary(x),
        {
            "The pairs are (i, i + head_dim / 2), as in GPT-NeoX: pair the neighbours (2i, 2i + 1).": (
                rotary(x[..., to_halves])[..., to_pairs]
            ),
            "The pairs turn the wrong way: (a, b) becomes (a cos - b sin, a sin + b cos).": (
                rotary(x[..., exchanged])[..., exchanged]
            ),
            "The positions begin with 1: the first is 0, which turns nothing.": rotary(x, 1),
            "The sinusoids are added: turn each pair by its angle instead.": x + sinusoidal_encoding(5, 8),
            "The angle grows along the heads: the positions are the axis before the last.": (
                rotary(x.transpose(1, 2)).transpose(1, 2)
            ),
            "All pairs turn by the same angle: pair i turns by m / 10000^(2i / head_dim).": RotaryEmbedding(8, 1.0)(x),
            "The exponent of pair i is i / head_dim: make it 2i / head_dim.": RotaryEmbedding(8, 100.0)(x),
        },
        atol=1e-5,
        any_float=True,
    )
    _compare(
        "turned x with offset=3",
        _call(f, x, 3),
        rotary(x, 3),
        {
            "offset is ignored: the first position is offset, not 0.": rotary(x),
            "offset is subtracted: the first position is offset.": rotary(x, -3),
        },
        atol=1e-5,
        any_float=True,
    )
    print("Right: each pair is turned by its position, counted from the offset.")


def check_alibi(f: Callable[..., Any]) -> None:
    """Check the biases of ALiBi (Press et al., 2022, arXiv:2108.12409): ``f(num_heads, length) -> bias``.

    The bias is ``-slope * |query - key|``, ``(num_heads, length, length)``, float32 or float64, with the slopes
    ``2^(-8 / n), 2^(-16 / n), ..., 2^-8`` for ``n`` heads, a power of 2.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_alibi(alibi_bias)
        Right: a slope for each head, and less for keys further away.
    """
    right = alibi_bias(4, 5)
    distance = torch.arange(5)[:, None] - torch.arange(5)
    slopes = 4.0 ** -torch.arange(1, 5)[:, None, None]
    _compare(
        "bias",
        _call(f, 4, 5),
        right,
        {
            "The bias is positive and rewards distance: give it a minus sign.": -right,
            "The slopes begin with 1: the first is 2^(-8 / n).": 4 * right,
            "The slopes halve from head to head whatever their number: head h has 2^(-8 h / n), h from 1.": (
                -(2.0 ** -torch.arange(1, 5)[:, None, None]) * distance.abs()
            ),
            "All heads have the slope of the first: head h has 2^(-8 h / n), h from 1.": right[:1].expand_as(right),
            "All heads have the slope of the last: head h has 2^(-8 h / n), h from 1.": right[-1:].expand_as(right),
            "The slopes are missing: multiply the distance by 2^(-8 h / n) for head h, h from 1.": (
                -distance.abs().expand_as(right)
            ),
            "The heads are in reverse order: the first has the steepest slope.": right.flip(0),
            "The distance has a sign, and keys after the query are rewarded: take its absolute value.": (
                -slopes * distance
            ),
            "The distance has a sign, and keys before the query are rewarded: take its absolute value, with a minus "
            "sign.": slopes * distance,
            "The future is masked as well: leave that to the causal mask.": right.masked_fill(distance < 0, -math.inf),
        },
        any_float=True,
    )
    print("Right: a slope for each head, and less for keys further away.")


# Layers


def check_layer_norm(f: Callable[..., Any]) -> None:
    """Check layer normalisation (Ba et al., 2016, arXiv:1607.06450): ``f(x, gain, bias, eps=1e-5) -> normalised``.

    ``(x - mean) / sqrt(variance + eps) * gain + bias`` over the last axis of ``x`` ``(batch, length, d)``, the variance
    divided by ``d``; ``gain`` and ``bias`` are ``(d,)``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_layer_norm(lambda x, gain, bias, eps=1e-5: F.layer_norm(x, gain.shape, gain, bias, eps))
        Right: mean, variance, eps under the root, gain and bias.
    """
    x, gain, bias = _random((2, 4, 5), (5,), (5,))
    x, gain = x + 0.5, gain + 2

    def normalise(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-5, correction: int = 0) -> Tensor:
        variance = x.var(dim, correction=correction, keepdim=True)
        return (x - x.mean(dim, keepdim=True)) / (variance + eps).sqrt()

    def outside(x: Tensor, eps: float) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + eps)

    _compare(
        "normalised x",
        _call(f, x, gain, bias),
        normalise(x) * gain + bias,
        {
            "The variance is divided by d - 1: divide it by d (correction=0).": normalise(x, correction=1) * gain
            + bias,
            "The mean is not subtracted, as in RMSNorm: subtract it, from the variance too.": (
                F.rms_norm(x, (5,), gain, 1e-5) + bias
            ),
            "x is divided by its variance: divide it by the square root.": (
                (x - x.mean(-1, keepdim=True)) / x.var(-1, correction=0, keepdim=True) * gain + bias
            ),
            "Mean and variance are those of the batch: take them over the last axis.": normalise(x, 0) * gain + bias,
            "Mean and variance are those of the length: take them over the last axis.": normalise(x, 1) * gain + bias,
            "Mean and variance are taken over length and width together: take them over the last axis alone.": (
                normalise(x, (1, 2)) * gain + bias
            ),
            "Neither gain nor bias is applied: multiply by gain, then add bias.": normalise(x),
            "The gain is not applied: multiply by it before the bias is added.": normalise(x) + bias,
            "The bias is not applied: add it after the gain.": normalise(x) * gain,
        },
        atol=1e-3,  # eps follows, where it counts
    )
    small, sentence = x / 10_000, "eps is added to the standard deviation: add it to the variance, under the root."
    _compare(
        "normalised x of small variance",
        _call(f, small, gain, bias),
        normalise(small) * gain + bias,
        {
            sentence: outside(small, 1e-5) * gain + bias,
            "eps is missing: add it to the variance, under the root.": normalise(small, eps=0.0) * gain + bias,
        },
    )
    _compare(
        "normalised x with eps=0.1",
        _call(f, x, gain, bias, 0.1),
        normalise(x, eps=0.1) * gain + bias,
        {
            sentence: outside(x, 0.1) * gain + bias,
            "The argument eps is ignored: add it to the variance, under the root.": normalise(x) * gain + bias,
        },
    )
    print("Right: mean, variance, eps under the root, gain and bias.")


def check_feed_forward(f: Callable[..., Any]) -> None:
    """Check the feed-forward network: ``f(x, w_1, b_1, w_2, b_2) -> output``.

    ``max(0, x @ w_1 + b_1) @ w_2 + b_2`` (Vaswani et al., 2017, equation 2), with ``x`` and the output
    ``(batch, length, d_model)``, ``w_1`` ``(d_model, d_ff)`` and ``w_2`` ``(d_ff, d_model)``.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_feed_forward(lambda x, w_1, b_1, w_2, b_2: F.gelu(x @ w_1 + b_1) @ w_2 + b_2)
        Traceback (most recent call last):
        AssertionError: The activation is GELU: the equation has ReLU, max(0, ...).
    """
    x, w_1, b_1, w_2, b_2 = _random((2, 3, 4), (4, 6), (6,), (6, 4), (4,))
    hidden = x @ w_1 + b_1
    right = hidden.relu() @ w_2 + b_2
    _compare(
        "output",
        _call(f, x, w_1, b_1, w_2, b_2),
        right,
        {
            "There is no non-linearity, so the two maps are one: take max(0, ...) between them.": hidden @ w_2 + b_2,
            "The activation is GELU: the equation has ReLU, max(0, ...).": F.gelu(hidden) @ w_2 + b_2,
            "The ReLU follows the second map as well: take it between the two alone.": right.relu(),
            "The ReLU follows the second map: take it between the two.": (hidden @ w_2 + b_2).relu(),
            "The first bias comes after the ReLU: add it before.": ((x @ w_1).relu() + b_1) @ w_2 + b_2,
            "The first bias is missing: add b_1 before the ReLU.": (x @ w_1).relu() @ w_2 + b_2,
            "The second bias is missing: add b_2 in the end.": hidden.relu() @ w_2,
            "Both biases are missing: add b_1 before the ReLU and b_2 in the end.": (x @ w_1).relu() @ w_2,
        },
    )
    print("Right: two maps with their biases, and a ReLU between them.")


def check_post_norm(f: Callable[..., Any]) -> None:
    """Check the residual connection of 2017: ``f(x, sublayer, norm) -> norm(x + sublayer(x))``.

    ``x`` is ``(batch, length, d_model)``; ``sublayer`` and ``norm`` are functions that keep its shape.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_post_norm(lambda x, sublayer, norm: x + sublayer(norm(x)))
        Traceback (most recent call last):
        AssertionError: This is pre-norm, x + sublayer(norm(x)): normalise the sum, norm(x + sublayer(x)).
    """
    x, weight, gain, bias = _random((2, 3, 4), (4, 4), (4,), (4,))

    def sublayer(x: Tensor) -> Tensor:
        return torch.tanh(x @ weight)

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (4,), gain, bias)

    _compare(
        "output",
        _call(f, x, sublayer, norm),
        norm(x + sublayer(x)),
        {
            "This is pre-norm, x + sublayer(norm(x)): normalise the sum, norm(x + sublayer(x)).": x + sublayer(norm(x)),
            "The residual connection is missing: add x to the sublayer's output before the norm.": norm(sublayer(x)),
            "The norm comes before x is added: normalise the sum, norm(x + sublayer(x)).": norm(sublayer(x)) + x,
            "The norm is missing: take it of the sum, norm(x + sublayer(x)).": x + sublayer(x),
            "The input is normalised as well as the sum: give the sublayer x itself.": norm(x + sublayer(norm(x))),
            "The sublayer is missing: add its output to x before the norm.": norm(x),
        },
    )
    print("Right: the sum of x and the sublayer's output is normalised.")


def check_parameter_count(f: Callable[..., Any]) -> None:
    """Check the number of parameters of an encoder layer: ``f(d_model, d_ff) -> int``.

    A layer has four projections (query, key, value, output) and two feed-forward maps, all with biases, and two
    LayerNorms, each with a gain and a bias.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_parameter_count(lambda d_model, d_ff: 4 * d_model**2 + 2 * d_model * d_ff)
        Traceback (most recent call last):
        AssertionError: Only the matrices are counted: add the biases of the six maps and the two LayerNorms.
    """
    d, d_ff = 6, 20
    attention, feed_forward, norm = 4 * (d * d + d), 2 * d * d_ff + d_ff + d, 2 * d
    right = attention + feed_forward + 2 * norm
    _compare(
        "number of parameters",
        _number(_call(f, d, d_ff), int),
        torch.tensor(right),
        {
            sentence: torch.tensor(right - missing)
            for sentence, missing in {
                "Only the matrices are counted: add the biases of the six maps and the two LayerNorms.": (
                    5 * d + d_ff + 2 * norm
                ),
                "The biases of the six maps are forgotten: add 5 d_model + d_ff.": 5 * d + d_ff,
                "All biases are forgotten, those of the LayerNorms too: add 7 d_model + d_ff.": 7 * d + d_ff,
                "The biases of the feed-forward maps are forgotten: add d_ff + d_model.": d_ff + d,
                "The LayerNorms (or as many, the biases of the four projections) are forgotten: add 4 d_model.": (
                    2 * norm
                ),
                "Half of the LayerNorms is forgotten: there are two, each with a gain and a bias.": norm,
                "The output projection is forgotten: attention has four, query, key, value and output.": d * d + d,
                "One of the feed-forward maps is forgotten: add the way back, d_ff x d_model and its bias.": (
                    d * d_ff + d
                ),
            }.items()
        },
    )
    print("Right: four projections, two feed-forward maps and two LayerNorms.")


def check_learning_rate(f: Callable[..., Any]) -> None:
    """Check the learning rate of Vaswani et al., 2017, section 5.3: ``f(step, d_model, warmup) -> rate``.

    ``d_model^-0.5 * min(step^-0.5, step * warmup^-1.5)``, a number, for steps from 1 on.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_learning_rate(lambda step, d_model, warmup: d_model**-0.5 * min(step**-0.5, step * warmup**-1.5))
        Right: a straight rise to the end of the warm-up, then the inverse root of the step.
    """
    step = torch.tensor([1, 2, 4, 9, 16], dtype=torch.float64)
    rise, fall = step * 4**-1.5, step**-0.5
    right = torch.minimum(rise, fall) / 3
    _compare(
        "rates of steps 1, 2, 4, 9 and 16 with d_model=9 and warmup=4",
        torch.stack([_number(_call(f, s, 9, 4), float) for s in (1, 2, 4, 9, 16)]),
        right,
        {
            "The larger of the two terms is taken: take the smaller, min.": torch.maximum(rise, fall) / 3,
            "The rate is multiplied by the root of d_model: its exponent is -0.5.": 9 * right,
            "The rate does not depend on d_model: multiply by d_model^-0.5.": 3 * right,
            "The rate is divided by d_model: its exponent is -0.5.": right / 3,
            "The exponent of warmup is -0.5: it is -1.5, so that the two terms meet at step = warmup.": (
                torch.minimum(step * 4**-0.5, fall) / 3
            ),
            "There is no warm-up: take the smaller of step^-0.5 and step * warmup^-1.5.": fall / 3,
            "The rate rises for ever: take the smaller of step^-0.5 and step * warmup^-1.5.": rise / 3,
        },
        atol=1e-6,  # it may be a float32 tensor
    )
    print("Right: a straight rise to the end of the warm-up, then the inverse root of the step.")


def check_teacher_forcing(f: Callable[..., Any]) -> None:
    """Check what a decoder reads and predicts in training: ``f(target_ids) -> (decoder_input, labels)``.

    ``target_ids`` is ``(batch, n)``: bos, tokens, eos, then padding. Input and labels are ``(batch, n - 1)``, and the
    label at each position is the token after the one read there.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_teacher_forcing(lambda target_ids: (target_ids[:, :-1], target_ids[:, 1:]))
        Right: at each position the decoder reads one token and predicts the next.
    """
    ids = torch.tensor([[2, 7, 5, 9, 3, 0], [2, 8, 6, 4, 7, 3]])
    early, late = ids[:, :-1], ids[:, 1:]
    leaks = "Nothing is shifted, so the decoder reads the very token it is to predict: the labels are {}"
    decoder_input, labels = _pair(_call(f, ids), "(decoder_input, labels)")
    for sentence, wrong in {
        leaks.format("target_ids[:, 1:], the input is target_ids[:, :-1]."): (ids, ids),
        leaks.format("target_ids[:, 1:]."): (early, early),
        "The decoder reads the very token it is to predict: its input is target_ids[:, :-1].": (late, late),
        "Input and labels are exchanged, or shifted the wrong way: the input ends one early, the labels start one "
        "late.": (late, early),
        "The input is not shortened: leave out its last column, which predicts nothing.": (ids, late),
        "The labels are not shortened: leave out bos, which is never predicted.": (early, ids),
    }.items():
        if _same(decoder_input, wrong[0], 0.5) and _same(labels, wrong[1], 0.5):
            raise AssertionError(sentence)
    _compare("decoder input", decoder_input, early, {})
    _compare("labels", labels, late, {})
    print("Right: at each position the decoder reads one token and predicts the next.")


# What the checks share


def _random(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _call(f: Callable[..., Any], *args: Any) -> Any:
    result = f(*(arg.clone() if isinstance(arg, Tensor) else arg for arg in args))
    if result is None:
        raise AssertionError("f returned None: it has no return yet.")
    return result


def _pair(result: object, names: str) -> tuple[object, object]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        many = f" of {len(result)}" if isinstance(result, tuple | list) else ""
        raise AssertionError(f"f returned type {type(result).__name__}{many}; expected a pair, {names}.")
    return result[0], result[1]


def _number(result: object, kind: type) -> Tensor:
    """Make a tensor of a number, such as `_compare` takes; an int does for a float."""
    if isinstance(result, Tensor) and result.dim() == 0:
        result = result.item()
    if not isinstance(result, kind | int):
        raise AssertionError(f"f returned type {type(result).__name__}; expected a number, {kind.__name__}.")
    return torch.tensor(result, dtype=torch.float64 if kind is float else torch.int64)


def _without_leading_ones(got: Any, dim: int) -> Any:
    if isinstance(got, Tensor) and got.dim() > dim and got.shape[:-dim].numel() == 1:
        return got.reshape(got.shape[-dim:])
    return got


def _broadcast(got: Any, like: Tensor) -> Any:
    """Expand ``(batch, 1, 1, key)`` or the like; what lacks an axis stays as it is, since it might fit by chance."""
    if not isinstance(got, Tensor) or got.dim() != like.dim():
        return got
    fits = all(size in (1, wanted) for size, wanted in zip(got.shape, like.shape, strict=True))
    return got.expand(like.shape) if fits else got


def _same(got: object, wanted: Tensor, atol: float) -> bool:
    return (
        isinstance(got, Tensor)
        and got.shape == wanted.shape
        and torch.allclose(got.detach().cpu().double(), wanted.double(), rtol=0, atol=atol, equal_nan=True)
    )


def _compare(
    what: str,
    got: object,
    expected: Tensor,
    mistakes: Mapping[str, Tensor],
    atol: float = 1e-9,
    any_float: bool = False,
) -> None:
    """Raise the sentence of the mistake that ``got`` shows, or else one that says how it differs from ``expected``.

    Args:
        what: The name of the result.
        got: What f returned.
        expected: What it is to return.
        mistakes: What each usual mistake returns in its place, under the sentence that names it.
        atol: How far from ``expected`` a value may be; a mistake is recognised within 1e-3.
        any_float: Whether another floating dtype than that of ``expected`` is right too.
    """
    fits = isinstance(got, Tensor) and (got.dtype == expected.dtype or (any_float and got.is_floating_point()))
    if fits and _same(got, expected, atol):
        return
    for sentence, wrong in mistakes.items():
        if _same(got, wrong, 1e-3):
            raise AssertionError(sentence)
    shape = tuple(expected.shape)
    if not isinstance(got, Tensor):
        came = "None" if got is None else f"type {type(got).__name__}"
        raise AssertionError(f"f returned {came} for the {what}; expected a tensor of shape {shape}.")
    if got.shape != expected.shape:
        raise AssertionError(f"f returned shape {tuple(got.shape)} for the {what}; expected {shape}.")
    if not fits:
        raise AssertionError(f"f returned {got.dtype} for the {what}; expected {expected.dtype}.")
    came, wanted = got.detach().cpu().double(), expected.double()
    index = tuple((~torch.isclose(came, wanted, rtol=0, atol=atol)).nonzero()[0].tolist())
    where = f" at {list(index)}, the first entry that differs" if index else ""
    came, wanted = came[index].item(), wanted[index].item()
    digits = 4 if f"{came:.4g}" != f"{wanted:.4g}" else 12
    raise AssertionError(f"f returned {came:.{digits}g} for the {what}{where}; expected {wanted:.{digits}g}.")
