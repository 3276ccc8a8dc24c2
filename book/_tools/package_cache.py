"""Sphinx extension: execute the chapters again when the package behind them changes.

The cache of executed chapters knows a notebook by its own cells. Here every version of the package gets a
cache of its own, in a folder named after the package's content. The folder is a configuration value on which
the pages depend: when it changes, Sphinx reads every page again, and executes the chapters that are not in
the new cache.
"""

import hashlib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config


def package_digest(root: Path) -> str:
    """Return a hash of the files that decide what a chapter prints, besides the chapter itself.

    Args:
        root: The folder that holds `companion/` and `constraints.txt`.

    Returns:
        Sixteen hexadecimal digits.
    """
    package = root / "companion"
    files = [file for kind in ("py", "js", "css", "mplstyle") for file in package.rglob(f"*.{kind}")]
    files += [*package.glob("results/*.json"), root / "constraints.txt"]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()} {file.relative_to(root)}" for file in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def choose_cache(app: Sphinx, config: Config) -> None:
    """Point the notebook cache at the folder of this version of the package."""
    build = Path(app.outdir).parent
    config.nb_execution_cache_path = str(build / "executed" / package_digest(Path(app.srcdir)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("config-inited", choose_cache)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
