"""Values, intervals, gains and ranks, against direct computation from the units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cab.report.evidence import read_evidence, sections
from cab.report.quality import Quality, Standing, _ranked
from cab.stats.intervals import Interval, interval_over_units, paired_difference

CS = "causal_self"


def quality_of(folder: Any) -> Quality:
    evidence = read_evidence(folder.path)
    return Quality(evidence, sections(evidence.rows)[0].rows, "sdpa")


def test_one_seed_has_the_interval_over_its_units(folder: Any) -> None:
    rng = np.random.default_rng(1)
    nll, weights = rng.normal(4, 0.3, 40), rng.uniform(1, 5, 40)
    folder.task("lm", [CS], "perplexity", higher=False, aggregate="exp_mean")
    folder.quality("sdpa", CS, "lm", nll, weights=weights, metric="perplexity", higher=False, aggregate="exp_mean")
    quality = quality_of(folder)
    score = quality.score(CS, quality.columns(CS)[0], "sdpa")
    assert score is not None
    expected = interval_over_units(nll, weights, "exp_mean")
    assert (score.interval.low, score.interval.high) == (expected.low, expected.high)
    assert score.value == pytest.approx(math.exp(np.average(nll, weights=weights)), rel=1e-12)
    assert score.over == "40 test examples (document), 1 seed"


def test_two_seeds_pool_their_units_and_three_are_the_units(folder: Any) -> None:
    rng = np.random.default_rng(2)
    runs = [rng.uniform(0, 1, 30) for _ in range(3)]
    folder.task("recall", [CS])
    for seed in (1, 2):
        folder.quality("a", CS, "recall", runs[seed - 1], seed=seed)
    for seed in (1, 2, 3):
        folder.quality("b", CS, "recall", runs[seed - 1], seed=seed)
    quality = quality_of(folder)
    column = quality.columns(CS)[0]
    a, b = quality.score(CS, column, "a"), quality.score(CS, column, "b")
    assert a is not None
    assert b is not None
    pooled = interval_over_units((runs[0] + runs[1]) / 2)
    assert (a.value, a.interval.low) == (pytest.approx(pooled.value), pytest.approx(pooled.low))
    means = [float(run.mean()) for run in runs]
    over_seeds = interval_over_units(means)
    assert (b.interval.n, b.interval.method) == (3, "student_t")
    assert (b.value, b.interval.high) == (pytest.approx(np.mean(means)), pytest.approx(over_seeds.high))
    assert b.over == "3 seeds"


def test_gains_are_paired_and_point_to_better(folder: Any) -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(4, 0.5, 50)
    errors = rng.uniform(0.5, 1.5, 50)
    folder.task("lm", [CS], "perplexity", higher=False, aggregate="exp_mean")
    folder.task("lstf", [CS], "mse", higher=False)
    folder.task("recall", [CS])
    for setting, worse in (("sdpa", 0.0), ("other", 0.1)):
        folder.quality(setting, CS, "lm", base + worse, metric="perplexity", higher=False, aggregate="exp_mean")
        folder.quality(setting, CS, "lstf", errors * (1 + worse), metric="mse", higher=False)
        folder.quality(setting, CS, "recall", np.clip(errors / 2 - worse, 0, 1))
    quality = quality_of(folder)
    gains = {column.task: quality.gain(CS, column, "other") for column in quality.columns(CS)}
    lm, lstf, recall = gains["lm"], gains["lstf"], gains["recall"]
    assert lm is not None
    assert lstf is not None
    assert recall is not None
    # The same offset in every document: the paired interval has no width, however much documents differ.
    # but the millionth on either side that rounding in a training may take.
    assert (lm.value, lm.low, lm.high) == (pytest.approx(-0.1), pytest.approx(-0.100001), pytest.approx(-0.099999))
    assert lstf.value == pytest.approx(-math.log(1.1))
    assert lstf.low is not None
    assert lstf.high is not None
    assert lstf.low < lstf.value < lstf.high < 0
    expected = paired_difference(np.clip(errors / 2 - 0.1, 0, 1), np.clip(errors / 2, 0, 1))
    assert (recall.value, recall.low) == (pytest.approx(expected.value), pytest.approx(expected.low, abs=2e-6))


def test_different_units_give_no_interval_and_are_reported(folder: Any) -> None:
    folder.task("recall", [CS])
    folder.quality("sdpa", CS, "recall", np.linspace(0, 1, 30))
    folder.quality("other", CS, "recall", np.linspace(0, 1, 20))
    quality = quality_of(folder)
    gain = quality.gain(CS, quality.columns(CS)[0], "other")
    assert gain is not None
    assert (gain.low, gain.high) == (None, None)
    assert quality.problems == ["recall: other and sdpa were scored on different units"]


def test_a_side_file_that_contradicts_its_record_is_reported(folder: Any) -> None:
    folder.task("recall", [CS])
    key = folder.quality("sdpa", CS, "recall", np.full(30, 0.5))
    arrays = folder.store.read_units(key)
    folder.store.write_units(key, arrays | {"values/accuracy": np.full(30, 0.7)})
    quality = quality_of(folder)
    score = quality.score(CS, quality.columns(CS)[0], "sdpa")
    assert score is not None
    assert (score.value, score.half_width) == (0.5, None)
    assert key in quality.problems[0]


def test_a_run_of_newer_code_replaces_the_older_one(folder: Any) -> None:
    folder.task("recall", [CS])
    folder.quality("sdpa", CS, "recall", np.full(5, 0.2), started_at="2026-01-02T00:00:00+00:00")
    folder.quality("sdpa", CS, "recall", np.full(5, 0.9), started_at="2026-01-01T00:00:00+00:00")
    quality = quality_of(folder)
    score = quality.score(CS, quality.columns(CS)[0], "sdpa")
    assert score is not None
    assert (score.value, len(score.runs)) == (pytest.approx(0.2), 1)


def standing(name: str, low: float, high: float) -> Standing:
    return Standing(name, {}, 1, Interval((low + high) / 2, low, high, 0.95, "t", 9))


def test_ranks_are_shared_with_the_first_of_a_group_only() -> None:
    # c overlaps b but not a, the first of the group: chains do not tie everything to everything.
    entries = [standing("a", 0.8, 1.0), standing("b", 0.65, 0.85), standing("c", 0.55, 0.7), standing("d", 0.1, 0.2)]
    ranked = _ranked(entries)
    assert [(s.setting, s.rank, s.tied) for s in ranked] == [
        ("a", 1, True),
        ("b", 1, True),
        ("c", 3, False),
        ("d", 4, False),
    ]


# Whole numbers: what differs here must still differ after value - half and value + half have been rounded.
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 20)), min_size=1, max_size=12))
def test_ranks_count_from_one_and_identical_entries_tie(entries: list[tuple[int, int]]) -> None:
    doubled = [standing(f"s{i}", value - half, value + half) for i, (value, half) in enumerate([*entries, entries[0]])]
    ordered = sorted(doubled, key=lambda s: (-s.mean.value if s.mean else 0.0, s.setting))
    ranked = {s.setting: s.rank for s in _ranked(ordered)}
    assert ranked[ordered[0].setting] == 1
    for position, entry in enumerate(ordered, start=1):
        rank = ranked[entry.setting]
        assert rank is not None
        assert rank <= position
    # Equal in value and width: whoever leads their group overlaps both or neither, unless a third of the same value
    # and another width stands between them.
    if len({value for value, _ in entries}) == len(entries):
        assert ranked["s0"] == ranked[f"s{len(entries)}"]


def test_a_missing_task_leaves_the_mean_and_the_rank_open(filled: Any) -> None:
    quality = quality_of(filled)
    standings = {s.setting: s for s in quality.standings(CS, ["sdpa", "softmax", "linear", "performer"])}
    assert (standings["performer"].mean, standings["performer"].rank) == (None, None)
    assert standings["performer"].coverage == "1/2"
    assert (standings["sdpa"].rank, standings["softmax"].rank) == (1, 1)
    assert standings["linear"].rank == 3
    assert not standings["linear"].keeps()
    assert standings["softmax"].keeps()


def test_what_differs_by_rounding_only_is_not_told_apart(folder: Any) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(4, 0.5, 60)
    folder.task("lm", [CS], "perplexity", higher=False, aggregate="exp_mean")
    for setting, noise in (("sdpa", 0.0), ("softmax", 1e-8), ("linear", 1e-3)):
        values = base + noise * np.abs(rng.normal(size=60))
        folder.quality(setting, CS, "lm", values, metric="perplexity", higher=False, aggregate="exp_mean")
    standings = {s.setting: s for s in quality_of(folder).standings(CS, ["sdpa", "softmax", "linear"])}
    assert (standings["sdpa"].rank, standings["softmax"].rank, standings["linear"].rank) == (1, 1, 3)
    assert standings["softmax"].keeps()
    assert (standings["softmax"].adjusted_p or 0.0) > 0.5


def test_equal_units_of_a_share_leave_room_for_what_they_do_not_show(folder: Any) -> None:
    folder.task("recall", [CS], unit="fraction")
    folder.quality("sdpa", CS, "recall", np.ones(100))
    folder.quality("other", CS, "recall", np.ones(100))
    quality = quality_of(folder)
    (column,) = quality.columns(CS)
    score, gain = quality.score(CS, column, "other"), quality.gain(CS, column, "other")
    assert score is not None
    assert gain is not None
    # Clopper and Pearson's bound at no occurrence: (1 - q)^100 = 0.025.
    q = 1 - 0.025 ** (1 / 100)
    assert (score.interval.low, score.interval.high) == (pytest.approx(1 - q), 1.0)
    assert (gain.low, gain.high) == (pytest.approx(-q, abs=2e-6), pytest.approx(q, abs=2e-6))


@pytest.mark.parametrize("damage", ["truncated", "text", "lengths"])
def test_a_damaged_side_file_costs_the_interval_and_is_named(folder: Any, damage: str) -> None:
    folder.task("recall", [CS])
    key = folder.quality("sdpa", CS, "recall", np.linspace(0, 1, 30))
    path = folder.path / "units" / f"{key}.npz"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:40])
    elif damage == "text":
        path.write_text("no archive")
    else:
        folder.store.write_units(key, {"values/accuracy": np.full(30, 0.5), "weights/accuracy": np.ones(29)})
    quality = quality_of(folder)
    score = quality.score(CS, quality.columns(CS)[0], "sdpa")
    assert score is not None
    assert score.half_width is None
    assert f"units/{key}.npz" in quality.problems[0]
