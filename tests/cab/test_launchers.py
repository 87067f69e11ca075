"""Every launcher gives what the basic one gives: the same eight cells, the same values, each once."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cab.records import RecordStore, Status

GRID = ["task=first_token", "attention=linear,performer", "pattern=causal_self,noncausal_self", "seed=1,2"]
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
    "ray": ["hydra/launcher=ray"],
}
MODULES = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "ray": "ray",
}


def swept(outside: Path, folder: Path, *launcher: str) -> dict[tuple, float]:
    """The values of the sweep, by cell and metric; each once."""
    line = [sys.executable, "-m", "cab", "run", "--config-dir", str(outside), "-m", *GRID, "threads=1"]
    line += ["trainer.max_steps=5", f"results='{folder}'", *launcher]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder.parent, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "8 runs: 0 were complete; 8 ok" in done.stdout
    (place,) = {path.parent.parent for path in folder.glob("*/*/records/*.jsonl")}
    rows = [row for row in RecordStore(place).lines() if row["seed"] is not None and row["phase"] == "evaluate"]
    assert {row["status"] for row in rows} == {Status.OK}
    cells = Counter((row["setting"], row["pattern"], row["seed"], row["metric"], row["run_key"]) for row in rows)
    assert set(cells.values()) == {1}
    return {(row["setting"], row["pattern"], row["seed"], row["metric"], row["run_key"]): row["value"] for row in rows}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.cluster if name == "ray" else ()) for name in LAUNCHERS],
)
def test_a_launcher_gives_the_records_of_the_basic_one(outside: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip(MODULES[name])
    assert swept(outside, tmp_path / "basic") == swept(outside, tmp_path / name, *LAUNCHERS[name])
