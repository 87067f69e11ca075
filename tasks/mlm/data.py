"""Masked windows of tokens: random ones to train on, fixed ones of held-out documents under a fixed masking.

Of each window 15 % of the tokens are selected; of these 80 % become the mask, 10 % a random token, 10 % stay (BERT,
section 3.1). A random token is drawn from the training frequencies, not evenly from all: most bytes never occur in
the text, so an even draw would be told from the text at sight. The mask is the number after the last token, V.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.contract import Split
from tasks.text import Text, windows_of

SELECTED, MASKED, RANDOM = 0.15, 0.8, 0.1
_STREAM = 0x4D4C  # random numbers of this task
_SPLITS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Masked:
    """Corrupted ``inputs``, original ``targets``: int64 ``[N, L]``; ``selected``, ``padding``: bool ``[N, L]``."""

    inputs: np.ndarray
    targets: np.ndarray
    selected: np.ndarray
    padding: np.ndarray


def corrupt(text: np.ndarray, padding: np.ndarray, frequencies: np.ndarray, generator: np.random.Generator) -> Masked:
    """Selects ``max(1, round(0.15 n))`` of the n tokens of each row that are not padding, and corrupts them.

    Args:
        frequencies: float64 ``[V]`` of the tokens 0 .. V - 1; the mask is V.
    """
    order = np.where(padding, np.inf, generator.random(text.shape))
    wanted = np.maximum(1, np.round(SELECTED * (~padding).sum(1)))
    selected = order.argsort(1).argsort(1) < wanted[:, None]
    kind = generator.random(text.shape)
    last = len(frequencies) - 1
    random = np.searchsorted(np.cumsum(frequencies), generator.random(text.shape)).clip(max=last)
    changed = np.where(kind < MASKED, last + 1, np.where(kind < MASKED + RANDOM, random, text))
    return Masked(np.where(selected, changed, text), text, selected, padding)


def training_batch(text: Text, length: int, count: int, seed: int, index: int) -> Masked:
    """Batch ``index`` of a seed: ``count`` random windows of ``length`` training tokens.

    Raises:
        ValueError: the training stream is shorter than a window.
    """
    generator = np.random.default_rng([_STREAM, _SPLITS["train"], seed, index])
    stream = text.tokens("train").stream
    if len(stream) < length:
        raise ValueError(f"length={length} is not allowed: the training text has {len(stream):,} tokens")
    starts = generator.integers(len(stream) - length + 1, size=count)
    window = stream[starts[:, None] + np.arange(length)].astype(np.int64)
    return corrupt(window, np.zeros(window.shape, dtype=bool), text.unigram, generator)


@dataclass(frozen=True)
class Windows:
    """Held-out windows under their fixed masking; ``unit_of`` ``[N]`` points into ``units``."""

    masked: Masked
    unit_of: np.ndarray
    units: list[str]


def held_out_windows(text: Text, split: Split, length: int, per_document: int) -> Windows:
    """At most ``per_document`` windows of each document, evenly spread and not overlapping; one unit per document.

    A document shorter than one window gives one, padded at its end.
    """
    tokens = text.tokens(split)
    contents, sizes, unit_of = [], [], []
    for unit, content in windows_of(tokens, length, per_document):
        contents.append(np.pad(content.astype(np.int64), (0, length - len(content))))
        sizes.append(len(content))
        unit_of.append(unit)
    padding = np.arange(length) >= np.array(sizes)[:, None]
    generator = np.random.default_rng([_STREAM, _SPLITS[split]])
    return Windows(corrupt(np.stack(contents), padding, text.unigram, generator), np.array(unit_of), tokens.names)


def without_context(inputs: np.ndarray, targets: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """What the best prediction from a selected token's own input alone gives its target: probabilities ``[N]``.

    A mask says nothing: the frequencies p. A visible token b was kept or drawn with equal odds, and both give b with
    probability p(b), so ``P(x | b) = ([x = b] + p(x)) / 2``.
    """
    drawn = RANDOM / (1 - MASKED)
    visible = inputs < len(frequencies)
    return np.where(visible, (1 - drawn) * (inputs == targets) + drawn * frequencies[targets], frequencies[targets])
