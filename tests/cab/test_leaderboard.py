"""A leaderboard end to end, small: an outsider's attention and task on it, a gap with a reason in every cell."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cab.cli import main

SMALL = [
    "attentions=[softmax,sdpa,identity,linear,reformer,mean_attention]",
    "tasks=[first_token]",
    "patterns=[noncausal_self,causal_self]",
    "lengths=[16,32]",
    "measure.heads=2",
    "measure.head_dim=8",
    "threads=1",
]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small board, made through the command line."""
    folder = tmp_path_factory.mktemp("board")
    outside = Path(__file__).resolve().parents[1] / "outside"
    command = [sys.executable, "-m", "cab", "leaderboard", "--config-dir", str(outside), *SMALL]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("results/*/*/leaderboard.md")
    assert str(made.relative_to(folder)) in done.stdout
    return made.parent


def rows(folder: Path) -> list[dict]:
    lines = [line for path in sorted(folder.glob("records/*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line]


def test_overridden_lengths_do_not_belong_to_the_protocol(board: Path) -> None:
    assert board.parent.name.startswith("quick+")


def test_every_attention_pattern_and_task_has_a_value_or_a_reason(board: Path) -> None:
    quality = {
        (row["setting"], row["pattern"]): (row["status"], row["reason"])
        for row in rows(board)
        if row["task"] == "first_token" and row["metric"] == "accuracy" and row["setting"] and row["seed"] is not None
    }
    settings = ("softmax", "sdpa", "identity", "linear", "reformer", "mean_attention")
    assert set(quality) == {(s, p) for s in settings for p in ("noncausal_self", "causal_self")}
    assert quality["reformer", "causal_self"] == ("unsupported", "sees the future: causal in the values only")
    assert quality["mean_attention", "causal_self"][0] == "unsupported"
    assert all(status == "ok" or reason for status, reason in quality.values())
    costs = {(row["setting"], row["pattern"], row["length_q"]) for row in rows(board) if row["metric"] == "time_s"}
    assert {("linear", "causal_self", 16), ("mean_attention", "noncausal_self", 32)} <= costs
    assert ("reformer", "causal_self", 32) in costs


def test_the_page_names_all_and_the_figures_and_exports_stand_beside_it(board: Path) -> None:
    page, text = (board / "index.html").read_text(), (board / "leaderboard.md").read_text()
    for setting in ("softmax", "sdpa", "identity", "linear", "reformer", "mean_attention"):
        assert setting in text
        assert setting in page
    assert "sees the future" in text
    assert "pending [" not in text
    for name in ("records.csv", "records.parquet"):
        assert (board / name).stat().st_size > 0
    assert list(board.glob("figures/*.svg"))
    assert list(board.glob("figures/*.png"))


def test_given_again_it_does_nothing_new(board: Path) -> None:
    outside = Path(__file__).resolve().parents[1] / "outside"
    before = rows(board)
    stamp = (board / "index.html").stat().st_mtime_ns
    command = [sys.executable, "-m", "cab", "leaderboard", "--config-dir", str(outside), *SMALL]
    done = subprocess.run(command, cwd=board.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert rows(board) == before
    assert (board / "index.html").stat().st_mtime_ns == stamp
    assert "leaderboard.md" in done.stdout


def test_a_board_killed_at_any_moment_goes_on(board: Path, outside: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cab", "leaderboard", "--config-dir", str(outside), *SMALL]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for wanted in ("certificates/linear.json", "records/*.jsonl"):
        child = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(f"results/*/*/{wanted}")) and time.monotonic() < deadline:
            time.sleep(0.05)
        child.kill()
        child.wait()
    assert subprocess.run(command, **quiet).returncode == 0  # type: ignore[call-overload]
    (made,) = tmp_path.glob("results/*/*/leaderboard.md")

    def cells(folder: Path) -> list[tuple]:
        columns = ("setting", "pattern", "task", "metric", "length_q", "replicate", "baseline", "status", "seed")
        return sorted((tuple(str(row[c]) for c in columns) for row in rows(folder)), key=str)

    assert cells(made.parent) == cells(board)


def test_an_installed_package_brings_an_attention_by_entry_point(outside: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "somebody").mkdir(parents=True)
    (site / "somebody" / "__init__.py").write_text("")
    (site / "somebody" / "mean_attention.py").write_text((outside / "mean_attention.py").read_text())
    info = site / "somebody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[attention_zoo]\nmean_attention = somebody.mean_attention:MeanAttention\n")
    environment = os.environ | {"PYTHONPATH": str(site)}

    def cab(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cab", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "mean_attention" in cab("list", "tasks=[]")
    assert "no oracle" in cab("check", "attentions=[mean_attention]", "threads=1")
    small = ["attentions=[sdpa,mean_attention]", "tasks=[]", "patterns=[noncausal_cross]", *SMALL[3:]]
    cab("leaderboard", *small)
    (text,) = tmp_path.glob("results/quick*/*/leaderboard.md")
    assert "mean_attention" in text.read_text()


def test_dry_run_says_what_it_would_do(outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "--config-dir", str(outside), *SMALL, "dry_run=true"]) == 0
    assert "linear" in capsys.readouterr().err
    assert not list(in_tmp.glob("results/*/*/records/*"))


def test_a_protocol_may_score_a_task_in_some_of_its_patterns(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "protocol=quick", "attentions=[sdpa]", "dry_run=true"]) == 0
    said = capsys.readouterr()
    planned = [line.split()[:2] for line in (said.out + said.err).splitlines() if "sdpa seed 1" in line]
    found = {task: {pattern for name, pattern in planned if name == task} for task, _ in planned}
    assert found["lstf_weather"] == {"noncausal_cross"}
    assert found["summarization"] == {"causal_cross"}
    assert len(found["recall"]) == 4


def test_a_pattern_that_a_task_does_not_score_is_one_line(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "+protocol.scored_patterns.mlm=[causal_self]"
    assert main(["leaderboard", "protocol=quick", "attentions=[sdpa]", "dry_run=true", wrong]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "protocol.scored_patterns.mlm" in line
    assert "causal_self" in line
    assert "noncausal_self" in line
