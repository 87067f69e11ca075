"""What the tables say: rows, gaps with reasons, floors, groups, crossings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attention_zoo.contract import Pattern
from cab.records import Status
from cab.report.book import Book, PatternPart, build_book
from cab.report.evidence import read_evidence
from cab.report.patterns import PATTERNS
from cab.report.tables import Cell, Table
from cab.stats.efficiency_length import efficiency_length
from cab.stats.intervals import ratio_interval

NS, CS = "noncausal_self", "causal_self"


def book_of(folder: Any) -> Book:
    return build_book(read_evidence(folder.path))


def part_of(book: Book, short: str, section: int = 0) -> PatternPart:
    return next(part for part in book.sections[section].patterns if part.pattern.short == short)


def cell(table: Table, setting: str, title: str) -> Cell:
    column = [column.title for column in table.columns].index(title)
    return next(row.cells[column] for row in table.rows if row.head.text == setting)


def test_patterns_are_those_of_the_zoo() -> None:
    assert [(p.name, p.short) for p in PATTERNS] == [(p.value, p.short) for p in Pattern]


def test_time_ratio_is_the_geometric_mean_over_processes(folder: Any) -> None:
    folder.certificate("linear", {NS: "certified"})
    ratios = {256: [1.5, 1.6, 1.4], 1024: [0.5, 0.55, 0.45]}
    for length, values in ratios.items():
        for replicate, value in enumerate(values):
            folder.cost("linear", NS, length, "ratio", value, replicate=replicate, baseline="sdpa")
    main = part_of(book_of(folder), "NS").main
    expected = ratio_interval(ratios[1024])
    assert cell(main, "linear", "Time at 1,024").sort == pytest.approx(expected.value)
    assert "3 processes" in dict(cell(main, "linear", "Time at 1,024").details)["interval"]
    crossing = efficiency_length([256, 1024], [ratios[256], ratios[1024]])
    assert cell(main, "linear", "Faster from").text == crossing.text


def test_memory_ratio_is_of_the_same_length(filled: Any) -> None:
    main = part_of(book_of(filled), "NS").main
    assert cell(main, "linear", "Memory at 2,048").sort == pytest.approx(1.0)
    gap = cell(main, "softmax", "Memory at 2,048")
    assert (gap.text, gap.note) == ("out of memory", "out of memory: killed at 2 GiB")


def test_every_gap_has_a_reason_and_every_value_a_source(filled: Any) -> None:
    book = book_of(filled)
    tables = [t for part in book.sections[0].patterns for t in (part.main, part.cost) if t is not None]
    tables += [*book.sections[0].tables, book.support]  # type: ignore[list-item]
    for table in tables:
        for row in table.rows:
            for entry in row.cells:
                assert bool(entry.note) == (entry.kind in ("gap", "pending", "future")), (table.anchor, entry)
    main = part_of(book, "CS").main
    assert cell(main, "performer", "lm").note == "diverged: loss was nan at step 40"
    value = dict(cell(main, "linear", "recall").details)
    assert value["repeat"] == (
        "cab run task=recall attention=linear pattern=causal_self seed=1 size=tiny protocol=quick"
    )
    assert value["made by"] == "cab leaderboard protocol=quick at commit 0123456789ab"
    assert value["records"].startswith("run")


def test_value_causal_shows_speed_and_no_quality(filled: Any) -> None:
    main = part_of(book_of(filled), "CS").main
    row = next(row for row in main.rows if row.head.text == "reformer")
    assert row.kind == "value_causal"
    assert [cell(main, "reformer", task).text for task in ("lm", "recall")] == ["sees the future"] * 2
    assert cell(main, "reformer", "Time at 2,048").kind == "value"
    assert cell(main, "reformer", "Rank").text == "–"


def test_no_certificate_no_row(filled: Any) -> None:
    filled.quality("stranger", NS, "recall", np.full(60, 0.9))
    book = book_of(filled)
    absent = {part.pattern.short: {a.settings: a for a in part.main.absent} for part in book.sections[0].patterns}
    assert absent["NC"][("reformer",)].reason == "queries and keys share one projection"
    assert absent["CC"][("reformer",)].why == "failed certificate"
    assert absent["CC"][("reformer",)].reason == "conformance tests failed: T3"
    assert absent["NS"][("stranger",)].why == "not yet certified"
    for part in book.sections[0].patterns:
        names = {row.head.text for row in part.main.rows}
        assert not names & {name for entry in part.main.absent for name in entry.settings}
        # Each of the six certified settings, and the stranger where it has records, is named once.
        named = names | {name for entry in part.main.absent for name in entry.settings}
        assert named >= {"sdpa", "softmax", "linear", "performer", "reformer", "identity"}


def test_floors_stand_below_and_mark_what_they_beat(folder: Any) -> None:
    folder.certificate("sdpa", {NS: "certified"}, exact=True)
    folder.certificate("weak", {NS: "certified"})
    folder.task("recall", [NS])
    rng = np.random.default_rng(0)
    folder.quality("sdpa", NS, "recall", rng.uniform(0.8, 1.0, 40))
    folder.quality("weak", NS, "recall", rng.uniform(0.0, 0.2, 40))
    # A floor is recorded once, by whichever run came first; it belongs to every group of its size.
    folder.quality("floor:uniform", NS, "recall", np.full(40, 0.1), threads=1)
    book = book_of(folder)
    main = part_of(book, "NS").main
    assert len(book.sections) == 1
    assert [row.head.text for row in main.rows] == ["sdpa", "weak", "floor: uniform"]
    assert (cell(main, "sdpa", "recall").below_floor, cell(main, "weak", "recall").below_floor) == (False, True)
    assert cell(main, "floor: uniform", "recall").text == "0.100 ± 0"


def test_planned_cells_are_pending_and_others_not_measured(folder: Any) -> None:
    for setting in ("sdpa", "linear"):
        folder.certificate(setting, {NS: "certified"})
    folder.task("recall", [NS])
    folder.plan([{"setting": s, "pattern": NS, "task": "recall"} for s in ("sdpa", "linear")]
                + [{"setting": "linear", "pattern": NS, "length_q": 512}])  # fmt: skip
    folder.quality("sdpa", NS, "recall", np.full(40, 0.9))
    book = book_of(folder)
    main = part_of(book, "NS").main
    assert cell(main, "linear", "recall").text == "pending"
    assert cell(main, "linear", "Time at 512").text == "pending"
    assert book.pending > 0
    folder.cost("sdpa", NS, 512, "time_s", 1e-3)
    assert cell(part_of(book_of(folder), "NS").main, "sdpa", "Memory at 512").text == "not measured"


@pytest.mark.parametrize("column", [{"threads": 1}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"size": "base"}])
def test_other_machines_and_sizes_get_tables_of_their_own(folder: Any, column: dict[str, Any]) -> None:
    folder.certificate("sdpa", {NS: "certified"})
    folder.task("recall", [NS])
    folder.quality("sdpa", NS, "recall", np.full(10, 0.9))
    folder.training("sdpa", NS, "recall", steps_per_s=1.0)
    folder.quality("sdpa", NS, "recall", np.full(10, 0.5), **column)
    book = book_of(folder)
    assert len(book.sections) == 2
    values = [cell(part_of(book, "NS", i).main, "sdpa", "recall").sort for i in (0, 1)]
    assert values == [pytest.approx(0.9), pytest.approx(0.5)]


def test_cost_variants_never_share_a_table(folder: Any) -> None:
    folder.certificate("linear", {NS: "certified"})
    folder.cost("linear", NS, 512, "ratio", 0.5, baseline="sdpa")
    folder.cost("linear", NS, 512, "ratio", 7.0, baseline="sdpa", level="op")
    book = book_of(folder)
    assert cell(part_of(book, "NS").main, "linear", "Time at 512").sort == pytest.approx(0.5)
    other = next(table for table in book.sections[0].tables if "op, inference" in table.caption)
    assert [c.sort for row in other.rows for c in row.cells if c.kind == "value"] == [pytest.approx(7.0)]


def test_a_failed_pair_blanks_its_own_ratio_only(folder: Any) -> None:
    folder.certificate("linear", {NS: "certified"})
    folder.cost("linear", NS, 512, "time_s", 1e-3)
    folder.cost("linear", NS, 512, "ratio", 0.5, baseline="sdpa")
    folder.cost("linear", NS, 512, "ratio", baseline="softmax", status=Status.OUT_OF_MEMORY, reason="softmax killed")
    folder.cost("linear", NS, 512, "ratio", 0.6, baseline="softmax", length_q=256, length_kv=256)
    part = part_of(book_of(folder), "NS")
    assert cell(part.main, "linear", "Time at 512").kind == "value"
    assert part.cost is not None
    reasons = [entry.note for row in part.cost.rows for entry in row.cells]
    assert "out of memory: softmax killed" in reasons


def test_other_slots_and_splits_do_not_enter(folder: Any) -> None:
    folder.certificate("sdpa", {NS: "certified"})
    folder.task("recall", [NS])
    folder.quality("sdpa", NS, "recall", np.full(10, 0.9))
    folder.quality("sdpa", NS, "recall", np.full(10, 0.1), slots="all")
    folder.quality("sdpa", NS, "recall", np.full(10, 0.2), split="validation")
    assert cell(part_of(book_of(folder), "NS").main, "sdpa", "recall").sort == pytest.approx(0.9)


def test_the_answer_names_who_is_faster_and_from_where(filled: Any) -> None:
    answer = " ".join(part_of(book_of(filled), "CS").answer)
    assert "Faster than sdpa at 2,048" in answer
    assert "linear 0.3" in answer
    assert "(from 6" in answer  # log-linear from 2.2 at 256 with slope -0.9: 2.2 ** (1 / 0.9) * 256 = 615
    assert "softmax" not in answer


def test_growth_is_fitted_over_the_last_three_lengths_and_held_to_the_claim(folder: Any) -> None:
    folder.certificate("linear", {NS: "certified"})  # claims L for both
    for length in (256, 512, 1024, 2048):
        seconds = 1e-6 * length if length > 256 else 1.0  # what the fit leaves out
        for replicate in range(3):
            folder.cost("linear", NS, length, "time_s", seconds, replicate=replicate)
        folder.cost("linear", NS, length, "peak_extra_bytes", float(length) ** 1.5)
    tables = book_of(folder).sections[0].tables
    growth = next(table for table in tables if "growth from 512 to 2,048" in table.caption)
    assert cell(growth, "linear", "Time claimed").text == "L: 1.00"
    assert cell(growth, "linear", "Time measured").text == "1.00"
    assert cell(growth, "linear", "Memory measured").text == "1.50 ▲"


def test_efficiency_lengths_of_time_and_memory_and_the_fit_of_cab_beside_them(folder: Any) -> None:
    folder.certificate("linear", {NS: "certified"})
    folder.certificate("softmax", {NS: "certified"}, exact=True)
    for length in (256, 512, 1024, 2048):
        # Softmax grows with the square, linear with the length: equal in time at 700, in memory at 1,400.
        for setting, seconds, memory in (
            ("softmax", length**2 / 700, length**2 / 1400),
            ("linear", float(length), float(length)),
        ):
            folder.cost(setting, NS, length, "time_s", seconds)
            folder.cost(setting, NS, length, "peak_extra_bytes", memory)
        folder.cost("linear", NS, length, "ratio", 700 / length, baseline="softmax")
    book = build_book(read_evidence(folder.path), "cab2023")
    table = next(table for table in book.sections[0].tables if "efficiency lengths" in table.caption)
    shown = {
        (column.title, column.subtitle): cell.text
        for column, cell in zip(
            table.columns, next(r for r in table.rows if r.head.text == "linear").cells, strict=True
        )
    }
    assert shown["Faster from", "÷ softmax"] == "700"
    assert shown["Less memory from", "÷ softmax"] == "1,400"
    assert shown["CAB's fit, time", "÷ softmax"] == "700"
    assert shown["CAB's fit, memory", "÷ softmax"] == "1,400"
    assert "CAB's fit, time" not in str(build_book(read_evidence(folder.path)).sections[0].tables)


def test_what_takes_no_memory_has_no_growth_and_takes_less_from_the_shortest_length(folder: Any) -> None:
    """A floor that mixes nothing: a ratio of zero has no logarithm, and must not stop the page."""
    folder.certificate("identity", {NS: "certified"})
    folder.certificate("sdpa", {NS: "certified"}, exact=True)
    for length in (256, 512, 1024):
        for setting, memory in (("sdpa", float(length)), ("identity", 0.0)):
            folder.cost(setting, NS, length, "time_s", 1e-6 * length)
            folder.cost(setting, NS, length, "peak_extra_bytes", memory)
        folder.cost("identity", NS, length, "ratio", 0.5, baseline="sdpa")
    book = build_book(read_evidence(folder.path), "cab2023")
    tables = book.sections[0].tables
    growth = next(table for table in tables if "growth from 256" in table.caption)
    assert cell(growth, "identity", "Memory measured").text == "none"
    crossings = next(table for table in tables if "efficiency lengths" in table.caption)
    assert cell(crossings, "identity", "Less memory from").text == "from 256 or less"
