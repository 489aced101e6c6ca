"""``pl.funnel``: energy against the distance to a reference state."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get
from scscore.io.columns import number_column
from scscore.io.energies import energy_unit, stored_energy
from scscore.io.keys import Keys
from scscore.io.params import stored_params
from scscore.pl import _base
from scscore.pl._panels import _columns, axes_for_panels, fit_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PANELS = 12
_RASTERIZE_FROM = 5000  # points
_POINT, _REFERENCE = "#0072B2", "#D55E00"


def funnel(
    adata: AnnData,
    *,
    groups: str | Sequence[str] | None = None,
    color: str | None = None,
    key: str = "scscore",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Energy against the distance to the reference state, one panel per group.

    Energies are counted from the lowest of the group. The star is the reference, the point at the smallest distance; the
    grey band reaches to the scale of P_near. Written in every panel: the Spearman correlation of energy and distance; P_near and, in
    brackets, its value for a flat energy, equal everywhere; the rank of the reference by energy. Several panels share both axes. The
    highest half percent of the energies, where it would take more than a third of the height, is drawn as triangles at the upper edge.

    Parameters
    ----------
    adata
        Points after :func:`scscore.tl.funnel`.
    groups
        Groups to draw, 12 at most: one name or several. ``None``: all.
    color
        Column of ``obs`` with classes of points, e.g. the quality of docking poses. Rare classes are drawn on top.
    key
        The `key_added` of the funnels.
    ax
        For a single group.
    show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes`` (a list of them for several groups), ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``uns[f"{key}_funnel"]``,
    ``obs[f"{key}_energy"]``, and the columns of distances and groups that :func:`scscore.tl.funnel` was given. Writes nothing.

    Raises
    ------
    KeyError
        No funnels under `key`, unknown group, `color` is no column.
    TypeError
        `groups` is no name and no list of names.
    ValueError
        More than 12 groups, none, or `ax` for several.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.energy(cells, model, n_steps=4, gap=False, progress=False)
    >>> scs.tl.funnel(cells, reference="cell_0", use_rep="X_toy")
    >>> axes = scs.pl.funnel(cells, show=False)

    Notes
    -----
    After Chen et al., bioRxiv 2025.11.28.690021; P_near: Bhardwaj et al., Nature 538, 329 (2016).
    """
    keys = Keys(key)
    measures = get.funnel(adata, key=key)
    chosen = _chosen(measures.index.tolist(), groups)
    if ax is not None and len(chosen) > 1:
        raise ValueError(
            f"ax takes one group, but {len(chosen)} are to be drawn: name one in groups=, or leave ax out."
        )
    params = stored_params(adata, keys.funnel)
    panels = _panels(adata, keys, params, measures.loc[chosen])
    classes = None if color is None else _base.groups_of(adata, color, "color")

    single, given = len(chosen) == 1, ax
    size = (3.6, 3.0) if single else (2.5, 2.0)
    axes = [_base.axes_of_size(ax, size)] if single else axes_for_panels(len(chosen), size)
    top = _ceiling(panels)
    right = max(panel.distance.max() for panel in panels)
    for one, panel in zip(axes, panels, strict=True):
        one.axvspan(0, params["scale"], color="0.92", linewidth=0, zorder=0)
        _draw_points(one, adata, panel, classes, color, top)
        one.set_xlim(-0.03 * right, 1.03 * right)
        one.set_ylim(-0.05 * top, 1.08 * top)
        _write_measures(one, panel, large=single)
        one.set(xlabel=_distance_label(params), ylabel=f"energy above lowest ({energy_unit(adata, keys)})")
        one.spines[["top", "right"]].set_visible(False)
        if not (single and panel.name == "all"):
            one.set_title(_wrapped(panel.name, 30 if single else 24), fontsize=9)
    if classes is not None:
        _add_legend(axes[_columns(len(axes)) - 1], adata, classes, str(color))
    if single:
        return _base.finish(axes[0], given, show=show, return_fig=return_fig)
    fit_panels(axes, size)
    if show is None:
        from scanpy import settings

        show = settings.autoshow
    done = _base.finish(axes[0], axes[0], show=show, return_fig=return_fig)
    return axes if done is axes[0] else done


class _Panel(NamedTuple):
    name: str
    rows: NDArray[np.int64]
    energy: NDArray[np.float64]  # above the lowest of the group
    distance: NDArray[np.float64]
    measures: pd.Series
    reference: int  # position in the group


def _chosen(names: list[str], groups: str | Sequence[str] | None) -> list[str]:
    """Names of the groups to draw."""
    if groups is None:
        if len(names) > _MOST_PANELS:
            raise ValueError(
                f"{len(names)} groups are too many for one figure, {_MOST_PANELS} at most: name some, for instance "
                f"groups={names[:2]}, and draw the others in figures of their own."
            )
        return names
    wanted = [groups] if isinstance(groups, str) else groups
    if not isinstance(wanted, Sequence | np.ndarray | pd.Index | pd.Series) or not all(
        isinstance(name, str) for name in wanted
    ):
        raise TypeError(f"groups must be a name of a group or a list of names, got {groups!r}.")
    if not 0 < len(wanted) <= _MOST_PANELS:
        raise ValueError(f"groups must name between 1 and {_MOST_PANELS} groups, got {len(wanted)}.")
    unknown = [str(name) for name in wanted if name not in names]
    if unknown:
        raise KeyError(
            f"groups: no funnel of {unknown[:5]}; there are {names[:5]}"
            + (f" and {len(names) - 5} more." if len(names) > 5 else ".")
        )
    return [str(name) for name in wanted]


def _panels(adata: AnnData, keys: Keys, params: dict[str, Any], measures: pd.DataFrame) -> list[_Panel]:
    """Energies and distances of the points of every group, as :func:`scscore.tl.funnel` saw them."""
    energy = stored_energy(adata, keys)
    column = params["distance"] or keys.reference_distance
    distance = number_column(
        adata,
        column,
        missing=f"adata.obs[{column!r}], the distances of the funnels, is missing: run scscore.tl.funnel again.",
    )
    if params["groupby"] is None:
        groups = np.full(adata.n_obs, "all", dtype=object)
    else:
        groups = _base.groups_of(adata, params["groupby"], "groupby of scscore.tl.funnel").to_numpy(dtype=object)
    panels = []
    for name, row in measures.iterrows():
        rows = np.flatnonzero(groups == name)
        if len(rows) != row["n"]:
            raise ValueError(
                f"group {name!r} has {len(rows)} points, its funnel was computed from {row['n']}: run scscore.tl.funnel again."
            )
        inside = energy[rows]
        panels.append(_Panel(str(name), rows, inside - inside.min(), distance[rows], row, int(distance[rows].argmin())))
    return panels


def _ceiling(panels: list[_Panel]) -> float:
    """Upper end of the energies, without a few that would press all others down."""
    energies = np.concatenate([panel.energy for panel in panels])
    most = float(np.quantile(energies, 0.995))
    highest = float(energies.max())
    return (highest if highest <= 1.5 * most else most) or 1.0


def _draw_points(
    ax: Axes, adata: AnnData, panel: _Panel, classes: pd.Series | None, color: str | None, top: float
) -> None:
    n = len(panel.rows)
    style: dict[str, Any] = {
        "linewidths": 0,
        "alpha": float(np.clip(1.2 - 0.22 * np.log10(max(n, 10)), 0.25, 0.9)),
        "rasterized": n >= _RASTERIZE_FROM,
    }
    area = float(np.clip(3000 / n, 5, 22))
    beyond = panel.energy > top
    colors = np.full(n, _POINT, dtype=object)
    order = np.arange(n)
    if classes is not None:
        names = classes.cat.categories.tolist()
        of_class = dict(zip(names, _base.colors_of(adata, str(color), names), strict=True))
        values = classes.iloc[panel.rows]
        colors = np.array([of_class.get(name, "0.75") for name in values], dtype=object)
        counts = classes.value_counts()
        order = np.argsort([-counts.get(name, np.inf) for name in values], kind="stable")
    for marker, part in (("o", order[~beyond[order]]), ("^", order[beyond[order]])):
        if len(part):
            height = np.minimum(panel.energy[part], 1.04 * top)
            ax.scatter(panel.distance[part], height, c=colors[part].tolist(), s=area, marker=marker, zorder=2, **style)
    ax.plot(
        panel.distance[panel.reference],
        min(panel.energy[panel.reference], 1.04 * top),
        marker="*",
        markersize=13,
        markerfacecolor=_REFERENCE,
        markeredgecolor="w",
        markeredgewidth=0.9,
        linestyle="none",
        zorder=4,
        clip_on=False,
    )


def _write_measures(ax: Axes, panel: _Panel, *, large: bool) -> None:
    row = panel.measures
    text = "\n".join(
        [
            f"Spearman {row['spearman']:.2f}",
            f"P_near {_short(row['p_near'])} (flat {_short(row['p_near_flat'])})",
            f"rank {row['reference_rank']:,} of {row['n']:,}",
        ]
    )
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x = (panel.distance - left) / (right - left)
    y = (np.minimum(panel.energy, top) - bottom) / (top - bottom)
    # in the corner with the fewest points
    corners = {("right", "bottom"): (x > 0.4) & (y < 0.3), ("left", "top"): (x < 0.6) & (y > 0.7)}
    corners["right", "top"] = (x > 0.4) & (y > 0.7)
    side, end = min(corners, key=lambda corner: int(corners[corner].sum()))
    box = {"facecolor": "w", "alpha": 0.75, "edgecolor": "none", "pad": 1.5} if corners[side, end].any() else None
    ax.text(
        {"left": 0.03, "right": 0.985}[side],
        {"bottom": 0.03, "top": 0.97}[end],
        text,
        transform=ax.transAxes,
        ha=side,
        va=end,
        fontsize=9 if large else 8,
        bbox=box,
        zorder=5,
    )


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _distance_label(params: dict[str, Any]) -> str:
    return params["distance"] or _wrapped(f"distance to {params['reference']}", 34)


def _wrapped(name: str, width: int) -> str:
    """A name in at most two lines."""
    return "\n".join(textwrap.wrap(name, width, max_lines=2, placeholder=" ...")) or name


def _add_legend(ax: Axes, adata: AnnData, classes: pd.Series, color: str) -> None:
    names = classes.cat.categories.tolist()
    for name, shade in zip(names, _base.colors_of(adata, color, names), strict=True):
        ax.scatter([], [], c=shade, s=22, linewidths=0, label=_wrapped(name, 24))
    ax.legend(
        title=color,
        loc="upper left",
        bbox_to_anchor=(1.03, 1.0),
        frameon=False,
        borderaxespad=0,
        fontsize=8,
        title_fontsize=8,
        handletextpad=0.2,
        alignment="left",
    )
