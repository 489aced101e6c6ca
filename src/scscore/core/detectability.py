"""Can two groups of cells be told apart by a log-likelihood ratio? Rank statistics and what follows from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

Array = NDArray[np.float64]


def separation(positive: Array, negative: Array) -> tuple[float, float]:
    """Area under the ROC curve of a score, and its one-sided p-value under permuted labels (rank-sum test); NaN where a group is empty.

    The p-value is exact for small groups without ties, and by the normal approximation with tie correction otherwise.
    """
    if not len(positive) or not len(negative):
        return np.nan, np.nan
    found = mannwhitneyu(positive, negative, alternative="greater")
    return float(found.statistic) / (len(positive) * len(negative)), float(found.pvalue)


def pairwise_separation(log_likelihood: Array, y: NDArray[np.integer]) -> tuple[Array, Array]:
    """AUROC of the log-ratio of every two classes on the cells of these classes, and its p-value, both ``(n_classes, n_classes)``.

    Parameters
    ----------
    log_likelihood
        Nats, ``(n, n_classes)``.
    y
        Class of every cell; -1 for cells of no class.

    Returns
    -------
    Symmetric; 0.5 and 1 on the diagonal, NaN for classes without a cell.
    """
    n_classes = log_likelihood.shape[1]
    rows = [np.flatnonzero(y == k) for k in range(n_classes)]
    area, p = np.full((n_classes, n_classes), np.nan), np.full((n_classes, n_classes), np.nan)
    for i in range(n_classes):
        if len(rows[i]):
            area[i, i], p[i, i] = 0.5, 1.0
        for j in range(i):
            ratio = log_likelihood[:, i] - log_likelihood[:, j]
            area[i, j], p[i, j] = area[j, i], p[j, i] = separation(ratio[rows[i]], ratio[rows[j]])
    return area, p


def merge_tree(area: Array) -> Array:
    """Average-linkage tree of classes whose distance is how well they are told apart, ``2 AUROC - 1``; a scipy linkage ``(n - 1, 4)``."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(2 * area - 1, 0, None)
    np.fill_diagonal(distance, 0)
    return linkage(squareform(distance, checks=False), method="average")
