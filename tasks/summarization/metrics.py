"""ROUGE of summaries against their references, document by document.

    P = hits / n-grams of the summary,   R = hits / n-grams of the reference,   F = 2 P R / (P + R)

ROUGE-1 and -2 count common words and pairs of words, each as often as both have it; ROUGE-L takes the longest common
subsequence of words for the hits (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, sections 2, 3).
Computed by ``rouge-score``: lower case, letters and digits only, no stemming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}  # our names, the library's


def rouge(summaries: Sequence[str], references: Sequence[str]) -> Mapping[str, np.ndarray]:
    """F in percent per document, [N], by metric; 0 for an empty summary.

    Raises:
        ValueError: the numbers of summaries and references differ.
    """
    # Here, not above: it takes over a second, which listing tasks need not wait for.
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=False)
    scores = [scorer.score(reference, summary) for summary, reference in zip(summaries, references, strict=True)]
    return {
        name: np.array([100.0 * score[theirs].fmeasure for score in scores], dtype=np.float64)
        for name, theirs in ROUGE.items()
    }
