"""The permutation test: uniform under the null, exact against enumeration, untouched by ties."""

import itertools

import numpy as np
import pytest
from scipy.stats import kstest, permutation_test

from scscore.core.permutation import benjamini_hochberg, permutation_p_values


def test_uniform_under_the_null_and_small_otherwise():
    rng = np.random.default_rng(0)
    values, members = rng.normal(size=(300, 400)), np.arange(300) < 80
    values[members, :20] += 1
    p = permutation_p_values(values, members, n_permutations=999, rng=rng)
    assert kstest(p[20:], "uniform").pvalue > 0.01
    assert (p[:20] == 0.001).all()


def test_small_p_values_get_all_draws_and_large_ones_few():
    rng = np.random.default_rng(3)
    values, members = rng.normal(size=(60, 200)), np.arange(60) < 20
    values[members, :5] += 3
    p = permutation_p_values(values, members, n_permutations=20_000, rng=rng)
    np.testing.assert_allclose(p[:5], 1 / 20_001)
    assert kstest(p[5:], "uniform").pvalue > 0.01


def test_agrees_with_all_permutations():
    values, members = np.random.default_rng(1).normal(size=(9, 3)), np.arange(9) < 3
    sums = np.array([values[list(rows)].sum(0) for rows in itertools.combinations(range(9), 3)])
    exact = (sums >= values[members].sum(0) - 1e-9).mean(0)
    found = np.mean(
        [permutation_p_values(values, members, n_permutations=250, rng=np.random.default_rng(i)) for i in range(40)],
        axis=0,
    )
    np.testing.assert_allclose(found, exact, atol=0.02)
    other = permutation_test(
        (values[members, 0], values[~members, 0]), lambda a, b: a.mean() - b.mean(), alternative="greater"
    )
    assert found[0] == pytest.approx(other.pvalue, abs=0.02)


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-6, -1e6])
def test_rare_genes_are_not_significant(scale: float):
    """One cell in a thousand with a value, in single precision: most draws tie with what was observed."""
    values = np.zeros((1000, 50), dtype=np.float32)
    values[np.arange(500, 550), np.arange(50)] = 0.3
    p = permutation_p_values(scale * values, np.arange(1000) < 200, n_permutations=500, rng=np.random.default_rng(0))
    assert (p > 0.5).all()


def test_false_discovery_rates():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.04, np.nan, 0.16 / 3, 0.16 / 3, 0.5])
    assert np.isnan(benjamini_hochberg(np.full(3, np.nan))).all()
