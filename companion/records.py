"""Records: what a run did, with what, on what, and how it ended."""

import json
import math
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, cast, get_args, get_origin, get_type_hints, is_typeddict

import torch

from companion.files import atomic_path

_AnyRecord = TypeVar("_AnyRecord", bound="_Record")
_AnyDataclass = TypeVar("_AnyDataclass")


class _Record:
    """What records have in common: they stand in a file."""

    kind: ClassVar[str]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON, atomically."""
        write_json(path, asdict(cast(Any, self)))

    @classmethod
    def load(cls: type[_AnyRecord], path: str | os.PathLike[str]) -> _AnyRecord:
        """Read a record.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a record of this kind.
        """
        return read_dataclass(path, cls, f"a {cls.kind}")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(_Record):
    """A training run and its provenance, as it stands in ``record.json``.

    Attributes:
        command: What was run.
        config: The entries of ``config.json``: ``"model"``, ``"training"`` and, where given, ``"data"``.
        seed: The seed of the run.
        commit: The package's git commit, ``-dirty`` where it had changes; ``None`` outside a checkout.
        versions: Versions of Python and of the packages that matter.
        hardware: Device, processor, threads and processes.
        wall_seconds: Seconds spent in `companion.train`, evaluations included, over all resumptions.
        tokens_per_second: Tokens trained on a second, padding not counted; ``None`` if the loss does not count them.
        parameters: Number of trainable parameters.
        history: One entry an epoch: ``epoch``, ``seconds``, and ``train`` and ``dev`` metrics.
        dev: Metrics on the dev split with the weights that were kept; ``None`` without a dev split.
        test: Metrics on the test split, measured once at the end; ``None`` until then.

    Example:
        >>> record = load_result("imdb")
        >>> record.command
        'python -m companion train imdb --output runs/imdb'
        >>> record.save("record.json")
        >>> TrainingRecord.load("record.json") == record
        True
    """

    kind: ClassVar[str] = "training record"

    command: str
    config: dict[str, Any]
    seed: int
    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    wall_seconds: float
    tokens_per_second: int | None
    parameters: int
    history: list[dict[str, Any]]
    dev: dict[str, float] | None
    test: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement(_Record):
    """Figures that many runs gave, and their provenance.

    Attributes:
        command: What was run.
        commit: The package's git commit when the record was written, as in `TrainingRecord`.
        versions: Versions of Python and of the packages that matter.
        hardware: Device, processor, threads and processes.
        wall_seconds: Seconds that the runs took, over all resumptions.
        rows: The figures, a dict for each.

    Example:
        >>> measurement = load_measurement("positions")
        >>> sorted(measurement.rows[0])
        ['accuracy', 'length', 'loss', 'positions', 'seed', 'task']
    """

    kind: ClassVar[str] = "measurement"

    command: str
    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    wall_seconds: float
    rows: list[dict[str, Any]]


def write_json(path: str | os.PathLike[str], entries: dict[str, Any]) -> None:
    """Write a dict as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(entries, indent=2) + "\n", "utf-8")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not hold a JSON object.
    """
    try:
        entries = json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # the latter where lists hold lists thousands deep
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} holds no JSON object")
    return entries


def read_dataclass(path: str | os.PathLike[str], cls: type[_AnyDataclass], kind: str) -> _AnyDataclass:
    """Read a dataclass whose fields are the entries of a JSON object, each of the type that it is annotated with.

    Args:
        path: The file.
        cls: The dataclass.
        kind: What to call it in messages, such as ``"a measurement"``.

    Returns:
        The dataclass.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds something else.
    """
    entries = read_json(path)
    hints = get_type_hints(cls)
    expected = {field.name for field in fields(cast(Any, cls))}
    if set(entries) != expected:
        raise ValueError(f"{path} is not {kind}: {sorted(set(entries) ^ expected)} do not match")
    wrong = sorted(name for name, value in entries.items() if not _fits(value, hints[name]))
    if wrong:
        raise ValueError(f"{path} is not {kind}: {', '.join(wrong)} of another type than expected")
    return cls(**entries)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a JSON value is of a type; a whole number is a float too, but true and NaN are no numbers."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        return isinstance(value, dict) and all(
            _fits(value[name], hints[name]) if name in value else name in hint.__optional_keys__ for name in hints
        )
    if hint is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return type(value) is hint


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, ``-dirty`` with changes; ``None`` outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True)
        command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    packages = ("measured-transformer", "torch", "torchtext", "accelerate", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def hardware(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Describe the machine: device, processor, cores, threads a process, processes."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": num_processes,
    }


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
