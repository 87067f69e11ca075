"""Reference sets from a board, and the index table of a page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cab.report import indices
from cab.report.book import build_book
from cab.report.evidence import read_evidence
from cab.report.indices import main, make_reference
from cab.stats.robust_index import read

NS = "noncausal_self"
PERPLEXITIES = {"sdpa": 4.0, "linear": 8.0, "performer": 16.0, "smyrf": 2.0, "local": 5.0, "abc": 1000.0}


def board(folder: Any) -> Any:
    """Six settings on one task; a seventh without the second task's value."""
    folder.task("lm", [NS], "perplexity", higher=False, aggregate="exp_mean")
    folder.task("recall", [NS])
    for number, (setting, value) in enumerate(PERPLEXITIES.items()):
        folder.certificate(setting, {NS: "certified"})
        folder.quality(
            setting, NS, "lm", np.full(30, math.log(value)), metric="perplexity", higher=False, aggregate="exp_mean"
        )
        folder.quality(setting, NS, "recall", np.full(30, 0.1 * number))
    folder.certificate("reformer", {NS: "certified"})
    folder.quality("reformer", NS, "recall", np.full(30, 0.25))
    return folder


def test_a_reference_is_the_median_of_the_board_in_logarithms(folder: Any) -> None:
    rows = make_reference(board(folder).path)
    lm = next(row for row in rows if row["task"] == "lm")
    assert (lm["metric"], lm["scale"], lm["sign"], lm["settings"]) == ("perplexity", "log", "-1", "6")
    logs = np.log(list(PERPLEXITIES.values()))
    assert float(lm["median"]) == pytest.approx(np.median(logs))
    assert float(lm["spread"]) == pytest.approx(1.4826 * np.median(np.abs(logs - np.median(logs))))


def test_a_task_that_does_not_tell_settings_apart_is_left_out(folder: Any) -> None:
    rng = np.random.default_rng(0)
    folder.task("recall", [NS])
    folder.task("lm", [NS])
    for number, setting in enumerate(PERPLEXITIES):
        folder.certificate(setting, {NS: "certified"})
        noise = rng.normal(0.0, 1.0, 30)
        # Half-widths are about 0.36: settings 1 apart are told apart, settings 0.01 apart are not.
        folder.quality(setting, NS, "recall", number + noise)
        folder.quality(setting, NS, "lm", 0.01 * number + noise)
    assert [row["task"] for row in make_reference(folder.path)] == ["recall"]


def test_a_version_is_written_once(folder: Any) -> None:
    board(folder)
    main(folder.path, 7)
    path: Path = folder.path.parents[1] / "index-v7.csv"
    once = path.read_bytes()
    assert len(read(path.read_text())) == 2
    with pytest.raises(FileExistsError):
        main(folder.path, 7)
    assert path.read_bytes() == once


def test_the_table_has_the_mean_only_where_every_task_has_a_value(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    board(folder)
    monkeypatch.setattr(indices, "reference_set", dict)
    assert not any("-index" in table.anchor for table in build_book(read_evidence(folder.path)).sections[0].tables)
    main(folder.path, 7)
    monkeypatch.setattr(indices, "reference_set", lambda: read((folder.path.parents[1] / "index-v7.csv").read_text()))
    section = build_book(read_evidence(folder.path)).sections[0]
    (table,) = (table for table in section.tables if table.anchor.endswith("-index"))
    cells = {row.head.text: row.cells for row in table.rows}
    assert cells["reformer"][0].kind == "gap"
    assert cells["reformer"][0].text == "1/2"
    for name, (mean, *tasks) in cells.items():
        if name != "reformer":
            assert mean.sort == pytest.approx(np.mean([cell.sort for cell in tasks]))
    # Of lm the best is smyrf, and abc's failure is its own: it takes nobody else out of the range of the others.
    lm = {name: row[1].sort for name, row in cells.items() if row[1].kind == "value"}
    assert max(lm, key=lm.__getitem__) == "smyrf"
    assert sorted(lm.values())[1] > -2 > lm["abc"]
