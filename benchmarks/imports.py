"""What importing the package costs beside importing torch, each in a fresh Python."""

import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.turns import OURS, Comparison

STATEMENTS = {
    OURS: "from companion import TextClassifier",
    "import torch": "import torch",
    "the package alone": "import companion",
    "with train alone": "from companion import train",
}
"""What is imported; names that end in "alone" are no peers."""


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
