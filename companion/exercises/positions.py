"""The exercises of the chapter on positions: sinusoids, their shift, rotary positions, ALiBi."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from companion.exercises.comparison import call, compare, random_tensors
from companion.positions import RotaryEmbedding, alibi_bias, sinusoidal_encoding


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
    compare(
        "table",
        call(f, 5, 6),
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
    compare(
        "matrix",
        call(f, 3, 6),
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
    (x,) = random_tensors((2, 3, 5, 8))
    x = x.float()  # so that float32 and float64 angles do alike
    rotary = RotaryEmbedding(8)
    to_halves, to_pairs, exchanged = [0, 4, 1, 5, 2, 6, 3, 7], [0, 2, 4, 6, 1, 3, 5, 7], [1, 0, 3, 2, 5, 4, 7, 6]
    compare(
        "turned x",
        call(f, x),
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
            "The turned pairs are joined half by half: stack and flatten them, so that they stay neighbours.": (
                rotary(x)[..., to_pairs]
            ),
            "The angle grows along the heads: the positions are the axis before the last.": (
                rotary(x.transpose(1, 2)).transpose(1, 2)
            ),
            "All pairs turn by the same angle: pair i turns by m / 10000^(2i / head_dim).": RotaryEmbedding(8, 1.0)(x),
            "The exponent of pair i is i / head_dim: make it 2i / head_dim.": RotaryEmbedding(8, 100.0)(x),
        },
        atol=1e-5,
        any_float=True,
    )
    compare(
        "turned x with offset=3",
        call(f, x, 3),
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
    compare(
        "bias",
        call(f, 4, 5),
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
            "Keys after the query get 0: the distance is absolute, and hiding the future is the mask's task.": (
                right.masked_fill(distance < 0, 0.0)
            ),
        },
        any_float=True,
    )
    compare(
        "bias of 8 heads",
        call(f, 8, 5),
        alibi_bias(8, 5),
        {
            "The slopes are those of 4 heads whatever num_heads: head h of n has 2^(-8 h / n), h from 1.": (
                -(4.0 ** -torch.arange(1, 9)[:, None, None]) * distance.abs()
            ),
        },
        any_float=True,
    )
    print("Right: a slope for each head, and less for keys further away.")
