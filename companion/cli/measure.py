"""``measure``: the trainings that the book draws from records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from companion import comparison, experiments, study
from companion.cli.runs import command_line
from companion.devices import default_device
from companion.records import Measurement, TrainingRecord, git_commit, hardware, package_versions


@dataclass(frozen=True, kw_only=True)
class MeasurePositions:
    """Train small models on tasks that need order and on one that does not, with each kind of positions.

    Runs that are finished in the folder are not repeated, and one that is not goes on.
    """

    output: Path
    """The folder to write: the runs, and record.json."""
    seeds: int = 3
    """How often each model is trained."""

    def run(self) -> None:
        """Train, measure, write the record."""
        rows = experiments.position_ablation(self.output, seeds=self.seeds)
        runs = [TrainingRecord.load(path) for path in self.output.glob("*/record.json")]
        measurement = Measurement(
            command=command_line(),
            commit=git_commit(),
            versions=package_versions(),
            hardware=hardware(default_device(), 1),
            wall_seconds=round(sum(run.wall_seconds for run in runs), 1),
            rows=rows,
        )
        measurement.save(self.output / "record.json")
        print(f"{self.output / 'record.json'}: {len(rows)} rows")


@dataclass(frozen=True, kw_only=True)
class _MeasureRows:
    """Train rows of a table, each with several seeds."""

    output: Path
    """The folder to write: a folder for each row and seed, and records/, what the package ships."""
    rows: tuple[str, ...] = ()
    """The rows to train; without any, all of them."""


@dataclass(frozen=True, kw_only=True)
class MeasureIMDB(_MeasureRows):
    """Train each row of the results table, from the article's model to the best one, and the baselines.

    Runs that are finished in the folder are not repeated, and one that is not goes on.
    """

    def run(self) -> None:
        """Train, measure, write the records."""
        comparison.run_rows(self.rows, self.output, command=command_line(), report=print)


@dataclass(frozen=True, kw_only=True)
class MeasureALBERT(_MeasureRows):
    """Pre-train and fine-tune small ALBERTs on IMDB, each with one choice changed, three minutes each or less.

    Runs that are finished in the folder are not repeated, and one that is not goes on.
    """

    def run(self) -> None:
        """Train, measure, write the records."""
        study.run_study(self.rows, self.output, command=command_line(), report=print)


@dataclass(frozen=True)
class Measure:
    """Train what the book draws from records."""

    what: Annotated[
        Annotated[MeasurePositions, tyro.conf.subcommand("positions")]
        | Annotated[MeasureIMDB, tyro.conf.subcommand("imdb")]
        | Annotated[MeasureALBERT, tyro.conf.subcommand("albert")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Measure what was chosen."""
        self.what.run()
