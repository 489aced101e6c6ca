"""Shifts of covariate levels against least squares and planted values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scscore.core.covariates import CellCovariates, CovariateShift, fifths, fit_covariates, fit_shifts, level_names

MEANS = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
SHIFTS = np.array([[1.5, -0.5], [-0.5, 1.0], [0.0, -0.8]])


def cells(n: int, *, confounded: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    codes = np.where(rng.random(n) < 0.8, y, rng.integers(3, size=n)) if confounded else rng.integers(3, size=n)
    return MEANS[y] + SHIFTS[codes] + rng.normal(size=(n, 2)), y, codes


def levels_only(codes: np.ndarray) -> CellCovariates:
    return CellCovariates(codes, np.empty((len(codes), 0)))


@pytest.mark.parametrize("confounded", [False, True])
def test_planted_shifts_are_found(confounded: bool):
    x, y, codes = cells(6000, confounded=confounded)
    found, _ = fit_shifts(x, y, levels_only(codes), n_levels=3)
    expected = SHIFTS - np.bincount(codes) @ SHIFTS / len(codes)
    np.testing.assert_allclose(found, expected, atol=0.1)
    np.testing.assert_allclose(np.bincount(codes) @ found, 0, atol=1e-8)


def test_with_many_cells_it_is_least_squares():
    x, y, codes = cells(20_000, confounded=True)
    design = np.concatenate([np.eye(3)[y], np.eye(3)[codes][:, 1:]], axis=1)
    effect = np.concatenate([np.zeros((1, 2)), np.linalg.lstsq(design, x, rcond=None)[0][3:]])
    np.testing.assert_allclose(
        fit_shifts(x, y, levels_only(codes), n_levels=3)[0],
        effect - np.bincount(codes) @ effect / len(codes),
        atol=0.02,
    )


def test_a_level_of_few_cells_is_shrunk_and_one_without_stays():
    x, y, codes = cells(600)
    codes = np.where(np.arange(600) < 2, 3, codes)
    x[:2] += 100
    found, _ = fit_shifts(x, y, levels_only(codes), n_levels=5)
    assert 0 < found[3, 0] < 100 * 2 / 10
    np.testing.assert_array_equal(found[4], 0)


def test_levels_are_combinations_and_unknown_ones_are_marked():
    obs = pd.DataFrame({"donor": ["a", "a", "b", None], "lane": [1, 2, 1, 1]})
    assert level_names(obs, ("donor", "lane")).tolist()[:3] == ["a | 1", "a | 2", "b | 1"]
    shift = CovariateShift(("donor", "lane"), ("a | 1", "b | 1"), np.array([[1.0], [2.0]]), np.array([0.5, 0.5]))
    cells = shift.of_cells(obs)
    np.testing.assert_array_equal(cells.codes, [0, -1, 1, -1])
    np.testing.assert_array_equal(shift.of_cells(obs[["lane"]]).codes, [-1] * 4)
    np.testing.assert_array_equal(shift.of(cells), [[1.0], [0.0], [2.0], [0.0]])


def numeric_cells(n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Classes at other mean doses, batches and two numbers that shift the cells."""
    rng = np.random.default_rng(seed)
    y, batch = rng.integers(3, size=n), rng.integers(2, size=n)
    dose, score = rng.normal(size=n) + 0.8 * y, rng.exponential(5.0, size=n) + 3 * batch
    x = MEANS[y] + SHIFTS[batch] + dose[:, None] * [0.7, -0.4] + score[:, None] * [0.0, 0.05] + rng.normal(size=(n, 2))
    return x, y, pd.DataFrame({"batch": batch, "dose": dose, "score": score})


def test_slopes_are_those_of_least_squares_on_classes_levels_and_numbers():
    x, y, obs = numeric_cells(20_000)
    found, cells = fit_covariates(x, y, obs, ("batch",), ("dose", "score"))
    numbers = obs[["dose", "score"]].to_numpy()
    design = np.concatenate([np.eye(3)[y], np.eye(2)[obs["batch"]][:, 1:], numbers], axis=1)
    of_batch, *slopes = np.linalg.lstsq(design, x, rcond=None)[0][3:]
    np.testing.assert_allclose(found.slopes, slopes, atol=2e-3)
    np.testing.assert_allclose(found.shifts[1] - found.shifts[0], of_batch, atol=0.01)
    np.testing.assert_allclose(found.slopes, [[0.7, -0.4], [0.0, 0.05]], atol=0.02)
    np.testing.assert_allclose(found.of(cells).mean(0), 0, atol=1e-8)
    part = cells.rows(slice(0, 3))
    np.testing.assert_allclose(
        found.of(part), found.shifts[part.codes] + (numbers[:3] - numbers.mean(0)) @ found.slopes, atol=1e-12
    )


def test_few_cells_say_little_about_a_slope():
    x, y, obs = numeric_cells(12)
    few, _ = fit_covariates(x, y, obs, (), ("dose",))
    unshrunk = np.linalg.lstsq(np.concatenate([np.eye(3)[y], obs[["dose"]]], axis=1), x, rcond=None)[0][3]
    assert few.slopes is not None
    assert np.linalg.norm(few.slopes) < 0.6 * np.linalg.norm(unshrunk)
    assert few.levels == ("all cells",)
    np.testing.assert_array_equal(few.shifts, 0)


def test_what_is_possible_has_the_mean_and_nearly_the_variance_of_the_training_cells():
    x, y, obs = numeric_cells(5000)
    found, cells = fit_covariates(x, y, obs, ("batch",), ("dose",))
    shifts, weights = found.possible()
    assert len(shifts) == 10
    assert weights.sum() == pytest.approx(1)
    of_cells = found.of(cells)
    np.testing.assert_allclose(weights @ shifts, of_cells.mean(0), atol=1e-3)
    spread = np.sqrt(weights @ (shifts - of_cells.mean(0)) ** 2)
    assert np.all(spread > 0.9 * of_cells.std(0))
    assert np.all(spread < of_cells.std(0))


def test_fifths_follow_the_longest_axis():
    numbers = np.random.default_rng(0).permutation(100.0 + np.arange(50))
    expected = 100 + np.arange(50).reshape(5, 10).mean(1)
    found = fifths(numbers[:, None] * [1.0, -2.0])
    np.testing.assert_allclose(np.sort(found[:, 0]), expected)
    np.testing.assert_allclose(found[:, 1], -2 * found[:, 0])
    assert fifths(np.array([[1.0, 2.0]])).tolist() == [[1.0, 2.0]] * 5


def test_a_number_that_is_missing_makes_a_cell_unknown():
    x, y, obs = numeric_cells(200)
    shift, _ = fit_covariates(x, y, obs, ("batch",), ("dose",))
    query = pd.DataFrame({"batch": [0, 0, 7], "dose": [1.0, np.nan, 2.0]})
    cells = shift.of_cells(query)
    np.testing.assert_array_equal(cells.unknown, [False, True, True])
    np.testing.assert_array_equal(shift.of(cells)[1:], 0)
    assert shift.of_cells(query[["batch"]]).unknown.all()
