"""Claims: at most one process works on a run at a time, however many sweeps share a results folder.

A claim is a lock (``flock``) on ``claims/<run key>``. The kernel gives it back when its process ends, in whatever way,
so that there is nothing to clean up after a kill. On a shared file system locks have to work between machines (NFS 4
and Lustre with ``flock`` do).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_S = 0.2


@contextlib.contextmanager
def claimed(folder: Path, run_key: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the claim on a run; waits where another process has it, and says so once by ``on_wait``."""
    path = folder / "claims" / run_key
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, waited = _take(path), False
    while descriptor is None:
        if not waited:
            on_wait()
            waited = True
        time.sleep(_POLL_S)
        descriptor = _take(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def claims_of(folder: Path) -> list[Path]:
    """The files of the claims that are held, or whose holders died."""
    return list((folder / "claims").glob("*"))


def left_behind(folder: Path, run_key: str) -> bool:
    """Whether the last process that held the claim died with it; asking forgets it."""
    path = folder / "claims" / run_key
    if not path.exists() or (descriptor := _take(path)) is None:
        return False
    path.unlink(missing_ok=True)
    os.close(descriptor)
    return True


def _take(path: Path) -> int | None:
    """The locked file, or None where another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed the file between the two calls: a lock on that one holds nobody off.
        current = os.stat(path)
        own = os.fstat(descriptor)
        if (current.st_ino, current.st_dev) == (own.st_ino, own.st_dev):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
