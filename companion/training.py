"""Training: the loop and the evaluation, on Accelerate."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from tqdm import tqdm

from companion.batching import LabelledBatch, mix_seed
from companion.records import TrainingRecord, git_commit, hardware, package_versions, read_json
from companion.runs import RunFolder, TrainingState, load_weights

Precision = Literal["auto", "no", "bf16"]

BF16_WIDTH = 256
"""The width from which on ``mixed_precision="auto"`` takes bf16; narrower models are faster in float32."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Attributes:
        epochs: Passes over the training batches.
        learning_rate: The peak; it rises from 0 over the warm-up and falls to 0 at the end, both linearly.
        warmup_fraction: The part of the run that the warm-up takes.
        weight_decay: AdamW's, on matrices and embeddings; biases and normalisations have none.
        max_grad_norm: The norm that the gradient is clipped to.
        gradient_accumulation_steps: Batches to one update of the weights.
        mixed_precision: ``"bf16"``, ``"no"`` or ``"auto"``: bf16 where the hardware multiplies it natively (CUDA
            from Ampere on, CPUs with AMX) and the model is at least `BF16_WIDTH` wide, float32 elsewhere.
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


class LossOutput(NamedTuple):
    """What a loss function returns: sums, so that means come out right whatever the batch sizes.

    Attributes:
        loss_sum: The loss summed over the examples (or masked tokens), a scalar.
        count: How many there were.
        metrics: Further sums over them, such as the number that came out right under ``"accuracy"``; reported
            divided by the count. ``"tokens"``, the number of tokens without padding, gives the tokens per second.

    Example:
        >>> def squared_error(model, batch):
        ...     errors = (model(batch) - 1).square()
        ...     return LossOutput(errors.sum(), len(errors), {"exact": (errors == 0).sum()})
        >>> batches = [torch.tensor([1.0, 1.0, 3.0]), torch.tensor([2.0])]
        >>> evaluate(nn.Identity(), batches, loss_fn=squared_error)
        {'loss': 1.25, 'exact': 0.5}
    """

    loss_sum: Tensor
    count: int | Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    metrics: Mapping[str, float | Tensor]


@runtime_checkable
class Batches(Protocol):
    """Batches that can be gone through again and again: a DataLoader, a list."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


LossFunction = Callable[[nn.Module, Any], LossOutput]


def classification_loss(model: nn.Module, batch: LabelledBatch) -> LossOutput:
    """Binary cross-entropy of a classifier's logits.

    Args:
        model: A model from ids ``(batch, length)`` to logits ``(batch,)``.
        batch: Ids and labels.

    Returns:
        The summed cross-entropy in nats, the number of examples, and the sums of ``accuracy`` and ``tokens``.

    Example:
        >>> model = TextClassifier(ClassifierConfig(vocab_size=9, d_model=4, num_heads=1, d_ff=4, max_length=8))
        >>> _ = nn.init.zeros_(model.output.weight), nn.init.zeros_(model.output.bias)  # every logit is 0
        >>> batch = LabelledBatch(torch.tensor([[5, 6], [7, 0]]), torch.tensor([1.0, 0.0]))
        >>> loss = classification_loss(model, batch)
        >>> round(loss.loss_sum.item() / loss.count, 3), loss.metrics["tokens"].item()
        (0.693, 3)
    """
    logits = model(batch.input_ids)
    return LossOutput(
        F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum"),
        len(batch.labels),
        {"accuracy": ((logits > 0) == (batch.labels > 0.5)).sum(), "tokens": (batch.input_ids != 0).sum()},
    )


def tagging_loss(model: nn.Module, batch: LabelledBatch) -> LossOutput:
    """Cross-entropy of the logits of each token's label; a label of 0 is left out.

    Args:
        model: A model from ids ``(batch, length)`` to logits ``(batch, length, num_labels)``.
        batch: Ids, and labels ``(batch, length)``.

    Returns:
        The summed cross-entropy in nats, the number of labels, and the sums of ``accuracy`` and ``tokens``.

    Example:
        >>> model = nn.Embedding.from_pretrained(torch.eye(8))  # its logit is 1 for the id itself, else 0
        >>> loss = tagging_loss(model, LabelledBatch(torch.tensor([[5, 6], [7, 0]]), torch.tensor([[5, 1], [0, 0]])))
        >>> loss.count.item(), loss.metrics["accuracy"].item(), loss.metrics["tokens"].item()
        (2, 1, 3)
    """
    logits, labelled = model(batch.input_ids), batch.labels != 0
    return LossOutput(
        F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=0, reduction="sum"),
        labelled.sum(),
        {
            "accuracy": ((logits.argmax(dim=-1) == batch.labels) & labelled).sum(),
            "tokens": (batch.input_ids != 0).sum(),
        },
    )


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    *,
    loss_fn: LossFunction,
    eval_batches: Batches | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    data: Mapping[str, Any] | None = None,
) -> TrainingRecord:
    """Train with AdamW, on whatever device and however many processes Accelerate finds.

    An update follows the mean loss over all examples of its batches, whatever their sizes and however many
    processes share them. Each epoch has its own seed, so a run that is resumed repeats the uninterrupted one.

    Args:
        model: The model; it ends with the best weights.
        batches: Training batches. Where they, or their ``batch_sampler``, have ``set_epoch``, it is called.
        config: How to train.
        loss_fn: From model and batch to a `LossOutput`.
        eval_batches: The dev split, evaluated after each epoch; the weights with the highest accuracy on it are kept,
            or with the lowest loss where ``loss_fn`` gives no accuracy. Without it, the last ones are.
        output: The run folder to write; ``None`` writes nothing.
        resume: Go on after the last whole epoch in ``output``; where nothing is saved there, start afresh.
        data: Which data this is, noted in ``config.json``.

    Returns:
        The record of the run.

    Raises:
        FileExistsError: If ``output`` holds a run and ``resume`` is false.
        ValueError: If the run to resume was started with other settings.
        FloatingPointError: If a gradient is not finite.

    Example:
        >>> texts, labels = zip(*toy.reviews(20))
        >>> vocabulary = Vocabulary.build(text.split() for text in texts)
        >>> batches = labelled_batches([vocabulary.encode(text.split()) for text in texts], labels, max_tokens=256)
        >>> config = ClassifierConfig(vocab_size=len(vocabulary), d_model=4, num_heads=1, d_ff=4, max_length=64)
        >>> record = train(TextClassifier(config), batches, TrainingConfig(epochs=1), loss_fn=classification_loss)
        >>> [(entry["epoch"], sorted(entry["train"])) for entry in record.history]
        [(1, ['accuracy', 'loss'])]
    """
    start = time.perf_counter()
    run = None if output is None else RunFolder(output)
    accelerator = _accelerator(_precision(config, model, run if resume else None))
    model_config = getattr(model, "config", None)
    entries = {
        "model": asdict(model_config) if is_dataclass(model_config) else {},  # type: ignore[arg-type]
        "training": {**asdict(config), "mixed_precision": accelerator.mixed_precision},
        "data": dict(data or {}),
    }
    if run is not None and accelerator.is_main_process:
        run.claim(entries, resume=resume)
    accelerator.wait_for_everyone()
    if run is not None and run.record.exists():
        model.load_state_dict(load_weights(run.weights))
        return TrainingRecord.load(run.record)

    model.to(accelerator.device)
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.learning_rate)
    state = TrainingState() if run is None else run.restore(model, optimizer)
    start -= state.wall_seconds
    own_forward = {name: value for name, value in vars(model).items() if name == "forward"}
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    best = None if run is None or not run.weights.exists() else load_weights(run.weights)
    try:
        with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
            for epoch in range(len(state.history), config.epochs):
                torch.manual_seed(mix_seed(config.seed, epoch, accelerator.process_index))
                entry = _train_epoch(accelerator, prepared, prepared_optimizer, batches, config, loss_fn, epoch)
                if eval_batches is not None:
                    entry["dev"] = _evaluate(accelerator, prepared, eval_batches, loss_fn)
                state.history.append(entry)
                state.wall_seconds = time.perf_counter() - start
                if state.best_epoch() == epoch + 1:
                    best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
                if run is not None and accelerator.is_main_process:
                    run.save(state, model, optimizer)
    finally:
        vars(model).pop("_original_forward", None)  # Accelerate has wrapped forward for bf16
        vars(model).pop("forward", None)
        vars(model).update(own_forward)
    assert best is not None
    model.load_state_dict(best)

    seconds = sum(entry["seconds"] for entry in state.history)
    tokens = sum(entry["tokens"] for entry in state.history)
    record = TrainingRecord(
        command="companion.train",
        config=entries,
        seed=config.seed,
        commit=git_commit(),
        versions=package_versions(),
        hardware=hardware(accelerator.device, accelerator.num_processes),
        wall_seconds=round(state.wall_seconds, 1),
        tokens_per_second=round(tokens / seconds) if tokens else None,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        history=state.history,
        dev=state.history[state.best_epoch() - 1].get("dev"),
    )
    if run is not None and accelerator.is_main_process:
        record.save(run.record)
    accelerator.wait_for_everyone()
    return record


def evaluate(model: nn.Module, batches: Batches, *, loss_fn: LossFunction) -> dict[str, float]:
    """Measure a model in float32, with dropout off.

    Args:
        model: The model; its mode is as before afterwards.
        batches: The batches to measure on.
        loss_fn: From model and batch to a `LossOutput`.

    Returns:
        ``"loss"`` and each metric, means over all examples.

    Raises:
        ValueError: If there is nothing to measure on.

    Example:
        >>> model = TextClassifier(ClassifierConfig(vocab_size=9, d_model=4, num_heads=1, d_ff=4, max_length=8))
        >>> _ = nn.init.zeros_(model.output.weight), nn.init.ones_(model.output.bias)  # it calls all positive
        >>> batches = labelled_batches([[5, 6], [7], [8], [5]], [1, 1, 0, 1], max_tokens=4, shuffle=False)
        >>> evaluate(model, batches, loss_fn=classification_loss)["accuracy"]
        0.75
    """
    accelerator = _accelerator("no")
    return _evaluate(accelerator, model.to(accelerator.device), batches, loss_fn)


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


def _train_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    batches: Batches,
    config: TrainingConfig,
    loss_fn: LossFunction,
    epoch: int,
) -> dict[str, Any]:
    """Train through the batches once; return the epoch's entry in the history."""
    sampler: Any = getattr(batches, "batch_sampler", batches)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = len(batches)  # a LengthBucketSampler makes all its batches to count them
    description = f"epoch {epoch + 1}/{config.epochs}"
    start, sums, pending = time.perf_counter(), _Sums(accelerator), 0
    for number, batch in enumerate(bar := _progress_bar(accelerator, batches, description), start=1):
        updates = number % config.gradient_accumulation_steps == 0 or number == total
        with nullcontext() if updates else accelerator.no_sync(model):
            loss = loss_fn(model, send_to_device(batch, accelerator.device))
            accelerator.backward(loss.loss_sum)
        sums.add(loss)
        pending += loss.count
        if not updates:
            continue
        # The gradient is that of the sum, averaged over processes; make it that of the mean over all examples.
        examples = accelerator.reduce(torch.as_tensor(pending, device=accelerator.device), "sum")
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(accelerator.num_processes / examples)
        norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        if norm is not None and not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is not finite in epoch {epoch + 1}, batch {number}; lower the learning rate"
            )
        progress = (epoch + number / total) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(progress, config.warmup_fraction)
        optimizer.step()
        optimizer.zero_grad()
        pending = 0
        if number % 20 == 0 or number == total:
            bar.set_postfix(sums.local_means(time.perf_counter() - start))
    seconds = time.perf_counter() - start
    means, tokens = sums.means()
    return {"epoch": epoch + 1, "seconds": round(seconds, 4), "tokens": tokens, "train": means}


def _evaluate(accelerator: Accelerator, model: nn.Module, batches: Batches, loss_fn: LossFunction) -> dict[str, float]:
    was_training = model.training
    model.eval()
    sums = _Sums(accelerator)
    with torch.inference_mode():
        for batch in _progress_bar(accelerator, batches, "evaluation", leave=False):
            sums.add(loss_fn(model, send_to_device(batch, accelerator.device)))
    model.train(was_training)
    return sums.means()[0]


class _Sums:
    """Sums of loss, count and metrics over the batches of one process."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.sums: dict[str, Tensor] = {}

    def add(self, loss: LossOutput) -> None:
        device = loss.loss_sum.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        for name, value in {"loss": loss.loss_sum, "count": loss.count, **loss.metrics}.items():
            value = torch.as_tensor(value, device=device).detach().to(dtype)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def local_means(self, seconds: float) -> dict[str, str]:
        values = {name: value.item() for name, value in self.sums.items()}
        count, tokens = values.pop("count"), values.pop("tokens", None)
        shown = {name: f"{value / count:.3f}" for name, value in values.items()}
        return shown if tokens is None else {**shown, "tokens/s": f"{tokens / seconds:,.0f}"}

    def means(self) -> tuple[dict[str, float], int]:
        """Return the means over all examples of all processes, and the number of tokens."""
        if not self.sums:
            raise ValueError("there are no batches")
        totals = self.accelerator.reduce(torch.stack(list(self.sums.values())), "sum")
        values = dict(zip(self.sums, torch.as_tensor(totals).tolist(), strict=True))
        count, tokens = values.pop("count"), int(values.pop("tokens", 0))
        return {name: round(value / count, 6) for name, value in values.items()}, tokens


def default_device() -> torch.device:
    """Return the device that Accelerate chooses: a GPU where there is one, else the CPU."""
    return _accelerator("no").device


def _accelerator(precision: str) -> Accelerator:
    AcceleratorState._reset_state()  # it would hold on to the precision of an earlier run in this process
    on_cpu = not torch.accelerator.is_available()  # Accelerate joins processes on CPUs only where it is told so
    return Accelerator(mixed_precision=precision, cpu=on_cpu)


def _precision(config: TrainingConfig, model: nn.Module, resumed: RunFolder | None) -> str:
    if config.mixed_precision != "auto":
        return config.mixed_precision
    if resumed is not None and resumed.config.exists():
        return read_json(resumed.config).get("training", {}).get("mixed_precision", "no")
    if torch.cuda.is_available():
        native = torch.cuda.get_device_capability() >= (8, 0)
    else:
        native = torch.cpu._is_amx_tile_supported()
    width = max((min(p.shape) for p in model.parameters() if p.dim() == 2), default=0)
    return "bf16" if native and width >= BF16_WIDTH else "no"


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def _progress_bar(accelerator: Accelerator, batches: Batches, description: str, *, leave: bool = True) -> Any:
    # On the main process the environment variable TQDM_DISABLE decides.
    hidden: dict[str, Any] = {} if accelerator.is_main_process else {"disable": True}
    return tqdm(batches, desc=description, unit="batch", mininterval=1.0, leave=leave, **hidden)
