"""Whether 95 % intervals hold the truth in 95 of 100: ``python -m cab.report.interval_coverage FOLDER``.

Simulated values with a known mean at few and at many units: normal ones; skewed ones (log-normal with a deviation of
0.5, as the losses of test documents are, skewness 1.75); and the skewed ones as perplexities, exp of the mean. They
are looked at in two ways:

- *records*: each unit is a seed of a made-up task, written and read as records are. The report's score, its gain over
  the baseline (paired by seed) and the mean gain of four tasks are held against the truth;
- *units*: the interval over test examples, computed alone; also of documents of unequal length (log-normal weights
  with a deviation of 1 of the logarithm), and of a share near its bound (99 of 100 examples are right).

``interval-coverage.csv`` gets a row per case, with the share of intervals that hold the truth, and how the others miss
(part of ``make benchmark-statistics``; the same numbers on every machine).
"""

from __future__ import annotations

import csv
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attention_zoo.contract import Pattern
from cab.records import Record, RecordStore, Status
from cab.report.evidence import read_evidence
from cab.report.quality import Quality
from cab.stats.intervals import Aggregate, Interval, interval_over_units, mean_of_independent, without_spread

REPEATS = 4000
UNITS = (3, 5, 10, 20, 50, 200)
SEEDS = (3, 5, 10, 50)
TASKS = 4  # of a mean gain
SIGMA = 0.5  # of the logarithm of the skewed values
SHARE = 0.99
WORSE = 0.3  # what the setting has less than the baseline
_PATTERN = Pattern.CAUSAL_SELF
_METRIC = "score"

Draw = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[np.float64]]
# Distribution -> how values are drawn, and their true mean.
DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(1.0, 1.0, shape), 1.0),
    "skewed": (lambda rng, shape: rng.lognormal(0.0, SIGMA, shape), math.exp(SIGMA**2 / 2)),
}


@dataclass(frozen=True)
class Coverage:
    """One case: shares of ``repeats`` intervals; ``too_low`` are those that lie wholly below the truth."""

    quantity: str
    distribution: str
    units: int
    method: str
    repeats: int
    holds: float
    too_low: float
    too_high: float

    @classmethod
    def of(cls, quantity: str, distribution: str, units: int, found: Sequence[Interval], truth: float) -> Coverage:
        low = sum(interval.high is not None and bool(interval.high < truth) for interval in found)
        high = sum(interval.low is not None and bool(interval.low > truth) for interval in found)
        shares = (count / len(found) for count in (len(found) - low - high, low, high))
        return cls(quantity, distribution, units, found[0].method, len(found), *shares)


def over_units(distribution: str, units: int, aggregate: Aggregate, repeats: int = REPEATS) -> Coverage:
    """Of the interval over test examples."""
    draw, mean = DISTRIBUTIONS[distribution]
    rng = np.random.default_rng([units, *distribution.encode(), *aggregate.encode()])
    found = [interval_over_units(draw(rng, (units,)), None, aggregate, seed=repeat) for repeat in range(repeats)]
    perplexity = aggregate == "exp_mean"
    name = "perplexity over test examples" if perplexity else "mean over test examples"
    return Coverage.of(name, distribution, units, found, math.exp(mean) if perplexity else mean)


def over_unequal_documents(units: int, repeats: int = REPEATS) -> Coverage:
    """Of a perplexity whose test documents weigh as differently as e^1."""
    rng = np.random.default_rng([units, *b"weights"])
    found = [
        interval_over_units(rng.normal(1.0, 1.0, units), rng.lognormal(0.0, 1.0, units), "exp_mean", seed=repeat)
        for repeat in range(repeats)
    ]
    return Coverage.of("perplexity over unequal test documents", "normal", units, found, math.e)


def over_right_or_wrong(units: int, repeats: int = REPEATS) -> Coverage:
    """Of an accuracy that is 0.99."""
    rng = np.random.default_rng([units, *b"share"])
    drawn = ((rng.random(units) < SHARE).astype(float) for _ in range(repeats))
    found = [without_spread(interval_over_units(values, seed=repeat), 0.0, 1.0) for repeat, values in enumerate(drawn)]
    return Coverage.of("accuracy over test examples", "99 of 100 right", units, found, SHARE)


def through_records(distribution: str, seeds: int, repeats: int = REPEATS) -> Iterator[Coverage]:
    """Of a score, a gain and a mean gain, as the report makes them from records of ``repeats`` tasks."""
    draw, mean = DISTRIBUTIONS[distribution]
    rng = np.random.default_rng([seeds, *distribution.encode()])
    values = draw(rng, (repeats, 2, seeds)) - np.array([0.0, WORSE])[None, :, None]
    with tempfile.TemporaryDirectory() as scratch:
        store = RecordStore(Path(scratch))
        store.append(*_records(values))
        evidence = read_evidence(Path(scratch))
    quality = Quality(evidence, evidence.rows, "sdpa")
    columns = quality.columns(_PATTERN)
    scores = [score.interval for column in columns if (score := quality.score(_PATTERN, column, "ours"))]
    gains = [gain for column in columns if (gain := quality.gain(_PATTERN, column, "ours"))]
    means = [mean_of_independent(gains[first : first + TASKS]) for first in range(0, len(gains), TASKS)]
    assert len(scores) == len(gains) == repeats
    yield Coverage.of("score over seeds", distribution, seeds, scores, mean - WORSE)
    yield Coverage.of("gain over seeds", distribution, seeds, gains, -WORSE)
    yield Coverage.of(f"mean gain of {TASKS} tasks", distribution, seeds, means, -WORSE)


def _records(values: npt.NDArray[np.float64]) -> Iterator[Record]:
    for task, settings in enumerate(values):
        for setting, own in zip(("sdpa", "ours"), settings, strict=True):
            for seed, value in enumerate(own.tolist(), start=1):
                yield Record(
                    run_key=f"{task}-{setting}-{seed}", protocol="simulated", metric=_METRIC, status=Status.OK,
                    value=value, unit="1", higher_is_better=True, attention=setting, setting=setting, pattern=_PATTERN,
                    task=f"task_{task:04}", slots="one", split="test", seed=seed, level="model", phase="evaluate",
                )  # fmt: skip


def cases(repeats: int = REPEATS) -> Iterator[Coverage]:
    """All of them, the fast ones first."""
    for distribution in DISTRIBUTIONS:
        for seeds in SEEDS:
            yield from through_records(distribution, seeds, repeats)
    for units in UNITS:
        yield over_units("normal", units, "mean", repeats)
        yield over_units("skewed", units, "mean", repeats)
        yield over_units("skewed", units, "exp_mean", repeats)
        yield over_unequal_documents(units, repeats)
        yield over_right_or_wrong(units, repeats)


def main(folder: Path) -> None:
    """Writes ``interval-coverage.csv`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "interval-coverage.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Coverage.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        for found in cases():
            writer.writerow(asdict(found))
            print(
                f"{found.quantity}, {found.distribution}, {found.units} units ({found.method}): "
                f"{found.holds:.1%} hold the truth",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
