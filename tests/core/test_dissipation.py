"""The dissipation estimator against exact densities, in and out of the limit of short jumps."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from scscore.core.analytic import MixtureDiffusion
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.dissipation import dissipation, evidence_by_level
from scscore.core.likelihood import log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.schedule import Jump, NoiseSchedule, broadcastable_level
from scscore.core.trajectories import NoiseStream, noising_trajectory

DIMENSIONS = [1, 2, 10, 30, 50]
ExactModel = Callable[..., tuple[MixtureDiffusion, GaussianReference]]
Wells = Callable[..., MixtureDiffusion]


def samples(model: MixtureDiffusion, n: int) -> Tensor:
    return model.sample(torch.arange(n) % model.n_classes, torch.Generator().manual_seed(3))


def paths(model: ConditionalDiffusion, z: Tensor, n_steps: int, n_draws: int, seed: int = 0) -> Tensor:
    """Estimates along independent antithetic pairs, ``(n_draws, 2, n, n_classes)``: repeated rows have noise of their own."""
    found = log_likelihood(model, z.repeat(n_draws, 1), n_steps=n_steps, n_paths=2, noise=NoiseStream(seed))
    return found.paths[0].unflatten(1, (n_draws, -1)).transpose(0, 1)


def standard_error(draws: Tensor) -> Tensor:
    return draws.std(0) / len(draws) ** 0.5


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_exact_score_gives_the_exact_likelihood(exact_model: ExactModel, dim: int):
    """Every value within four standard errors, and so their mean, which is known better."""
    model, truth = exact_model(dim)
    z = samples(model, 8)
    exact = truth.log_prob(z)
    found = log_likelihood(model, z, n_steps=24, n_paths=64, noise=NoiseStream(0))
    assert ((found.mean - exact).abs() < 4 * found.standard_error).all()
    error = (found.draws - exact).mean((1, 2))
    assert error.mean().abs() < 4 * standard_error(error)


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_estimated_log_ratios_have_slope_one(overlapping_classes: Callable[..., MixtureDiffusion], dim: int):
    model = overlapping_classes(3, dim, separation=2 / dim**0.5)
    model.schedule = NoiseSchedule(8.0, -8.0)
    z = samples(model, 60)
    estimated = log_likelihood(model, z, n_steps=32, n_paths=8, noise=NoiseStream(0)).mean
    ratios = [(values[:, 1:] - values[:, :1]).ravel().numpy() for values in (model.log_prob(z), estimated)]
    assert np.polyfit(*ratios, 1)[0] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dim", [1, 10])
def test_one_path_of_the_exact_score_becomes_exact(exact_model: ExactModel, dim: int):
    """Four times the steps: half the error and half the spread, which is discretisation and not noise."""
    model, truth = exact_model(dim, lam=8.0)
    z = samples(model, 30)
    error, spread = [], []
    for n_steps in (16, 64, 256):
        found = paths(model, z, n_steps, n_draws=8)[:, 0]  # one of every pair
        error.append(float((found - truth.log_prob(z)).square().mean().sqrt()))
        spread.append(float(found.std(0).mean()))
    for values in (error, spread):
        assert all(after < 0.7 * before for before, after in pairwise(values))


def test_doubling_the_steps_at_least_halves_the_bias(exact_model: ExactModel):
    """Two jumps over 16 units of log SNR are wrong, and four are much better: the sum is smooth and vanishes at both ends."""
    model, truth = exact_model(2, lam=8.0)
    z = samples(model, 6)
    bias = []
    for n_steps in (2, 4, 8):
        draws = paths(model, z, n_steps, n_draws=2000).mean(1) - truth.log_prob(z)
        bias.append(float((draws.mean(0).square() - standard_error(draws).square()).mean().clamp_min(0).sqrt()))
    assert bias[0] > 0.1  # visible
    assert all(after < 0.5 * before for before, after in pairwise(bias))


class Drift(nn.Module):
    """The residual ``direction * profile(lam)``, the same everywhere: a wrong score unless the profile is 1 / cosh(lam / 2).

    With a standard normal reference everything has a closed form. Generated points are normal with unit variance around
    ``-direction * integral of alpha sigma profile``; the evidence lower bound integrates
    ``-profile * alpha sigma (direction . z) - |direction|^2 profile^2 / 2``.
    """

    def __init__(self, direction: Tensor) -> None:
        super().__init__()
        self.direction = direction

    @staticmethod
    def profile(lam: Tensor) -> Tensor:
        return torch.exp(-0.5 * (lam - 1) ** 2)

    def forward(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        return self.profile(broadcastable_level(lam, z))[..., None] * self.direction + 0 * z[..., None, :]

    def evidence(self, z: Tensor, lam: Tensor) -> Tensor:
        """Integrand of the evidence lower bound, shape ``(len(lam), len(z))``."""
        profile = self.profile(lam)[:, None]
        slope = NoiseSchedule.alpha(lam)[:, None] * NoiseSchedule.sigma(lam)[:, None] * (z @ self.direction)
        return -profile * slope - 0.5 * profile**2 * self.direction.square().sum()


def drifting(lam_max: float, lam_min: float) -> tuple[ConditionalDiffusion, Drift, Tensor, Tensor]:
    """The model, its residual, five points, and the exact log-density of what the model generates there."""
    direction = torch.tensor([0.8, -0.6], dtype=torch.float64)
    drift, reference = Drift(direction), GaussianReference(torch.zeros(1, 2), torch.ones(1, 1))
    z = 1.5 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    lam = torch.linspace(lam_min, lam_max, 4001, dtype=torch.float64)
    pull = NoiseSchedule.alpha(lam) * NoiseSchedule.sigma(lam) * drift.profile(lam)
    generated = reference.log_prob(z + direction * torch.trapezoid(pull, lam))
    return ConditionalDiffusion(NoiseSchedule(lam_max, lam_min), reference, drift), drift, z, generated


@pytest.mark.parametrize("n_steps", [1, 2, 4, 8])
def test_the_mean_is_the_right_end_sum_of_the_evidence(n_steps: int):
    """However long the jumps: a jump weighs its length. What is linear in the noise cancels in an antithetic pair."""
    model, drift, z, _ = drifting(1.0, -3.0)
    found = paths(model, z, n_steps, n_draws=1).mean((0, 1))[:, 0]
    levels = model.schedule.levels(n_steps)
    expected = model.reference.log_prob(z)[:, 0] + 4 / n_steps * drift.evidence(z, levels[1:]).sum(0)
    torch.testing.assert_close(found, expected)


def test_doubling_the_steps_halves_the_bias_of_first_order():
    """The window cuts the drift, so that the sum does not vanish at its ends, as is the case elsewhere."""
    model, drift, z, _ = drifting(1.0, -3.0)
    lam = torch.linspace(-3, 1, 4001, dtype=torch.float64)
    limit = model.reference.log_prob(z)[:, 0] + torch.trapezoid(drift.evidence(z, lam), lam, dim=0)
    bias = [
        float((paths(model, z, n, n_draws=1).mean((0, 1))[:, 0] - limit).square().mean().sqrt()) for n in (4, 8, 16, 32)
    ]
    assert bias[-1] > 0.03
    assert all(0.45 * before < after <= 0.5 * before for before, after in pairwise(bias))


def test_second_law_and_jarzynski_for_a_wrong_score():
    """The mean falls short of the density of what the model generates, the exponential average does not."""
    model, drift, z, generated = drifting(8.0, -8.0)
    found = paths(model, z, n_steps=256, n_draws=1000)[..., 0]
    mean = found.mean((0, 1))
    assert (mean < generated[:, 0] - 0.2).all()
    work = torch.exp(found - generated[:, 0]).mean(1)
    assert ((work.mean(0) - 1).abs() < 3 * standard_error(work)).all()
    lam = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    bound = model.reference.log_prob(z)[:, 0] + torch.trapezoid(drift.evidence(z, lam), lam, dim=0)
    torch.testing.assert_close(mean, bound, atol=1e-6, rtol=0)


class Corrupted(nn.Module):
    """A residual that is too small, and off by a shift."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        shift = 0.6 / torch.cosh(0.5 * broadcastable_level(lam, z))[..., None]
        return 0.7 * self.denoiser(z, lam, classes) + shift


@pytest.mark.parametrize("wrong", [False, True])
def test_jarzynski_integrates_to_one_and_the_mean_to_less(wrong: bool):
    """Densities on a grid: the exponential average is normalised for any score, the mean only for an exact one."""
    means = torch.tensor([[[-1.2], [1.2]], [[-0.5], [1.5]]])
    variances = torch.tensor([[[0.2], [0.3]], [[0.5], [0.1]]])
    schedule = NoiseSchedule(10.0, -10.0, importance=(1, 2, 3, 3, 2, 1))
    model = MixtureDiffusion.from_components(means, variances, schedule=schedule)
    if wrong:
        model.denoiser = Corrupted(model.denoiser)
    grid = torch.linspace(-5, 5, 41, dtype=torch.float64)
    found = paths(model, grid[:, None], n_steps=512, n_draws=64)
    mass = torch.trapezoid(found.exp().mean(1), grid, dim=1)  # of every draw and class
    assert ((mass.mean(0) - 1).abs() < 3 * standard_error(mass)).all()
    draws = found.mean(1)
    density = draws.mean(0).exp()
    error = torch.trapezoid(density * (draws - draws.mean(0)), grid, dim=1).std(0) / len(draws) ** 0.5
    excess = torch.trapezoid(density, grid, dim=0) - 1
    assert (excess < -3 * error).all() if wrong else (excess.abs() < 3 * error).all()


def left_and_right(model: ConditionalDiffusion, z: Tensor, n_steps: int) -> Tensor:
    """Log-likelihoods with the residual at the start and at the end of the jumps, ``(2, n, n_classes)``, one path each."""
    generator, levels = torch.Generator().manual_seed(0), model.schedule.levels(n_steps)
    trajectory = noising_trajectory(
        z, levels, lambda step: torch.randn(z.shape, generator=generator, dtype=torch.float64)
    )
    total = torch.stack([model.reference.log_prob(z)] * 2)
    for (start, end), (lam, lam_next) in zip(pairwise(trajectory), pairwise(levels), strict=True):
        jump = Jump.between(lam, lam_next)
        base = (start - jump.from_noisy * end)[:, None]
        for side, (point, level) in enumerate([(start, lam), (end, lam_next)]):
            eps, residual = model.eps_and_residual(point, level)
            work = (residual * (base - jump.from_eps * (eps + 0.5 * residual))).sum(-1)
            total[side] += jump.from_eps / jump.variance * work
    return total


@pytest.mark.parametrize("n_steps", [64, 256])
def test_predictions_at_the_left_end_lack_the_divergence(exact_model: ExactModel, n_steps: int):
    """The bias does not shrink with the jumps. It is predicted by automatic differentiation."""
    model, truth = exact_model(3, 2, lam=8.0)
    z = 1.5 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    left, right = (left_and_right(model, z.repeat(300, 1), n_steps) - truth.log_prob(z).repeat(300, 1)).mean((1, 2))
    lam, generator = torch.linspace(-8, 8, 33, dtype=torch.float64), torch.Generator().manual_seed(9)
    divergence = torch.empty_like(lam)
    for i, level in enumerate(lam):
        noise = torch.randn(600, 3, generator=generator, dtype=torch.float64)
        noised = NoiseSchedule.alpha(level) * z.repeat(100, 1) + NoiseSchedule.sigma(level) * noise
        jacobian = vmap(jacrev(lambda point, level=level: model.denoiser(point, level)))(noised)
        divergence[i] = torch.einsum("nkdd->nk", jacobian).mean()
    predicted = -torch.trapezoid(NoiseSchedule.sigma(lam) * divergence, lam)
    assert predicted.abs() > 0.3
    assert float(left) == pytest.approx(float(predicted), rel=0.05)
    assert right.abs() < 0.05 * predicted.abs()


def exploding(model: MixtureDiffusion, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-density, score and its divergence under variance-exploding noise, for a model of one class in one dimension."""
    lam = -2 * sigma.log()
    alpha, x = NoiseSchedule.alpha(lam), x.requires_grad_()
    score = alpha * model.score(alpha * x, lam)[:, 0]
    divergence = torch.autograd.grad(score.sum(), x)[0]
    return model.log_prob(alpha * x, lam)[:, 0].detach() + alpha.log(), score.detach()[:, 0], divergence[:, 0]


def test_sums_along_forward_paths_of_exploding_noise(three_wells: Wells):
    """Change of the log-density as Stratonovich sum (trapezoid), and as Ito sum with and without the Ito term.

    Along a path the density changes by the work of the score, INT s o dx, and by INT (div s + s^2) d sigma^2 / 2.
    """
    model, generator = three_wells(NoiseSchedule()), torch.Generator().manual_seed(0)
    x = model.sample(torch.zeros(2000, dtype=torch.long), generator)
    sigma = torch.exp(torch.linspace(np.log(0.1), np.log(70), 1001, dtype=torch.float64)) / 30.05162225
    trapezoid, left, ito = (torch.zeros(len(x), dtype=torch.float64) for _ in range(3))
    start, score, divergence = exploding(model, x, sigma[0])
    for low, high in pairwise(sigma):
        time = high**2 - low**2
        after = x.detach() + time.sqrt() * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        end, score_after, divergence_after = exploding(model, after, high)
        step, common = (after - x).detach()[:, 0], 0.25 * time * (score**2 + score_after**2)
        common += 0.25 * time * (divergence + divergence_after)
        trapezoid += 0.5 * (score + score_after) * step + common
        left += score * step + common
        ito += 0.25 * time * (divergence + divergence_after)
        x, score, divergence = after, score_after, divergence_after
    exact = end - start
    assert (trapezoid - exact).square().mean().sqrt() < 0.01
    bias = exact - left  # of the log-density at the clean end, exact where the path ends
    assert float(bias.mean()) == pytest.approx(-1.26, abs=0.04)
    assert float(bias.mean()) == pytest.approx(float(ito.mean()), rel=0.05)
    corrected = bias - ito
    assert corrected.mean().abs() < 3 * standard_error(corrected)


def test_three_wells_along_a_thousand_jumps(three_wells: Wells):
    """Jarzynski's average over 16 paths, the mean over 64, and the probability flow, in a window wider than sigma .1 to 70."""
    model = three_wells(NoiseSchedule(12.0, -12.0, importance=(1, 3, 4, 3, 1, 1)))
    z = samples(model, 40)
    exact = model.log_prob(z)[:, 0]
    found = paths(model, z, n_steps=1000, n_draws=32)[..., 0]
    assert (found.mean((0, 1)) - exact).square().mean().sqrt() < 0.01
    of_sixteen = found.unflatten(0, (4, 8)).flatten(1, 2)
    jarzynski = of_sixteen.logsumexp(1) - np.log(16)
    assert (jarzynski - exact).mean().abs() < 0.01
    flow = log_likelihood(model, z, estimator="flow", n_steps=50, noise=NoiseStream(0)).mean[:, 0]
    assert ((found.mean((0, 1)) - flow).abs() < 4 * standard_error(found.mean(1)) + 1e-3).all()


def constant_noise(z: Tensor, seed: int) -> Callable[[int], Tensor]:
    return lambda step: NoiseStream(seed).normal(np.arange(len(z)), z.shape[1], pair=0, step=step).to(z)


def test_evidence_by_level_ends_in_the_estimate(exact_model: ExactModel):
    model, _ = exact_model(3)
    z = samples(model, 10)
    levels = model.schedule.levels(6)
    course = evidence_by_level(model, z, levels, constant_noise(z, 2))
    total: Iterator[Tensor] = dissipation(model, z, levels, constant_noise(z, 2))
    assert course.shape == (8, 2, 10, 3)
    torch.testing.assert_close(course[-1], model.reference.log_prob(z) + sum(total))


def test_evidence_by_level_is_the_density_of_the_noised_point(exact_model: ExactModel):
    """With the exact score and short jumps, at every level along the trajectory."""
    model, truth = exact_model(2)
    z = samples(model, 10)
    levels = model.schedule.levels(400)
    course = evidence_by_level(model, z, levels, constant_noise(z, 2))
    trajectory = list(noising_trajectory(z, levels, constant_noise(z, 2)))  # the first of every pair
    exact = [truth.log_prob(point, lam) for point, lam in zip(trajectory[::-1], levels.flip(0), strict=True)]
    error = course[:, 0] - torch.stack([*exact, truth.log_prob(z)])
    assert error.square().mean((1, 2)).sqrt().max() < 0.1
    assert model.reference.log_prob(z).sub(truth.log_prob(z)).square().mean().sqrt() > 0.5
