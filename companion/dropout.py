"""Dropout: torch.nn's, with cheaper random numbers on a CPU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Zero elements with probability ``p`` in training, and divide the others by ``1 - p`` (Srivastava et al., 2014).

    In float32 and bf16 on a CPU an element costs 16 random bits: one number of 64 serves four. ``torch.nn.Dropout``
    draws a number for each, which takes longer than much of what it is applied to. The probability is right to 2^-16,
    and a seed gives other masks than there. On a GPU, in another dtype and where ``torch.compile`` traces, it is
    ``torch.nn.Dropout``.

    Args:
        p: The probability of zero.

    Raises:
        ValueError: If ``p`` is no probability.

    Example:
        >>> dropout, x = Dropout(0.2), torch.ones(100_000)
        >>> y = dropout(x)
        >>> y.unique(), round((y == 0).float().mean().item(), 1)
        (tensor([0.0000, 1.2500]), 0.2)
        >>> dropout.eval()(x) is x
        True
    """

    def __init__(self, p: float | int = 0.5) -> None:
        super().__init__(p)

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop in training; return the input itself in evaluation.

        Args:
            input: Of any shape.

        Returns:
            A tensor of the same shape.
        """
        return drop(input, self.p) if self.training else input


def drop(x: Tensor, p: float) -> Tensor:
    """Drop elements of a tensor with probability ``p``, by the quick way where there is one."""
    if not 0 < p < 1 or not draws_quickly(x):
        return F.dropout(x, p)
    draws = x.new_empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    least = min(round(p * 2**16), 2**16 - 1) - 2**15
    return x * bits.ge_(least).to(x.dtype).mul_(1 / (1 - p))  # in place, which is quicker than to make bools


def draws_quickly(x: Tensor) -> bool:
    """Tell whether it is a CPU that draws, in a dtype that models are trained in; a compiler has ways of its own."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and not torch.compiler.is_compiling()
