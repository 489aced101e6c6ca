"""``pl.confusion``: confusion matrix of known labels against predicted ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd
from anndata import AnnData

from scscore.io.keys import Keys
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ANNOTATE_UP_TO = 12  # classes


def confusion(
    adata: AnnData,
    condition: str,
    *,
    key: str = "scscore",
    normalize: bool = True,
    cmap: str = "Blues",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Confusion matrix: known labels (rows) against predicted ones (columns).

    Classes come in the order of the categories of `condition`, in rows and columns alike, so agreement lies on the
    diagonal; labels that only one side knows come last. Classes that occur on neither side are left out. Values are
    written out for up to 12 classes, zeros left blank.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.classify`.
    condition
        Column of ``obs`` with the known labels. Cells without one are left out.
    key
        The `key_added` of the classification.
    normalize
        Show fractions of the cells with the same known label instead of numbers of cells.
    cmap
        Matplotlib colour map.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. The title has accuracy and macro-F1, the unweighted mean of F1 over
    the known labels that occur; a cell that is labelled ``unknown`` counts as an error. Reads ``obs[condition]`` and
    ``obs[f"{key}_label"]``. Writes nothing.

    Raises
    ------
    KeyError
        `adata` is not classified under `key`, or `condition` is no column.
    ValueError
        `condition` is continuous or empty, or no cell has both labels.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.classify(cells, model, progress=False)
    >>> axes = scs.pl.confusion(cells, "class", show=False)
    """
    from sklearn.metrics import f1_score

    keys = Keys(key)
    label = keys.label
    if label not in adata.obs:
        raise KeyError(
            f"adata.obs[{label!r}] is missing (key={key!r}): run scscore.tl.classify first, "
            f"or pass the key= that its key_added= named."
        )
    known = _base.groups_of(adata, condition, "condition")
    predicted = _base.groups_of(adata, label, "key")
    both = (known.notna() & predicted.notna()).to_numpy()
    if not both.any():
        raise ValueError(f"no cell has both a known label in obs[{condition!r}] and a predicted one in obs[{label!r}].")
    rows, columns = _names(known[both], predicted[both], adata.uns.get(keys.uns, {}).get("classes", ()))
    truth, guess = known[both].to_numpy(dtype=str), predicted[both].to_numpy(dtype=str)
    counts = pd.crosstab(truth, guess).reindex(index=rows, columns=columns, fill_value=0)
    n_cells = counts.sum(axis=1)
    matrix = (counts.div(n_cells, axis=0) if normalize else counts).to_numpy(dtype=float)
    accuracy = float((truth == guess).mean())
    macro_f1 = f1_score(truth, guess, labels=rows, average="macro", zero_division=0)

    side = _base.cell_side(max(matrix.shape))
    given, ax = ax, _base.axes_of_size(ax, (max(side * len(columns), 1.0), max(side * len(rows), 1.0)))
    top = 1.0 if normalize else max(matrix.max(), 1.0)
    image = ax.imshow(matrix, aspect="auto", interpolation="nearest", cmap=cmap, vmin=0, vmax=top)
    _base.label_classes(ax, [f"{name} ({n_cells[name]:,})" for name in rows], columns)
    if max(matrix.shape) <= _ANNOTATE_UP_TO:
        _base.write_values(ax, image, matrix, ".2f" if normalize else ",.0f")
    _base.add_colorbar(ax, image, "fraction of row" if normalize else "cells")
    ax.set_xlabel("predicted class")
    ax.set_ylabel(f"{condition} (cells)")
    ax.set_title(f"accuracy {accuracy:.3f}, macro-F1 {macro_f1:.3f}", fontsize=10)
    return _base.finish(ax, given, show=show, return_fig=return_fig)


def _names(known: pd.Series, predicted: pd.Series, classes: Iterable[str]) -> tuple[list[str], list[str]]:
    """Row and column names: classes of the model that occur as known labels, in one order, then those of one side."""
    model = {*classes, *predicted}
    order = known.cat.remove_unused_categories().cat.categories
    shared = [name for name in order if name in model]
    novel = [name for name in order if name not in model]
    others = [name for name in predicted.cat.categories if name not in shared and name in set(predicted)]
    return [*shared, *novel], [*shared, *others]
