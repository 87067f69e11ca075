"""Isolation: whatever ends a child is an outcome, and the next call finds nothing changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import isolated_functions as functions
import pytest

from cab.measure.isolate import IsolatedRunner
from cab.records import Status

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and forks")


@pytest.fixture(scope="module")
def runner() -> Iterator[IsolatedRunner]:
    with IsolatedRunner(threads=1) as runner:
        yield runner


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds: float = 20.0) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_value_comes_back_and_every_call_has_a_process_of_its_own(runner: IsolatedRunner) -> None:
    assert runner.run(functions.add, 2, b=3).value == 5
    first, second = (runner.run(functions.environment).value for _ in range(2))
    assert first["pid"] != second["pid"]
    assert first["server"] == second["server"] == runner.server_pid != os.getpid()
    assert first["torch_threads"] == 1


def test_the_server_has_run_no_operator(runner: IsolatedRunner) -> None:
    """It has the threads that importing numpy makes (its BLAS stops them around a fork), and none of torch's pools."""
    script = "import numpy, os; print(len(os.listdir('/proc/self/task')))"
    bare = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert runner.run(functions.environment).value["server_tasks"] <= bare


def test_a_large_result_is_whole(runner: IsolatedRunner) -> None:
    assert len(runner.run(functions.large_result, 5_000_000).value) == 5_000_000


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        (functions.kill_self, Status.ERROR, "SIGKILL) from outside"),
        (functions.raise_memory_error, Status.OUT_OF_MEMORY, "MemoryError"),
        (functions.abort, Status.ERROR, "SIGABRT: a kernel said why"),
        (functions.leave, Status.ERROR, "code 7"),
        (functions.raise_value_error, Status.ERROR, "ValueError: first line"),
        (functions.unpicklable, Status.ERROR, "cannot pickle"),
        (functions.refuse, Status.UNSUPPORTED, "has no such form"),
    ],
)
def test_every_end_is_an_outcome(runner: IsolatedRunner, function, status: Status, reason: str) -> None:  # type: ignore[no-untyped-def]
    outcome = runner.run(function)
    assert (outcome.status, outcome.value) == (status, None)
    assert outcome.reason is not None
    assert reason in outcome.reason
    assert "\n" not in outcome.reason
    assert runner.run(functions.add, 1, 1).value == 2


def test_a_memory_limit_holds_and_bounds_the_extra_memory_only(runner: IsolatedRunner) -> None:
    limit = 256 << 20
    assert runner.run(functions.allocate, 128 << 20, memory_limit=limit).status is Status.OK
    refused = runner.run(functions.allocate, 512 << 20, memory_limit=limit)
    assert refused.status is Status.OUT_OF_MEMORY
    assert runner.run(functions.allocate, 512 << 20).status is Status.OK


def test_a_time_limit_kills(runner: IsolatedRunner) -> None:
    outcome = runner.run(functions.spin, time_limit=0.2)
    assert (outcome.status, outcome.reason) == (Status.TIMEOUT, "over the limit of 0.2 s")
    # Before the child has got anywhere.
    assert runner.run(functions.spin, time_limit=1e-6).status is Status.TIMEOUT
    assert runner.run(functions.add, 1, 1, time_limit=60.0).value == 2


def test_kill_9_of_a_child_from_outside_is_an_outcome(runner: IsolatedRunner, tmp_path: Path) -> None:
    told = tmp_path / "pid"

    def kill() -> None:
        if wait_until(lambda: told.exists() and told.read_text()):
            os.kill(int(told.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = runner.run(functions.sleep_and_tell, str(told), time_limit=50.0)
    killer.join()
    assert outcome.status is Status.ERROR
    assert "killed (SIGKILL) from outside" in str(outcome.reason)
    assert runner.run(functions.add, 1, 1).value == 2


def test_a_killed_server_is_an_error_and_the_next_call_has_a_new_one() -> None:
    with IsolatedRunner(threads=1) as runner:
        before = runner.run(functions.environment).value["server"]
        os.kill(before, signal.SIGKILL)
        assert runner.run(functions.add, 1, 1).status is Status.ERROR
        assert runner.run(functions.environment).value["server"] != before


PARENT = """
import sys; sys.path.insert(0, sys.argv[1])
import isolated_functions as functions
from cab.measure.isolate import IsolatedRunner
with IsolatedRunner() as runner:
    runner.run(functions.sleep_and_tell, sys.argv[2])
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_parent(end: signal.Signals, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    folder = str(Path(functions.__file__).parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, folder, str(told)], stderr=subprocess.PIPE, start_new_session=True
    )
    assert wait_until(lambda: told.exists() and told.read_text(), 60.0)
    child = int(told.read_text())
    server = int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1])
    parent.send_signal(end)
    parent.communicate(timeout=20)
    assert parent.returncode == -end
    assert wait_until(lambda: not alive(child) and not alive(server))


def test_a_fresh_interpreter_per_call() -> None:
    with IsolatedRunner(threads=1, fresh=True) as runner:
        first = runner.run(functions.environment).value
        second = runner.run(functions.kill_self)
        assert runner.server_pid is None
    assert first["server"] != os.getpid()
    assert second.status is Status.ERROR
