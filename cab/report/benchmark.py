"""Seconds and memory of a report of half a million records: ``python -m cab.report.benchmark FOLDER``.

A board as large as a year of them: 50 certified settings in four patterns, 10 tasks, five seeds, each run with values
per test example in a file of its own, and costs at eight lengths in three phases. ``report.json`` gets what the report
took, in a fresh interpreter (``make benchmark-report``).
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cab.measure.kept import keep, place_of
from cab.records import Record, RecordStore, Status
from cab.report.patterns import PATTERNS

RECORDS = 500_000
SETTINGS, TASKS, SEEDS, UNITS = 50, 10, 5, 200
LENGTHS = tuple(2**power for power in range(8, 16))
PHASES = ("inference", "training_forward", "training")
COSTS = ("time_s", "first_call_s", "peak_extra_bytes", "saved_bytes", "flops")
TRAINING = ("steps_per_s", "tokens_per_s", "train_time_s", "peak_extra_bytes", "parameters")
_AT_ONCE = 20_000


def fill(folder: Path, records: int = RECORDS) -> int:
    """Writes certificates, cards, and at least ``records`` rows; returns how many rows."""
    store, rng = RecordStore(folder), np.random.default_rng(0)
    settings = ["sdpa", *(f"mechanism_{number:02}" for number in range(1, SETTINGS))]
    for name in ("certificates", "cards"):
        (folder / name).mkdir(parents=True)
    for setting in settings:
        (folder / "certificates" / f"{setting}.json").write_text(json.dumps(_certificate(setting)))
    tasks = [f"task_{number:02}" for number in range(TASKS)]
    for task in tasks:
        (folder / "cards" / f"task-{task}.json").write_text(json.dumps(_card(task)))
    rows = [*_quality(store, rng, settings, tasks)]
    replicates = -(-(records - len(rows)) // (SETTINGS * len(PATTERNS) * len(LENGTHS) * len(PHASES) * len(COSTS)))
    rows += _costs(rng, settings, replicates)
    for first in range(0, len(rows), _AT_ONCE):
        store.append(*rows[first : first + _AT_ONCE])
    return len(rows)


_MACHINE: dict[str, Any] = {
    "protocol": "large",
    "dtype": "float32",
    "device": "cpu",
    "hardware": "made-up",
    "threads": 2,
}


def _quality(store: RecordStore, rng: np.random.Generator, settings: list[str], tasks: list[str]) -> Iterator[Record]:
    names = np.array([f"document {number}" for number in range(UNITS)])
    for pattern in PATTERNS:
        for task in tasks:
            for number, setting in enumerate(settings):
                for seed in range(1, SEEDS + 1):
                    key = _key(pattern.short, task, setting, seed)
                    values = rng.normal(0.9 - 0.01 * number, 0.1, UNITS)
                    store.write_units(key, {"units": names, "values/score": values})
                    shared: dict[str, Any] = {
                        **_MACHINE, "run_key": key, "status": Status.OK, "attention": setting, "setting": setting,
                        "pattern": pattern.name, "task": task, "task_setting": task, "size": "tiny", "seed": seed,
                        "slots": "one", "level": "model", "length_q": 64, "length_kv": 64,
                    }  # fmt: skip
                    yield Record(metric="score", value=float(values.mean()), unit="1", higher_is_better=True,
                                 split="test", phase="evaluate", **shared)  # fmt: skip
                    for metric in TRAINING:
                        yield Record(metric=metric, value=float(rng.uniform(1, 9)), phase="train", **shared)


def _costs(rng: np.random.Generator, settings: list[str], replicates: int) -> Iterator[Record]:
    for phase in PHASES:
        for pattern in PATTERNS:
            for number, setting in enumerate(settings):
                for length in LENGTHS:
                    for replicate in range(replicates):
                        shared: dict[str, Any] = {
                            **_MACHINE, "run_key": _key(phase, pattern.short, setting, length, replicate),
                            "status": Status.OK, "attention": setting, "setting": setting, "pattern": pattern.name,
                            "length_q": length, "length_kv": length, "replicate": replicate, "level": "layer",
                            "phase": phase, "batch": 1, "heads": 8, "head_dim": 64, "compiled": False,
                        }  # fmt: skip
                        for metric in COSTS[1:]:
                            yield Record(metric=metric, value=float(length), **shared)
                        ratio = (300 + 10 * number) / length * float(np.exp(rng.normal(0, 0.02)))
                        yield Record(metric="ratio", value=ratio, baseline="sdpa", **shared)


def _key(*parts: object) -> str:
    """A digest, as the run keys of real records: it does not pack as names would."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _certificate(setting: str) -> dict[str, Any]:
    card = {"title": setting, "authors": "", "year": 2020, "paper": "", "family": "kernel", "exact": setting == "sdpa",
            "time_order": "L", "memory_order": "L", "supports": {p.name: "published" for p in PATTERNS},
            "unsupported": {}}  # fmt: skip
    passed = {"support": "published", "reason": "", "oracle": True, "passed": True, "mark": "certified", "results": []}
    return {"format": 1, "attention": setting, "card": card, "patterns": {p.name: passed for p in PATTERNS}}


def _card(task: str) -> dict[str, Any]:
    metric = {"name": "score", "unit": "1", "higher_is_better": True, "description": "", "aggregate": "mean"}
    return {"name": task, "title": task, "patterns": [p.name for p in PATTERNS], "metrics": [metric],
            "unit": "document", "floors": {}, "floor": None, "source": "", "licence": ""}  # fmt: skip


def measured(folder: Path) -> dict[str, float]:
    """Seconds and peak resident bytes of ``make_report`` in an interpreter of its own, start included."""
    code = f"from pathlib import Path; from cab.report.make import make_report; make_report(Path({str(folder)!r}))"
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    seconds = time.perf_counter() - begin
    kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": seconds, "peak_resident_bytes": kibibytes * 1024}


def main(folder: Path) -> None:
    """Writes ``report.json`` into ``folder/<hardware>``."""
    with tempfile.TemporaryDirectory() as scratch:
        board = Path(scratch) / "large" / "made-up"
        rows = fill(board)
        found = measured(board)
        page = os.path.getsize(board / "index.html")
    content = {"records": rows, **found, "page_bytes": page}
    keep(place_of(folder) / "report.json", "make benchmark-report", content)
    print(f"{rows:,} records: {found['seconds']:.0f} s, {found['peak_resident_bytes'] / 1e9:.2f} GB, "
          f"a page of {page / 1e6:.1f} MB")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
