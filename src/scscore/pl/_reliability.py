"""``pl.reliability``: confidence against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore import get
from scscore._logging import logger
from scscore.core.calibration import expected_calibration_error, negative_log_likelihood
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

_SIDE = 3.0  # inches
_STRIP, _GAP = 0.2, 0.04  # of the side: the histogram above the diagram, and the space between
_MARKERS = "osD^vPX*"
_Z = 1.959964  # of a 95 % interval


def reliability(
    adata: AnnData,
    condition: str,
    *,
    key: str | Sequence[str] | Mapping[str, str] = "scscore",
    n_bins: int = 15,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Reliability diagram: how often the most probable class is right, against its posterior.

    Points are bins of equal width of the confidence, at the mean confidence of their cells; bars are 95 % Wilson intervals. Calibrated
    confidences lie on the diagonal, overconfident ones below it. The histogram above shows which confidences occur.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.classify`.
    condition
        Column of ``obs`` with the known labels. Cells without one, or with one that the model does not know, are left out.
    key
        The `key_added` of the classification. A list of them, or a mapping from name to `key_added`, compares up to eight
        classifications on the cells whose label all of them know.
    n_bins
        Bins between 0 and 1, for the points and for the calibration error.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Written above: the expected calibration error (ECE), the mean
    negative log posterior of the known label (NLL, nats), and the Brier score, the sum of squared errors over the classes, between 0
    and 2. The confidence is the highest posterior, whether or not the cell was labelled ``unknown``. Reads ``obs[condition]``,
    ``obsm[f"{key}_posterior"]`` and ``uns[key]["classes"]``. Writes nothing.

    Raises
    ------
    KeyError
        `adata` is not classified under `key`, or `condition` is no column.
    TypeError
        `key` is no name, list of names or mapping.
    ValueError
        `condition` is continuous or empty, no cell has a label that the models know, no or more than eight keys, or `n_bins` is no
        positive integer.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.classify(cells, model, progress=False)
    >>> axes = scs.pl.reliability(cells, "class", show=False)

    Notes
    -----
    Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    _base.check_positive("n_bins", n_bins)
    keys = _named(key)
    posteriors = {name: get.posterior(adata, key=of) for name, of in keys.items()}
    known = _base.groups_of(adata, condition, "condition")
    truth = {name: class_indices(known, frame.columns) for name, frame in posteriors.items()}
    judged = np.all([y >= 0 for y in truth.values()], axis=0)
    _log_left_out(known, judged, condition)
    curves = {
        name: Curve.of(frame.to_numpy()[judged], truth[name][judged], int(n_bins)) for name, frame in posteriors.items()
    }

    given, ax = ax, _base.axes_of_size(ax, (_SIDE, _SIDE))
    strip = ax.inset_axes((0.0, 1.0 + _GAP, 1.0, _STRIP))
    ax.plot((0, 1), (0, 1), color="0.6", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for (name, curve), color, marker in zip(curves.items(), _base.palette(len(curves)), _MARKERS, strict=False):
        _draw(ax, curve, color, marker, label=f"{name}: {curve.scores}")
        edges = np.linspace(0, 1, n_bins + 1)
        strip.stairs(curve.share, edges, color=color, fill=len(curves) == 1, linewidth=1.2)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.set_yticks(np.linspace(0, 1, 6))
    _style_strip(strip, max(curve.share.max() for curve in curves.values()))
    for one in (ax, strip):
        one.spines[["top", "right"]].set_visible(False)
    top = 1.0 + _GAP + _STRIP
    if isinstance(key, str):
        ax.set_title(next(iter(curves.values())).scores, fontsize=10, y=top)
    else:
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, top + _GAP),
            frameon=False,
            fontsize=8,
            borderaxespad=0,
            handlelength=1.2,
        )
    return _base.finish(ax, given, show=show, return_fig=return_fig)


class Curve(NamedTuple):
    """A reliability curve: one entry per bin that holds a cell, but for `share`, and the scores."""

    share: Array  # of the cells, of every bin
    confidence: Array
    accuracy: Array
    low: Array  # of the Wilson interval of the accuracy
    high: Array
    ece: float
    nll: float
    brier: float

    @classmethod
    def of(cls, posterior: NDArray[np.floating], y: NDArray[np.int64], n_bins: int) -> Curve:
        """From the posterior ``(n, n_classes)`` and class indices ``(n,)``; bins as in the calibration error."""
        confidence, correct = posterior.max(1).astype(np.float64), posterior.argmax(1) == y
        bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
        n = np.bincount(bins, minlength=n_bins)
        some = n > 0
        accuracy = np.bincount(bins, weights=correct, minlength=n_bins)[some] / n[some]
        low, high = wilson(accuracy, n[some])
        return cls(
            n / n.sum(),
            np.bincount(bins, weights=confidence, minlength=n_bins)[some] / n[some],
            accuracy,
            low,
            high,
            expected_calibration_error(posterior, y, n_bins),
            negative_log_likelihood(posterior, y),
            brier_score(posterior, y),
        )

    @property
    def scores(self) -> str:
        """The three scores in words."""
        return f"ECE {self.ece:z.3f}, NLL {self.nll:z.3f}, Brier {self.brier:z.3f}"


def brier_score(posterior: NDArray[np.floating], y: NDArray[np.int64]) -> float:
    """Mean over cells of the squared distance between posterior and indicator of the true class, between 0 and 2."""
    p = np.asarray(posterior, dtype=np.float64)
    return float((np.square(p).sum(1) - 2 * p[np.arange(len(y)), y] + 1).mean())


def wilson(share: Array, n: NDArray[np.int64]) -> tuple[Array, Array]:
    """95 % interval of a binomial probability from the observed share of `n` trials (Wilson 1927)."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def class_indices(known: pd.Series, classes: pd.Index) -> NDArray[np.int64]:
    """Index among `classes` of every label of a categorical, -1 where there is none, ``(n_obs,)``."""
    codes = known.cat.codes.to_numpy()
    return np.where(codes >= 0, classes.get_indexer(known.cat.categories.astype(object))[codes], -1)


def _named(key: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Names of the curves and their keys."""
    names = [key] if isinstance(key, str) else key
    items = names.items() if isinstance(names, Mapping) else [(name, name) for name in names]
    if not all(isinstance(part, str) for item in items for part in item):
        raise TypeError(f"key must be a key_added, a list of them, or a mapping from name to key_added, got {key!r}.")
    keys = dict(items)
    if not 0 < len(keys) <= len(_MARKERS):
        raise ValueError(f"key must name between 1 and {len(_MARKERS)} classifications, got {len(keys)}.")
    return keys


def _log_left_out(known: pd.Series, judged: NDArray[np.bool_], condition: str) -> None:
    unlabelled = int(known.isna().sum())
    strange = sorted(set(known[~judged].dropna()))
    if not judged.any():
        raise ValueError(
            f"no cell has a label in obs[{condition!r}] that the model knows; its labels are {strange[:5]}."
        )
    if not judged.all():
        logger.info(
            "%d of %d cells left out: %d without a label in obs[%r], %d with one that the model does not know%s",
            int((~judged).sum()),
            len(judged),
            unlabelled,
            condition,
            int((~judged).sum()) - unlabelled,
            f" ({', '.join(strange[:5])}{', ...' if len(strange) > 5 else ''})" if strange else "",
        )


def _draw(ax: Axes, curve: Curve, color: str, marker: str, label: str) -> None:
    ax.plot(curve.confidence, curve.accuracy, color=color, linewidth=1, alpha=0.5, zorder=2)
    ax.errorbar(
        curve.confidence,
        curve.accuracy,
        # rounding may put an end of the interval beyond the accuracy itself
        yerr=np.maximum((curve.accuracy - curve.low, curve.high - curve.accuracy), 0),
        color=color,
        linestyle="none",
        elinewidth=1,
        marker=marker,
        markersize=4.5,
        markeredgecolor="w",
        markeredgewidth=0.4,
        label=label,
        zorder=3,
        clip_on=False,
    )


def _style_strip(strip: Axes, highest: float) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    strip.set(xlim=(0, 1), ylim=(0, 1.05 * highest), ylabel="cells")
    strip.set_xticks(np.linspace(0, 1, 6), [""] * 6)
    strip.yaxis.set_major_locator(MaxNLocator(2))
    strip.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    strip.tick_params(labelsize=8)
