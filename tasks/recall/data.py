"""Generated recall problems: pairs of a key and a value, then keys whose values are to be named.

A problem has two halves of equal length. The *source* holds the pairs, in random order at random places; the *target*
asks for each key once, likewise. All other places hold a blank. A token is two symbols, one for keys and one for values
(``BLANK`` where it has none), whose embeddings the model adds.

    tokens=one   a pair is one token (key, value)
    tokens=two   a pair is two tokens side by side, (key, blank) then (blank, value): MQAR's form (Arora et al., 2023)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.contract import Split

IGNORE = -100  # the index that torch's cross entropy leaves out
BLANK = 0  # symbols of keys and values are 1 .. vocabulary; an answer is a value's symbol minus one
TOKENS: Mapping[str, int] = {"one": 1, "two": 2}  # tokens of a pair
_STREAM = 0x5243  # random numbers of this task
_SPLITS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Problems:
    """int64 ``[N, T]``, T half the length: symbols of both halves, and answers (``IGNORE`` where none is asked)."""

    source_keys: np.ndarray
    source_values: np.ndarray
    target_keys: np.ndarray
    answers: np.ndarray


def problems(
    split: Split, *, pairs: int, vocabulary: int, half: int, tokens: str, count: int, seed: int, index: int
) -> Problems:
    """Batch ``index`` of a seed. Keys of a problem differ, values are drawn with replacement; all evenly."""
    generator = np.random.default_rng([_STREAM, _SPLITS[split], seed, index])
    rows = np.arange(count)[:, None]

    def chosen(size: int, among: int) -> np.ndarray:
        """``size`` different numbers below ``among`` per row, in random order."""
        return generator.random((count, among)).argsort(1)[:, :size]

    keys = 1 + chosen(pairs, vocabulary)
    values = 1 + generator.integers(vocabulary, size=(count, pairs))
    width = TOKENS[tokens]
    # Places for pairs of two tokens: choose among the places that remain when each pair is shrunk to one, then widen.
    shrunk = chosen(pairs, half - (width - 1) * pairs)
    place = shrunk + (width - 1) * shrunk.argsort(1).argsort(1)
    source_keys, source_values = (np.full((count, half), BLANK) for _ in range(2))
    source_keys[rows, place] = keys
    source_values[rows, place + width - 1] = values
    asked, order = chosen(pairs, half), chosen(pairs, pairs)
    target_keys, answers = np.full((count, half), BLANK), np.full((count, half), IGNORE)
    target_keys[rows, asked] = np.take_along_axis(keys, order, 1)
    answers[rows, asked] = np.take_along_axis(values, order, 1) - 1
    return Problems(source_keys, source_values, target_keys, answers)
