"""One cell of ``pl.dissipation``: curves, bands, names at the line ends, and the level at which the cell was decided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from scscore.core.calibration import log_posterior
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AGREEMENT = 0.9  # share of the trajectories that the predicted class must lead
_FARTHEST = 12.0  # nats from the prior that are drawn at most: odds of 160,000
_GAP = 0.09  # between the window of noise levels and its two ends, share of the window
_FONT = 8.0  # points
LINE_HEIGHT = 1.3 * _FONT
GREY = "0.75"


@dataclass(frozen=True)
class EvidenceCurves:
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

    @classmethod
    def of(cls, stored: Mapping[str, Any], position: int, n_classes: int) -> Self:
        """The curves of one stored cell, with its `n_classes` strongest classes in colour."""
        evidence, spread = (
            np.asarray(stored[name][position], dtype=np.float64) for name in ("evidence", "evidence_sd")
        )
        with np.errstate(divide="ignore"):
            log_prior = np.log(np.asarray(stored["prior"]))
        params = json.loads(stored["params"])
        log_weights = log_prior + np.asarray(params.get("offsets") or 0.0)
        posterior = np.exp(log_posterior(evidence[-1:], log_weights, params["temperature"])[0])
        predicted = int(posterior.argmax())
        order = np.argsort(-evidence[-1], kind="stable").tolist()
        shown = order[:n_classes]
        if predicted not in shown:
            shown[-1] = predicted
        zero = np.zeros((1, evidence.shape[1]))
        return cls(
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

    @property
    def position(self) -> NDArray[np.float64]:
        """Levels on the horizontal axis, where both ends stand at a finite distance."""
        low, high = self.log_snr[1], self.log_snr[-2]
        gap = _GAP * max(high - low, 1.0)
        return np.clip(self.log_snr, low - gap, high + gap)

    @property
    def decided(self) -> int:
        """First level from which on the predicted class leads nearly all paths; the number of levels where it never does."""
        undecided = np.flatnonzero(self.lead < _AGREEMENT - 1e-6)  # stored in single precision
        return int(undecided[-1]) + 2 if len(undecided) else 1

    @property
    def floor(self) -> float:
        """Lowest evidence drawn: a little below that of the third strongest and of the predicted class, within bounds."""
        third = np.sort(self.evidence[-1])[::-1][:3][-1]
        return -float(min(1.15 * max(-third, -self.evidence[-1, self.predicted], self.ceiling), _FARTHEST))

    @property
    def band(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """One standard deviation around the evidence, below the bound that no path can exceed."""
        return self.evidence - self.spread, np.minimum(self.evidence + self.spread, -self.log_prior)

    @property
    def ceiling(self) -> float:
        """Highest evidence drawn."""
        return float(np.clip(self.band[1][:, self.shown].max(), 0.1, _FARTHEST))


def draw_panel(ax: Axes, one: EvidenceCurves, colors: Mapping[int, str]) -> None:
    """The curves of one cell, within the vertical limits that `ax` has already.

    Parameters
    ----------
    ax
        Where to draw.
    one
        The curves.
    colors
        Colour of every class in colour, by its position in the model.
    """
    x = one.position
    others = [k for k in range(len(one.classes)) if k not in one.shown]
    low, high = one.band
    ax.axhline(0, color="0.4", linestyle="--", linewidth=0.8, zorder=1)
    for k in [*others, *reversed(one.shown)]:  # the strongest on top
        color, width = (GREY, 0.6) if k in others else (colors[k], 2.2 if k == one.predicted else 1.3)
        y, zorder = one.evidence[:, k], 2 + (k not in others) + (k == one.predicted)
        ax.plot(x[1:-1], y[1:-1], color=color, linewidth=width, zorder=zorder, label=one.classes[k])
        for end in (slice(0, 2), slice(-2, None)):  # beyond the window of noise levels
            ax.plot(x[end], y[end], color=color, linewidth=min(width, 1.3), zorder=zorder, linestyle=":")
        if k not in others:
            ax.fill_between(x, low[:, k], high[:, k], color=color, alpha=0.15, linewidth=0, zorder=1.5)
    ax.set_xlim(x[0], x[-1])
    _mark_decision(ax, one)
    _label_lines(ax, one, colors, others)
    _label_axes(ax, one)


def _mark_decision(ax: Axes, one: EvidenceCurves) -> None:
    """Title, and the level at which the cell was decided."""
    x, decided = one.position, one.decided
    place = 0.0
    if decided < len(x):
        ax.axvline(x[decided], color="k", linewidth=0.8, zorder=1.8)
        place = (x[decided] - x[0]) / (x[-1] - x[0])
    if decided == 1:
        text = f"decided before log SNR {_number(one.log_snr[1], 1)}"
    elif decided < len(x) - 1:
        text = f"decided at log SNR {_number(one.log_snr[decided], 1)}"
    elif decided < len(x):
        text = "decided at the clean cell"
    elif one.evidence[-1].argmax() != one.predicted:
        text = "decided by the prior"
    else:
        text = f"not decided: leads on {one.lead[-1]:.0%} of the trajectories"
    ax.annotate(
        text,
        (place, 1.0),
        (0, 2.5),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="left" if place < 0.3 else "right" if place > 0.7 else "center",
        va="bottom",
        fontsize=_FONT - 0.5,
        color="0.25",
    )
    confidence = ">0.99" if one.confidence > 0.995 else f"{one.confidence:.2f}"
    title = f"{_short(one.cell, 34)}\n{_short(one.classes[one.predicted], 24)}, posterior {confidence}"
    ax.set_title(title, loc="left", fontsize=_FONT + 1, pad=_FONT + 7)


def _label_lines(ax: Axes, one: EvidenceCurves, colors: Mapping[int, str], others: Sequence[int]) -> None:
    """Names at the right ends of the lines, pushed apart where they would touch."""
    bottom, top = ax.get_ylim()
    height = 72 * _base.inches(ax)[1]
    ends = one.evidence[-1]
    labels = [(float(ends[k]), _short(one.classes[k], 24), colors[k]) for k in one.shown]
    if others:
        name = f"{len(others)} other class{'es' if len(others) > 1 else ''}"
        labels.append((float(np.median(ends[others])), name, GREY))
    labels.sort(key=lambda label: -label[0])
    gap = min(LINE_HEIGHT, height / len(labels))
    at = _spread([height * (np.clip(y, bottom, top) - bottom) / (top - bottom) for y, _, _ in labels], gap, height)
    for (y, name, color), place in zip(labels, at, strict=True):
        beyond = "↓" if y < bottom else "↑" if y > top else ""
        ax.annotate(
            f"{name} ({_number(y, 0)} {beyond})" if beyond and color != GREY else name,
            (one.position[-1], np.clip(y, bottom, top)),
            (1 + 14 / (72 * _base.inches(ax)[0]), place / height),
            textcoords="axes fraction",
            fontsize=gap / LINE_HEIGHT * _FONT,
            color="0.5" if color == GREY else "k",
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


def _label_axes(ax: Axes, one: EvidenceCurves) -> None:
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
