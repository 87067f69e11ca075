"""Windows of bytes for next-byte prediction: random ones to train on, fixed ones of held-out chapters to score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks import bible
from tasks.contract import Split

IGNORE = -100  # the index that torch's cross entropy leaves out
_STREAM = 0x4C4D  # random numbers of this task's training windows


def training_windows(translation: str, length: int, count: int, seed: int, index: int) -> np.ndarray:
    """Batch ``index`` of a seed: ``count`` random windows of the training bytes, int64 ``[count, length + 1]``."""
    stream = bible.training_bytes(translation)
    starts = np.random.default_rng([_STREAM, seed, index]).integers(len(stream) - length, size=count)
    return stream[starts[:, None] + np.arange(length + 1)].astype(np.int64)


@dataclass(frozen=True)
class Windows:
    """Held-out windows: inputs and targets int64 ``[N, L]`` (``IGNORE`` where a chapter is short), units ``[N]``."""

    inputs: np.ndarray
    targets: np.ndarray
    unit_of: np.ndarray
    units: list[str]


def held_out_windows(translation: str, split: Split, length: int, per_chapter: int) -> Windows:
    """At most ``per_chapter`` windows of each chapter, evenly spread and not overlapping; one unit per chapter.

    A chapter shorter than one window gives one, filled up with zero bytes that are not scored.
    """
    chapters = bible.chapters(translation, split)
    inputs, targets, unit_of = [], [], []
    for unit, chapter in enumerate(chapters):
        text = np.frombuffer(chapter.text, dtype=np.uint8).astype(np.int64)
        short = length + 1 - len(text)
        if short > 0:
            text = np.pad(text, (0, short))
        for i in bible.spread((len(text) - 1) // length, per_chapter):
            window = text[i * length : (i + 1) * length + 1]
            target = window[1:].copy()
            if short > 0:
                target[-short:] = IGNORE
            inputs.append(window[:-1])
            targets.append(target)
            unit_of.append(unit)
    return Windows(np.stack(inputs), np.stack(targets), np.array(unit_of), [chapter.name for chapter in chapters])


def bigram(translation: str) -> np.ndarray:
    """``p(b | a) = (n_ab + p(b)) / (n_a + 1)``, p(b) the unigram, over the training bytes: float64 ``[256, 256]``."""
    stream = bible.training_bytes(translation).astype(np.int64)
    counts = np.bincount(stream[:-1] * 256 + stream[1:], minlength=256 * 256).reshape(256, 256)
    return (counts + bible.unigram(translation)) / (counts.sum(1, keepdims=True) + 1.0)
