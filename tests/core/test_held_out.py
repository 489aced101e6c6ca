"""Typicality and prediction sets of an exactly known model."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal
from sklearn.metrics import roc_auc_score

from scscore.core.calibration import log_posterior
from scscore.core.held_out import HeldOut
from scscore.core.novelty import class_entropies, depth_trend, p_value, typicality_score

MEANS = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
SPREADS = np.array([1.0, 0.3, 2.0])
FREQUENCIES = np.array([0.6, 0.3, 0.1])
LOG_PRIOR = np.log(FREQUENCIES)


def log_likelihood(x: np.ndarray) -> np.ndarray:
    return np.stack(
        [multivariate_normal(m, s**2 * np.eye(3)).logpdf(x) for m, s in zip(MEANS, SPREADS, strict=True)], 1
    )


def cells(n: int, seed: int, frequencies: np.ndarray = FREQUENCIES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=frequencies)
    return MEANS[y] + SPREADS[y][:, None] * rng.normal(size=(n, 3)), y


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    x, y = cells(3000, 0)
    return HeldOut.of(log_likelihood(x), y)


def test_class_entropies_are_those_of_the_gaussians(held_out: HeldOut):
    exact = 1.5 * np.log(2 * np.pi * np.e * SPREADS**2)
    np.testing.assert_allclose(class_entropies(held_out.log_likelihood, held_out.y), exact, atol=0.25)


def test_entropies_of_rare_classes_shrink_to_the_mean(held_out: HeldOut):
    values, y = held_out.log_likelihood, held_out.y
    rows = np.concatenate([np.flatnonzero(y == 0)[:500], np.flatnonzero(y == 1)[:1]])
    found = class_entropies(values[rows], y[rows])
    own = -values[rows, y[rows]]
    assert abs(found[1] - own.mean()) < 0.15 * abs(own[-1] - own.mean()) + 1e-9
    assert found[2] == pytest.approx(own.mean())


@pytest.mark.parametrize("frequencies", [FREQUENCIES, np.array([0.2, 0.2, 0.6])])
def test_typicality_of_known_cells_is_uniform(held_out: HeldOut, frequencies: np.ndarray):
    x, _ = cells(2000, 1, frequencies)
    found = held_out.typicality(log_likelihood(x))
    limit = 0.05 if frequencies is FREQUENCIES else 0.12  # exact for the same frequencies, close for others
    assert kstest(found, "uniform").statistic < limit


def test_typicality_of_novel_cells_is_small(held_out: HeldOut):
    rng = np.random.default_rng(2)
    known, novel = cells(500, 1)[0], np.array([4.0, 4.0, 4.0]) + 0.5 * rng.normal(size=(500, 3))
    p = held_out.typicality(log_likelihood(np.concatenate([known, novel])))
    assert roc_auc_score(np.repeat([1, 0], 500), p) > 0.95


def test_a_tight_class_is_not_hidden_by_a_diffuse_one(held_out: HeldOut):
    """Cells between the classes are less likely than any cell of the tight class, yet likelier than many of the diffuse one."""
    rng = np.random.default_rng(3)
    tight = MEANS[1] + SPREADS[1] * rng.normal(size=(300, 3))
    diffuse = MEANS[2] + SPREADS[2] * rng.normal(size=(300, 3))
    p_tight, p_diffuse = (held_out.typicality(log_likelihood(x)) for x in (tight, diffuse))
    assert abs(p_tight.mean() - p_diffuse.mean()) < 0.25
    plain = log_likelihood(np.concatenate([tight, diffuse])).max(1)
    assert plain[:300].mean() - plain[300:].mean() > 3


def test_depth_trend_is_least_squares_within_the_seen_depths():
    rng = np.random.default_rng(0)
    depth = rng.uniform(5, 9, 500)
    score = 2.0 * depth + rng.normal(size=500)
    slope = np.polyfit(depth, score, 1)[0]
    trend = depth_trend(score, depth)
    np.testing.assert_allclose(trend([6.0, 7.0]), slope * (np.array([6.0, 7.0]) - depth.mean()))
    np.testing.assert_allclose(trend([0.0, 20.0]), trend([depth.min(), depth.max()]))
    np.testing.assert_array_equal(depth_trend(score, np.full(500, 3.0))([1.0, 3.0]), 0)


def test_shallow_cells_are_not_novel():
    """The spread grows where depth falls; without the depth, shallow known cells are rejected first."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        depth, y = rng.uniform(0, 1, n), rng.choice(3, n, p=FREQUENCIES)
        return MEANS[y] + (SPREADS[y] * (2 - depth))[:, None] * rng.normal(size=(n, 3)), y, depth

    x, y, depth = draw(4000)
    own = HeldOut.of(log_likelihood(x), y, depth)
    x, _, depth = draw(4000)
    shallow = depth < 0.2
    with_depth, without = own.typicality(log_likelihood(x), depth), own.typicality(log_likelihood(x))
    assert abs(with_depth[shallow].mean() - 0.5) < 0.5 * abs(without[shallow].mean() - 0.5)
    assert (with_depth[shallow] < 0.1).mean() < (without[shallow] < 0.1).mean() - 0.02
    assert kstest(with_depth, "uniform").statistic < 0.05


def test_p_value_is_the_rank():
    np.testing.assert_allclose(p_value([-1.0, 0.0, 2.5, 9.0], [0, 1, 2, 3]), [1 / 5, 2 / 5, 4 / 5, 1.0])


def test_typicality_score_takes_the_best_class():
    np.testing.assert_array_equal(typicality_score([[-1.0, -5.0], [-9.0, -5.0]], [0.0, 1.0]), [-1.0, -4.0])


@pytest.mark.parametrize("frequencies", [FREQUENCIES, np.array([0.1, 0.1, 0.8])])
def test_sets_cover_under_any_prior_that_is_declared(held_out: HeldOut, frequencies: np.ndarray):
    x, y = cells(4000, 5, frequencies)
    log_prior = np.log(frequencies)
    posterior = np.exp(log_posterior(log_likelihood(x), log_prior))
    sets = held_out.prediction_sets(posterior, log_prior, 1.0, coverage=0.9)
    assert sets[np.arange(len(y)), y].mean() == pytest.approx(0.9, abs=0.03)


def test_at_most_5000_cells_are_kept():
    x, y = cells(7000, 0)
    kept = HeldOut.of(log_likelihood(x), y, np.arange(7000.0))
    assert len(kept.y) == len(kept.log_depth) == len(kept.log_likelihood) == 5000
    assert kept.log_depth[-1] == 6999
    np.testing.assert_array_equal(kept.y, y[kept.log_depth.astype(int)])
