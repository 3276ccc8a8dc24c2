"""Devices and precision: what Accelerate finds on this machine, and what it is told."""

import os
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import nn

__all__ = ["Accelerator", "choose_precision", "default_device", "make_accelerator", "send_to_device"]

Precision = Literal["auto", "fp32", "bf16"]

BF16_WIDTH = 256
"""The width from which on ``"auto"`` takes bf16; narrower models are faster in float32."""


def make_accelerator(precision: Precision = "fp32", *, tracked: Path | None = None) -> Accelerator:
    """Join the processes that a launcher has started, or be the only one.

    Args:
        precision: ``"fp32"`` or ``"bf16"``.
        tracked: The folder in which TensorBoard's files go; ``None`` writes none.

    Returns:
        What knows the device and the other processes.
    """
    # It would hold on to the precision of an earlier run in this process, or to its sharding without saying how.
    AcceleratorState._reset_state(reset_partial_state=True)
    # The launcher's default is version 1 of FSDP, which leaves nothing of the caller's model to work with.
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    fsdp = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False) if sharded else None
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=not torch.accelerator.is_available(),  # Accelerate joins processes on CPUs only where it is told so
        fsdp_plugin=fsdp,
        log_with=None if tracked is None else "tensorboard",
        project_dir=tracked,
    )


def default_device() -> torch.device:
    """Return the device that Accelerate chooses: a GPU where there is one, else the CPU."""
    return make_accelerator().device


def choose_precision(model: nn.Module) -> Precision:
    """Return ``"bf16"`` where the hardware multiplies it natively and the model is wide, else ``"fp32"``.

    Natively, that is on CUDA from Ampere on and on CPUs with AMX.
    """
    if torch.cuda.is_available():
        native = torch.cuda.get_device_capability() >= (8, 0)
    else:
        native = torch.cpu._is_amx_tile_supported()
    width = max((min(p.shape) for p in model.parameters() if p.dim() == 2), default=0)
    return "bf16" if native and width >= BF16_WIDTH else "fp32"
