"""Files that are there whole or not at all, whoever kills the process or pulls the plug while they are written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which becomes ``path`` in one step when the block ends.

    It has the same ending, and is gone where the block fails or is interrupted. Two processes may do this at once: the
    last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.{time.monotonic_ns()}{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a lost machine may leave the name with nothing behind it
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> Path:
    """``content`` at ``path``; returns it."""
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return path
