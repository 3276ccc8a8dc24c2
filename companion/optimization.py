"""Optimization: how to train, the learning rate over a run, the optimizers, and which weights decay."""

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from companion.devices import Precision

OptimizerName = Literal["adamw", "lamb"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Attributes:
        epochs: Passes over the training batches.
        learning_rate: The peak; it rises from 0 over the warm-up and falls to 0 at the end, both linearly.
        warmup_fraction: The part of the run that the warm-up takes.
        optimizer: ``"adamw"``, or ``"lamb"`` (You et al., 2020, arXiv:1904.00962, algorithm 2 without the correction
            of the moments, as in Google's code), made for batches of thousands of texts. Its trust ratio scales biases
            and normalisations too, which that code leaves out.
        weight_decay: The optimizer's, on matrices and embeddings; biases and normalisations have none.
        max_grad_norm: The norm that the gradient is clipped to.
        gradient_accumulation_steps: Batches to one update of the weights.
        mixed_precision: ``"fp32"``, ``"bf16"`` or ``"auto"``: bf16 where the hardware multiplies it natively (CUDA
            from Ampere on, CPUs with AMX) and the model is at least 256 wide, fp32 elsewhere.
        seed: The seed of dropout. (The sampler and the initial weights have seeds of their own.)

    Raises:
        ValueError: If a value is out of range; the message names the field and what would do.

    Example:
        >>> TrainingConfig(epochs=10, warmup_fraction=1.0)
        Traceback (most recent call last):
        ValueError: warmup_fraction=1.0; choose 0 <= warmup_fraction < 1
    """

    epochs: int = 3
    learning_rate: float = 1e-3
    warmup_fraction: float = 0.1
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    mixed_precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("epochs", "gradient_accumulation_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}; choose 1 or more")
        for field in ("learning_rate", "max_grad_norm"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field}={getattr(self, field)}; choose more than 0")
        for field in ("weight_decay", "seed"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field}={getattr(self, field)}; choose 0 or more")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction={self.warmup_fraction}; choose 0 <= warmup_fraction < 1")
        if self.mixed_precision not in get_args(Precision):
            raise ValueError(f"mixed_precision={self.mixed_precision!r}; choose one of {get_args(Precision)}")
        if self.optimizer not in get_args(OptimizerName):
            raise ValueError(f"optimizer={self.optimizer!r}; choose one of {get_args(OptimizerName)}")
        if self.optimizer == "lamb" and importlib.util.find_spec("pytorch_optimizer") is None:
            raise ValueError("optimizer='lamb' needs a package that is missing here; pip install pytorch-optimizer")


def learning_rate_factor(progress: float, warmup_fraction: float) -> float:
    """Rise linearly from 0 to 1 over the warm-up, then fall linearly to 0.

    Args:
        progress: The part of the run that is done, 0 to 1.
        warmup_fraction: The part that is warm-up.

    Returns:
        The part of the peak learning rate to use.

    Example:
        >>> [round(learning_rate_factor(progress, 0.2), 3) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup_fraction:
        return progress / warmup_fraction
    return (1 - progress) / (1 - warmup_fraction)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """Make the optimizer that a config asks for."""
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    from pytorch_optimizer import Lamb

    # Its defaults take the decay out of the trust ratio, and make the first update ten times as large.
    return Lamb(groups, lr=config.learning_rate, weight_decouple=False, adam_debias=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return what an optimizer takes: matrices and embeddings, which decay, and the rest, which does not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
