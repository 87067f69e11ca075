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

import contextlib
import importlib
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from cab.records import Status

PRELOAD = ("torch", "numpy", "torch.autograd.profiler", "attention_zoo.contract", "cab.settings")
_HEADER = struct.Struct("!Q")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """How a call ended: ``value`` where the status is ok, one line of ``reason`` otherwise."""

    status: Status
    value: Any = None
    reason: str | None = None
    duration_s: float = 0.0


@dataclass(frozen=True)
class _Request:
    call: bytes  # pickled (function, arguments, keywords); unpickled in the child alone
    path: list[str]
    threads: int | None
    time_limit: float | None
    memory_limit: int | None


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
        request = _Request(call, list(sys.path), self.threads, time_limit, memory_limit)
        started = time.monotonic()
        try:
            self._start()
            assert self._socket is not None
            _send(self._socket, pickle.dumps(request))
            status, value, reason = pickle.loads(_receive(self._socket))
            outcome = Outcome(status, value, reason, time.monotonic() - started)
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
            code = (
                f"from cab.measure.isolate import serve; serve({theirs.fileno()}, {self._preload!r}, {not self.fresh})"
            )
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
        self.close()


def serve(descriptor: int, preload: list[str], fork: bool) -> None:
    """The server's loop: a child per request until the parent closes its end. Runs in a process of its own."""
    for module in preload:
        importlib.import_module(module)
    with socket.socket(fileno=descriptor) as connection:
        while True:
            try:
                request: _Request = pickle.loads(_receive(connection))
            except (EOFError, ConnectionError):
                return
            reply = _run_child(request, connection, fork)
            if reply is None:
                return
            _send(connection, pickle.dumps(reply))


def _run_child(request: _Request, connection: socket.socket, fork: bool) -> tuple[Status, Any, str | None] | None:
    """Forks, and waits for the result, the time limit or the end of the parent (None), whichever comes first.

    A fresh interpreter forks too: nothing of CUDA is initialised in it, and the waiting is the same.
    """
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if child == 0:
            os.close(read_end)
            connection.close()
            _child(request, write_end, printed)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            result, why = _await(pipe, connection, request.time_limit)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)  # the child, where it has not ended, and what it started
            _, wait_status = os.waitpid(child, 0)
        if why == "parent":
            return None
        if why == "time":
            return Status.TIMEOUT, None, f"over the limit of {request.time_limit:g} s"
        if result:
            return pickle.loads(result)
        return _crash(wait_status, printed)


def _await(pipe: IO[bytes], connection: socket.socket, time_limit: float | None) -> tuple[bytes, str]:
    """All that the child writes until it closes the pipe; and what ended the wait: ``child``, ``time``, ``parent``."""
    deadline = None if time_limit is None else time.monotonic() + time_limit
    parts: list[bytes] = []
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([pipe.fileno(), connection.fileno()], [], [], left)
        if not ready:
            return b"", "time"
        if pipe.fileno() in ready:
            part = os.read(pipe.fileno(), 1 << 20)
            if not part:
                return b"".join(parts), "child"
            parts.append(part)
        elif connection.recv(1, socket.MSG_PEEK) == b"":
            return b"", "parent"


def _crash(wait_status: int, printed: IO[bytes]) -> tuple[Status, None, str]:
    if os.WIFSIGNALED(wait_status):
        name = signal.Signals(os.WTERMSIG(wait_status)).name
        if name == "SIGKILL":
            return Status.OUT_OF_MEMORY, None, "the process was killed (SIGKILL), as the kernel does when memory is out"
        how = f"the process was ended by {name}"
    else:
        how = f"the process exited with code {os.WEXITSTATUS(wait_status)} and no result"
    printed.seek(0)
    text = printed.read().decode(errors="replace").strip()
    # An allocation that fails in a thread of a kernel ends the process by std::terminate.
    status = Status.OUT_OF_MEMORY if "bad_alloc" in text else Status.ERROR
    last = text.rsplit("\n", 1)[-1]
    return status, None, f"{how}: {last}" if last else how


def _child(request: _Request, write_end: int, printed: IO[bytes]) -> None:
    """Runs the call, writes its outcome, and ends the process without the server's exit handlers."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        _die_with_parent()
        reply = pickle.dumps(_call(request))
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(reply)
        code = 0
    finally:
        os._exit(code)


def _call(request: _Request) -> tuple[Status, Any, str | None]:
    from attention_zoo.contract import Unsupported

    try:
        sys.path[:] = request.path
        _set_threads(request.threads, start=request.memory_limit is not None)
        if request.memory_limit is not None:
            limit_memory(request.memory_limit)
        function, args, kwargs = pickle.loads(request.call)
        return Status.OK, function(*args, **kwargs), None
    except Unsupported as error:
        return Status.UNSUPPORTED, None, error.reason
    except Exception as error:  # noqa: BLE001 - whatever a mechanism raises is this cell's result
        return _classify(error), None, _one_line(error)


def _classify(error: Exception) -> Status:
    """Torch reports a failed CPU allocation as a plain RuntimeError, known by its text alone."""
    import torch

    texts = ("can't allocate memory", "not enough memory", "std::bad_alloc", "CUDA out of memory")
    refused = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    if refused or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Status.OUT_OF_MEMORY
    return Status.ERROR


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _set_threads(threads: int | None, *, start: bool) -> None:
    """``start``: makes the pool now, so that its stacks are not taken from the memory limit."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if start:
        torch.ones(1 << 17).add_(1.0)


def limit_memory(extra: int) -> None:
    """Lets this process map ``extra`` bytes of private memory more than now; an allocation past it fails (Linux)."""
    if not sys.platform.startswith("linux"):
        raise ValueError(f"memory_limit needs Linux, this is {sys.platform}")
    import resource

    with open("/proc/self/status") as file:
        data = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data + extra, hard))


def _die_with_parent() -> None:
    """On Linux: dies with the server, and is what the kernel kills first when memory is out."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_HEADER.pack(len(message)) + message)


def _receive(connection: socket.socket) -> bytes:
    (size,) = _HEADER.unpack(_exactly(connection, _HEADER.size))
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
