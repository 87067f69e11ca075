"""Search without attention, by the words of a title and of an article.

Words are the encoder's own subwords, of the same cut articles: a floor sees what the encoder sees, but for the order.
Counts and frequencies are of the pool that is searched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

K1, B = 1.2, 0.75  # of BM25, as is usual


def counts(texts: Sequence[Sequence[int]], vocabulary: int) -> csr_array:
    """How often each subword stands in each text, ``[N, V]``."""
    lengths = [len(text) for text in texts]
    words = np.fromiter((word for text in texts for word in text), dtype=np.int64, count=sum(lengths))
    rows = np.repeat(np.arange(len(texts)), lengths)
    return csr_array((np.ones(len(words)), (rows, words)), shape=(len(texts), vocabulary))


def document_frequency(documents: csr_array) -> Float[np.ndarray, " V"]:
    """In how many documents each subword stands."""
    return np.bincount(documents.indices, minlength=documents.shape[1]).astype(float)


def mean_cosine(
    queries: csr_array, documents: csr_array, embeddings: Float[np.ndarray, "V E"]
) -> Float[np.ndarray, "N M"]:
    """Cosine of the texts' mean embeddings; 0 for a text without a word."""
    sums = [texts @ embeddings for texts in (queries, documents)]
    a, b = (found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12) for found in sums)
    return a @ b.T


def tf_idf(queries: csr_array, documents: csr_array) -> Float[np.ndarray, "N M"]:
    """Cosine of ``tf log(M / df)`` (Salton and Buckley, 1988); 0 where nothing is shared."""
    idf = np.log(documents.shape[0] / np.maximum(document_frequency(documents), 1))
    weighted = [texts.multiply(idf[None]).tocsr() for texts in (queries, documents)]
    norms = [np.maximum(np.sqrt(texts.multiply(texts).sum(1)), 1e-12) for texts in weighted]
    return (weighted[0] @ weighted[1].T).toarray() / norms[0][:, None] / norms[1][None]


def bm25(queries: csr_array, documents: csr_array) -> Float[np.ndarray, "N M"]:
    """``sum_w qtf(w) idf(w) tf (K1 + 1) / (tf + K1 (1 - B + B |d| / mean |d|))`` (Robertson and Zaragoza, 2009, 3.4).

    ``idf(w) = log(1 + (M - df + 1/2) / (df + 1/2))``, which is never negative.
    """
    frequency = document_frequency(documents)
    idf = np.log1p((documents.shape[0] - frequency + 0.5) / (frequency + 0.5))
    lengths = documents.sum(1)
    lengths = lengths / max(float(lengths.mean()), 1.0)
    found = documents.copy()
    rows = np.repeat(np.arange(documents.shape[0]), np.diff(documents.indptr))
    tf = documents.data
    found.data = idf[documents.indices] * tf * (K1 + 1) / (tf + K1 * (1 - B + B * lengths[rows]))
    return (queries @ found.T).toarray()
