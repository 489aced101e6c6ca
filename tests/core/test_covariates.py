"""Shifts of covariate levels against least squares and planted values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import lstsq, null_space

from scscore.core.covariates import (
    CellCovariates,
    CovariateShift,
    fifths,
    fit_covariates,
    fit_shifts,
    level_names,
    numbers_of,
)

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
    found, _ = fit_shifts(x, np.eye(3)[y], levels_only(codes), n_levels=3)
    expected = SHIFTS - np.bincount(codes) @ SHIFTS / len(codes)
    np.testing.assert_allclose(found, expected, atol=0.1)
    np.testing.assert_allclose(np.bincount(codes) @ found, 0, atol=1e-8)


def test_with_many_cells_it_is_least_squares():
    x, y, codes = cells(20_000, confounded=True)
    design = np.concatenate([np.eye(3)[y], np.eye(3)[codes][:, 1:]], axis=1)
    effect = np.concatenate([np.zeros((1, 2)), np.linalg.lstsq(design, x, rcond=None)[0][3:]])
    np.testing.assert_allclose(
        fit_shifts(x, np.eye(3)[y], levels_only(codes), n_levels=3)[0],
        effect - np.bincount(codes) @ effect / len(codes),
        atol=0.02,
    )


def test_a_level_of_few_cells_is_shrunk_and_one_without_stays():
    x, y, codes = cells(600)
    codes = np.where(np.arange(600) < 2, 3, codes)
    x[:2] += 100
    found, _ = fit_shifts(x, np.eye(3)[y], levels_only(codes), n_levels=5)
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
    found, cells = fit_covariates(x, np.eye(3)[y], obs, ("batch",), ("dose", "score"))
    numbers = obs[["dose", "score"]].to_numpy()
    design = np.concatenate([np.eye(3)[y], np.eye(2)[obs["batch"]][:, 1:], numbers], axis=1)
    of_batch, *slopes = np.linalg.lstsq(design, x, rcond=None)[0][3:]
    np.testing.assert_allclose(found.slopes, slopes, atol=1e-3)
    np.testing.assert_allclose(found.shifts[1] - found.shifts[0], of_batch, atol=3e-3)
    np.testing.assert_allclose(found.slopes, [[0.7, -0.4], [0.0, 0.05]], atol=0.02)
    np.testing.assert_allclose(found.of(cells).mean(0), 0, atol=1e-8)
    part = cells.rows(slice(0, 3))
    np.testing.assert_allclose(
        found.of(part), found.shifts[part.codes] + (numbers[:3] - numbers.mean(0)) @ found.slopes, atol=1e-12
    )


def test_few_cells_say_little_about_a_slope():
    x, y, obs = numeric_cells(12)
    few, _ = fit_covariates(x, np.eye(3)[y], obs, (), ("dose",))
    unshrunk = np.linalg.lstsq(np.concatenate([np.eye(3)[y], obs[["dose"]]], axis=1), x, rcond=None)[0][3]
    assert few.slopes is not None
    assert np.linalg.norm(few.slopes) < 0.6 * np.linalg.norm(unshrunk)
    assert few.levels == ("all cells",)
    np.testing.assert_array_equal(few.shifts, 0)


def test_collinear_covariates_share_an_effect_as_ridge_regression_says():
    """A number that is fixed per level: the solution of the penalised least squares, by the stacked system on the shifts that sum to zero."""
    rng = np.random.default_rng(0)
    y, donor = rng.integers(3, size=3000), rng.integers(5, size=3000)
    age = np.array([20.0, 35, 50, 65, 80])[donor]
    x = MEANS[y] + 0.05 * age[:, None] + rng.normal(size=(3000, 2))
    found, cells = fit_covariates(x, np.eye(3)[y], pd.DataFrame({"donor": donor, "age": age}), ("donor",), ("age",))
    standard = (age - age.mean()) / age.std()
    basis = null_space(np.bincount(donor)[None].astype(float))  # (5, 4)
    design = np.concatenate([basis[donor], standard[:, None], np.eye(3)[y]], axis=1)
    penalty = np.sqrt(10) * np.eye(5, 8)
    solution = lstsq(np.concatenate([design, penalty]), np.concatenate([x, np.zeros((5, 2))]))[0]
    np.testing.assert_allclose(found.slopes, solution[4:5] / age.std(), atol=1e-8)
    np.testing.assert_allclose(found.shifts, basis @ solution[:4], atol=1e-8)


@pytest.mark.parametrize("constant", [0.0, 0.3, 0.001, 1e6])
def test_a_number_that_is_the_same_for_all_has_no_slope(constant: float):
    x, y, obs = numeric_cells(300)
    obs["dose"] = constant
    found, _ = fit_covariates(x, np.eye(3)[y], obs, ("batch",), ("dose",))
    np.testing.assert_array_equal(found.slopes, 0)
    alone, _ = fit_covariates(x, np.eye(3)[y], obs, ("batch",))
    np.testing.assert_allclose(found.shifts, alone.shifts, atol=1e-10)


def test_unknown_parts_are_those_of_the_training_cells():
    """Level unknown: any level, the own number. Number unknown: its fifths in the own level. Both: all of these."""
    x, y, obs = numeric_cells(5000)
    shift, cells = fit_covariates(x, np.eye(3)[y], obs, ("batch",), ("dose",))
    query = shift.of_cells(pd.DataFrame({"batch": [0, 7, 1, 7], "dose": [1.0, 2.0, np.nan, np.nan]}))
    known, found = shift.of(query), shift.alternatives(query)
    np.testing.assert_array_equal([part.cells for part in found], np.eye(4, dtype=bool)[1:])
    (_, of_level, levels), (_, of_fifth, fifth), (_, of_both, both) = (
        (part.cells, np.exp(part.log_weights), np.stack(list(part.shifts)) + known) for part in found
    )
    assert [len(weights) for weights in (of_level, of_fifth, of_both)] == [2, 5, 10]
    for weights in (of_level, of_fifth, of_both):
        assert weights.sum() == pytest.approx(1)
    center, slope = obs["dose"].mean(), shift.slopes[0]
    np.testing.assert_allclose(levels[:, 1], shift.shifts + (2 - center) * slope)
    own = shift.of(cells)[obs["batch"] == 1]
    np.testing.assert_allclose(of_fifth @ fifth[:, 2], own.mean(0), atol=2e-3)
    spread = np.sqrt(of_fifth @ (fifth[:, 2] - own.mean(0)) ** 2)
    assert np.all((0.9 * own.std(0) < spread) & (spread < own.std(0)))
    np.testing.assert_allclose(of_both @ both[:, 3], 0, atol=2e-3)
    for part in found:  # what is known stays as it is
        np.testing.assert_array_equal(known[0], shift.of(query)[0])
        assert not part.cells[0]


def test_fifths_follow_the_longest_axis():
    order = np.random.default_rng(0).permutation(50)
    numbers = np.stack([100.0 + order, np.random.default_rng(1).normal(size=50)], axis=1)
    found = fifths(numbers, np.array([[1.0, -2.0], [0.0, 0.1]]))
    np.testing.assert_allclose(np.sort(found[:, 0]), 100 + np.arange(50).reshape(5, 10).mean(1))
    assert fifths(np.array([[3.0]]), np.ones((1, 2))).tolist() == [[3.0]] * 5


def test_a_missing_number_is_the_mean_and_a_missing_level_none():
    x, y, obs = numeric_cells(200)
    shift, _ = fit_covariates(x, np.eye(3)[y], obs, ("batch",), ("dose",))
    cells = shift.of_cells(pd.DataFrame({"batch": [0, 0, 7], "dose": [1.0, np.nan, 2.0]}))
    np.testing.assert_array_equal(cells.unknown, [False, True, True])
    of_dose = (np.array([1.0, 2.0]) - obs["dose"].mean())[:, None] * shift.slopes
    np.testing.assert_allclose(shift.of(cells), [shift.shifts[0] + of_dose[0], shift.shifts[0], of_dose[1]])
    assert shift.of_cells(obs[["batch"]]).unknown.all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["high"] * 3, "must hold numbers"),
        ([1.0, np.inf, 2.0], "infinite"),
        (pd.to_datetime(["2020-01-01"] * 3), "dates"),
    ],
)
def test_what_is_no_number_is_refused_by_name(values: object, says: str):
    with pytest.raises(ValueError, match=says) as error:
        numbers_of(pd.DataFrame({"dose": values}), ("dose",))
    assert "obs['dose']" in str(error.value)


def test_numbers_of_any_type_are_read():
    columns = {
        "float": [1.0, np.nan],
        "nullable": pd.array([1, None], dtype="Int64"),
        "category": pd.Categorical([1.0, None]),
        "text": ["1.0", None],
    }
    np.testing.assert_array_equal(numbers_of(pd.DataFrame(columns), tuple(columns)), [[1.0] * 4, [np.nan] * 4])
