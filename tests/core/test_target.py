"""Continuous targets: soft labels, predictive distributions and their intervals against closed forms."""

import numpy as np
import pytest
from scipy.stats import norm, vonmises

from scscore.core.conformal import conformal_share
from scscore.core.target import SMOOTHING, Predictive, TargetGrid, difference, entropies

PERIOD = 24.0


def line(n: int = 3000) -> TargetGrid:
    return TargetGrid.of(np.random.default_rng(0).normal(5, 2, n))


def circle() -> TargetGrid:
    return TargetGrid.of(np.random.default_rng(0).uniform(0, PERIOD, 3000), period=PERIOD)


GRIDS = pytest.mark.parametrize("grid", [line(), circle()], ids=["line", "circle"])


def posterior(grid: TargetGrid, mean: np.ndarray, sd: np.ndarray, n: int = 4000) -> Predictive:
    """What a model gives that has learned soft labels of normal values exactly."""
    values = norm.ppf((np.arange(n) + 0.5) / n, mean[:, None], sd[:, None])
    return Predictive(grid, np.stack([grid.soft_labels(row).mean(0) for row in values]))


@pytest.fixture(params=[line(), circle()], ids=["line", "circle"])
def case(request):
    grid, rng = request.param, np.random.default_rng(1)
    mean = rng.uniform(3, 7, 200) if not grid.circular else rng.uniform(0, PERIOD, 200)
    sd = rng.uniform(2, 4, 200) * np.interp(mean, grid.centers, grid.widths)
    return grid, mean, sd, posterior(grid, mean, sd)


@GRIDS
def test_soft_labels_give_the_value_back(grid: TargetGrid):
    y = np.linspace(grid.value(grid.nodes[0]), grid.value(grid.nodes[-1]), 999)
    labels = grid.soft_labels(y)
    assert np.abs(labels.sum(1) - 1).max() < 1e-12 and labels.min() >= 0
    position = labels @ (np.arange(64) + 0.5)
    if grid.circular:
        position = np.angle(labels @ np.exp(2j * np.pi * (np.arange(64) + 0.5) / 64)) * 64 / (2 * np.pi)
    assert np.abs(difference(position, grid.position(y), grid.turn)).max() < 1e-4


@GRIDS
def test_values_and_positions_are_inverse(grid: TargetGrid):
    y = np.random.default_rng(0).uniform(grid.edges[0], grid.edges[-1], 500)
    assert np.allclose(grid.value(grid.position(y)), y)
    assert np.allclose(np.diff(grid.edges), grid.widths) and grid.widths.min() > 0


@GRIDS
def test_soft_labels_are_as_wide_as_they_should_be(grid: TargetGrid):
    position = np.linspace(grid.nodes[0], grid.nodes[-1], 999)
    offset = difference(np.arange(64) + 0.5, position[:, None], grid.turn)
    spread = (grid.soft_labels(grid.value(position)) * offset**2).sum(1)
    assert np.allclose(spread, SMOOTHING**2 + 1 / 12, rtol=0.01)


@GRIDS
def test_the_spline_goes_through_the_nodes_and_keeps_what_is_smooth(grid: TargetGrid):
    nodes, centers = grid.nodes, np.arange(64) + 0.5
    assert np.allclose(grid.spline(grid.value(nodes)), np.eye(16), atol=1e-12)
    assert np.allclose(grid.to_bins.sum(0), 1)
    if grid.circular:
        assert np.abs(np.cos(2 * np.pi * nodes / 64) @ grid.to_bins - np.cos(2 * np.pi * centers / 64)).max() < 2e-3
    else:  # a natural spline is straight at its ends: parabolas hold inside
        assert np.allclose(nodes @ grid.to_bins, centers)
        inside = (centers > nodes[4]) & (centers < nodes[-5])
        assert np.abs(nodes**2 @ grid.to_bins - centers**2)[inside].max() < 0.01 * 64


@GRIDS
def test_hats_are_linear_between_nodes(grid: TargetGrid):
    y = np.random.default_rng(3).uniform(grid.value(grid.nodes[0]), grid.value(grid.nodes[-1]), 99)
    hats = grid.hats(y)
    assert np.allclose(hats.sum(1), 1) and (np.count_nonzero(hats, axis=1) <= 2).all()
    assert np.allclose(hats @ grid.nodes, grid.position(y))


def test_mean_and_standard_deviation_are_those_of_the_values(case):
    grid, mean, sd, found = case
    assert (np.abs(grid.difference(found.mean, mean)) < 0.05 * sd).all()
    assert np.allclose(found.sd, sd, rtol=0.05)


def test_moments_are_those_of_the_quantiles():
    """The mean over many quantiles is an independent way to both moments."""
    grid = TargetGrid.of(np.random.default_rng(0).exponential(size=3000) ** 2)
    found = Predictive(grid, np.random.default_rng(1).dirichlet(np.full(64, 0.1), 50))
    values = found.quantile((np.arange(20_000) + 0.5) / 20_000)
    assert np.allclose(found.mean, values.mean(1), rtol=1e-3)
    assert np.allclose(found.sd, values.std(1), rtol=5e-3)


def test_quantiles_and_cdf(case):
    grid, mean, sd, found = case
    shares = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    quantiles = found.quantile(shares)
    expected = norm.ppf(shares, mean[:, None], sd[:, None])
    assert (np.abs(grid.difference(quantiles, expected)) < 0.12 * sd[:, None]).all()
    assert np.allclose(found.cdf(quantiles), shares, atol=1e-9)
    assert np.abs(found.cdf(mean) - 0.5).max() < 0.05


def test_log_density_is_that_of_the_values(case):
    grid, mean, sd, found = case
    y = np.random.default_rng(5).normal(mean, 0.8 * sd)
    assert abs(found.log_density(y).mean() - norm.logpdf(y, mean, sd).mean()) < 0.03
    assert np.allclose(found.density() @ grid.widths, 1, atol=1e-9)


def test_log_density_is_normalised_and_never_infinite():
    grid = line()
    found = Predictive(grid, np.eye(grid.n_bins)[[10, 30]])
    fine = np.linspace(-40, 50, 1_000_001)
    density = np.exp(found.log_density(np.tile(fine, (2, 1))))
    assert np.allclose(density.sum(1) * (fine[1] - fine[0]), 1, atol=2e-3)
    assert np.isfinite(found.log_density(np.array([1e3, -1e3]))).all()


def test_circular_densities_wrap():
    grid = circle()
    y = vonmises(4, loc=0).rvs(4000, random_state=0) * PERIOD / (2 * np.pi)
    found = Predictive(grid, grid.soft_labels(y).mean(0)[None])
    assert abs(grid.difference(found.mean[0], 0)) < 0.2
    low, high = found.quantile(np.array([0.05, 0.95]))[0]
    assert low > high  # the interval goes over midnight
    inside = (grid.difference(y, low) >= 0) & (grid.difference(high, y) >= 0)
    assert abs(inside.mean() - 0.9) < 0.02


def test_a_period_below_zero_starts_at_minus_half():
    grid = TargetGrid.of([-2.0, 3.0, 1.0], period=2 * np.pi)
    assert (grid.edges[0], grid.edges[-1]) == (-np.pi, np.pi)
    assert np.allclose(grid.value(grid.position([4.0, -4.0])), [4 - 2 * np.pi, 2 * np.pi - 4])


def test_bins_are_narrow_where_values_are_frequent():
    y = np.random.default_rng(0).exponential(size=2000) ** 2
    grid = TargetGrid.of(y)
    assert np.abs(grid.position([y.min(), y.max()]) - grid.nodes[[0, -1]]).max() < 0.5
    assert (grid.centers < np.median(y)).sum() > 10 and grid.widths[5] < 0.1 * np.ptp(y) / 64


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_conformal_share_covers_new_values(coverage):
    """Too narrow distributions: the share grows until the interval covers; mean over repetitions, as the theorem says."""
    rng, covered = np.random.default_rng(2), []
    for _ in range(300):
        scores = np.abs(2 * norm.cdf(rng.normal(0, 2, 100)) - 1)
        covered.append((np.abs(2 * norm.cdf(rng.normal(0, 2, 100)) - 1) <= conformal_share(scores, coverage)).mean())
    assert coverage - 0.01 < np.mean(covered) < coverage + 0.02
    assert conformal_share([0.2, 0.5], 0.9) == 1.0


def test_one_outlier_leaves_the_others_their_bins():
    y = np.append(np.random.default_rng(0).normal(size=999), 1e6)
    grid = TargetGrid.of(y)
    assert np.diff(grid.position(np.quantile(y, [0.25, 0.75])))[0] > 10


def test_values_of_few_donors_do_not_become_spikes():
    ages = np.repeat(np.random.default_rng(0).choice(np.arange(30, 90), 20, replace=False), 200).astype(float)
    grid = TargetGrid.of(ages)
    density = grid.frequencies(ages) / grid.widths
    assert density.max() < 3 * np.median(density)
    assert np.isclose(grid.frequencies(ages).sum(), 1)


@pytest.mark.parametrize("bins", [0.5, 1, 3, 6])
def test_entropy_is_that_of_the_values(bins: float):
    """Of a normal distribution, without what soft labels add; two networks apart by several standard deviations differ by log 2."""
    grid = circle()
    sd = np.full(50, bins * grid.widths[0])
    mean = np.random.default_rng(0).uniform(8, 16, 50)
    found = posterior(grid, mean, sd).weights
    own, mutual = entropies(grid, found[None])
    assert np.allclose(own, 0.5 * np.log(2 * np.pi * np.e * sd**2), atol=0.1)
    assert np.abs(mutual).max() < 1e-12
    if bins > 3:
        return  # no room on the circle
    far = posterior(grid, mean + 8 * sd, sd).weights
    own, mutual = entropies(grid, np.stack([found, far]))
    assert np.allclose(own, 0.5 * np.log(2 * np.pi * np.e * sd**2), atol=0.1)
    assert np.allclose(mutual, np.log(2), atol=0.02)
