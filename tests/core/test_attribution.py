"""Attributions against closed forms, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scscore.core.analytic import MixtureDiffusion
from scscore.core.attribution import (
    Contrast,
    attribute,
    baseline_of,
    frozen_evidence,
    integrated_gradients,
    neutral_points,
)
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.likelihood import log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule
from scscore.core.trajectories import NoiseStream

EFFORT = {"noise": NoiseStream(0), "n_steps": 4, "n_paths": 4}


def contrast(n: int, target: int, against: dict[int, float], n_classes: int = 3) -> Contrast:
    weights = torch.full((n, n_classes), -torch.inf, dtype=torch.float64)
    for k, w in against.items():
        weights[:, k] = np.log(w)
    return Contrast(torch.full((n,), target), weights)


@pytest.fixture
def mixture() -> MixtureDiffusion:
    """Three classes of two Gaussians each in five dimensions; the residual of the exact score is not zero."""
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    variances = 0.3 + torch.rand(3, 2, 5, generator=generator, dtype=torch.float64)
    return MixtureDiffusion.from_components(means, variances)


def points(n: int, n_features: int = 5) -> torch.Tensor:
    return 2 * torch.randn(n, n_features, generator=torch.Generator().manual_seed(1))


def test_two_gaussians_have_the_closed_form():
    """Equal covariances: the log-ratio is linear, and the split is (z - midpoint) times the difference of the means."""
    means = torch.tensor([[0.0, 0.0, 1.0], [2.0, -1.0, 1.0]], dtype=torch.float64)
    model = ConditionalDiffusion(NoiseSchedule(), GaussianReference(means, torch.eye(2)))
    z = points(20, 3)
    found = attribute(model, z, contrast(20, 0, {1: 1.0}, 2), **EFFORT)
    np.testing.assert_allclose(found.gradient[0], (means[0] - means[1]).expand(20, -1), atol=1e-5)
    np.testing.assert_allclose(found.displacement, z.double() - means.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.baseline, 0, atol=1e-5)


@pytest.mark.parametrize("n_segments", [1, 4, 16])
@pytest.mark.parametrize("against", [{1: 1.0}, {1: 0.7, 2: 0.3}, {0: 0.2, 1: 0.3, 2: 0.5}])
def test_completeness(mixture: MixtureDiffusion, n_segments: int, against: dict[int, float]):
    z = points(30)
    found = attribute(mixture, z, contrast(30, 0, against), n_segments=n_segments, **EFFORT)
    total = (found.gradient * found.displacement).sum(-1)
    np.testing.assert_allclose(total, found.evidence - found.baseline, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("against", [{1: 1.0}, {1: 0.7, 2: 0.3}])
def test_the_baseline_favours_neither_side(against: dict[int, float]):
    """On the line between the means, unequal covariances and weights: the evidence is zero there."""
    generator = torch.Generator().manual_seed(4)
    means = 3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    variances = 0.3 + 2 * torch.rand(3, 4, generator=generator, dtype=torch.float64)
    reference = GaussianReference(means, torch.eye(3), variances)
    versus = contrast(5, 0, against)
    baseline = baseline_of(ConditionalDiffusion(NoiseSchedule(), reference), versus)
    np.testing.assert_allclose(versus.evidence(reference.log_prob(baseline)), 0, atol=1e-3)
    others = sum(w * means[k] for k, w in against.items())
    along = (baseline[0] - others) @ (means[0] - others) / (means[0] - others).square().sum()
    assert 0 < along < 1
    np.testing.assert_allclose(baseline[0], others + along * (means[0] - others))


def test_the_baseline_of_a_class_that_is_always_favoured_is_the_lowest_point():
    """A diffuse class far out, against one that contains its mean only as an outlier."""
    means = torch.tensor([[0.0], [0.0]], dtype=torch.float64)
    reference = GaussianReference(means, torch.eye(2), torch.tensor([[0.1], [10.0]], dtype=torch.float64))
    versus = contrast(2, 0, {1: 1.0}, 2)
    np.testing.assert_allclose(baseline_of(ConditionalDiffusion(NoiseSchedule(), reference), versus), 0)
    assert (
        versus.evidence(reference.log_prob(baseline_of(ConditionalDiffusion(NoiseSchedule(), reference), versus))) > 0
    ).all()


def test_evidence_is_the_log_ratio_of_the_likelihoods(mixture: MixtureDiffusion):
    z = points(30)
    found = attribute(mixture, z, contrast(30, 1, {0: 0.6, 2: 0.4}), **EFFORT)
    exact = log_likelihood(mixture, z, noise=NoiseStream(0), n_steps=4, n_paths=4).draws
    expected = exact[..., 1] - torch.logaddexp(exact[..., 0] + np.log(0.6), exact[..., 2] + np.log(0.4))
    np.testing.assert_allclose(found.evidence, expected, atol=1e-3)  # single precision


def test_gradient_is_that_of_finite_differences(mixture: MixtureDiffusion):
    z = points(6).double()
    evidence = frozen_evidence(
        mixture, contrast(6, 0, {1: 0.5, 2: 0.5}), noise=NoiseStream(0), start=0, pair=0, n_steps=4
    )
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(evidence(leaf).sum(), leaf)
    for j in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[j] = 1e-5
        difference = (evidence(z + step) - evidence(z - step)) / 2e-5
        np.testing.assert_allclose(gradient[:, j], difference.detach(), rtol=1e-4, atol=1e-5)


def test_more_segments_converge_to_the_integral(mixture: MixtureDiffusion):
    """Where the evidence bends, few segments divide it differently; many agree with one another."""
    z, versus = points(40), contrast(40, 0, {1: 0.5, 2: 0.5})
    few, some, many = (attribute(mixture, z, versus, n_segments=n, **EFFORT).gradient[0] for n in (2, 32, 128))
    assert (some - many).abs().mean() < 0.2 * (few - many).abs().mean()


def test_the_correction_is_what_midpoints_miss(mixture: MixtureDiffusion):
    z, versus = points(10), contrast(10, 0, {1: 1.0})
    evidence = frozen_evidence(mixture, versus, noise=NoiseStream(0), start=0, pair=0, n_steps=4)
    baseline = baseline_of(mixture, versus)
    mean, value, at_baseline, correction = integrated_gradients(evidence, z, baseline, n_segments=4)
    step = (z.double() - baseline) / 4
    midpoints = torch.zeros(10, dtype=torch.float64)
    for i in range(4):
        leaf = (baseline + (i + 0.5) * step).float().requires_grad_()
        midpoints += (torch.autograd.grad(evidence(leaf).sum(), leaf)[0].double() * step).sum(-1)
    np.testing.assert_allclose(correction, value - at_baseline - midpoints, atol=1e-4)
    assert mean.shape == (10, 5)


def test_rotation_of_the_space_rotates_the_gradient():
    """Reference and cells in turned axes: the same evidence, the same products with any turned vector."""
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    means = 2 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    variances = 0.5 + torch.rand(3, 4, generator=generator, dtype=torch.float64)
    axes = torch.stack(
        [torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0] for _ in range(3)]
    )
    weights = 0.8 * torch.eye(3) + 0.2 / 3
    plain = ConditionalDiffusion(NoiseSchedule(), GaussianReference(means, weights, variances, axes))
    turned = ConditionalDiffusion(NoiseSchedule(), GaussianReference(means @ turn, weights, variances, turn.T @ axes))
    z, versus = points(20, 4), contrast(20, 2, {0: 0.5, 1: 0.5})
    one, other = attribute(plain, z, versus, **EFFORT), attribute(turned, (z.double() @ turn).float(), versus, **EFFORT)
    np.testing.assert_allclose(other.gradient[0] @ turn.T, one.gradient[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other.evidence, one.evidence, rtol=1e-5, atol=1e-4)


def test_chunks_change_nothing(mixture: MixtureDiffusion):
    z = points(30)
    versus = contrast(30, 0, {1: 1.0})
    whole = attribute(mixture, z, versus, **EFFORT).gradient
    parts = [
        attribute(
            mixture, z[i : i + 7], Contrast(versus.target[i : i + 7], versus.log_weights[i : i + 7]), start=i, **EFFORT
        ).gradient
        for i in range(0, 30, 7)
    ]
    np.testing.assert_allclose(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([-5.0, 3.0, -4.0], 0.3125), ([5.0, 3.0, -4.0], 0.7143), ([5.0, 2.0, 3.0], 0.5), ([-5.0, -2.0, -3.0], 0.5)],
)
def test_neutral_points_of_any_course(values, expected):
    """Evidence along a line, linear between three points: the last rise through zero, else the grid point closest to zero."""

    def evidence(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.interp(x[:, 0].numpy(), [0, 0.5, 1], values))

    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert abs(float(neutral_points(evidence, zero, zero + 1)) - expected) < 1 / 16
