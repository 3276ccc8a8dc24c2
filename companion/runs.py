"""Run folders: what a training run leaves on disk, and how it comes back.

A run folder holds ``config.json``, ``model.safetensors`` (the best weights so far), ``vocabulary.txt`` or
``spiece.model``, ``checkpoints/`` (the state after the last whole epoch, or at an update since) and, once the run has
ended, ``record.json``; `companion.comparison` adds ``outputs.safetensors``. Tensors are kept in safetensors, all else
in JSON and text; each file is written whole or not at all.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from companion.files import atomic_path, remove_leftovers
from companion.records import read_dataclass, read_json, write_json

_AnyModule = TypeVar("_AnyModule", bound=nn.Module)

LARGEST_TABLES = 2**26
"""Numbers in what a model makes besides its weights, such as sinusoids: 65,536 positions of a model 1,024 wide."""


class Epoch(TypedDict):
    """What is noted of an epoch."""

    epoch: int
    seconds: float
    tokens: int
    train: dict[str, float]
    dev: NotRequired[dict[str, float]]


@dataclass
class TrainingState:
    """Where a run stands after an update.

    Random numbers are seeded anew for each batch, so that none of their state belongs here.

    Attributes:
        history: One entry for each epoch that is done.
        wall_seconds: Seconds spent so far, over all resumptions.
        updates: Updates made so far.
        batch: Batches done of the epoch after those.
        epoch_seconds: Seconds spent on them.
        sums: Their sums of loss, count and metrics: of each, one for every process.
    """

    history: list[Epoch] = field(default_factory=list)
    wall_seconds: float = 0.0
    updates: int = 0
    batch: int = 0
    epoch_seconds: float = 0.0
    sums: dict[str, list[float]] = field(default_factory=dict)

    def best_epoch(self) -> int:
        """Return the epoch whose weights are kept.

        It is the one with the highest dev accuracy, of several the one with the lowest dev loss; where the loss
        function gives no accuracy the loss alone decides, and without a dev split it is the last one.
        """
        if "dev" not in self.history[-1]:
            return len(self.history)
        devs = [entry.get("dev", {}) for entry in self.history]
        return 1 + min(range(len(devs)), key=lambda index: (-devs[index].get("accuracy", 0.0), devs[index]["loss"]))


class _Uninitialized(TorchFunctionMode):
    """Leave out the initial weights; to draw them on the meta device PyTorch imports its compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class FullState(NamedTuple):
    """The tensors of a checkpoint, whole whatever the number of processes.

    Attributes:
        weights: The model's.
        optimizer: The optimizer's, such as ``output.weight.exp_avg``.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class RunFolder:
    """The files of a run.

    Args:
        folder: Where the run lives; `claim` makes it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.json"
        self.weights = self.folder / "model.safetensors"
        self.vocabulary = self.folder / "vocabulary.txt"
        self.pieces = self.folder / "spiece.model"
        self.record = self.folder / "record.json"
        self.outputs = self.folder / "outputs.safetensors"
        self.checkpoints = self.folder / "checkpoints"

    def check_free(self) -> None:
        """Refuse a place that another run, or a file, has taken.

        Raises:
            FileExistsError: If it has.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file; name a folder for the run")
        for path in (self.config, self.weights, self.record, self.checkpoints):
            if path.exists():
                raise FileExistsError(f"{self.folder} already holds a run; resume it or name another folder")

    def settings(self) -> dict[str, dict[str, Any]]:
        """Read ``config.json``.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it does not hold settings in parts, such as ``"model"``.
        """
        parts = read_json(self.config)
        broken = [name for name, part in parts.items() if not isinstance(part, dict)]
        if broken:
            raise ValueError(f"{self.config} holds no settings under {broken[0]!r}")
        return parts

    def claim(self, entries: dict[str, Any], *, resume: bool) -> None:
        """Make the folder and write ``config.json``, or find the same config there where ``resume``.

        Raises:
            FileExistsError: If the folder holds a run and ``resume`` is false.
            ValueError: If the run in it has another config.
        """
        if resume and self.config.exists():
            saved = self.settings()
            changed = sorted(_differences(saved, entries))
            if changed:
                raise ValueError(
                    f"{self.folder} was started with other settings ({', '.join(changed)}); "
                    "resume with those of its config.json or name another folder"
                )
            self.repair()
            return
        self.check_free()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.config, entries)

    def load_model(self, make: Callable[[], _AnyModule], kind: str) -> _AnyModule:
        """Make the model that ``config.json`` describes, with the best weights.

        No memory is taken for it before these are seen to fit, whatever sizes the config names.

        Args:
            make: What makes it of the config's entries.
            kind: What to call it in messages.

        Returns:
            The model.

        Raises:
            FileNotFoundError: If there are no weights.
            ValueError: If the config describes no model, or the weights are damaged or do not fit.
        """
        try:
            with torch.device("meta"), _Uninitialized():
                outline = make()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.config} does not describe {kind} ({type(error).__name__}: {error})") from error
        weights = load_weights(self.weights)
        self._check_fit(self.weights, weights, outline)
        made = sum(table.numel() for name, table in outline.named_buffers() if name not in weights)
        if made > LARGEST_TABLES:
            raise ValueError(f"{self.config} asks for tables of {made:,} numbers; choose at most {LARGEST_TABLES:,}")
        model = make()
        model.load_state_dict(weights)
        return model

    def load_into(self, model: nn.Module) -> None:
        """Load the best weights into a model that ``config.json`` describes.

        Raises:
            FileNotFoundError: If there are none.
            ValueError: If they are damaged or do not fit.
        """
        weights = load_weights(self.weights)
        self._check_fit(self.weights, weights, model)
        model.load_state_dict(weights)

    def _check_fit(self, path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        problems = misfits(tensors, model.state_dict())
        if problems:
            raise ValueError(f"{path} does not fit {self.config} ({'; '.join(problems)})")

    def save(self, state: TrainingState, full: FullState) -> None:
        """Keep a checkpoint, and its weights as the best where they are; the checkpoint before goes last.

        Killed at any moment, this leaves one whole checkpoint at least, and what `restore` puts right.
        """
        self.checkpoints.mkdir(exist_ok=True)
        within = f"-batch-{state.batch:06d}" if state.batch else ""
        target = self.checkpoints / f"epoch-{len(state.history):04d}{within}"
        with atomic_path(target) as temporary:
            temporary.mkdir()
            save_weights(full.weights, temporary / "model.safetensors")
            save_weights(full.optimizer, temporary / "optimizer.safetensors")
            write_json(temporary / "state.json", asdict(state))
        self._keep_best(state, target)
        for old in self.checkpoints.glob("epoch-*"):
            if old != target:
                shutil.rmtree(old)

    def last_checkpoint(self) -> Path | None:
        """Return the folder of the last checkpoint, ``None`` where there is none."""
        return max(self.checkpoints.glob("epoch-*"), default=None)

    def restore(self, model: nn.Module) -> tuple[TrainingState, FullState | None]:
        """Read the last checkpoint; a fresh state, and no tensors, where there is none.

        Args:
            model: The model that it is of.

        Raises:
            ValueError: If a file of the checkpoint is damaged, or of another model.
        """
        checkpoint = self.last_checkpoint()
        if checkpoint is None:
            return TrainingState(), None
        weights, optimizer = (load_weights(checkpoint / f"{name}.safetensors") for name in ("model", "optimizer"))
        self._check_fit(checkpoint / "model.safetensors", weights, model)
        return _read_state(checkpoint), FullState(weights, optimizer)

    def repair(self) -> None:
        """Put right what a writer that was killed has left: temporary files, and best weights of before its checkpoint.

        Raises:
            ValueError: If the checkpoint is damaged.
        """
        remove_leftovers(self.folder)
        remove_leftovers(self.checkpoints)
        checkpoint = self.last_checkpoint()
        if checkpoint is not None:
            self._keep_best(_read_state(checkpoint), checkpoint)

    def _keep_best(self, state: TrainingState, checkpoint: Path) -> None:
        if not state.batch and state.best_epoch() == len(state.history):
            with atomic_path(self.weights) as temporary:
                shutil.copyfile(checkpoint / "model.safetensors", temporary)


def _read_state(checkpoint: Path) -> TrainingState:
    path = checkpoint / "state.json"
    state = read_dataclass(path, TrainingState, "the state of a run")
    splits = {frozenset(entry.get("dev", {})) for entry in state.history}
    counts = (state.batch, state.updates, state.wall_seconds, state.epoch_seconds, len(state.history) + state.batch - 1)
    if min(counts) < 0 or len(splits) > 1 or bool(state.batch) != bool(state.sums):
        raise ValueError(f"{path} is not the state of a run: its figures do not go together")
    return state


def _differences(saved: Mapping[str, Any], entries: Mapping[str, Any], part: str = "") -> Iterator[str]:
    """Yield the names of the settings that two configs do not share."""
    for name in saved.keys() | entries.keys():
        before, now = saved.get(name, {}), entries.get(name, {})
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{part}{name}.")
        elif before != now:
            yield part + name


def gather_state(model: nn.Module, optimizer: Optimizer) -> FullState:
    """Gather the state of model and optimizer on the CPU; every process takes part, the first one gets it.

    Args:
        model: A model, plain or as wrapped by DDP or FSDP.
        optimizer: Its optimizer, after an update at least.

    Returns:
        The tensors, by the names of the parameters in the plain model.
    """
    from torch.distributed.checkpoint import state_dict  # it takes half as long to import as torch

    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = cast(Any, state_dict.get_state_dict(model, optimizer, options=options))
    return FullState(weights, _by_name(state.get("state", {})))


def _by_name(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{parameter}.{name}": tensor for parameter, moments in state.items() for name, tensor in moments.items()}


def spread_state(full: FullState, model: nn.Module, optimizer: Optimizer) -> None:
    """Load what `gather_state` gave into model and optimizer; every process takes part, and has it.

    Raises:
        ValueError: If it is the state of another optimizer.
    """
    from torch.distributed.checkpoint import state_dict

    state: dict[str, Any] = state_dict.get_optimizer_state_dict(model, optimizer)
    moments: dict[str, Any] = {}
    for key, tensor in full.optimizer.items():
        parameter, _, name = key.rpartition(".")
        moments.setdefault(parameter, {})[name] = tensor
    problems = misfits(full.optimizer, _by_name(state["state"]))
    if not problems and any((tensor < 0).any() for name, tensor in full.optimizer.items() if name.endswith(".step")):
        problems = ["a number of updates is below 0"]
    if problems:
        raise ValueError(f"it holds the optimizer's state of another model ({problems[0]}); train the run again")
    options = state_dict.StateDictOptions(full_state_dict=True)
    state_dict.set_optimizer_state_dict(model, optimizer, {**state, "state": moments}, options=options)
    spread_weights(full.weights, model)  # last: PyTorch makes an update of size 0 to have an optimizer's state


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy the whole weights of a model, as `gather_state` names them, to the CPU of every process."""
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True)
    weights: dict[str, Any] = state_dict.get_model_state_dict(model, options=options)
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def spread_weights(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Load whole weights into a model, plain or as wrapped by DDP or FSDP."""
    from torch.distributed.checkpoint import state_dict

    state_dict.set_model_state_dict(model, dict(weights), options=state_dict.StateDictOptions(full_state_dict=True))


def save_weights(tensors: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write tensors to a safetensors file, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read tensors from a safetensors file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); train the run again") from error
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.itemsize > 1}
    broken = [name for name, tensor in floats.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{path} is damaged ({broken[0]} holds a number that is not finite); train the run again")
    return tensors


def misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """List what keeps the tensors of a file from being those of a model: names, shapes, dtypes."""
    return [
        *(f"{name} is missing" for name in expected if name not in tensors),
        *(f"{name} is surplus" for name in tensors if name not in expected),
        *(
            f"{name} is {_kind(tensors[name])}; expected {_kind(tensor)}"
            for name, tensor in expected.items()
            if name in tensors and _kind(tensors[name]) != _kind(tensor)
        ),
    ]


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"
