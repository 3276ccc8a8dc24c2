"""Progress bars: in a terminal and in a notebook, and nowhere else."""

import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in a notebook without ipywidgets, where a line of text does as well
    from tqdm.auto import tqdm


def progress_bar(
    batches: Iterable[Any], description: str, *, total: int, done: int = 0, shown: bool = True, leave: bool = True
) -> Any:
    """Wrap batches in a bar that moves as they are gone through.

    Nothing is shown where stderr is neither a terminal nor a notebook's, or ``TQDM_DISABLE`` is set.

    Args:
        batches: What is left to go through.
        description: What stands before the bar.
        total: How many batches there are, those done before included.
        done: How many were done before.
        shown: Whether this process shows the bar; of several, one does.
        leave: Whether the bar stays when it is full.

    Returns:
        A tqdm bar over the batches.
    """
    hidden = not shown or bool(os.environ.get("TQDM_DISABLE"))  # which tqdm itself overlooks in a notebook
    in_notebook = "ipykernel.zmqshell" in sys.modules
    return tqdm(
        batches,
        desc=description,
        total=total,
        initial=done,
        unit="batch",
        mininterval=1.0,
        leave=leave,
        disable=hidden or (False if in_notebook else None),  # None hides it where stderr is no terminal
    )
