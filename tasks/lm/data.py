"""Windows of tokens for next-token prediction: random ones to train on, fixed ones of held-out documents to score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.contract import Split
from tasks.text import Text, Tokens, windows_of

IGNORE = -100  # the index that torch's cross entropy leaves out
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
    codes, counts = np.unique(stream[:-1].astype(np.int64) * size + stream[1:], return_counts=True)
    before = np.bincount(codes // size, weights=counts, minlength=size)
    wanted = first.astype(np.int64) * size + second
    places = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    found = np.where(codes[places] == wanted, counts[places], 0)
    return (found + text.unigram[second]) / (before[first] + 1.0)
