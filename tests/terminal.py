"""A terminal for a command."""

import os
import select
import subprocess

import pytest


def in_terminal(command: list[str], *, columns: int = 160, **settings) -> tuple[int, str]:
    """Run a command whose stderr is a terminal; return its exit code and what is seen there."""
    pty = pytest.importorskip("pty", reason="needs a Unix terminal")
    termios = pytest.importorskip("termios", reason="needs a Unix terminal")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, **settings)
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # the terminal's other end is closed
            break
    os.close(ours)
    return process.wait(60), seen.decode()
