"""Windows of tokens for next-token prediction: random ones to train on, fixed ones of held-out documents to score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.contract import Split
from tasks.text import Text, Tokens, windows_of

IGNORE = -100  # the index that torch's cross entropy leaves out
_BLOCK = 1 << 22  # tokens of the training stream that are counted at once: PG-19 has billions
_STREAM = 0x4C4D  # random numbers of this task's training windows


def training_windows(tokens: Tokens, length: int, count: int, seed: int, index: int) -> np.ndarray:
    """Batch ``index`` of a seed: ``count`` random windows of the training stream, int64 ``[count, length + 1]``.

    Raises:
        ValueError: the stream is shorter than a window.
    """
    if len(tokens.stream) <= length:
        raise ValueError(f"length={length} is not allowed: the training text has {len(tokens.stream):,} tokens")
    starts = np.random.default_rng([_STREAM, seed, index]).integers(len(tokens.stream) - length, size=count)
    return tokens.stream[starts[:, None] + np.arange(length + 1)].astype(np.int64)


@dataclass(frozen=True)
class Windows:
    """Held-out windows: inputs and targets int64 ``[N, L]`` (``IGNORE`` where a document is short), units ``[N]``."""

    inputs: np.ndarray
    targets: np.ndarray
    unit_of: np.ndarray
    units: list[str]


def held_out_windows(text: Text, split: Split, length: int, per_document: int) -> Windows:
    """At most ``per_document`` windows of each document, evenly spread and not overlapping; one unit per document.

    A document shorter than one window gives one, filled up with zeros that are not scored; one of fewer than two
    tokens has nothing to predict, and none.
    """
    tokens = text.tokens(split)
    inputs, targets, unit_of = [], [], []
    for unit, content in windows_of(tokens, length, per_document, ahead=1):
        window = content.astype(np.int64)
        if len(window) < 2:
            continue
        short = length + 1 - len(window)
        inputs.append(np.pad(window[:-1], (0, short)))
        targets.append(np.pad(window[1:], (0, short), constant_values=IGNORE))
        unit_of.append(unit)
    kept, places = np.unique(unit_of, return_inverse=True)
    return Windows(np.stack(inputs), np.stack(targets), places, [tokens.names[unit] for unit in kept])


def bigram(text: Text, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``p(b | a) = (n_ab + p(b)) / (n_a + 1)``, p(b) the unigram, over the training stream, for each pair (a, b)."""
    size, stream = text.size, text.tokens("train").stream
    wanted, places = np.unique(first.astype(np.int64) * size + second, return_inverse=True)
    pairs, before = np.zeros(len(wanted), dtype=np.int64), np.zeros(size, dtype=np.int64)
    for start in range(0, len(stream) - 1, _BLOCK):
        block = stream[start : start + _BLOCK + 1].astype(np.int64)
        before += np.bincount(block[:-1], minlength=size)
        codes = block[:-1] * size + block[1:]
        at = np.minimum(np.searchsorted(wanted, codes), len(wanted) - 1)
        pairs += np.bincount(at[wanted[at] == codes], minlength=len(wanted))
    return (pairs[places].reshape(first.shape) + text.unigram[second]) / (before[first] + 1.0)
