"""Sphinx extension: below each chapter's title, how long it takes to read and, where it was executed, to run.

Reading: 200 words of prose and 20 lines of code a minute. Running: the seconds that the notebook took when this
site, or the cache that it is built from, executed it. ``{{ built_with }}`` names the machine and the versions.
"""

from pathlib import Path

import torch
from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx_external_toc.parsing import parse_toc_yaml

from companion.records import hardware, package_versions

WORDS_PER_MINUTE = 200
CODE_LINES_PER_MINUTE = 20


def reading_minutes(document: nodes.document) -> int:
    """Return how many minutes a page takes to read, at least 1; outputs of cells do not count."""
    words = lines = 0
    for text in document.findall(nodes.Text):
        if _is_output(text):
            continue
        if isinstance(text.parent, nodes.literal_block):
            lines += sum(bool(line.strip()) for line in text.splitlines())
        else:
            words += len(text.split())
    return max(1, round(words / WORDS_PER_MINUTE + lines / CODE_LINES_PER_MINUTE))


def _is_output(node: nodes.Node) -> bool:
    while (node := node.parent) is not None:
        if "cell_output" in getattr(node, "attributes", {}).get("classes", []):
            return True
    return False


def duration(seconds: float) -> str:
    """Write a duration: seconds below two minutes, minutes above.

    Example:
        >>> duration(57.3), duration(140)
        ('57 s', '2.3 min')
    """
    return f"{max(1, round(seconds))} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def add_times(app: Sphinx, document: nodes.document) -> None:
    """Add the line to a page of the book's first part, the chapters."""
    chapters, *_ = parse_toc_yaml(Path(app.srcdir, "_toc.yml")).root.subtrees
    if app.env.docname not in chapters.items:
        return
    line = f"{reading_minutes(document)} min to read"
    executed = NbMetadataCollector.get_doc_data(app.env)[app.env.docname].get("exec_data")
    if executed and executed["runtime"]:
        line += f" · runs in {duration(executed['runtime'])}"
    title = next(document.findall(nodes.title))
    title.parent.insert(title.parent.index(title) + 1, nodes.paragraph("", line, classes=["times"]))


def name_machine(app: Sphinx, config: Config) -> None:
    """Give the pages the machine and the versions."""
    machine = hardware(torch.device("cpu"), num_processes=1)
    versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
    config.myst_substitutions = {
        **config.myst_substitutions,
        "built_with": f"{machine['processor']}, {machine['cores']} cores; {versions}",
    }


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("config-inited", name_machine)
    app.connect("doctree-read", add_times)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
