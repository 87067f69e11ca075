"""CAB's questions: tables from records of known values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cab.report.book import build_book
from cab.report.evidence import read_evidence
from cab.report.tables import Table

NS, CS = "noncausal_self", "causal_self"


def table(folder: Any, anchor: str) -> Table | None:
    return next((t for t in build_book(read_evidence(folder.path)).sections[0].tables if t.anchor == anchor), None)


def certified(folder: Any, *settings: str) -> None:
    for setting in settings:
        folder.certificate(setting, {NS: "certified", CS: "certified"})


def test_the_benefit_is_the_gain_of_exact_attention_over_none(folder: Any) -> None:
    certified(folder, "sdpa", "identity")
    folder.task("recall", [NS])
    folder.task("lm", [CS], "perplexity", higher=False, aggregate="exp_mean")
    noise = np.linspace(-0.1, 0.1, 30)
    for setting, accuracy, nats in (("sdpa", 0.9, 1.0), ("identity", 0.3, 1.5)):
        folder.quality(setting, NS, "recall", accuracy + noise)
        folder.quality(setting, CS, "lm", nats + noise, metric="perplexity", higher=False, aggregate="exp_mean")
    found = table(folder, "main-benefit")
    assert found is not None
    benefit = {row.head.text: row.cells[-1].sort for row in found.rows}
    assert benefit == {"recall": pytest.approx(0.6), "lm": pytest.approx(0.5)}


def test_contexts_are_in_order_and_only_where_they_were_measured(folder: Any) -> None:
    certified(folder, "sdpa", "linear")
    folder.task("lm", [CS], "perplexity", higher=False, aggregate="exp_mean")
    path = folder.path / "cards" / "task-lm.json"
    metric = '{"name": "perplexity", "unit": "1"'
    more = [metric.replace('"perplexity"', f'"perplexity_at_{n}"') for n in (256, 32)]
    content = path.read_text()
    rest = content[content.index(metric) + len(metric) : content.index("}", content.index(metric)) + 1]
    path.write_text(content.replace(metric + rest, ", ".join(part + rest for part in (metric, *more))))
    for setting, factor in (("sdpa", 1.0), ("linear", 2.0)):
        for name, perplexity in (("perplexity", 4.0), ("perplexity_at_32", 5.0), ("perplexity_at_256", 8.0)):
            nats = np.full(30, math.log(factor * perplexity))
            folder.quality(setting, CS, "lm", nats, metric=name, higher=False, aggregate="exp_mean")
    found = table(folder, "main-CS-by-length")
    assert found is not None
    assert [column.title for column in found.columns] == ["perplexity", "at 32", "at 256"]
    rows = {row.head.text: [cell.sort for cell in row.cells] for row in found.rows}
    assert rows == {"sdpa": pytest.approx([4, 5, 8]), "linear": pytest.approx([8, 10, 16])}


def test_consistency_is_over_the_patterns_that_a_mechanism_has(folder: Any) -> None:
    certified(folder, "sdpa")
    folder.certificate("linear", {NS: "certified", CS: "unsupported"}, causal_self="no form")
    folder.task("recall", [NS, CS])
    folder.quality("sdpa", NS, "recall", np.full(30, 0.9))
    folder.quality("sdpa", CS, "recall", np.full(30, 0.7))
    folder.quality("linear", NS, "recall", np.full(30, 0.5))
    found = table(folder, "main-consistency")
    assert found is not None
    rows = {row.head.text: row.cells for row in found.rows}
    assert rows["sdpa"][-1].sort == pytest.approx(0.2)
    assert [cell.kind for cell in rows["linear"]] == ["value", "blank", "blank"]


def test_agreement_of_patterns_counts_shared_settings(folder: Any) -> None:
    names = ["sdpa", "linear", "performer", "smyrf", "local"]
    certified(folder, *names)
    folder.task("recall", [NS, CS])
    for number, name in enumerate(names):
        folder.quality(name, NS, "recall", np.full(30, 0.1 * number))
        if name != "local":
            folder.quality(name, CS, "recall", np.full(30, 0.9 - 0.1 * number))
    found = table(folder, "main-patterns-agree")
    assert found is not None
    assert found.rows[1].cells[0].text.endswith("(4)")
    assert found.rows[1].cells[0].sort == pytest.approx(-1.0)


def test_without_identity_or_recall_there_is_no_such_table(folder: Any) -> None:
    certified(folder, "sdpa", "linear")
    folder.task("mlm", [NS])
    folder.quality("sdpa", NS, "mlm", np.full(30, 0.9))
    folder.quality("linear", NS, "mlm", np.full(30, 0.8))
    assert table(folder, "main-benefit") is None
    assert table(folder, "main-consistency") is None
    assert table(folder, "main-patterns-agree") is None
