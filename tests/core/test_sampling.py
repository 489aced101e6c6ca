"""Sampling and the flow between classes against exact densities, closed forms and scipy's integrator."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import chisquare
from torch import Tensor

from scscore.core.analytic import MixtureDiffusion
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.reference import GaussianReference
from scscore.core.sampling import diversity, draw_classes, flow_map, reverse_sde
from scscore.core.schedule import NoiseSchedule
from scscore.core.trajectories import NoiseStream

Mixture = Callable[..., GaussianReference]
Exact = Callable[..., tuple[MixtureDiffusion, GaussianReference]]


def labels(n: int, n_classes: int = 3) -> Tensor:
    return torch.arange(n) % n_classes


def sde(model: ConditionalDiffusion, n: int, n_steps: int, seed: int = 0) -> Tensor:
    y = labels(n, model.n_classes)
    return reverse_sde(model, y, NoiseStream(seed), model.schedule.levels(n_steps)).double()


def by_flow(model: ConditionalDiffusion, n: int, n_steps: int, seed: int = 0) -> Tensor:
    latent = NoiseStream(seed).normal(np.arange(n), model.n_features, pair=0, step=0).double()
    return flow_map(model, latent, labels(n, model.n_classes), model.schedule.levels(n_steps), "to_clean")


def assert_same_moments(found: Tensor, expected: Tensor, n_classes: int = 3, bias: float = 0.0) -> None:
    """Means and second moments of every class within four standard errors, plus a bias that is known."""
    y = labels(len(found), n_classes)
    for k in range(n_classes):
        a, b = ((z := points[y == k], torch.einsum("nd,ne->nde", z, z).flatten(1)) for points in (found, expected))
        for p, q in zip(a, b, strict=True):
            error = (p.var(0) / len(p) + q.var(0) / len(q)).sqrt()
            assert ((p.mean(0) - q.mean(0)).abs() < 4 * error + bias).all()


@pytest.mark.parametrize("n_steps", [1, 8])
@pytest.mark.parametrize("full", [True, False])
def test_without_a_residual_the_reference_is_sampled_exactly(mixture: Mixture, full: bool, n_steps: int):
    reference = mixture(3, full=full)
    model = ConditionalDiffusion(NoiseSchedule(3.0, -1.0), reference)
    n = 30_000
    truth = MixtureDiffusion(reference).sample(labels(n), torch.Generator().manual_seed(1))
    assert_same_moments(sde(model, n, n_steps), truth)


class Nothing(torch.nn.Module):
    """A residual of zero, which sends the reference through all jumps; counts its calls."""

    calls = 0

    def forward(self, z: Tensor, lam: Tensor, classes: Tensor) -> Tensor:
        self.calls += 1
        return z.new_zeros(*z.shape[:-1], classes.shape[-1], z.shape[-1])


@pytest.mark.parametrize("n_steps", [1, 8])
@pytest.mark.parametrize("full", [True, False])
def test_the_jumps_of_the_reference_are_exact(mixture: Mixture, full: bool, n_steps: int):
    """However long they are: the noised components, their responsibilities, scales and axes."""
    reference = mixture(3, full=full)
    model = ConditionalDiffusion(NoiseSchedule(3.0, -1.0), reference, Nothing())
    n = 30_000
    truth = MixtureDiffusion(reference).sample(labels(n), torch.Generator().manual_seed(1))
    found = sde(model, n, n_steps)
    assert model.denoiser.calls == n_steps + 1
    assert_same_moments(found, truth)
    exact, of_truth = (reference.log_prob(z)[torch.arange(n), labels(n)] for z in (found, truth))
    assert abs(exact.mean() - of_truth.mean()) < 4 * (2 * of_truth.var() / n).sqrt()


@pytest.mark.parametrize("draw", [lambda m, n: sde(m, n, 96), lambda m, n: by_flow(m, n, 24)], ids=["sde", "flow"])
def test_exact_score_gives_the_exact_distribution(exact_model: Exact, draw: Callable[..., Tensor]):
    """With a reference that is wrong in everything. The two agree, because both agree with the truth."""
    model, truth = exact_model(2, lam=8.0)
    n = 12_000
    found = draw(model, n)
    expected = model.sample(labels(n), torch.Generator().manual_seed(1))
    assert_same_moments(found, expected, bias=0.03)
    energy, of_truth = (truth.log_prob(z)[torch.arange(n), labels(n)] for z in (found, expected))
    assert abs(energy.mean() - of_truth.mean()) < 4 * (2 * of_truth.var() / n).sqrt() + 0.02


def test_error_shrinks_with_the_jumps(overlapping_classes: Callable[..., MixtureDiffusion]):
    """Mean log density of samples against its exact value, eight classes in 30 dimensions."""
    model = overlapping_classes()
    n = 1600
    y = labels(n, 8)

    def energy(z: Tensor) -> float:
        return float(model.log_prob(z)[torch.arange(n), y].mean())

    exact = energy(model.sample(labels(n, 8), torch.Generator().manual_seed(1)))
    error = [abs(energy(sde(model, n, n_steps)) - exact) for n_steps in (1, 4, 16)]
    assert all(after < before / 2 for before, after in pairwise(error))


@pytest.fixture
def small(mixture: Mixture, learned: Callable[..., ResidualDenoiser]) -> tuple[ConditionalDiffusion, Tensor]:
    """A learned model of two classes in three dimensions, and points."""
    reference = mixture(3, 2)
    z = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return ConditionalDiffusion(NoiseSchedule(4.0, -3.0), reference, learned(reference)), z


def test_there_and_back_is_the_identity(small: tuple[ConditionalDiffusion, Tensor]):
    model, z = small
    levels = model.schedule.levels(16)
    latent = flow_map(model, z, labels(40, 2), levels)
    assert (latent - z).abs().mean() > 0.1
    assert (flow_map(model, latent, labels(40, 2), levels, "to_clean") - z).abs().max() < 1e-3


def test_doubling_the_steps_reduces_the_error_of_fourth_order(small: tuple[ConditionalDiffusion, Tensor]):
    model, z = small

    def mapped(n_steps: int) -> Tensor:
        return flow_map(model, z, labels(40, 2), model.schedule.levels(n_steps))

    fine = mapped(64)
    error = [float((mapped(n_steps) - fine).abs().max()) for n_steps in (4, 8, 16)]
    assert all(after < before / 8 for before, after in pairwise(error))


def test_flow_equals_scipy(small: tuple[ConditionalDiffusion, Tensor]):
    """Model within the window, reference beyond."""
    model, z = small
    found = flow_map(model, z, labels(40, 2), model.schedule.levels(48))
    outside = ConditionalDiffusion(model.schedule, model.reference)
    for i in (0, 1):
        x = z[i].numpy()
        for part, upper, lower in ((outside, 20.0, 4.0), (model, 4.0, -3.0), (outside, -3.0, -20.0)):

            def velocity(lam: float, x: np.ndarray, i: int = i, part: ConditionalDiffusion = part) -> np.ndarray:
                level, point = torch.tensor(lam, dtype=torch.float64), torch.from_numpy(x)
                sigma = NoiseSchedule.sigma(level)
                return (0.5 * (sigma**2 * point - sigma * part.eps(point, level)[i])).numpy()

            x = solve_ivp(velocity, (upper, lower), x, method="DOP853", rtol=1e-9, atol=1e-10).y[:, -1]
        np.testing.assert_allclose(found[i], x, atol=1e-4)


def gaussians(covariances: Tensor, n_features: int) -> tuple[MixtureDiffusion, Tensor]:
    """Two Gaussian classes with exact scores, a reference with pooled covariance, and points of the first class."""
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(2, 1, n_features, dtype=torch.float64, generator=generator)
    model = MixtureDiffusion.from_components(means, covariances[:, None], schedule=NoiseSchedule(12.0, -12.0))
    return model, model.sample(torch.zeros(50, dtype=torch.long), generator)


def carried(model: ConditionalDiffusion, z: Tensor) -> Tensor:
    levels = model.schedule.levels(48)
    first, second = (torch.full((len(z),), k) for k in (0, 1))
    return flow_map(model, flow_map(model, z, first, levels), second, levels, "to_clean")


def test_between_gaussians_of_equal_covariance_the_map_is_the_shift():
    covariance = 0.5 ** (torch.arange(4)[:, None] - torch.arange(4)).abs().double()
    model, z = gaussians(covariance.expand(2, 4, 4), 4)
    shift = model.truth.means[1] - model.truth.means[0]
    torch.testing.assert_close(carried(model, z), z + shift, atol=1e-3, rtol=0)


def test_between_round_gaussians_the_map_is_shift_and_scale():
    model, z = gaussians(torch.tensor([0.3, 1.7])[:, None, None] * torch.eye(3), 3)
    mu = model.truth.means
    expected = mu[1] + (1.7 / 0.3) ** 0.5 * (z - mu[0])
    torch.testing.assert_close(carried(model, z), expected, atol=2e-3, rtol=0)


def test_between_gaussians_the_map_goes_through_both_square_roots():
    """A flow to noise whitens by the symmetric inverse root, whatever the covariance."""
    factors = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    covariances = 0.3 * torch.eye(3) + 0.4 * factors @ factors.mT
    model, z = gaussians(covariances, 3)
    mu = model.truth.means
    values, axes = torch.linalg.eigh(covariances)
    root = axes * values.sqrt()[:, None] @ axes.mT
    expected = mu[1] + (z - mu[0]) @ torch.linalg.inv(root[0]) @ root[1]
    torch.testing.assert_close(carried(model, z), expected, atol=2e-3, rtol=0)


def test_points_depend_on_seed_and_row_alone(small: tuple[ConditionalDiffusion, Tensor]):
    """Batches, and the number of points, change nothing."""
    reference = small[0].reference
    model = ConditionalDiffusion(NoiseSchedule(4.0, -3.0), reference, small[0].denoiser.float())
    y, levels, noise = labels(150, 2), model.schedule.levels(6), NoiseStream(3)
    whole = reverse_sde(model, y, noise, levels)
    parts = [reverse_sde(model, y[i : i + 37], noise, levels, start=i) for i in range(0, 150, 37)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    assert not torch.allclose(reverse_sde(model, y, NoiseStream(4), levels), whole)


def test_classes_are_drawn_from_the_prior():
    prior = np.array([0.5, 0.0, 0.3, 0.2])
    with np.errstate(divide="ignore"):
        log_prior = np.log(prior)
    y = draw_classes(log_prior, NoiseStream(0), 8000)
    counts = np.bincount(y, minlength=4)
    assert counts[1] == 0
    assert chisquare(counts[prior > 0], 8000 * prior[prior > 0]).pvalue > 1e-3
    assert torch.equal(draw_classes(log_prior, NoiseStream(0), 100), y[:100])


def test_classes_and_points_are_drawn_from_different_noise():
    y = draw_classes(np.log([0.5, 0.5]), NoiseStream(0), 4000)
    first = NoiseStream(0).normal(np.arange(4000), 1, pair=0, step=0)[:, 0]
    assert abs(np.corrcoef(y, first)[0, 1]) < 0.06


def test_unknown_direction(small: tuple[ConditionalDiffusion, Tensor]):
    model, z = small
    with pytest.raises(ValueError, match=r"direction must be one of \['to_noise', 'to_clean'\], got 'back'"):
        flow_map(model, z, labels(40, 2), model.schedule.levels(2), "back")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [True, False])
def test_diversity_tells_copies_from_new_points(given: bool):
    rng = np.random.default_rng(0)
    real, new, held_out = (rng.normal(size=(600, 4)) for _ in range(3))
    reference = held_out if given else None
    assert diversity(real[:100] + 1e-3, real, reference).ratio < 0.01
    assert diversity(new, real, reference).ratio == pytest.approx(1, abs=0.1)
    assert diversity(3 * new, real, reference).ratio > 2
    found = diversity(new[:5], real, reference)
    assert found.distances == pytest.approx(np.linalg.norm(new[:5, None] - real, axis=2).min(1))
    assert found.expected.shape == (600,)


@pytest.mark.parametrize(
    ("samples", "real", "named"),
    [(np.zeros((5, 3)), np.zeros((5, 2)), "samples"), (np.zeros((5, 2)), np.zeros((1, 2)), "real")],
)
def test_diversity_refuses_other_spaces_and_single_points(samples: np.ndarray, real: np.ndarray, named: str):
    with pytest.raises(ValueError, match=f"{named} must have shape"):
        diversity(samples, real)
