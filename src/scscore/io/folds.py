"""Cross-validation splits of the training cells."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

N_FOLDS = 5
MIN_GROUPS = 4

Split = tuple[NDArray[np.int64], NDArray[np.int64]]


def make_folds(y: NDArray[np.integer], groups: NDArray[np.str_] | None, *, seed: int) -> list[Split]:
    """Stratified splits into training and held-out cells, by whole groups where there are any.

    Every class has at least one cell in the training part of every split. Groups that make this impossible (a class that
    one donor alone has) are not held out. Where no grouped split is left, or where there are fewer than four groups (too
    many cells would be held out), cells are split without groups, with a warning.

    Parameters
    ----------
    y
        Class indices.
    groups
        Donor, batch or replicate of every cell, or ``None``.
    seed
        Seed of the shuffling.
    """
    n_classes = int(y.max()) + 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        if groups is not None:
            n_groups = len(np.unique(groups))
            splits = _grouped(y, groups, n_classes, min(N_FOLDS, n_groups), seed) if n_groups >= MIN_GROUPS else []
            if splits:
                return splits
            reason = (
                f"there are only {n_groups} groups and at least {MIN_GROUPS} are needed"
                if n_groups < MIN_GROUPS
                else "every group holds all cells of some class"
            )
            warnings.warn(
                f"No group can be held out for validation: {reason}. Validation cells are drawn from all groups instead.",
                UserWarning,
                stacklevel=3,
            )
        n_folds = min(N_FOLDS, int(np.bincount(y).max()))
        return list(StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(y, y))


def _grouped(y: NDArray[np.integer], groups: NDArray[np.str_], n_classes: int, n_folds: int, seed: int) -> list[Split]:
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    return [
        (train, test)
        for train, test in splitter.split(y, y, groups)
        if len(test) and len(np.unique(y[train])) == n_classes
    ]
