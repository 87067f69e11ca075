"""The shipped articles: fetched once (10.5 MB), then from the cache. Counts only; the text is copyrighted."""

from __future__ import annotations

import pytest

from tasks.summarization import data
from tasks.summarization.task import Summarization


@pytest.mark.slow
def test_shipped_articles_are_what_the_card_says():
    task = Summarization()
    assert len(task.corpus.keys) == len(set(task.corpus.keys)) == 3665
    assert [len(task.corpus.splits[split]) for split in ("train", "validation", "test")] == [2930, 352, 383]
    assert len(task.vocabulary.words) == 4096
    heads = {split: {tuple(task.corpus.head_of(i)) for i in task.corpus.splits[split]} for split in task.corpus.splits}
    assert not heads["train"] & heads["test"]
    assert not heads["train"] & heads["validation"]
    metric = task.card.primary_metric
    values = {name: metric.value(scores) for name, scores in task.floors("test").items()}
    assert values["lead_1"] < values["unigram"] < values["uniform"] == pytest.approx(4094)
    assert data.SEPARATOR in task.pairs("train").target
