"""Sphinx's configuration for `make serve`, since Jupyter Book, which reads _config.yml, has no live rebuild of its own.

Sphinx reads this file anew for every rebuild.
"""

from pathlib import Path

from jupyter_book.config import get_final_config
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]

_command_line = {"external_toc_path": str(ROOT / "_toc.yml"), "latex_individualpages": False, "nitpicky": True}
_config, _ = get_final_config(user_yaml=ROOT / "_config.yml", sourcedir=ROOT, cli_config=_command_line)
globals().update(_config)


def setup(app: Sphinx) -> None:
    """Read paths in _config.yml as from the folder that it lies in, not as from this one."""
    app.confdir = app.srcdir
