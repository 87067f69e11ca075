"""Leaving: after SIGINT or SIGTERM a command is gone within five seconds and says how to go on, whatever it is at.

Until the verb begins there is nothing to keep, and a signal ends the process at once. From then on it raises
``KeyboardInterrupt``, or does what the code at work has put in place of that (:class:`cab.train.Interruption`). A
library that swallows it, an operator that takes a minute, or an exit that waits for a thread gets ``LIMIT_S``: then the
process ends where it is. That is safe at any moment, as a kill is: files are whole or not there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130
LIMIT_S = 4.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # the second is a scheduler's way to say the first
_SAID = b"\ncab: interrupted; give the same command again and it goes on where it was\n"

_interrupted = threading.Event()


def watch() -> None:
    """Takes the signals from here on. Once per process, in its main thread."""
    for number in SIGNALS:
        signal.signal(number, _leave_at_once)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # Python writes the number of each signal there, whichever handler the code at work has put in place.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)  # a child's signals are no concern of its parent
    threading.Thread(target=_leave_in_time, args=(reading,), name="cab-leaving", daemon=True).start()


def unwind() -> None:
    """From here on there is something to put in order first."""
    for number in SIGNALS:
        if signal.getsignal(number) is _leave_at_once:
            signal.signal(number, signal.default_int_handler)


def interrupted() -> bool:
    """Whether a signal came, also where the code at work let it pass: C++ loses an exception now and then."""
    return _interrupted.is_set()


def leave() -> NoReturn:
    """Says how to go on, and ends the process without asking anybody."""
    try:
        for stream in (sys.stdout, sys.stderr):
            # A pipe without a reader, a stream that is in use, or closed.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                stream.flush()
        _take_children_along()
        os.write(2, _SAID)
    finally:
        os._exit(EXIT_INTERRUPTED)


def _take_children_along() -> None:
    """Kills what this process started and is still there: a launcher's idle workers would stay for minutes."""
    # Not imported here, where an import may be what hangs: whoever starts workers has it.
    if (psutil := sys.modules.get("psutil")) is None:
        return
    with contextlib.suppress(psutil.Error, AttributeError):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                # Trackers of semaphores end by themselves, after they have removed what the others left.
                if not any("resource_tracker" in word for word in child.cmdline()):
                    child.kill()


def ignore_signals() -> None:
    """For the last moments, in which nothing is left to interrupt."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    leave()


def _leave_in_time(reading: int) -> None:
    while os.read(reading, 1)[0] not in SIGNALS:
        pass
    _interrupted.set()
    time.sleep(LIMIT_S)
    leave()


def _forget() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)
