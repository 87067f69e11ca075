"""Predictors that compare whole pictures of N pixels in [0, 1]: no position is ever related to another one.

Each gives the classes' log probabilities, or scores where it has no probabilities, ``[M, C]``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize

Pictures = Float[np.ndarray, "M N"]
Classes = Int[np.ndarray, " M"]

PENALTY = 1e-3  # of the weights, the best of three powers of ten on the validation part


def majority(known: Classes, count: int, classes: int) -> Float[np.ndarray, "M C"]:
    """The classes' shares in the training part, whatever the picture."""
    shares = np.bincount(known, minlength=classes) / len(known)
    with np.errstate(divide="ignore"):
        return np.broadcast_to(np.log(shares), (count, classes))


def nearest_mean(pictures: Pictures, known: Classes, asked: Pictures, classes: int) -> Float[np.ndarray, "M C"]:
    """Minus the squared distance to the mean picture of each class."""
    means = np.stack([pictures[known == each].mean(0) for each in range(classes)])
    return -_squared_distances(asked, means)


def nearest_neighbour(pictures: Pictures, known: Classes, asked: Pictures, classes: int) -> Float[np.ndarray, "M C"]:
    """Minus the squared distance to the nearest training picture of each class."""
    distances = _squared_distances(asked, pictures)
    return -np.stack([distances[:, known == each].min(1) for each in range(classes)], axis=1)


def logistic(pictures: Pictures, known: Classes, asked: Pictures, classes: int) -> Float[np.ndarray, "M C"]:
    """Multinomial logistic regression: ``log softmax(x W + b)``, W and b from the mean loss + ``PENALTY |W|^2``."""
    width = pictures.shape[1]
    targets = np.eye(classes)[known]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        table = flat.reshape(width + 1, classes)
        logs = _log_softmax(pictures @ table[:-1] + table[-1])
        wrong = (np.exp(logs) - targets) / len(known)
        gradient = np.vstack((pictures.T @ wrong + 2 * PENALTY * table[:-1], wrong.sum(0)))
        return -(logs * targets).sum() / len(known) + PENALTY * (table[:-1] ** 2).sum(), gradient.ravel()

    found = minimize(objective, np.zeros((width + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    table = found.x.reshape(width + 1, classes)
    return _log_softmax(asked @ table[:-1] + table[-1])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
