"""Processes that train one model together give what one process gives, and survive what one survives."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from cab.cli import main
from cab.measure.environment import usable_cores
from cab.records import RecordStore

GRID = ["task=first_token", "attention=linear", "pattern=causal_self", "seed=1", "dtype=float64", "threads=1"]
# One digit in 1e16 is lost per sum, and the two add up four gradients in another order for a few steps.
TOLERANCE = 1e-12

pytestmark = pytest.mark.skipif(usable_cores() < 2, reason="two processes need two cores")


def command(outside: Path, folder: Path, *more: str) -> list[str]:
    return ["run", "--config-dir", str(outside), *GRID, "trainer.accumulate=4", f"results='{folder}'", *more]


def store(folder: Path) -> RecordStore:
    (place,) = {path.parent.parent for path in folder.glob("*/*/records/*.jsonl")}
    return RecordStore(place)


def run_of(folder: Path) -> tuple[np.ndarray, dict[str, float]]:
    """The curve and the values of the one run in a folder."""
    records = store(folder)
    rows = [row for row in records.lines() if row["seed"] is not None]
    assert {row["status"] for row in rows} == {"ok"}, [row["reason"] for row in rows]
    assert len({row["run_key"] for row in rows}) == 1
    units = records.read_units(rows[0]["run_key"])
    return units["curve/loss"], {row["metric"]: row["value"] for row in rows if row["phase"] == "evaluate"}


def test_two_processes_give_the_curve_of_one_with_the_same_batches(outside: Path, tmp_path: Path) -> None:
    for devices in (1, 2):
        more = [f"devices={devices}", "trainer.max_steps=8", "trainer.log_every=1"]
        assert main(command(outside, tmp_path / str(devices), *more)) == 0
    (one, value), (two, same) = (run_of(tmp_path / str(devices)) for devices in (1, 2))
    assert len(one) == 8
    np.testing.assert_allclose(one, two, rtol=TOLERANCE)
    assert value == same
    rows = [list(store(tmp_path / str(devices)).lines()) for devices in (1, 2)]
    assert {row["hardware"] for row in rows[1]} == {f"2x-{rows[0][0]['hardware']}"}
    tokens = [{row["metric"]: row["value"] for row in each if row["phase"] == "train"} for each in rows]
    products = [each["tokens_per_s"] * each["train_time_s"] for each in tokens]
    assert products[0] == pytest.approx(products[1])  # a ratio and its inverse


def test_a_worker_of_joblib_starts_processes_too(outside: Path, tmp_path: Path) -> None:
    for place, more in (("here", []), ("joblib", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])):
        line = command(outside, tmp_path / place, "devices=2", "trainer.max_steps=8", *more)
        assert main(["run", "-m", *line[1:]]) == 0
    (one, value), (two, same) = (run_of(tmp_path / place) for place in ("here", "joblib"))
    assert one.tolist() == two.tolist()
    assert value == same


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("devices=0", "devices=0 is not allowed: 1 to "),
        ("devices=100000", "devices=100000 is not allowed: 1 to "),
        ("devices=2", "give trainer.accumulate=2, or another multiple of 2"),
    ],
)
def test_what_cannot_be_shared_out_is_one_line(
    outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, told: str
) -> None:
    line = [word for word in command(outside, tmp_path, option) if not word.startswith("trainer.accumulate")]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def started(outside: Path, folder: Path) -> subprocess.Popen[str]:
    """A run of two processes, which has written a checkpoint of its own."""
    begin = time.time_ns()
    line = command(outside, folder, "devices=2", "trainer.max_steps=2000", "trainer.checkpoint_interval_s=0.2")
    process = subprocess.Popen([sys.executable, "-m", "cab", *line], stderr=subprocess.PIPE, text=True)
    for _ in itertools.takewhile(lambda _: process.poll() is None, range(3000)):
        if any(path.stat().st_mtime_ns > begin for path in folder.glob("*/*/checkpoints/*.pt")):
            return process
        time.sleep(0.1)
    raise AssertionError(process.communicate()[1])


def ranks_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that train for a run."""
    return [child for child in psutil.Process(run.pid).children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_cut_or_killed_run_goes_on_and_ends_as_an_uncut_one(outside: Path, tmp_path: Path) -> None:
    more = ["devices=2", "trainer.max_steps=2000"]
    assert main(command(outside, tmp_path / "whole", *more)) == 0
    folder = tmp_path / "cut"

    stopped = started(outside, folder)
    stopped.send_signal(signal.SIGTERM)
    told = stopped.communicate(timeout=60)[1]
    assert stopped.returncode == 130, told
    assert told.splitlines()[-1] == "cab: interrupted; give the same command again and it goes on where it was"

    killed = started(outside, folder)
    ranks = ranks_of(killed)
    assert len(ranks) == 2
    os.kill(ranks[1].pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == 1
    (row,) = [row for row in store(folder).lines() if row["seed"] is not None]
    assert row["status"] == "error"
    assert "1 was ended by SIGKILL" in row["reason"]

    assert main(command(outside, folder, *more)) == 0
    rows = [row for row in store(folder).lines() if row["status"] == "ok" and row["seed"] is not None]
    assert len({row["run_key"] for row in rows}) == 1
    key = rows[0]["run_key"]
    whole = store(tmp_path / "whole").read_units(key)
    again = store(folder).read_units(key)
    assert sorted(whole) == sorted(again)
    for name in whole:
        assert np.array_equal(whole[name], again[name]), name


def test_ctrl_c_while_the_processes_start_is_one_line(outside: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "cab", *command(outside, tmp_path, "devices=2", "trainer.max_steps=100000")]
    run = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(children := ranks_of(run)) < 2:
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    time.sleep(0.3)  # into their imports, which take seconds
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    told = run.communicate(timeout=60)[1]
    assert run.returncode == 130, told
    assert told.splitlines()[-1] == "cab: interrupted; give the same command again and it goes on where it was"
    assert "Traceback" not in told
    assert not psutil.wait_procs(children, timeout=10)[1]
