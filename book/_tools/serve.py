"""Serve the site to this machine, and build it again whenever a page or the package changes.

    python book/_tools/serve.py 8000

A chapter is executed where `make book` would execute it: its code or the package has changed.
"""

import socket
import sys
from pathlib import Path

from sphinx_autobuild.__main__ import main

HOST = "127.0.0.1"
IGNORED = ["_build", "runs", "tests", "benchmarks", ".*", "*/__pycache__/*", "*/.ipynb_checkpoints/*"]


def is_free(port: int) -> bool:
    """Say whether a server can be started on a port; the first build, after which it is, takes minutes."""
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) != 0


if __name__ == "__main__":
    port = int(sys.argv[1])
    if not is_free(port):
        sys.exit(f"Port {port} of {HOST} is in use; name another one: make serve PORT={port + 1}")
    ignored = [argument for pattern in IGNORED for argument in ("--ignore", pattern)]
    options = ["-c", str(Path(__file__).parent), "--host", HOST, "--port", str(port), *ignored]
    main([*options, ".", "_build/serve"])
