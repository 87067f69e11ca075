"""Trivial predictors as likelihoods of the reference: the unigram distribution, and its mixture with an article's lead.

    p(w) = (1 - c) u(w) + c n_lead(w) / sum_v n_lead(v)

with u the share of each token in the training targets and n_lead the counts of the article's first sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.summarization.data import Article, lead
from tasks.summarization.tokens import BEGIN, PAD, Tokeniser


def unigram(target: np.ndarray, known: int, size: int, smoothing: float = 1.0) -> np.ndarray:
    """Probability of each token in ``target``, padding left out: ``(n_w + s) / sum_v (n_v + s)``, [size].

    Zero for what is never to be predicted: padding, the beginning, and numbers from ``known`` on.
    """
    counts = np.bincount(target[target != PAD], minlength=size) + smoothing
    counts[[PAD, BEGIN]] = 0.0
    counts[known:] = 0.0
    return counts / counts.sum()


def lead_probability(
    articles: Sequence[Article], tokeniser: Tokeniser, target: np.ndarray, sentences: int, source_length: int
) -> np.ndarray:
    """Share of each target token [N, Lt] among those of the article's first sentences, as far as the source goes."""
    shares = np.zeros(target.shape)
    for row, article in enumerate(articles):
        tokens = tokeniser.encode(lead(article.text, sentences), source_length)
        shares[row] = np.bincount(tokens, minlength=len(tokeniser))[target[row]] / len(tokens)
    return shares


def mean_negative_log(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean of ``-log p`` over the tokens of each document, [N], from the probabilities of its target tokens [N, Lt]."""
    present = target != PAD
    return -np.log(np.where(present, probability, 1.0)).sum(axis=1) / present.sum(axis=1)


def fit_lead_weight(base: np.ndarray, share: np.ndarray, target: np.ndarray) -> float:
    """The weight c of a grid that makes ``(1 - c) base + c share`` most likely, over the tokens of all documents."""
    tokens = (target != PAD).sum(axis=1)

    def loss(weight: float) -> float:
        return float(np.average(mean_negative_log((1 - weight) * base + weight * share, target), weights=tokens))

    return min(np.linspace(0.0, 0.98, 50).tolist(), key=loss)
