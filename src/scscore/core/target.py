r"""Continuous targets: ordered bins as conditions, and the predictive distribution that a posterior over bins stands for.

Bins are narrow where values are frequent: the position :math:`u` of a value on the grid, in bins, is half its rank and half its place
between the extremes. On this scale a value is spread over the bins by a Gaussian of standard deviation :math:`s`,

.. math:: p_k(u) \propto \Phi\Bigl(\frac{k+1-u}{s}\Bigr) - \Phi\Bigl(\frac{k-u}{s}\Bigr),

(HL-Gauss, Imani and White 2018), so that neighbouring bins learn from each other. A posterior fitted to such labels is too wide by
:math:`s^2 + 1/12` in variance; the predictive distribution is contracted around its mean by as much (derivation page, *Continuous
targets*).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.special import ndtr, xlogy

Array = NDArray[np.float64]

SMOOTHING = 0.75
"""Standard deviation of the soft labels, in bins."""
_PADDING = 4.5 * SMOOTHING  # bins beyond the extreme values: fewer would move the soft labels there
_N_BINS, _N_NODES = 64, 16
_LEAST_SD = 0.1  # of a bin
_TAIL = 1e-3  # weight of a broad normal distribution: values outside the bins are not impossible
_FINE = 1024
_PARTS = 4  # of a bin, for entropies
_SHARED = 2.0  # cells per value
_FLAT = 0.05  # share of the frequencies that is the same for all bins


@dataclass(frozen=True)
class TargetGrid:
    """Bins of a continuous target, and the nodes at which its log-likelihood is estimated.

    Attributes
    ----------
    edges
        Edges of the bins, in units of the target, increasing; of a circular target, evenly spaced over one period.
    mean, sd
        Of the training values (of a circular target: circular mean, and the standard deviation around it).
    circular
        Whether the last edge is the same as the first.
    """

    edges: tuple[float, ...]
    mean: float
    sd: float
    circular: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(self.edges))  # JSON has lists

    @classmethod
    def of(cls, y: ArrayLike, *, period: float | None = None, n_bins: int = _N_BINS) -> TargetGrid:
        """The grid for some training values.

        Parameters
        ----------
        y
            Values, ``(n,)``.
        period
            Of a circular target.
        n_bins
            Number of bins.
        """
        y = np.asarray(y, dtype=np.float64)
        if period is not None:
            low = -period / 2 if y.min() < 0 else 0.0
            edges = low + period * np.arange(n_bins + 1) / n_bins
            middle = float(mean_of(y, period))
            sd = float(np.sqrt(np.mean(difference(y, middle, period) ** 2)))
            return cls(tuple(edges.tolist()), low + float(np.mod(middle - low, period)), sd, circular=True)
        quantiles = np.quantile(y, np.linspace(0, 1, _FINE + 1))
        fine = np.unique(np.concatenate([np.linspace(y.min(), y.max(), _FINE + 1), quantiles]))
        spread = min(y.std(), np.subtract(*np.quantile(y, (0.75, 0.25))) / 1.349 or y.std())
        rank = np.searchsorted(np.sort(y), fine, side="right") / len(y)
        if (bandwidth := _bandwidth(y, spread)) > 0:
            rank = ndtr((fine[:, None] - quantiles) / bandwidth).mean(1)
        rank, even = ((x - x[0]) / (x[-1] - x[0]) for x in (rank, fine))
        position = _PADDING + (n_bins - 2 * _PADDING) * (0.5 * rank + 0.5 * even)
        edges = np.interp(np.arange(n_bins + 1), position, fine)
        for beyond, step, width in (
            (np.arange(n_bins + 1) < position[0], -1, edges[5] - edges[4]),
            (np.arange(n_bins + 1) > position[-1], 1, edges[-5] - edges[-6]),
        ):
            start = fine[0] if step < 0 else fine[-1]
            distance = np.abs(np.flatnonzero(beyond) - (position[0] if step < 0 else position[-1]))
            edges[beyond] = start + step * width * distance
        return cls(tuple(edges.tolist()), float(y.mean()), float(y.std()))

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return len(self.edges) - 1

    @cached_property
    def centers(self) -> Array:
        """Centres of the bins, ``(n_bins,)``."""
        edges = np.asarray(self.edges)
        return 0.5 * (edges[1:] + edges[:-1])

    @cached_property
    def widths(self) -> Array:
        """Widths of the bins, ``(n_bins,)``."""
        return np.diff(self.edges)

    @property
    def period(self) -> float | None:
        """Period of a circular target, else ``None``."""
        return self.edges[-1] - self.edges[0] if self.circular else None

    @property
    def turn(self) -> float | None:
        """The same in bins."""
        return float(self.n_bins) if self.circular else None

    @cached_property
    def nodes(self) -> Array:
        """Positions at which the log-likelihood is estimated, in bins, ``(n_nodes,)``, evenly spaced."""
        if self.circular:
            return self.n_bins * np.arange(_N_NODES) / _N_NODES
        return np.linspace(_PADDING, self.n_bins - _PADDING, _N_NODES)

    def position(self, y: ArrayLike) -> Array:
        """Values on the scale of bins, from 0 to `n_bins`; beyond the ends, the ends."""
        values: Array = np.asarray(y, dtype=np.float64)
        if self.period is not None:
            values = self.edges[0] + np.mod(values - self.edges[0], self.period)
        return np.interp(values, self.edges, np.arange(self.n_bins + 1))

    def value(self, position: ArrayLike) -> Array:
        """The values at some positions; the inverse of :meth:`position`."""
        places: Array = np.asarray(position, dtype=np.float64)
        if self.circular:
            places = np.mod(places, self.n_bins)
        return np.interp(places, np.arange(self.n_bins + 1), self.edges)

    def difference(self, y: ArrayLike, other: ArrayLike) -> Array:
        """`y` less `other`; on the circle, the shorter way round."""
        return difference(y, other, self.period)

    def r2(self, y: ArrayLike, predicted: ArrayLike) -> float:
        """Coefficient of determination of predictions ``(n,)`` of the values `y`, against the mean of the training values."""
        spread = float(np.mean(self.difference(y, self.mean) ** 2))
        return 1 - float(np.mean(self.difference(predicted, y) ** 2)) / max(spread, 1e-300)

    def soft_labels(self, y: ArrayLike) -> Array:
        """Weights of the bins for every value, ``(n, n_bins)``; rows sum to one."""
        offset = np.arange(self.n_bins + 1) - self.position(y)[..., None]
        turns = (-self.n_bins, 0, self.n_bins) if self.circular else (0,)
        mass = np.stack([np.diff(ndtr((offset + turn) / SMOOTHING), axis=-1) for turn in turns]).sum(0)
        return mass / mass.sum(-1, keepdims=True)

    def frequencies(self, y: ArrayLike) -> Array:
        """Probabilities of the bins, ``(n_bins,)``.

        The age of a donor is in all of its cells, and a new donor has another one: where values are shared, the histogram is smoothed by the
        rule of Silverman for as many values as there are different ones.
        """
        share = self.soft_labels(y).mean(0)
        if (bandwidth := _bandwidth(y, self.position(y).std())) > 0:
            share = gaussian_filter1d(share, bandwidth, mode="wrap" if self.circular else "reflect")
        return (1 - _FLAT) * share / share.sum() + _FLAT / self.n_bins

    def hats(self, y: ArrayLike) -> Array:
        """Functions that are one at a node and fall linearly to zero at its neighbours, ``(n, n_nodes)``; rows sum to one."""
        nodes, unit = self._closed_nodes
        return np.stack([np.interp(self.position(y), nodes, column) for column in unit.T], axis=-1)

    def spline(self, y: ArrayLike) -> Array:
        """Weights of the nodes in the cubic spline through them, ``(n, n_nodes)``; rows sum to one. Beyond the nodes it is linear."""
        return self._spline_at(self.position(y))

    @cached_property
    def to_bins(self) -> Array:
        """From values at the nodes to values at the bins, ``(n_nodes, n_bins)``."""
        return self._spline_at(np.arange(self.n_bins) + 0.5).T

    @cached_property
    def _closed_nodes(self) -> tuple[Array, Array]:
        """Positions of the nodes and their unit vectors, ``(n_nodes, n_nodes)``; on the circle the first node comes again at the end."""
        nodes, unit = self.nodes, np.eye(len(self.nodes))
        if self.circular:
            return np.append(nodes, float(self.n_bins)), np.concatenate([unit, unit[:1]])
        return nodes, unit

    def _spline_at(self, position: NDArray[np.floating]) -> Array:
        nodes, unit = self._closed_nodes
        if self.circular:
            return CubicSpline(nodes, unit, bc_type="periodic")(position)
        through = CubicSpline(nodes, unit, bc_type="natural")
        inside = np.clip(position, nodes[0], nodes[-1])
        return through(inside) + (position - inside)[..., None] * through(inside, 1)

    @cached_property
    def _integrals(self) -> tuple[Array, Array]:
        """Integrals of the value, less `mean`, and of its square over the position, from zero to every edge."""
        low, high = np.asarray(self.edges)[:-1] - self.mean, np.asarray(self.edges)[1:] - self.mean
        first, second = 0.5 * (low + high), (low**2 + low * high + high**2) / 3
        return np.append(0, first.cumsum()), np.append(0, second.cumsum())

    def integrals(self, position: Array) -> tuple[Array, Array]:
        """The same to any position between 0 and `n_bins`."""
        k = np.clip(position.astype(np.int64), 0, self.n_bins - 1)
        low, y, part = np.asarray(self.edges)[k] - self.mean, self.value(position) - self.mean, position - k
        y = np.where(position >= self.n_bins, self.edges[-1] - self.mean, y)
        first, second = (of_edges[k] for of_edges in self._integrals)
        return first + 0.5 * (low + y) * part, second + (low**2 + low * y + y**2) / 3 * part


@dataclass(frozen=True)
class Predictive:
    """Predictive distributions of a continuous target.

    Attributes
    ----------
    grid
        The bins.
    weights
        Posterior of the bins, ``(n, n_bins)``; rows sum to one.
    """

    grid: TargetGrid
    weights: Array

    @cached_property
    def mean(self) -> Array:
        """Mean, ``(n,)``; on the circle, the circular mean."""
        return self.grid.value(self._middle) if self.grid.circular else self._moments[0]

    @cached_property
    def sd(self) -> Array:
        """Standard deviation, ``(n,)``, without what soft labels and bins add."""
        if self.grid.circular:
            return self._spread * self.grid.widths[0]
        return np.sqrt(np.maximum(self._moments[1], (_LEAST_SD * self.grid.widths.min()) ** 2))

    def cdf(self, y: ArrayLike) -> Array:
        """Probability of values up to `y`, which has shape ``(n,)`` or ``(n, m)``; on the circle, from the antipode of the mean."""
        y = np.asarray(y, dtype=np.float64)
        offset = self._offset(self.grid.position(y if y.ndim == 2 else y[:, None]))
        found = self._cdf_of_offset(offset / self._contraction[:, None])
        return found if y.ndim == 2 else found[:, 0]

    def quantile(self, q: ArrayLike) -> Array:
        """Values below which the share `q` lies, ``(n, m)``, for shares of shape ``(m,)``; on the circle, from the antipode of the mean."""
        grid, q = self.grid, np.atleast_1d(np.asarray(q, dtype=np.float64))
        cumulative = self._cumulative
        wanted = self._interpolated(self._start[:, None]) + q * (1.0 if grid.circular else cumulative[:, -1:])
        turns = np.floor(wanted) if grid.circular else np.zeros_like(wanted)
        rest = wanted - turns
        first = np.stack([np.searchsorted(row, x, side="left") for row, x in zip(cumulative, rest, strict=True)])
        upper = np.clip(first, 1, grid.n_bins)
        high, low = np.take_along_axis(cumulative, upper, 1), np.take_along_axis(cumulative, upper - 1, 1)
        part = np.divide(rest - low, high - low, out=np.zeros_like(rest), where=high > low)
        position = upper - 1 + np.clip(part, 0, 1) + turns * grid.n_bins
        return grid.value(self._middle[:, None] + (position - self._middle[:, None]) * self._contraction[:, None])

    def log_density(self, y: ArrayLike) -> Array:
        """Log density at `y`, of shape ``(n,)`` or ``(n, m)``, in nats per unit of the target.

        A thousandth of the probability is that of the training values in general, a normal distribution of three times their
        standard deviation (uniform on the circle), so that no value is impossible.
        """
        grid, y = self.grid, np.asarray(y, dtype=np.float64)
        wide = y if y.ndim == 2 else y[:, None]
        place = grid.position(wide)
        at = self._middle[:, None] + self._offset(place) / self._contraction[:, None]
        if grid.circular:
            inside = np.abs(at - self._middle[:, None]) <= 0.5 * grid.n_bins
            at, tail = np.mod(at, grid.n_bins), np.full_like(wide, -np.log(grid.edges[-1] - grid.edges[0]))
        else:
            inside = (wide >= grid.edges[0]) & (wide <= grid.edges[-1]) & (at >= 0) & (at <= grid.n_bins)
            spread = 3 * max(grid.sd, grid.widths.min())
            tail = -0.5 * ((wide - grid.mean) / spread) ** 2 - np.log(spread * np.sqrt(2 * np.pi))
        bins = [np.clip(p.astype(np.int64), 0, grid.n_bins - 1) for p in (at, place)]
        density = np.take_along_axis(self.weights, bins[0], 1) / (grid.widths[bins[1]] * self._contraction[:, None])
        own = np.log(np.where(inside, (1 - _TAIL) * density, 0.0) + np.finfo(np.float64).tiny)
        found = np.logaddexp(own, np.log(_TAIL) + tail)
        return found if y.ndim == 2 else found[:, 0]

    def density(self) -> Array:
        """Density of the bins, ``(n, n_bins)``, per unit of the target: their probabilities over their widths."""
        return self.masses() / self.grid.widths

    def masses(self, parts: int = 1) -> Array:
        """Probabilities of the bins, or of so many equal parts of each, ``(n, n_bins * parts)``."""
        n_bins, contraction = self.grid.n_bins, self._contraction[:, None]
        half = 0.5 / parts
        offset = self._offset((np.arange(n_bins * parts) + 0.5) / parts)
        mass = self._cdf_of_offset((offset + half) / contraction) - self._cdf_of_offset((offset - half) / contraction)
        if self.grid.circular:  # what is opposite to the mean goes on at the other end
            mass += self._cdf_of_offset((offset + half - n_bins) / contraction)
            mass += 1 - self._cdf_of_offset((offset - half + n_bins) / contraction)
        return np.maximum(mass, 0)  # rounding

    @cached_property
    def _middle(self) -> Array:
        """Mean position, ``(n,)``, in bins; on the circle, circular mean."""
        middle = mean_of(np.arange(self.grid.n_bins) + 0.5, self.grid.turn, self.weights)
        return np.mod(middle, self.grid.n_bins) if self.grid.circular else middle

    @cached_property
    def _variance(self) -> Array:
        """Variance of the position, with that of soft labels and bins."""
        return (self.weights * self._offset(np.arange(self.grid.n_bins) + 0.5) ** 2).sum(1)

    @cached_property
    def _spread(self) -> Array:
        """Standard deviation of the position without it."""
        return np.sqrt(np.maximum(self._variance - SMOOTHING**2 - 1 / 12, _LEAST_SD**2))

    @cached_property
    def _contraction(self) -> Array:
        """Factor on distances from the mean position that gives a density, constant within bins, that standard deviation."""
        return self._spread / np.sqrt(self._variance + 1 / 12)

    @cached_property
    def _moments(self) -> tuple[Array, Array]:
        """Mean and variance of the value: exact for the contracted density, which is constant between contracted edges."""
        middle = self._middle[:, None]
        edges = middle + (np.arange(self.grid.n_bins + 1) - middle) * self._contraction[:, None]
        first, second = self.grid.integrals(edges)
        share = self.weights / self._contraction[:, None]  # over the width of a contracted bin
        mean = (share * np.diff(first, axis=1)).sum(1)
        return self.grid.mean + mean, (share * np.diff(second, axis=1)).sum(1) - mean**2

    @cached_property
    def _cumulative(self) -> Array:
        """Cumulative weights at the edges, ``(n, n_bins + 1)``."""
        return np.concatenate([np.zeros((len(self.weights), 1)), self.weights.cumsum(1)], axis=1)

    @property
    def _start(self) -> Array:
        """Position where the distribution begins, ``(n,)``."""
        return self._middle - 0.5 * self.grid.n_bins if self.grid.circular else np.zeros_like(self._middle)

    def _offset(self, position: ArrayLike) -> Array:
        """Distance of positions from the mean position, ``(n, m)``."""
        return difference(position, self._middle[:, None], self.grid.turn)

    def _cdf_of_offset(self, offset: Array) -> Array:
        """Cumulative weights at an offset from the mean position ``(n, m)``, counted from the begin of the distribution."""
        start = self._start[:, None]
        at = np.clip(self._middle[:, None] + offset, start, start + self.grid.n_bins)
        return self._interpolated(at) - self._interpolated(start)

    def _interpolated(self, position: Array) -> Array:
        """Cumulative weights ``(n, m)``, linear within bins; on the circle they go on by one with every turn."""
        n_bins = self.grid.n_bins
        turns = np.floor(position / n_bins) if self.grid.circular else np.zeros_like(position)
        rest = position - turns * n_bins
        low = np.clip(rest.astype(np.int64), 0, n_bins - 1)
        lower, upper = (np.take_along_axis(self._cumulative, k, 1) for k in (low, low + 1))
        return lower + (upper - lower) * np.clip(rest - low, 0, 1) + turns


def _bandwidth(y: ArrayLike, spread: float) -> float:
    """Of a Gaussian kernel, where values are shared by several cells, for as many as there are different ones; else zero.

    Silverman 1986, equation 3.31.
    """
    n, n_distinct = np.size(y), len(np.unique(y))
    return float(0.9 * spread * n_distinct**-0.2) if n > _SHARED * n_distinct else 0.0


def entropies(grid: TargetGrid, weights: Array) -> tuple[Array, Array]:
    """Mean differential entropy of the predictive distributions of several networks, and their mutual information, nats ``(n,)`` each.

    Parameters
    ----------
    grid
        The bins.
    weights
        Posteriors of the bins, ``(n_networks, n, n_bins)``.
    """
    mass = np.stack([Predictive(grid, of_one).masses(_PARTS) for of_one in weights])
    mixed, single = mass.mean(0), -xlogy(mass, mass).sum(-1).mean(0)
    log_width = np.log(np.repeat(grid.widths, _PARTS) / _PARTS)
    return single + mixed @ log_width, np.maximum(-xlogy(mixed, mixed).sum(-1) - single, 0)


def mean_of(y: ArrayLike, period: float | None, weights: Array | None = None) -> Array:
    """Mean of values ``(n,)``; with a period, the circular mean, at most half a period from zero.

    Parameters
    ----------
    y
        Values.
    period
        Of the circle, in their units; ``None``: they lie on a line.
    weights
        Of the values, ``(..., n)``, sums of one; ``None``: equal ones.
    """
    values: NDArray[np.inexact] = np.asarray(y, dtype=np.float64)
    points = values if period is None else np.exp(2j * np.pi * values / period)
    middle = points.mean() if weights is None else weights @ points
    return np.real(middle) if period is None else np.angle(middle) * period / (2 * np.pi)


def difference(y: ArrayLike, other: ArrayLike, period: float | None) -> Array:
    """`y` less `other`; with a period, the shorter way round."""
    found = np.asarray(y, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return found if period is None else found - period * np.round(found / period)
