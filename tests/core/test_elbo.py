"""The stratified evidence lower bound against exact densities."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from scscore.core.analytic import MixtureDiffusion
from scscore.core.likelihood import LogLikelihood, log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule
from scscore.core.trajectories import NoiseStream

DIMENSIONS = [1, 2, 10, 30, 50]
ExactModel = Callable[..., tuple[MixtureDiffusion, GaussianReference]]


def samples(model: MixtureDiffusion, n: int) -> torch.Tensor:
    return model.sample(torch.arange(n) % model.n_classes, torch.Generator().manual_seed(3))


def elbo(model: MixtureDiffusion, z: torch.Tensor, n_strata: int, n_paths: int) -> LogLikelihood:
    return log_likelihood(model, z, estimator="elbo", n_steps=n_strata, n_paths=n_paths, noise=NoiseStream(0))


def check_mean(found: LogLikelihood, exact: torch.Tensor) -> None:
    """Every value within four standard errors, and so their mean, which is known better."""
    assert ((found.mean - exact).abs() < 4 * found.standard_error).all()
    error = (found.draws - exact).mean((1, 2))
    assert error.mean().abs() < 4 * error.std() / len(error) ** 0.5


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_exact_score_gives_the_exact_likelihood(exact_model: ExactModel, dim: int):
    model, truth = exact_model(dim)
    z = samples(model, 8)
    check_mean(elbo(model, z, n_strata=8, n_paths=64), truth.log_prob(z))


@pytest.mark.parametrize(("n_strata", "n_paths"), [(1, 400), (2, 400), (8, 100)])
def test_any_number_of_strata_is_unbiased(exact_model: ExactModel, n_strata: int, n_paths: int):
    model, truth = exact_model(2, lam=10.0)
    z = samples(model, 10)
    check_mean(elbo(model, z, n_strata, n_paths), truth.log_prob(z))


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_estimated_log_ratios_have_slope_one(overlapping_classes: Callable[..., MixtureDiffusion], dim: int):
    model = overlapping_classes(3, dim, separation=2 / dim**0.5)
    model.schedule = NoiseSchedule(8.0, -8.0)
    z = samples(model, 60)
    estimated, exact = elbo(model, z, n_strata=32, n_paths=8).mean, model.log_prob(z)
    ratios = [(values[:, 1:] - values[:, :1]).ravel().numpy() for values in (exact, estimated)]
    assert np.polyfit(*ratios, 1)[0] == pytest.approx(1.0, abs=0.02)


def test_strata_reduce_the_spread(exact_model: ExactModel):
    """By more than the square root, which as many levels at random would give."""
    model, _ = exact_model(2, lam=10.0)
    z = samples(model, 20)
    few, many = (float(elbo(model, z, n, n_paths=16).draws.std(0).mean()) for n in (2, 32))
    assert many < few / 16**0.5
