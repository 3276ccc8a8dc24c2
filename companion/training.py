"""Training: the loop and the evaluation, on Accelerate."""

import importlib.util
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from companion.devices import Accelerator, Precision, choose_precision, make_accelerator
from companion.interruption import StopRequest, stop_requests
from companion.loop import Batches, Loop, evaluate_batches
from companion.losses import LossFunction, LossOutput
from companion.optimization import TrainingConfig, make_optimizer
from companion.records import TrainingRecord, git_commit, hardware, package_versions
from companion.runs import RunFolder, TrainingState, gather_weights, load_weights, spread_state, spread_weights

__all__ = ["Batches", "LossOutput", "TrainingConfig", "evaluate", "train"]


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    *,
    loss_fn: LossFunction,
    eval_batches: Batches | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    data: Mapping[str, Any] | None = None,
) -> TrainingRecord:
    """Train, on whatever device and however many processes Accelerate finds.

    An update follows the mean loss over all examples of its batches, whatever their sizes and however many
    processes share them. Random numbers are seeded anew for each batch, so a run that is resumed, after whatever
    stopped it, repeats the uninterrupted one.

    With ``output``, Ctrl-C and SIGTERM end the training after the update under way, with a checkpoint.

    Args:
        model: The model; it ends with the best weights, on the device that it came on.
        batches: Training batches. Where they, or their ``batch_sampler``, have ``set_epoch``, it is called.
        config: How to train.
        loss_fn: From model and batch to a `LossOutput`.
        eval_batches: The dev split, evaluated after each epoch; the weights with the highest accuracy on it are kept,
            or with the lowest loss where ``loss_fn`` gives no accuracy. Without it, the last ones are.
        output: The run folder to write; ``None`` writes nothing.
        resume: Go on after the last checkpoint in ``output``; where nothing is saved there, start afresh.
        checkpoint_every: Updates between two checkpoints, besides the one after each epoch; ``None`` makes no others.
        tensorboard: Write the figures for TensorBoard too, into ``tensorboard/`` in ``output``.
        data: Which data this is, noted in ``config.json``.

    Returns:
        The record of the run.

    Raises:
        FileExistsError: If ``output`` holds a run and ``resume`` is false.
        ValueError: If the run to resume was started with other settings or has a damaged checkpoint, or an option
            does not fit.
        FloatingPointError: If a loss or a gradient is not finite; no weights that come of it are kept.
        KeyboardInterrupt: If a signal has ended the training; the message says where it goes on.

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
    _check_options(output, checkpoint_every, tensorboard)
    run = None if output is None else RunFolder(output)
    precision = resolve_precision(config, model, output if resume else None)
    accelerator = make_accelerator(precision, tracked=run.folder if run is not None and tensorboard else None)
    entries = {
        "model": _describe(model),
        "training": {**asdict(config), "mixed_precision": precision},
        "data": dict(data or {}),
    }
    if run is not None and accelerator.is_main_process:
        run.claim(entries, resume=resume)
    accelerator.wait_for_everyone()
    if run is not None and run.record.exists():
        run.load_into(model)
        return TrainingRecord.load(run.record)

    state, full = (TrainingState(), None) if run is None else run.restore(model)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with (
        _prepared(accelerator, model, config) as (prepared, wrapped),
        nullcontext(StopRequest()) if run is None else stop_requests() as stop,
        torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []),
    ):
        if run is not None and full is not None:
            try:
                spread_state(full, prepared, wrapped.optimizer)
            except ValueError as error:
                raise ValueError(f"{run.last_checkpoint()} does not fit: {error}") from error
        if tensorboard:
            purge = {"purge_step": state.updates + 1}  # what was logged after the checkpoint comes again
            accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": purge})
        loop = Loop(
            accelerator=accelerator,
            model=prepared,
            optimizer=wrapped.optimizer,
            batches=batches,
            eval_batches=eval_batches,
            config=config,
            loss_fn=loss_fn,
            run=run,
            checkpoint_every=checkpoint_every,
            state=state,
            start=start - state.wall_seconds,
            stop=stop,
        )
        best: dict[str, Tensor] = {}
        while len(state.history) < config.epochs:
            loop.run_epoch()
            if run is None and state.best_epoch() == len(state.history):
                best = gather_weights(prepared)
        accelerator.wait_for_everyone()  # the first process may still be writing the best weights
        spread_weights(best if run is None else load_weights(run.weights), prepared)

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
        parameters=parameters,
        history=[{**entry} for entry in state.history],
        dev=state.history[state.best_epoch() - 1].get("dev"),
    )
    if run is not None and accelerator.is_main_process:
        record.save(run.record)
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # Collected at exit, after the group of processes is gone, DDP's wrapper would wait for gloo and gloo for it.
        del prepared, wrapped, loop
        accelerator.free_memory()
    return record


def evaluate(model: nn.Module, batches: Batches, *, loss_fn: LossFunction) -> dict[str, float]:
    """Measure a model in float32, with dropout off.

    Args:
        model: The model; its mode and its device are as before afterwards.
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
    accelerator = make_accelerator()
    with _moved(model, accelerator.device):
        return evaluate_batches(accelerator, model, batches, loss_fn)


@contextmanager
def _moved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a model on a device, and afterwards where it was, so that the caller's tensors still go with it."""
    home = next((parameter.device for parameter in model.parameters()), device)
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


@contextmanager
def _prepared(accelerator: Accelerator, model: nn.Module, config: TrainingConfig) -> Iterator[tuple[nn.Module, Any]]:
    """Let Accelerate move and wrap a model and its optimizer; give the model back as it was, but for its weights."""
    own_forward = {name: value for name, value in vars(model).items() if name == "forward"}
    with _moved(model, accelerator.device):
        model.zero_grad()  # of whatever the caller did with it before
        try:
            yield accelerator.prepare(model, make_optimizer(model, config))
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
            vars(model).pop("_original_forward", None)  # it has wrapped forward for bf16
            vars(model).pop("forward", None)
            vars(model).update(own_forward)


def _check_options(output: object, checkpoint_every: int | None, tensorboard: bool) -> None:
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every}; choose 1 or more")
    for option, given in (("checkpoint_every", checkpoint_every), ("tensorboard", tensorboard)):
        if given and output is None:
            raise ValueError(f"{option}={given} needs an output folder")
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("TensorBoard's files need a package that is missing here; pip install tensorboard")


def _describe(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return {"kind": type(model).__name__, **(asdict(config) if is_dataclass(config) else {})}  # type: ignore[arg-type]


def resolve_precision(
    config: TrainingConfig, model: nn.Module, resumed: str | os.PathLike[str] | None = None
) -> Precision:
    """Return the precision to train in; ``"auto"`` is what the resumed run chose, else what suits hardware and model.

    Args:
        config: How to train.
        model: The model.
        resumed: The folder of the run to resume.

    Returns:
        ``"fp32"`` or ``"bf16"``.
    """
    if config.mixed_precision != "auto":
        return config.mixed_precision
    if resumed is not None and RunFolder(resumed).config.exists():
        return RunFolder(resumed).settings().get("training", {}).get("mixed_precision", "fp32")
    return choose_precision(model)
