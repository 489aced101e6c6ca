"""``pl.attribution_ranking``: the genes of every class in their order, presence and absence apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from scscore import get
from scscore.pl import _base
from scscore.pl._attribution_heatmap import against, chosen_classes, class_colors, positive_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRESENCE, ABSENCE = "#E69F00", "#56B4E9"
_WIDTH, _LINE, _MARGIN = 1.7, 0.155, 0.12  # of a panel, of a gene and around panels, inches
_95 = 1.959964  # standard errors


def attribution_ranking(
    adata: AnnData,
    *,
    classes: Sequence[str] | None = None,
    n_genes: int = 15,
    key: str = "scscore",
    ncols: int = 4,
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """The genes that speak most for every class, each with its presence and absence.

    One panel per class, the gene with the most mean evidence on top. Bars are its two parts: what expression above the baseline adds, and
    what expression below it adds. The dot is their sum, with an interval of 1.96 standard errors over cells. Below the name of the class
    stand the mean evidence at the baseline and the sum over *all* genes; together they are the mean evidence (but for genes that the data
    lack). Panels have axes of their own.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.attribute`.
    classes
        These classes, in this order. ``None``: all that are the target of a cell.
    n_genes
        Genes per class.
    key
        The `key_added` of the attribution.
    ncols
        Panels per row.
    show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    List of ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads what :func:`scscore.get.attribution` reads. Writes nothing.

    Raises
    ------
    KeyError
        `adata` has no attributions under `key`, or one of `classes` is unknown.
    ValueError
        `n_genes` or `ncols` below one, no class to draw.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.pbmc()
    >>> model = scs.tl.fit(cells, "cell_type", max_epochs=2, progress=False)
    >>> scs.tl.attribute(cells, model, target="cell_type", reference="runner-up", progress=False)
    >>> panels = scs.pl.attribution_ranking(cells, classes=["Dendritic"], show=False)
    """
    n_genes = positive_count(n_genes, 15)
    _base.check_positive("ncols", ncols)
    found = get.attribution(adata, key=key)
    color_of = class_colors(found)
    found = chosen_classes(found, classes)
    import matplotlib.pyplot as plt

    n_rows = min(n_genes, found.n_vars)
    figure = plt.figure(figsize=(4, 4))
    axes = [figure.add_axes((0.2, 0.2, 0.5, 0.5), label=str(i)) for i in range(found.n_obs)]
    for i, ax in enumerate(axes):
        _draw(ax, found[i], n_rows, color_of[found.obs_names[i]])
    for ax in axes[-min(ncols, len(axes)) :]:  # those with no panel below
        ax.set_xlabel(f"nats against {against(found)}", fontsize=8)
    _arrange(figure, axes, (_WIDTH, _LINE * (n_rows + 1)), int(min(ncols, len(axes))))
    if show is None:
        from scanpy import settings

        show = settings.autoshow
    done = _base.finish(axes[0], axes[0], show=show, return_fig=return_fig)
    return axes if done is axes[0] else done  # type: ignore[return-value]


def _draw(ax: Axes, one: AnnData, n: int, color: str) -> None:
    """The panel of one class."""
    mean, presence, absence, error = (
        np.asarray(values)[0] for values in (one.X, one.layers["presence"], one.layers["absence"], one.layers["se"])
    )
    top, y = np.argsort(-mean, kind="stable")[:n], np.arange(n)
    opposed = presence[top] * absence[top] < 0
    ax.barh(y, presence[top], height=0.75, color=PRESENCE, label="presence")
    ax.barh(y, absence[top], left=np.where(opposed, 0, presence[top]), height=0.75, color=ABSENCE, label="absence")
    ax.errorbar(
        mean[top],
        y,
        xerr=_95 * np.nan_to_num(error[top]),
        fmt="o",
        color="k",
        markersize=2.5,
        elinewidth=0.8,
        capsize=0,
    )
    ax.axvline(0, color="0.4", linewidth=0.6)
    ax.set_ylim(n - 0.4, -0.6)
    ax.set_yticks(y, one.var_names[top], fontsize=7.5)
    ax.tick_params(axis="y", length=0, pad=2)
    ax.tick_params(axis="x", labelsize=7.5)
    ax.locator_params(axis="x", nbins=4)
    ax.spines[["top", "right", "left"]].set_visible(False)
    baseline, genes = float(one.obs["baseline"].iloc[0]), float(mean.sum(dtype=np.float64))
    parts = f"baseline {baseline:.1f} {'-' if genes < 0 else '+'} genes {abs(genes):.1f}"
    ax.set_title(parts.replace("-", "−"), fontsize=7.5, loc="left", color="0.3")
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 9}
    ax.annotate("■", (0, 1), (0, 17), color=color, **place)
    ax.annotate(f"{one.obs_names[0]} ({int(one.obs['n_cells'].iloc[0]):,})", (0, 1), (10, 17), **place)


def _arrange(figure: Figure, axes: list[Axes], size: tuple[float, float], n_columns: int) -> None:
    """Put panels of one size into rows and columns, with the legend on top, and fit the figure around them."""
    n_rows, dpi = -(-len(axes) // n_columns), figure.dpi
    legend = figure.legend(
        *axes[0].get_legend_handles_labels(), loc="upper left", ncols=2, frameon=False, fontsize=8, borderaxespad=0.3
    )
    figure.set_size_inches(2 * size[0], 2 * size[1])
    for ax in axes:
        ax.set_position((0.2, 0.2, 0.5, 0.5))
    figure.draw_without_rendering()
    room = np.zeros((n_rows, n_columns, 4))  # for labels at the left, bottom, right, top; inches
    for i, ax in enumerate(axes):
        inner = ax.get_window_extent()
        outer = ax.get_tightbbox() or inner
        around = (inner.x0 - outer.x0, inner.y0 - outer.y0, outer.x1 - inner.x1, outer.y1 - inner.y1)
        room[divmod(i, n_columns)] = np.array(around) / dpi + _MARGIN
    top = legend.get_window_extent().height / dpi + 0.05
    left, right, below, above = room[..., 0].max(0), room[..., 2].max(0), room[..., 1].max(1), room[..., 3].max(1)
    width, height = (left + size[0] + right).sum(), (below + size[1] + above).sum() + top
    x0 = np.cumsum(left + size[0] + right) - right - size[0]
    y0 = height - top - np.cumsum(below + size[1] + above) + below
    figure.set_size_inches(width, height)
    for i, ax in enumerate(axes):
        row, column = divmod(i, n_columns)
        ax.set_position((x0[column] / width, y0[row] / height, size[0] / width, size[1] / height))
