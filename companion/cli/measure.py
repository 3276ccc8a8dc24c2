"""``measure``: the trainings and measurements that the book draws from records."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from companion import comparison, experiments, quantization, study
from companion.cli import corpora
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
        _save(rows, self.output, default_device(), sum(run.wall_seconds for run in runs))


@dataclass(frozen=True, kw_only=True)
class MeasureQuantization:
    """Measure a trained run with 8-bit weights beside itself, on the test split of its corpus and on the CPU."""

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """The folder of the trained run."""
    output: Path
    """The folder to write: record.json."""

    def run(self) -> None:
        """Quantize, measure, write the record."""
        start, predictor = time.perf_counter(), corpora.load_run_of_corpus(self.source)
        batches = [*corpora.test_batches(predictor)]
        rows = quantization.compare_quantized(predictor.model.cpu(), batches)
        self.output.mkdir(parents=True, exist_ok=True)
        _save(rows, self.output, torch.device("cpu"), time.perf_counter() - start)


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


def _save(rows: list[dict[str, Any]], folder: Path, device: torch.device, seconds: float) -> None:
    """Write the record of a measurement, and print where it is."""
    measurement = Measurement(
        command=command_line(),
        commit=git_commit(),
        versions=package_versions(),
        hardware=hardware(device, 1),
        wall_seconds=round(seconds, 1),
        rows=rows,
    )
    measurement.save(folder / "record.json")
    print(f"{folder / 'record.json'}: {len(rows)} rows")


@dataclass(frozen=True)
class Measure:
    """Train or measure what the book draws from records."""

    what: Annotated[
        Annotated[MeasurePositions, tyro.conf.subcommand("positions")]
        | Annotated[MeasureIMDB, tyro.conf.subcommand("imdb")]
        | Annotated[MeasureALBERT, tyro.conf.subcommand("albert")]
        | Annotated[MeasureQuantization, tyro.conf.subcommand("quantization")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Measure what was chosen."""
        self.what.run()
