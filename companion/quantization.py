"""Quantization: linear layers with 8-bit weights, whose inputs are quantized as they come, and what that saves."""

import copy
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from companion.batching import LabelledBatch
from companion.positions import LearnedPositionalEmbedding

_AnyModel = TypeVar("_AnyModel", bound=nn.Module)

LARGEST = 127
"""The largest magnitude of a quantized number; int8 has -128 too, which has no counterpart."""


def quantize_rows(x: Float[Tensor, "*row column"]) -> tuple[Int8[Tensor, "*row column"], Float[Tensor, "*row 1"]]:
    r"""Round each row to whole multiples of its scale: ``x ≈ scale * quantized``, ``scale = max |row| / 127``.

    This is symmetric quantization: 0 stays 0, and no entry is off by more than ``scale / 2``.

    Args:
        x: ``(..., row, column)``.

    Returns:
        Whole numbers from -127 to 127, of the shape of ``x``, and the scale of each row, ``(..., row, 1)``.

    Example:
        >>> quantized, scale = quantize_rows(torch.tensor([[127.0, -63.6, 0.0]]))
        >>> quantized.tolist(), scale.tolist()
        ([[127, -64, 0]], [[1.0]])
    """
    scale = x.abs().amax(dim=-1, keepdim=True) / LARGEST
    scale = scale.masked_fill(scale == 0, 1.0)
    return (x / scale).round().to(torch.int8), scale


class QuantizedLinear(nn.Module):
    r"""A linear layer with int8 weights, for inference on a CPU: dynamic quantization.

    Each row of the weights has a scale, found once, and each row of the input one of its own, found at every call:
    ``y = (x_quantized @ weight_quantized.T) * x_scale * weight_scale + bias``. The product is one of whole numbers,
    summed in int32.

    Args:
        linear: The layer to quantize; it is left as it was.

    Raises:
        ValueError: If it is not on a CPU.

    Example:
        >>> linear, x = nn.Linear(64, 32), torch.randn(3, 64)
        >>> quantized = QuantizedLinear(linear)
        >>> quantized.quantized.dtype, torch.allclose(quantized(x), linear(x), atol=0.05)
        (torch.int8, True)
    """

    quantized: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.weight.device.type != "cpu":
            raise ValueError(f"linear is on {linear.weight.device}; move it to the CPU, where the int8 product is")
        quantized, scale = quantize_rows(linear.weight.detach())
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("quantized", quantized)
        self.scale = nn.Parameter(scale.squeeze(-1), requires_grad=False)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weights as floats, made anew at each use, for callers that read a slice of them."""
        return self.quantized * self.scale[:, None]

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """Apply the layer.

        Args:
            x: ``(..., in_features)``.

        Returns:
            ``(..., out_features)``, in the dtype of ``x``; no gradient goes through it.
        """
        rows, scale = quantize_rows(x.detach().reshape(-1, self.in_features))
        product = torch._int_mm(rows, self.quantized.t())  # pyright: ignore[reportPrivateImportUsage]
        y = product.to(scale.dtype) * scale * self.scale.to(scale.dtype)
        y = y if self.bias is None else y + self.bias.to(scale.dtype)
        return y.view(*x.shape[:-1], self.out_features)


def quantize_linears(model: _AnyModel) -> _AnyModel:
    """Return a copy of a model with a `QuantizedLinear` in the place of each linear layer, in evaluation mode.

    Embeddings and normalisations stay as they are.

    Args:
        model: The model; it is left as it was.

    Returns:
        The copy.

    Raises:
        ValueError: If a linear layer is not on a CPU.

    Example:
        >>> model = TextClassifier(ClassifierConfig(vocab_size=9, d_model=16, num_heads=2)).eval()
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> torch.allclose(quantize_linears(model)(ids), model(ids), atol=0.05)
        True
    """
    root = nn.ModuleDict({"model": copy.deepcopy(model).eval()})  # a parent for the model, which may be linear itself
    quantized: dict[nn.Module, QuantizedLinear] = {}  # a layer may stand in several places
    for parent in [*root.modules()]:
        for name, child in [*parent._modules.items()]:
            if isinstance(child, nn.Linear):
                if child not in quantized:
                    quantized[child] = QuantizedLinear(child)
                parent.register_module(name, quantized[child])
    return cast(_AnyModel, root["model"])


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Add up the bytes of a model's weights, by what they are of.

    Args:
        model: The model.

    Returns:
        The bytes under ``"linear"``, of linear layers, quantized or not, with bias and scales; ``"embedding"``, of
        embeddings and learned positions; ``"other"``, of the rest.

    Example:
        >>> linear = nn.Linear(100, 10)  # 1,000 weights and 10 biases of 4 bytes
        >>> weight_bytes(linear)["linear"], weight_bytes(quantize_linears(linear))["linear"]
        (4040, 1080)
    """
    kinds = {"linear": (nn.Linear, QuantizedLinear), "embedding": (nn.Embedding, LearnedPositionalEmbedding)}
    left = {id(tensor): tensor.nbytes for tensor in model.state_dict(keep_vars=True).values()}
    counted = {kind: 0 for kind in kinds}
    for module in model.modules():
        for kind, classes in kinds.items():
            if isinstance(module, classes):
                tensors = module.state_dict(keep_vars=True).values()
                counted[kind] += sum(left.pop(id(tensor), 0) for tensor in tensors)
    return {**counted, "other": sum(left.values())}


@torch.inference_mode()
def compare_quantized(
    model: nn.Module, batches: Sequence[LabelledBatch], *, repetitions: int = 3
) -> list[dict[str, Any]]:
    """Measure a classifier of texts and its quantized copy on the same batches, taking turns.

    Args:
        model: From ids ``(batch, length)`` to logits ``(batch,)``, on a CPU.
        batches: What to measure on.
        repetitions: How often each reads all batches; the median of the seconds counts.

    Returns:
        Two rows, of the models ``"fp32"`` and ``"int8"``: ``model``, ``bytes`` (as `companion.weight_bytes`),
        ``accuracy``, ``loss``, ``agreement`` (the share of texts on which both decide alike), ``difference`` (the mean
        absolute difference of the logits) and ``seconds``.

    Example:
        >>> from companion.quantization import compare_quantized
        >>> model = TextClassifier(ClassifierConfig(vocab_size=9, d_model=16, num_heads=2))
        >>> batches = [LabelledBatch(torch.tensor([[5, 6], [7, 0]]), torch.tensor([1.0, 0.0]))]
        >>> rows = compare_quantized(model, batches, repetitions=1)
        >>> [(row["model"], row["bytes"]["embedding"], row["bytes"]["linear"]) for row in rows]
        [('fp32', 33344, 38276), ('int8', 33344, 11928)]
    """
    models = {"fp32": copy.deepcopy(model).eval(), "int8": quantize_linears(model)}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    logits: dict[str, Tensor] = {}
    for _ in range(repetitions):
        for name, compared in models.items():
            start = time.perf_counter()
            logits[name] = torch.cat([compared(batch.input_ids) for batch in batches])
            seconds[name].append(time.perf_counter() - start)
    labels = torch.cat([batch.labels for batch in batches])
    decisions = {name: values > 0 for name, values in logits.items()}
    return [
        {
            "model": name,
            "bytes": weight_bytes(compared),
            "accuracy": (decisions[name] == labels.bool()).double().mean().item(),
            "loss": F.binary_cross_entropy_with_logits(logits[name], labels).item(),
            "agreement": (decisions[name] == decisions["fp32"]).double().mean().item(),
            "difference": (logits[name] - logits["fp32"]).abs().mean().item(),
            "seconds": round(median(seconds[name]), 2),
        }
        for name, compared in models.items()
    ]
