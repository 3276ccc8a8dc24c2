"""Files: written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the place of ``path`` once the block ends without an error.

    Args:
        path: The file to write. Its folder must exist.

    Yields:
        The temporary path, in the same folder; it is deleted if the block raises.

    Example:
        >>> with atomic_path("/tmp/greeting.txt") as temporary:
        ...     written = temporary.write_text("hello")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
