r"""How much a new batch is shifted, from its unlabelled cells.

Another donor, chemistry or study moves all cells of a batch by about the same :math:`\delta`, whatever their class, and mixes the classes in other
proportions :math:`\pi`. Both follow from the densities of the model alone, as the maximum of

.. math:: \sum_i \log \sum_c \pi_c\, \tilde p(z_i - \delta \mid c) - \tfrac{n_0}{2} |\delta|^2 + n_0 \sum_c \pi^{(0)}_c \log \pi_c

by expectation-maximisation. Here :math:`\tilde p` is the reference with multivariate t distributions in place of its Gaussians, so that cells of no known class pull less
the farther away they are. No class is centred on its own, so that a batch of other proportions is not pulled to those of the training cells (*Trust* page of
the documentation, *New batches*).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import chi2
from torch import Tensor

from scscore.core.reference import GaussianReference

_PSEUDO_CELLS = 10.0  # n_0, in favour of no shift and of the usual proportions
_DEGREES_OF_FREEDOM = 30.0
_LEVEL = 0.01  # of the test against no shift
_MOST_ITERATIONS = 300
_TOLERANCE = 1e-3  # standard deviations within a class, per square root of the dimension
_MOST_NUMBERS = 2**23  # of a chunk


class BatchShift(NamedTuple):
    """Shift and class proportions of a batch.

    Attributes
    ----------
    shift
        In the whitened space, float64 ``(n_features,)``.
    frequencies
        Class proportions, ``(n_classes,)``.
    gain
        How much more likely the shift makes the cells, at these proportions, nats per cell.
    p_value
        Of the likelihood-ratio test against no shift. Above .01 the batch stays where it is.
    """

    shift: Tensor
    frequencies: Tensor
    gain: float
    p_value: float


def fit_batch_shift(reference: GaussianReference, z: Tensor, log_prior: Tensor) -> BatchShift:
    """Shift of a batch against the cells that a reference was fitted to.

    Where a likelihood-ratio test does not reject it at one per cent, there is none: where classes overlap, noise moves the estimate most.
    There may be several maxima. The search starts from no shift and from a batch with the usual class proportions, and the more likely end is returned.

    Parameters
    ----------
    reference
        Class densities in the whitened space.
    z
        Whitened points of the cells of the batch, ``(n, n_features)``, on the device of the reference.
    log_prior
        Usual log proportions of the classes, ``(n_classes,)``. A class with none cannot be in the batch.
    """
    z = z.to(torch.float64)
    log_prior = log_prior.to(z).log_softmax(0)
    none = torch.zeros_like(z[0])
    usual = z.mean(0) - log_prior.exp() @ reference.class_means
    ends = [_climb(reference, z, start, log_prior) for start in (none, usual)]
    shift, log_pi, found = max(ends, key=lambda end: _objective(end[2], end[0], end[1], log_prior))
    ratio = float(found.log_density - _expectation(reference, z, none, log_pi).log_density)
    p_value = float(chi2.sf(2 * ratio, len(none)))
    if p_value > _LEVEL:
        shift, ratio = none, 0.0
    return BatchShift(shift, log_pi.exp(), ratio / len(z), p_value)


class _Statistics(NamedTuple):
    """Sums over the cells: log density, class posteriors, gradient with respect to the shift, and its precision."""

    log_density: Tensor
    classes: Tensor
    pull: Tensor
    precision: Tensor


def _climb(
    reference: GaussianReference, z: Tensor, shift: Tensor, log_prior: Tensor
) -> tuple[Tensor, Tensor, _Statistics]:
    """Expectation-maximisation from one start: shift, log proportions, and the statistics there."""
    log_pi, identity = log_prior, torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
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
    joint = log_pi.exp()[:, None] * reference.weights  # (classes, components and scales)
    impossible = joint.sum(0) == 0
    size = max(1, _MOST_NUMBERS // (joint.shape[1] * (1 if reference.pooled else z.shape[1])))
    parts = []
    for points in (z - shift).split(size):
        offsets = None if reference.pooled else reference.offsets(points, None)[0]
        square, log_volume = _squares(reference, points, offsets)
        components = (
            -0.5 * log_volume - 0.5 * (_DEGREES_OF_FREEDOM + z.shape[1]) * (square / _DEGREES_OF_FREEDOM).log1p()
        )
        components = components.flatten(1).masked_fill(impossible, -torch.inf)
        highest = components.amax(1, keepdim=True)
        density = (components - highest).exp()
        of_class = density @ joint.T  # (n, classes)
        total = of_class.sum(1, keepdim=True)
        shares = (density * joint.sum(0) / total).unflatten(1, square.shape[1:])
        weight = shares * (_DEGREES_OF_FREEDOM + z.shape[1]) / (_DEGREES_OF_FREEDOM + square)
        pull, precision = _pull(reference, points, offsets, weight)
        parts.append(_Statistics((total.log() + highest).sum(), (of_class / total).sum(0), pull, precision))
    return _Statistics(*(torch.stack(values).sum(0) for values in zip(*parts, strict=True)))


def _squares(reference: GaussianReference, points: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Squared Mahalanobis distances ``(n, components, scales)``, and log determinants of the covariances ``(components, scales)``."""
    log_volume = reference.variances.log().sum(1)[:, None] + reference.n_features * reference.scales.log()
    if offsets is None:
        square = torch.cdist(points, reference.means, compute_mode="donot_use_mm_for_euclid_dist").square()
    else:
        square = (offsets.square() / reference.variances).sum(-1)
    return square[..., None] / reference.scales, log_volume


def _pull(
    reference: GaussianReference, points: Tensor, offsets: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums over cells and components of the offsets times the precisions, ``(n_features,)``, and of the precisions ``(n_features, n_features)``."""
    weight = (weight / reference.scales).sum(2)  # (n, components)
    if offsets is None:
        pull = weight.sum(1) @ points - weight.sum(0) @ reference.means
        return pull, weight.sum() * torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    pull = torch.einsum("nk,nkj->kj", weight, offsets) / reference.variances
    precision = weight.sum(0)[:, None] / reference.variances
    if reference.axes is None:
        return pull.sum(0), precision.sum(0).diag()
    axes = reference.axes
    return torch.einsum("kj,kdj->d", pull, axes), torch.einsum("kdj,kj,kej->de", axes, precision, axes)
