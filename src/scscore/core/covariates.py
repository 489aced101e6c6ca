r"""Batches, donors and other covariates: how much each shifts the cells, whatever their class.

Cells of class c and covariate level b are at :math:`x = m_c + \delta_b + \ldots`: the model is one of :math:`x - \delta_b`, so
:math:`p(x \mid c, b) = p(x - \delta_b \mid c)`. Where the level of a new cell is not known, it is summed over,
:math:`p(x \mid c) = \sum_b \pi_b\, p(x \mid c, b)` (derivation page, *Covariates*).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALL_CELLS = "all cells"
"""Name of the level where there are no columns."""
_SEPARATOR = " | "
_PSEUDO_CELLS = 10.0
_ITERATIONS = 50


@dataclass(frozen=True)
class CovariateShift:
    """Shifts of the levels of some covariates.

    Attributes
    ----------
    columns
        Columns of ``obs`` whose combinations are the levels. Without any, all cells are of one level.
    levels
        Names of the levels, ``(n_levels,)``: the values of the columns, joined.
    shifts
        In the space of the representation, ``(n_levels, n_features)``; those of training cells, weighted by the frequencies, sum to zero.
    frequencies
        Share of the cells of every level, ``(n_levels,)``.
    """

    columns: tuple[str, ...]
    levels: tuple[str, ...]
    shifts: Array
    frequencies: Array

    def codes(self, obs: pd.DataFrame) -> NDArray[np.int64]:
        """Level of every cell, ``(n,)``; -1 where a column is missing or the level is new."""
        if not set(self.columns) <= set(obs.columns):
            return np.full(len(obs), -1)
        return pd.Index(self.levels).get_indexer(level_names(obs, self.columns))


def level_names(obs: pd.DataFrame, columns: tuple[str, ...]) -> pd.Series:
    """Values of the columns of every cell, joined to one name; NaN where one is missing."""
    if not columns:
        return pd.Series(ALL_CELLS, index=obs.index)
    parts = obs[list(columns)].apply(_whole)
    names = parts.astype(str).agg(_SEPARATOR.join, axis=1)
    return names.where(parts.notna().all(axis=1))


def _whole(column: pd.Series) -> pd.Series:
    """Whole numbers that became floating-point ones, because a value is missing, as whole numbers again."""
    if column.dtype.kind == "f" and (column.dropna() % 1 == 0).all():
        return column.astype("Int64")
    return column


def fit_shifts(x: Array, y: NDArray[np.integer], codes: NDArray[np.integer], *, n_levels: int) -> Array:
    """Shift of every level by least squares on classes and levels, shrunk to zero by ten cells, ``(n_levels, n_features)``.

    Parameters
    ----------
    x
        Representation, ``(n, n_features)``.
    y
        Class indices, ``(n,)``.
    codes
        Levels, ``(n,)``.
    n_levels
        Number of levels; one that no cell has is not shifted.
    """
    members, batches = (np.eye(n)[v] for n, v in ((int(y.max()) + 1, y), (n_levels, codes)))
    n_class, n_level = members.sum(0), batches.sum(0)
    both = members.T @ batches
    of_class, of_level = members.T @ x, batches.T @ x
    shifts = np.zeros((n_levels, x.shape[1]))
    for _ in range(_ITERATIONS):
        means = (of_class - both @ shifts) / np.maximum(n_class, 1)[:, None]
        shifts = (of_level - both.T @ means) / (n_level + _PSEUDO_CELLS)[:, None]
        shifts -= n_level @ shifts / n_level.sum()
    return np.where(n_level[:, None] > 0, shifts, 0.0)


def remove(x: Array, shifts: Array, codes: NDArray[np.integer]) -> Array:
    """Points without the shift of their level; those of unknown level (-1) stay."""
    return x - np.where(codes[:, None] >= 0, shifts[codes], 0.0)
