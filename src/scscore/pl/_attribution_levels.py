"""``pl.attribution_levels``: at which noise level the genes of a class speak."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from scscore import get
from scscore.io.keys import Keys
from scscore.pl import _base
from scscore.pl._attribution_heatmap import against, class_colors, positive_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _LINE = 2.6, 0.19  # of the axes and of a gene, inches


def attribution_levels(
    adata: AnnData,
    target: str,
    *,
    n_genes: int = 15,
    key: str = "scscore",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """When the genes of a class speak: nats that every step from noise to the clean cell adds, as a heatmap of genes and levels.

    What is added on the left is coarse identity, known from a noisy cell already; what comes on the right are fine differences. The numbers at the right are
    the sums over the levels.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.attribute` with `by_level`.
    target
        The class.
    n_genes
        Genes to show, those with the largest mean evidence.
    key
        The `key_added` of the attribution.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``varm[f"{key}_attribution_levels"]`` and what
    :func:`scscore.get.attribution` reads. Writes nothing.

    Raises
    ------
    KeyError
        `adata` has no attributions by level under `key`, or `target` is no class of them.
    ValueError
        `n_genes` below one.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.pbmc()
    >>> model = scs.tl.fit(cells, "cell_type", max_epochs=2, progress=False)
    >>> some = cells[:60].copy()
    >>> scs.tl.attribute(some, model, target="cell_type", by_level=True, progress=False)
    >>> axes = scs.pl.attribution_levels(some, "Dendritic", show=False)
    """
    keys, n_genes = Keys(key), positive_count(n_genes, 15)
    found = get.attribution(adata, key=key)
    if keys.attribution_levels not in adata.varm:
        raise KeyError(
            f"adata.varm[{keys.attribution_levels!r}] is missing (key={key!r}): run scscore.tl.attribute with by_level=True."
        )
    if target not in found.obs_names:
        raise KeyError(f"target={target!r} is no class with cells; there are {found.obs_names.tolist()}.")
    stored = adata.uns[keys.attribution]
    k = [str(name) for name in stored["classes"]].index(target)
    mean = np.asarray(found[target].X)[0]
    top = np.argsort(-mean, kind="stable")[: min(n_genes, found.n_vars)]
    values = np.asarray(adata.varm[keys.attribution_levels], dtype=np.float64)[top, k]
    ax = _base.axes_of_size(given := ax, (_WIDTH, _LINE * len(top)))
    largest = np.abs(values).max() or 1.0
    image = ax.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="none")
    levels = [f"{value:.1f}".removesuffix(".0").replace("-", "−") for value in np.asarray(stored["log_snr"])]
    ax.set_xticks(np.arange(values.shape[1]), [*levels, "clean\ncell"], fontsize=7.5)
    ax.set_xlabel("noise level reached (log SNR)", fontsize=8)
    ax.set_yticks(np.arange(len(top)), found.var_names[top], fontsize=7.5)
    ax.tick_params(length=0)
    for row, gene in enumerate(top):
        ax.annotate(
            f"{mean[gene]:.2f}".replace("-", "−"),
            (1, row),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
        )
    ax.annotate(
        "■",
        (0, 1),
        (0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=class_colors(found)[target],
    )
    ax.annotate(
        f"{target} ({int(found[target].obs['n_cells'].iloc[0]):,}) against {against(found)}",
        (0, 1),
        (10, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
    )
    ax.annotate("sum", (1, 1), (4, 3), xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color="0.3")
    width = _base.inches(ax)[0]
    bar = ax.inset_axes((1 + 0.55 / width, 0.0, 0.13 / width, min(1.0, 1.8 / _base.inches(ax)[1])))
    ax.figure.colorbar(image, cax=bar).set_label("nats added", fontsize=8)
    bar.tick_params(labelsize=7)
    bar.grid(False)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(color="0.6", linewidth=0.6)
    return _base.finish(ax, given, show=show, return_fig=return_fig)
