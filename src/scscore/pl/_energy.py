"""``pl.energy``: energies of cells, basins and barriers, displayed on an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore.io.columns import number_column
from scscore.io.energies import energy_unit, stored_energy
from scscore.io.keys import Keys
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

_SIZE = (4.4, 4.0)  # inches
_MOST_MINIMA = 30
_MOST_BARRIERS = 12
_RASTERIZE_FROM = 5000  # cells, beyond which a vector graphic of points is slow to open

Kind = Literal["smoothed", "raw", "gap"]


def energy(
    adata: AnnData,
    *,
    basis: str = "umap",
    kind: Kind | None = None,
    basins: bool = True,
    key: str = "scscore",
    cmap: str | None = None,
    size: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Cells on an embedding, coloured by energy; low energy, where cells are common, is dark.

    The energy is computed in the model's space and only displayed here: neither the colours nor the basins depend on the
    embedding, and how densely cells lie in it says nothing about their energy. The colours span the 1st to the 99th percentile; the
    colour bar is pointed at an end beyond which there are cells.

    After :func:`scscore.tl.energy_landscape`, numbered circles mark the cell at the bottom of every basin, for the 30 deepest
    basins. Every basin is joined to the deeper one that is reached over the lowest barrier (of several the one that is nearest in
    the picture); the barriers are listed at the right, in nats, up the slope and, in brackets, back. Lines show
    which basins are joined, not the course of a path. Up to 12 barriers are listed and drawn.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.energy`.
    basis
        Embedding: ``obsm[f"X_{basis}"]`` or ``obsm[basis]``, of which the first two columns are drawn.
    kind
        ``"smoothed"``: mean energy of a cell and its neighbours; ``"raw"``: energy of the single cell; ``"gap"``: path less flow
        estimate, on a scale around zero, to see which energies to trust. ``None``: smoothed energies where there are any.
    basins
        Mark the basins, if they were computed.
    key
        The `key_added` of the energies.
    cmap
        Matplotlib colour map. ``None``: viridis, or a diverging map for the gap.
    size
        Area of a cell, square points. ``None``: by the number of cells.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads the embedding, one of ``obs[f"{key}_energy_smoothed"]``,
    ``obs[f"{key}_energy"]``, ``obs[f"{key}_energy_gap"]``, and for the basins ``obs[f"{key}_basin"]``, ``obs[f"{key}_energy_smoothed"]`` and
    ``uns[f"{key}_energy_landscape"]``. Writes nothing.

    Raises
    ------
    KeyError
        No such embedding, or not what `kind` asks for.
    ValueError
        An embedding of less than two dimensions, unknown `kind`, NaN or infinite energies, renamed basins.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300, separation=12)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.energy(cells, model, n_steps=4, gap=False, progress=False)
    >>> scs.tl.energy_landscape(cells, model)
    >>> axes = scs.pl.energy(cells, basis="toy", show=False)

    Notes
    -----
    After Chen et al., bioRxiv 2025.11.28.690021.
    """
    if kind not in (None, "smoothed", "raw", "gap"):
        raise ValueError(f"kind must be 'smoothed', 'raw', 'gap' or None, got {kind!r}.")
    keys = Keys(key)
    if kind is None:
        kind = "smoothed" if keys.energy_smoothed in adata.obs else "raw"
    values, label = _values(adata, keys, kind)
    points, name = _embedding(adata, basis)

    given, ax = ax, _base.axes_of_size(ax, _SIZE)
    order = np.random.default_rng(0).permutation(len(values))  # a row order by cell type would hide one under the other
    low, high = _limits(values, symmetric=kind == "gap")
    image = ax.scatter(
        points[order, 0],
        points[order, 1],
        c=values[order],
        s=float(np.clip(30_000 / len(values), 2, 30)) if size is None else size,
        linewidths=0,
        cmap=_pointed(cmap or ("coolwarm" if kind == "gap" else "viridis"), values, low, high),
        vmin=low,
        vmax=high,
        rasterized=len(values) >= _RASTERIZE_FROM,
    )
    ax.set(xticks=[], yticks=[], xlabel=f"{name}1", ylabel=f"{name}2")
    ax.spines[["top", "right"]].set_visible(False)
    note = f"energies of the model's space, displayed on {name}"
    ax.annotate(
        note, (0, 0), (0, -20), xycoords="axes fraction", textcoords="offset points", color="0.4", fontsize=8, va="top"
    )
    _base.add_colorbar(ax, image, label)
    ax.child_axes[-1].yaxis.set_major_locator(_few_ticks())
    if basins and keys.basin in adata.obs and keys.energy_smoothed in adata.obs:
        _draw_basins(ax, adata, keys, points)
    return _base.finish(ax, given, show=show, return_fig=return_fig)


def _values(adata: AnnData, keys: Keys, kind: Kind) -> tuple[NDArray[np.float64], str]:
    """What the colours show, and the label of their bar."""
    unit = energy_unit(adata, keys)
    if kind == "raw":
        return stored_energy(adata, keys), f"energy ({unit})"
    name, call, label = {
        "smoothed": (keys.energy_smoothed, "scscore.tl.energy_landscape", f"smoothed energy ({unit})"),
        "gap": (keys.energy_gap, "scscore.tl.energy with gap=True", f"path less flow energy ({unit})"),
    }[kind]
    missing = f"adata.obs[{name!r}] is missing (key={keys.key_added!r}): run {call} first."
    return number_column(adata, name, missing=missing), label


def _embedding(adata: AnnData, basis: str) -> tuple[NDArray[np.float64], str]:
    """The first two columns of an embedding, and its name on the axes."""
    slot = f"X_{basis}" if f"X_{basis}" in adata.obsm else basis
    if slot not in adata.obsm:
        raise KeyError(
            f"basis={basis!r}: neither X_{basis} nor {basis} is in adata.obsm; available: {list(adata.obsm)}."
        )
    points = adata.obsm[slot]
    points = np.asarray(points.toarray() if hasattr(points, "toarray") else points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(f"basis={basis!r}: adata.obsm[{slot!r}] must have at least two columns, got {points.shape}.")
    name = slot.removeprefix("X_")
    return points[:, :2], name.upper() if name in ("umap", "pca", "tsne") else name


def _limits(values: NDArray[np.float64], *, symmetric: bool) -> tuple[float, float]:
    low, high = np.quantile(values, [0.01, 0.99]).tolist()
    if symmetric:
        high = max(abs(low), abs(high))
        low = -high
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _pointed(cmap: str, values: NDArray[np.float64], low: float, high: float) -> Colormap:
    """The colour map, whose bar is pointed where there are values beyond its ends."""
    from matplotlib import colormaps

    below, above = values.min() < low, values.max() > high
    chosen = colormaps[cmap].copy()
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    chosen.colorbar_extend = extend  # type: ignore[assignment]
    return chosen


def _few_ticks() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)


def _draw_basins(ax: Axes, adata: AnnData, keys: Keys, points: NDArray[np.float64]) -> None:
    """Numbered circles at the minima, lines and a list for the barriers."""
    smoothed = pd.Series(adata.obs[keys.energy_smoothed].to_numpy())
    basin = adata.obs[keys.basin].astype(str).to_numpy()
    if not all(name.isdigit() for name in basin):
        renamed = sorted({name for name in basin if not name.isdigit()})[:3]
        raise ValueError(
            f"adata.obs[{keys.basin!r}] has names that scscore.tl.energy_landscape did not give: {renamed}. Run it again, and "
            "rename basins in a copy of the column; or leave them out with basins=False."
        )
    # of a subset of the cells the lowest that is left
    lowest = {int(name): int(row) for name, row in smoothed.groupby(basin).idxmin().items()}
    shown = sorted(lowest)[:_MOST_MINIMA]
    at = {name: points[lowest[name]] for name in shown}
    barriers = np.asarray(adata.uns.get(keys.energy_landscape, {}).get("barriers", np.empty((0, 0))))
    passes = _passes(barriers, at)
    for i, j in passes[:_MOST_BARRIERS]:
        ax.plot(*np.array([at[i], at[j]]).T, color="w", linewidth=2.4, zorder=3)
        ax.plot(*np.array([at[i], at[j]]).T, color="k", linewidth=0.9, zorder=3)
    for name in reversed(shown):  # the deepest on top
        ax.plot(*at[name], "o", markersize=13, markerfacecolor="w", markeredgecolor="k", markeredgewidth=0.9, zorder=4)
        ax.annotate(str(name), at[name], ha="center", va="center_baseline", fontsize=8, zorder=4)
    lines = [f"{i} → {j}:  {barriers[i, j]:.1f} ({barriers[j, i]:.1f})" for i, j in passes[:_MOST_BARRIERS]]
    if len(passes) > _MOST_BARRIERS:
        lines.append(f"... {len(passes) - _MOST_BARRIERS} more")
    if lines:
        unit = energy_unit(adata, keys)
        text = "\n".join([f"barrier (back), {unit}", *lines])
        ax.text(
            1 + 0.12 / _base.inches(ax)[0], 1.0, text, transform=ax.transAxes, va="top", fontsize=8, linespacing=1.3
        )


def _passes(barriers: NDArray[np.float64], at: dict[int, NDArray[np.float64]]) -> list[tuple[int, int]]:
    """Every basin with the deeper one behind its lowest barrier, where there is a path to one."""
    found = []
    for i in sorted(at):
        deeper = [j for j in at if j < i < len(barriers) and np.isfinite(barriers[i, j])]
        if deeper:
            found.append((i, min(deeper, key=lambda j: (barriers[i, j], float(np.linalg.norm(at[i] - at[j]))))))
    return found
