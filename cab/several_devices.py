"""Processes that train one model together, one per device (DDP), and the one that started them and waits.

The processes share nothing but their gradients: each makes the model from the same seed and takes its own of an
update's batches. What they tell (the curve, warnings, how they ended) comes back through pipes, and the trained state
through the checkpoint, so that claims, evaluation and records stay with the one that waits.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from torch import multiprocessing as mp
from torch.multiprocessing.spawn import ProcessContext, ProcessException, start_processes

from cab.errors import one_line
from cab.train import Interruption, make_fabric

_POLL_S = 0.1
_GRACE_S = 3.0  # for the others, where one has failed

Tell = Callable[[Any], None]


def train_together(
    function: Callable[[Fabric, Tell], None],
    *,
    device: str,
    devices: int,
    dtype: torch.dtype,
    heard: Callable[[Any], None],
) -> None:
    """Calls ``function(fabric, tell)`` in a process per device, and ``heard`` here with all that they tell.

    Args:
        function: picklable; what it raises ends all processes.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, here or in one of them; each has ended.
        RuntimeError: one was killed.
        Exception: what ``function`` raised first.
    """
    context = mp.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(devices)]
    arguments = (function, [writer for _, writer in pipes], find_free_network_port(), device, dtype)
    with Interruption().watching() as interruption:
        with _starting():
            ranks = start_processes(_rank, (*arguments, torch.get_num_threads()), devices, join=False)
        for _, writer in pipes:
            writer.close()
        try:
            failures = _listen([reader for reader, _ in pipes], ranks, heard, interruption)
            with contextlib.suppress(ProcessException):  # it has told why
                while not ranks.join(grace_period=_GRACE_S):
                    pass
        finally:
            for process in ranks.processes:
                if process.is_alive():
                    process.kill()
    if interruption.signal is not None:
        raise KeyboardInterrupt
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """What is started here hears no SIGINT yet: a terminal sends it to all, and each would say where it was cut.

    It would also set itself up for this process's own start method, which a worker of joblib alone knows.
    """
    resource_tracker.ensure_running()  # its start would let the signal through again
    method = mp.get_start_method(allow_none=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        mp.set_start_method("spawn", force=True)
        yield
    finally:
        mp.set_start_method(method, force=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(
    readers: list[Connection], ranks: ProcessContext, heard: Callable[[Any], None], interruption: Interruption
) -> list[BaseException]:
    """Until all have ended, or one has failed; returns why, the cause before what it did to the others."""
    told: list[BaseException] = []
    killed: list[BaseException] = []
    numbers = {reader: number for number, reader in enumerate(readers)}
    passed_on, deadline = False, math.inf
    while numbers and time.monotonic() < deadline:
        for reader in wait(list(numbers), timeout=_POLL_S):
            assert isinstance(reader, Connection)
            try:
                message = pickle.loads(reader.recv_bytes())
            except EOFError:
                process = ranks.processes[number := numbers.pop(reader)]
                process.join(_GRACE_S)
                if process.exitcode is not None and process.exitcode < 0:
                    name = signal.Signals(-process.exitcode).name
                    killed.append(
                        RuntimeError(f"of {len(readers)} processes on this run, {number} was ended by {name}")
                    )
                continue
            if isinstance(message, BaseException):
                told.append(message)
            else:
                heard(message)
        if interruption.signal is not None and not passed_on:
            passed_on = True
            for process in ranks.processes:
                process.terminate()
        if (told or killed) and deadline == math.inf:
            deadline = time.monotonic() + _GRACE_S  # the others may wait for ever for what the failed one would send
    return killed + told


def _rank(
    index: int,
    function: Callable[[Fabric, Tell], None],
    writers: list[Connection],
    port: int,
    device: str,
    dtype: torch.dtype,
    threads: int,
) -> None:
    """One of the processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a word, where it does not train
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ |= {"LOCAL_RANK": str(index), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(threads)

    def tell(message: Any) -> None:
        writers[index].send_bytes(pickle.dumps(message))

    try:
        fabric = make_fabric(torch.device(device), dtype, devices=len(writers))
        fabric.launch()
        function(fabric, tell)
        torch.distributed.destroy_process_group()
    except BaseException as error:
        tell(_picklable(error))
        raise


def _picklable(error: BaseException) -> BaseException:
    try:
        return type(error)(*pickle.loads(pickle.dumps(error.args)))
    except Exception:  # noqa: BLE001 - an error of any library, which need not be picklable; its text always is
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")
