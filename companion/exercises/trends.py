"""The exercises of the chapter on trends: linear attention, the cost of an encoder, 8-bit weights, patches."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from companion.efficient_attention import linear_attention
from companion.exercises.comparison import as_number, as_pair, call, compare, random_tensors


def check_linear_attention(f: Callable[..., Any]) -> None:
    """Check linear attention (Katharopoulos et al., 2020, arXiv:2006.16236): ``f(query, key, value) -> output``.

    The weights are ``phi(q_i) . phi(k_j)``, divided by their sum over the keys, with ``phi(x) = elu(x) + 1``; all four
    tensors are ``(batch, heads, length, d)``. No tensor with an entry for each query and key may be formed.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_linear_attention(F.scaled_dot_product_attention)
        Traceback (most recent call last):
        AssertionError: This is softmax attention: the weights are phi(q) . phi(k), without an exponential.
    """
    query, key, value = random_tensors((2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4))

    def phi(x: Tensor) -> Tensor:
        return F.elu(x) + 1

    def normalised(q: Tensor, k: Tensor, dim: int = -1) -> Tensor:
        weights = q @ k.mT
        return weights / weights.sum(dim, keepdim=True) @ value

    unnormalised = phi(query) @ phi(key).mT @ value
    causal = (phi(query) @ phi(key).mT).tril()
    compare(
        "output",
        call(f, query, key, value),
        linear_attention(query, key, value),
        {
            "This is softmax attention: the weights are phi(q) . phi(k), without an exponential.": (
                F.scaled_dot_product_attention(query, key, value)
            ),
            "This is softmax attention, not even scaled: the weights are phi(q) . phi(k), without an exponential.": (
                F.scaled_dot_product_attention(query, key, value, scale=1.0)
            ),
            "The 1 is missing, and weights may be negative: phi(x) = elu(x) + 1.": normalised(F.elu(query), F.elu(key)),
            "phi is the ReLU: make it elu(x) + 1, which is positive everywhere.": normalised(query.relu(), key.relu()),
            "phi is missing: take elu(x) + 1 of queries and keys.": normalised(query, key),
            "phi is taken of the queries alone: take it of the keys as well.": normalised(phi(query), key),
            "phi is taken of the keys alone: take it of the queries as well.": normalised(query, phi(key)),
            "The queries are divided by the root of d_k: linear attention has no scale.": (
                normalised(phi(query / 2), phi(key))
            ),
            "The sums are not divided: divide by phi(q) times the sum of phi(k) over the keys.": unnormalised,
            "The sums are divided by the number of keys: divide by phi(q) times the sum of phi(k).": unnormalised / 5,
            "The weights of a key sum to 1 over the queries: divide by the sum over the keys.": (
                normalised(phi(query), phi(key), dim=-2)
            ),
            "Each query sees the keys up to its own place alone: sum over all keys.": (
                causal / causal.sum(-1, keepdim=True) @ value
            ),
        },
        atol=1e-5,
        any_float=True,
    )
    long = random_tensors((1, 1, 300, 4), (1, 1, 300, 4), (1, 1, 300, 4))
    with _LargestOutput() as largest, FlopCounterMode(display=False) as counter:
        output = call(f, *long)
    compare("output of 300 tokens", output, linear_attention(*long), {}, atol=1e-5, any_float=True)
    if largest.size >= 300 * 300 or counter.get_total_flops() >= 2 * 300 * 300 * 4:
        raise AssertionError(
            "The values are right, but an entry is formed for each query and key: multiply keys by values first."
        )
    print("Right: keys times values first, and nothing with an entry for each query and key.")


def check_multiply_adds(f: Callable[..., Any]) -> None:
    """Check the multiply-adds of an encoder's forward pass: ``f(length, d_model, d_ff, num_layers) -> int``.

    Those of the matrix products, for one sequence: four projections, scores and weighted sum over all heads, two
    feed-forward maps; biases, softmax and norms are left out.

    Raises:
        AssertionError: If ``f`` is wrong; the message names the mistake.

    Example:
        >>> check_multiply_adds(lambda n, d, d_ff, layers: layers * (4 * n * d**2 + 2 * n * d * d_ff))
        Traceback (most recent call last):
        AssertionError: Scores and weighted sum are forgotten: add length^2 * d_model for each of them.
    """
    for n, d, d_ff, layers in ((7, 6, 20, 3), (50, 64, 256, 2)):
        projection, scores, feed_forward = n * d * d, n * n * d, n * d * d_ff
        right = layers * (4 * projection + 2 * scores + 2 * feed_forward)
        compare(
            "number of multiply-adds",
            as_number(call(f, n, d, d_ff, layers), int),
            torch.tensor(right),
            {
                sentence: torch.tensor(wrong)
                for sentence, wrong in {
                    "Scores and weighted sum are forgotten: add length^2 * d_model for each of them.": (
                        right - layers * 2 * scores
                    ),
                    "The weighted sum (or the scores) is forgotten: each has length^2 * d_model.": right
                    - layers * scores,
                    "A score is counted as one multiply-add: over all heads it has d_model.": (
                        right - layers * 2 * (scores - n * n)
                    ),
                    "The projections are three: there is a fourth, of the output.": right - layers * projection,
                    "One of the feed-forward maps is forgotten: there and back, each has length * d_model * d_ff.": (
                        right - layers * feed_forward
                    ),
                    "The maps are counted once: each token goes through them, so multiply by length.": (
                        layers * (4 * d * d + 2 * scores + 2 * d * d_ff)
                    ),
                    "num_layers is ignored: multiply by it.": right // layers,
                    "These are additions and multiplications, two for each multiply-add: count pairs.": 2 * right,
                    "The backward pass is counted too, twice the forward pass: leave it out.": 3 * right,
                }.items()
            },
        )
    print("Right: projections and feed-forward maps grow with length, scores and weighted sum with its square.")


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
    elif isinstance(scale, Tensor) and scale.shape in ((3,), (5,), (1, 5)):
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
    """Check images cut into patches (Dosovitskiy et al., 2021, arXiv:2010.11929): ``f(images, size) -> tokens``.

    ``images`` is ``(batch, height, width)``; ``tokens``, ``(batch, patches, size * size)``, holds the squares of
    ``size`` by ``size`` pixels, left to right and then top to bottom, the pixels of each in the same order.

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


class _LargestOutput(TorchDispatchMode):
    """Record the number of elements of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(x.numel() for x in tree_leaves(output) if isinstance(x, Tensor))])
        return output
