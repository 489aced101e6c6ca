"""Prediction sets: coverage by simulation, and against MAPIE and the textbook quantile."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin

from scscore.core.conformal import SET_METHODS, SetMethod, conformal_p_values, nonconformity


def cells(n: int, frequencies: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors under equal frequencies, deliberately too confident, and labels of cells with given class frequencies."""
    rng = np.random.default_rng(seed)
    y = rng.choice(len(frequencies), n, p=frequencies)
    logits = rng.normal(size=(n, len(frequencies)))
    logits[np.arange(n), y] += 1.5
    return softmax(3 * logits, axis=1), y


def sets_of(
    method: SetMethod,
    coverage: float,
    new: np.ndarray,
    calibration: np.ndarray,
    y: np.ndarray,
    seed: int = 0,
    **options,
) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])  # not the stream that drew the labels
    own = nonconformity(calibration, method, rng.random(len(calibration)))[np.arange(len(y)), y]
    return conformal_p_values(nonconformity(new, method, rng.random(len(new))), own, y, **options) > 1 - coverage


@pytest.mark.parametrize("method", SET_METHODS)
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_coverage_is_exact_for_exchangeable_cells(method: SetMethod, coverage: float):
    """Averaged over calibration sets of 99 cells, coverage is within [c, c + 1 / 100], which is a theorem."""
    frequencies, found = np.full(4, 0.25), []
    for seed in range(300):
        posterior, y = cells(299, frequencies, seed)
        sets = sets_of(method, coverage, posterior[99:], posterior[:99], y[:99], seed)
        found.append(sets[np.arange(200), y[99:]].mean())
    error = np.std(found) / np.sqrt(len(found))
    assert coverage - 3 * error <= np.mean(found) <= coverage + 0.01 + 3 * error


@pytest.mark.parametrize("method", SET_METHODS)
def test_class_conditional_sets_cover_within_every_class(method: SetMethod):
    frequencies, found = np.array([0.7, 0.2, 0.1]), []
    for seed in range(200):
        posterior, y = cells(1500, frequencies, seed)
        own = slice(0, 500)
        sets = sets_of(method, 0.9, posterior[500:], posterior[own], y[own], seed, class_conditional=True)
        covered = sets[np.arange(1000), y[500:]]
        found.append([covered[y[500:] == k].mean() for k in range(3)])
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.mean(found, axis=0) > 0.9 - 3 * error).all()
    assert (np.mean(found, axis=0) < 0.9 + 1 / 30 + 3 * error).all()  # the rarest class has about 50 calibration cells


@pytest.mark.parametrize("method", SET_METHODS)
def test_weights_restore_the_coverage_under_a_shift_of_the_frequencies(method: SetMethod):
    before, after = np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.1, 0.8])
    plain, weighted = [], []
    for seed in range(200):
        calibration, y = cells(600, before, seed)
        calibration = softmax(np.log(calibration) + np.log(before), axis=1)
        new, truth = cells(400, after, 10_000 + seed)
        new = softmax(np.log(new) + np.log(before), axis=1)
        rows = np.arange(400)
        plain.append(sets_of(method, 0.9, new, calibration, y, seed)[rows, truth].mean())
        weighted.append(
            sets_of(method, 0.9, new, calibration, y, seed, class_weights=after / before)[rows, truth].mean()
        )
    assert np.mean(plain) < 0.85
    assert np.mean(weighted) == pytest.approx(0.9, abs=0.02)


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its probabilities, for MAPIE."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Given:
        self.classes_ = np.unique(y)
        self.n_features_in_ = x.shape[1]
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.argmax(1)


@pytest.mark.parametrize("coverage", [0.7, 0.9, 0.95])
def test_lac_sets_equal_those_of_mapie(coverage: float):
    from mapie.classification import SplitConformalClassifier

    posterior, y = cells(700, np.full(5, 0.2), 0)
    calibration, new = posterior[:400], posterior[400:]
    judge = SplitConformalClassifier(
        Given().fit(calibration, y[:400]), confidence_level=coverage, conformity_score="lac"
    )
    _, expected = judge.conformalize(calibration, y[:400]).predict_set(new)
    found = sets_of("lac", coverage, new, calibration, y[:400])
    np.testing.assert_array_equal(found, expected[:, :, 0])
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("coverage", [0.7, 0.9, 0.95])
def test_p_values_give_the_sets_of_the_quantile(coverage: float):
    """The definition of split-conformal sets: scores up to the ceil((n + 1) c)-th smallest of the calibration scores."""
    posterior, y = cells(500, np.full(3, 1 / 3), 1)
    uniform = np.random.default_rng(0).random(500)
    scores = nonconformity(posterior, "aps", uniform)
    own = np.sort(scores[np.arange(200), y[:200]])
    quantile = own[int(np.ceil(201 * coverage)) - 1]
    found = conformal_p_values(scores[200:], own, y[:200]) > 1 - coverage + 1e-12
    np.testing.assert_array_equal(found, scores[200:] <= quantile)


def test_aps_scores_are_the_mass_above_and_a_random_part():
    posterior = np.array([[0.5, 0.2, 0.3]])
    np.testing.assert_allclose(nonconformity(posterior, "aps", [0.0]), [[0.0, 0.8, 0.5]])
    np.testing.assert_allclose(nonconformity(posterior, "aps", [0.5]), [[0.25, 0.9, 0.65]])
    with pytest.raises(ValueError, match="uniform"):
        nonconformity(posterior, "aps")


def test_a_class_without_calibration_cells_is_in_all_class_conditional_sets_and_never_where_its_weight_is_zero():
    posterior, y = cells(300, np.array([0.5, 0.5, 0.0]), 0)
    assert sets_of("lac", 0.9, posterior, posterior, y, class_conditional=True)[:, 2].all()
    p = conformal_p_values(
        nonconformity(posterior, "lac"), np.zeros(0), np.zeros(0, dtype=int), class_weights=[1, 1, 0]
    )
    np.testing.assert_array_equal(p, np.tile([1.0, 1.0, 0.0], (300, 1)))
