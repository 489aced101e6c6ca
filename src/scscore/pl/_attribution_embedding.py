"""``pl.attribution_embedding``: where in an embedding a gene speaks for its cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scscore import get
from scscore.io.keys import Keys
from scscore.pl import _base
from scscore.pl._attribution_heatmap import against
from scscore.pl._panels import axes_for_panels, fit_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 2.2  # of a panel, inches


def attribution_embedding(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    basis: str = "X_umap",
    key: str = "scscore",
    show: bool | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Attributions of single cells in an embedding, one panel per gene: red where the gene speaks for the cell's class, blue where against it.

    Panels have a colour scale each, symmetric around zero, up to the 99th percentile of the size. Cells with the largest values are drawn last.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.attribute` with `per_cell`.
    genes
        One gene or several.
    basis
        Key of ``obsm`` with the embedding, of which the first two columns are drawn.
    key
        The `key_added` of the attribution.
    show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    List of ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``layers[f"{key}_attribution"]`` and ``obsm[basis]``. Writes nothing.

    Raises
    ------
    KeyError
        `adata` has no attributions of single cells under `key`, no such embedding, or no such gene.
    ValueError
        No gene.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.pbmc()
    >>> model = scs.tl.fit(cells, "cell_type", max_epochs=2, progress=False)
    >>> some = cells[:60].copy()
    >>> scs.tl.attribute(some, model, per_cell=True, progress=False)
    >>> axes = scs.pl.attribution_embedding(some, ["CD79A", "NKG7"], show=False)
    """
    keys, names = Keys(key), [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise ValueError("genes must name at least one gene.")
    found = get.attribution(adata, key=key)
    if keys.attribution not in adata.layers:
        raise KeyError(
            f"adata.layers[{keys.attribution!r}] is missing (key={key!r}): run scscore.tl.attribute with per_cell=True."
        )
    if basis not in adata.obsm:
        raise KeyError(f"basis={basis!r} is not in adata.obsm; available: {sorted(adata.obsm)}.")
    missing = [name for name in names if name not in adata.var_names]
    if missing:
        raise KeyError(f"genes: {missing[:5]} are not in adata.var_names.")
    points = np.asarray(adata.obsm[basis])[:, :2]
    layer = adata[:, names].layers[keys.attribution]
    values = layer.toarray() if sp.issparse(layer) else np.asarray(layer)
    axes, size = axes_for_panels(len(names), (_SIDE, _SIDE)), float(np.clip(12_000 / adata.n_obs, 1, 20))
    for ax, name, value in zip(axes, names, values.T, strict=True):
        order = np.argsort(np.abs(value), kind="stable")
        largest = float(np.quantile(np.abs(value), 0.99)) or float(np.abs(value).max()) or 1.0
        x, y = points[order].T
        image = ax.scatter(
            x, y, c=value[order], s=size, cmap="RdBu_r", vmin=-largest, vmax=largest, linewidths=0, rasterized=True
        )
        ax.set_facecolor("0.93")
        ax.set_title(name, fontsize=9, loc="left", style="italic")
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set(color="0.6", linewidth=0.6)
        bar = ax.inset_axes((1.03, 0, 0.05, 0.6))
        ax.figure.colorbar(image, cax=bar)
        bar.tick_params(labelsize=7)
        bar.grid(False)
        ax.grid(False)
    axes[-1].set_xlabel(f"{basis.removeprefix('X_').upper()}; nats against {against(found)}", fontsize=8)
    fit_panels(axes, (_SIDE, _SIDE))
    if show is None:
        from scanpy import settings

        show = settings.autoshow
    done = _base.finish(axes[0], axes[0], show=show, return_fig=return_fig)
    return axes if done is axes[0] else done  # type: ignore[return-value]
