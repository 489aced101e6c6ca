"""The probability flow against exact densities, scipy's integrator and automatic differentiation."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.autograd.functional import jacobian

from scscore.core.analytic import MixtureDiffusion
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.flow import flow
from scscore.core.likelihood import log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule
from scscore.core.trajectories import NoiseStream

Mixture = Callable[..., GaussianReference]
Wells = Callable[..., MixtureDiffusion]
WIDE = NoiseSchedule(16.0, -14.0, importance=(1, 2, 4, 6, 6, 4, 2, 1))
"""Nothing is left outside, and few levels are spent where little happens."""


def samples(model: MixtureDiffusion, n: int) -> Tensor:
    return model.sample(torch.arange(n) % model.n_classes, torch.Generator().manual_seed(3))


def estimate(model: ConditionalDiffusion, z: Tensor, n_steps: int) -> Tensor:
    return log_likelihood(model, z, estimator="flow", n_steps=n_steps, noise=NoiseStream(0)).mean


@pytest.fixture
def small(mixture: Mixture, learned: Callable[..., ResidualDenoiser]) -> tuple[ConditionalDiffusion, Tensor]:
    """A learned model of two classes in three dimensions, and three points."""
    reference = mixture(3, 2)
    z = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return ConditionalDiffusion(NoiseSchedule(4.0, -3.0), reference, learned(reference)), z


@pytest.mark.parametrize(("dim", "n_steps"), [(1, 36), (2, 32), (10, 24), (30, 28), (50, 32)])
def test_exact_score_gives_the_exact_likelihood(
    overlapping_classes: Callable[..., MixtureDiffusion], dim: int, n_steps: int
):
    """Values, and so log-ratios: a slope of one."""
    model = overlapping_classes(2, dim, separation=2 / dim**0.5)
    model.schedule = WIDE
    z = samples(model, 4)
    found, exact = estimate(model, z, n_steps), model.log_prob(z)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)
    assert np.polyfit(*(np.diff(v.numpy()).ravel() for v in (exact, found)), 1)[0] == pytest.approx(1, abs=0.02)


def test_three_wells_by_fifty_steps(three_wells: Wells):
    """On a grid that covers the barriers, too; the window is wider than sigma from .1 to 70, log SNR 11.4 to -1.7."""
    model = three_wells(WIDE)
    grid = torch.linspace(-2.2, 2.6, 97, dtype=torch.float64)[:, None]
    torch.testing.assert_close(estimate(model, grid, n_steps=50), model.log_prob(grid), atol=1e-4, rtol=0)


def test_energy_follows_a_change_of_units(three_wells: Wells):
    """Energy is -log p: in units half as long it is higher by log(2) per dimension."""
    schedule = NoiseSchedule(20.0, -20.0, importance=(0.5, 1, 2, 4, 7, 6, 3, 1, 0.5, 0.5))
    model, scaled = (three_wells(schedule, unit=30.05162225 / factor) for factor in (1, 2))
    z = samples(model, 10)
    change = estimate(model, z, n_steps=50) - estimate(scaled, 2 * z, n_steps=50)
    torch.testing.assert_close(change, torch.full_like(change, np.log(2)), atol=1e-5, rtol=0)


def test_doubling_the_steps_reduces_the_error_of_fourth_order(small: tuple[ConditionalDiffusion, Tensor]):
    model, z = small
    fine = estimate(model, z, n_steps=32)
    error = [float((estimate(model, z, n) - fine).abs().max()) for n in (4, 8, 16)]
    assert all(after < before / 8 for before, after in pairwise(error))


def test_flow_equals_the_textbook_formula_by_scipy(small: tuple[ConditionalDiffusion, Tensor]):
    """Change of the log-density is minus the divergence of the velocity; no control variate, and no control of ours.

    The two ends beyond the window are the reference's.
    """
    model, z = small
    upper, lower = (torch.tensor(v, dtype=torch.float64) for v in (4.0, -3.0))
    found = estimate(model, z, n_steps=32)
    for i, k in ((0, 0), (0, 1), (1, 0), (2, 1)):  # points and classes

        def velocity(x: Tensor, lam: Tensor, k: int = k) -> Tensor:
            sigma = NoiseSchedule.sigma(lam)
            return 0.5 * (sigma**2 * x - sigma * model.eps(x, lam)[k])

        def derivative(lam: float, state: np.ndarray, velocity: Callable[..., Tensor] = velocity) -> np.ndarray:
            x, level = torch.from_numpy(state[:-1]), torch.tensor(lam, dtype=torch.float64)
            divergence = jacobian(lambda point: velocity(point, level), x).trace()
            return np.r_[velocity(x, level).numpy(), -divergence.numpy()]

        start = NoiseSchedule.alpha(upper) * z[i]
        initial = np.r_[start.numpy(), 0.0]
        solved = solve_ivp(derivative, (4.0, -3.0), initial, method="DOP853", rtol=1e-8, atol=1e-9).y[:, -1]
        end = torch.from_numpy(solved[:-1])
        at_floor = model.reference.log_prob(end, lower)[k] - solved[-1]
        expected = model.reference.log_prob(z[i])[k] + at_floor - model.reference.log_prob(start, upper)[k]
        assert float(found[i, k]) == pytest.approx(float(expected), abs=1e-6)


def test_one_step_uses_the_trace_of_the_jacobian(small: tuple[ConditionalDiffusion, Tensor]):
    """A step so short that the integrand does not change: the gain is its length times the integrand at the start."""
    model, z = small
    lam = torch.tensor(0.5, dtype=torch.float64)
    levels = torch.stack([lam, lam - 1e-5])
    x, sigma = NoiseSchedule.alpha(lam) * z, NoiseSchedule.sigma(lam)
    for k in range(2):
        traces = torch.stack([jacobian(lambda p, k=k: model.denoiser(p, lam)[k], point).trace() for point in x])
        eps, residual = (values[:, k] for values in model.eps_and_residual(x, lam))
        expected = 0.5 * (sigma * traces - (eps * residual).sum(-1))
        torch.testing.assert_close(flow(model, z, levels)[:, k] / 1e-5, expected, atol=1e-4, rtol=1e-4)


def test_hutchinson_is_unbiased(small: tuple[ConditionalDiffusion, Tensor]):
    model, z = small
    levels = model.schedule.levels(1)
    probes = torch.stack([NoiseStream(0).normal(np.arange(3), 3, pair=i, step=0).sign() for i in range(512)])
    found, exact = flow(model, z, levels, probes=probes), flow(model, z, levels)
    assert found.shape == (512, 3, 2)
    assert ((found.mean(0) - exact).abs() < 4 * found.std(0) / 512**0.5).all()
    assert (found.std(0) > 1e-3).all()


def test_all_sign_patterns_average_to_the_exact_divergence(small: tuple[ConditionalDiffusion, Tensor]):
    model, z = small
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)[:, None, :].expand(-1, 3, -1)
    levels = model.schedule.levels(3)
    torch.testing.assert_close(flow(model, z, levels, probes=signs).mean(0), flow(model, z, levels))


@pytest.mark.parametrize(("dim", "exact"), [(256, True), (257, False)])
def test_divergence_is_exact_up_to_256_dimensions(
    mixture: Mixture, learned: Callable[..., ResidualDenoiser], dim: int, exact: bool
):
    """Above, every probe is a draw of its own, and the standard error is that of the probes."""
    reference = mixture(dim, 2, full=False)
    model = ConditionalDiffusion(NoiseSchedule(), reference, learned(reference))
    z = torch.randn(2, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = log_likelihood(model, z, estimator="flow", n_steps=1, n_paths=64, noise=NoiseStream(0))
    truth = reference.log_prob(z) + flow(model, z, model.schedule.levels(1))
    assert found.exact is exact
    assert found.paths.shape == ((1, 1, 2, 2) if exact else (64, 1, 2, 2))
    if exact:
        torch.testing.assert_close(found.mean, truth)
        assert (found.standard_error == 0).all()
    else:
        assert ((found.mean - truth).abs() < 4 * found.standard_error).all()
        assert (found.standard_error > 0).all()
