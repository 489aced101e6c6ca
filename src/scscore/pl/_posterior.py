"""``pl.posterior``: heatmap of the posterior, cells in groups against classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get
from scscore.io.keys import Keys
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ANNOTATE_UP_TO = 12  # classes
_BAR = 0.1  # width of the bar of group colours, inches


def posterior(
    adata: AnnData,
    *,
    groupby: str | None = None,
    kind: Literal["cells", "mean"] = "cells",
    cells_per_group: int = 50,
    key: str = "scscore",
    cmap: str = "magma_r",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Heatmap of the posterior: groups of cells against classes.

    All groups have the same height, so that rare ones stay visible; the number of cells stands behind the name. Where a
    group is a class, its cells are sorted by the posterior of that class; elsewhere (donors, clusters) by their best class,
    then by its posterior. They are drawn at evenly spaced ranks: the length of a stretch is a share of the group's cells.
    Classes come in the order of the groups, so agreement lies on the diagonal; where no group is a class, by the group in
    which they are strongest.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.classify`.
    groupby
        Column of ``obs`` with the groups, in the order of its categories. Cells without a group are left out. ``None``: the
        predicted class.
    kind
        ``"cells"``, or ``"mean"`` for one row per group with its mean posterior, written out for up to 12 classes.
    cells_per_group
        Rows per group for ``kind="cells"``; in groups with fewer cells a cell takes several rows.
    key
        The `key_added` of the classification.
    cmap
        Matplotlib colour map.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``obsm[f"{key}_posterior"]``, ``obs[f"{key}_label"]`` or
    ``obs[groupby]``, ``uns[key]["classes"]`` and the group colours ``uns[f"{groupby}_colors"]``. Writes nothing.

    Raises
    ------
    KeyError
        `adata` is not classified under `key`, or `groupby` is no column.
    ValueError
        `groupby` is continuous or empty, unknown `kind`.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.classify(cells, model, progress=False)
    >>> axes = scs.pl.posterior(cells, groupby="class", show=False)
    """
    if kind not in ("cells", "mean"):
        raise ValueError(f"kind must be 'cells' or 'mean', got {kind!r}.")
    if cells_per_group < 1:
        raise ValueError(f"cells_per_group must be a positive integer, got {cells_per_group!r}.")
    frame = get.posterior(adata, key=key)
    column = Keys(key).label if groupby is None else groupby
    groups = _base.groups_of(adata, column, "groupby")
    names, counts = groups.cat.categories.tolist(), groups.value_counts(sort=False).tolist()
    classes = _class_order(frame, groups)
    matrix = _rows(frame[classes], groups, 1 if kind == "mean" else cells_per_group, mean=kind == "mean")

    width, height = (_base.cell_side(n) for n in (len(classes), len(names)))
    if not set(names).isdisjoint(classes):
        width = height = min(width, height)
    given, ax = ax, _base.axes_of_size(ax, (max(width * len(classes), 1.0), max(height * len(names), 1.0)))
    image = ax.imshow(
        matrix,
        extent=(-0.5, len(classes) - 0.5, len(names) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
        cmap=cmap,
        vmin=0,
        vmax=1,
    )
    pad = 72 * (_BAR + 0.05) + 3.5
    _base.label_classes(ax, [f"{a} ({b:,})" for a, b in zip(names, counts, strict=True)], classes, pad=pad)
    ax.hlines(np.arange(1, len(names)) - 0.5, -0.5, len(classes) - 0.5, color="0.75", linewidth=0.4)
    unit = 1 / _base.inches(ax)[0]
    bar = ax.inset_axes((-(_BAR + 0.05) * unit, 0.0, _BAR * unit, 1.0))
    bar.set(xlim=(0, 1), ylim=ax.get_ylim())
    bar.set_axis_off()
    bar.barh(np.arange(len(names)), 1, height=1, align="center", left=0, color=_base.colors_of(adata, column, names))
    if kind == "mean" and max(matrix.shape) <= _ANNOTATE_UP_TO:
        _base.write_values(ax, image, matrix, ".2f")
    _base.add_colorbar(ax, image, "posterior" if kind == "cells" else "mean posterior")
    ax.set_xlabel("class")
    ax.set_ylabel(f"{'predicted class' if groupby is None else groupby} (cells)")
    return _base.finish(ax, given, show=show, return_fig=return_fig)


def _class_order(frame: pd.DataFrame, groups: pd.Series) -> list[str]:
    """Classes in the order of the groups: by name, or by the group with the highest mean posterior."""
    shared = [name for name in groups.cat.categories if name in frame.columns]
    if shared:
        return [*shared, *(name for name in frame.columns if name not in shared)]
    means = frame.groupby(groups.to_numpy(), observed=True).mean().to_numpy()
    return frame.columns[np.argsort(means.argmax(0), kind="stable")].tolist()


def _rows(frame: pd.DataFrame, groups: pd.Series, n: int, *, mean: bool) -> NDArray[np.floating]:
    """`n` rows for every group: its mean, or its cells at evenly spaced ranks; see :func:`posterior`."""
    values, codes, blocks = frame.to_numpy(), groups.cat.codes.to_numpy(), []
    for code, name in enumerate(groups.cat.categories):
        cells = values[codes == code]
        if mean:
            blocks.append(cells.mean(0, keepdims=True, dtype=np.float64))
            continue
        if name in frame.columns:
            order = np.argsort(-cells[:, frame.columns.get_loc(name)], kind="stable")
        else:
            order = np.lexsort((-cells.max(1), cells.argmax(1)))
        blocks.append(cells[order[((np.arange(n) + 0.5) * len(cells) / n).astype(int)]])
    return np.concatenate(blocks)
