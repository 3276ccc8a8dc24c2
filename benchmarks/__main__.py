"""Run the benchmarks and write the record that the book draws: ``python -m benchmarks [part ...]``.

Where there is a GPU, it is timed, at sizes that keep it busy, and a record of its own is written. Parts that are not
named keep their rows. ``python -m benchmarks check`` compares ratios with the record instead.
"""

import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from benchmarks import albert, attention, book, classifier, compiled, decoding, epoch, imports, profiles, wide
from benchmarks.turns import DEVICE, ROUNDS, Comparison, advantage, ratios, run, sized
from companion.records import Measurement, git_commit, hardware, package_versions
from companion.results import FOLDER

RECORD = FOLDER / sized(cpu="speed.json", gpu="speed-gpu.json")
CHECKED = (imports, classifier, wide, decoding)
"""The parts that a check times: those that take seconds a round."""
CHECK_ROUNDS, TOLERATED = 5, 0.8
PEERS = ("transformers", "x-transformers", "curated-transformers", "keras")


def timed(
    comparisons: Callable[[], Iterator[Comparison]], rounds: int = ROUNDS, *, warm_up: bool = True
) -> Callable[[], Iterator[dict[str, Any]]]:
    """Return what times the comparisons one after the other and yields their rows."""

    def rows() -> Iterator[dict[str, Any]]:
        for comparison in comparisons():
            row = run(comparison, rounds, warm_up=warm_up)
            found = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios(row).items())
            print(f"{row['part']:10}  {row['work']:75}  {found}", flush=True)
            yield row

    return rows


PARTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "imports": timed(imports.comparisons),
    "classifier": timed(classifier.comparisons),
    "wide": timed(wide.comparisons),
    "attention": timed(attention.comparisons),
    "memory": attention.memory_rows,
    "albert": timed(albert.comparisons),
    "decoding": timed(decoding.comparisons),
    "epoch": timed(epoch.comparisons),
    "whole epoch": timed(epoch.whole_epochs, rounds=1, warm_up=False),
    "compiled": timed(compiled.comparisons),
    "profile": profiles.rows,
    "book": book.rows,
}
HERE = [part for part in PARTS if part not in sized(cpu=(), gpu=("imports", "profile", "book"))]
"""Those that a record of this device has."""


def check() -> int:
    """Time a few rounds anew; return 1 where a ratio has fallen below four fifths of the record's, else 0."""
    recorded = {(row["part"], row["work"]): row for row in Measurement.load(RECORD).rows if "seconds" in row}
    fallen = 0
    for part in CHECKED:
        for comparison in part.comparisons():
            row = recorded.get((comparison.part, comparison.work))
            if row is None or comparison.aim is None:
                continue
            before, now = advantage(row), advantage(run(comparison, CHECK_ROUNDS))
            falls = now < TOLERATED * before
            fallen += falls
            print(f"{'FALLEN' if falls else 'ok':6}  {now:5.2f}  {before:5.2f} recorded  {comparison.work}", flush=True)
    return int(fallen > 0)


def measure(names: list[str]) -> None:
    """Run parts and put their rows in the place of the record's; what is done is kept, whatever stops the next one."""
    anew = not RECORD.exists() or set(names) >= set(HERE)
    record, here = None if anew else Measurement.load(RECORD), hardware(DEVICE, 1)
    if record is not None and record.hardware != here:
        raise ValueError(f"{RECORD.name} is of another machine, or of another number of threads; run all parts")
    for name in names:
        start = time.perf_counter()
        rows = [{**row, "part": name, "commit": git_commit()} for row in PARTS[name]()]
        others = [] if record is None else [row for row in record.rows if row["part"] != name]
        spent = 0.0 if record is None else record.wall_seconds
        record = Measurement(
            command="make bench",
            commit=git_commit(),
            versions={**package_versions(), **{peer: version(peer) for peer in PEERS}},
            hardware=here,
            wall_seconds=round(spent + time.perf_counter() - start, 1),
            rows=[*others, *rows],
        )
        record.save(RECORD)


def main(names: list[str]) -> int:
    """Run the parts; return 0, or 1 where a ratio has fallen below the record's, or 2 where something is missing."""
    warnings.filterwarnings("ignore")
    unknown = [] if names == ["check"] else [name for name in names if name not in PARTS]
    if unknown:
        print(f"{unknown[0]!r} is no part; choose from {', '.join(PARTS)}, or check alone", file=sys.stderr)
        return 2
    try:
        if names == ["check"]:
            return check()
        measure(names or HERE)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
