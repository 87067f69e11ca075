"""The shipped articles: fetched once (10.5 MB), then from the cache. Counts only; the text is copyrighted."""

from __future__ import annotations

import pytest

from tasks.summarization.task import Summarization
from tasks.summarization.tokens import SEPARATOR, words


@pytest.mark.slow
def test_shipped_articles_are_what_the_card_says():
    task = Summarization()
    parts = task.articles
    assert {name: len(part) for name, part in parts.items()} == {"train": 2930, "validation": 352, "test": 383}
    assert len({article.key for part in parts.values() for article in part}) == 3665
    assert len(task.tokeniser) == 4096
    heads = {name: {tuple(words(article.summary)) for article in part} for name, part in parts.items()}
    assert not heads["train"] & heads["test"]
    assert not heads["train"] & heads["validation"]
    assert all(all(line.split() for line in a.summary.split("\n")) for part in parts.values() for a in part)
    perplexity, rouge_1, *_ = task.card.metrics
    floors = task.floors("test")
    values = {name: perplexity.value(scores) for name, scores in floors.items()}
    assert values["lead_3"] < values["lead_1"] < values["unigram"] < values["uniform"] == pytest.approx(4094)
    assert 20 < rouge_1.value(floors["lead_1"]) < 35  # of the order of lead baselines on heads
    assert SEPARATOR in task.target("train")


@pytest.mark.slow
def test_shipped_articles_as_subwords():
    task = Summarization(size="base")
    assert len(task.tokeniser) == 16_384
    line = task.articles["test"][0].summary.split("\n")[0]
    assert task.tokeniser.decode(task.tokeniser.encode(line)) == line
