"""The exercises of the chapter on trends: linear attention, and the cost of an encoder."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from companion.efficient_attention import linear_attention
from companion.exercises.comparison import as_number, call, compare, random_tensors


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


class _LargestOutput(TorchDispatchMode):
    """Record the number of elements of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(x.numel() for x in tree_leaves(output) if isinstance(x, Tensor))])
        return output
