"""Permutation test: does a value differ between the cells of a class and the others, by more than labels at random would have it?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 250
_ROUNDING = 1e-5
_ENOUGH = 20


def permutation_p_values(
    values: NDArray[np.floating], members: NDArray[np.bool_], *, n_permutations: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """One-sided p-value of every column: its mean over the members is higher than over as many rows drawn at random.

    Under the null hypothesis labels are exchangeable, and ``(1 + number of draws that reach the observed mean) / (1 + number of draws)`` is a valid
    p-value for any distribution. Columns that were reached twenty times get no more draws: their p-values are known well enough, and
    small ones get all that there are (Besag and Clifford 1991).

    Parameters
    ----------
    values
        ``(n, n_columns)``.
    members
        Rows of the class, ``(n,)``.
    n_permutations
        Number of draws at most.
    rng
        Source of the draws.

    Returns
    -------
    ``(n_columns,)``; at least ``1 / (1 + n_permutations)``.
    """
    values = values - values.mean(0)  # a constant column then has a sum of zero, whatever the draw
    observed = members.astype(values.dtype) @ values
    tolerance = _ROUNDING * np.abs(values).sum(0)  # rare genes have many ties, which rounding must not break
    reached, drawn, open_ = np.zeros(values.shape[1]), np.zeros(values.shape[1]), np.arange(values.shape[1])
    for start in range(0, n_permutations, _BLOCK):
        n = min(_BLOCK, n_permutations - start)
        order = np.argsort(rng.random((n, len(members))), axis=1)
        sums = members[order].astype(values.dtype) @ values
        reached[open_] += (sums >= (observed - tolerance)[open_]).sum(0)
        drawn[open_] += n
        going = reached[open_] < _ENOUGH
        open_, values = open_[going], values[:, going]
        if not len(open_):
            break
    return (1 + reached) / (1 + drawn)


def benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """False discovery rate at which every test would be called, Benjamini and Hochberg 1995; ``(n,)``, NaN stays."""
    found = np.full(len(p), np.nan)
    rows = np.flatnonzero(np.isfinite(p))
    if len(rows):
        from scipy.stats import false_discovery_control

        found[rows] = false_discovery_control(p[rows])
    return found
