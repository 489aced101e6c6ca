"""Posterior, temperature and metrics against hand computations, scipy, scikit-learn and resampling."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy as scipy_entropy
from scipy.stats import norm
from sklearn.metrics import log_loss

from scscore.core.calibration import (
    TEMPERATURE_BOUNDS,
    confidence_standard_error,
    entropy,
    estimate_prior,
    expected_calibration_error,
    fit_calibration,
    log_posterior,
    negative_log_likelihood,
)

UNIFORM = np.log(np.full(3, 1 / 3))


def logits(n: int, k: int = 3, scale: float = 2.0, seed: int = 0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=(n, k))


def drawn(log_p: np.ndarray, seed: int = 1) -> np.ndarray:
    """One class per row from its probabilities."""
    uniform = np.random.default_rng(seed).random((len(log_p), 1))
    return (np.exp(log_p).cumsum(1) < uniform).sum(1).clip(max=log_p.shape[1] - 1)


def test_log_posterior_is_bayes_rule():
    likelihood, prior = np.array([[0.2, 0.1], [1e-3, 4e-3]]), np.array([0.3, 0.7])
    expected = likelihood * prior / (likelihood @ prior)[:, None]
    np.testing.assert_allclose(np.exp(log_posterior(np.log(likelihood), np.log(prior))), expected)
    tempered = likelihood**0.5 * prior
    tempered /= tempered.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_posterior(np.log(likelihood), np.log(prior), 0.5)), tempered)


def test_log_posterior_of_extreme_values_stays_normalised():
    log_p = log_posterior(np.array([[-1e5, -2e5, -1e5], [800.0, -800.0, 0.0]], dtype=np.float32), UNIFORM)
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1)
    np.testing.assert_allclose(np.exp(log_p[0]), [0.5, 0, 0.5])


def test_a_class_of_prior_zero_is_excluded():
    log_prior = np.array([np.log(0.5), -np.inf, np.log(0.5)])
    values = logits(50)
    log_p = log_posterior(values, log_prior)
    assert (log_p[:, 1] == -np.inf).all()
    np.testing.assert_allclose(log_p[:, [0, 2]], log_softmax(values[:, [0, 2]], axis=1))
    assert np.isfinite(entropy(log_p)).all()
    np.testing.assert_allclose(entropy(log_p), entropy(log_p[:, [0, 2]]))
    draws = values + np.random.default_rng(0).normal(size=(4, 50, 3))
    found = confidence_standard_error(draws, log_p, 1.0)
    np.testing.assert_allclose(found, confidence_standard_error(draws[:, :, [0, 2]], log_p[:, [0, 2]], 1.0))
    y = np.where(drawn(log_p) == 1, 0, drawn(log_p))
    assert TEMPERATURE_BOUNDS[0] <= fit_calibration(values, log_prior, y)[0] <= TEMPERATURE_BOUNDS[1]


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.8])
def test_a_known_temperature_is_recovered(temperature: float):
    log_prior = np.log([0.6, 0.3, 0.1])
    values = logits(20_000)
    y = drawn(log_posterior(values, log_prior, temperature))
    assert fit_calibration(values, log_prior, y)[0] == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("frequencies", [(0.6, 0.3, 0.1), (0.2, 0.4, 0.4)])
@pytest.mark.parametrize("offsets", [(0.0, 0.0, 0.0), (0.4, -0.3, -0.1)])
def test_known_offsets_are_recovered(offsets: tuple[float, ...], frequencies: tuple[float, ...]):
    """Whatever the class frequencies of the cells: they are not the business of the offsets."""
    rng, means = np.random.default_rng(0), np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])
    y = rng.choice(3, p=frequencies, size=20_000)
    x = means[y] + rng.normal(size=(len(y), 2))
    exact = -0.5 * ((x[:, None] - means) ** 2).sum(-1)
    temperature, found = fit_calibration((exact - np.array(offsets)) / 0.7, np.log([0.6, 0.3, 0.1]), y)
    assert temperature == pytest.approx(0.7, rel=0.05)
    np.testing.assert_allclose(found - found.mean(), offsets, atol=0.08)


def test_calibration_minimises_loss_and_penalty():
    values, log_prior = logits(60), np.log([0.6, 0.3, 0.1])
    y = drawn(log_posterior(values, log_prior, 0.5))

    weights = (np.exp(log_prior) / np.bincount(y))[y]  # to the class frequencies of the prior
    assert 0.2 < (60 * weights).min() < (60 * weights).max() < 5  # no bound is met

    def objective(parameters: np.ndarray) -> float:
        probabilities = softmax(np.exp(parameters[0]) * values + log_prior + parameters[1:], axis=1)
        loss = log_loss(y, probabilities, normalize=False, sample_weight=60 * weights / weights.sum())
        return loss + 0.5 * ((parameters / np.array([0.5, 0.3, 0.3, 0.3])) ** 2).sum()

    temperature, offsets = fit_calibration(values, log_prior, y)
    found = np.concatenate([[np.log(temperature)], offsets])
    independent = minimize(
        objective, np.zeros(4), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9, "maxfev": 5000}
    )
    assert objective(found) <= independent.fun + 1e-6
    np.testing.assert_allclose(found, independent.x, atol=1e-3)


@pytest.mark.parametrize("gap", [1.0, 10.0, 1e4])
def test_perfectly_separated_cells_give_a_bounded_temperature(gap: float):
    y = np.arange(300) % 3
    values = gap * np.eye(3)[y]
    found = fit_calibration(values, UNIFORM, y)[0]
    assert np.isfinite(found)
    assert 1 <= found <= TEMPERATURE_BOUNDS[1]
    wrong = fit_calibration(values, UNIFORM, (y + 1) % 3)[0]
    assert TEMPERATURE_BOUNDS[0] <= wrong < 1


def test_few_cells_say_little_about_the_temperature():
    values = logits(3)
    assert fit_calibration(values, UNIFORM, values.argmax(1))[0] == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize("frequencies", [(0.7, 0.2, 0.1), (0.05, 0.05, 0.9), (1.0, 0.0, 0.0)])
@pytest.mark.parametrize("offsets", [0.0, np.array([0.5, 0.0, -0.5])])
def test_estimated_prior_is_that_of_the_cells(frequencies: tuple[float, ...], offsets: np.ndarray | float):
    rng = np.random.default_rng(1)
    y = rng.choice(3, 5000, p=frequencies)
    x = rng.normal(size=(5000, 2)) + np.array([[0, 0], [1.5, 0], [0, 1.5]])[y]
    exact = norm.logpdf(x[:, None], np.array([[0, 0], [1.5, 0], [0, 1.5]])).sum(-1)
    found = np.exp(estimate_prior((exact - offsets) / 0.5, UNIFORM, 0.5, offsets))
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, np.bincount(y, minlength=3) / 5000, atol=0.03)


def test_estimated_prior_is_the_maximum_of_the_likelihood():
    values = logits(400)
    found = estimate_prior(values, UNIFORM, tolerance=1e-10)

    def minus_log_likelihood(w: np.ndarray) -> float:  # with the one cell that is shared out by the starting prior
        w = softmax(np.append(w, 0.0))
        return -logsumexp(values + np.log(w), axis=1).sum() - np.log(w).mean()

    best = minimize(minus_log_likelihood, np.zeros(2), tol=1e-12)
    np.testing.assert_allclose(np.exp(found), softmax(np.append(best.x, 0.0)), atol=1e-4)


def test_a_class_that_the_prior_excludes_stays_excluded():
    with np.errstate(divide="ignore"):
        found = estimate_prior(logits(50), np.log([0.5, 0.0, 0.5]))
    assert found[1] == -np.inf
    assert np.isfinite(found[[0, 2]]).all()


def test_entropy_equals_scipy():
    log_p = log_softmax(logits(200, 7, 10.0), axis=1)
    np.testing.assert_allclose(entropy(log_p), scipy_entropy(np.exp(log_p), axis=1), atol=1e-12)
    assert entropy(np.array([[0.0, -np.inf]])).tolist() == [0.0]
    np.testing.assert_allclose(entropy(np.log(np.full((1, 5), 0.2))), np.log(5))


def test_negative_log_likelihood_equals_sklearn():
    p = softmax(logits(500), axis=1)
    y = drawn(np.log(p))
    assert negative_log_likelihood(p, y) == pytest.approx(log_loss(y, p))
    assert negative_log_likelihood([[0.5, 0.5], [0.1, 0.9]], [0, 1]) == pytest.approx(-(np.log(0.5) + np.log(0.9)) / 2)
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(-np.log(1e-9))


def test_calibration_error_by_hand():
    p = np.array([[0.95, 0.05], [0.91, 0.09], [0.05, 0.95], [0.35, 0.65], [0.62, 0.38]])
    y = np.array([0, 1, 1, 0, 0])
    # bin 0.9-1.0: three cells, mean confidence 2.81/3, two right; bin 0.6-0.7: two cells, mean confidence 1.27/2, one right
    expected = (3 * abs(2.81 / 3 - 2 / 3) + 2 * abs(1.27 / 2 - 1 / 2)) / 5
    assert expected_calibration_error(p, y, n_bins=10) == pytest.approx(expected)


def test_calibration_error_of_certain_cells():
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert expected_calibration_error(certain, [0, 1, 2, 0]) == 0
    assert expected_calibration_error(certain, [1, 2, 0, 1]) == 1
    assert expected_calibration_error(certain, [0, 1, 2, 1]) == pytest.approx(0.25)


def test_calibration_error_tells_calibrated_from_overconfident():
    values = logits(40_000)
    y = drawn(log_softmax(values, axis=1))
    assert expected_calibration_error(softmax(values, axis=1), y) < 0.01
    assert expected_calibration_error(softmax(3 * values, axis=1), y) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_standard_error_is_the_spread_of_repeated_estimates(temperature: float):
    """Delta method against the standard deviation of the confidence over thousands of repeated estimates."""
    rng = np.random.default_rng(0)
    n_draws, n_repeats = 16, 4000
    true = np.array([[1.0, 0.2, -1.0], [0.1, 0.0, -3.0], [4.0, 0.0, 0.0]])
    covariance = np.array([[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.4]])
    draws = true + rng.multivariate_normal(np.zeros(3), covariance, size=(n_repeats, n_draws, 3))
    confidence, found = [], []
    for each in draws:
        log_p = log_posterior(each.mean(0), UNIFORM, temperature)
        confidence.append(np.exp(log_p[:, 0]))  # class 0 is the best nearly always
        found.append(confidence_standard_error(each, log_p, temperature) ** 2)
    expected = np.std(confidence, axis=0)
    np.testing.assert_allclose(np.sqrt(np.mean(found, axis=0))[[0, 2]], expected[[0, 2]], rtol=0.1)
    np.testing.assert_allclose(np.sqrt(np.mean(found, axis=0))[1], expected[1], rtol=0.2)


def test_standard_error_of_one_draw_is_unknown_and_of_equal_draws_zero():
    log_p = log_softmax(logits(5), axis=1)
    assert np.isnan(confidence_standard_error(logits(5)[None], log_p, 1.0)).all()
    equal = np.tile(logits(5), (4, 1, 1))
    np.testing.assert_allclose(confidence_standard_error(equal, log_p, 1.0), 0, atol=1e-12)
    common = equal + np.arange(4.0)[:, None, None]  # a shift of all classes changes no posterior
    np.testing.assert_allclose(confidence_standard_error(common, log_p, 1.0), 0, atol=1e-12)
