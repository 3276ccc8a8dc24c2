"""Keep of notebooks what does not change from run to run: sources, outputs, cell ids, tags and alt texts.

    python book/_tools/tidy.py book/*.ipynb

A notebook that has nothing else is left as it is.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tidy(notebook: NotebookNode) -> None:
    """Keep of the metadata the kernel's name, tags and alt texts, fold titled cells on Colab, and give each cell an id.

    Args:
        notebook: The notebook, changed in place.
    """
    nbformat.v4.upgrade(notebook)  # Colab stores no ids
    notebook.metadata = NotebookNode(NOTEBOOK_METADATA)
    for cell in notebook.cells:
        kept = {name: cell.metadata[name] for name in ("tags", "mystnb") if cell.metadata.get(name)}
        if cell.source.startswith("#@title"):
            kept["cellView"] = "form"
        cell.metadata = NotebookNode(kept)


def write(notebook: NotebookNode, path: Path) -> None:
    """Replace a notebook file in one step."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def main(paths: list[Path]) -> None:
    """Tidy the notebooks one after the other."""
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        tidy(notebook)
        write(notebook, path)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
