"""ROUGE per document: values worked out by hand, the library's own, and an independent count."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.summarization.metrics import library_scorer, rouge


def test_values_by_hand():
    """Reference the cat sat on the mat, summary the cat on the mat: 5 common words of 5 and 6, 3 common pairs of 4 and
    5 (the cat, on the, the mat), and a common subsequence of 5."""
    scores = rouge(["The cat on the mat."], ["the cat sat on the mat"])
    for name, precision, recall in (("rouge_1", 1, 5 / 6), ("rouge_2", 3 / 4, 3 / 5), ("rouge_l", 1, 5 / 6)):
        assert scores[name] == pytest.approx([200 * precision * recall / (precision + recall)])


def test_order_matters_for_the_subsequence_alone():
    scores = rouge(["police killed the gunman", "the gunman killed police"], ["police killed the gunman"] * 2)
    assert scores["rouge_1"].tolist() == [100, 100]
    assert scores["rouge_2"] == pytest.approx([100, 100 / 3])  # the gunman
    assert scores["rouge_l"] == pytest.approx([100, 50])  # the gunman, of 4 and 4


def test_each_document_has_the_library_s_values():
    summaries = ["", "trump wins", "U.S. senate votes on a bill, again", "a a a a", "title\nand subtitle"]
    references = ["nothing", "Trump loses; Trump wins", "Senate votes again on the bill", "a a", "title and subtitles"]
    scorer = library_scorer(["rouge1", "rouge2", "rougeL"])
    scores = rouge(summaries, references)
    for row, (summary, reference) in enumerate(zip(summaries, references, strict=True)):
        theirs = scorer.score(target=reference, prediction=summary)
        for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            assert scores[name][row] == 100 * theirs[key].fmeasure
    assert scores["rouge_1"][0] == 0


def f_of_ngrams(summary: list[str], reference: list[str], n: int) -> float:
    def grams(tokens: list[str]) -> Counter[tuple[str, ...]]:
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    ours, theirs = grams(summary), grams(reference)
    hits = sum((ours & theirs).values())
    return 0.0 if not hits else 200 * hits / (sum(ours.values()) + sum(theirs.values()))


def longest_common(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


WORDS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_against_an_independent_count(summary, reference):
    scores = rouge([" ".join(summary)], [" ".join(reference)])
    assert scores["rouge_1"][0] == pytest.approx(f_of_ngrams(summary, reference, 1))
    assert scores["rouge_2"][0] == pytest.approx(f_of_ngrams(summary, reference, 2))
    common = longest_common(summary, reference)
    assert scores["rouge_l"][0] == pytest.approx(200 * common / (len(summary) + len(reference)))


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError):
        rouge(["a"], ["a", "b"])
