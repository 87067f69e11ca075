"""Running text as tokens, for the language-modelling tasks: bytes, or subwords; by document and split.

Training text is one stream with a separator between documents; held-out documents stay apart, since they are the units
that scores are of. Tokens of a corpus are made once and kept in the cache, from where they are mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from attention_zoo.errors import UnknownName
from tasks.contract import Split
from tasks.options import original_folder
from tasks.sources import cache_folder
from tasks.subwords import Subwords
from tasks.whole_file import whole_file

END = 0  # of a document, among subwords
SPECIALS = ("<eos>",)
_TOKENISER_BYTES = 200_000_000  # of training text that subwords are learned from, at the most


@dataclass(frozen=True)
class Document:
    """A chapter, a book: what is never split between training and test, in UTF-8."""

    name: str
    content: bytes


class Corpus(Protocol):
    """Documents by split; hashable, and cheap to make."""

    @property
    def source(self) -> str:
        """What it is, for the task's card."""

    @property
    def licence(self) -> str:
        """Under which it may be used."""

    @property
    def separator(self) -> bytes:
        """Between documents of the training stream of bytes."""

    def documents(self, split: Split) -> Iterator[Document]:
        """In a fixed order."""

    def fingerprint(self, split: Split) -> str:
        """Another one where the documents are others."""


@dataclass(frozen=True)
class Tokens:
    """Documents as tokens, one after the other.

    Attributes:
        stream: [N] uint8 or uint16; in the training split with separators between documents.
        ends: [K] int64, where each document ends in ``stream`` (before its separator).
        starts: [K] int64.
        names: of the K documents.
    """

    stream: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    names: list[str]

    def document(self, index: int) -> np.ndarray:
        return self.stream[self.starts[index] : self.ends[index]]


@dataclass(frozen=True)
class Text:
    """A corpus read as bytes (``vocabulary`` None) or as at most ``vocabulary`` subwords."""

    corpus: Corpus
    vocabulary: int | None = None

    @property
    def size(self) -> int:
        """V: how many tokens a model has to tell apart."""
        return 256 if self.vocabulary is None else self.vocabulary

    @cached_property
    def subwords(self) -> Subwords | None:
        """Learned from the training documents; None where tokens are bytes."""
        if self.vocabulary is None:
            return None
        key = f"{type(self.corpus).__name__} {self.corpus.fingerprint('train')}"
        return Subwords.fit(self._training_texts(), self.vocabulary, SPECIALS, key=key)

    def _training_texts(self) -> Iterator[str]:
        total = 0
        for document in self.corpus.documents("train"):
            yield document.content.decode()
            total += len(document.content)
            if total > _TOKENISER_BYTES:
                return

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes that each token stands for: [V] int64."""
        if self.subwords is None:
            return np.ones(256, dtype=np.int64)
        lengths = self.subwords.byte_lengths(len(SPECIALS))
        return np.pad(lengths, (0, self.size - len(lengths)))

    def encode(self, content: bytes) -> np.ndarray:
        if self.subwords is None:
            return np.frombuffer(content, dtype=np.uint8)
        return np.array(self.subwords.encode(content.decode()), dtype=np.uint16 if self.size <= 1 << 16 else np.uint32)

    @property
    def separator(self) -> np.ndarray:
        """What stands between training documents."""
        if self.subwords is None:
            return self.encode(self.corpus.separator)
        return np.array([END], dtype=self.encode(b"").dtype)

    def decode(self, tokens: np.ndarray) -> bytes:
        """The bytes of tokens, as far as they are text."""
        if self.subwords is None:
            return tokens.astype(np.uint8).tobytes()
        return self.subwords.decode(tokens.tolist()).encode()

    def tokens(self, split: Split) -> Tokens:
        """The documents of a split, from the cache after the first time."""
        return _tokens(self, split)

    @cached_property
    def unigram(self) -> np.ndarray:
        """``p(x) = (n_x + 1) / (N + V)`` over the training stream: float64 [V], read only."""
        counts = np.zeros(self.size, dtype=np.int64)
        stream = self.tokens("train").stream
        for first in range(0, len(stream), 1 << 24):
            counts += np.bincount(stream[first : first + (1 << 24)], minlength=self.size)
        probabilities = (counts + 1.0) / (counts.sum() + float(self.size))
        probabilities.setflags(write=False)
        return probabilities


@cache
def _tokens(text: Text, split: Split) -> Tokens:
    identity = json.dumps([1, type(text.corpus).__name__, text.corpus.fingerprint(split), text.vocabulary, split])
    if text.subwords is not None:
        identity += text.subwords.definition
    folder = cache_folder() / "tokens"
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"
    if not path.is_file():
        _write(text, split, path)
    with np.load(path, allow_pickle=False) as index:
        kind = np.dtype(str(index["kind"]))
        starts, ends, names, length = index["starts"], index["ends"], index["names"].tolist(), int(index["length"])
    stream_path = path.with_suffix(".bin")
    if not stream_path.is_file() or stream_path.stat().st_size != length * kind.itemsize:
        path.unlink()
        return _tokens(text, split)
    return Tokens(np.memmap(stream_path, dtype=kind, mode="r"), starts, ends, names)


def _write(text: Text, split: Split, path: Path) -> None:
    """The stream beside its index; the index comes last, so that one that is there is whole."""
    separator = text.separator
    starts: list[int] = []
    ends: list[int] = []
    names: list[str] = []
    position = 0
    with whole_file(path.with_suffix(".bin")) as stream, stream.open("wb") as file:
        for document in text.corpus.documents(split):
            if starts and split == "train":
                file.write(separator.tobytes())
                position += len(separator)
            tokens = text.encode(document.content)
            file.write(tokens.tobytes())
            starts.append(position)
            position += len(tokens)
            ends.append(position)
            names.append(document.name)
        if not names:
            raise ValueError(f"{text.corpus.source}: no document in the {split} split")
    with whole_file(path) as index:
        np.savez(
            index,
            kind=np.array(separator.dtype.str),
            length=np.array(position),
            starts=np.array(starts, dtype=np.int64),
            ends=np.array(ends, dtype=np.int64),
            names=np.array(names),
        )


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the indices 0 .. count - 1, evenly spread."""
    return [i * count // min(count, wanted) for i in range(min(count, wanted))]


def windows_of(tokens: Tokens, length: int, most: int, *, ahead: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """(document, its tokens) of at most ``most`` windows per document, evenly spread and not overlapping.

    A window has ``length + ahead`` tokens, of which the last ``ahead`` may be the first of the next one. A document
    shorter than one window gives one, as short as it is.
    """
    for index in range(len(tokens.names)):
        content = tokens.document(index)
        for i in spread(max(1, (len(content) - ahead) // length), most):
            yield index, content[i * length : (i + 1) * length + ahead]


def corpus_of(data: str, translation: str, data_root: str | None) -> Corpus:
    """The text that a task's options name: a translation of the Bible from a package, or PG-19 from a folder."""
    from tasks.bible import TRANSLATIONS, Bible
    from tasks.pg19 import PG19

    folder = original_folder(data, data_root, PG19.NAME)
    if translation not in TRANSLATIONS:
        raise UnknownName("translation", translation, TRANSLATIONS)
    return Bible(translation) if folder is None else PG19(folder)
