"""The method: the same work by several contenders, which take turns in one process; medians, and ratios by pairs."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

ROUNDS = 15
OURS = "companion"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where everything is computed: a GPU where there is one."""

Size = TypeVar("Size")


def sized(*, cpu: Size, gpu: Size) -> Size:
    """Choose the size of some work: that for a CPU, or that which keeps a GPU busy."""
    return cpu if DEVICE.type == "cpu" else gpu


class Comparison(NamedTuple):
    """Contenders that do the same work.

    Attributes:
        part: The chapter of the comparison, such as ``"classifier"``.
        work: What is done, in words.
        amount: How many units one turn works off: real tokens, without padding.
        unit: The unit.
        contenders: What does it, by name; ours under ``"companion"``.
        difference: The largest difference between the outputs of ours and of another, found before the timing.
        aim: The ratio to the fastest other one that is aimed at; ``None`` = no aim.
        settings: What else defines the work.
    """

    part: str
    work: str
    amount: int
    unit: str
    contenders: Mapping[str, Callable[[], Any]]
    difference: float
    aim: float | None = None
    settings: Mapping[str, Any] = {}


def take_turns(
    contenders: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Call each once to warm up, then all of them in each round, in an order drawn anew; return each call's seconds."""
    for contender in contenders.values() if warm_up else ():
        contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names, generator = list(contenders), random.Random(0)
    gc.freeze()  # what stands here already, such as all of IMDB, is not looked through at each turn
    for _ in range(rounds):
        for name in generator.sample(names, len(names)):
            gc.collect()
            seconds[name].append(_time(contenders[name]))
    gc.unfreeze()
    return seconds


def _time(work: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    """Let a GPU finish what it was told to do."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def run(comparison: Comparison, rounds: int = ROUNDS, *, warm_up: bool = True) -> dict[str, Any]:
    """Time a comparison; return its row of the record."""
    seconds = take_turns(comparison.contenders, rounds, warm_up=warm_up)
    return {
        **{name: value for name, value in comparison._asdict().items() if name not in ("contenders", "settings")},
        **comparison.settings,
        "threads": torch.get_num_threads(),
        "seconds": {name: [float(f"{value:.4g}") for value in values] for name, values in seconds.items()},
    }


def ratios(row: Mapping[str, Any]) -> dict[str, float]:
    """Return, for each contender but ours, the median over the rounds of its time divided by ours."""
    seconds = row["seconds"]
    return {
        name: statistics.median(other / ours for ours, other in zip(seconds[OURS], values, strict=True))
        for name, values in seconds.items()
        if name != OURS
    }


def advantage(row: Mapping[str, Any]) -> float:
    """Return the ratio to the fastest other contender that computes the same: what an aim is about."""
    return min(ratio for name, ratio in ratios(row).items() if not name.endswith("alone"))


def largest_difference(ours: Tensor, others: Iterable[Tensor], tolerance: float) -> float:
    """Prove outputs equal up to rounding.

    Args:
        ours: Our output.
        others: Those of the other contenders.
        tolerance: The largest difference allowed.

    Returns:
        The largest one found.

    Raises:
        AssertionError: If it is beyond the tolerance.
    """
    difference = max((float((ours.double() - other.double()).abs().max()) for other in others), default=0.0)
    if not difference <= tolerance:
        raise AssertionError(f"the outputs differ by {difference}; expected at most {tolerance}")
    return difference
