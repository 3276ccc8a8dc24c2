"""Run folders: what a training run leaves on disk, and how it comes back.

A run folder holds ``config.json``, ``model.safetensors`` (the best weights so far), ``vocabulary.txt``,
``checkpoints/`` (the state after the last whole epoch) and, once the run has ended, ``record.json``. Tensors are kept
in safetensors, all else in JSON and text; each file is written whole or not at all.
"""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from companion.files import atomic_path
from companion.records import read_json, write_json


@dataclass
class TrainingState:
    """Where a run stands after a whole epoch.

    Attributes:
        history: One entry for each epoch that is done.
        wall_seconds: Seconds spent so far, over all resumptions.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    wall_seconds: float = 0.0

    def best_epoch(self) -> int:
        """Return the epoch whose weights are kept.

        It is the one with the highest dev accuracy, of several the one with the lowest dev loss; where the loss
        function gives no accuracy the loss alone decides, and without a dev split it is the last one.
        """
        if "dev" not in self.history[-1]:
            return len(self.history)
        devs = [entry["dev"] for entry in self.history]
        return 1 + min(range(len(devs)), key=lambda index: (-devs[index].get("accuracy", 0.0), devs[index]["loss"]))


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
            return
        self.check_free()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.config, entries)

    def save(self, state: TrainingState, model: nn.Module, optimizer: Optimizer) -> None:
        """Keep the state after an epoch, and its weights as the best where they are."""
        if state.best_epoch() == len(state.history):
            save_weights(model.state_dict(), self.weights)
        target = self.checkpoints / f"epoch-{len(state.history):04d}"
        temporary = self.checkpoints / f".{target.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_weights(model.state_dict(), temporary / "model.safetensors")
        optimizer_state = optimizer.state_dict()["state"]
        flat = {f"{index}.{name}": tensor for index, one in optimizer_state.items() for name, tensor in one.items()}
        save_weights(flat, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", asdict(state))
        temporary.rename(target)
        for old in self.checkpoints.glob("epoch-*"):
            if old != target:
                shutil.rmtree(old)

    def restore(self, model: nn.Module, optimizer: Optimizer) -> TrainingState:
        """Load the last checkpoint into model and optimizer; a fresh state where there is none.

        Raises:
            ValueError: If a file of the checkpoint is damaged.
        """
        saved = sorted(self.checkpoints.glob("epoch-*"))
        if not saved:
            return TrainingState()
        model.load_state_dict(load_weights(saved[-1] / "model.safetensors"))
        optimizer_state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_weights(saved[-1] / "optimizer.safetensors").items():
            index, _, name = key.partition(".")
            optimizer_state.setdefault(int(index), {})[name] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
        return TrainingState(**read_json(saved[-1] / "state.json"))


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
