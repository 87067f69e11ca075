"""Damaged data, through the command line: one line and exit code 2, no record; in a sweep a reason, and it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cab.cli import main


@pytest.fixture
def books(tmp_path: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAB_CACHE", str(tmp_path / "cache"))
    for number, part in enumerate(("train", "validation", "test")):
        (tmp_path / "books" / part).mkdir(parents=True)
        (tmp_path / "books" / part / f"{number}.txt").write_text("In the beginning was the word. " * 40)
    return tmp_path / "books"


def rows(folder: Path) -> list[dict]:
    lines = [line for path in folder.glob("*/*/records/*.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line]


def command(books: Path) -> list[str]:
    options = ["task.data=original", f"task.data_root={books}", "task.length=16", "trainer.max_steps=1", "threads=1"]
    return ["task=lm", *options]


def test_a_run_ends_with_one_line_and_goes_on_once_it_is_mended(
    books: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (books / "test" / "2.txt").read_bytes()
    (books / "test" / "2.txt").write_bytes(b"\xff\xfe")
    assert main(["run", *command(books)]) == 2
    said = capsys.readouterr()
    line = said.err.strip().splitlines()[-1]
    assert line.startswith("cab: lm: ")
    assert "2.txt is not UTF-8" in line
    assert "Error" not in line
    assert rows(Path("results")) == []
    (books / "test" / "2.txt").write_bytes(whole)
    assert main(["run", *command(books)]) == 0
    assert "error" not in capsys.readouterr().out


def test_a_sweep_records_the_reason_and_goes_on(books: Path) -> None:
    (books / "train" / "0.txt").write_text("")
    assert main(["run", "-m", *command(books), "attention=softmax,linear"]) == 1
    reasons = {row["setting"]: row["reason"] for row in rows(Path("results"))}
    assert len(reasons) == 2
    assert all("0.txt is empty" in str(reason) for reason in reasons.values())
