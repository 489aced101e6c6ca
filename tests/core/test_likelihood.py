"""What holds for every estimator: closed form without a residual, common noise, coverage, accuracy in many dimensions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import Tensor

from scscore.core.analytic import MixtureDiffusion
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.dissipation import dissipation
from scscore.core.elbo import elbo
from scscore.core.flow import flow
from scscore.core.likelihood import ESTIMATORS, Estimator, LogLikelihood, flow_log_likelihood, log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule
from scscore.core.stopping import Stopping
from scscore.core.trajectories import NoiseStream

ExactModel = Callable[..., tuple[MixtureDiffusion, GaussianReference]]
Mixture = Callable[..., GaussianReference]
Learned = Callable[..., ResidualDenoiser]
STOCHASTIC: tuple[Estimator, ...] = ("dissipation", "elbo")


def points(n: int, dim: int) -> Tensor:
    return 1.5 * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n_steps", [1, 8])
@pytest.mark.parametrize("dim", [1, 2, 10, 30, 50])
def test_without_residual_the_likelihood_is_the_closed_form(
    mixture: Mixture, dim: int, n_steps: int, estimator: Estimator
):
    """Also with a denoiser, as long as it is untrained: the estimator itself, not a short cut, gives the closed form."""
    reference, z = mixture(dim, 4), points(10, dim).float()
    untrained = ResidualDenoiser(reference.means, torch.ones(dim), width=16).eval()
    for denoiser in (None, untrained):
        model = ConditionalDiffusion(NoiseSchedule(), reference, denoiser)
        with torch.no_grad():
            found = log_likelihood(model, z, estimator=estimator, n_steps=n_steps, n_paths=2, noise=NoiseStream(0))
        torch.testing.assert_close(found.mean, reference.log_prob(z), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("n_steps", "n_paths", "tolerance"), [(32, 2, 0.04), (16, 4, 0.04), (32, 8, 0.02)])
@pytest.mark.parametrize("estimator", STOCHASTIC)
def test_posterior_of_overlapping_classes_in_many_dimensions(
    overlapping_classes: Callable[..., MixtureDiffusion],
    estimator: Estimator,
    n_steps: int,
    n_paths: int,
    tolerance: float,
):
    """Total variation by 64 and by 256 calls of the network per point, for all classes together; default reference and window."""
    model = overlapping_classes()
    z = model.sample(torch.arange(320) % 8, torch.Generator().manual_seed(1))
    found = log_likelihood(model, z, estimator=estimator, n_steps=n_steps, n_paths=n_paths, noise=NoiseStream(0)).mean
    exact = model.log_prob(z)
    posterior, expected = (torch.softmax(v, -1) for v in (found, exact))
    assert 0.5 * (posterior - expected).abs().sum(-1).mean() <= tolerance
    estimated, true = (np.ravel(v[:, 1:] - v[:, :1]) for v in (found, exact))
    assert np.polyfit(true, estimated, 1)[0] == pytest.approx(1, abs=0.02)
    if n_steps == 32:
        limit = {"dissipation": 0.3, "elbo": 0.1}[estimator]
        own = (found - exact)[torch.arange(320), torch.arange(320) % 8]
        assert (found - exact).mean().abs() < limit
        assert own.mean().abs() < limit


def test_the_thirty_dimensional_classes_overlap(overlapping_classes: Callable[..., MixtureDiffusion]):
    """The best possible accuracy is .9, and the reference alone is far from it."""
    model = overlapping_classes()
    y = torch.arange(8000) % 8
    z = model.sample(y, torch.Generator().manual_seed(1))
    best, reference = (
        (values.argmax(1) == y).double().mean() for values in (model.log_prob(z), model.reference.log_prob(z))
    )
    assert float(best) == pytest.approx(0.9, abs=0.015)
    assert reference < best - 0.05


@pytest.mark.parametrize(("estimator", "n_steps", "n_seeds"), [("dissipation", 16, 4), ("elbo", 4, 12)])
def test_intervals_cover_the_truth(exact_model: ExactModel, estimator: Estimator, n_steps: int, n_seeds: int):
    """95 % by Student's t with 15 degrees of freedom; the noise levels of the elbo are common to all rows, so several seeds."""
    model, truth = exact_model(2, lam=10.0)
    z = model.sample(torch.arange(120) % 3, torch.Generator().manual_seed(1))
    inside = []
    for seed in range(n_seeds):
        found = log_likelihood(model, z, estimator=estimator, n_steps=n_steps, n_paths=32, noise=NoiseStream(seed))
        half_width = student.ppf(0.975, 15) * found.standard_error
        inside.append(((found.mean - truth.log_prob(z)).abs() < half_width).double().mean())
    assert 0.90 < float(torch.stack(inside).mean()) < 0.99


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_permuted_classes_permute_the_estimates(mixture: Mixture, estimator: Estimator):
    truth, reference, order = mixture(3, 4, seed=1), mixture(3, 4, seed=2), torch.tensor([2, 0, 3, 1])

    def permuted(mix: GaussianReference) -> GaussianReference:
        return GaussianReference(mix.means, mix.weights[order], mix.variances, mix.axes, mix.scales)

    z = points(10, 3)
    first, second = (
        log_likelihood(
            MixtureDiffusion(a, reference=b), z, estimator=estimator, n_steps=4, n_paths=4, noise=NoiseStream(1)
        )
        for a, b in ((truth, reference), (permuted(truth), permuted(reference)))
    )
    torch.testing.assert_close(second.paths, first.paths[..., order], atol=1e-9, rtol=0)


@pytest.mark.parametrize("estimator", STOCHASTIC)
@pytest.mark.parametrize("stopping", [False, True])
def test_batches_do_not_matter(exact_model: ExactModel, estimator: Estimator, stopping: bool):
    """Nor does it matter for a point which others are settled early."""
    model, _ = exact_model(4, lam=6.0)
    z = points(100, 4)
    rule = Stopping(np.log([0.7, 0.2, 0.1]), 0.9, precision=0.1, negligible=0.2) if stopping else None

    def estimate(start: int, stop: int) -> LogLikelihood:
        noise, part = NoiseStream(1), z[start:stop]
        return log_likelihood(
            model, part, estimator=estimator, n_steps=5, n_paths=16, noise=noise, start=start, stopping=rule
        )

    whole = estimate(0, 100)
    for size in (7, 64):
        parts = [estimate(i, min(i + size, 100)) for i in range(0, 100, size)]
        for name in ("mean", "standard_error", "n_paths", "jarzynski"):
            together = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(together, getattr(whole, name), atol=1e-9, rtol=0)
    assert (whole.n_paths.min() < 16) == stopping
    assert (whole.n_paths.max(1).values.unique().numel() > 1) == stopping
    torch.testing.assert_close(estimate(37, 38).mean, whole.mean[37:38], atol=1e-9, rtol=0)


@pytest.mark.parametrize("dim", [3, 260])
def test_batches_do_not_matter_for_the_flow(mixture: Mixture, learned: Learned, dim: int):
    """Neither with the exact divergence nor with probes."""
    reference = mixture(dim, 2, full=False)
    model, z = ConditionalDiffusion(NoiseSchedule(), reference, learned(reference)), points(70, dim)

    def estimate(start: int, stop: int) -> Tensor:
        noise, part = NoiseStream(1), z[start:stop]
        return log_likelihood(model, part, estimator="flow", n_steps=2, n_paths=4, noise=noise, start=start).paths

    parts = torch.cat([estimate(0, 1), estimate(1, 65), estimate(65, 70)], dim=2)
    torch.testing.assert_close(parts, estimate(0, 70), atol=1e-9, rtol=0)


def wanted_classes() -> Tensor:
    """Two of four classes for each of six points."""
    return torch.tensor([[0, 1], [3, 2], [1, 1], [2, 0], [0, 3], [3, 1]])


@pytest.mark.parametrize("lam", [torch.tensor(0.5), torch.linspace(-3, 3, 6, dtype=torch.float64)[:, None]])
def test_wanted_classes_are_columns_of_all(mixture: Mixture, learned: Learned, lam: Tensor):
    """Of reference, denoisers and model; for one noise level and for one per point; for points with more axes, too."""
    reference = mixture(3, 4)
    exact = MixtureDiffusion(mixture(3, 4, seed=1), reference=reference)
    model = ConditionalDiffusion(NoiseSchedule(), reference, learned(reference))
    assert model.denoiser(points(6, 3), lam).abs().min() > 1e-6
    for call in (reference.eps, model.denoiser, exact.denoiser, model.eps, model.score, exact.score):
        for z in (points(6, 3), points(12, 3).reshape(2, 6, 3)):
            everything = call(z, lam)
            index = wanted_classes().expand(*z.shape[:-1], 2)
            expected = everything.gather(-2, index[..., None].expand(*index.shape, 3))
            torch.testing.assert_close(call(z, lam, wanted_classes()), expected, atol=1e-12, rtol=1e-9)


def test_estimators_of_wanted_classes_are_columns_of_all(mixture: Mixture, learned: Learned):
    reference, z, classes = mixture(3, 4), points(6, 3), wanted_classes()
    model, levels = ConditionalDiffusion(NoiseSchedule(), reference, learned(reference)), NoiseSchedule().levels(3)

    def draw(step: int) -> Tensor:
        return NoiseStream(0).normal(np.arange(6), 3, pair=0, step=step).to(z)

    def by_flow(c: Tensor | None) -> Tensor:
        return flow_log_likelihood(model, z, n_steps=3, noise=NoiseStream(0), classes=c).mean

    jitter = torch.tensor([0.1, 0.5, 0.9])
    for estimate in (
        by_flow,
        lambda c: sum(dissipation(model, z, levels, draw, c)),
        lambda c: sum(elbo(model, z, levels, draw, jitter, c)),
        lambda c: flow(model, z, levels, classes=c),
    ):
        everything = estimate(None)
        torch.testing.assert_close(estimate(classes), everything.gather(-1, classes.expand(*everything.shape[:-1], 2)))


def test_summaries_of_paths_by_hand():
    """Two draws of two paths for three points; a draw of the last was not made."""
    paths = torch.tensor([[[0.0, 1.0, 2.0], [2.0, 1.0, 4.0]], [[-1.0, 1.0, torch.nan], [3.0, 1.0, torch.nan]]])
    found = LogLikelihood(paths.double()[..., None])
    assert found.n_paths.ravel().tolist() == [4, 4, 2]
    assert found.mean.ravel().tolist() == [1, 1, 3]
    assert found.standard_error.ravel()[:2].tolist() == [0, 0]
    assert torch.isnan(found.standard_error[2])
    weights = np.exp([0.0, 2.0, -1.0, 3.0])
    jarzynski = torch.tensor([np.log(weights.mean()), 1.0, np.log(np.exp([2.0, 4.0]).mean())])
    torch.testing.assert_close(found.jarzynski.ravel(), jarzynski.double())
    torch.testing.assert_close(found.second_law_gap, found.jarzynski - found.mean)
    size = weights.sum() ** 2 / (weights**2).sum()
    torch.testing.assert_close(found.effective_sample_size.ravel()[:2], torch.tensor([size, 4.0]).double())
    torch.testing.assert_close(found.shifted(1.5).mean, found.mean + 1.5)


def test_antithetic_paths_are_one_draw(exact_model: ExactModel):
    model, _ = exact_model(3)
    found = log_likelihood(model, points(5, 3), n_steps=3, n_paths=8, noise=NoiseStream(0))
    assert found.paths.shape == (4, 2, 5, 3)
    torch.testing.assert_close(found.draws, found.paths.mean(1))
    torch.testing.assert_close(found.standard_error, found.draws.std(0) / 2)
    assert (found.second_law_gap >= 0).all()
    assert ((found.effective_sample_size >= 1) & (found.effective_sample_size <= 8 + 1e-9)).all()


@pytest.mark.parametrize("n_paths", [0, 1, 3])
def test_paths_come_in_pairs(exact_model: ExactModel, n_paths: int):
    model, _ = exact_model(2)
    with pytest.raises(ValueError, match="even"):
        log_likelihood(model, points(3, 2), n_steps=2, n_paths=n_paths, noise=NoiseStream(0))


def test_an_unknown_estimator_is_refused(exact_model: ExactModel):
    model, _ = exact_model(2)
    with pytest.raises(ValueError, match=r"dissipation.*elbo.*flow.*'ode'"):
        log_likelihood(model, points(3, 2), estimator="ode", noise=NoiseStream(0))


def test_the_standard_error_of_one_draw_is_unknown(exact_model: ExactModel):
    model, _ = exact_model(2)
    found = log_likelihood(model, points(3, 2), n_steps=2, n_paths=2, noise=NoiseStream(0))
    assert torch.isnan(found.standard_error).all()
