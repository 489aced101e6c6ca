"""``pl.dissipation``: evidence for the classes of single cells against the noise level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore._logging import logger
from scscore.core.calibration import log_posterior
from scscore.io.keys import Keys
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PANELS = 12
_AGREEMENT = 0.9  # share of the paths that the winner must lead
_DEEPEST = 12.0  # nats below the prior that are drawn at most: odds of 1 : 160,000
_SHALLOWEST = 3.0
_GAP = 0.09  # between the window of noise levels and its two ends, share of the window
_FONT = 8.0  # points
_GREY = "0.75"


def dissipation(
    adata: AnnData,
    cells: str | Sequence[str] | None = None,
    *,
    n_classes: int = 5,
    key: str = "scscore",
    palette: Mapping[str, str] | Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Evidence for the classes of single cells while noise is taken away: at which noise level was a cell decided?

    One panel per cell, read from left to right. At the left all is noise and every class has its prior (the dashed line at
    zero); at the right is the clean cell. A line above zero is a class that the cell, as far as it can be seen through that
    much noise, makes more probable than its prior, a line below one that it makes less probable. Classes that part early (at
    low log SNR) differ in the coarse structure of the data, classes that part late in fine detail.

    The band is one standard deviation over noising trajectories. The thin vertical line marks where the predicted class takes
    the lead for good: from there on it has the highest evidence on at least nine of ten trajectories. (Their mean favours
    it earlier, often from the start.) A cell for which that never happens is not decided. The title has the predicted class and its
    posterior, with the temperature of the model; it may differ slightly from that of :func:`scscore.tl.classify`, which uses
    other numbers of jumps and paths.

    The vertical axis is chosen for the decision among the strongest classes: it ends a little below the third strongest
    class at the clean cell, at least 3 and at most 12 nats below the prior. Classes that leave it are labelled with their
    evidence at the clean cell. Several panels share both axes.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.dissipation`.
    cells
        Cells to draw, 12 at most: one name or several. ``None``: all that were followed, the first 12 of them.
    n_classes
        Classes drawn in colour and labelled: the strongest at the clean cell, among them the predicted one. The others are light grey.
    key
        The `key_added` of :func:`scscore.tl.dissipation`.
    palette
        Colours: a mapping from class to colour, or a list for the classes in colour, in the order of the model. ``None``: the
        colours of the condition, ``uns[f"{condition}_colors"]``, where they are known for all classes in colour, else
        colour-blind-safe ones.
    ax
        For a single cell. Labels need room at the right.
    show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes`` (a list of them for several cells), ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``uns[f"{key}_dissipation"]``
    and the colours. Writes nothing.

    Raises
    ------
    KeyError
        Nothing was followed under `key`, not a cell that is asked for, or `palette` lacks a class.
    TypeError
        `cells` is no name and no list of names.
    ValueError
        No or too many cells, `ax` for several cells, `n_classes` below one, too few or invalid colours.

    Notes
    -----
    After the dissipation of class conditional diffusion models in Kuznets-Speck et al., *Keeping SCORE*, bioRxiv 2025.11.26.690838.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.dissipation(cells, model, ["cell_0", "cell_7"], progress=False)
    >>> axes = scs.pl.dissipation(cells, "cell_7", show=False)
    """
    stored = adata.uns.get(Keys(key).dissipation)
    if stored is None:
        raise KeyError(
            f"adata.uns[{Keys(key).dissipation!r}] is missing (key={key!r}): run scscore.tl.dissipation first, "
            "or pass the key= that its key_added= named."
        )
    if isinstance(n_classes, bool) or not isinstance(n_classes, int | np.integer) or n_classes < 1:
        raise ValueError(f"n_classes must be a positive integer, got {n_classes!r}.")
    curves = [_curves(stored, position, n_classes) for position in _chosen(stored, cells)]
    if ax is not None and len(curves) > 1:
        raise ValueError(f"ax takes one cell, but {len(curves)} are to be drawn: name one in cells=, or leave ax out.")
    shown = sorted(set().union(*(one.shown for one in curves)))
    colors = _colors(adata, stored, Keys(key), shown, palette)

    given = ax
    size = (4.0, 3.0) if len(curves) == 1 else (2.6, 2.0)
    axes = [_base.axes_of_size(ax, size)] if len(curves) == 1 else _panels(len(curves), size)
    bottom, top = min(one.floor for one in curves), max(one.ceiling for one in curves)
    for panel, one in zip(axes, curves, strict=True):
        panel.set_ylim(bottom - 0.04 * (top - bottom), top + 0.06 * (top - bottom))
        _draw(panel, one, colors)
    if len(axes) == 1:
        return _base.finish(axes[0], given, show=show, return_fig=return_fig)
    _fit_panels(axes, size)
    if show is None:
        from scanpy import settings

        show = settings.autoshow
    done = _base.finish(axes[0], axes[0], show=show, return_fig=return_fig)
    return axes if done is axes[0] else done


@dataclass(frozen=True)
class _Curves:
    """What a panel shows. Levels include the all-noise end, where the evidence is zero by definition."""

    cell: str
    classes: list[str]
    log_prior: NDArray[np.float64]
    log_snr: NDArray[np.float64]  #: from -inf (all noise) to inf (clean)
    evidence: NDArray[np.float64]  #: (n_levels, n_classes)
    spread: NDArray[np.float64]
    lead: NDArray[np.float64]  #: share of the paths that the predicted class leads, (n_levels - 1,)
    predicted: int
    confidence: float
    shown: list[int]  #: classes in colour, the strongest first

    @property
    def position(self) -> NDArray[np.float64]:
        """Levels on the horizontal axis, where both ends stand at a finite distance."""
        low, high = self.log_snr[1], self.log_snr[-2]
        gap = _GAP * max(high - low, 1.0)
        return np.clip(self.log_snr, low - gap, high + gap)

    @property
    def decided(self) -> int:
        """First level from which on the predicted class leads nearly all paths; the number of levels where it never does."""
        undecided = np.flatnonzero(self.lead < _AGREEMENT)
        return int(undecided[-1]) + 2 if len(undecided) else 1

    @property
    def floor(self) -> float:
        """Lowest evidence drawn: a little below that of the third strongest class, within bounds."""
        third = np.sort(self.evidence[-1])[::-1][:3][-1]
        return -float(np.clip(-1.15 * third, _SHALLOWEST, _DEEPEST))

    @property
    def band(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """One standard deviation around the evidence, below the bound that no path can exceed."""
        return self.evidence - self.spread, np.minimum(self.evidence + self.spread, -self.log_prior)

    @property
    def ceiling(self) -> float:
        """Highest evidence drawn."""
        return float(max(self.band[1][:, self.shown].max(), 0.5))


def _curves(stored: Mapping[str, Any], position: int, n_classes: int) -> _Curves:
    evidence, spread = (np.asarray(stored[name][position], dtype=np.float64) for name in ("evidence", "evidence_sd"))
    with np.errstate(divide="ignore"):
        log_prior = np.log(np.asarray(stored["prior"]))
    temperature = json.loads(stored["params"])["temperature"]
    posterior = np.exp(log_posterior(evidence[-1:], log_prior, temperature)[0])
    predicted = int(posterior.argmax())
    order = np.argsort(-evidence[-1], kind="stable").tolist()
    shown = order[:n_classes]
    if predicted not in shown:
        shown[-1] = predicted
    zero = np.zeros((1, evidence.shape[1]))
    return _Curves(
        cell=str(stored["cells"][position]),
        classes=[str(name) for name in stored["classes"]],
        log_prior=log_prior,
        log_snr=np.append(-np.inf, stored["log_snr"]),
        evidence=np.concatenate([zero, evidence]),
        spread=np.concatenate([zero, spread]),
        lead=np.asarray(stored["lead"][position], dtype=np.float64)[:, predicted],
        predicted=predicted,
        confidence=float(posterior[predicted]),
        shown=shown,
    )


def _chosen(stored: Mapping[str, Any], cells: object) -> list[int]:
    """Positions of the wanted cells among the stored ones."""
    names = [str(name) for name in stored["cells"]]
    if cells is None:
        if len(names) > _MOST_PANELS:
            logger.info("drew the first %d of %d cells; name others with cells=", _MOST_PANELS, len(names))
        return list(range(min(len(names), _MOST_PANELS)))
    wanted = [cells] if isinstance(cells, str) else cells
    if not isinstance(wanted, Sequence | np.ndarray | pd.Index | pd.Series) or not all(
        isinstance(c, str) for c in wanted
    ):
        raise TypeError(f"cells must be a name of a cell or a list of names, got {cells!r}.")
    if not 0 < len(wanted) <= _MOST_PANELS:
        raise ValueError(f"cells must name between 1 and {_MOST_PANELS} cells, got {len(wanted)}.")
    missing = [str(name) for name in wanted if name not in names]
    if missing:
        raise KeyError(
            f"cells: {missing[:5]} were not followed; stored: {names[:5]}{' ...' if len(names) > 5 else ''}. "
            "Run scscore.tl.dissipation with their names."
        )
    return [names.index(name) for name in wanted]


def _colors(
    adata: AnnData,
    stored: Mapping[str, Any],
    keys: Keys,
    shown: Sequence[int],
    palette: Mapping[str, str] | Sequence[str] | None,
) -> dict[int, str]:
    """Colour of every class that is drawn in colour."""
    names = [str(stored["classes"][k]) for k in shown]
    if palette is None:
        for column in (json.loads(stored["params"])["condition"], keys.label):
            if column in adata.obs and f"{column}_colors" in adata.uns:
                categories = adata.obs[column].astype("category").cat.categories.astype(str)
                if set(names) <= set(categories):
                    return dict(zip(shown, _base.colors_of(adata, column, names), strict=True))
        found = [color for color in _base.palette(2 * len(names) + 1) if not _is_grey(color)][: len(names)]
        return dict(zip(shown, found, strict=True))
    if isinstance(palette, Mapping):
        missing = [name for name in names if name not in palette]
        if missing:
            raise KeyError(f"palette has no colour for {missing[:5]}.")
        found = [palette[name] for name in names]
    else:
        if isinstance(palette, str) or len(palette) < len(names):
            raise ValueError(
                f"palette must map classes to colours or list at least {len(names)} colours, got {palette!r}."
            )
        found = list(palette[: len(names)])
    from matplotlib.colors import is_color_like

    invalid = [color for color in found if not is_color_like(color)]
    if invalid:
        raise ValueError(f"palette: {invalid[:5]} are no colours that matplotlib knows.")
    return dict(zip(shown, found, strict=True))


def _is_grey(color: str) -> bool:
    """Whether a colour could be taken for that of the other classes."""
    from matplotlib.colors import to_rgb

    return max(to_rgb(color)) - min(to_rgb(color)) < 0.1


def _draw(ax: Axes, one: _Curves, colors: Mapping[int, str]) -> None:
    """One panel."""
    x = one.position
    others = [k for k in range(len(one.classes)) if k not in one.shown]
    ax.axhline(0, color="0.4", linestyle="--", linewidth=0.8, zorder=1)
    for k in [*others, *reversed(one.shown)]:  # the strongest on top
        color, width = (_GREY, 0.6) if k in others else (colors[k], 2.2 if k == one.predicted else 1.3)
        y, zorder = one.evidence[:, k], 2 + (k not in others) + (k == one.predicted)
        ax.plot(x[1:-1], y[1:-1], color=color, linewidth=width, zorder=zorder, label=one.classes[k])
        for end in (slice(0, 2), slice(-2, None)):  # beyond the window of noise levels
            ax.plot(x[end], y[end], color=color, linewidth=min(width, 1.3), zorder=zorder, linestyle=":")
        if k not in others:
            ax.fill_between(x, *(edge[:, k] for edge in one.band), color=color, alpha=0.15, linewidth=0, zorder=1.5)
    ax.set_xlim(x[0], x[-1])
    _mark_decision(ax, one)
    _label_lines(ax, one, colors, others)
    _label_axes(ax, one)


def _mark_decision(ax: Axes, one: _Curves) -> None:
    x, decided = one.position, one.decided
    if decided < len(x):
        ax.axvline(x[decided], color="k", linewidth=0.8, zorder=1.8)
        place = (x[decided] - x[0]) / (x[-1] - x[0])
    else:
        place = 0.5
    if decided == 1:
        text = f"decided before log SNR {_number(one.log_snr[1], 1)}"
    elif decided < len(x) - 1:
        text = f"decided at log SNR {_number(one.log_snr[decided], 1)}"
    elif decided == len(x) - 1:
        text = "decided at the clean cell"
    elif one.evidence[-1].argmax() != one.predicted:
        text = "decided by the prior"
    else:
        text = f"not decided: leads on {one.lead[-1]:.0%} of the paths"
    side = "left" if place < 0.3 else "right" if place > 0.7 else "center"
    ax.annotate(
        text,
        (min(max(place, 0.0), 1.0), 1.0),
        (0, 2.5),
        xycoords="axes fraction",
        textcoords="offset points",
        ha=side,
        va="bottom",
        fontsize=_FONT - 0.5,
        color="0.25",
    )
    width = _base.inches(ax)[0]
    shown = ">0.99" if one.confidence > 0.995 else f"{one.confidence:.2f}"
    title = f"{_short(one.cell, int(width * 11))}\n{_short(one.classes[one.predicted], int(width * 11) - 16)}, posterior {shown}"
    ax.set_title(title, fontsize=_FONT + 1, pad=_FONT + 7)


def _label_lines(ax: Axes, one: _Curves, colors: Mapping[int, str], others: Sequence[int]) -> None:
    """Names at the right ends of the lines, pushed apart where they would touch."""
    bottom, top = ax.get_ylim()
    height = 72 * _base.inches(ax)[1]
    ends = one.evidence[-1]
    labels = [(float(ends[k]), _line_name(one.classes[k], float(ends[k]), bottom), colors[k]) for k in one.shown]
    if others:
        name = f"{len(others)} other class{'es' if len(others) > 1 else ''}"
        labels.append((float(np.median(ends[others])), name, _GREY))
    labels.sort(key=lambda label: -label[0])
    gap = min(1.3 * _FONT, height / len(labels))
    at = _spread([height * (np.clip(y, bottom, top) - bottom) / (top - bottom) for y, _, _ in labels], gap, height)
    for (y, name, color), place in zip(labels, at, strict=True):
        ax.annotate(
            name,
            (one.position[-1], np.clip(y, bottom, top)),
            (1 + 14 / (72 * _base.inches(ax)[0]), place / height),
            textcoords="axes fraction",
            fontsize=gap / 1.3,
            color="0.5" if color == _GREY else "k",
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 1.2,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _label_axes(ax: Axes, one: _Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    x = one.position
    low, high, room = one.log_snr[1], one.log_snr[-2], 0.1 * (x[-1] - x[0])
    ticks = [t for t in MaxNLocator(5).tick_values(low, high) if max(low, x[0] + room) <= t <= min(high, x[-1] - room)]
    names = [f"{_number(t, 0 if float(t).is_integer() else 1)}" for t in ticks]
    ax.set_xticks([x[0], *ticks, x[-1]], ["all\nnoise", *names, "clean\ncell"])
    ax.set_xlabel("noise level (log SNR)", fontsize=_FONT + 1)
    ax.set_ylabel("evidence over prior (nats)", fontsize=_FONT + 1)
    ax.tick_params(labelsize=_FONT)
    ax.spines[["top", "right"]].set_visible(False)


def _line_name(name: str, end: float, bottom: float) -> str:
    return _short(name, 28) + (f" ({_number(end, 0)} ↓)" if end < bottom else "")


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _short(text: str, length: int) -> str:
    """At most `length` characters, cut in the middle: names of subtypes differ at their ends."""
    return text if len(text) <= length else f"{text[: (length - 1) // 2]}…{text[len(text) - length // 2 :]}"


def _spread(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Places as near to the wanted ones (in descending order) as a gap between neighbours allows, between 0 and `top`."""
    places: list[float] = []
    for y in wanted:
        places.append(min(y, places[-1] - gap if places else top))
    return [max(y, gap * (len(places) - 1 - i)) for i, y in enumerate(places)]


def _columns(n: int) -> int:
    return 2 if n == 4 else min(n, 3)


def _panels(n: int, size: tuple[float, float]) -> list[Axes]:
    """Axes of `size` inches in a new figure, not yet in place."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(2 * size[0], 2 * size[1]))
    return [figure.add_axes((0.2, 0.2, 0.5, 0.5), label=str(i)) for i in range(n)]


def _fit_panels(axes: Sequence[Axes], size: tuple[float, float], margin: float = 0.12) -> None:
    """Put panels into rows and columns, as close as their labels allow; inner labels of shared axes are left out."""
    n_columns = _columns(len(axes))
    n_rows = -(-len(axes) // n_columns)
    for i, ax in enumerate(axes):
        if i % n_columns:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        if i + n_columns < len(axes):
            ax.set_xlabel("")
    figure = axes[0].figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    around = np.zeros((n_rows, n_columns, 4))  # room for labels at the left, bottom, right, top; inches
    for i, ax in enumerate(axes):
        inner = ax.get_window_extent()
        outer = ax.get_tightbbox() or inner
        room = (inner.x0 - outer.x0, inner.y0 - outer.y0, outer.x1 - inner.x1, outer.y1 - inner.y1)
        around[divmod(i, n_columns)] = np.array(room) / figure.dpi + margin
    left, right = around[..., 0].max(0), around[..., 2].max(0)
    below, above = around[..., 1].max(1), around[..., 3].max(1)
    width, height = (left + size[0] + right).sum(), (below + size[1] + above).sum()
    x0 = np.cumsum(left + size[0] + right) - right - size[0]
    y0 = height - np.cumsum(below + size[1] + above) + below
    figure.set_size_inches(width, height)  # type: ignore[union-attr]
    for i, ax in enumerate(axes):
        row, column = divmod(i, n_columns)
        ax.set_position((x0[column] / width, y0[row] / height, size[0] / width, size[1] / height))
