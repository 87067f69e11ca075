"""What trackers die of costs a run nothing: its values are to the bit those of a run without, and it says so once."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from wandb_stub import KEY, serving

from cab.mirror import Mirror
from cab.records import RecordStore
from cab.tracking import INTERRUPTED, Outcome, TrackedRun

pytestmark = pytest.mark.slow  # servers that hang, each waited for

CHANGING = {"steps_per_s", "tokens_per_s", "train_time_s"}


def give(outside: Path, results: Path, *more: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    clean |= {"NETRC": os.devnull, "WANDB_CONFIG_DIR": str(results.parent)}
    command = [sys.executable, "-m", "cab", "run", "--config-dir", str(outside), "task=first_token", "threads=1"]
    command += ["attention=performer", "trainer.max_steps=30", f"results='{results}'", *more]
    return subprocess.run(command, capture_output=True, text=True, env=clean | environment, timeout=300)


def told(results: Path) -> dict[str, object]:
    """Everything that a run records, but for what a clock says."""
    (folder,) = results.glob("*/*/")
    store = RecordStore(folder)
    rows = [row for row in store.lines() if row["seed"] is not None]
    (key,) = {row["run_key"] for row in rows}
    values = {row["metric"]: row["value"] for row in rows if row["metric"] not in CHANGING}
    units = {name: array.tobytes() for name, array in store.read_units(key).items()}
    samples = {path.name: path.read_bytes() for path in (folder / "samples" / key).iterdir()}
    return {"key": key, "values": values, "units": units, "samples": samples}


@pytest.fixture(scope="module")
def without(outside: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    results = tmp_path_factory.mktemp("without") / "results"
    assert give(outside, results).returncode == 0
    return told(results)


def dead_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_values_are_those_of_a_run_without(outside: Path, tmp_path: Path, without: dict, tracker: str) -> None:
    done = give(outside, tmp_path / "results", f"tracker={tracker}")
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stderr
    assert told(tmp_path / "results") == without


ONLINE = ("tracker=wandb", "tracker.mode=online", "tracker.timeout_s=2")


def check_left_out(done: subprocess.CompletedProcess, results: Path, without: dict) -> None:
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tracker wandb is left out") == 1
    assert "Traceback" not in done.stderr
    assert told(results) == without


def test_a_server_that_is_gone_costs_nothing(outside: Path, tmp_path: Path, without: dict) -> None:
    done = give(outside, tmp_path / "results", *ONLINE, WANDB_BASE_URL=dead_port(), WANDB_API_KEY=KEY)
    check_left_out(done, tmp_path / "results", without)


@pytest.mark.parametrize(
    "manner",
    [
        "hangs",
        pytest.param("status 500", marks=pytest.mark.slow),
        pytest.param("garbage", marks=pytest.mark.slow),
        "dies after the start",
    ],
)
def test_a_server_that_is_broken_costs_nothing(outside: Path, tmp_path: Path, without: dict, manner: str) -> None:
    with serving(manner) as (stub, url):
        done = give(outside, tmp_path / "results", *ONLINE, **stub.environment(url))
        assert stub.requests
    check_left_out(done, tmp_path / "results", without)


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_trackers_folder_that_cannot_be_written_costs_nothing(
    outside: Path, tmp_path: Path, without: dict, tracker: str
) -> None:
    results = tmp_path / "results"
    assert give(outside, results, "dry_run=true").returncode == 0
    (folder,) = results.glob("*/*/")
    (folder / "trackers").write_text("a file where a folder should be")
    done = give(outside, results, f"tracker={tracker}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"tracker {tracker} is left out") == 1
    assert told(results) == without


@pytest.mark.parametrize("flag", [[], ["-m"]])
@pytest.mark.parametrize(("key", "said"), [({}, "needs an API key"), ({"WANDB_API_KEY": "short"}, "40+ characters")])
def test_online_without_a_key_is_refused_before_anything_is_trained(
    outside: Path, tmp_path: Path, flag: list[str], key: dict, said: str
) -> None:
    done = give(outside, tmp_path / "results", *flag, *ONLINE, **key)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cab: ")]
    assert said in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("results/*/*/records/*"))


class Meddler:
    """Draws from every random state and takes threads; dies where it is told to."""

    def __init__(self, dies_at: str) -> None:
        self.dies_at = dies_at
        self.heard: list[str] = []

    def _meddle(self, at: str) -> None:
        import random

        import torch

        self.heard.append(at)
        random.random()
        np.random.rand()
        torch.rand(3)
        torch.set_num_threads(torch.get_num_threads() + 1)
        if at == self.dies_at:
            raise RuntimeError("no more")

    def start(self, run: TrackedRun) -> None:
        self._meddle("start")

    def log(self, step: int, values: object) -> None:
        self._meddle("log")

    def finish(self, outcome: Outcome) -> None:
        self._meddle(f"finish {outcome.status}")


@pytest.mark.parametrize("dies_at", ["start", "log", "finish ok", "never"])
def test_a_tracker_that_meddles_and_dies_changes_no_state_and_is_told_of_once(
    dies_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import random

    import torch

    monkeypatch.setattr(Mirror, "_failed", {})
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    threads = torch.get_num_threads()
    said: list[str] = []
    meddler = Meddler(dies_at)
    with Mirror(meddler, said.append) as mirror:
        mirror.start(TrackedRun("k", "n", None, {}, tmp_path))
        mirror.log(1, {"loss": 1.0})
        mirror.log(2, {"loss": 1.0})
        mirror.finish(Outcome("ok"))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert torch.get_num_threads() == threads
    order = ["start", "log", "log", "finish ok"]
    assert meddler.heard == (order if dies_at == "never" else order[: order.index(dies_at) + 1])
    assert len(said) == (dies_at != "never")


def test_after_a_start_that_failed_the_next_runs_do_not_wait_for_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mirror, "_failed", {})
    said: list[str] = []
    for tracker in (Meddler("start"), Meddler("never")):
        with Mirror(tracker, said.append) as mirror:
            mirror.start(TrackedRun("k", "n", None, {}, tmp_path))
            mirror.finish(Outcome("ok"))
    assert tracker.heard == []
    assert len(said) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, INTERRUPTED), (OSError, "error"), (ValueError, "error")]
)
def test_a_run_that_is_left_is_closed_as_such(
    error: type[BaseException], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mirror, "_failed", {})
    meddler = Meddler("never")
    mirror = Mirror(meddler, print)
    mirror.start(TrackedRun("k", "n", None, {}, tmp_path))
    with pytest.raises(error), mirror:
        raise error
    assert meddler.heard[-1] == f"finish {status}"
