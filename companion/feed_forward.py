"""The feed-forward network of a layer, and its activations."""

from collections.abc import Callable
from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.checks import check_like_weights
from companion.dropout import Dropout
from companion.linear import Linear

Activation = Literal["relu", "gelu", "gelu_new", "swiglu"]


def _gate(x: Tensor) -> Tensor:
    gate, linear = x.chunk(2, dim=-1)
    return F.silu(gate) * linear


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "swiglu": _gate,
}


class FeedForward(nn.Module):
    """Two maps with a non-linearity between, the same at every position (Vaswani et al., 2017, equation 2).

    ``"swiglu"`` has three, without biases: ``outer(silu(W x) * V x)``, where ``inner`` holds W and V, one under the
    other (Shazeer, 2020, arXiv:2002.05202, equation 6). With ``d_ff`` two thirds as large it has as many parameters.

    Args:
        d_model: Width of input and output.
        d_ff: Width in between.
        activation: The paper's ``"relu"``, ``"gelu"`` (Hendrycks & Gimpel, 2016, arXiv:1606.08415), its approximation
            by tanh ``"gelu_new"``, as in BERT and ALBERT, or ``"swiglu"``.
        dropout: Dropout probability after the activation.

    Raises:
        ValueError: If ``activation`` is not one of these.

    Example:
        >>> feed_forward, x = FeedForward(d_model=4, d_ff=8, activation="relu"), torch.randn(2, 3, 4)
        >>> torch.equal(feed_forward(x), feed_forward.outer(feed_forward.inner(x).relu()))
        True
    """

    def __init__(self, d_model: int, d_ff: int, *, activation: Activation = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown; choose one of {get_args(Activation)}")
        gated = activation == "swiglu"
        self.activation = activation
        self.inner = Linear(d_model, 2 * d_ff if gated else d_ff, bias=not gated)
        self.outer = Linear(d_ff, d_model, bias=not gated)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Compute ``outer(dropout(activation(inner(x))))``, position by position.

        Args:
            x: ``(..., d_model)``.

        Returns:
            A tensor of the same shape.

        Raises:
            TypeError: If ``x`` has another dtype than the module.
            ValueError: If its width is another, or its device.
        """
        if x.dim() == 0 or x.size(-1) != self.inner.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (..., d_model={self.inner.in_features})")
        check_like_weights("x", x, self.inner)
        return self.outer(self.dropout(ACTIVATIONS[self.activation](self.inner(x))))
