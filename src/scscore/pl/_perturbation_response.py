"""``pl.perturbation_response``: the evidence of every cell for its perturbation, and which cells escaped it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get
from scscore.io.keys import Keys
from scscore.io.params import stored_params
from scscore.pl import _base
from scscore.pl._detectability import assigned_to

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _TALL = 3.6, 0.92  # of the axes, inches, and of the highest density, in rows
_CONTROL, _OWN, _THRESHOLD = "0.82", "#0072B2", "#D55E00"
_GRID = 400


def perturbation_response(
    adata: AnnData,
    *,
    perturbations: Sequence[str] | None = None,
    key: str = "scscore",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    r"""Evidence of the cells of every perturbation, before that of control cells, and the share that escaped.

    Every row has two densities of :math:`\log p(x \mid \text{perturbation}) - \log p(x \mid \text{control})`: in colour over the cells of the perturbation (blue unless ``uns`` has colours), in
    grey over control cells. Where both agree, the perturbation did nothing that the model can see. The mark is where the response
    probability is one half; the pale part below it are the cells that escaped, and their share stands at the right. Control cells above the mark look as if they had been
    perturbed, so compare the shares with the grey.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.predict_perturbation`.
    perturbations
        These, in this order. ``None``: all, the best detected on top.
    key
        The `key_added` of that call.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Densities are Gaussian kernel estimates by Scott's rule, each scaled to the height of the row; groups with
    fewer than three different values are drawn cell by cell. The axis leaves out the outermost half percent on either side. Reads
    ``obs[f"{key}_perturbation_evidence"]``, ``obs[f"{key}_escape"]``, ``obsm[f"{key}_log_likelihood"]``, ``uns[key]``, ``uns[f"{key}_perturbation"]``, and the column of ``obs`` with
    the perturbations and its colours. Writes nothing.

    Raises
    ------
    KeyError
        There are no perturbations under `key`, or one of `perturbations` is unknown.
    ValueError
        `perturbations` is empty, no cell of one is left, or ``obs[f"{key}_perturbation_evidence"]`` was overwritten by another call.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.predict_perturbation(cells, model, control="a", progress=False)
    >>> axes = scs.pl.perturbation_response(cells, show=False)
    """
    keys = Keys(key)
    rows = _rows(adata, keys, _chosen(adata, keys, perturbations))
    column = str(stored_params(adata, keys.perturbation)["condition"])
    control = str(adata.uns[keys.perturbation]["control"])
    names = [row.name for row in rows]

    side = float(np.clip(4.5 / len(rows), 0.2, 0.5))
    given, ax = ax, _base.axes_of_size(ax, (_WIDTH, max(side * len(rows), 0.6)))
    limits = _limits(rows)
    # a hue per row would say nothing that the names do not, and its paler tones would look like escaped cells
    colors = _base.colors_of(adata, column, names) if f"{column}_colors" in adata.uns else [_OWN] * len(rows)
    for y, (row, color) in enumerate(zip(rows, colors, strict=True)):
        _draw(ax, y, row, color, limits)
    font = min(9.0, 0.8 * 72 * _base.inches(ax)[1] / len(rows))
    ax.grid(False)  # scanpy.set_figure_params turns grids on
    ax.set_xlim(limits)
    ax.set_ylim(len(rows) - 0.4, -1.05)
    labels = [f"{row.name} ({len(row.evidence):,})" for row in rows]
    ax.set_yticks(np.arange(len(rows)), labels, fontsize=font)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=9)
    ax.set_xlabel(f"evidence against {control} (nats); grey: {control} cells", fontsize=9)
    ax.set_ylabel(f"{column} (cells)", fontsize=9)
    ax.spines[["top", "right", "left"]].set_visible(False)
    right = ax.secondary_yaxis("right")
    right.grid(False)
    right.set_yticks(np.arange(len(rows)), [f"{100 * row.escape:.0f} %" for row in rows], fontsize=font)
    right.tick_params(axis="y", length=0, labelcolor=_THRESHOLD)
    right.spines["right"].set_visible(False)
    ax.annotate(
        "escaped: below the mark",
        (1, 1),
        (3.5, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=_THRESHOLD,
    )
    return _base.finish(ax, given, show=show, return_fig=return_fig)


class _Row(NamedTuple):
    name: str
    evidence: NDArray[np.float64]  # of its cells
    control: NDArray[np.float64]  # of control cells, for this perturbation
    threshold: float  # evidence where the response probability is one half
    escape: float  # share


def _chosen(adata: AnnData, keys: Keys, perturbations: Sequence[str] | None) -> list[str]:
    known = get.perturbation(adata, key=keys.key_added).index.tolist()
    if perturbations is None:
        return known
    wanted = [perturbations] if isinstance(perturbations, str) else list(perturbations)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise KeyError(
            f"perturbations: {missing[:5]} are not among those of adata.uns[{keys.perturbation!r}]: {known}."
        )
    if not wanted:
        raise ValueError("perturbations is empty: name some, or leave it out.")
    return wanted


def _rows(adata: AnnData, keys: Keys, names: list[str]) -> list[_Row]:
    again = "run scscore.tl.predict_perturbation again."
    for column in (keys.perturbation_evidence, keys.escape):
        if column not in adata.obs:
            raise KeyError(f"adata.obs[{column!r}] is missing (key={keys.key_added!r}): {again}")
    log_likelihood, assigned = get.likelihood(adata, key=keys.key_added), assigned_to(adata, keys)
    control = str(adata.uns[keys.perturbation]["control"])
    stored, escaped = adata.obs[keys.perturbation_evidence].to_numpy(np.float64), adata.obs[keys.escape].to_numpy(bool)
    of_control = log_likelihood[assigned == control].astype(np.float64)
    if np.isfinite(stored[assigned == control]).any():
        raise ValueError(
            f"adata.obs[{keys.perturbation_evidence!r}] is not what tl.predict_perturbation wrote, it has values for control cells: another call, such as "
            f"tl.attribute, overwrote it. Give that another key_added=, and {again}"
        )
    params = stored_params(adata, keys.uns)
    temperature, offsets = params["temperature"], params["offsets"] or [0.0] * log_likelihood.shape[1]
    offset_of = dict(zip(log_likelihood.columns, offsets, strict=True))
    rows = []
    for name in names:
        own = assigned == name
        if not own.any():
            raise ValueError(f"no cell of {name!r} is left: pass the cells that tl.predict_perturbation had.")
        rows.append(
            _Row(
                name,
                stored[own],
                (of_control[name] - of_control[control]).to_numpy(),
                (offset_of[control] - offset_of[name]) / temperature,
                float(escaped[own].mean()),
            )
        )
    return rows


def _limits(rows: list[_Row]) -> tuple[float, float]:
    """What holds all but the outermost half percent of the cells of every row, and all marks."""
    ends = []
    for values in (values for row in rows for values in (row.evidence, row.control) if len(values)):
        kernel = 2 * values.std() * len(values) ** -0.2  # about as far as a kernel reaches
        ends.append(np.quantile(values, (0.005, 0.995)) + (-kernel, kernel))
    marks = [row.threshold for row in rows]
    low, high = min(*(end[0] for end in ends), *marks), max(*(end[1] for end in ends), *marks)
    room = 0.02 * (high - low) or 1.0
    return low - room, high + room


def _density(values: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Kernel estimate on a grid; None for too few different values."""
    from scipy.stats import gaussian_kde

    return gaussian_kde(values)(grid) if len(np.unique(values)) > 2 else None


def _draw(ax: Axes, y: int, row: _Row, color: str, limits: tuple[float, float]) -> None:
    """One row: two densities that stand on it, and the mark."""
    grid = np.sort(np.append(np.linspace(*limits, _GRID), row.threshold))
    grey, own = (_density(values, grid) for values in (row.control, row.evidence))
    z = 2 + 0.01 * y  # rows below lie over those above
    for values, curve, is_own in ((row.control, grey, False), (row.evidence, own, True)):
        if curve is None:
            ax.vlines(values, y - 0.4 * _TALL, y, color=color if is_own else _CONTROL, linewidth=1.2, zorder=z)
            continue
        top = y - _TALL * curve / (curve.max() or 1.0)
        if is_own:
            for part, alpha in ((grid <= row.threshold, 0.2), (grid >= row.threshold, 0.6)):
                ax.fill_between(grid[part], y, top[part], color=color, alpha=alpha, linewidth=0, zorder=z)
        else:
            ax.fill_between(grid, y, top, color=_CONTROL, linewidth=0, zorder=z)
        ax.plot(grid, top, color=color if is_own else "0.5", linewidth=0.9, zorder=z + (0.002 if is_own else 0.004))
    ax.hlines(y, *limits, color="0.7", linewidth=0.5, zorder=z)
    ax.vlines(row.threshold, y - 0.55, y + 0.12, color=_THRESHOLD, linewidth=1.3, zorder=z + 0.005)
