"""Dropout: torch.nn's, with cheaper random numbers on a CPU."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Zero elements with probability ``p`` in training, and divide the others by ``1 - p`` (Srivastava et al., 2014).

    It is ``torch.nn.Dropout``, and is that where it stands on a GPU, computes in float64 or is compiled. On a CPU that
    spends more time on random numbers, one to an element, than on much of what it drops; here an element costs 16
    random bits, so that one number of 64 serves four. The probability is right to 2^-16, and a seed gives other masks
    than ``torch.nn.Dropout``.

    Example:
        >>> dropout, x = Dropout(0.25), torch.ones(100_000)
        >>> y = dropout(x)
        >>> y.unique(), round((y == 0).float().mean().item(), 1)
        (tensor([0.0000, 1.3333]), 0.2)
        >>> torch.equal(dropout.eval()(x), x)
        True
    """

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop in training; return the input as it is in evaluation."""
        return drop(input, self.p) if self.training else input


def drop(x: Tensor, p: float) -> Tensor:
    """Drop elements of a tensor with probability ``p``, by the quick way where there is one."""
    if p in (0.0, 1.0) or not draws_quickly(x):
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    least = min(round(p * 2**16), 2**16 - 1) - 2**15
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= least
    return x * kept.to(x.dtype).mul_(1 / (1 - p))


def draws_quickly(x: Tensor) -> bool:
    """Tell whether it is a CPU that draws, in a dtype that models are trained in; a compiler has ways of its own."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and not torch.compiler.is_compiling()
