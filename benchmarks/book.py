"""What the book costs its authors: building it again when nothing has changed, and comparing its stored outputs."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.turns import OURS

COMMANDS = {
    "make book again": (["make", "book"], 3, 15.0),
    "nbval over all chapters": (
        [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env", "book"],
        1,
        None,
    ),
}


def rows() -> Iterator[dict[str, Any]]:
    """Yield the seconds of either command; the book is built once before."""
    _run(COMMANDS["make book again"][0])
    for work, (command, rounds, aim) in COMMANDS.items():
        seconds = [_run(command) for _ in range(rounds)]
        yield {"part": "book", "work": work, "aim": aim, "unit": "seconds", "seconds": {OURS: seconds}}


def _run(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 2)
