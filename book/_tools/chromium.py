"""The browser that prints the book and draws its formulas."""

import shutil
import sys


def executable() -> str:
    """Return where Chromium is installed, or end with the way to install it."""
    found = shutil.which("chromium")
    if found is None:
        sys.exit("Chromium is not installed, and the PDF and the EPUB need it: apt-get install chromium")
    return found


if __name__ == "__main__":
    executable()
