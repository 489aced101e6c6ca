"""``pl.attribution_cell``: which genes moved one cell, from its baseline to its evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get
from scscore.io.columns import number_column
from scscore.io.keys import Keys
from scscore.pl import _base
from scscore.pl._attribution_heatmap import against, positive_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOR, AGAINST, _NEUTRAL = "#D55E00", "#0072B2", "0.55"
_WIDTH, _LINE = 3.2, 0.2  # of the axes and of a gene, inches


def attribution_cell(
    adata: AnnData,
    cell: str,
    *,
    n_genes: int = 15,
    key: str = "scscore",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """The way of one cell from its baseline to its evidence, gene by gene.

    From top to bottom: the evidence at the baseline, the genes with the largest parts, red for the class and blue against it, each
    starting where the one before ended, then all other genes together, and the evidence of the cell. What genes contribute that the
    model knows and the data lack is among the other genes.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.attribute` with `per_cell`.
    cell
        Name of the cell.
    n_genes
        Genes with a bar of their own.
    key
        The `key_added` of the attribution.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``layers[f"{key}_attribution"]``, ``obs[f"{key}_evidence"]``,
    ``uns[f"{key}_attribution"]`` and, for the title, what tells the target of the cell: the column that was named as `target`, or
    ``obsm[f"{key}_posterior"]``. Writes nothing.

    Raises
    ------
    KeyError
        `adata` has no attributions of single cells under `key`, or there is no such cell.
    ValueError
        `n_genes` below one.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.pbmc()
    >>> model = scs.tl.fit(cells, "cell_type", max_epochs=2, progress=False)
    >>> some = cells[:50].copy()
    >>> scs.tl.attribute(some, model, target="cell_type", per_cell=True, progress=False)
    >>> axes = scs.pl.attribution_cell(some, some.obs_names[0], show=False)
    """
    keys, n_genes = Keys(key), positive_count(n_genes, 15)
    found = get.attribution(adata, key=key)
    if keys.attribution not in adata.layers:
        raise KeyError(
            f"adata.layers[{keys.attribution!r}] is missing (key={key!r}): run scscore.tl.attribute with per_cell=True."
        )
    positions = np.flatnonzero(adata.obs_names == cell)
    if len(positions) == 0:
        raise KeyError(f"cell={cell!r} is not in adata.obs_names, e.g. {adata.obs_names[:3].tolist()}.")
    row, dense = _row(adata.layers[keys.attribution], int(positions[0]))
    missing = "run scscore.tl.attribute again."
    evidence, start = (
        float(number_column(adata, name, missing=f"adata.obs[{name!r}] is missing: {missing}")[positions[0]])
        for name in (keys.evidence, keys.evidence_baseline)
    )
    order = np.argsort(-abs(row), kind="stable")
    order = order[row[order] != 0]
    top, others = order[:n_genes], len(order) > n_genes or not dense
    labels, steps = ["baseline", *adata.var_names[top]], [start, *row[top].tolist()]
    if others:
        labels.append(f"{adata.n_vars - len(top):,} other genes")
        steps.append(evidence - sum(steps))

    given, ax = ax, _base.axes_of_size(ax, (_WIDTH, _LINE * (len(steps) + 2)))
    _draw(ax, np.array(steps), labels, evidence)
    target = adata.obs[keys.target].iloc[positions[0]] if keys.target in adata.obs else "most probable class"
    other = adata.obs[keys.runner_up].iloc[positions[0]] if keys.runner_up in adata.obs else against(found)
    ax.set_title(f"{cell}\n{target} against {other}: {_number(evidence, '.1f')} nats", fontsize=9)
    return _base.finish(ax, given, show=show, return_fig=return_fig)


def _row(layer: Any, position: int) -> tuple[NDArray[np.float64], bool]:
    """The parts of one cell, ``(n_vars,)``, and whether all genes have one."""
    row = layer[position : position + 1]
    row = row.compute() if hasattr(row, "compute") else row
    if sp.issparse(row):
        return row.toarray()[0].astype(np.float64), False
    return np.asarray(row)[0].astype(np.float64), True


def _draw(ax: Axes, steps: NDArray[np.float64], labels: list[str], evidence: float) -> None:
    """Bars that start where the one above ends; the first and the last are levels."""
    ends = np.cumsum(steps)
    starts, y = ends - steps, np.arange(len(steps))
    colors = [_NEUTRAL if i == 0 else FOR if step > 0 else AGAINST for i, step in enumerate(steps)]
    ax.barh(y, steps, left=starts, height=0.75, color=colors)
    ax.barh(len(steps), evidence, height=0.75, color="0.25")
    ax.vlines(ends, y - 0.375, y + 1.375, color="0.4", linewidth=0.6)
    ax.axvline(0, color="0.4", linewidth=0.6)
    span = float(np.ptp([0, *starts, *ends])) or 1.0
    for i, (start, end) in enumerate(zip([*starts, 0.0], [*ends, evidence], strict=True)):
        text = _number(end - start, "+.2f" if 0 < i < len(steps) else ".2f")
        ax.text(max(start, end) + 0.015 * span, i, text, va="center", fontsize=7.5, color="0.3")
    low, high = min(0, starts.min(), ends.min()), max(0, starts.max(), ends.max())
    ax.set_xlim(low - 0.03 * span, high + 0.16 * span)
    ax.set_ylim(len(steps) + 0.6, -0.6)
    ax.set_yticks(np.arange(len(steps) + 1), [*labels, "evidence"], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel("nats", fontsize=9)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "−")
