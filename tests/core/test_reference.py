from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule


def scipy_log_prob(reference: GaussianReference, z: torch.Tensor, lam: float | None) -> np.ndarray:
    """Log density of every class by scipy, component by component."""
    alpha2 = 1.0 if lam is None else 1 / (1 + np.exp(-lam))
    dim = reference.n_features
    columns = []
    for k in range(len(reference.means)):
        axes = np.eye(dim) if reference.axes is None else reference.axes[k].numpy()
        for scale in reference.scales.numpy():
            covariance = alpha2 * scale * (axes * reference.variances[k].numpy()) @ axes.T + (1 - alpha2) * np.eye(dim)
            mean = np.sqrt(alpha2) * reference.means[k].numpy()
            columns.append(np.atleast_1d(multivariate_normal(mean, covariance).logpdf(z.numpy())))
    return logsumexp(np.stack(columns, 1)[:, None, :] + np.log(reference.weights.numpy()), axis=-1)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("lam", [None, 6.0, 0.0, -4.0])
@pytest.mark.parametrize("dim", [1, 2, 10, 50])
def test_density_equals_scipy(mixture: Callable[..., GaussianReference], dim: int, lam: float | None, full: bool):
    reference = mixture(dim, 4, full=full)
    z = torch.randn(20, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    level = None if lam is None else torch.tensor(lam)
    np.testing.assert_allclose(reference.log_prob(z, level).numpy(), scipy_log_prob(reference, z, lam), atol=1e-6)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dim", [1, 2, 10, 50])
def test_eps_is_minus_sigma_times_the_gradient(mixture: Callable[..., GaussianReference], dim: int, full: bool):
    reference = mixture(dim, 3, full=full)
    z = torch.randn(12, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    lam = torch.linspace(-5, 5, 12, dtype=torch.float64)[:, None]  # one level per row
    log_prob = reference.log_prob(z, lam)
    for k in range(reference.n_classes):
        gradient = torch.autograd.grad(log_prob[:, k].sum(), z, retain_graph=True)[0]
        torch.testing.assert_close(reference.eps(z, lam)[:, k], -NoiseSchedule.sigma(lam) * gradient)


def test_density_integrates_to_one_at_every_level(mixture: Callable[..., GaussianReference]):
    grid = torch.linspace(-25, 25, 20001, dtype=torch.float64)[:, None]
    for lam in (None, torch.tensor(2.0), torch.tensor(-3.0)):
        mass = torch.trapezoid(mixture(1, 3).log_prob(grid, lam).exp(), grid[:, 0], dim=0)
        torch.testing.assert_close(mass, torch.ones(3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_far_away_points_give_finite_values(mixture: Callable[..., GaussianReference]):
    reference = mixture(10, 3)
    far = torch.full((1, 10), 1e4)
    assert torch.isfinite(reference.log_prob(far)).all()
    assert torch.isfinite(reference.eps(far, torch.tensor(0.0))).all()


def test_a_class_with_one_far_component_keeps_its_score():
    """Weights of exactly zero: in single precision the other component must not swallow the responsibility."""
    reference = GaussianReference(torch.tensor([[-20.0], [20.0]]), torch.eye(2))
    z = torch.tensor([[-20.0]])
    sigma, alpha = NoiseSchedule.sigma(torch.tensor(0.0)), NoiseSchedule.alpha(torch.tensor(0.0))
    expected = sigma * (z - alpha * torch.tensor([[-20.0], [20.0]]))
    torch.testing.assert_close(reference.eps(z, torch.tensor(0.0))[0], expected)


def test_weights_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="weights need 4 columns"):
        GaussianReference(torch.zeros(2, 3), torch.ones(2, 3) / 3, scales=torch.tensor([1.0, 2.0]))
