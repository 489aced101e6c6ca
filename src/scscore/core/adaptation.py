r"""How much a new batch is shifted, from its unlabelled cells.

Another donor, chemistry or study moves all cells of a batch by about the same :math:`\delta`, whatever their class, and mixes the classes in other
proportions :math:`\pi`. Both follow from the density of the model alone, as the maximum of

.. math:: \sum_i \log \sum_c \pi_c\, p(z_i - \delta \mid c) - \tfrac{n_0}{2} |\delta|^2 + n_0 \sum_c \pi^{(0)}_c \log \pi_c

by expectation-maximisation: cells are shared out to the Gaussians of the reference, then :math:`\delta` is the mean of their offsets, weighted by the
precisions. No class is centred on its own, so that a batch of other proportions is not pulled to those of the training cells (derivation page, *New batches*).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scscore.core.reference import GaussianReference

_PSEUDO_CELLS = 10.0  # n_0, in favour of no shift and of the usual proportions
_MOST_ITERATIONS = 500
_TOLERANCE = 1e-4  # standard deviations within a class
_CHUNK = 1024


class BatchShift(NamedTuple):
    """Shift and class proportions of a batch.

    Attributes
    ----------
    shift
        In the whitened space, float64 ``(n_features,)``.
    frequencies
        Class proportions, ``(n_classes,)``.
    gain
        How much more likely the shift makes the cells, nats per cell.
    """

    shift: Tensor
    frequencies: Tensor
    gain: float


def fit_batch_shift(reference: GaussianReference, z: Tensor, log_prior: Tensor) -> BatchShift:
    """Shift of a batch against the cells that a reference was fitted to.

    There may be several maxima. The search starts from no shift and from a batch with the usual class proportions, and the more likely end is returned.

    Parameters
    ----------
    reference
        Class densities in the whitened space.
    z
        Whitened points of the cells of the batch, ``(n, n_features)``.
    log_prior
        Usual log proportions of the classes, ``(n_classes,)``.
    """
    z = z.to(torch.float64)
    log_prior = log_prior.to(z) - log_prior.to(z).logsumexp(0)
    usual = z.mean(0) - log_prior.exp() @ reference.class_means
    unmoved = _expectation(reference, z, torch.zeros_like(usual), log_prior)
    ends = [_climb(reference, z, start, log_prior) for start in (torch.zeros_like(usual), usual)]
    shift, log_pi, statistics = max(ends, key=lambda end: _objective(end[2], end[0], end[1], log_prior))
    return BatchShift(shift, log_pi.exp(), float(statistics.log_density - unmoved.log_density) / len(z))


class _Statistics(NamedTuple):
    """Sums over the cells: log density, class posteriors, gradient with respect to the shift, and the precision of it."""

    log_density: Tensor
    classes: Tensor
    pull: Tensor
    precision: Tensor


def _climb(
    reference: GaussianReference, z: Tensor, shift: Tensor, log_prior: Tensor
) -> tuple[Tensor, Tensor, _Statistics]:
    """Expectation-maximisation from one start: shift, log proportions, and the statistics there."""
    log_pi, identity = log_prior, torch.eye(z.shape[1], dtype=z.dtype)
    found = _expectation(reference, z, shift, log_pi)
    for _ in range(_MOST_ITERATIONS):
        step = torch.linalg.solve(found.precision + _PSEUDO_CELLS * identity, found.pull - _PSEUDO_CELLS * shift)
        shift = shift + step
        log_pi = ((found.classes + _PSEUDO_CELLS * log_prior.exp()) / (len(z) + _PSEUDO_CELLS)).log()
        found = _expectation(reference, z, shift, log_pi)
        if float(step.norm()) < _TOLERANCE * math.sqrt(z.shape[1]):
            break
    return shift, log_pi, found


def _objective(found: _Statistics, shift: Tensor, log_pi: Tensor, log_prior: Tensor) -> float:
    """What expectation-maximisation never lowers."""
    usual = torch.where(log_prior.isfinite(), log_prior.exp() * log_pi, 0.0).sum()
    return float(found.log_density - _PSEUDO_CELLS * (0.5 * shift.square().sum() - usual))


def _expectation(reference: GaussianReference, z: Tensor, shift: Tensor, log_pi: Tensor) -> _Statistics:
    """Share the cells, with a shift taken out, to classes and components, chunk by chunk."""
    n_components, n_scales = len(reference.means), len(reference.scales)
    log_joint_weights = (log_pi[:, None] + reference.weights.log()).T  # (components and scales, classes)
    log_density, classes = z.new_zeros(()), z.new_zeros(len(log_pi))
    pull, precisions = z.new_zeros(n_components, z.shape[1]), z.new_zeros(n_components, z.shape[1])
    for points in (z - shift).split(_CHUNK):
        offsets, precision = reference.offsets(points, None)
        components = reference.component_log_prob(offsets, precision)
        highest = components.amax(1, keepdim=True)
        density = (components - highest).exp()
        of_class = density @ log_joint_weights.exp()  # (n, classes)
        total = of_class.sum(1, keepdim=True).clamp_min(1e-300)
        log_density += (total.log() + highest).sum()
        classes += (of_class / total).sum(0)
        shares = (density * log_joint_weights.exp().sum(1) / total).unflatten(1, (n_components, n_scales))
        weighted = (shares[..., None] * precision).sum(2)  # (n, components, features)
        pull += (weighted * offsets).sum(0)
        precisions += weighted.sum(0)
    if reference.axes is None:
        return _Statistics(log_density, classes, pull.sum(0), precisions.sum(0).diag())
    axes = reference.axes
    turned = torch.einsum("kdj,kj,kej->de", axes, precisions, axes)
    return _Statistics(log_density, classes, torch.einsum("kj,kdj->d", pull, axes), turned)
