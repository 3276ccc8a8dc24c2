"""What importing the package costs beside importing torch, each in a fresh Python."""

import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.turns import OURS, Comparison

STATEMENTS = {
    OURS: "import companion",
    "import torch": "import torch",
    "with a model": "from companion import TextClassifier",
    "with train": "from companion import train",
}


def comparisons() -> Iterator[Comparison]:
    """Yield the one comparison."""
    yield Comparison(
        part="imports",
        work="import",
        amount=1,
        unit="imports",
        contenders={name: _importer(statement) for name, statement in STATEMENTS.items()},
        difference=0.0,
        aim=1 / 1.5,
    )


def _importer(statement: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", statement], check=True)
