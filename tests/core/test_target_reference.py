"""The closed-form reference of a continuous target."""

import numpy as np
import torch

from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import Fold
from scscore.core.target import Predictive, TargetGrid
from scscore.core.target_reference import fit_target_reference, kernels


def folds_of(x: np.ndarray, y: np.ndarray, n: int = 3) -> list[Fold]:
    of = np.arange(len(y)) % n
    return [Fold(x[of != i], y[of != i], x[of == i], y[of == i]) for i in range(n)]


def test_reference_is_the_posterior_of_a_linear_gaussian():
    """x = a y + noise has a normal posterior of known mean and variance: no network is needed."""
    rng = np.random.default_rng(0)
    y, a = rng.normal(size=4000), np.array([1.0, -0.5, 0.0])
    x = y[:, None] * a + 0.5 * rng.normal(size=(4000, 3))
    grid = TargetGrid.of(y)
    log_prior = np.log(grid.soft_labels(y).mean(0) + 1e-6)
    fit, _ = fit_target_reference(folds_of(x, y), x, y, grid=grid, log_prior=log_prior, n_features=[3])
    new = rng.normal(size=500)
    points = new[:, None] * a + 0.5 * rng.normal(size=(500, 3))
    log_p = fit.reference.log_prob(fit.whitening(torch.from_numpy(points))).numpy() @ grid.to_bins + log_prior
    found = Predictive(grid, np.exp(log_p - np.logaddexp.reduce(log_p, axis=1)[:, None])).mean
    precision = 1 + (a @ a) / 0.25
    expected = points @ a / 0.25 / precision
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.1 / np.sqrt(precision) + 0.03
    assert abs(fit.accuracy - (1 - 1 / precision)) < 0.04


def test_kernels_are_weights():
    for grid in (TargetGrid.of(np.arange(50.0)), TargetGrid.of(np.arange(50.0), period=50)):
        found = kernels(grid, np.linspace(0, 49, 30))
        assert np.allclose(found.sum(2), 1) and found.min() >= 0
        assert np.allclose(kernels(grid, grid.value(grid.nodes))[0], np.eye(16), atol=1e-12)


def test_shared_covariance_has_a_short_cut_that_changes_nothing():
    """Noise prediction and density by products of matrices, against the general formula, at one and at many noise levels."""
    torch.manual_seed(0)
    weights = torch.rand(16, 32) ** 6 + 1e-6
    means = torch.randn(16, 3) @ torch.randn(3, 7)
    weights /= weights.sum(1, keepdim=True)
    quick = GaussianReference(means, weights, scales=torch.tensor([1.0, 2.0]))
    slow = GaussianReference(
        means, weights, 1 + 1e-12 * torch.rand(16, 7, dtype=torch.float64), scales=torch.tensor([1.0, 2.0])
    )
    assert quick.pooled and not slow.pooled
    z, lam = (
        3 * torch.randn(4, 50, 7, dtype=torch.float64),
        torch.linspace(5, -5, 4, dtype=torch.float64)[:, None, None],
    )
    for level in (lam, lam[1, 0, 0]):
        assert torch.allclose(quick.eps(z, level), slow.eps(z, level), atol=1e-8)
        assert torch.allclose(quick.log_prob(z, level), slow.log_prob(z, level), atol=1e-8)
    assert torch.allclose(quick.log_prob(z), slow.log_prob(z), atol=1e-8)
    some = torch.tensor([[3, 7]])
    assert torch.allclose(quick.eps(z, lam, some), slow.eps(z, lam)[..., [3, 7], :], atol=1e-8)
    far = 100 * torch.ones(1, 7, dtype=torch.float64)
    assert torch.isfinite(quick.eps(far, lam[0, 0, 0])).all() and torch.isfinite(quick.log_prob(far)).all()
