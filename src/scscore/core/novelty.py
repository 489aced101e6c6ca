r"""Novelty: whether log p(x) of a cell is what cells of some known class have.

Cells of a class have log-likelihoods around their mean, the negative entropy :math:`-H_c` of the class, and this differs by
tens of nats between tight and diffuse classes. The score is therefore

.. math:: t(x) = \max_c \bigl[\log p(x \mid c) + H_c\bigr],

with :math:`H_c` measured on held-out cells. Cells of low depth are noisier and therefore less likely, whatever their class; a linear
trend of the score with the log count total is taken out. The rank of what remains among the held-out cells is a p-value, uniform for
known cells. No class prior enters: whether a cell is known must not depend on how frequent its class is (derivation page, *Novelty*).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_PSEUDO_CELLS = 10.0


def class_entropies(log_likelihood: ArrayLike, y: ArrayLike) -> Array:
    """Entropy of every class, nats ``(n_classes,)``: minus the mean log-likelihood of its own held-out cells.

    Shrunk to the mean over all cells by ten cells, since a rare class has few.

    Parameters
    ----------
    log_likelihood
        Of the held-out cells, nats, ``(n, n_classes)``.
    y
        Class indices, ``(n,)``.
    """
    values, y = np.asarray(log_likelihood, dtype=np.float64), np.asarray(y)
    own = values[np.arange(len(y)), y]
    sums = np.bincount(y, weights=own, minlength=values.shape[1])
    return -(sums + _PSEUDO_CELLS * own.mean()) / (np.bincount(y, minlength=values.shape[1]) + _PSEUDO_CELLS)


def typicality_score(log_likelihood: ArrayLike, entropies: ArrayLike) -> Array:
    """Log-likelihood of the best class relative to what its cells have, nats, ``(n,)``; low is novel."""
    return (np.asarray(log_likelihood, dtype=np.float64) + np.asarray(entropies)).max(axis=1)


def depth_trend(score: ArrayLike, log_depth: ArrayLike) -> Callable[[ArrayLike], Array]:
    """The part of a score that the depth of a cell explains, from held-out cells, by least squares.

    Parameters
    ----------
    score, log_depth
        Of the held-out cells, ``(n,)``.

    Returns
    -------
    Function of the log depth of new cells. Beyond the depths of the held-out cells the trend is flat.
    """
    score, depth = np.asarray(score, dtype=np.float64), np.asarray(log_depth, dtype=np.float64)
    middle, variance = depth.mean(), depth.var()
    slope = 0.0 if variance == 0 else ((depth - middle) * score).mean() / variance
    low, high = depth.min(), depth.max()
    return lambda new: slope * (np.clip(np.asarray(new, dtype=np.float64), low, high) - middle)


def p_value(score: ArrayLike, held_out: ArrayLike) -> Array:
    """Share of held-out scores that are at most as high, ``(n,)``; a held-out set of n cells gives at least ``1 / (n + 1)``."""
    reference = np.sort(np.asarray(held_out, dtype=np.float64))
    return (1 + np.searchsorted(reference, score, side="right")) / (len(reference) + 1)
