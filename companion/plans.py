"""Plans: what a training would do, said before it is done."""

import math
import os
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from companion.batching import LabelledBatch, LengthBucketSampler
from companion.devices import make_accelerator
from companion.optimization import TrainingConfig
from companion.training import resolve_precision


def training_plan(
    model: nn.Module,
    batches: DataLoader[LabelledBatch],
    dev_batches: DataLoader[LabelledBatch],
    config: TrainingConfig,
    *,
    output: str | os.PathLike[str],
    resume: bool = False,
    checkpoint_every: int | None = None,
) -> str:
    """Describe a training: the model, the data, the updates, the devices, the files.

    Args:
        model: The model that would be trained.
        batches: The training batches, from a `LengthBucketSampler`.
        dev_batches: The dev split.
        config: How to train.
        output: The run folder that would be written.
        resume: As in `companion.train`.
        checkpoint_every: As in `companion.train`.

    Returns:
        The model's modules, and below them a line for each thing that was to be decided.
    """
    precision = resolve_precision(config, model, output if resume else None)
    accelerator = make_accelerator(precision)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    updates = math.ceil(len(batches) / config.gradient_accumulation_steps)
    often = "" if checkpoint_every is None else f" and every {checkpoint_every:,} updates"
    lines = {
        "parameters": f"{parameters:,}",
        "training": f"{_size(batches)} an epoch, {updates:,} updates",
        "dev": _size(dev_batches),
        "epochs": f"{config.epochs:,}, about {config.epochs * updates:,} updates in all",
        "device": f"{accelerator.device}, {precision}, processes: {accelerator.num_processes}",
        "output": f"{os.fspath(output)}, a checkpoint after each epoch{often}",
    }
    return "\n".join([str(model), "", *(f"{name:<12}{line}" for name, line in lines.items())])


def _size(batches: DataLoader[LabelledBatch]) -> str:
    sampler: Any = batches.batch_sampler
    assert isinstance(sampler, LengthBucketSampler)
    tokens = int(sampler.lengths.sum())
    return f"{len(sampler.lengths):,} examples, {tokens:,} tokens, {len(batches):,} batches"
