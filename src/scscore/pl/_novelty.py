"""``pl.novelty``: which groups are unlike the known cells, and which are only ambiguous."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get
from scscore.io.columns import number_column
from scscore.io.keys import Keys
from scscore.io.params import stored_params
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _BAR_WIDTH, _GAP = 2.8, 1.5, 0.3  # of the two panels and between them, inches
_NOVEL, _AMBIGUOUS, _CLEAR = "#D55E00", "#56B4E9", "0.9"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def novelty(
    adata: AnnData,
    groupby: str | None = None,
    *,
    key: str = "scscore",
    confidence: float = 0.9,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Typicality of the cells of every group, and what share of them is novel, ambiguous or clear.

    Left: box and whiskers hold half and nine tenths of the cells of a group, the dot is their median. The grey bands are where
    cells like the held-out ones have theirs: their typicality is uniform. Groups that reach further left are unlike all known
    classes; cells below the threshold, drawn one by one, are labelled ``unknown``. Right: the share of these (novel, written beside),
    and of the others whose best class is less probable than `confidence` (ambiguous between known classes).

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.classify` with a model that has held-out cells.
    groupby
        Column of ``obs`` with the groups, in the order of its categories. Cells without a group are left out. ``None``: the most
        probable class, of cells labelled ``unknown``, too.
    key
        The `key_added` of the classification.
    confidence
        Cells below this posterior of their best class are ambiguous, unless they are novel.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``obs[f"{key}_typicality"]``, ``obsm[f"{key}_posterior"]``, the
    threshold `reject` in ``uns[key]["params"]``, ``obs[groupby]`` and the group colours ``uns[f"{groupby}_colors"]``. Writes nothing.

    Raises
    ------
    KeyError
        `adata` is not classified under `key`, or by a model without held-out cells, or `groupby` is no column.
    ValueError
        `groupby` is continuous or empty, `confidence` is not between 0 and 1.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.classify(cells, model, progress=False)
    >>> axes = scs.pl.novelty(cells, "class", show=False)
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}.")
    keys = Keys(key)
    posterior = get.posterior(adata, key=key)
    typicality, reject = typicality_of(adata, keys)
    groups = best_class(posterior) if groupby is None else _base.groups_of(adata, groupby, "groupby")
    names = groups.cat.categories.tolist()
    column = keys.label if groupby is None else groupby
    rows = _rows(groups, typicality, posterior.to_numpy().max(1), reject, confidence)

    side = float(np.clip(3.0 / len(names), 0.16, 0.45))
    given, ax = ax, _base.axes_of_size(ax, (_WIDTH, max(side * len(names), 0.6)))
    _draw_typicality(ax, rows, _colors(adata, column, names), reject)
    font = min(9.0, 0.8 * 72 * _base.inches(ax)[1] / len(names))
    ax.set_yticks(np.arange(len(rows)), [f"{a} ({row.n:,})" for a, row in zip(names, rows, strict=True)], fontsize=font)
    ax.set_ylabel(f"{'most probable class' if groupby is None else groupby} (cells)")
    bars = ax.inset_axes((1 + _GAP / _WIDTH, 0.0, _BAR_WIDTH / _WIDTH, 1.0))
    _draw_shares(bars, rows, font)
    bars.set_ylim(ax.get_ylim())
    return _base.finish(ax, given, show=show, return_fig=return_fig)


class _Row(NamedTuple):
    n: int
    quantiles: NDArray[np.float64]
    rejected: NDArray[np.float64]  # typicality of the cells below the threshold
    novel: float  # share
    ambiguous: float


def typicality_of(adata: AnnData, keys: Keys) -> tuple[NDArray[np.float32], float]:
    """Typicality of all cells, ``(n_obs,)``, and the threshold below which they were labelled ``unknown``."""
    values = number_column(
        adata,
        keys.typicality,
        missing=f"adata.obs[{keys.typicality!r}] is missing (key={keys.key_added!r}): run scscore.tl.classify first, or pass the "
        "key= that its key_added= named; for a model without held-out cells run scscore.tl.calibrate before.",
    )
    params = stored_params(adata, keys.uns)
    if "reject" not in params:
        raise KeyError(
            f"adata.uns[{keys.uns!r}]['params'] names no threshold 'reject' (key={keys.key_added!r}): run scscore.tl.classify again."
        )
    return values.astype(np.float32), float(params["reject"])


def best_class(posterior: pd.DataFrame) -> pd.Series:
    """The most probable class of every cell, those that occur being the categories."""
    codes = posterior.to_numpy().argmax(1)
    values = pd.Categorical.from_codes(codes, categories=posterior.columns)
    return pd.Series(values, index=posterior.index).cat.remove_unused_categories()


def _rows(
    groups: pd.Series,
    typicality: NDArray[np.float32],
    best: NDArray[np.floating],
    reject: float,
    confidence: float,
) -> list[_Row]:
    codes, rows = groups.cat.codes.to_numpy(), []
    novel = typicality < np.float32(reject)  # as tl.classify did, before rounding to float32
    ambiguous = ~novel & (best < np.float32(confidence))
    for code in range(len(groups.cat.categories)):
        of_group = codes == code
        values = typicality[of_group].astype(np.float64)
        rows.append(
            _Row(
                len(values),
                np.quantile(values, _QUANTILES),
                values[novel[of_group]],
                float(novel[of_group].mean()),
                float(ambiguous[of_group].mean()),
            )
        )
    return rows


def _colors(adata: AnnData, column: str, names: list[str]) -> list[str]:
    """Colours of the groups; the most probable class may be one that no cell is labelled with."""
    labels = adata.obs.get(column)
    known = set() if labels is None else set(labels.astype("category").cat.categories.astype(str))
    return _base.colors_of(adata, column, names) if known.issuperset(names) else _base.palette(len(names))


def _draw_typicality(ax: Axes, rows: list[_Row], colors: list[str], reject: float) -> None:
    y = np.arange(len(rows))
    quantiles = np.array([row.quantiles for row in rows])
    ax.axvspan(0.05, 0.95, color="0.94", linewidth=0, zorder=0)
    ax.axvspan(0.25, 0.75, color="0.87", linewidth=0, zorder=0)
    ax.hlines(y, quantiles[:, 0], quantiles[:, 4], color=colors, linewidth=1.2, zorder=2)
    ax.barh(
        y,
        quantiles[:, 3] - quantiles[:, 1],
        left=quantiles[:, 1],
        height=0.6,
        color=colors,
        edgecolor="0.3",
        linewidth=0.4,
        zorder=3,
    )
    ax.plot(quantiles[:, 2], y, "o", color="w", markeredgecolor="k", markeredgewidth=0.8, markersize=3.5, zorder=5)
    rejected = [row.rejected for row in rows]
    height = np.repeat(y, [len(values) for values in rejected])
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(height))
    n = max(len(height), 1)
    ax.scatter(
        np.concatenate(rejected),
        height + jitter,
        s=float(np.clip(600 / n, 2, 8)),
        color="k",
        alpha=float(np.clip(8 / np.sqrt(n), 0.12, 0.6)),
        linewidths=0,
        rasterized=True,
        zorder=1.5,
    )
    if reject > 0:
        ax.axvline(reject, color=_NOVEL, linewidth=1, linestyle=(0, (4, 2)), zorder=4)
        ax.annotate(
            f"unknown below {reject:g}",
            (reject, 1),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_NOVEL,
        )
    smallest = min(
        float(np.min(quantiles)), *(float(values.min()) for values in rejected if len(values)), reject or 0.01
    )
    ax.set_xscale("log")
    ax.set_xlim(smallest / 1.6, 1.15)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("typicality (grey: known cells)", fontsize=9)
    ax.tick_params(axis="x", labelsize=9)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_shares(ax: Axes, rows: list[_Row], font: float) -> None:
    from matplotlib.ticker import PercentFormatter

    y, novel, ambiguous = (
        np.array(values) for values in zip(*((i, row.novel, row.ambiguous) for i, row in enumerate(rows)), strict=True)
    )
    for left, share, color, name in (
        (0 * novel, novel, _NOVEL, "novel"),
        (novel, ambiguous, _AMBIGUOUS, "ambiguous"),
        (novel + ambiguous, 1 - novel - ambiguous, _CLEAR, "clear"),
    ):
        ax.barh(y, share, left=left, height=0.75, color=color, label=name)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of cells", fontsize=9)
    ax.tick_params(axis="x", labelsize=9)
    ax.set_xticks((0, 0.5, 1))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.yaxis.tick_right()
    ax.set_yticks(y, [f"{100 * share:.1f} %" for share in novel], fontsize=font)
    ax.tick_params(axis="y", length=0, labelcolor=_NOVEL)
    ax.spines[["top", "left", "right"]].set_visible(False)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
        handlelength=0.8,
        handletextpad=0.3,
        columnspacing=0.8,
        borderpad=0,
    )
