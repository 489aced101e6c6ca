r"""Batches, donors, doses and other covariates: how much each shifts the cells, whatever their class.

Cells of class c, covariate level b and numbers t are at :math:`x = m_c + \delta_b + B^\top (t - \bar t) + \ldots`: the model is one of x without
the shift :math:`s = \delta_b + B^\top (t - \bar t)`, so :math:`p(x \mid c, s) = p(x - s \mid c)`. Where the shift of a new cell is not known, those of
the training cells are summed over, :math:`p(x \mid c) = \sum_s \pi_s\, p(x - s \mid c)` (derivation page, *Covariates*).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALL_CELLS = "all cells"
"""Name of the level where there are no columns."""
_SEPARATOR = " | "
_PSEUDO_CELLS = 10.0
_ROUNDING = 1e-9  # of the largest number: what varies less is constant
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


class Alternatives(NamedTuple):
    """What the shift of some cells may be beyond what is known of it.

    Attributes
    ----------
    cells
        Which cells these are, bool ``(n,)``.
    log_weights
        Of every alternative, ``(n_alternatives,)``.
    shifts
        One by one, each of all cells, ``(n, n_features)``.
    """

    cells: NDArray[np.bool_]
    log_weights: Array
    shifts: Iterator[Array]


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
    typical
        Mean numbers in every fifth of the cells of a level, ``(n_levels, n_fifths, n_numeric)``.
    """

    columns: tuple[str, ...]
    levels: tuple[str, ...]
    shifts: Array
    frequencies: Array
    numeric: tuple[str, ...] = ()
    centers: Array | None = None
    slopes: Array | None = None
    typical: Array | None = None

    @property
    def names(self) -> list[str]:
        """All columns."""
        return [*self.columns, *self.numeric]

    def of_features(self, n_features: int) -> Self:
        """The same of so many leading features of the representation."""
        slopes = None if self.slopes is None else self.slopes[:, :n_features]
        return replace(self, shifts=self.shifts[:, :n_features], slopes=slopes)

    def of_cells(self, obs: pd.DataFrame) -> CellCovariates:
        """Covariates of cells; unknown where a column is missing, the level is new or a number is missing."""
        codes = np.full(len(obs), -1)
        if set(self.columns) <= set(obs.columns):
            codes = pd.Index(self.levels).get_indexer(level_names(obs, self.columns))
        return CellCovariates(codes, numbers_of(obs, self.numeric))

    def of(self, cells: CellCovariates) -> Array:
        """What is known of the shift of every cell, ``(n, n_features)``: an unknown level has none, an unknown number is the mean."""
        of_level = np.where(cells.codes[:, None] >= 0, self.shifts[cells.codes], 0.0)
        return of_level + self._by_numbers(cells.numbers)

    def alternatives(self, cells: CellCovariates) -> list[Alternatives]:
        """What the shifts of cells of which something is unknown may be beyond :meth:`of`: those of the training cells with the same known part.

        An unknown level may be any, an unknown number that of any fifth of the cells of the level.
        """
        if not cells.unknown.any():
            return []
        no_level, no_number = cells.codes < 0, np.isnan(cells.numbers).any(1)
        known = self.of(cells)
        n_fifths = 1 if self.typical is None else self.typical.shape[1]
        log_frequencies = np.log(self.frequencies)
        found = []
        for of_level, of_number in ((True, False), (False, True), (True, True)):
            members = (no_level == of_level) & (no_number == of_number)
            if not members.any():
                continue
            levels: Sequence[int | None] = range(len(self.levels)) if of_level else [None]
            parts: Sequence[int | None] = range(n_fifths) if of_number else [None]
            weights = np.repeat(log_frequencies if of_level else 0.0, len(parts)) - np.log(len(parts))
            filled = [(level, part) for level in levels for part in parts]
            found.append(Alternatives(members, weights, (self.of(self._filled(cells, *one)) - known for one in filled)))
        return found

    def _filled(self, cells: CellCovariates, level: int | None, fifth: int | None) -> CellCovariates:
        """Cells with another level, and with typical numbers where they have none."""
        codes, numbers = cells.codes if level is None else np.full_like(cells.codes, level), cells.numbers
        if fifth is not None and self.typical is not None:
            numbers = np.where(np.isnan(numbers), self.typical[codes, fifth], numbers)
        return CellCovariates(codes, numbers)

    def _by_numbers(self, numbers: Array) -> Array:
        """The part of the numeric covariates ``(n, n_numeric)`` in the shifts, ``(n, n_features)``."""
        if self.slopes is None or self.centers is None:
            return np.zeros((len(numbers), self.shifts.shape[1]))
        return np.nan_to_num(numbers - self.centers) @ self.slopes


def numbers_of(obs: pd.DataFrame, columns: tuple[str, ...]) -> Array:
    """Values of numeric columns, ``(n, n_columns)``; NaN where there is none.

    Raises
    ------
    ValueError
        A column that holds no numbers, or infinite ones.
    """
    found = np.full((len(obs), len(columns)), np.nan)
    for i, name in enumerate(columns):
        if name not in obs:
            continue
        try:
            if pd.api.types.is_datetime64_any_dtype(obs[name]):
                raise TypeError("these are dates")
            found[:, i] = pd.to_numeric(obs[name]).to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"obs[{name!r}] must hold numbers, as the covariate of the model does: {error}."
            ) from error
        if np.isinf(found[:, i]).any():
            raise ValueError(f"obs[{name!r}], a covariate of the model, holds infinite values; remove or replace them.")
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
    x: Array, design: Array, obs: pd.DataFrame, columns: tuple[str, ...], numeric: tuple[str, ...] = ()
) -> tuple[CovariateShift, CellCovariates]:
    """Shifts by covariates of labelled cells, and the covariates of these cells.

    Parameters
    ----------
    x
        Representation, ``(n, n_features)``.
    design
        What moves cells beside the covariates, ``(n, n_columns)``: members of the classes, or hat functions of a continuous target.
    obs
        Annotation of the cells, no value of the columns missing.
    columns, numeric
        Columns with levels, and with numbers.
    """
    levels, codes = np.unique(level_names(obs, columns).to_numpy(dtype=str), return_inverse=True)
    cells = CellCovariates(codes, numbers_of(obs, numeric))
    shifts, slopes = fit_shifts(x, design, cells, n_levels=len(levels))
    named, frequencies = tuple(levels.tolist()), np.bincount(codes) / len(codes)
    if not numeric:
        return CovariateShift(columns, named, shifts, frequencies), cells
    typical = np.stack([fifths(cells.numbers[codes == k], slopes) for k in range(len(levels))])
    return CovariateShift(columns, named, shifts, frequencies, numeric, cells.numbers.mean(0), slopes, typical), cells


def fit_shifts(x: Array, design: Array, cells: CellCovariates, *, n_levels: int) -> tuple[Array, Array]:
    """Shift of every level, and by the numbers, by least squares together with the design, shrunk to zero by ten cells.

    Parameters
    ----------
    x
        Representation, ``(n, n_features)``.
    design
        As in :func:`fit_covariates`; what it explains is not shrunk.
    cells
        Their covariates.
    n_levels
        Number of levels; one that no cell has is not shifted.

    Returns
    -------
    Shifts ``(n_levels, n_features)`` and slopes per unit ``(n_numeric, n_features)``.
    """
    batches = np.eye(n_levels)[cells.codes]
    n_level = batches.sum(0)
    spread = cells.numbers.std(0)
    constant = spread <= _ROUNDING * np.abs(cells.numbers).max(0, initial=0)
    scale = np.where(constant, 1.0, spread)
    numbers = np.where(constant, 0.0, (cells.numbers - cells.numbers.mean(0)) / scale)
    covariates = np.concatenate([batches, numbers], axis=1)
    n_covariates = covariates.shape[1]
    everything = np.concatenate([covariates, x], axis=1)
    projection = np.linalg.lstsq(design.T @ design, design.T @ everything, rcond=None)[0]
    rest = covariates.T @ everything - (design.T @ covariates).T @ projection  # products of what the design leaves
    system = np.zeros((n_covariates + 1, n_covariates + 1))
    system[:-1, :-1] = rest[:, :n_covariates] + _PSEUDO_CELLS * np.eye(n_covariates)
    system[-1, :n_levels] = system[:n_levels, -1] = n_level  # the shifts of all cells sum to zero
    found = np.linalg.solve(system, np.concatenate([rest[:, n_covariates:], np.zeros((1, x.shape[1]))]))
    shifts, slopes = found[:n_levels], found[n_levels:-1]
    return np.where(n_level[:, None] > 0, shifts, 0.0), slopes / scale[:, None]


def fifths(numbers: Array, slopes: Array) -> Array:
    """Mean in each fifth of some numbers ``(n, n_numeric)``, in the order along the longest axis of their shifts, ``(5, n_numeric)``."""
    covariance = np.atleast_2d(np.cov(numbers.T, bias=True))
    axis = np.linalg.eigh(slopes.T @ covariance @ slopes)[1][:, -1]
    order = np.argsort(numbers @ slopes @ axis, kind="stable")
    parts = np.linspace(0, len(order), _N_PARTS + 1).astype(int)
    return np.stack([numbers[order[a : max(b, a + 1)]].mean(0) for a, b in pairwise(parts)])
