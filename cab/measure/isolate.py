"""Runs functions in processes of their own, so that whatever kills one of them is a result and disturbs nothing else.

A *fork server* is a fresh interpreter that has imported torch and run no operator: its thread pools, allocators and
kernels' caches are untouched, so every fork starts equal, and a fork costs tens of milliseconds where an import
costs seconds. CUDA cannot be forked once it is initialised, and some systems cannot fork safely: there (``fresh=True``)
every call gets an interpreter of its own.

    parent  --request-->  server  --fork-->  child        one request at a time
            <--reply----          <--pipe---

The server kills the child past its time limit, and when the parent is gone; a child also dies with its server. The
server has a session of its own, so that Ctrl-C reaches the parent alone, which then closes the server. (The standard
library's ``forkserver`` imports the parent's main script into every child and leaves a child running when the parent
dies; both would be in the measurements.)

Functions and arguments travel by pickle: a function has to be importable by its dotted path. What a child prints is
kept only as the reason of a crash.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cab.measure.fork_server import Request, receive, send
from cab.records import Status

PRELOAD = ("torch", "numpy", "torch.autograd.profiler", "attention_zoo.contract")


@dataclass(frozen=True)
class Outcome:
    """How a call ended: ``value`` where the status is ok, one line of ``reason`` otherwise."""

    status: Status
    value: Any = None
    reason: str | None = None
    duration_s: float = 0.0


class IsolatedRunner:
    """Runs one call at a time in a child process; a context manager.

    Args:
        threads: torch's intra-op threads in the child; torch's default where None.
        fresh: an interpreter per call instead of a fork (CUDA; the only way on systems without a safe fork).
        preload: modules that the server imports; none of them may run an operator on import.
    """

    def __init__(self, *, threads: int | None = None, fresh: bool = False, preload: Iterable[str] = ()) -> None:
        self.threads = threads
        self.fresh = fresh or not sys.platform.startswith("linux")
        self._preload = [*PRELOAD, *preload]
        self._server: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        **kwargs: Any,
    ) -> Outcome:
        """``function(*args, **kwargs)`` in a child.

        Args:
            time_limit: seconds, from the fork on; past it the child is killed and the outcome ``timeout``.
            memory_limit: bytes of private memory beyond what the child starts with, thread stacks included; an
                allocation past it fails, and the outcome is ``out_of_memory``.

        An exception is an outcome, never raised; what interrupts the parent stops the child.
        """
        call = pickle.dumps((function, args, kwargs))
        request = Request(call, list(sys.path), self.threads, time_limit, memory_limit)
        started = time.monotonic()
        try:
            self._start()
            assert self._socket is not None
            send(self._socket, pickle.dumps(request))
            status, value, reason = pickle.loads(receive(self._socket))
            outcome = Outcome(Status(status), value, reason, time.monotonic() - started)
        except (EOFError, ConnectionError):
            self.close()
            outcome = Outcome(Status.ERROR, None, "the fork server was killed", time.monotonic() - started)
        except BaseException:
            # Ctrl-C among them: the reply is lost, so this server cannot be used again, and its child has to end.
            self.close()
            raise
        if self.fresh:
            self.close()
        return outcome

    @property
    def server_pid(self) -> int | None:
        """The process id of the server; None before the first call."""
        return None if self._server is None else self._server.pid

    def _start(self) -> None:
        if self._server is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            code = f"from cab.measure.fork_server import serve; serve({theirs.fileno()}, {self._preload!r})"
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._server = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket = ours

    def close(self) -> None:
        """Stops the server and the child that it runs."""
        if self._socket is not None:
            self._socket.close()
        if self._server is not None:
            try:
                self._server.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._server = self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and self._server is not None:
            self._server.kill()  # and with it the child that it runs, which nobody waits for any more
        self.close()
