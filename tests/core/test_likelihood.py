"""The dissipation estimator against exact densities."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.likelihood import log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule
from scscore.core.trajectories import NoiseStream

ExactModel = Callable[..., tuple[ConditionalDiffusion, GaussianReference]]


def points(n: int, dim: int) -> torch.Tensor:
    return 1.5 * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("n_steps", [1, 3, 16])
@pytest.mark.parametrize("dim", [1, 2, 10, 50])
def test_without_residual_the_likelihood_is_the_closed_form(
    mixture: Callable[..., GaussianReference], dim: int, n_steps: int
):
    """Also with a denoiser, as long as it is untrained: the estimator itself, not a short cut, gives the closed form."""
    reference, z = mixture(dim, 4), points(30, dim)
    untrained = ResidualDenoiser(reference.means, torch.ones(dim)).eval()
    for denoiser in (None, untrained):
        model = ConditionalDiffusion(NoiseSchedule(), reference, denoiser)
        found = log_likelihood(model, z.float(), n_steps=n_steps, n_paths=2, noise=NoiseStream(0))
        torch.testing.assert_close(found.mean, reference.log_prob(z.float()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_steps", [16, 64])
@pytest.mark.parametrize("dim", [1, 2, 10, 30])
def test_exact_score_gives_the_exact_likelihood(exact_model: ExactModel, dim: int, n_steps: int):
    model, truth = exact_model(dim, lam=8.0)
    z = points(64, dim)
    found = log_likelihood(model, z, n_steps=n_steps, n_paths=16, noise=NoiseStream(0))
    error = found.mean - truth.log_prob(z)
    assert (error.abs() < 4 * found.standard_error + 0.01).double().mean() > 0.97  # 8 draws: t beyond 4 in 1 of 200
    assert error.mean().abs() < 4 * float(error.std()) / len(z) ** 0.5 + 0.01


def test_estimated_log_ratios_have_slope_one(exact_model: ExactModel):
    model, truth = exact_model(10, lam=8.0)
    z = points(100, 10)
    estimated = log_likelihood(model, z, n_steps=64, n_paths=16, noise=NoiseStream(0)).mean
    exact = truth.log_prob(z)
    ratios = (estimated[:, 1:] - estimated[:, :1]).ravel().numpy(), (exact[:, 1:] - exact[:, :1]).ravel().numpy()
    assert np.polyfit(ratios[1], ratios[0], 1)[0] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dim", [2, 10])
def test_four_times_the_steps_half_the_error_and_half_the_spread(exact_model: ExactModel, dim: int):
    """With the exact score the spread over trajectories is discretisation, not noise: it vanishes with the steps."""
    model, truth = exact_model(dim, lam=8.0)
    z = points(64, dim)
    error, spread = [], []
    for n_steps in (16, 64, 256):
        found = log_likelihood(model, z, n_steps=n_steps, n_paths=8, noise=NoiseStream(0))
        error.append(float((found.mean - truth.log_prob(z)).square().mean().sqrt()))
        spread.append(float(found.draws.std(0).mean()))
    for values in (error, spread):
        assert all(after < 0.7 * before for before, after in zip(values, values[1:], strict=False))


def test_standard_error_covers(exact_model: ExactModel):
    """Intervals of the estimator's own expectation: mean over many seeds."""
    model, _ = exact_model(3, lam=6.0)
    z = points(20, 3)
    runs = [log_likelihood(model, z, n_steps=4, n_paths=32, noise=NoiseStream(seed)) for seed in range(30)]
    expectation = torch.stack([run.mean for run in runs]).mean(0)
    inside = [((run.mean - expectation).abs() < 2.13 * run.standard_error).double().mean() for run in runs]
    assert 0.90 < float(torch.stack(inside).mean()) < 0.99  # 16 draws: Student t, 95 %


def test_all_classes_and_batches_share_the_noise(exact_model: ExactModel):
    model, _ = exact_model(4)
    z = points(100, 4)
    whole = log_likelihood(model, z, n_steps=5, n_paths=4, noise=NoiseStream(1)).mean
    for size in (1, 7, 64):
        parts = [
            log_likelihood(model, z[i : i + size], n_steps=5, n_paths=4, noise=NoiseStream(1), start=i).mean
            for i in range(0, 100, size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("n_paths", [0, 1, 3])
def test_paths_come_in_pairs(exact_model: ExactModel, n_paths: int):
    model, _ = exact_model(2)
    with pytest.raises(ValueError, match="even"):
        log_likelihood(model, points(3, 2), n_steps=2, n_paths=n_paths, noise=NoiseStream(0))


def test_the_standard_error_of_one_draw_is_unknown(exact_model: ExactModel):
    model, _ = exact_model(2)
    found = log_likelihood(model, points(3, 2), n_steps=2, n_paths=2, noise=NoiseStream(0))
    assert torch.isnan(found.standard_error).all()
