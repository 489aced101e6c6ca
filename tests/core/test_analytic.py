"""The exact model against scipy, automatic differentiation and its own samples."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import kstest, multivariate_normal, norm

from scscore.core.analytic import MixtureDiffusion, moment_matched
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule

DIMENSIONS = [1, 2, 10, 30, 50]
Components = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def components(dim: int, *, full: bool = True) -> Components:
    """Means, covariances (or variances) and weights of three classes of two components."""
    rng = np.random.default_rng(dim)
    means = 2 * rng.normal(size=(3, 2, dim))
    roots = rng.normal(size=(3, 2, dim, dim)) / dim**0.5
    covariances = roots @ roots.swapaxes(-1, -2) + 0.3 * np.eye(dim) if full else 0.3 + rng.random((3, 2, dim))
    return torch.from_numpy(means), torch.from_numpy(covariances), torch.from_numpy(rng.dirichlet([2, 2], size=3))


def scipy_log_prob(parts: Components, z: torch.Tensor, lam: float | None = None) -> np.ndarray:
    alpha2 = 1.0 if lam is None else 1 / (1 + np.exp(-lam))
    means, covariances, weights = (part.numpy() for part in parts)
    if covariances.ndim == 3:
        covariances = covariances[..., None] * np.eye(means.shape[-1])
    noised = alpha2 * covariances + (1 - alpha2) * np.eye(means.shape[-1])
    log_p = [
        [multivariate_normal(np.sqrt(alpha2) * m, c).logpdf(z.numpy()) for m, c in zip(*pair, strict=True)]
        for pair in zip(means, noised, strict=True)
    ]
    return logsumexp(np.array(log_p) + np.log(weights)[..., None], axis=1).T


def samples(model: MixtureDiffusion, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(n) % model.n_classes
    return model.sample(y, torch.Generator().manual_seed(0)), y


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("lam", [None, 6.0, 0.0, -4.0])
@pytest.mark.parametrize("dim", DIMENSIONS)
def test_density_equals_scipy(dim: int, lam: float | None, full: bool):
    parts = components(dim, full=full)
    z = 2 * torch.randn(20, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = MixtureDiffusion.from_components(*parts).log_prob(z, None if lam is None else torch.tensor(lam))
    np.testing.assert_allclose(found.numpy(), scipy_log_prob(parts, z, lam), atol=1e-5)


def test_equal_weights_are_the_default():
    means, covariances, _ = components(2)
    z, equal = torch.eye(2, dtype=torch.float64), torch.full((3, 2), 0.5, dtype=torch.float64)
    found = MixtureDiffusion.from_components(means, covariances).log_prob(z)
    np.testing.assert_allclose(found.numpy(), scipy_log_prob((means, covariances, equal), z))


@pytest.mark.parametrize("lam", [6.0, 1.5, 0.0, -4.0])
@pytest.mark.parametrize("dim", DIMENSIONS)
def test_score_is_the_gradient_of_the_noised_log_density(
    exact_model: Callable[..., tuple[MixtureDiffusion, GaussianReference]], dim: int, lam: float
):
    """The model's score is that of the truth, whatever its reference."""
    for model in (MixtureDiffusion.from_components(*components(dim)), exact_model(dim)[0]):
        z = torch.randn(12, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        log_prob = model.log_prob(z, torch.tensor(lam))
        for k in range(3):
            gradient = torch.autograd.grad(log_prob[:, k].sum(), z, retain_graph=True)[0]
            torch.testing.assert_close(model.score(z, torch.tensor(lam))[:, k], gradient)


def test_samples_have_the_distribution_of_the_density():
    """In one dimension: every class against its cumulative distribution."""
    means, variances, weights = components(1, full=False)
    z, y = samples(MixtureDiffusion.from_components(means, variances, weights), 6000)
    for k in range(3):

        def cumulative(x: np.ndarray, k: int = k) -> np.ndarray:
            parts = norm(means[k, :, 0].numpy(), variances[k, :, 0].sqrt().numpy()).cdf(x[:, None])
            return parts @ weights[k].numpy()

        assert kstest(z[y == k, 0].numpy(), cumulative).pvalue > 1e-3


@pytest.mark.parametrize("dim", [2, 10, 50])
def test_samples_have_the_moments_of_the_mixture(mixture: Callable[..., GaussianReference], dim: int):
    """Mean, covariance and entropy; the last against samples drawn by numpy, component by component."""
    truth = mixture(dim)  # components at two scales, shared by the classes
    model = MixtureDiffusion(truth)
    z, y = samples(model, 30_000)
    rng = np.random.default_rng(1)
    for k in range(3):
        own, other = z[y == k], np.empty((10_000, dim))
        drawn = rng.choice(6, size=10_000, p=truth.weights[k].numpy())
        for j in range(6):
            axes, rows = truth.axes[j // 2].numpy(), drawn == j
            covariance = truth.scales[j % 2].item() * (axes * truth.variances[j // 2].numpy()) @ axes.T
            other[rows] = rng.multivariate_normal(truth.means[j // 2].numpy(), covariance, size=int(rows.sum()))
        sd = own.std(0).numpy()
        assert np.abs((own.mean(0).numpy() - other.mean(0)) / sd).max() < 5 * (2 / 10_000) ** 0.5
        difference = (np.cov(own.numpy().T) - np.cov(other.T)) / np.outer(sd, sd)
        assert np.abs(difference).max() < 6 * (2 * 3 / 10_000) ** 0.5  # of products: up to three times the variance
        log_p, log_p_other = model.log_prob(own)[:, k], model.log_prob(torch.from_numpy(other))[:, k]
        assert (log_p.mean() - log_p_other.mean()).abs() < 4 * float(log_p.std()) * (2 / 10_000) ** 0.5


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_the_default_reference_has_the_moments_of_the_classes(dim: int):
    """Law of total covariance, written out."""
    means, covariances, weights = components(dim)
    reference = MixtureDiffusion.from_components(means, covariances, weights).reference
    mean = (weights[..., None] * means).sum(1)
    pooled = torch.zeros(dim, dim, dtype=torch.float64)
    for k in range(3):
        for m, covariance, weight in zip(means[k], covariances[k], weights[k], strict=True):
            pooled += weight * (covariance + torch.outer(m - mean[k], m - mean[k])) / 3
    torch.testing.assert_close(reference.means, mean)
    for axes, variances in zip(reference.axes, reference.variances, strict=True):
        torch.testing.assert_close(axes * variances @ axes.T, pooled)
    assert torch.equal(reference.weights, torch.eye(3, dtype=torch.float64))


def test_the_default_reference_has_the_moments_of_the_samples(mixture: Callable[..., GaussianReference]):
    """With shared components, two scales and axes of their own."""
    truth = mixture(4)
    z, y = samples(MixtureDiffusion(truth), 60_000)
    reference = moment_matched(truth)
    for k in range(3):
        torch.testing.assert_close(reference.means[k], z[y == k].mean(0), atol=0.05, rtol=0)
    pooled = torch.stack([torch.cov(z[y == k].T) for k in range(3)]).mean(0)
    torch.testing.assert_close(
        reference.axes[0] * reference.variances[0] @ reference.axes[0].T, pooled, atol=0.1, rtol=0
    )


def test_a_single_gaussian_is_its_own_reference():
    means = torch.randn(3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = MixtureDiffusion.from_components(means, torch.full((3, 1, 4), 0.7, dtype=torch.float64))
    z = torch.zeros(1, 4, dtype=torch.float64)
    torch.testing.assert_close(model.reference.log_prob(z), model.log_prob(z))
    _, residual = model.eps_and_residual(z, torch.tensor(1.0))
    torch.testing.assert_close(residual, torch.zeros_like(residual), atol=1e-12, rtol=0)


def test_the_schedule_is_the_default_one_unless_given():
    parts = components(2)
    assert MixtureDiffusion.from_components(*parts).schedule == NoiseSchedule()
    assert MixtureDiffusion.from_components(*parts, schedule=NoiseSchedule(7.0, -7.0)).schedule.lam_max == 7
