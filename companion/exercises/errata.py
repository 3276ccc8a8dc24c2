"""The exercise of the chapter of errata: a test that tells whether a layer knows the order of its input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from companion.exercises.comparison import as_number, call, compare, random_tensors


def check_permutation_gap(f: Callable[..., Any]) -> None:
    """Check a test of equivariance: ``f(layer, x, order) -> gap``.

    ``layer`` maps ``x``, ``(batch, length, d)``, to a tensor of that shape; ``order`` is a permutation of the
    positions, ``(length,)``. The gap, a number, is the largest absolute difference between what the layer makes of the
    permuted input and its output for ``x``, permuted in the same way. It is 0, up to rounding, for a layer that knows
    no order.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_permutation_gap(lambda layer, x, order: (layer(x[:, order]) - layer(x)).abs().max())
        Traceback (most recent call last):
        AssertionError: The output for x is not permuted, or both are: permute it alone, layer(x)[:, order].
    """
    (x,) = random_tensors((5, 5, 5))  # as many texts and features as positions, so that any axis can be permuted
    order = torch.tensor([1, 2, 4, 0, 3])

    def layer(x: Tensor) -> Tensor:
        return x + x.cumsum(1) + 0.3 * x.cumsum(0) + 0.2 * x.cumsum(2)  # the order along any axis matters to it

    permuted_in, output = layer(x[:, order]), layer(x)
    difference = permuted_in - output[:, order]
    size = difference.abs()

    def gap(wrong: Tensor) -> Tensor:
        return wrong.abs().max()

    compare(
        "gap",
        as_number(call(f, layer, x, order), float),
        size.max(),
        {
            "The output for x is not permuted, or both are: permute it alone, layer(x)[:, order].": (
                gap(permuted_in - output)
            ),
            "The input is not permuted: give the layer x[:, order] as well as x.": gap(output - output[:, order]),
            "The output for x[:, order] is put back in order and that for x is permuted: do one of the two.": (
                gap(permuted_in[:, order.argsort()] - output[:, order])
            ),
            "The output is permuted by the inverse of order: permute it as the input, layer(x)[:, order].": (
                gap(permuted_in - output[:, order.argsort()])
            ),
            "The texts are permuted: the positions are the second axis, x[:, order].": (
                gap(layer(x[order]) - output[order])
            ),
            "The features are permuted: the positions are the second axis, x[:, order].": (
                gap(layer(x[..., order]) - output[..., order])
            ),
            "The differences keep their signs: take their absolute values before the largest.": difference.max(),
            "The mean difference is returned: one position that differs is enough, so take the largest.": size.mean(),
            "The differences are summed: take the largest, which does not grow with the size of x.": size.sum(),
            "The norm of the differences is returned: take the largest absolute one.": difference.norm(),
        },
        atol=1e-6,  # it may be a float32 tensor
    )
    print("Right: 0 for a layer that knows no order, more for one that does, in some order.")
