"""Shifts of covariate levels against least squares and planted values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scscore.core.covariates import CovariateShift, fit_shifts, level_names, remove

MEANS = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
SHIFTS = np.array([[1.5, -0.5], [-0.5, 1.0], [0.0, -0.8]])


def cells(n: int, *, confounded: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    codes = np.where(rng.random(n) < 0.8, y, rng.integers(3, size=n)) if confounded else rng.integers(3, size=n)
    return MEANS[y] + SHIFTS[codes] + rng.normal(size=(n, 2)), y, codes


@pytest.mark.parametrize("confounded", [False, True])
def test_planted_shifts_are_found(confounded: bool):
    x, y, codes = cells(6000, confounded=confounded)
    found = fit_shifts(x, y, codes, n_levels=3)
    expected = SHIFTS - np.bincount(codes) @ SHIFTS / len(codes)
    np.testing.assert_allclose(found, expected, atol=0.1)
    np.testing.assert_allclose(np.bincount(codes) @ found, 0, atol=1e-8)


def test_with_many_cells_it_is_least_squares():
    x, y, codes = cells(20_000, confounded=True)
    design = np.concatenate([np.eye(3)[y], np.eye(3)[codes][:, 1:]], axis=1)
    effect = np.concatenate([np.zeros((1, 2)), np.linalg.lstsq(design, x, rcond=None)[0][3:]])
    np.testing.assert_allclose(
        fit_shifts(x, y, codes, n_levels=3), effect - np.bincount(codes) @ effect / len(codes), atol=0.02
    )


def test_a_level_of_few_cells_is_shrunk_and_one_without_stays():
    x, y, codes = cells(600)
    codes = np.where(np.arange(600) < 2, 3, codes)
    x[:2] += 100
    found = fit_shifts(x, y, codes, n_levels=5)
    assert 0 < found[3, 0] < 100 * 2 / 10
    np.testing.assert_array_equal(found[4], 0)


def test_levels_are_combinations_and_unknown_ones_are_marked():
    obs = pd.DataFrame({"donor": ["a", "a", "b", None], "lane": [1, 2, 1, 1]})
    assert level_names(obs, ("donor", "lane")).tolist()[:3] == ["a | 1", "a | 2", "b | 1"]
    shift = CovariateShift(("donor", "lane"), ("a | 1", "b | 1"), np.array([[1.0], [2.0]]), np.array([0.5, 0.5]))
    np.testing.assert_array_equal(shift.codes(obs), [0, -1, 1, -1])
    np.testing.assert_array_equal(shift.codes(obs[["lane"]]), [-1] * 4)
    np.testing.assert_array_equal(
        remove(np.zeros((4, 1)), shift.shifts, shift.codes(obs)), [[-1.0], [0.0], [-2.0], [0.0]]
    )
