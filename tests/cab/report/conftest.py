"""Builds result folders of known values through the same store that the harness writes with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cab.records import Record, RecordStore, Status

MACHINE: dict[str, Any] = {"dtype": "float32", "device": "cpu", "hardware": "test-2-cores", "threads": 2}
PATTERNS = ("noncausal_self", "causal_self", "noncausal_cross", "causal_cross")
LENGTHS = (256, 512, 1024, 2048)


class Folder:
    """A results folder that tests fill row by row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = RecordStore(path)
        self._count = 0
        self._held: list[Record] | None = None

    def append(self, record: Record) -> None:
        if self._held is None:
            self.store.append(record)
        else:
            self._held.append(record)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Writes what is added inside in one go: a flush to the disk per row takes most of a test's time."""
        self._held = []
        yield
        rows, self._held = self._held, None
        self.store.append(*rows)

    def key(self) -> str:
        self._count += 1
        return f"run{self._count:05d}"

    def certificate(self, setting: str, marks: dict[str, str], *, exact: bool = False, **reasons: str) -> None:
        """Marks by pattern; ``reasons`` by pattern for those that are unsupported."""
        parts = {}
        for pattern, mark in marks.items():
            support = {"unsupported": None, "value_causal": "value_causal"}.get(mark, "published")
            failed = [{"test": "T3", "title": "no future", "level": "op", "case": "L=7", "status": "fail"}]
            passed = [{"test": "T1", "title": "oracle", "level": "op", "case": "L=7", "status": "pass"}]
            parts[pattern] = {
                "support": support,
                "reason": reasons.get(pattern, ""),
                "oracle": True,
                "passed": mark != "failed",
                "mark": mark,
                "results": failed if mark == "failed" else passed,
            }
        card = {"title": setting.title(), "authors": "A. Author", "year": 2020, "paper": "arXiv:0000.00000",
                "family": "kernel", "exact": exact, "time_order": "L", "memory_order": "L",
                "supports": {p: "published" for p, m in marks.items() if m != "unsupported"},
                "unsupported": reasons}  # fmt: skip
        self._json(f"certificates/{setting}.json", {"format": 1, "attention": setting, "card": card, "patterns": parts})

    def task(self, name: str, patterns: Sequence[str], metric: str = "accuracy", *, higher: bool = True,
             aggregate: str = "mean", floor: str = "uniform", unit: str = "1") -> None:  # fmt: skip
        card = {"name": name, "title": f"The {name} task", "patterns": list(patterns), "primary_pattern": patterns[0],
                "metrics": [{"name": metric, "unit": unit, "higher_is_better": higher, "description": "what it says",
                             "aggregate": aggregate}],
                "unit": "document", "floors": {floor: "guesses"}, "floor": floor, "source": "made up",
                "licence": "none", "citation": "-"}  # fmt: skip
        self._json(f"cards/task-{name}.json", card)

    def plan(self, cells: Sequence[dict[str, Any]]) -> None:
        self._json("plan.json", list(cells))

    def manifest(self, name: str, command: str, commit: str = "0123456789abcdef") -> None:
        environment = {"git": {"commit": commit, "dirty": False}, "torch": "2.13.0", "python": "3.11.1"}
        self._json(f"manifests/{name}.json", {"command": command, "environment": environment})

    def _json(self, name: str, content: Any) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def quality(self, setting: str, pattern: str, task: str, units: np.ndarray, *, weights: np.ndarray | None = None,
                seed: int = 1, metric: str = "accuracy", higher: bool = True, aggregate: str = "mean",
                **columns: Any) -> str:  # fmt: skip
        """A run's value, computed here from its units, and its side file."""
        key = self.key()
        mean = float(np.average(units, weights=weights))
        arrays = {"units": np.array([f"u{i}" for i in range(len(units))]), f"values/{metric}": units}
        if weights is not None:
            arrays[f"weights/{metric}"] = weights
        self.store.write_units(key, arrays)
        floor = setting.startswith("floor:")
        fields: dict[str, Any] = {
            "run_key": key, "protocol": "quick", "metric": metric, "status": Status.OK,
            "value": float(np.exp(mean)) if aggregate == "exp_mean" else mean, "unit": "1", "higher_is_better": higher,
            "attention": None if floor else setting, "setting": setting, "pattern": pattern, "task": task,
            "task_setting": task, "size": "tiny", "split": "test", "seed": None if floor else seed,
            "slots": None if floor else "one", "phase": "evaluate", "level": "model", "manifest": "m1",
            "started_at": "2026-01-01T00:00:00+00:00", "length_q": 64, "length_kv": 64,
        }  # fmt: skip
        self.append(Record(**{**fields, **MACHINE, **columns}))
        return key

    def failed_quality(
        self, setting: str, pattern: str, task: str, status: Status, reason: str, **columns: Any
    ) -> None:
        fields: dict[str, Any] = {
            "run_key": self.key(), "protocol": "quick", "metric": "accuracy", "status": status, "reason": reason,
            "attention": setting, "setting": setting, "pattern": pattern, "task": task, "task_setting": task,
            "size": "tiny", "split": "test", "seed": 1, "slots": "one", "phase": "evaluate", "level": "model",
            "started_at": "2026-01-01T00:00:00+00:00", "length_q": 64, "length_kv": 64,
        }  # fmt: skip
        self.append(Record(**{**fields, **MACHINE, **columns}))

    def training(self, setting: str, pattern: str, task: str, **metrics: float) -> None:
        key = self.key()
        for metric, value in metrics.items():
            self.append(
                Record(
                    run_key=key,
                    protocol="quick",
                    metric=metric,
                    status=Status.OK,
                    value=value,
                    setting=setting,
                    attention=setting,
                    pattern=pattern,
                    task=task,
                    task_setting=task,
                    size="tiny",
                    seed=1,
                    slots="one",
                    phase="train",
                    level="model",
                    **MACHINE,
                )
            )

    def cost(self, setting: str, pattern: str, length: int, metric: str, value: float | None = None, *,
             replicate: int = 0, baseline: str | None = None, status: Status = Status.OK, reason: str | None = None,
             **columns: Any) -> None:  # fmt: skip
        fields: dict[str, Any] = {
            "run_key": self.key(), "protocol": "quick", "metric": metric, "status": status, "value": value,
            "reason": reason, "attention": setting, "setting": setting, "pattern": pattern, "length_q": length,
            "length_kv": length, "replicate": replicate, "baseline": baseline, "level": "layer", "phase": "inference",
            "batch": 1, "heads": 8, "head_dim": 64, "compiled": False, "started_at": "2026-01-01T00:00:00+00:00",
            "manifest": "m1",
        }  # fmt: skip
        self.append(Record(**{**fields, **MACHINE, **columns}))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "results" / "quick" / "test-2-cores")


def fill(folder: Folder, patterns: Sequence[str] = PATTERNS) -> Folder:
    """A whole leaderboard: six settings, four patterns, two tasks in CS, with every kind of gap."""
    with folder.at_once():
        _fill(folder, patterns)
    return folder


def _fill(folder: Folder, patterns: Sequence[str], processes: int = 3, units: int = 60) -> None:
    lengths = LENGTHS
    rng = np.random.default_rng(0)
    everywhere = dict.fromkeys(PATTERNS, "certified")
    folder.certificate("sdpa", everywhere, exact=True)
    folder.certificate("softmax", everywhere, exact=True)
    folder.certificate("linear", everywhere)
    folder.certificate("performer", {**everywhere, "noncausal_cross": "no_oracle"})
    folder.certificate("reformer", {"noncausal_self": "certified", "causal_self": "value_causal",
                                    "noncausal_cross": "unsupported", "causal_cross": "failed"},
                       noncausal_cross="queries and keys share one projection")  # fmt: skip
    folder.certificate("identity", {"noncausal_self": "certified", "causal_self": "certified",
                                    "noncausal_cross": "unsupported", "causal_cross": "unsupported"},
                       noncausal_cross="no source enters", causal_cross="no source enters")  # fmt: skip
    folder.task("recall", PATTERNS)
    folder.task("lm", ("causal_self",), "perplexity", higher=False, aggregate="exp_mean", floor="unigram")
    folder.manifest("m1", "/some/where/bin/cab leaderboard protocol=quick")
    skill = {"sdpa": 0.99, "softmax": 0.99, "linear": 0.9, "performer": 0.97, "reformer": 0.6, "identity": 0.1}
    speed = {"sdpa": 0.0, "softmax": -0.1, "linear": 0.9, "performer": 0.6, "reformer": 0.4, "identity": 1.4}
    weights = rng.integers(50, 200, units).astype(float)
    document = rng.normal(0, 0.3, units)
    for pattern in patterns:
        folder.quality("floor:uniform", pattern, "recall", np.full(units, 0.06))
        for setting, accuracy in skill.items():
            if pattern in ("noncausal_cross", "causal_cross") and setting in ("identity", "reformer"):
                continue
            if not (setting == "reformer" and pattern == "causal_self"):
                values = np.clip(accuracy + rng.normal(0, 0.02, units), 0, 1)
                folder.quality(setting, pattern, "recall", values)
            if pattern == "causal_self" and setting not in ("reformer", "performer"):
                nll = 4.0 + document + 0.8 * (0.99 - accuracy) + rng.normal(0, 0.02, units)
                folder.quality(setting, pattern, "lm", nll, weights=weights, metric="perplexity", higher=False,
                               aggregate="exp_mean")  # fmt: skip
            folder.training(setting, pattern, "recall", steps_per_s=12.5, tokens_per_s=51200.0, train_time_s=8.0,
                            peak_extra_bytes=3.2e7, parameters=123456.0)  # fmt: skip
            for length in lengths:
                for replicate in range(processes):
                    noise = float(np.exp(rng.normal(0, 0.03)))
                    base = 1e-3 * (length / 256) ** 2
                    ratio = 2.2 * (length / 256) ** -speed[setting] * noise if setting != "sdpa" else 1.0 * noise
                    folder.cost(setting, pattern, length, "time_s", base * ratio, replicate=replicate)
                    folder.cost(setting, pattern, length, "ratio", ratio, replicate=replicate, baseline="sdpa")
                    folder.cost(setting, pattern, length, "ratio", ratio / 1.5, replicate=replicate, baseline="softmax")
                if setting == "softmax" and length == lengths[-1]:
                    folder.cost(setting, pattern, length, "peak_extra_bytes", status=Status.OUT_OF_MEMORY,
                                reason="killed at 2 GiB")  # fmt: skip
                else:
                    folder.cost(setting, pattern, length, "peak_extra_bytes", 4096.0 * length)
    folder.quality("floor:unigram", "causal_self", "lm", 6.0 + document, weights=weights, metric="perplexity",
                   higher=False, aggregate="exp_mean")  # fmt: skip
    folder.failed_quality(
        "performer", "causal_self", "lm", Status.DIVERGED, "loss was nan at step 40", metric="perplexity"
    )


@pytest.fixture
def filled(folder: Folder) -> Folder:
    return fill(folder)


@pytest.fixture
def fill_folder() -> Callable[..., Folder]:
    return fill
