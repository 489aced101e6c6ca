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

    Groups may cross the classes (donors) or lie within them (the guides of a target). Within them, every class with at least two groups
    has whole groups held out, the others single cells.

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
            if (nested := _nested(y, groups, seed)) is not None:
                return nested
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


def hold_out_groups(splits: list[Split], groups: NDArray[np.str_] | None) -> bool:
    """Whether most of the held-out cells are of groups that the training part of their split does not have."""
    if groups is None:
        return False
    new = [~np.isin(groups[test], groups[train]) for train, test in splits]
    return bool(np.concatenate(new).mean() > 0.5)


def _grouped(y: NDArray[np.integer], groups: NDArray[np.str_], n_classes: int, n_folds: int, seed: int) -> list[Split]:
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    return [
        (train, test)
        for train, test in splitter.split(y, y, groups)
        if len(test) and len(np.unique(y[train])) == n_classes
    ]


def _nested(y: NDArray[np.integer], groups: NDArray[np.str_], seed: int) -> list[Split] | None:
    """Splits where every group lies within one class and some class has several; None where that is not so."""
    names, codes = np.unique(groups, return_inverse=True)
    pairs = np.unique(np.stack([codes, y]), axis=1)  # of a group and a class of its cells
    n_groups = np.bincount(pairs[1], minlength=int(y.max()) + 1)
    if pairs.shape[1] > len(names) or n_groups.max() < 2 or len(n_groups) < 2:
        return None
    rng, fold_of = np.random.default_rng(seed), np.empty(len(y), dtype=np.int64)
    for label, n in enumerate(n_groups):
        cells = np.flatnonzero(y == label)
        units = codes[cells] if n > 1 else np.arange(len(cells))
        order = rng.permutation(np.unique(units))
        place = np.empty(int(units.max()) + 1, dtype=np.int64)
        place[order] = (np.arange(len(order)) + rng.integers(N_FOLDS)) % N_FOLDS
        fold_of[cells] = place[units]
    splits = [(np.flatnonzero(fold_of != i), np.flatnonzero(fold_of == i)) for i in range(N_FOLDS)]
    return [(train, test) for train, test in splits if len(test) and len(np.unique(y[train])) == len(n_groups)] or None
