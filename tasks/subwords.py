"""Subwords by byte-pair encoding over UTF-8 bytes, trained on a task's own text. Knows nothing of tasks or models.

The most frequent pair of neighbouring subwords becomes one, again and again (Sennrich et al., ACL 2016,
arXiv:1508.07909); the first subwords are the 256 bytes, so that no text is unknown (as in GPT-2 and BART). The
vocabularies of those models cannot be had from a package, so that figures per token are not theirs; per byte they can
be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tasks.sources import cache_folder
from tasks.whole_file import write_whole

BYTES = 256
_CACHE_VERSION = 2  # of what is trained; raised when the training changes


class Subwords:
    """A trained tokeniser: specials first, then bytes and merges.

    The work is done by the library ``tokenizers``, imported here only: sizes that read bytes or words do not need it.
    """

    def __init__(self, definition: str) -> None:
        from tokenizers import Tokenizer

        self.definition = definition
        self._inner = Tokenizer.from_str(definition)
        self._inner.encode_special_tokens = True  # a text that spells "<eos>" has to stay text

    @classmethod
    def fit(cls, texts: Iterable[str], size: int, specials: Sequence[str], *, key: str) -> Subwords:
        """At most ``size`` subwords, specials included, from the most frequent pairs of ``texts``.

        Args:
            key: names the content of ``texts``: trained once per key, size and specials, then from the cache.

        Raises:
            ValueError: ``size`` has no room for the specials and the bytes.
        """
        if size < len(specials) + BYTES:
            raise ValueError(f"vocabulary={size} is too small: subwords need at least {len(specials) + BYTES}")
        identity = json.dumps([_CACHE_VERSION, size, list(specials), key])
        path = cache_folder() / "subwords" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
        definition = _read_checked(path)
        if definition is None:
            definition = _train(texts, size, specials)
            _write_checked(path, definition)
        return cls(definition)

    def __len__(self) -> int:
        return self._inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text again, specials left out."""
        return self._inner.decode(list(tokens))

    def byte_lengths(self, specials: int) -> np.ndarray:
        """How many bytes each token stands for, [V] int64; none for the first ``specials``."""
        # Each of the 256 bytes is written as one character of its own in a byte-level vocabulary.
        names = (str(self._inner.id_to_token(token)) for token in range(len(self)))
        return np.array([0 if token < specials else len(name) for token, name in enumerate(names)], dtype=np.int64)


def _train(texts: Iterable[str], size: int, specials: Sequence[str]) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner.to_str()


def _read_checked(path: Path) -> str | None:
    """What :func:`_write_checked` wrote: a digest, a line break, the content. None where it is absent or damaged."""
    if not path.is_file():
        return None
    digest, _, content = path.read_bytes().partition(b"\n")
    return content.decode() if hashlib.sha256(content).hexdigest().encode() == digest else None


def _write_checked(path: Path, definition: str) -> None:
    content = definition.encode()
    write_whole(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
