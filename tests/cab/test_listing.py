"""``cab list`` and ``cab doctor`` tell what is there and what is missing."""

from pathlib import Path

import pytest

from cab.cli import main


def test_list_shows_support_result_and_paper_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "tasks=[]"]) == 0
    told = capsys.readouterr().out.replace("?", " ")  # what is not proved here is claimed all the same
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
    assert lines["softmax"][1:6] == ["P", "P", "P", "P", "exact"]
    assert lines["reformer"][1:3] == ["P", "V"]
    assert lines["identity"][3:5] == ["-", "-"]
    assert lines["performer"][1:6] == ["P", "P", "E", "E", "approximate"]


def test_list_shows_patterns_lengths_metrics_and_data_of_every_task(outside: Path, capsys) -> None:
    assert main(["list", "--config-dir", str(outside), "attentions=[]"]) == 0
    told = capsys.readouterr().out
    for name in ("recall", "mlm", "lm", "lstf_weather", "summarization", "first_token"):
        assert name in told
    assert "perplexity (lower)" in told


def test_doctor_names_what_is_missing_and_the_command_that_gets_it(in_tmp: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CAB_CACHE", str(in_tmp / "empty"))
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "MISS  data of lm" in told
    assert "cab run task=lm" in told
    assert "threads" in told


def test_doctor_fails_where_nothing_could_be_recorded(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (in_tmp / "results").write_text("in the way")
    assert main(["doctor"]) == 1
    assert "cannot be written" in capsys.readouterr().out
