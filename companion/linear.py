"""Linear layers: torch.nn's, with a quicker product for the few rows of a step of decoding on a CPU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MOST_ROWS, FEWEST_WEIGHTS = 64, 2**16


class Linear(nn.Linear):
    """Apply ``x @ weight.T + bias``.

    It differs from ``torch.nn.Linear`` by rounding alone, and only in inference on a CPU, in float32, for at most 64
    rows and at least 2^16 weights: there reading the weights takes longer than computing with them, and the product of
    the weights' halves with the rows, instead of the rows with the weights, reads them faster from memory where it was
    measured, the more so the fewer the rows; weights that a cache holds it may read more slowly.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether a bias is added.
        device: Where its weights are.
        dtype: Of its weights.

    Example:
        >>> linear, x = Linear(256, 512), torch.randn(3, 256)
        >>> with torch.no_grad():
        ...     torch.allclose(linear(x), x @ linear.weight.T + linear.bias, atol=1e-5)
        True
    """

    def forward(self, input: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """Apply the layer.

        Args:
            input: ``(..., in_features)``.

        Returns:
            ``(..., out_features)``.
        """
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias`` by the quicker way."""
    if not _is_faster_by_halves(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.size(-1)).t().expand(2, -1, -1)
    halves = weight.view(2, -1, weight.size(1)) @ rows  # (2, out / 2, rows)
    y = halves.view(weight.size(0), -1).t().flatten().view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def _is_faster_by_halves(x: Tensor, weight: Tensor) -> bool:
    if weight.numel() < FEWEST_WEIGHTS or x.numel() > MOST_ROWS * x.size(-1) or torch.is_grad_enabled():
        return False
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return x.dtype == weight.dtype == torch.float32 and weight.size(0) % 2 == 0 and x.numel() > 0
