"""Titles and articles of the shipped news, and the pools that are searched. Knows nothing of models.

A query is an article's title, or its subtitle where it has no title; the document is the article's text. The articles
are those of :mod:`tasks.summarization.data`, where versions of one report are left out, so that a query has one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tasks.contract import Split
from tasks.summarization import data as news
from tasks.summarization.data import Article

SOURCE = news.SOURCE
# The last digits of an article's key, in decimal. Half of the articles are the test, whose size an interval rests on;
# the encoder comes trained, so that little is needed to go on.
_DIGITS: dict[Split, range] = {"train": range(4), "validation": range(4, 5), "test": range(5, 10)}


def part(articles: Sequence[Article], split: Split) -> list[Article]:
    """The articles of a split in the order of their keys, which are digests: an order that follows nothing.

    An article's part and place depend on its own words alone, so a pool of the first n is within that of the first n+1.
    """
    digits = _DIGITS[split]
    return sorted((a for a in articles if int(a.key[:16], 16) % 10 in digits), key=lambda article: article.key)


def load(split: Split) -> list[Article]:
    """The shipped articles of a split, from the cache after the first call on a machine."""
    return part(news.load(), split)


def title(article: Article) -> str:
    """The query: the first line of the article's head."""
    return article.summary.partition("\n")[0]


@dataclass(frozen=True)
class Ranks:
    """Per query the share of a hit, ``recall``, and the reciprocal rank, ``[N]``."""

    recall: np.ndarray
    reciprocal: np.ndarray

    @classmethod
    def of(cls, similarity: Float[np.ndarray, "N N"]) -> Ranks:
        """Of queries (rows) among documents (columns), query i looking for document i.

        Equal similarities stand in every order alike: with b documents above and t tied, the right one among them, the
        rank is b + 1 .. b + t with chance 1/t each, so that a constant similarity gives 1/N and (1 + .. + 1/N) / N.
        """
        own = similarity.diagonal()[:, None]
        above, tied = (similarity > own).sum(1), (similarity == own).sum(1)
        harmonic = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, len(similarity) + 1))))
        return cls(np.where(above == 0, 1 / tied, 0.0), (harmonic[above + tied] - harmonic[above]) / tied)
