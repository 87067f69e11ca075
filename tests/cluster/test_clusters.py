"""A real Ray cluster and a real Slurm on this machine run the same eight cells as the basic launcher."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm
from swept import CELLS, command, swept, values

pytestmark = pytest.mark.cluster

SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"]
SLURM += ["hydra.launcher.mem_gb=2"]


@pytest.fixture(scope="module")
def outside() -> Path:
    return Path(__file__).resolve().parents[1] / "outside"


@pytest.fixture(scope="module")
def basic(outside: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[object, ...], float]:
    return swept(outside, tmp_path_factory.mktemp("basic") / "results")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if not slurm.available():
        pytest.fail("no Slurm, or not root: make test-cluster installs Debian's slurm-wlm and munge")
    with slurm.running(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        yield environment


def test_ray(outside: Path, tmp_path: Path, basic: dict[tuple[object, ...], float]) -> None:
    assert swept(outside, tmp_path / "ray", "hydra/launcher=ray") == basic


def test_slurm(outside: Path, tmp_path: Path, basic: dict[tuple[object, ...], float], cluster: dict[str, str]) -> None:
    assert swept(outside, tmp_path / "slurm", *SLURM, environment=cluster) == basic


def test_a_job_that_slurm_cancels_leaves_its_checkpoint_and_is_run_by_the_same_command(
    outside: Path, tmp_path: Path, cluster: dict[str, str]
) -> None:
    calm, results = tmp_path / "calm", tmp_path / "results"
    subprocess.run(command(outside, calm, steps=1500), check=True, capture_output=True)
    # Only the signal writes a checkpoint here.
    line = command(outside, results, *SLURM, "trainer.checkpoint_interval_s=1000", steps=1500)
    sweep = subprocess.Popen(line, env=cluster, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(lambda: claims(results))
    time.sleep(2.0)  # into the training
    running = squeue(cluster, "RUNNING")
    subprocess.run(["scancel", *running], env=cluster, check=True)
    until(lambda: not set(running) & set(squeue(cluster, "RUNNING,COMPLETING")))
    assert list(results.glob("*/*/checkpoints/*.pt"))
    # Without accounting submitit never hears of a cancelled job, and would wait for it: Ctrl-C.
    sweep.send_signal(signal.SIGINT)
    _, told = sweep.communicate(timeout=30)
    assert sweep.returncode == 130, told
    assert "give the same command again" in told
    again = subprocess.run(line, env=cluster, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert values(results) == values(calm)
    assert len({key[:3] for key in values(calm)}) == CELLS


def claims(results: Path) -> list[Path]:
    return list(results.glob("*/*/claims/*"))


def squeue(cluster: dict[str, str], states: str) -> list[str]:
    words = ["squeue", "--noheader", "--array", f"--states={states}", "--format=%i"]
    return subprocess.run(words, env=cluster, capture_output=True, text=True, check=True).stdout.split()


def until(ready: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)
