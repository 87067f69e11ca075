"""Timing alone: whoever times has the device to itself, among all processes of cab on this machine.

Training holds the device's lock shared, timing holds it alone. The lock is a file in the machine's folder for temporary
files, so it holds between users and results folders; the kernel gives it back when a process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def device_held(device: str, *, alone: bool, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds ``device`` (``cpu``, ``cuda``), shared or alone; waits where that cannot be, and says so by ``on_wait``."""
    path = Path(tempfile.gettempdir()) / f"cab-{device.partition(':')[0]}.lock"
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        # Not always: Linux refuses to create a file of another user again in a folder that all may write to.
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    wanted = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
        try:
            fcntl.flock(descriptor, wanted | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, wanted)
        yield
    finally:
        os.close(descriptor)
