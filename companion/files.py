"""Files: written whole or not at all, and on the disk before they take their name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the place of ``path`` once the block ends without an error.

    Args:
        path: The file to write, or a folder that does not exist yet. The folder that it is in must exist.

    Yields:
        The temporary path, in the same folder; it is deleted if the block raises.

    Example:
        >>> with atomic_path("greeting.txt") as temporary:
        ...     written = temporary.write_text("hello")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        _remove(temporary)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files and folders that killed processes have left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
