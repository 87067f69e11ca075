"""Masked windows of bytes: random ones to train on, fixed ones of held-out chapters under a fixed masking.

Of each window 15 % of the bytes are selected; of these 80 % become ``MASK``, 10 % a random byte, 10 % stay (BERT,
section 3.1). A random byte is drawn from the training frequencies, not evenly from all 256: most bytes never occur in
the text, so an even draw would be told from the text at sight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks import bible
from tasks.contract import Split

MASK = 256
VOCABULARY = 257
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
    """Selects ``max(1, round(0.15 n))`` of the n bytes of each row that are not padding, and corrupts them."""
    order = np.where(padding, np.inf, generator.random(text.shape))
    wanted = np.maximum(1, np.round(SELECTED * (~padding).sum(1)))
    selected = order.argsort(1).argsort(1) < wanted[:, None]
    kind = generator.random(text.shape)
    random = np.searchsorted(np.cumsum(frequencies), generator.random(text.shape)).clip(max=255)
    changed = np.where(kind < MASKED, MASK, np.where(kind < MASKED + RANDOM, random, text))
    return Masked(np.where(selected, changed, text), text, selected, padding)


def training_batch(translation: str, length: int, count: int, seed: int, index: int) -> Masked:
    """Batch ``index`` of a seed: ``count`` random windows of ``length`` training bytes."""
    generator = np.random.default_rng([_STREAM, _SPLITS["train"], seed, index])
    stream = bible.training_bytes(translation)
    starts = generator.integers(len(stream) - length + 1, size=count)
    text = stream[starts[:, None] + np.arange(length)].astype(np.int64)
    return corrupt(text, np.zeros(text.shape, dtype=bool), bible.unigram(translation), generator)


@dataclass(frozen=True)
class Windows:
    """Held-out windows under their fixed masking; ``unit_of`` ``[N]`` points into ``units``."""

    masked: Masked
    unit_of: np.ndarray
    units: list[str]


def held_out_windows(translation: str, split: Split, length: int, per_chapter: int) -> Windows:
    """At most ``per_chapter`` windows of each chapter, evenly spread and not overlapping; one unit per chapter.

    A chapter shorter than one window gives one, padded at its end.
    """
    chapters = bible.chapters(translation, split)
    texts, paddings, unit_of = [], [], []
    for unit, chapter in enumerate(chapters):
        text = np.frombuffer(chapter.text, dtype=np.uint8).astype(np.int64)
        size = len(text)
        text = np.pad(text, (0, max(0, length - size)))
        for i in bible.spread(len(text) // length, per_chapter):
            window = np.arange(i * length, (i + 1) * length)
            texts.append(text[window])
            paddings.append(window >= size)
            unit_of.append(unit)
    generator = np.random.default_rng([_STREAM, _SPLITS[split]])
    masked = corrupt(np.stack(texts), np.stack(paddings), bible.unigram(translation), generator)
    return Windows(masked, np.array(unit_of), [chapter.name for chapter in chapters])


def without_context(inputs: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """The best that can be said of selected bytes ``[N]`` from their own input alone: ``[N, 256]``.

    A ``MASK`` says nothing: the frequencies p. A visible byte b was kept or drawn with equal odds, and both give b with
    probability p(b), so ``P(x | b) = ([x = b] + p(x)) / 2``.
    """
    prediction = np.tile(frequencies, (len(inputs), 1))
    visible = np.flatnonzero(inputs != MASK)
    prediction[visible] *= RANDOM / (1 - MASKED)
    prediction[visible, inputs[visible]] += 1 - RANDOM / (1 - MASKED)
    return prediction
