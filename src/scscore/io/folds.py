"""Cross-validation splits of the training cells."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

N_FOLDS = 5

Split = tuple[NDArray[np.int64], NDArray[np.int64]]


def make_folds(y: NDArray[np.integer], groups: NDArray[np.str_] | None, *, seed: int) -> list[Split]:
    """Stratified splits into training and held-out cells, by whole groups where there are any.

    Every class has at least one cell in the training part of every split. Groups that make this impossible (a class that
    one donor alone has) are not held out; where no grouped split is left, cells are split without groups.

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
            n_folds = min(N_FOLDS, len(np.unique(groups)))
            splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
            splits = [
                (train, test)
                for train, test in splitter.split(y, y, groups)
                if len(test) and len(np.unique(y[train])) == n_classes
            ]
            if splits:
                return splits
            warnings.warn(
                "Every group holds all cells of some class, so no group can be held out; validation cells are drawn from "
                "all groups instead.",
                UserWarning,
                stacklevel=4,
            )
        n_folds = min(N_FOLDS, int(np.bincount(y).max()))
        return list(StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(y, y))
