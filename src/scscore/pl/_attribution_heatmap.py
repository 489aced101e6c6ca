"""``pl.attribution_heatmap``: the strongest genes of all classes, classes against genes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import FuncNorm
    from matplotlib.figure import Figure

_BAR, _TREE = 0.1, 0.45  # of the class colours and of the dendrogram, inches
_COLUMNS = 90  # genes, about


def attribution_heatmap(
    adata: AnnData,
    *,
    kind: Literal["presence", "total", "absence"] = "presence",
    n_genes: int | None = None,
    genes: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    dendrogram: bool = True,
    key: str = "scscore",
    cmap: str = "RdBu_r",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Heatmap of the attributions: classes against the genes that speak most for them.

    Red speaks for a class, blue against it, mean over its cells. Every gene has one column. Genes of several classes stand under the
    one for which they speak most; the bar on top has the colour of that class. Colours follow the square root of the nats, so that genes of
    classes with little evidence per gene remain visible; the colour bar has the values.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.attribute`.
    kind
        ``"presence"``: the part from expression above the baseline, which is what a marker is; ``"absence"``: the part from
        below; ``"total"``: their sum.
    n_genes
        Genes per class: those with the largest values, as far as they are positive. ``None``: 5, or fewer for more than 18 classes.
    genes
        These genes, in this order, instead of the largest.
    classes
        These classes, in this order if there is no dendrogram. ``None``: all that are the target of a cell.
    dendrogram
        Order the classes by average linkage of their profiles over all genes, scaled to unit length, and draw the tree.
    key
        The `key_added` of the attribution.
    cmap
        Diverging Matplotlib colour map; its centre is zero.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads what :func:`scscore.get.attribution` reads. Writes nothing.

    Raises
    ------
    KeyError
        `adata` has no attributions under `key`, or one of `classes` or `genes` is unknown.
    ValueError
        Unknown `kind`, `n_genes` below one, no class or no gene to draw.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.pbmc()
    >>> model = scs.tl.fit(cells, "cell_type", max_epochs=2, progress=False)
    >>> scs.tl.attribute(cells, model, target="cell_type", progress=False)
    >>> axes = scs.pl.attribution_heatmap(cells, n_genes=3, show=False)
    """
    if kind not in ("presence", "total", "absence"):
        raise ValueError(f"kind must be 'presence', 'total' or 'absence', got {kind!r}.")
    found = get.attribution(adata, key=key)
    color_of = class_colors(found)
    found = chosen_classes(found, classes)
    values = np.asarray(found.X if kind == "total" else found.layers[kind])
    tree = _linkage(values) if dendrogram and len(values) > 1 else None
    if tree is not None:
        order = _base.leaves(tree)
        found, values = found[order], values[order]
    n_classes = len(values)
    if genes is None:
        groups = strongest_genes(values, positive_count(n_genes, int(np.clip(_COLUMNS // n_classes, 1, 5))))
        columns = [gene for group in groups for gene in group]
    else:
        groups, columns = None, _positions(found, genes)
    if not columns:
        raise ValueError(f"no gene speaks for a class by {kind}: name genes= to draw.")
    matrix = values[:, columns]

    names, colors = found.obs_names.tolist(), [color_of[name] for name in found.obs_names]
    height = max(_base.cell_side(n_classes) * n_classes, 0.6)
    width = max(float(np.clip(9 / len(columns), 0.145, 0.3)) * len(columns), 1.0)
    given, ax = ax, _base.axes_of_size(ax, (width, height))
    image = ax.imshow(matrix, aspect="auto", interpolation="nearest", cmap=cmap, norm=_root_norm(abs(matrix).max()))
    labels = [f"{name} ({n:,})" for name, n in zip(names, found.obs["n_cells"], strict=True)]
    _base.label_classes(ax, labels, found.var_names[columns].tolist(), pad=72 * (_BAR + 0.05) + 3.5)
    ax.set_ylabel(f"{condition_of(found)} (cells)")
    across, up = (1 / side for side in _base.inches(ax))
    rows = ax.inset_axes((-(_BAR + 0.05) * across, 0.0, _BAR * across, 1.0))
    rows.set(xlim=(0, 1), ylim=ax.get_ylim())
    rows.set_axis_off()
    rows.barh(np.arange(n_classes), 1, height=1, left=0, color=colors)
    if groups is not None:
        _mark_groups(ax, groups, colors, up)
    beside = ax
    if tree is not None:
        beside = ax.inset_axes((1.0 + 0.04 * across, 0.0, _TREE * across, 1.0))
        _base.draw_tree(beside, tree)
        beside.set_ylim(ax.get_ylim())
        beside.set_axis_off()
    _base.add_colorbar(beside, image, f"{'evidence' if kind == 'total' else kind} (nats)")
    ax.set_title(f"mean evidence against {against(found)}", fontsize=9, pad=72 * (_BAR + 0.05) + 4)
    return _base.finish(ax, given, show=show, return_fig=return_fig)


def chosen_classes(found: AnnData, classes: Sequence[str] | None) -> AnnData:
    """The wanted rows of :func:`scscore.get.attribution`."""
    names = found.obs_names.tolist()
    wanted = names if classes is None else [classes] if isinstance(classes, str) else list(classes)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise KeyError(f"classes: {missing[:5]} are no cell's target; there are attributions of {names}.")
    if not wanted:
        raise ValueError("there is no class to draw: classes= is empty, or no cell was attributed.")
    return found if classes is None else found[wanted]


def class_colors(found: AnnData) -> dict[str, str]:
    """Colours of all classes of :func:`scscore.get.attribution`, the same in every plot."""
    names = found.obs_names.tolist()
    return dict(zip(names, _base.colors_of(found, condition_of(found), names), strict=True))


def condition_of(found: AnnData) -> str:
    """Name of what the classes are."""
    return str(json.loads(found.uns["params"])["condition"])


def against(found: AnnData) -> str:
    """What the classes were compared with, in words."""
    reference = str(json.loads(found.uns["params"])["reference"])
    return {"rest": "the rest", "runner-up": "the runner-up", "marginal": "all classes"}.get(reference, reference)


def positive_count(value: int | None, default: int) -> int:
    """`n_genes`, checked."""
    if value is None:
        return default
    _base.check_positive("n_genes", value)
    return int(value)


def strongest_genes(values: NDArray[np.floating], n: int) -> list[list[int]]:
    """Columns with the `n` largest positive values of every row, each under that of its rows where it is largest."""
    top = np.argsort(-values, axis=1, kind="stable")[:, :n].tolist()
    owner: dict[int, int] = {}
    for row, genes in enumerate(top):
        for gene in genes:
            if values[row, gene] > 0 and (gene not in owner or values[row, gene] > values[owner[gene], gene]):
                owner[gene] = row
    groups: list[list[int]] = [[] for _ in values]
    for gene, row in owner.items():
        groups[row].append(gene)
    return [[group[i] for i in np.argsort(-values[row, group])] for row, group in enumerate(groups)]


def _positions(found: AnnData, genes: Sequence[str]) -> list[int]:
    wanted = [genes] if isinstance(genes, str) else list(genes)
    positions = found.var_names.get_indexer(wanted)
    missing = [name for name, position in zip(wanted, positions, strict=True) if position < 0]
    if missing:
        raise KeyError(f"genes: {missing[:5]} are not in adata.var_names, e.g. {found.var_names[:3].tolist()}.")
    if not wanted:
        raise ValueError("genes= is empty: name genes, or leave it out.")
    return positions.tolist()


def _linkage(values: NDArray[np.floating]) -> NDArray[np.float64]:
    from scipy.cluster.hierarchy import linkage

    profiles = values.astype(np.float64)
    profiles /= np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-30)
    return linkage(profiles, method="average", optimal_ordering=True)


def _mark_groups(ax: Axes, groups: list[list[int]], colors: list[str], up: float) -> None:
    """A bar of the class colour over the genes of every class, and lines between them."""
    ends = np.cumsum([len(group) for group in groups])
    bar = ax.inset_axes((0.0, 1 + 0.05 * up, 1.0, _BAR * up))
    bar.set(xlim=ax.get_xlim(), ylim=(0, 1))
    bar.set_axis_off()
    lengths = np.diff(ends, prepend=0)
    bar.bar(ends - lengths - 0.5, 1, width=lengths, align="edge", color=colors, edgecolor="w", linewidth=0.8)
    inner = np.unique(ends)
    ax.vlines(inner[(inner > 0) & (inner < ends[-1])] - 0.5, -0.5, len(groups) - 0.5, color="0.75", linewidth=0.4)


def _root_norm(largest: float) -> FuncNorm:
    """Signed square root, symmetric around zero."""
    from matplotlib.colors import FuncNorm

    largest = float(largest) or 1.0
    return FuncNorm(
        (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda y: np.sign(y) * np.square(y)), vmin=-largest, vmax=largest
    )
