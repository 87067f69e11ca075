"""Text to token numbers and back: whole words, or subwords by byte-pair encoding. Knows nothing of models.

Both number the same specials first. A line break becomes ``<sep>``, between the title and the subtitle of a head.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

from tasks.subwords import Subwords

PAD, UNKNOWN, BEGIN, END, SEPARATOR = range(5)
SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>", "<sep>")

# Words with inner apostrophes and hyphens, or single other signs; U+FFFD stands where the source lost a character.
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s\ufffd]")


def words(text: str, most: int | None = None) -> list[str]:
    """Lower-cased words and signs; the first ``most`` of them."""
    return [match.group() for match in islice(_WORD.finditer(text.lower()), most)]


class Tokeniser(Protocol):
    """Between text and token numbers."""

    def __len__(self) -> int:
        """How many tokens there are."""

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """The first ``most`` tokens of one line of text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text again; specials are left out, and ``<sep>`` breaks the line."""


def encode_lines(tokeniser: Tokeniser, text: str) -> list[int]:
    """The tokens of each line, with ``<sep>`` between lines."""
    tokens: list[int] = []
    for line in text.split("\n"):
        tokens += [SEPARATOR] * bool(tokens) + tokeniser.encode(line)
    return tokens


def _split_at_separators(tokens: Sequence[int]) -> list[list[int]]:
    lines: list[list[int]] = [[]]
    for token in tokens:
        if token == SEPARATOR:
            lines.append([])
        elif token >= len(SPECIALS):
            lines[-1].append(token)
    return [line for line in lines if line]


class WordTokeniser:
    """The specials, then words by falling count; a word left out is ``UNKNOWN``."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = list(vocabulary)
        self._number = {word: number for number, word in enumerate(self.vocabulary)}

    @classmethod
    def fit(cls, texts: Iterable[str], size: int) -> WordTokeniser:
        """At most ``size`` tokens: the most frequent words of ``texts``, equal counts by alphabet."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(words(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([*SPECIALS, *ranked[: max(0, size - len(SPECIALS))]])

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str, most: int | None = None) -> list[int]:
        return [self._number.get(word, UNKNOWN) for word in words(text, most)]

    def decode(self, tokens: Sequence[int]) -> str:
        lines = _split_at_separators(tokens)
        return "\n".join(" ".join(self.vocabulary[token] for token in line) for line in lines)


class SubwordTokeniser:
    """Byte-level subwords with case (:class:`tasks.subwords.Subwords`), line by line."""

    def __init__(self, inner: Subwords) -> None:
        self._inner = inner

    @classmethod
    def fit(cls, texts: Sequence[str], size: int) -> SubwordTokeniser:
        """At most ``size`` tokens, from the most frequent pairs of ``texts``; trained once, then from the cache.

        Raises:
            ValueError: ``size`` has no room for the specials and the bytes.
        """
        digest = hashlib.sha256()
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        return cls(Subwords.fit(texts, size, SPECIALS, key=digest.hexdigest()))

    def __len__(self) -> int:
        return len(self._inner)

    def encode(self, text: str, most: int | None = None) -> list[int]:
        return self._inner.encode(text)[:most]

    def decode(self, tokens: Sequence[int]) -> str:
        return "\n".join(self._inner.decode(line).strip() for line in _split_at_separators(tokens))
