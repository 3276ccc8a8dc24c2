"""The training loop: an epoch, an update, a checkpoint, an evaluation."""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from companion.batching import mix_seed
from companion.devices import Accelerator, send_to_device
from companion.interruption import StopRequest
from companion.losses import LossFunction, LossSums, sum_dtype
from companion.optimization import TrainingConfig, learning_rate_factor
from companion.progress import progress_bar
from companion.runs import Epoch, RunFolder, TrainingState, gather_state

SHOWN_EVERY = 20
"""Updates between two figures in the progress bar, and between two points of TensorBoard's training loss."""


@runtime_checkable
class Batches(Protocol):
    """Batches that can be gone through again and again: a DataLoader, a list.

    Example:
        >>> from companion.loop import Batches
        >>> batches: Batches = [LabelledBatch(torch.tensor([[5, 6]]), torch.tensor([1.0]))]
        >>> model = TextClassifier(ClassifierConfig(vocab_size=9, d_model=16, num_heads=2))
        >>> evaluate(model, batches, loss_fn=classification_loss)["accuracy"] in (0.0, 1.0)
        True
    """

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


@dataclass(kw_only=True)
class Loop:
    """What an epoch needs; `companion.train` says what it is."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Optimizer
    batches: Batches
    eval_batches: Batches | None
    config: TrainingConfig
    loss_fn: LossFunction
    run: RunFolder | None
    checkpoint_every: int | None
    state: TrainingState
    start: float
    stop: StopRequest

    def run_epoch(self) -> None:
        """Train through what is left of an epoch, evaluate, and keep a checkpoint.

        Raises:
            ValueError: If there are no batches, or a part of the epoch was done by another number of processes.
            FloatingPointError: If a loss or a gradient is not finite.
            KeyboardInterrupt: If somebody has asked to stop; there is a checkpoint then.
        """
        state, epoch = self.state, len(self.state.history)
        start, sums = time.perf_counter() - state.epoch_seconds, self._sums_so_far()
        self._train(epoch, start, sums)
        seconds = time.perf_counter() - start
        train, tokens = _means(self.accelerator, sums)
        entry: Epoch = {"epoch": epoch + 1, "seconds": round(seconds, 4), "tokens": tokens, "train": train}
        if self.eval_batches is not None:
            torch.manual_seed(mix_seed(self.config.seed, epoch, self.accelerator.process_index))
            entry["dev"] = evaluate_batches(self.accelerator, self.model, self.eval_batches, self.loss_fn)
            self._check_finite("dev loss", entry["dev"]["loss"], state.updates)
            self.accelerator.log({f"dev/{name}": value for name, value in entry["dev"].items()}, step=state.updates)
        state.history.append(entry)
        state.batch, state.epoch_seconds, state.sums = 0, 0.0, {}
        self._save()

    def _train(self, epoch: int, start: float, sums: LossSums) -> None:
        accelerator, state, config = self.accelerator, self.state, self.config
        sampler: Any = getattr(self.batches, "batch_sampler", self.batches)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        self.model.train()
        total = len(self.batches)  # a LengthBucketSampler makes all its batches to count them
        seeded = _seeded(self.batches, config.seed, epoch, accelerator.process_index)
        pending, window = self._zeros(2), [0.0, 0.0]  # the examples, and the sum of their losses
        with progress_bar(
            itertools.islice(seeded, state.batch, None),
            f"epoch {epoch + 1}/{config.epochs}",
            total=total,
            done=state.batch,
            shown=accelerator.is_main_process,
        ) as bar:
            for number, batch in enumerate(bar, start=state.batch + 1):
                updates = number % config.gradient_accumulation_steps == 0 or number == total
                with nullcontext() if updates else accelerator.no_sync(self.model):
                    loss = self.loss_fn(self.model, send_to_device(batch, accelerator.device))
                    accelerator.backward(loss.loss_sum)
                sums.add(loss)
                pending[0] += loss.count
                pending[1] += loss.loss_sum.detach()
                if not updates:
                    continue
                count, loss_sum, stops = self._update(pending, (epoch + number / total) / config.epochs)
                state.batch = number
                pending.zero_()
                window = [window[0] + count, window[1] + loss_sum]
                if state.updates % SHOWN_EVERY == 0 or number == total:
                    bar.set_postfix(_figures(sums, time.perf_counter() - start))
                    accelerator.log({"train/loss": window[1] / max(window[0], 1)}, step=state.updates)
                    window = [0.0, 0.0]
                if stops or (self.checkpoint_every and state.updates % self.checkpoint_every == 0):
                    state.epoch_seconds = time.perf_counter() - start
                    rows = accelerator.gather(torch.stack(list(sums.sums.values()))[None])
                    state.sums = dict(zip(sums.sums, torch.as_tensor(rows).T.tolist(), strict=True))
                    self._save()
                if stops:
                    raise KeyboardInterrupt(f"stopped {self._place(state.updates)}, with a checkpoint")

    def _update(self, pending: Tensor, progress: float) -> list[float]:
        """Update the weights; return the examples, the sum of their losses, and how many processes are to stop."""
        accelerator, state = self.accelerator, self.state
        local = torch.cat((pending, self._zeros(1) + self.stop.made))
        count, loss_sum, stops = torch.as_tensor(accelerator.reduce(local, "sum")).tolist()
        self._check_finite("loss", loss_sum / max(count, 1), state.updates + 1)
        # The gradient is that of the sum, averaged over processes; make it that of the mean over all examples.
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(accelerator.num_processes / max(count, 1))
        norm: Any = accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if norm is not None:
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded by FSDP
            self._check_finite("norm of the gradient", float(norm), state.updates + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * learning_rate_factor(progress, self.config.warmup_fraction)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.updates += 1
        return [count, loss_sum, stops]

    def _save(self) -> None:
        self.state.wall_seconds = time.perf_counter() - self.start
        if self.run is None:
            return
        full = gather_state(self.model, self.optimizer)
        if self.accelerator.is_main_process:
            self.run.save(self.state, full)

    def _check_finite(self, what: str, value: float, update: int) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} {self._place(update)}; lower the learning rate in a new run, "
                f"or mend the cause: {self._last_checkpoint()}"
            )

    def _place(self, update: int) -> str:
        return f"in epoch {len(self.state.history) + 1}, update {update}"

    def _last_checkpoint(self) -> str:
        checkpoint = None if self.run is None else self.run.last_checkpoint()
        return "there is no checkpoint" if checkpoint is None else f"{checkpoint} is whole, and resume goes on there"

    def _sums_so_far(self) -> LossSums:
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        if any(len(values) != processes for values in self.state.sums.values()):
            before = len(next(iter(self.state.sums.values())))
            raise ValueError(
                f"{before} processes had begun epoch {len(self.state.history) + 1}, and now there are {processes}, "
                f"which share the batches otherwise; resume with {before}"
            )
        return LossSums({name: self._zeros(1)[0] + values[index] for name, values in self.state.sums.items()})

    def _zeros(self, size: int) -> Tensor:
        device = self.accelerator.device
        return torch.zeros(size, dtype=sum_dtype(device), device=device)


def evaluate_batches(
    accelerator: Accelerator, model: nn.Module, batches: Batches, loss_fn: LossFunction
) -> dict[str, float]:
    """Measure a model with dropout off; return the means over the examples of all processes."""
    was_training = model.training
    model.eval()
    sums = LossSums()
    with (
        torch.inference_mode(),
        progress_bar(batches, "evaluation", total=len(batches), shown=accelerator.is_main_process, leave=False) as bar,
    ):
        for batch in bar:
            sums.add(loss_fn(model, send_to_device(batch, accelerator.device)))
    model.train(was_training)
    return _means(accelerator, sums)[0]


def _means(accelerator: Accelerator, sums: LossSums) -> tuple[dict[str, float], int]:
    if not sums.sums:
        raise ValueError("there are no batches")
    totals = torch.as_tensor(accelerator.reduce(torch.stack(list(sums.sums.values())), "sum"))
    means, tokens = LossSums(dict(zip(sums.sums, totals, strict=True))).means()
    return {name: round(value, 6) for name, value in means.items()}, tokens


def _figures(sums: LossSums, seconds: float) -> dict[str, str]:
    means, tokens = sums.means()
    shown = {name: f"{value:.3f}" for name, value in means.items()}
    return {**shown, "tokens/s": f"{tokens / seconds:,.0f}"} if tokens else shown


def _seeded(batches: Batches, *numbers: int) -> Iterator[Any]:
    """Seed the random numbers before each batch is made, so that they do not depend on what came before it."""
    torch.manual_seed(mix_seed(*numbers, 0))
    iterator = iter(batches)
    for number in itertools.count(1):
        torch.manual_seed(mix_seed(*numbers, number))
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield batch
