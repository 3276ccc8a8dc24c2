"""The exercises of the chapter on layers: normalisation, feed-forward, residuals, counts, schedule, teacher forcing."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.exercises.comparison import as_number, as_pair, call, compare, is_same, random_tensors


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
    x, gain, bias = random_tensors((2, 4, 5), (5,), (5,))
    x, gain = x + 0.5, gain + 2

    def normalise(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-5, correction: int = 0) -> Tensor:
        variance = x.var(dim, correction=correction, keepdim=True)
        return (x - x.mean(dim, keepdim=True)) / (variance + eps).sqrt()

    def outside(x: Tensor, eps: float) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + eps)

    compare(
        "normalised x",
        call(f, x, gain, bias),
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
    compare(
        "normalised x of small variance",
        call(f, small, gain, bias),
        normalise(small) * gain + bias,
        {
            sentence: outside(small, 1e-5) * gain + bias,
            "eps is missing: add it to the variance, under the root.": normalise(small, eps=0.0) * gain + bias,
        },
    )
    compare(
        "normalised x with eps=0.1",
        call(f, x, gain, bias, 0.1),
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
    x, w_1, b_1, w_2, b_2 = random_tensors((2, 3, 4), (4, 6), (6,), (6, 4), (4,))
    hidden = x @ w_1 + b_1
    right = hidden.relu() @ w_2 + b_2
    compare(
        "output",
        call(f, x, w_1, b_1, w_2, b_2),
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
    x, weight, gain, bias = random_tensors((2, 3, 4), (4, 4), (4,), (4,))

    def sublayer(x: Tensor) -> Tensor:
        return torch.tanh(x @ weight)

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (4,), gain, bias)

    compare(
        "output",
        call(f, x, sublayer, norm),
        norm(x + sublayer(x)),
        {
            "This is pre-norm, x + sublayer(norm(x)): normalise the sum, norm(x + sublayer(x)).": x + sublayer(norm(x)),
            "The residual connection is missing: add x to the sublayer's output before the norm.": norm(sublayer(x)),
            "The norm comes before x is added: normalise the sum, norm(x + sublayer(x)).": norm(sublayer(x)) + x,
            "The norm is missing: take it of the sum, norm(x + sublayer(x)).": x + sublayer(x),
            "The input is normalised as well as the sum: give the sublayer x itself.": norm(x + sublayer(norm(x))),
            "The sublayer is missing: add its output to x before the norm.": norm(x),
            "x itself is normalised before the sum: keep x, and normalise the sum.": norm(x) + sublayer(norm(x)),
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
    compare(
        "number of parameters",
        as_number(call(f, d, d_ff), int),
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
    compare(
        "rates of steps 1, 2, 4, 9 and 16 with d_model=9 and warmup=4",
        torch.stack([as_number(call(f, s, 9, 4), float) for s in (1, 2, 4, 9, 16)]),
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
            "warmup is ignored: put it in the place of 4000.": torch.minimum(step * 4000**-1.5, fall) / 3,
            "d_model is ignored: put it in the place of 512.": right * 3 * 512**-0.5,
            "The steps are counted from 0: the first is step 1.": (
                torch.minimum((step - 1) * 4**-1.5, (step - 1) ** -0.5) / 3
            ),
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
    decoder_input, labels = as_pair(call(f, ids), "(decoder_input, labels)")
    for sentence, wrong in {
        leaks.format("target_ids[:, 1:], the input is target_ids[:, :-1]."): (ids, ids),
        leaks.format("target_ids[:, 1:]."): (early, early),
        "The decoder reads the very token it is to predict: its input is target_ids[:, :-1].": (late, late),
        "Input and labels are exchanged, or shifted the wrong way: the input ends one early, the labels start one "
        "late.": (late, early),
        "The input is not shortened: leave out its last column, which predicts nothing.": (ids, late),
        "The labels are not shortened: leave out bos, which is never predicted.": (early, ids),
    }.items():
        if is_same(decoder_input, wrong[0], 0.5) and is_same(labels, wrong[1], 0.5):
            raise AssertionError(sentence)
    compare("decoder input", decoder_input, early, {})
    compare("labels", labels, late, {})
    print("Right: at each position the decoder reads one token and predicts the next.")
