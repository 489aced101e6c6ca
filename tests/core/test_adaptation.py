"""The shift of a batch: against closed forms, known shifts, and an independent optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from scscore.core.adaptation import _PSEUDO_CELLS, fit_batch_shift
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


def test_one_gaussian_is_a_shrunken_mean():
    single = GaussianReference(torch.zeros(1, 4), torch.ones(1, 1))
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4)) + 3.0)
    found = fit_batch_shift(single, z, torch.zeros(1))
    torch.testing.assert_close(found.shift, z.mean(0) * 50 / (50 + _PSEUDO_CELLS))
    expected = (z.square() - (z - found.shift).square()).sum(1).mean() / 2
    assert found.gain == pytest.approx(float(expected))


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

    def loss(parameters: np.ndarray) -> float:
        shift, log_pi = torch.from_numpy(parameters[:3]), torch.from_numpy(parameters[3:]).log_softmax(0)
        density = torch.logsumexp(model.log_prob(z - shift) + log_pi, 1).sum()
        return -float(density - _PSEUDO_CELLS * (0.5 * shift.square().sum() - (UNIFORM.exp() * log_pi).sum()))

    here = np.concatenate([found.shift.numpy(), found.frequencies.log().numpy()])
    best = minimize(loss, here, method="BFGS")
    assert loss(here) - best.fun < 1e-4
    np.testing.assert_allclose(best.x[:3], found.shift.numpy(), atol=5e-3)


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
