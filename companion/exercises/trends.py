"""The exercises of the chapter on trends: weights in 8 bits, images as tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from companion.exercises.comparison import as_pair, call, compare, random_tensors


def check_quantize(f: Callable[..., Any]) -> None:
    """Check symmetric quantization to 8 bits by rows: ``f(weight) -> (quantized, scale)``.

    ``weight`` is float ``(rows, columns)``, no row of it all zeros. ``scale``, ``(rows, 1)``, is the largest magnitude
    of each row divided by 127; ``quantized``, int8 ``(rows, columns)``, holds the nearest multiples of it.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_quantize(lambda weight: ((127 * weight).to(torch.int8), weight.abs().max() / 127))
        Traceback (most recent call last):
        AssertionError: One scale serves the whole matrix: take the largest magnitude of each row (dim=-1).
    """
    (weight,) = random_tensors((3, 5))
    weight = weight * torch.tensor([[100.0], [3000.0], [1000.0]])
    weight[0, 2] = -600.0  # the largest of row 0, so that a maximum without abs differs
    largest = weight.abs().amax(dim=-1, keepdim=True)
    right = largest / 127
    quantized, scale = as_pair(call(f, weight), "(quantized, scale)")
    if isinstance(scale, Tensor) and scale.numel() == 1:
        scale = scale.reshape(1, 1).expand(3, 1)
    elif isinstance(scale, Tensor) and scale.numel() == max(scale.shape):
        scale = scale.reshape(-1, 1)
    compare(
        "scale",
        scale,
        right,
        {
            "One scale serves the whole matrix: take the largest magnitude of each row (dim=-1).": (
                weight.abs().max().expand(3, 1) / 127
            ),
            "There is a scale for each column: a row of the weights is what one output is made of (dim=-1).": (
                weight.abs().amax(dim=0)[:, None] / 127
            ),
            "The largest magnitude is divided by 128: int8 ends at 127, and 128 would wrap round to -128.": (
                largest / 128
            ),
            "The maximum is taken without abs: the largest magnitude may be a negative weight's.": (
                weight.amax(dim=-1, keepdim=True) / 127
            ),
            "The scale is upside down: it is what a whole number is multiplied by, largest / 127.": 127 / largest,
            "The scale spans minimum to maximum in 255 steps: that is the asymmetric form, which needs a zero point.": (
                (weight.amax(dim=-1, keepdim=True) - weight.amin(dim=-1, keepdim=True)) / 255
            ),
        },
        atol=1e-5,
        any_float=True,
    )
    steps = weight / right
    compare(
        "quantized weights",
        quantized,
        steps.round().to(torch.int8),
        {
            "The quotients are cut off towards 0: call round() before to(torch.int8).": steps.trunc(),
            "The quotients are rounded down: call round(), not floor().": steps.floor(),
            "These are the rounded weights as floats: return the whole numbers, before the scale is multiplied back.": (
                steps.round() * right
            ),
        },
    )
    print("Right: a scale for each row, and the nearest of its multiples from -127 to 127.")


def check_patches(f: Callable[..., Any]) -> None:
    """Check the cutting of images into patches, ``f(images, size) -> tokens``.

    A vision Transformer reads these (Dosovitskiy et al., 2021, arXiv:2010.11929). ``images`` is
    ``(batch, height, width)``; ``tokens``, ``(batch, patches, size * size)``, holds the squares of ``size`` by ``size``
    pixels, left to right and then top to bottom, the pixels of each in the same order.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_patches(lambda images, size: images.reshape(len(images), -1, size * size))
        Traceback (most recent call last):
        AssertionError: The tokens are pieces of rows: split height and width, and transpose before the last reshape.
    """
    (images,) = random_tensors((2, 4, 6))
    split = images.reshape(2, 2, 2, 3, 2)  # (b, rows of patches, rows within, columns of patches, columns within)
    right = split.permute(0, 1, 3, 2, 4).reshape(2, 6, 4)
    compare(
        "tokens",
        call(f, images, 2),
        right,
        {
            "The tokens are pieces of rows: split height and width, and transpose before the last reshape.": (
                images.reshape(2, 6, 4)
            ),
            "The patches go top to bottom first: the second one is that to the right of the first.": (
                split.permute(0, 3, 1, 2, 4).reshape(2, 6, 4)
            ),
            "The pixels of a patch go top to bottom first: transpose them.": (
                split.permute(0, 1, 3, 4, 2).reshape(2, 6, 4)
            ),
            "Tokens and pixels are exchanged: a row for each patch, (batch, patches, size * size).": right.mT,
            "Each token takes pixels from all over: an axis splits into (patches, size), not into (size, patches).": (
                images.reshape(2, 2, 2, 2, 3).permute(0, 2, 4, 1, 3).reshape(2, 6, 4)
            ),
            "The patches overlap: they lie side by side, so that the step from one to the next is size.": (
                images.unfold(1, 2, 1).unfold(2, 2, 1).reshape(2, 15, 4)
            ),
        },
    )
    (images,) = random_tensors((1, 6, 6))
    split = images.reshape(1, 2, 3, 2, 3)
    compare(
        "tokens with size=3",
        call(f, images, 3),
        split.permute(0, 1, 3, 2, 4).reshape(1, 4, 9),
        {},
    )
    print("Right: square by square, each with its pixels in a row.")
