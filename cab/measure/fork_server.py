"""The server's side of :mod:`cab.measure.isolate`: forks a child per request, and waits for its end.

This module and what it imports must start no thread and run no operator: a child has what the server had. That is
why it speaks of statuses by their text: the records would bring a data frame library with threads of its own.
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
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Any

_HEADER = struct.Struct("!Q")
_PR_SET_PDEATHSIG = 1
# Status by its text, the value where it is ok, one line of reason otherwise.
Reply = tuple[str, Any, str | None]


@dataclass(frozen=True)
class Request:
    """One call. ``call`` is the pickled (function, arguments, keywords), unpickled in the child alone."""

    call: bytes
    path: list[str]
    threads: int | None
    time_limit: float | None
    memory_limit: int | None


def serve(descriptor: int, preload: list[str]) -> None:
    """The server's loop: a child per request until the parent closes its end. Runs in a process of its own.

    A fresh interpreter for one call is a server too, and forks: nothing of CUDA is initialised in it before.
    """
    for module in preload:
        importlib.import_module(module)
    with socket.socket(fileno=descriptor) as connection:
        while True:
            try:
                request: Request = pickle.loads(receive(connection))
            except (EOFError, ConnectionError):
                return
            reply = _run_child(request, connection)
            if reply is None:
                return
            send(connection, reply)


def _run_child(request: Request, connection: socket.socket) -> bytes | None:
    """Forks, and waits for the result, the time limit or the end of the parent (None), whichever comes first.

    The result stays pickled: reading it could import modules into the server.
    """
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if child == 0:
            os.close(read_end)
            connection.close()
            _child(request, write_end, printed)
        with contextlib.suppress(OSError):
            os.setpgid(child, child)  # the child does so too; whoever is first, the group is there before a kill
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            kills = _kills_for_memory()
            result, why = _await(pipe, connection, request.time_limit)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)  # the child, where it has not ended, and what it started
            _, wait_status = os.waitpid(child, 0)
        if why == "parent":
            return None
        if why == "time":
            return pickle.dumps(("timeout", None, f"over the limit of {request.time_limit:g} s"))
        return result or pickle.dumps(_crash(wait_status, printed, kills))


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


def _kills_for_memory() -> int | None:
    """How often the kernel has killed a process because memory was out; None where it does not count that."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), None)
    except OSError:
        return None


def _crash(wait_status: int, printed: IO[bytes], kills_before: int | None) -> Reply:
    """What a process without a result died of; a SIGKILL is the kernel's where its count of kills has risen."""
    if os.WIFSIGNALED(wait_status):
        name = signal.Signals(os.WTERMSIG(wait_status)).name
        if name == "SIGKILL":
            if kills_before is None or _kills_for_memory() != kills_before:
                return "out_of_memory", None, "the process was killed (SIGKILL), as the kernel does when memory is out"
            return "error", None, "the process was killed (SIGKILL) from outside: the kernel was not out of memory"
        how = f"the process was ended by {name}"
    else:
        how = f"the process exited with code {os.WEXITSTATUS(wait_status)} and no result"
    printed.seek(0)
    text = printed.read().decode(errors="replace").strip()
    # An allocation that fails in a thread of a kernel ends the process by std::terminate.
    status = "out_of_memory" if "bad_alloc" in text else "error"
    last = text.rsplit("\n", 1)[-1]
    return status, None, f"{how}: {last}" if last else how


def _child(request: Request, write_end: int, printed: IO[bytes]) -> None:
    """Runs the call, writes its outcome, and ends the process without the server's exit handlers."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        _die_with_parent()
        reply = _call(request)
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(reply)
        code = 0
    finally:
        os._exit(code)


def _call(request: Request) -> bytes:
    """The pickled outcome of a request; what cannot be pickled is an error."""
    from attention_zoo.contract import Unsupported

    try:
        sys.path[:] = request.path
        _set_threads(request.threads, start=request.memory_limit is not None)
        if request.memory_limit is not None:
            limit_memory(request.memory_limit)
        function, args, kwargs = pickle.loads(request.call)
        return pickle.dumps(("ok", function(*args, **kwargs), None))
    except Unsupported as error:
        return pickle.dumps(("unsupported", None, error.reason))
    except Exception as error:  # noqa: BLE001 - whatever a mechanism raises is this cell's result
        return pickle.dumps((_classify(error), None, _one_line(error)))


def _classify(error: Exception) -> str:
    """Torch reports a failed CPU allocation as a plain RuntimeError, known by its text alone."""
    import torch

    texts = ("can't allocate memory", "not enough memory", "std::bad_alloc", "CUDA out of memory")
    refused = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    if refused or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out_of_memory"
    # A number that is none will be so again: a result, not an accident.
    return "diverged" if isinstance(error, FloatingPointError) else "error"


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


def send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_HEADER.pack(len(message)) + message)


def receive(connection: socket.socket) -> bytes:
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
