"""``pl.counterfactual``: predicted change of every gene, beside the observed one where that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from scscore.io.keys import Keys
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_UP, _DOWN, _OTHER = "#D55E00", "#0072B2", "0.65"
_WIDTH, _LINE, _SQUARE = 2.4, 0.17, 3.4  # of the ranking, of one of its genes, of the scatter; inches
_95 = 1.959964  # standard errors


def counterfactual(
    adata: AnnData,
    *,
    observed: pd.Series | ArrayLike | None = None,
    n_genes: int = 15,
    key: str = "scscore",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Mean change of the genes between the cells and their counterfactuals.

    Without `observed`: the genes that change most, the largest change on top. With it: the predicted against the observed change of all genes,
    with the diagonal, on which a perfect prediction lies; the title has Pearson's correlation and the root mean square
    error over genes. Lines are 1.96 standard errors over cells.

    Parameters
    ----------
    adata
        What :func:`scscore.tl.counterfactual` returned.
    observed
        The change that was measured, on the scale of ``adata.X`` (log expression as the encoder sees it): a Series by gene, of which
        those in ``adata.var_names`` are used, or one value per gene. NaN for genes to be left out.
    n_genes
        Genes to rank; with `observed`, genes with a name: those where either change is largest.
    key
        The `key_added` of that call.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``var[f"{key}_delta"]``, ``var[f"{key}_delta_se"]``, ``obs[f"{key}_source"]`` and
    ``obs[f"{key}_to"]``. Writes nothing.

    Raises
    ------
    KeyError
        `adata` has no mean change under `key`.
    ValueError
        `n_genes` below one, `observed` of another length, not of numbers, or with fewer than two genes of `adata`.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.pbmc()
    >>> model = scs.tl.fit(cells, "cell_type", max_epochs=2, progress=False)
    >>> b_cells = cells[cells.obs["cell_type"] == "CD19+ B"].copy()
    >>> moved = scs.tl.counterfactual(b_cells, model, to="CD14+ Monocyte", progress=False)
    >>> axes = scs.pl.counterfactual(moved, show=False)
    """
    _base.check_positive("n_genes", n_genes)
    keys = Keys(key)
    slot = keys.delta
    if slot not in adata.var:
        raise KeyError(
            f"adata.var[{slot!r}] is missing (key={key!r}): pass what scscore.tl.counterfactual returned, and the key= that its key_added= named. "
            "A model of a stored representation knows no genes."
        )
    change = adata.var[slot].to_numpy(np.float64)
    error = np.nan_to_num(_95 * adata.var[keys.delta_se].to_numpy(np.float64))  # NaN for a single cell
    names = adata.var_names.to_numpy(dtype=object)
    if observed is not None:
        measured = _measured(observed, adata)
        given, ax = ax, _base.axes_of_size(ax, (_SQUARE, _SQUARE))
        kept = np.isfinite(measured)
        _draw_scatter(ax, measured[kept], change[kept], error[kept], names[kept], n_genes)
        ax.set_xlabel("observed change", fontsize=9)
        ax.set_ylabel("predicted change", fontsize=9)
        ax.annotate(
            _moved(adata, keys), (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", fontsize=9
        )
        residual = change[kept] - measured[kept]
        with np.errstate(invalid="ignore"):  # of no change at all there is no correlation
            r = float(np.corrcoef(change[kept], measured[kept])[0, 1])
        title = f"Pearson r {r:.3f}, RMSE {np.sqrt((residual**2).mean()):.3f}, {int(kept.sum()):,} genes"
        ax.set_title(title, fontsize=10, pad=18)
        return _base.finish(ax, given, show=show, return_fig=return_fig)

    top = np.argsort(-np.abs(change), kind="stable")[:n_genes]
    given, ax = ax, _base.axes_of_size(ax, (_WIDTH, _LINE * (len(top) + 1)))
    y = np.arange(len(top))
    ax.barh(y, change[top], height=0.75, color=[_UP if value > 0 else _DOWN for value in change[top]])
    ax.hlines(y, change[top] - error[top], change[top] + error[top], color="k", linewidth=0.8)
    ax.axvline(0, color="0.4", linewidth=0.6)
    ax.grid(False)  # scanpy.set_figure_params turns grids on
    ax.set_ylim(len(top) - 0.4, -0.6)
    font = min(9.0, 0.8 * 72 * _base.inches(ax)[1] / len(top))
    ax.set_yticks(y, names[top], fontsize=font)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=9)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("predicted change of log expression", fontsize=9)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_title(_moved(adata, keys), fontsize=9)
    return _base.finish(ax, given, show=show, return_fig=return_fig)


def _moved(adata: AnnData, keys: Keys) -> str:
    """From where to where the cells were carried, in words."""
    ends = []
    for end in (keys.source, keys.to):
        found = adata.obs[end].astype(str).unique()
        ends.append(found[0] if len(found) == 1 else f"{len(found)} classes")
    return f"{' → '.join(ends)} ({adata.n_obs:,} cells)"


def _measured(observed: object, adata: AnnData) -> NDArray[np.float64]:
    """Observed change of the genes of `adata`, ``(n_vars,)``; NaN where there is none."""
    if isinstance(observed, pd.Series):
        doubled = observed.index[observed.index.duplicated()].unique().tolist()
        if doubled:
            raise ValueError(f"observed names genes more than once: {doubled[:5]}.")
        observed = observed.reindex(adata.var_names)
    try:
        values = np.array(observed, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"observed must hold one number per gene: {error}.") from None
    if values.shape != (adata.n_vars,):
        raise ValueError(
            f"observed must have one value for each of the {adata.n_vars} genes of adata, got shape {values.shape}; pass a Series to go by names."
        )
    values[~np.isfinite(values)] = np.nan
    if np.isfinite(values).sum() < 2:
        raise ValueError(
            f"observed has numbers for {int(np.isfinite(values).sum())} genes of adata, two are the least; genes are named like {adata.var_names[:3].tolist()}."
        )
    return values


def _draw_scatter(
    ax: Axes,
    observed: NDArray[np.float64],
    change: NDArray[np.float64],
    error: NDArray[np.float64],
    names: NDArray[np.object_],
    n_genes: int,
) -> None:
    ends = np.array([min(observed.min(), (change - error).min()), max(observed.max(), (change + error).max())])
    room = 0.08 * float(ends[1] - ends[0]) or 1.0
    limits = (ends[0] - room, ends[1] + room)
    top = np.argsort(-np.maximum(np.abs(observed), np.abs(change)), kind="stable")[:n_genes]
    colors = np.full(len(names), _OTHER, dtype=object)
    colors[top] = [_UP if value > 0 else _DOWN for value in observed[top]]
    ax.plot(limits, limits, color="0.4", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    for line in (ax.axhline, ax.axvline):
        line(0, color="0.85", linewidth=0.6, zorder=0.5)
    ax.vlines(observed, change - error, change + error, color=list(colors), linewidth=0.8, zorder=2)
    ax.scatter(observed, change, s=12, c=list(colors), linewidths=0, zorder=3)
    ax.set(xlim=limits, ylim=limits)
    ax.grid(False)
    ax.tick_params(labelsize=9)
    ax.locator_params(nbins=5)
    ax.spines[["top", "right"]].set_visible(False)
    _write_names(ax, observed, change, [int(i) for i in top], names)


def _write_names(
    ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], top: list[int], names: NDArray[np.object_]
) -> None:
    """Names beside their dots, nearer ones first, where they hide neither a dot with a name nor another name; with a line where that is far."""
    from matplotlib.transforms import Bbox

    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    point, dots = ax.figure.dpi / 72, ax.transData.transform(np.column_stack([x, y]))
    inner = ax.get_window_extent()
    taken = [Bbox.from_extents(*(dots[i] - 3 * point), *(dots[i] + 3 * point)) for i in top]
    for i in top:
        text = ax.text(0, 0, str(names[i]), fontsize=7.5)
        size = text.get_window_extent()
        text.remove()
        place = _free_place(dots[i], size, point, inner, taken, dots)
        if place is None:
            continue  # no room is left: the dot keeps its colour
        box, distance = place
        taken.append(box)
        ax.annotate(
            str(names[i]),
            (x[i], y[i]),
            (np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]) - dots[i]) / point,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            if distance > 4
            else None,
        )


def _free_place(
    dot: NDArray[np.float64],
    size: Bbox,
    point: float,
    inner: Bbox,
    taken: list[Bbox],
    dots: NDArray[np.float64],
) -> tuple[Bbox, int] | None:
    """Box beside a dot that meets nothing that is taken and, if possible, no dot at all, and its distance in points."""
    from matplotlib.transforms import Bbox

    second_best = None
    half = np.array([size.width, size.height]) / 2
    for distance in (4, 8, 13, 20, 28, 38):
        for angle in np.radians((0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240)):
            toward = np.array([np.cos(angle), np.sin(angle)])
            centre = dot + toward * (distance * point + np.abs(toward) * half)
            box = Bbox.from_extents(*(centre - half), *(centre + half))
            inside = inner.x0 <= box.x0 and box.x1 <= inner.x1 and inner.y0 <= box.y0 and box.y1 <= inner.y1
            if not inside or any(Bbox.intersection(box, other) for other in taken):
                continue
            if not (np.abs(dots - centre) < half + 2 * point).all(axis=1).any():
                return box, distance
            second_best = second_best or (box, distance)
    return second_best
