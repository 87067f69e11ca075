"""Sweeps: every cell once, nothing twice, gaps with a reason, and a killed sweep goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from cab.cli import main

GRID = ["task=first_token", "attention=linear,performer", "pattern=causal_self,noncausal_self", "seed=1,2"]
SHORT = ["trainer.max_steps=5", "threads=1"]


def rows(folder: Path) -> list[dict]:
    """All whole lines; the last of a file may be in the making while its sweep runs."""
    files = sorted(folder.glob("results/*/*/records/*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().rpartition("\n")[0].splitlines() if line]


def ended(folder: Path) -> Counter:
    """How often each run has its primary value, by what makes it a run."""
    return Counter(
        (row["setting"], row["pattern"], row["seed"], row["status"])
        for row in rows(folder)
        if row["metric"] == "accuracy" and row["seed"] is not None
    )


def test_a_grid_of_eight_runs_eight_and_the_same_line_again_none(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--config-dir", str(outside), "-m", *GRID, *SHORT]
    assert main(command) == 0
    assert "8 runs: 0 were complete; 8 ok" in capsys.readouterr().out
    first = ended(in_tmp)
    assert len(first) == 8
    assert set(first.values()) == {1}
    before = rows(in_tmp)
    assert main(command) == 0
    assert "8 runs: 8 were complete; nothing new" in capsys.readouterr().out
    assert rows(in_tmp) == before


def test_a_larger_grid_runs_only_what_is_new(outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ["run", "--config-dir", str(outside), "task=first_token", "attention=linear", "seed=1", *SHORT]
    assert main(one) == 0
    assert main(["run", "--config-dir", str(outside), "-m", *GRID, *SHORT]) == 0
    assert "8 runs: 1 were complete; 7 ok" in capsys.readouterr().out


def test_what_a_card_does_not_support_is_a_recorded_reason_and_the_sweep_goes_on(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--config-dir", str(outside), "-m", "task=first_token", "attention=mean_attention,linear", *SHORT]
    assert main([*command, "pattern=causal_self,noncausal_self"]) == 0
    assert "3 ok, 1 unsupported" in capsys.readouterr().out
    (gap,) = [row for row in rows(in_tmp) if row["status"] == "unsupported"]
    assert gap["reason"] == "written for the noncausal patterns only"


def variant(outside: Path, folder: Path, name: str, old: str, new: str) -> Path:
    """A plug-in folder with the outside task, one line of it changed."""
    source = (outside / "first_token.py").read_text()
    assert old in source
    (folder / "task").mkdir(parents=True)
    (folder / f"{name}.py").write_text(source.replace(old, new))
    (folder / "task" / f"{name}.yaml").write_text(f"_target_: {name}.FirstToken\nsize: ${{size}}\n")
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("ten_heads", "(WIDTH, 2,", "(WIDTH, 10,", "embed_dim=16 is not divisible by num_heads=10"),
        ("too_long", "max_length=LENGTH", "max_length=5", "query length 12 is over the layer's maximum of 5"),
    ],
)
def test_a_backbone_that_does_not_fit_is_told_alone_and_recorded_in_a_sweep(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], name: str, old: str, new: str, told: str
) -> None:
    command = ["run", "--config-dir", str(variant(outside, in_tmp / "plug", name, old, new)), f"task={name}", *SHORT]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err
    assert main([*command, "-m", "attention=linear,sdpa"]) == 1
    failed = [row for row in rows(in_tmp) if row["status"] == "error"]
    assert len(failed) == 2
    assert all(told in row["reason"] for row in failed)


def test_a_run_that_fails_inside_is_recorded_with_its_traceback_and_tried_again(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plug = variant(
        outside, in_tmp / "plug", "breaks", "return nn.functional.cross", "[][1]; return nn.functional.cross"
    )
    command = ["run", "--config-dir", str(plug), "-m", "task=breaks", "attention=linear,sdpa", *SHORT]
    assert main(command) == 1
    assert "2 error" in capsys.readouterr().out
    failed = [row for row in rows(in_tmp) if row["status"] == "error"]
    assert len(failed) == 2
    assert all("IndexError: list index out of range" in row["reason"] for row in failed)
    assert "Traceback" in next(in_tmp.glob("results/adhoc/*/logs/*.txt")).read_text()
    assert main(command) == 1
    assert "0 were complete" in capsys.readouterr().out


def test_dry_run_shows_the_plan_and_records_nothing(outside: Path, in_tmp: Path, capsys) -> None:
    assert main(["run", "--config-dir", str(outside), "-m", *GRID, *SHORT, "dry_run=true"]) == 0
    told = capsys.readouterr().err
    assert "8 to run" in told
    assert told.count("first_token causal_self linear") == 2
    assert rows(in_tmp) == []


def test_a_killed_sweep_loses_and_repeats_nothing(outside: Path, in_tmp: Path) -> None:
    command = [sys.executable, "-m", "cab", "run", "--config-dir", str(outside), "-m", *GRID, "trainer.max_steps=60"]
    command += ["threads=1"]
    for wait_for in (1, 4):
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(ended(in_tmp)) < wait_for and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert len(ended(in_tmp)) >= wait_for
    assert subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0
    assert len(ended(in_tmp)) == 8
    assert set(ended(in_tmp).values()) == {1}


def test_the_joblib_launcher_gives_the_same_values(outside: Path, in_tmp: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    grid = ["run", "--config-dir", str(outside), "-m", *GRID, *SHORT]
    assert main([*grid, "results=serial"]) == 0
    assert main([*grid, "results=parallel", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]) == 0

    def values(name: str) -> dict:
        lines = [line for path in in_tmp.glob(f"{name}/*/*/records/*.jsonl") for line in path.read_text().splitlines()]
        found = [json.loads(line) for line in lines if line]
        kept = [row for row in found if row["metric"] == "accuracy" and row["seed"] is not None]
        return {(row["setting"], row["pattern"], row["seed"]): row["value"] for row in kept}

    assert len(values("serial")) == 8
    assert values("serial") == values("parallel")


def test_workers_of_an_earlier_sweep_write_where_the_next_one_is_asked_for(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """joblib keeps its processes, which keep the folder that they were started in."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    cells = ["run", "--config-dir", str(outside), "-m", *SHORT, "task=first_token", "attention=linear", "seed=1,2"]
    for name in ("one", "other"):
        place = tmp_path / name
        place.mkdir()
        monkeypatch.chdir(place)
        assert main([*cells, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]) == 0
        assert len(ended(place)) == 2
