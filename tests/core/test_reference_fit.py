"""The closed-form reference: whitening, label overlap, and the choice of its shape."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf

from scscore.core.reference_fit import (
    INFLATIONS,
    SCALES,
    Fold,
    ReferenceFit,
    ReferenceShape,
    build_reference,
    candidate_shapes,
    clearly_worse,
    cross_validate,
    fit_reference,
    overlap_weights,
    pooled_whitening,
)

Data = tuple[np.ndarray, np.ndarray]


def mixture(n: int, *, d: int = 4, k: int = 3, separation: float = 3.0, own: bool = False, seed: int = 0) -> Data:
    """One Gaussian per class, with a covariance that is common to all or of its own."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    means = separation * rng.normal(size=(k, d))
    roots = np.eye(d) + 0.4 * (rng.normal(size=(k, d, d)) if own else np.tile(rng.normal(size=(d, d)), (k, 1, 1)))
    return means[y] + np.einsum("ndj,nj->nd", roots[y], rng.normal(size=(n, d))), y


def folds_of(x: np.ndarray, y: np.ndarray, n: int = 3) -> list[Fold]:
    part = np.arange(len(y)) // 7 % n
    return [Fold(x[part != i], y[part != i], x[part == i], y[part == i]) for i in range(n)]


def fitted(x: np.ndarray, y: np.ndarray, shapes: list[ReferenceShape] | None = None) -> ReferenceFit:
    k = int(y.max()) + 1
    shapes = candidate_shapes([x.shape[1]]) if shapes is None else shapes
    return fit_reference(folds_of(x, y), x, y, n_classes=k, log_prior=np.log(np.bincount(y) / len(y)), shapes=shapes)


def pooled_covariance(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    k = int(y.max()) + 1
    centred = z - np.stack([z[y == c].mean(0) for c in range(k)])[y]
    return centred.T @ centred / (len(z) - k)


def test_whitening_makes_the_pooled_covariance_the_identity():
    x, y = mixture(6000)
    whitening = pooled_whitening(x, y, 3)
    z = whitening(torch.from_numpy(x)).numpy().astype(np.float64)
    np.testing.assert_allclose(pooled_covariance(z, y), np.eye(4), atol=0.03)  # Ledoit-Wolf shrinks a little
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)


def test_whitening_of_few_cells_is_that_of_the_shrunk_covariance():
    x, y = mixture(30, d=20)
    whitening = pooled_whitening(x, y, 3)
    means = np.stack([x[y == c].mean(0) for c in range(3)])
    shrunk = ledoit_wolf(x - means[y], assume_centered=True)[0] * 30 / 27
    matrix = whitening.matrix.numpy()
    np.testing.assert_allclose(matrix.T @ shrunk @ matrix, np.eye(20), atol=1e-8)
    assert np.abs(matrix.T @ pooled_covariance(x, y) @ matrix - np.eye(20)).max() > 0.1


def test_whitening_keeps_account_of_the_volume():
    x, y = mixture(300)
    whitening = pooled_whitening(x, y, 3)
    z = whitening(torch.from_numpy(x)).numpy()
    log_p = multivariate_normal(np.zeros(4)).logpdf(z) + whitening.log_abs_det
    matrix = whitening.matrix.numpy()
    covariance = np.linalg.inv(matrix @ matrix.T)
    np.testing.assert_allclose(log_p, multivariate_normal(x.mean(0), covariance).logpdf(x), atol=1e-3)


def test_a_representation_without_spread_is_refused():
    y = np.arange(12) % 3
    with pytest.raises(ValueError, match="degenerate.*singular"):
        pooled_whitening(np.eye(3)[y], y, 3)


def test_a_class_without_cells_is_named():
    x, y = mixture(30)
    with pytest.raises(ValueError, match=r"at least one cell in every split; classes without: \[3\]"):
        pooled_whitening(x, y, 4)


def penalised(weights: np.ndarray, log_density: np.ndarray, y: np.ndarray, prior: np.ndarray) -> float:
    """Log posterior of the weights: the function that EM climbs."""
    log_w = np.log(weights)
    return float(logsumexp(log_density + log_w[y], axis=1).sum() + (prior * log_w).sum())


def test_em_finds_what_a_direct_optimiser_finds():
    rng = np.random.default_rng(0)
    k, n_scales = 3, 2
    y = np.arange(90) % k
    log_density = rng.normal(size=(90, k * n_scales))
    log_density[np.arange(90), n_scales * y] += 1
    prior = np.repeat(0.9 * np.eye(k) + 0.1 / k, n_scales, axis=1) / n_scales
    found = overlap_weights(log_density, y, k, n_iterations=5000)
    np.testing.assert_allclose(found.sum(1), 1)

    def objective(free: np.ndarray) -> float:
        return -penalised(softmax(free.reshape(k, -1), axis=1), log_density, y, prior)

    best = minimize(objective, np.zeros(k * k * n_scales), method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-13})
    assert penalised(found, log_density, y, prior) >= -best.fun - 1e-4
    np.testing.assert_allclose(found, softmax(best.x.reshape(k, -1), axis=1), atol=5e-3)


def test_em_climbs_and_ignores_constants_of_cells():
    x, y = mixture(60, separation=1.0)
    log_density = np.random.default_rng(0).normal(size=(60, 6))
    prior = np.repeat(0.9 * np.eye(3) + 0.1 / 3, 2, axis=1) / 2
    course = [
        penalised(overlap_weights(log_density, y, 3, n_iterations=n), log_density, y, prior) for n in (1, 3, 10, 100)
    ]
    assert all(np.diff(course) > 0)
    shifted = log_density - 1000 * np.arange(60)[:, None]
    np.testing.assert_allclose(overlap_weights(shifted, y, 3), overlap_weights(log_density, y, 3), atol=1e-6)


def test_a_rare_class_keeps_its_own_gaussian():
    weights = overlap_weights(np.zeros((1, 6)), np.array([0]), 3)
    own = weights.reshape(3, 3, 2).sum(2)
    np.testing.assert_allclose(np.diag(own)[1:], 0.9 + 0.1 / 3)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_mislabelled_cells_show_as_overlap(share: float):
    """A share of the cells of class a carry the label b."""
    x, truth = mixture(3000, separation=4.0, seed=1)
    y = truth.copy()
    from_a = np.flatnonzero(truth == 0)
    y[from_a[np.random.default_rng(0).permutation(1000)[: int(1000 * share)]]] = 1
    weights = fitted(x, y, [ReferenceShape(4, 0.0)]).reference.weights.numpy()
    overlap = weights.reshape(3, 3, len(SCALES)).sum(2)
    np.testing.assert_allclose(overlap.sum(1), 1)
    among_b = 1000 * share / (1000 + 1000 * share)  # of the cells labelled b, so many are of class a
    assert overlap[1, 0] == pytest.approx(among_b, abs=0.03)
    assert overlap[0, 1] < 0.03
    assert overlap[2, 2] > 0.97


def test_one_in_five_cells_of_a_label_from_another_class():
    """Of the cells labelled b, 20 % are of class a: the off-diagonal weight is 0.2."""
    x, truth = mixture(3000, separation=4.0, seed=1)
    y = truth.copy()
    y[np.flatnonzero(truth == 0)[:250]] = 1  # 250 beside the 1,000 of b
    weights = fitted(x, y, [ReferenceShape(4, 0.0)]).reference.weights.numpy()
    assert weights.reshape(3, 3, -1).sum(2)[1, 0] == pytest.approx(0.2, abs=0.03)


def test_covariances_of_their_own_are_chosen_where_there_are_any():
    own = fitted(*mixture(1500, separation=0.5, own=True)).shape
    assert own.class_covariance >= 0.6
    common = fitted(*mixture(1500, separation=0.5, own=False)).shape
    assert common.class_covariance <= 0.3


def test_features_of_noise_do_not_have_to_be_used():
    x, y = mixture(300, separation=1.0)
    noise = np.random.default_rng(5).normal(size=(300, 60))
    found = fitted(np.c_[x, noise], y, [ReferenceShape(d, 0.9) for d in (4, 64)])
    assert found.shape.n_features == 4


def test_ties_go_to_more_features():
    x, y = mixture(3000, separation=4.0)
    noise = np.random.default_rng(5).normal(size=(3000, 1))
    found = fitted(np.c_[x, noise], y, [ReferenceShape(4), ReferenceShape(5)])
    assert found.shape.n_features == 5


def test_densities_of_the_fit_are_those_of_the_data():
    """Log density of new cells, in the space of the data, against the true one."""
    x, y = mixture(9000, separation=2.0)
    new, y_new = x[6000:], y[6000:]
    found = fitted(x[:6000], y[:6000])
    z = found.whitening(torch.from_numpy(new))
    log_p = found.reference.log_prob(z).numpy() + found.whitening.log_abs_det
    for c in range(3):
        rows = y_new == c
        true = multivariate_normal(x[y == c].mean(0), np.cov(x[y == c].T)).logpdf(new[rows])
        assert np.abs(log_p[rows, c] - true).mean() < 0.1
    assert found.accuracy == pytest.approx((log_p.argmax(1) == y_new).mean(), abs=0.03)


def test_losses_are_those_of_held_out_cells():
    x, y = mixture(300, separation=1.0)
    found = fitted(x, y)
    assert found.losses.shape == (300,)
    assert found.nll == pytest.approx(found.losses.mean())
    random = fitted(x, np.random.default_rng(0).integers(0, 3, 300))
    assert random.nll == pytest.approx(np.log(3), abs=0.1)
    assert random.accuracy == pytest.approx(1 / 3, abs=0.12)


def test_given_weights_are_used(n_classes: int = 3):
    x, y = mixture(200)
    weights = np.full((n_classes, 6), 1 / 6)
    _, reference = build_reference(x, y, n_classes=3, shape=ReferenceShape(2, 0.6, 0.5), weights=weights)
    np.testing.assert_array_equal(reference.weights.numpy(), weights)
    assert reference.n_features == 2


def test_clearly_worse_needs_more_than_noise():
    rng = np.random.default_rng(0)
    best = rng.random(1000)
    assert clearly_worse(best + 0.1, best)
    assert not clearly_worse(best, best)
    assert not clearly_worse(best - 0.1, best)
    assert not clearly_worse(best + np.tile([0.0, 0.0, 0.0, 5.0], 250)[rng.permutation(1000)] - 1.25, best)


def test_gaussian_cells_need_no_inflation():
    x, y = mixture(900, separation=0.7, seed=3)
    log_prior = np.log(np.bincount(y) / len(y))
    found = cross_validate(folds_of(x, y), n_classes=3, log_prior=log_prior, shapes=[ReferenceShape(x.shape[1])])
    assert found.shape.inflation == 1


def test_cells_between_the_classes_inflate_the_covariances_to_a_better_posterior():
    """A tenth of the cells are on their way from their class to another one: the Gaussians of the others are too sharp for them."""
    rng, n = np.random.default_rng(0), 3000
    y, means = np.arange(n) % 3, 6.0 * np.eye(3)
    other = (y + rng.integers(1, 3, n)) % 3
    way = np.where(rng.random(n) < 0.1, rng.uniform(0, 0.8, n), 0)[:, None]
    x = np.concatenate([means[y] + way * (means[other] - means[y]), np.zeros((n, 3))], 1) + rng.normal(size=(n, 6))
    train, log_prior = np.arange(n) < n // 2, np.log(np.full(3, 1 / 3))
    folds, losses = folds_of(x[train], y[train]), {}
    for name, inflations in (("one", ()), ("chosen", INFLATIONS)):
        found = fit_reference(
            folds,
            x[train],
            y[train],
            n_classes=3,
            log_prior=log_prior,
            shapes=[ReferenceShape(6)],
            inflations=inflations,
        )
        joint = found.reference.log_prob(found.whitening(torch.from_numpy(x[~train]))).numpy() + log_prior
        log_posterior = joint - logsumexp(joint, axis=1, keepdims=True)
        losses[name] = -log_posterior[np.arange(n // 2), y[~train]].mean()
    assert found.shape.inflation > 2
    assert losses["chosen"] < 0.85 * losses["one"]
