"""Whether 95 % intervals over units hold the truth in 95 of 100: ``python -m cab.stats.interval_coverage FOLDER``.

Simulated units with a known mean, at few and at many units: normal ones; skewed ones (log-normal with a deviation of
0.5, as the losses of test documents are, skewness 1.75); and the same skewed ones as perplexities, exp of the mean.
``interval-coverage.csv`` gets a row per case with the share of intervals that hold the truth, and how the others miss
(``make benchmark-statistics``; the same numbers on every machine).
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cab.stats.intervals import Aggregate, interval_over_units

REPEATS = 4000
UNITS = (3, 5, 10, 20, 50, 200)
SIGMA = 0.5  # of the logarithm of the skewed units

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
# Distribution -> how units are drawn, the true mean, how they are put together.
CASES: dict[str, tuple[Draw, float, Aggregate]] = {
    "normal": (lambda rng, n: rng.normal(1.0, 1.0, n), 1.0, "mean"),
    "skewed": (lambda rng, n: rng.lognormal(0.0, SIGMA, n), math.exp(SIGMA**2 / 2), "mean"),
    "skewed, exp of the mean": (lambda rng, n: rng.lognormal(0.0, SIGMA, n), math.exp(SIGMA**2 / 2), "exp_mean"),
}


@dataclass(frozen=True)
class Coverage:
    """One case: shares of ``repeats`` intervals."""

    distribution: str
    units: int
    method: str
    repeats: int
    holds: float
    too_low: float
    too_high: float


def coverage(distribution: str, units: int, repeats: int = REPEATS) -> Coverage:
    """Draws, and looks: ``too_low`` are intervals that lie wholly below the truth."""
    draw, mean, aggregate = CASES[distribution]
    truth = math.exp(mean) if aggregate == "exp_mean" else mean
    rng = np.random.default_rng([units, *distribution.encode()])
    below = above = 0
    method = ""
    for repeat in range(repeats):
        interval = interval_over_units(draw(rng, units), None, aggregate, seed=repeat)
        assert interval.low is not None
        assert interval.high is not None
        below += interval.high < truth
        above += interval.low > truth
        method = interval.method
    missed = (below + above) / repeats
    return Coverage(distribution, units, method, repeats, 1 - missed, below / repeats, above / repeats)


def main(folder: Path) -> None:
    """Writes ``interval-coverage.csv`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "interval-coverage.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Coverage.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        for distribution in CASES:
            for units in UNITS:
                found = coverage(distribution, units)
                writer.writerow(asdict(found))
                print(f"{distribution}, {units} units ({found.method}): {found.holds:.1%} hold the truth", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
