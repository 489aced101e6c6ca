"""The shift of a batch: against closed forms, known shifts, and an independent optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from scscore.core.adaptation import _DEGREES_OF_FREEDOM, _PSEUDO_CELLS, fit_batch_shift
from scscore.core.reference import GaussianReference

MEANS = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 5.0, 1.0]], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64).log()


def reference(*, own_axes: bool = False, overlap: float = 0.02) -> GaussianReference:
    """Three classes of two scales; with axes of their own, if asked."""
    shares = torch.full((3, 3), overlap / 2) + (1 - 1.5 * overlap) * torch.eye(3)
    weights = (shares[:, :, None] * torch.tensor([0.8, 0.2])).flatten(1)
    if not own_axes:
        return GaussianReference(MEANS, weights, scales=torch.tensor([1.0, 2.0]))
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(3, 3, 3, generator=generator, dtype=torch.float64))[0]
    return GaussianReference(
        MEANS, weights, 0.3 + torch.rand(3, 3, generator=generator), axes, torch.tensor([1.0, 2.0])
    )


def cells(n: int, shift: list[float], frequencies: list[float], seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    y = rng.choice(3, size=n, p=frequencies)
    return MEANS[y] + torch.tensor(shift) + torch.from_numpy(rng.normal(size=(n, 3)))


def test_one_class_is_a_shrunken_weighted_mean():
    single = GaussianReference(torch.zeros(1, 4), torch.ones(1, 1))
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4)) + 3.0)
    found = fit_batch_shift(single, z, torch.zeros(1))
    weight = (_DEGREES_OF_FREEDOM + 4) / (_DEGREES_OF_FREEDOM + (z - found.shift).square().sum(1))
    expected = weight @ z / (weight.sum() + _PSEUDO_CELLS)
    torch.testing.assert_close(found.shift, expected, atol=2e-3, rtol=0)
    density = [multivariate_t(mean, np.eye(4), df=_DEGREES_OF_FREEDOM).logpdf(z) for mean in (found.shift, np.zeros(4))]
    assert found.gain == pytest.approx((density[0] - density[1]).mean(), rel=1e-6)


@pytest.mark.parametrize("own_axes", [False, True])
def test_shift_and_proportions_come_back(own_axes: bool):
    shift, frequencies = [1.2, -0.8, 0.7], [0.7, 0.1, 0.2]  # proportions far from the usual ones
    found = fit_batch_shift(reference(own_axes=own_axes), cells(4000, shift, frequencies), UNIFORM)
    assert found.shift.tolist() == pytest.approx(shift, abs=0.08)
    assert found.frequencies.tolist() == pytest.approx(frequencies, abs=0.03)
    assert found.gain > 0.5


def test_centring_the_batch_would_be_wrong():
    """What users do by hand pulls a batch of other proportions to those of the training cells."""
    found = fit_batch_shift(reference(), cells(4000, [0.0, 0.0, 0.0], [0.8, 0.1, 0.1]), UNIFORM)
    centred = cells(4000, [0.0, 0.0, 0.0], [0.8, 0.1, 0.1]).mean(0) - MEANS.mean(0)
    assert float(found.shift.norm()) < 0.1
    assert float(centred.norm()) > 1


@pytest.mark.parametrize("own_axes", [False, True])
def test_the_end_is_a_maximum(own_axes: bool):
    """A general-purpose optimiser of the same objective finds nothing better nearby."""
    model, z = reference(own_axes=own_axes), cells(150, [0.5, 0.4, -0.3], [0.5, 0.3, 0.2])
    found = fit_batch_shift(model, z, UNIFORM)

    turn = np.broadcast_to(np.eye(3), (3, 3, 3)) if model.axes is None else model.axes.numpy()
    shapes = [a * v @ a.T for a, v in zip(turn, model.variances.numpy(), strict=True)]
    components = [
        multivariate_t(mean, scale * shape, df=_DEGREES_OF_FREEDOM)
        for mean, shape in zip(MEANS.numpy(), shapes, strict=True)
        for scale in model.scales.tolist()
    ]

    def loss(parameters: np.ndarray) -> float:
        shift, log_pi = parameters[:3], parameters[3:] - logsumexp(parameters[3:])
        density = np.stack([component.logpdf(z.numpy() - shift) for component in components], axis=1)
        weights = np.exp(log_pi) @ model.weights.numpy()
        total = logsumexp(density, b=weights, axis=1).sum()
        return -float(total - _PSEUDO_CELLS * (0.5 * shift @ shift - np.exp(UNIFORM.numpy()) @ log_pi))

    here = np.concatenate([found.shift.numpy(), found.frequencies.log().numpy()])
    best = minimize(loss, here, method="BFGS")
    assert loss(here) - best.fun < 1e-3
    np.testing.assert_allclose(best.x[:3], found.shift.numpy(), atol=1e-2)


def test_a_large_shift_is_found_from_the_mean():
    """Seen from no shift, all cells of this batch belong to one class."""
    found = fit_batch_shift(reference(), cells(3000, [8.0, 8.0, 4.0], [0.3, 0.3, 0.4]), UNIFORM)
    assert found.shift.tolist() == pytest.approx([8.0, 8.0, 4.0], abs=0.25)


def test_few_cells_move_little():
    shift = fit_batch_shift(reference(), cells(3, [0.8, 0.0, 0.0], [1.0, 0.0, 0.0]), UNIFORM).shift
    assert float(shift.norm()) < 0.8


def test_a_class_without_prior_stays_out():
    log_prior = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    found = fit_batch_shift(reference(), cells(500, [0.3, 0.0, 0.0], [0.5, 0.5, 0.0]), log_prior)
    assert found.frequencies[2] == 0
    assert torch.isfinite(found.shift).all()


def test_cells_of_no_class_pull_little():
    known = cells(380, [0.0, 0.0, 0.0], [0.4, 0.3, 0.3])
    strange = torch.from_numpy(np.random.default_rng(1).normal(size=(20, 3))) + 20.0
    alone, both = (fit_batch_shift(reference(), z, UNIFORM).shift for z in (known, torch.cat([known, strange])))
    assert float((both - alone).norm()) < 0.12  # with Gaussians 1.5
    far = torch.cat([known, torch.full((1, 3), 1e6, dtype=torch.float64)])
    assert float((fit_batch_shift(reference(), far, UNIFORM).shift - alone).norm()) < 0.01


def test_impossible_classes_do_not_hide_the_others():
    """The class that explains half of the cells has no prior: these are far away for the other one."""
    two = GaussianReference(torch.tensor([[0.0, 0.0], [60.0, 0.0]]), torch.eye(2))
    rng = np.random.default_rng(0)
    z = torch.from_numpy(np.concatenate([rng.normal(size=(50, 2)), rng.normal(size=(20, 2)) + [60, 0]]))
    found = fit_batch_shift(two, z, torch.tensor([1.0, 0.0]).log())
    assert found.frequencies.tolist() == [1, 0]
    assert found.gain >= 0
    assert float(found.shift.norm()) < 1


def test_no_shift_is_seldom_rejected():
    """Under the null the test is at its level (and below: the shift is shrunk)."""
    found = [
        fit_batch_shift(reference(), cells(200, [0.0, 0.0, 0.0], [0.4, 0.3, 0.3], seed), UNIFORM) for seed in range(100)
    ]
    assert sum(one.p_value < 0.05 for one in found) <= 10
    assert sum(float(one.shift.norm()) > 0 for one in found) <= 4
    assert np.mean([one.p_value for one in found]) == pytest.approx(0.5, abs=0.15)
