"""``pl.regression``: predicted against known values of a continuous target, and whether intervals and densities keep their word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get
from scscore._logging import logger
from scscore.core.target import difference, mean_of
from scscore.core.thinning import evenly_spread
from scscore.io.columns import numbers, obs_column
from scscore.io.keys import Keys
from scscore.io.params import stored_params
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

_SIDE, _GAP = 3.0, 0.22  # inches, and share of the side
_MOST_INTERVALS = 150
_N_RIDGES, _N_BARS = 6, 32
_INSIDE, _OUTSIDE = "#0072B2", "#D55E00"


def regression(
    adata: AnnData,
    target: str,
    *,
    key: str = "scscore",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Predicted against known values with their intervals, coverage at every level, and predicted densities beside what came.

    Left: every cell, and the intervals of some; those that miss the known value are orange. Middle: how often the central interval of the
    predicted density holds the known value, against its probability; calibrated densities lie on the diagonal, over-confident ones below
    it. Right: cells in groups of equal size by predicted mean, from low to high; filled, the mean of their densities, and as a line the
    histogram of their known values.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.regress`.
    target
        Column of ``obs`` with the known values. Cells without one are left out.
    key
        The `key_added` of the regression.
    ax, show, return_fig
        See :mod:`scscore.pl`. The other two panels stand to the right of `ax`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Written above: coefficient of determination, rank correlation (not of circular
    targets), and the coverage of the intervals. Reads ``obs[target]``, ``obs[f"{key}_mean"]``, ``obs[f"{key}_lower"]``,
    ``obs[f"{key}_upper"]``, ``obsm[f"{key}_density"]`` and ``uns[key]``. Writes nothing.

    Raises
    ------
    KeyError
        `adata` holds no regression under `key`, or `target` is no column.
    ValueError
        `target` holds no numbers, or fewer than two of them.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> cells.obs["dose"] = cells.obsm["X_toy"][:, 0] + 0.1
    >>> model = scs.tl.fit(cells, "dose", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.regress(cells, model, progress=False)
    >>> axes = scs.pl.regression(cells, "dose", show=False)
    """
    density, keys = get.density(adata, key=key), Keys(key)
    known = numbers(obs_column(adata, target, "target"), f"target={target!r} must hold real numbers")
    rows = np.flatnonzero(np.isfinite(known))
    if len(rows) < 2:
        raise ValueError(f"target={target!r} holds {len(rows)} known values; at least two are needed.")
    if len(rows) < adata.n_obs:
        logger.info("pl.regression: %d of %d cells have no known %s", adata.n_obs - len(rows), adata.n_obs, target)
    y, mean = known[rows], adata.obs[keys.mean].to_numpy(dtype=np.float64)[rows]
    edges, values = np.append(density.columns.left, density.columns.right[-1]), density.to_numpy(dtype=np.float64)[rows]
    params = stored_params(adata, keys.uns)
    period = edges[-1] - edges[0] if params["circular"] else None
    residual = difference(y, mean, period)
    lower, upper = (
        adata.obs[name].to_numpy(dtype=np.float64)[rows] if name in adata.obs else np.full_like(y, np.nan)
        for name in (keys.lower, keys.upper)
    )
    inside = (lower <= y) & (y <= upper)
    if period is not None:
        inside = np.mod(y - lower, period) <= np.mod(upper - lower, period)
    scores = [f"R² {1 - np.mean(residual**2) / np.mean(difference(y, mean_of(y, period), period) ** 2):.3f}"]
    if period is None:
        scores.append(f"Spearman {pd.Series(y).corr(pd.Series(mean), method='spearman'):.3f}")
    if np.isfinite(lower).all():
        scores.append(f"{inside.mean():.0%} in {params['coverage']:.0%} intervals")

    given, ax = ax, _base.axes_of_size(ax, (_SIDE, _SIDE))
    ends = np.array([min(y.min(), mean.min()), max(y.max(), mean.max())])
    ends += 0.04 * np.ptp(ends) * np.array([-1, 1])
    ax.plot(ends, ends, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    size = float(np.clip(2000 / len(y), 1.5, 14))
    ax.scatter(y, mean, s=size, color=_INSIDE, alpha=0.35, linewidths=0, rasterized=len(y) > 2000, zorder=2)
    _draw_intervals(ax, y, mean, lower, upper, inside, period)
    ax.set(xlim=ends, ylim=ends, xlabel=f"known {target}", ylabel=f"predicted {target}", aspect="equal")
    ax.set_title("\n".join([", ".join(scores[:2]), *scores[2:]]), fontsize=9)
    step = 1 + _GAP
    _draw_coverage(ax.inset_axes((step + 0.06, 0.0, 1.0, 1.0)), edges, values, y, mean, period)
    _draw_ridges(ax.inset_axes((2 * step + 0.02, 0.0, 1.0, 1.0)), edges, values, y, mean, target)
    for each in (ax, *ax.child_axes):
        each.grid(False)
    return _base.finish(ax, given, show=show, return_fig=return_fig)


def _draw_intervals(
    ax: Axes, y: Array, mean: Array, lower: Array, upper: Array, inside: NDArray[np.bool_], period: float | None
) -> None:
    """Intervals of some cells, evenly spread over the known values; on a circle they may reach over the ends of the axes."""
    order = np.argsort(y, kind="stable")
    some = order[evenly_spread(len(order), _MOST_INTERVALS)]
    some = some[np.isfinite(lower[some])]
    below, above = difference(mean, lower, period), difference(upper, mean, period)
    if period is not None:  # the mean is inside: the way up from the lower end, the way down from the upper one
        below, above = np.mod(mean - lower, period), np.mod(upper - mean, period)
    for rows, color in ((some[inside[some]], _INSIDE), (some[~inside[some]], _OUTSIDE)):
        ends = np.stack([mean[rows] - below[rows], mean[rows] + above[rows]])
        ax.vlines(y[rows], ends[0], ends[1], color=color, linewidth=0.6, alpha=0.7, zorder=3)
        ax.scatter(y[rows], mean[rows], s=7, color=color, linewidths=0, zorder=4)


def _draw_coverage(ax: Axes, edges: Array, density: Array, y: Array, mean: Array, period: float | None) -> None:
    """Share of known values in the central interval of the density, against its probability."""
    cumulative = np.concatenate([np.zeros((len(density), 1)), (density * np.diff(edges)).cumsum(1)], axis=1)

    def below(values: Array) -> Array:
        return np.array([np.interp(v, edges, row) for v, row in zip(values, cumulative, strict=True)])

    rank = below(y)
    if period is not None:  # from the antipode of the mean
        start = edges[0] + np.mod(mean - period / 2 - edges[0], period)
        rank = np.mod(rank - below(start), 1.0)
    central = np.sort(np.abs(2 * rank - 1))
    ax.plot((0, 1), (0, 1), color="0.6", linewidth=0.8, linestyle=(0, (4, 3)))
    ax.plot(central, np.arange(1, len(central) + 1) / len(central), color=_INSIDE, linewidth=1.5)
    ax.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="probability of the central interval", ylabel="share of known values inside"
    )
    ax.set_title("calibration", fontsize=9)


def _draw_ridges(ax: Axes, edges: Array, density: Array, y: Array, mean: Array, target: str) -> None:
    """Mean predicted density and histogram of the known values of cells grouped by predicted mean."""
    groups = [rows for rows in np.array_split(np.argsort(mean, kind="stable"), _N_RIDGES) if len(rows)]
    low, high = np.quantile(y, (0.001, 0.999))
    bins = np.linspace(low, high, _N_BARS + 1)
    predicted = [density[rows].mean(0) for rows in groups]
    found = [np.histogram(y[rows], bins)[0] / (len(rows) * (bins[1] - bins[0])) for rows in groups]
    highest = 0.6 * max(max(one.max() for one in predicted), max(one.max() for one in found))
    for i in range(len(groups))[::-1]:
        ax.fill_between(
            0.5 * (edges[1:] + edges[:-1]),
            i,
            i + predicted[i] / highest,
            color=_INSIDE,
            alpha=0.35,
            linewidth=0,
            zorder=-i,
        )
        ax.stairs(i + found[i] / highest, bins, baseline=i, color="0.2", linewidth=0.8, zorder=-i + 0.5)
        ax.axhline(i, color="0.8", linewidth=0.5, zorder=-i)
    ax.set(xlabel=target, yticks=[], ylabel="cells by predicted mean", xlim=(bins[0], bins[-1]))
    ax.set_title("densities (filled), known (line)", fontsize=9)
