"""The same eight cells by any launcher, and their values."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cab.records import RecordStore, Status

GRID = ["task=first_token", "attention=linear,performer", "pattern=causal_self,noncausal_self", "seed=1,2"]
CELLS = 8


def command(outside: Path, folder: Path, *launcher: str, steps: int = 5) -> list[str]:
    line = [sys.executable, "-m", "cab", "run", "--config-dir", str(outside), "-m", *GRID, "threads=1"]
    return [*line, f"trainer.max_steps={steps}", f"results='{folder}'", *launcher]


def swept(
    outside: Path, folder: Path, *launcher: str, environment: Mapping[str, str] | None = None
) -> dict[tuple[object, ...], float]:
    """The values of the sweep, by cell and metric; each once."""
    line = command(outside, folder, *launcher)
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder.parent, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"{CELLS} runs: 0 were complete; {CELLS} ok" in done.stdout
    return values(folder)


def values(folder: Path) -> dict[tuple[object, ...], float]:
    (place,) = {path.parent.parent for path in folder.glob("*/*/records/*.jsonl")}
    rows = [row for row in RecordStore(place).lines() if row["seed"] is not None and row["phase"] == "evaluate"]
    found = [row for row in rows if row["status"] == Status.OK]
    cells = Counter((row["setting"], row["pattern"], row["seed"], row["metric"], row["run_key"]) for row in found)
    assert set(cells.values()) == {1}
    return {(row["setting"], row["pattern"], row["seed"], row["metric"], row["run_key"]): row["value"] for row in found}
