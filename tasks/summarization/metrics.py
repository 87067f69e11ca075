"""ROUGE of summaries against their references, document by document.

    P = hits / n-grams of the summary,   R = hits / n-grams of the reference,   F = 2 P R / (P + R)

ROUGE-1 and -2 count common words and pairs of words, each as often as both have it; ROUGE-L takes the longest common
subsequence of words for the hits (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, sections 2, 3).
Computed by ``rouge-score``: lower case, letters and digits only, no stemming.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}  # our names, the library's


def library_scorer(names: Sequence[str]) -> Any:
    """A scorer of ``rouge-score``, imported here: it takes over a second, which listing tasks need not wait for.

    The library brings absl's log handler along, on the stderr of that moment. Whoever configures logging later (Hydra,
    for a sweep) closes all handlers, and absl's closes a stream that is no longer ``sys.stderr``, such as a test's; the
    process's own is left alone.
    """
    from absl import logging
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
    return RougeScorer(list(names), use_stemmer=False)


def rouge(summaries: Sequence[str], references: Sequence[str]) -> Mapping[str, np.ndarray]:
    """F in percent per document, [N], by metric; 0 for an empty summary.

    Raises:
        ValueError: the numbers of summaries and references differ.
    """
    scorer = library_scorer(list(ROUGE.values()))
    scores = [scorer.score(reference, summary) for summary, reference in zip(summaries, references, strict=True)]
    return {
        name: np.array([100.0 * score[theirs].fmeasure for score in scores], dtype=np.float64)
        for name, theirs in ROUGE.items()
    }
