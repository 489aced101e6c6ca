r"""Batches, donors, doses and other covariates: how much each shifts the cells, whatever their class.

Cells of class c, covariate level b and numbers t are at :math:`x = m_c + \delta_b + B^\top (t - \bar t) + \ldots`: the model is one of x without
the shift :math:`s = \delta_b + B^\top (t - \bar t)`, so :math:`p(x \mid c, s) = p(x - s \mid c)`. Where the shift of a new cell is not known, those of
the training cells are summed over, :math:`p(x \mid c) = \sum_s \pi_s\, p(x - s \mid c)` (derivation page, *Covariates*).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALL_CELLS = "all cells"
"""Name of the level where there are no columns."""
_SEPARATOR = " | "
_PSEUDO_CELLS = 10.0
_ITERATIONS = 200
_N_PARTS = 5  # of the cells of a level, by their numbers


class CellCovariates(NamedTuple):
    """The covariates of some cells.

    Attributes
    ----------
    codes
        Level, ``(n,)``; -1 where it is unknown.
    numbers
        Values of the numeric covariates, ``(n, n_numeric)``; NaN where unknown.
    """

    codes: NDArray[np.int64]
    numbers: Array

    def rows(self, rows: slice | NDArray[np.integer] | NDArray[np.bool_]) -> CellCovariates:
        """Those of a part of the cells."""
        return CellCovariates(self.codes[rows], self.numbers[rows])

    @property
    def unknown(self) -> NDArray[np.bool_]:
        """Cells of which something is not known, ``(n,)``."""
        return (self.codes < 0) | np.isnan(self.numbers).any(1)


@dataclass(frozen=True)
class CovariateShift:
    """Shifts of the levels of some covariates, and by numeric ones.

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
    numeric
        Columns of ``obs`` with numbers.
    centers
        Their means, ``(n_numeric,)``.
    slopes
        Shift per unit of each, ``(n_numeric, n_features)``.
    spread
        Mean shifts by the numbers in each fifth of the cells of a level, ``(n_levels, n_fifths, n_features)``.
    """

    columns: tuple[str, ...]
    levels: tuple[str, ...]
    shifts: Array
    frequencies: Array
    numeric: tuple[str, ...] = ()
    centers: Array | None = None
    slopes: Array | None = None
    spread: Array | None = None

    @property
    def names(self) -> list[str]:
        """All columns."""
        return [*self.columns, *self.numeric]

    def of_cells(self, obs: pd.DataFrame) -> CellCovariates:
        """Covariates of cells; unknown where a column is missing, the level is new or a number is missing."""
        codes = np.full(len(obs), -1)
        if set(self.columns) <= set(obs.columns):
            codes = pd.Index(self.levels).get_indexer(level_names(obs, self.columns))
        return CellCovariates(codes, numbers_of(obs, self.numeric))

    def of(self, cells: CellCovariates) -> Array:
        """Shift of every cell, ``(n, n_features)``; none where it is not known."""
        found = self.shifts[cells.codes] + self.by_numbers(cells.numbers)
        return np.where(cells.unknown[:, None], 0.0, found)

    def by_numbers(self, numbers: Array) -> Array:
        """The part of the numeric covariates ``(n, n_numeric)`` in the shifts, ``(n, n_features)``."""
        if self.slopes is None or self.centers is None:
            return np.zeros((len(numbers), self.shifts.shape[1]))
        return (numbers - self.centers) @ self.slopes

    def possible(self) -> tuple[Array, Array]:
        """Shifts that stand for those of the training cells ``(n, n_features)``, and their frequencies ``(n,)``."""
        if self.spread is None:
            return self.shifts, self.frequencies
        n_parts = self.spread.shape[1]
        shifts = (self.shifts[:, None] + self.spread).reshape(-1, self.shifts.shape[1])
        return shifts, np.repeat(self.frequencies / n_parts, n_parts)


def numbers_of(obs: pd.DataFrame, columns: tuple[str, ...]) -> Array:
    """Values of numeric columns, ``(n, n_columns)``; NaN where there is none."""
    found = np.full((len(obs), len(columns)), np.nan)
    for i, name in enumerate(columns):
        if name in obs:
            try:
                found[:, i] = pd.to_numeric(obs[name]).to_numpy(dtype=np.float64, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"obs[{name!r}] must hold numbers, as the covariate of the model does: {error}."
                ) from error
    return found


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


def fit_covariates(
    x: Array, y: NDArray[np.integer], obs: pd.DataFrame, columns: tuple[str, ...], numeric: tuple[str, ...] = ()
) -> tuple[CovariateShift, CellCovariates]:
    """Shifts by covariates of labelled cells, and the covariates of these cells.

    Parameters
    ----------
    x
        Representation, ``(n, n_features)``.
    y
        Class indices, ``(n,)``.
    obs
        Annotation of the cells, no value of the columns missing.
    columns, numeric
        Columns with levels, and with numbers.
    """
    levels, codes = np.unique(level_names(obs, columns).to_numpy(dtype=str), return_inverse=True)
    cells = CellCovariates(codes, numbers_of(obs, numeric))
    shifts, slopes = fit_shifts(x, y, cells, n_levels=len(levels))
    named, frequencies = tuple(levels.tolist()), np.bincount(codes) / len(codes)
    if not numeric:
        return CovariateShift(columns, named, shifts, frequencies), cells
    found = CovariateShift(columns, named, shifts, frequencies, numeric, cells.numbers.mean(0), slopes)
    spread = np.stack([fifths(found.by_numbers(cells.numbers[codes == k])) for k in range(len(levels))])
    return replace(found, spread=spread), cells


def fit_shifts(x: Array, y: NDArray[np.integer], cells: CellCovariates, *, n_levels: int) -> tuple[Array, Array]:
    """Shift of every level, and by the numbers, by least squares on classes, levels and numbers, shrunk to zero by ten cells.

    Parameters
    ----------
    x
        Representation, ``(n, n_features)``.
    y
        Class indices, ``(n,)``.
    cells
        Their covariates.
    n_levels
        Number of levels; one that no cell has is not shifted.

    Returns
    -------
    Shifts ``(n_levels, n_features)`` and slopes per unit ``(n_numeric, n_features)``.
    """
    members, batches = (np.eye(n)[v] for n, v in ((int(y.max()) + 1, y), (n_levels, cells.codes)))
    spread = np.maximum(cells.numbers.std(0), 1e-300)
    numbers = (cells.numbers - cells.numbers.mean(0)) / spread
    n_class, n_level = members.sum(0), batches.sum(0)
    gram = numbers.T @ numbers + _PSEUDO_CELLS * np.eye(numbers.shape[1])
    both, of_numbers, level_numbers = members.T @ batches, members.T @ numbers, batches.T @ numbers
    class_x, level_x, number_x = members.T @ x, batches.T @ x, numbers.T @ x
    shifts, slopes = np.zeros((n_levels, x.shape[1])), np.zeros((numbers.shape[1], x.shape[1]))
    for _ in range(_ITERATIONS):
        means = (class_x - both @ shifts - of_numbers @ slopes) / np.maximum(n_class, 1)[:, None]
        shifts = (level_x - both.T @ means - level_numbers @ slopes) / (n_level + _PSEUDO_CELLS)[:, None]
        shifts -= n_level @ shifts / n_level.sum()
        slopes = np.linalg.solve(gram, number_x - of_numbers.T @ means - level_numbers.T @ shifts)
    return np.where(n_level[:, None] > 0, shifts, 0.0), slopes / spread[:, None]


def fifths(shifts: Array) -> Array:
    """Mean in each fifth of shifts ``(n, n_features)``, in the order along their longest axis, ``(5, n_features)``."""
    centered = shifts - shifts.mean(0)
    axis = np.linalg.svd(centered, full_matrices=False)[2][0]
    order = np.argsort(centered @ axis, kind="stable")
    parts = np.linspace(0, len(order), _N_PARTS + 1).astype(int)
    return np.stack([shifts[order[a : max(b, a + 1)]].mean(0) for a, b in pairwise(parts)])
