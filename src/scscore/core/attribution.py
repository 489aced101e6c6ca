r"""Attribution: how the evidence for one class against others splits into features, exactly.

The evidence is :math:`f(z) = \log p(z \mid c) - \log\sum_{c'} \pi_{c'}\, p(z \mid c')`, with the noise of the estimator held fixed. Along the
straight line from a baseline :math:`z_0` between the classes, where neither is favoured, to the cell it is :math:`f(z_0) + \int \nabla f \cdot dz`; for a linear
encoder :math:`z = E^\top (x - m)` this is a sum over genes, :math:`\sum_g (x - x_0)_g\,[E \int_0^1 \nabla f\,dt]_g`, that no rotation of the latent
space changes (derivation page, *Attribution*).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.dissipation import dissipation, dissipation_factors, evidence_by_level
from scscore.core.likelihood import log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.trajectories import NoiseStream, noising_trajectory

Evidence = Callable[[Tensor], Tensor]
_GRID, _BISECTIONS = 16, 20


@dataclass(frozen=True)
class Contrast:
    """What is compared for every cell.

    Attributes
    ----------
    target
        Class index of every cell, int64 ``(n,)``.
    log_weights
        Log weights of the classes that the target is compared with, float64 ``(n, n_classes)``; rows are normalised, ``-inf`` leaves a
        class out.
    """

    target: Tensor
    log_weights: Tensor

    def evidence(self, log_likelihood: Tensor) -> Tensor:
        """Log-ratio of the target and the mixture of the others, nats ``(..., n)``, from log-likelihoods ``(..., n, n_classes)``."""
        own = log_likelihood.gather(-1, self.target.expand(log_likelihood.shape[:-1])[..., None])[..., 0]
        return own - (log_likelihood + self.log_weights).logsumexp(-1)

    def pairs(self) -> Tensor | None:
        """Target and the class that it is compared with, ``(n, 2)``; ``None`` where a cell is compared with several."""
        others = self.log_weights.isfinite()
        if not bool((others.sum(-1) == 1).all()):
            return None
        return torch.stack([self.target, others.to(torch.int64).argmax(-1)], dim=-1)

    def means(self, reference: GaussianReference) -> tuple[Tensor, Tensor]:
        """Means of what the target is compared with, and of the target, ``(n, n_features)`` each."""
        means = reference.class_means
        return self.log_weights.exp() @ means, means[self.target]

    def distinct(self) -> tuple[Contrast, Tensor]:
        """The different rows, and which of them every cell has."""
        both = torch.cat([self.target[:, None].to(self.log_weights), self.log_weights.exp()], dim=1)
        unique, inverse = both.unique(dim=0, return_inverse=True)
        return Contrast(unique[:, 0].long(), unique[:, 1:].log()), inverse


@dataclass(frozen=True)
class ValueContrast:
    """One value of a continuous target against another, or against all.

    Attributes
    ----------
    weights
        What the log-likelihoods at the nodes weigh in that of the value, float64 ``(n, n_nodes)``; rows sum to one.
    others
        The same for the other value, or, for all values, their mean weights.
    to_bins, log_prior
        Of the mixture of all values: from nodes to bins, ``(n_nodes, n_bins)``, and log weights of the bins; ``None`` for another value.
    """

    weights: Tensor
    others: Tensor
    to_bins: Tensor | None = None
    log_prior: Tensor | None = None

    @property
    def target(self) -> Tensor:
        """Group of every cell, int64 ``(n,)``: they are all in one."""
        return torch.zeros(len(self.weights), dtype=torch.int64, device=self.weights.device)

    def evidence(self, log_likelihood: Tensor) -> Tensor:
        """Log-ratio of the value and the others, nats ``(..., n)``, from log-likelihoods at the nodes ``(..., n, n_nodes)``."""
        own = (log_likelihood * self.weights).sum(-1)
        if self.to_bins is not None and self.log_prior is not None:
            return own - (log_likelihood @ self.to_bins + self.log_prior).logsumexp(-1)
        return own - (log_likelihood * self.others).sum(-1)

    def pairs(self) -> None:
        """Always ``None``: all nodes may have a weight."""

    def means(self, reference: GaussianReference) -> tuple[Tensor, Tensor]:
        """Means of what the value is compared with, and of the value, ``(n, n_features)`` each."""
        means = reference.class_means
        return self.others @ means, self.weights @ means

    def distinct(self) -> tuple[ValueContrast, Tensor]:
        """The different rows, and which of them every cell has."""
        unique, inverse = torch.cat([self.weights, self.others], dim=1).unique(dim=0, return_inverse=True)
        weights, others = unique.chunk(2, dim=1)
        return ValueContrast(weights, others, self.to_bins, self.log_prior), inverse


@torch.no_grad()
def neutral_points(evidence: Evidence, start: Tensor, end: Tensor) -> Tensor:
    """Points between `start` and `end`, ``(n, n_features)`` each, at which the evidence is zero.

    The last such point on the way up to the end; where there is none, the point of the smallest evidence for either side.

    Parameters
    ----------
    evidence
        From points to nats, ``(n,)``.
    start, end
        Means of the two sides.
    """

    def at(t: Tensor) -> Tensor:
        return evidence(start + t[..., None] * (end - start))

    grid = torch.linspace(0, 1, _GRID + 1, dtype=torch.float64, device=start.device)
    values = torch.stack([at(t.expand(len(start))) for t in grid])
    rises = (values[:-1] < 0) & (values[1:] >= 0)
    low = (rises.to(torch.int64) * torch.arange(1, _GRID + 1, device=start.device)[:, None]).amax(0) - 1
    below, above = grid[low.clamp_min(0)], grid[low.clamp_min(0) + 1]
    for _ in range(_BISECTIONS):
        middle = 0.5 * (below + above)
        negative = at(middle) < 0
        below, above = torch.where(negative, middle, below), torch.where(negative, above, middle)
    t = torch.where(low >= 0, 0.5 * (below + above), grid[values.abs().argmin(0)])
    return start + t[:, None] * (end - start)


@dataclass(frozen=True)
class LatentAttribution:
    """Mean gradients of the evidence between baseline and cell.

    Attributes
    ----------
    gradient
        One per draw, nats per unit, float64 ``(n_draws, n, n_features)``; times the displacement it sums to the evidence less its
        baseline.
    evidence, baseline
        Evidence at the cell and at its baseline, nats ``(n_draws, n)``.
    displacement
        From the baseline to the cell, ``(n, n_features)``.
    correction
        What the discrete gradient had to add to the quadrature, nats ``(n_draws, n)``: how far the integral by midpoints alone
        is from the difference of the evidence.
    """

    gradient: Tensor
    evidence: Tensor
    baseline: Tensor
    displacement: Tensor
    correction: Tensor


class Encoded(NamedTuple):
    """Cells before a non-linear encoder.

    Attributes
    ----------
    cells
        Inputs of the encoder, ``(n, n_inputs)``.
    to_points
        From such inputs to points of the engine's space.
    decode
        From points of the engine's space to inputs.
    """

    cells: Tensor
    to_points: Evidence
    decode: Evidence


def dissipation_parts(
    model: ConditionalDiffusion,
    z: Tensor,
    contrast: Contrast | ValueContrast,
    loadings: Tensor,
    dual: Tensor,
    *,
    noise: NoiseStream,
    n_steps: int,
    n_paths: int,
    start: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""What the residual adds to the evidence, split along the trajectories of the likelihood.

    Every increment is a product of a force :math:`u` (a covector) and a displacement :math:`v`, hence
    :math:`u \cdot v = \sum_g (E u)_g (B v)_g` with loadings :math:`E` and dual :math:`B`. The classes are weighted by the gradient of the evidence with
    respect to their log-likelihoods.

    Parameters
    ----------
    model, z, contrast, noise, n_steps, n_paths, start
        As in :func:`attribute`.
    loadings, dual
        ``(n_genes, n_features)``, the product of the transposed first and the second is the identity.

    Returns
    -------
    Nats of every gene, float32 ``(n, n_genes)``; what they should add up to, from the products of the whole vectors, ``(n,)``; and the
    evidence of the cells, ``(n,)``.
    """
    parts = torch.zeros(len(z), len(loadings), dtype=torch.float32, device=z.device)
    if model.denoiser is None:
        return parts, parts.sum(1), contrast.evidence(model.pooled(model.reference.log_prob(model.own(z)), z))
    draws: dict[str, Any] = {"noise": noise, "n_steps": n_steps, "start": start}
    found = log_likelihood(model.density, z, n_paths=n_paths, **draws).mean
    weights = torch.func.grad(lambda values: contrast.evidence(model.pooled(values, z)).sum())(found)
    levels = model.schedule.levels(n_steps).to(z.device)
    e, b = loadings.to(z).T, dual.to(z).T
    for pair in range(n_paths // 2):
        mirrored = [torch.stack([x, -x]).to(z) for x in _drawn(model, len(z), pair=pair, **draws)]
        points = list(noising_trajectory(model.own(z), levels, mirrored.__getitem__))
        for (one, following), (lam, lam_next) in zip(pairwise(points), pairwise(levels), strict=True):
            force, step = dissipation_factors(model, one, following, lam, lam_next)
            for k in range(model.n_classes):
                both = (force[..., k, :] @ e) * (step[..., k, :] @ b)
                parts += weights[:, k, None].to(z) * both.mean(0)
    work = found - model.reference.log_prob(model.own(z))
    return parts / (n_paths // 2), (weights * work).sum(-1), contrast.evidence(model.pooled(found, z))


def frozen_evidence(
    model: ConditionalDiffusion,
    contrast: Contrast | ValueContrast,
    *,
    noise: NoiseStream,
    start: int,
    pair: int,
    n_steps: int,
    level: int | None = None,
) -> Evidence:
    """Evidence as a differentiable function of the cells, with the noise of one antithetic pair held fixed, ``(n,)`` float64.

    With `level`, what is left of it at that level of :func:`scscore.core.dissipation.evidence_by_level`, from 0 for the prior end.
    """
    draws = _drawn(model, len(contrast.target), noise=noise, start=start, pair=pair, n_steps=n_steps)
    levels = model.schedule.levels(n_steps)

    pair_of_classes = contrast.pairs() if level is None else None

    def evidence(z: Tensor) -> Tensor:
        if level is not None:
            found = evidence_by_level(model, z, levels.to(z.device), lambda step: draws[step].to(z))
            return contrast.evidence(found[level].mean(0))
        own = model.own(z)
        found = model.reference.log_prob(own)
        if pair_of_classes is not None:
            found = found.gather(-1, pair_of_classes)
        if model.denoiser is not None:
            steps = dissipation(model, own, levels.to(z.device), lambda step: draws[step].to(z), pair_of_classes)
            found = found + torch.stack(list(steps)).sum(0).mean(0)
        found = model.pooled(found, z, classes=pair_of_classes)
        return contrast.evidence(found) if pair_of_classes is None else found[..., 0] - found[..., 1]

    return evidence


def _drawn(
    model: ConditionalDiffusion, n: int, *, noise: NoiseStream, start: int, pair: int, n_steps: int
) -> list[Tensor]:
    """The noise of all steps of one antithetic pair."""
    rows = start + np.arange(n)
    return [noise.normal(rows, model.n_features, pair=pair, step=step) for step in range(n_steps + 1)]


def integrated_gradients(evidence: Evidence, z: Tensor, baseline: Tensor, *, n_segments: int) -> tuple[Tensor, ...]:
    r"""Mean gradient along the line from `baseline` to `z`, complete to rounding error.

    On every segment from :math:`a` to :math:`b` the gradient at the midpoint :math:`g` is replaced by the discrete gradient
    :math:`g + \frac{f(b) - f(a) - g \cdot (b - a)}{|b - a|^2} (b - a)` (Gonzalez 1996), whose product with :math:`b - a` is the difference of the
    evidence, whatever the length of the segment.

    Returns
    -------
    Mean gradient ``(n, n_features)``, evidence at the cells and at the baseline, and the sum of the corrections, ``(n,)``; float64.
    """
    z, baseline = z.to(torch.float64), baseline.to(torch.float64)
    step = (z - baseline) / n_segments
    square = step.square().sum(-1).clamp_min(1e-300)
    with torch.no_grad():
        values = [evidence((baseline + i * step).to(torch.float32)) for i in range(n_segments + 1)]
    total, correction = torch.zeros_like(z), torch.zeros_like(values[0])
    for i in range(n_segments):
        middle = (baseline + (i + 0.5) * step).to(torch.float32).requires_grad_()
        (gradient,) = torch.autograd.grad(evidence(middle).sum(), middle)
        gradient = gradient.to(torch.float64)
        missing = values[i + 1] - values[i] - (gradient * step).sum(-1)
        total = total + gradient + (missing / square)[:, None] * step
        correction = correction + missing
    return total / n_segments, values[-1], values[0], correction


def attribute(
    model: ConditionalDiffusion,
    z: Tensor,
    contrast: Contrast | ValueContrast,
    *,
    noise: NoiseStream,
    n_steps: int,
    n_paths: int,
    n_segments: int = 8,
    start: int = 0,
    encoded: Encoded | None = None,
    level: int | None = None,
    scores_from: Evidence | None = None,
) -> LatentAttribution:
    """Integrated gradients of the evidence of a chunk of cells, one draw per antithetic pair of trajectories.

    Parameters
    ----------
    model
        The conditional diffusion model, in evaluation mode.
    z
        Whitened points, ``(n, n_features)``, with class scores behind the features where the readout knows of any: the attributions have as many columns.
    contrast
        What is compared.
    noise, start
        Source of the noise, and position of the first row in the whole data set.
    n_steps, n_paths
        Jumps per trajectory, and trajectories (an even number).
    n_segments
        Parts of the line between baseline and cell.
    encoded
        The cells before a non-linear encoder, whose space then takes the place of that of `z`.
    level
        Attribute the evidence that is left at this noise level, see :func:`frozen_evidence`.
    scores_from
        What the class scores of every cell are above those of its baseline, from the baselines ``(n, n_features)``, nats ``(n, n_scores)``; ``None``: above those
        that the features of the baseline make.
    """
    to_points: Evidence = torch.nn.Identity()
    baseline = baseline_of(model, contrast, encoded)
    if encoded is not None:
        z, to_points = encoded.cells, encoded.to_points
    elif model.n_scores:
        if scores_from is None:
            baseline = model.completed(baseline)
        else:
            baseline = torch.cat([baseline, z[:, model.n_features :] - scores_from(baseline)], dim=1)
    n_draws = 1 if model.denoiser is None and level is None else n_paths // 2
    parts = []
    for pair in range(n_draws):
        evidence = frozen_evidence(model, contrast, noise=noise, start=start, pair=pair, n_steps=n_steps, level=level)
        along = partial(_composed, evidence, to_points)
        parts.append(integrated_gradients(along, z, baseline, n_segments=n_segments))
    gradient, value, value_at_baseline, correction = (torch.stack(part).detach() for part in zip(*parts, strict=True))
    return LatentAttribution(gradient, value, value_at_baseline, z.to(torch.float64) - baseline, correction)


def baseline_of(
    model: ConditionalDiffusion, contrast: Contrast | ValueContrast, encoded: Encoded | None = None
) -> Tensor:
    """Where neither side is favoured by reference and readout, between the means of the sides; before the encoder if there is one."""

    def evidence(z: Tensor, contrast: Contrast | ValueContrast) -> Tensor:
        return contrast.evidence(model.pooled(model.reference.log_prob(z), model.completed(z)))

    if encoded is None:
        one, inverse = contrast.distinct()
        return neutral_points(lambda z: evidence(z, one), *one.means(model.reference))[inverse]
    start, end = (encoded.decode(mean) for mean in contrast.means(model.reference))
    return neutral_points(lambda x: evidence(encoded.to_points(x.to(torch.float32)), contrast), start, end)


def _composed(evidence: Evidence, to_points: Evidence, inputs: Tensor) -> Tensor:
    return evidence(to_points(inputs))
