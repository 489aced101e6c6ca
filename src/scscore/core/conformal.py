r"""Prediction sets with a coverage guarantee: split-conformal, LAC and APS scores, per class if asked, under prior shift.

A label is in the set of a cell when its conformal p-value, the weighted share of calibration cells that are at least as
nonconforming as the cell would be with this label, exceeds ``1 - coverage``. For cells exchangeable with the calibration cells
the set then holds the true label with a probability of at least `coverage` (derivation page, *Prediction sets*).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
SetMethod = Literal["lac", "aps"]
SET_METHODS: tuple[SetMethod, ...] = get_args(SetMethod)


def nonconformity(posterior: ArrayLike, method: SetMethod, uniform: ArrayLike | None = None) -> Array:
    r"""Nonconformity of every label of every cell, ``(n, n_classes)``; high is strange.

    Parameters
    ----------
    posterior
        Shape ``(n, n_classes)``, rows sum to one.
    method
        ``"lac"``: one minus the posterior of the label (Sadinle et al. 2019), the smallest sets on average. ``"aps"``: the
        posterior mass of all labels that are more probable, plus a random part of the label's own (Romano et al. 2020),
        sets whose coverage varies less with the difficulty of the cell.
    uniform
        For ``"aps"``, the random part of every cell, in [0, 1), shape ``(n,)``.
    """
    posterior = np.asarray(posterior, dtype=np.float64)
    if method == "lac":
        return 1.0 - posterior
    if uniform is None:
        raise ValueError("method 'aps' needs uniform random numbers, one per cell.")
    order = np.argsort(-posterior, axis=1, kind="stable")
    ranked = np.take_along_axis(posterior, order, axis=1)
    above = ranked.cumsum(1) - ranked
    scores = np.empty_like(posterior)
    np.put_along_axis(scores, order, above + np.asarray(uniform)[:, None] * ranked, axis=1)
    return scores


def conformal_p_values(
    scores: ArrayLike,
    calibration: ArrayLike,
    y: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    class_conditional: bool = False,
) -> Array:
    r"""Conformal p-value of every label of every cell, ``(n, n_classes)``.

    .. math:: p_k(x) = \frac{\sum_i w_{y_i} [s_i \ge s_k(x)] + w_k}{\sum_i w_{y_i} + w_k}

    Parameters
    ----------
    scores
        Nonconformity of every label of the new cells, ``(n, n_classes)``.
    calibration
        Nonconformity of the true label of the calibration cells, ``(n_calibration,)``.
    y
        Their labels, ``(n_calibration,)``.
    class_weights
        How much more frequent every class is among the new cells than among the calibration cells, ``(n_classes,)``; only ratios
        matter (weighted conformal prediction under label shift: Podkopaev and Ramdas 2021). ``None``: equally frequent.
    class_conditional
        Compare every label with the calibration cells of that class alone, for coverage within every class. A class with few
        calibration cells is then in many sets, one without in all.
    """
    scores, calibration, y = (
        np.asarray(scores, dtype=np.float64),
        np.asarray(calibration, dtype=np.float64),
        np.asarray(y),
    )
    n_classes = scores.shape[1]
    weights = np.ones(n_classes) if class_weights is None else np.asarray(class_weights, dtype=np.float64)
    order = np.argsort(calibration, kind="stable")
    out = np.empty_like(scores)
    for k in range(n_classes):
        some = order[y[order] == k] if class_conditional else order
        weight = np.ones(len(some)) if class_conditional else weights[y[some]]
        own = 1.0 if class_conditional else weights[k]
        at_least = np.concatenate([weight[::-1].cumsum()[::-1], [0.0]])  # weight of calibration cells from here on
        position = np.searchsorted(calibration[some], scores[:, k], side="left")
        total = weight.sum() + own
        out[:, k] = (at_least[position] + own) / total if total > 0 else 0.0
    return out


def conformal_share(scores: ArrayLike, coverage: float) -> float:
    r"""Central share of a predictive distribution that holds a new value with probability `coverage`, at most 1.

    Split-conformal with the nonconformity :math:`|2F(y) - 1|` of held-out values.

    Parameters
    ----------
    scores
        Of the held-out values, ``(n,)``.
    coverage
        Between 0 and 1.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    rank = int(np.ceil((len(ordered) + 1) * coverage))
    return 1.0 if rank > len(ordered) else float(ordered[rank - 1])
