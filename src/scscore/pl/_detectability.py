"""``pl.detectability``: which perturbations can be told from control, how surely, and by how much evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get
from scscore.io.keys import Keys
from scscore.io.params import stored_params
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DETECTED, UNDETECTED = "#0072B2", "0.6"
_WIDTH, _BAR_WIDTH, _TREE_WIDTH, _GAP = 2.6, 1.2, 1.0, 0.15  # of the panels and between them, inches
_95 = 1.959964  # standard errors


def detectability(
    adata: AnnData,
    *,
    key: str = "scscore",
    fdr: float = 0.05,
    tree: bool = False,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    r"""How well the cells of every perturbation are told from control cells, the best on top.

    Left: area under the ROC curve of the evidence, that is, the probability that a cell of the perturbation has more of it than a control cell;
    0.5 is chance. The line is a 95 % interval. Filled dots are detected at the false discovery rate `fdr`, by the rank-sum test. Right: mean
    evidence of the cells, with 1.96 standard errors, and their number.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.predict_perturbation`.
    key
        The `key_added` of that call.
    fdr
        False discovery rate below which a perturbation is detected.
    tree
        Draw the tree of similarity: perturbations that are joined far to the left cannot be told from each other, those joined with control there
        not from control. Rows then follow the tree, in it the best first, and control has one of its own.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``uns[f"{key}_perturbation"]`` and, for the number of control cells,
    the columns of ``obs`` that it was computed from. Writes nothing.

    Raises
    ------
    KeyError
        There are no perturbations under `key`, or a column that they were computed from is gone.
    ValueError
        `fdr` is not between 0 and 1, or no cell of control is left.

    Notes
    -----
    The interval is 1.96 standard errors to either side, cut at 0 and 1, with the error of Hanley and McNeil (Radiology 143:29, 1982):

    .. math::
        \mathrm{se}^2 = \frac{A (1 - A) + (m - 1) (Q_1 - A^2) + (n - 1) (Q_2 - A^2)}{m n}, \quad Q_1 = \frac{A}{2 - A}, \quad Q_2 = \frac{2 A^2}{1 + A},

    for an area :math:`A` from :math:`m` cells of the perturbation and :math:`n` of control. It is of the cells, for a given model.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.predict_perturbation(cells, model, control="a", progress=False)
    >>> axes = scs.pl.detectability(cells, show=False)
    """
    if not 0 < fdr < 1:
        raise ValueError(f"fdr must be between 0 and 1, got {fdr!r}.")
    keys = Keys(key)
    table = get.perturbation(adata, key=key)
    column = str(stored_params(adata, keys.perturbation)["condition"])
    control = str(adata.uns[keys.perturbation]["control"])
    n_control = int((assigned_to(adata, keys) == control).sum())
    if not n_control:
        raise ValueError(
            f"no cell of control ({control!r}) is left in adata.obs[{column!r}]: pass the cells that tl.predict_perturbation had."
        )
    table["error"] = auroc_error(table["auroc"].to_numpy(), table["n_cells"].to_numpy(), n_control)
    joined = None
    if tree:
        linkage = np.asarray(adata.uns[keys.perturbation]["tree"], dtype=np.float64)
        names = [*(str(name) for name in adata.uns[keys.perturbation]["names"]), control]
        table.loc[control, "n_cells"] = n_control  # the other columns are NaN, so that nothing is drawn
        joined = _best_first(linkage, table["auroc"].reindex(names).to_numpy())
        table = table.loc[[names[leaf] for leaf in _base.leaves(joined)]]

    side = float(np.clip(3.6 / len(table), 0.16, 0.3))
    given, ax = ax, _base.axes_of_size(ax, (_WIDTH, max(side * len(table), 0.6)))
    width, height = _base.inches(ax)
    font = min(9.0, 0.8 * 72 * height / len(table))
    _draw_areas(ax, table, fdr)
    ax.set_yticks(np.arange(len(table)), table.index, fontsize=font)
    for label in ax.get_yticklabels():
        if label.get_text() == control:
            label.set(color="0.45", style="italic")
    ax.set_ylabel(column, fontsize=9)
    bars = ax.inset_axes((1 + _GAP / width, 0.0, _BAR_WIDTH / width, 1.0))
    _draw_effects(bars, table, fdr, font)
    bars.set_ylim(ax.get_ylim())
    if joined is not None:
        side_of_tree = bars.inset_axes((1 + 0.55 / _BAR_WIDTH, 0.0, _TREE_WIDTH / _BAR_WIDTH, 1.0))
        _draw_tree(side_of_tree, joined)
        side_of_tree.set_ylim(ax.get_ylim())
    return _base.finish(ax, given, show=show, return_fig=return_fig)


def auroc_error(area: NDArray[np.float64], n_positive: NDArray[np.integer], n_negative: int) -> NDArray[np.float64]:
    """Standard error of areas under the ROC curve, Hanley and McNeil 1982, equation 2; NaN stays."""
    q_1, q_2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n_positive - 1) * (q_1 - area**2) + (n_negative - 1) * (q_2 - area**2)
    return np.sqrt(np.maximum(variance, 0) / (n_positive * n_negative))


def assigned_to(adata: AnnData, keys: Keys) -> NDArray[np.object_]:
    """What every cell was assigned to, as text; ``None`` for nothing and for cells that took no part."""
    params = stored_params(adata, keys.perturbation)
    for name in (params["condition"], params["exclude"]):
        if name is not None and name not in adata.obs:
            raise KeyError(
                f"adata.obs[{name!r}] is gone, from which adata.uns[{keys.perturbation!r}] was computed: run scscore.tl.predict_perturbation again."
            )
    values = adata.obs[params["condition"]]
    left_out = values.isna().to_numpy()
    if params["exclude"] is not None:
        left_out = left_out | adata.obs[params["exclude"]].to_numpy(dtype=bool)
    names = values.astype(str).to_numpy(dtype=object)
    names[left_out] = None
    return names


def _draw_areas(ax: Axes, table: pd.DataFrame, fdr: float) -> None:
    area, error, y = table["auroc"].to_numpy(), table["error"].to_numpy(), np.arange(len(table))
    low, high = np.clip(area - _95 * error, 0, 1), np.clip(area + _95 * error, 0, 1)
    found = (table["fdr"] < fdr).to_numpy()
    missed = ~found & np.isfinite(area)
    ax.axvline(0.5, color="0.4", linewidth=0.8, zorder=1)
    for rows, color, face, name in (
        (found, DETECTED, DETECTED, "detected"),
        (missed, UNDETECTED, "w", "not detected"),
    ):
        ax.hlines(y[rows], low[rows], high[rows], color=color, linewidth=1.3, zorder=2)
        ax.plot(
            area[rows],
            y[rows],
            "o",
            color=color,
            markerfacecolor=face,
            markeredgewidth=1.0,
            markersize=4.5,
            zorder=3,
            label=f"{name} ({int(rows.sum())})",
        )
    ax.grid(False)  # scanpy.set_figure_params turns grids on
    ax.set_xlim(min(0.45, float(np.nanmin(low)) - 0.02), 1.01)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlabel("AUROC against control", fontsize=9)
    ax.tick_params(axis="x", labelsize=9)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(
        title=f"at a false discovery rate of {100 * fdr:g} %",
        title_fontsize=8,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
        handlelength=1.0,
        handletextpad=0.3,
        columnspacing=0.8,
        borderpad=0,
    )


def _draw_effects(ax: Axes, table: pd.DataFrame, fdr: float, font: float) -> None:
    y, effect = np.arange(len(table)), table["effect"].to_numpy()
    colors = [DETECTED if rate < fdr else UNDETECTED for rate in table["fdr"]]
    ax.barh(y, np.nan_to_num(effect), height=0.6, color=colors)
    ax.hlines(y, *(effect + sign * _95 * table["effect_se"].to_numpy() for sign in (-1, 1)), color="k", linewidth=0.8)
    ax.grid(False)
    ax.axvline(0, color="0.4", linewidth=0.8)
    ax.locator_params(axis="x", nbins=4)
    ax.set_xlabel("mean evidence\n(nats)", fontsize=9)
    ax.tick_params(axis="x", labelsize=9)
    ax.yaxis.tick_right()
    ax.set_yticks(y, [f"{int(n):,}" for n in table["n_cells"]], fontsize=font)
    ax.tick_params(axis="y", length=0, labelcolor="0.3")
    ax.spines[["top", "left", "right"]].set_visible(False)
    ax.annotate(
        "cells",
        (1, 1),
        (3.5, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="left",
        fontsize=8,
        color="0.3",
    )


def _best_first(linkage: NDArray[np.float64], area: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same tree, with the branch that holds the best of both perturbations first at every fork."""
    turned = linkage.copy()
    best = [*np.nan_to_num(area, nan=-1.0)]
    for i, (a, b) in enumerate(linkage[:, :2].astype(int)):
        first, second = (a, b) if best[a] >= best[b] else (b, a)
        turned[i, :2] = first, second
        best.append(max(best[a], best[b]))
    return turned


def _draw_tree(ax: Axes, linkage: NDArray[np.float64]) -> None:
    _base.draw_tree(ax, linkage)
    ax.set_xlabel("told apart\n(2 AUROC − 1)", fontsize=9)
    ax.locator_params(axis="x", nbins=3)
    ax.tick_params(axis="x", labelsize=9)
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[["top", "left", "right"]].set_visible(False)
