"""How much a figure depends on which 200 articles are searched: ``python docs/retrieval_pools.py OUT.csv``.

All test articles are embedded once with exact and with uniform attention, at the task's own lengths. Then pools are
drawn from them without replacement; R@1 and MRR of each: their mean, standard deviation, and the range that
holds 95 % of the draws. ``own_pool`` is that of the task itself.
"""

from __future__ import annotations

import csv
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from attention_zoo.contract import Pattern
from attention_zoo.registry import build
from tasks.retrieval import data
from tasks.retrieval.task import SIZES, Retrieval

ATTENTIONS = ("softmax", "uniform")
DRAWS = 2000
SEED = 0


def similarity(attention: str) -> np.ndarray:
    """Of all test titles (rows) and articles (columns)."""
    task = Retrieval(articles=len(data.load("test")))
    pattern = Pattern.NONCAUSAL_SELF
    slots = dict.fromkeys(Pattern, partial(build, attention, pattern=pattern))
    model = task.build_model(slots).eval()
    titles, articles = [], []
    with torch.inference_mode():
        for number, batch in enumerate(task.batches("test", 0), start=1):
            titles.append(model(batch["titles"], batch["title_padding"]))
            articles.append(model(batch["articles"], batch["padding"]))
            print(f"\r{attention}: {number * task.setting.batch:,} of {task.articles:,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return (torch.cat(titles).double() @ torch.cat(articles).double().T).numpy()


def rows(attention: str, whole: np.ndarray, size: int) -> list[dict[str, object]]:
    """The statistics of the draws, by metric, and the task's own pool."""
    rng = np.random.default_rng(SEED)
    drawn: dict[str, list[float]] = {"recall_at_1": [], "mrr": []}
    for pool in (rng.choice(len(whole), size, replace=False) for _ in range(DRAWS)):
        ranks = data.Ranks.of(whole[np.ix_(pool, pool)])
        drawn["recall_at_1"].append(float(ranks.recall.mean()))
        drawn["mrr"].append(float(ranks.reciprocal.mean()))
    own = data.Ranks.of(whole[:size, :size])
    first = {"recall_at_1": own.recall.mean(), "mrr": own.reciprocal.mean()}
    return [
        {
            "attention": attention,
            "metric": metric,
            "articles": size,
            "draws": DRAWS,
            "mean": f"{np.mean(values):.4f}",
            "standard_deviation": f"{np.std(values, ddof=1):.4f}",
            "low_95": f"{np.quantile(values, 0.025):.4f}",
            "high_95": f"{np.quantile(values, 0.975):.4f}",
            "lowest": f"{min(values):.4f}",
            "highest": f"{max(values):.4f}",
            "own_pool": f"{first[metric]:.4f}",
        }
        for metric, values in drawn.items()
    ]


def main(out: Path) -> None:
    size = SIZES["tiny"].articles
    found = [row for attention in ATTENTIONS for row in rows(attention, similarity(attention), size)]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
