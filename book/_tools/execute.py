"""Execute notebooks in place and store their outputs, without the metadata that changes from run to run.

    python book/_tools/execute.py book/*.ipynb

A notebook that fails is left as it was, and the exit status is 1.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode
from tidy import tidy, write


class CellFailure(Exception):
    """A cell that raised, timed out or took the kernel down."""


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run every cell of a notebook, in order, and keep the outputs in it.

    Args:
        notebook: The notebook, changed in place.
        folder: The kernel's working directory.

    Raises:
        CellFailure: A cell failed; the message has its index in the notebook and its traceback.
    """
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            try:
                client.execute_cell(cell, index)
            except (CellControlSignal, DeadKernelError) as error:
                raise CellFailure(f"cell {index}: {error}") from error


def main(paths: list[Path]) -> int:
    """Execute and store the notebooks one after the other, and return the exit status."""
    status = 0
    for path in paths:
        print(path, flush=True)
        notebook = nbformat.read(path, as_version=4)
        try:
            execute(notebook, path.parent)
        except CellFailure as failure:
            print(f"{path}: {failure}", file=sys.stderr)
            status = 1
        else:
            tidy(notebook)
            write(notebook, path)
    return status


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
