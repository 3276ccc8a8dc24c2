"""``evaluate`` and ``predict``: a trained run, measured and put to use."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from companion.cli import corpora
from companion.prediction import load_run


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained run on the test split of its corpus."""

    folder: tyro.conf.Positional[Path]
    """The run folder."""

    def run(self) -> None:
        """Print loss and accuracy as JSON."""
        print(json.dumps(corpora.test(corpora.load_run_of_corpus(self.folder)), allow_nan=False))


@dataclass(frozen=True)
class Predict:
    """Classify texts: print a line with label and probability for each."""

    folder: tyro.conf.Positional[Path]
    """The run folder."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts; without any, each line of standard input is one."""

    def run(self) -> None:
        """Print one prediction a line."""
        predictor = load_run(self.folder)
        texts = self.texts or [line.removesuffix("\n") for line in sys.stdin]
        if not texts:
            raise ValueError("there is no text to classify; give one as an argument, or lines on standard input")
        for label, probability in predictor.predict(texts):
            print(f"{label} {probability:.2f}")
