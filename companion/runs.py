"""Run folders: what a training run leaves on disk, and how it comes back.

A run folder holds ``config.json``, ``model.safetensors`` (the best weights so far), ``vocabulary.txt`` or
``spiece.model``, ``checkpoints/`` (the state after the last whole epoch, or at an update since) and, once the run has
ended, ``record.json``; `companion.comparison` adds ``outputs.safetensors``. Tensors are kept in safetensors, all else
in JSON and text; each file is written whole or not at all.
"""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from companion.files import atomic_path, remove_leftovers
from companion.records import read_json, write_json


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

    history: list[dict[str, Any]] = field(default_factory=list)
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
        devs = [entry["dev"] for entry in self.history]
        return 1 + min(range(len(devs)), key=lambda index: (-devs[index].get("accuracy", 0.0), devs[index]["loss"]))


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

    def claim(self, entries: dict[str, Any], *, resume: bool) -> None:
        """Make the folder and write ``config.json``, or find the same config there where ``resume``.

        Raises:
            FileExistsError: If the folder holds a run and ``resume`` is false.
            ValueError: If the run in it has another config.
        """
        if resume and self.config.exists():
            saved = read_json(self.config)
            changed = sorted(
                f"{part}.{name}"
                for part in saved.keys() | entries.keys()
                for name in saved.get(part, {}).keys() | entries.get(part, {}).keys()
                if saved.get(part, {}).get(name) != entries.get(part, {}).get(name)
            )
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

    def load_into(self, model: nn.Module) -> None:
        """Load the best weights into a model that ``config.json`` describes.

        Raises:
            FileNotFoundError: If there are none.
            ValueError: If they are damaged or do not fit.
        """
        try:
            model.load_state_dict(load_weights(self.weights))
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise ValueError(f"{self.weights} does not fit {self.config} ({reason})") from error

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

    def restore(self) -> tuple[TrainingState, FullState | None]:
        """Read the last checkpoint; a fresh state, and no tensors, where there is none.

        Raises:
            ValueError: If a file of the checkpoint is damaged.
        """
        checkpoint = self.last_checkpoint()
        if checkpoint is None:
            return TrainingState(), None
        weights, optimizer = (load_weights(checkpoint / f"{name}.safetensors") for name in ("model", "optimizer"))
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
    try:
        return TrainingState(**read_json(path))
    except TypeError as error:
        raise ValueError(f"{path} is not the state of a run ({error})") from error


def gather_state(model: nn.Module, optimizer: Optimizer) -> FullState:
    """Gather the state of model and optimizer on the CPU; every process takes part, the first one gets it.

    Args:
        model: A model, plain or as wrapped by DDP or FSDP.
        optimizer: Its optimizer, after an update at least.

    Returns:
        The tensors, by the names of the parameters in the plain model.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = cast(Any, get_state_dict(model, optimizer, options=options))
    tensors = {
        f"{parameter}.{name}": tensor
        for parameter, moments in state.get("state", {}).items()
        for name, tensor in moments.items()
    }
    return FullState(weights, tensors)


def spread_state(full: FullState, model: nn.Module, optimizer: Optimizer) -> None:
    """Load what `gather_state` gave into model and optimizer; every process takes part, and has it.

    Raises:
        ValueError: If it is the state of another optimizer.
    """
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer)
    moments: dict[str, Any] = {}
    for key, tensor in full.optimizer.items():
        parameter, _, name = key.rpartition(".")
        moments.setdefault(parameter, {})[name] = tensor
    if moments.keys() != state["state"].keys():
        raise ValueError("the checkpoint holds the optimizer's state of another model; train the run again")
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, {**state, "state": moments}, options=options)
    spread_weights(full.weights, model)  # last: PyTorch makes an update of size 0 to have an optimizer's state


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy the whole weights of a model, as `gather_state` names them, to the CPU of every process."""
    weights: dict[str, Any] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def spread_weights(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Load whole weights into a model, plain or as wrapped by DDP or FSDP."""
    set_model_state_dict(model, dict(weights), options=StateDictOptions(full_state_dict=True))


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
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); train the run again") from error
