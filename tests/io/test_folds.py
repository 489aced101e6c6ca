"""Cross-validation splits."""

import warnings

import numpy as np
import pytest

from scscore.io.folds import MIN_GROUPS, N_FOLDS, Split, hold_out_groups, make_folds

Y = np.repeat([0, 1, 2], [50, 30, 7])


def check(folds: list[Split], y: np.ndarray, *, cover: bool = True) -> None:
    """Disjoint parts, all classes in training, and every cell held out once."""
    for train, test in folds:
        assert len(test)
        assert not set(train) & set(test)
        assert len(train) + len(test) == len(y)
        assert set(y[train]) == set(y)
    held_out = np.concatenate([test for _, test in folds])
    assert len(set(held_out)) == len(held_out)
    if cover:
        assert sorted(held_out) == list(range(len(y)))


def test_cells_are_stratified():
    folds = make_folds(Y, None, seed=0)
    assert len(folds) == N_FOLDS
    check(folds, Y)
    for _, test in folds:
        assert np.abs(np.bincount(Y[test], minlength=3) - np.bincount(Y) / N_FOLDS).max() <= 1


@pytest.mark.parametrize("sizes", [(2, 2), (2, 50), (2, 3, 4), (40, 2, 2, 2)])
def test_rare_classes_stay_in_training(sizes: tuple[int, ...]):
    y = np.repeat(np.arange(len(sizes)), sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = make_folds(y, None, seed=0)
    assert len(folds) == min(N_FOLDS, max(sizes))
    check(folds, y)


def test_the_seed_decides():
    first, same, other = (make_folds(Y, None, seed=seed) for seed in (0, 0, 1))
    assert all((a[1] == b[1]).all() for a, b in zip(first, same, strict=True))
    assert any(a[1].tolist() != b[1].tolist() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("n_groups", [MIN_GROUPS, 5, 12])
def test_groups_are_held_out_whole(n_groups: int):
    groups = np.array([f"donor{i % n_groups}" for i in range(len(Y))])
    folds = make_folds(Y, groups, seed=0)
    assert len(folds) == min(N_FOLDS, n_groups)
    check(folds, Y)
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
    assert hold_out_groups(folds, groups)
    assert not hold_out_groups(folds, None)


def test_a_group_with_all_cells_of_a_class_is_never_held_out():
    groups = np.array([f"donor{i % 6}" for i in range(len(Y))])
    groups[Y == 2] = "donor0"
    folds = make_folds(Y, groups, seed=0)
    check(folds, Y, cover=False)
    assert not any("donor0" in groups[test] for _, test in folds)


def test_too_few_groups_give_a_warning_and_ungrouped_splits():
    groups = np.where(np.arange(len(Y)) % 3 == 0, "a", "b")
    with pytest.warns(UserWarning, match="only 2 groups and at least 4 are needed"):
        folds = make_folds(Y, groups, seed=0)
    check(folds, Y)
    assert not hold_out_groups(folds, groups)
    for ours, plain in zip(folds, make_folds(Y, None, seed=0), strict=True):
        assert (ours[1] == plain[1]).all()


def test_groups_that_are_classes_give_a_warning_and_ungrouped_splits():
    y = np.arange(80) % 4
    with pytest.warns(UserWarning, match="every group holds all cells of some class"):
        check(make_folds(y, y.astype(str), seed=0), y)


def test_guides_lie_within_classes():
    """Whole guides are held out where a target has several, single cells where it has one."""
    y = np.repeat([0, 1, 2], [120, 80, 60])
    guides = np.concatenate(
        [np.repeat([f"nt{i}" for i in range(6)], 20), np.repeat(["a1", "a2"], 40), np.repeat("b1", 60)]
    )
    splits = make_folds(y, guides, seed=0)
    assert hold_out_groups(splits, guides)
    seen = np.concatenate([test for _, test in splits])
    assert len(splits) == 5
    assert sorted(seen) == list(range(260))
    for train, test in splits:
        assert set(y[train]) == {0, 1, 2}
        shared = set(guides[train]) & set(guides[test])
        assert shared <= {"b1"}
        assert 8 <= (guides[test] == "b1").sum() <= 16


def test_one_group_per_class_is_no_grouping():
    y = np.repeat([0, 1], 30)
    with pytest.warns(UserWarning, match="No group can be held out"):
        make_folds(y, np.where(y == 0, "a", "b"), seed=0)
