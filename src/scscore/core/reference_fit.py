"""Fits the closed-form reference: pooled whitening, class Gaussians, label overlap by EM, shape by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn

from scscore.core.reference import GaussianReference

Array = NDArray[np.float64]

SCALES = (1.0, 2.0)
"""Scales of every component: the second one gives heavier than Gaussian tails."""
INFLATIONS = (1.25, 1.6, 2.0, 2.5, 3.3, 5.0, 10.0, 20.0)
"""Factors on all covariances that cross-validation compares with one."""
_SURE = 2.0  # standard errors of the gain for which covariances are inflated


class Fold(NamedTuple):
    """One split of the training cells, represented by an encoder that saw only the training part."""

    x_train: Array
    y_train: NDArray[Any]
    x_held_out: Array
    y_held_out: NDArray[Any]


@dataclass(frozen=True)
class ReferenceShape:
    """What cross-validation chooses.

    Attributes
    ----------
    n_features
        Number of leading features of the representation that are used.
    class_covariance
        Amount of class-specific covariance, from 0 (pooled) to 1.
    isotropy
        How far the class-specific part is shrunk to a multiple of the identity, from 0 to 1.
    inflation
        Factor on all covariances. Where some cells lie between the classes, broader ones give the better posterior (derivation page,
        *Inflation*).
    n_components
        Gaussians per class; more than one only in a model without classes.
    """

    n_features: int
    class_covariance: float = 0.0
    isotropy: float = 0.0
    inflation: float = 1.0
    n_components: int = 1


@dataclass(frozen=True)
class ReferenceFit:
    """A fitted reference, the whitening in front of it, and how it was chosen.

    Attributes
    ----------
    nll, accuracy
        Cross-validated negative log posterior (nats) and accuracy of the chosen shape.
    losses
        Negative log posterior of every held-out cell, nats.
    held_out
        Held-out log densities of the shared components for the chosen shape, one ``(n, n_components)`` per fold.
    """

    whitening: Whitening
    reference: GaussianReference
    shape: ReferenceShape
    nll: float
    accuracy: float
    losses: Array
    held_out: list[Array]


class Whitening(nn.Module):
    """Affine map of the representation to the space where the pooled within-class covariance is the identity.

    Parameters
    ----------
    center
        Mean of the used features, shape ``(n_features,)``.
    matrix
        Whitening matrix, shape ``(n_features, n_features)``.
    """

    center: Tensor
    matrix: Tensor

    def __init__(self, center: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center.to(torch.float64))
        self.register_buffer("matrix", matrix.to(torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Whiten the leading features of `x`, shape ``(n, >= n_features)``; float32 ``(n, n_features)``."""
        used = x[:, : len(self.center)].to(self.center.dtype)
        return ((used - self.center) @ self.matrix).to(torch.float32)

    def with_scores(self, x: Array, n_scores: int) -> Tensor:
        """Whitened points of `x` with its last `n_scores` columns behind them, float32 ``(n, n_features + n_scores)``."""
        whole = torch.from_numpy(x)
        return torch.cat([self(whole), whole[:, x.shape[1] - n_scores :].to(torch.float32)], dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        """The leading features whose whitened point is `z`, float64 ``(n, n_features)``."""
        return torch.linalg.solve(self.matrix, z.to(self.center.dtype), left=False) + self.center

    @property
    def log_abs_det(self) -> float:
        """Log volume factor in nats: log p(x) = log p(z) + log_abs_det."""
        return float(torch.linalg.slogdet(self.matrix).logabsdet)


def candidate_shapes(n_features: Sequence[int]) -> list[ReferenceShape]:
    """The grid of shapes that cross-validation compares, for the given numbers of features."""
    covariances = ((0.0, 0.0), (0.3, 0.0), (0.6, 0.0), (0.9, 0.0), (0.6, 0.5))
    return [ReferenceShape(d, a, g) for d, (a, g) in product(n_features, covariances)]


def fit_reference(
    folds: Sequence[Fold],
    x: Array,
    y: NDArray[np.integer],
    *,
    n_classes: int,
    log_prior: Array,
    shapes: Sequence[ReferenceShape],
    inflations: Sequence[float] = INFLATIONS,
) -> ReferenceFit:
    """Choose the shape of the reference by cross-validation and fit it.

    The component weights of every class (the overlap of labels) are fitted by EM on *held-out* densities, because a
    cell always looks closer to the Gaussian that it helped to fit.

    Parameters
    ----------
    folds
        Cross-validation splits of the training cells.
    x, y
        Representation ``(n, n_features)`` and class indices ``(n,)`` of the cells for the final fit.
    n_classes
        Number of classes.
    log_prior
        Log prior of the classes, used in the cross-validated posterior.
    shapes
        Candidates, compared by the held-out negative log posterior.
    inflations
        The same for the factor on the covariances of the best of them.
    """
    chosen = cross_validate(folds, n_classes=n_classes, log_prior=log_prior, shapes=shapes, inflations=inflations)
    whitening, reference = build_reference(x, y, n_classes=n_classes, shape=chosen.shape, weights=chosen.weights)
    return ReferenceFit(
        whitening=whitening,
        reference=reference,
        shape=chosen.shape,
        nll=float(chosen.losses.mean()),
        accuracy=chosen.accuracy,
        losses=chosen.losses,
        held_out=chosen.held_out,
    )


class Candidate(NamedTuple):
    """A shape of the reference and how it did on held-out cells; the fields are those of :class:`ReferenceFit`."""

    shape: ReferenceShape
    losses: Array
    accuracy: float
    weights: Array
    held_out: list[Array]


def cross_validate(
    folds: Sequence[Fold],
    *,
    n_classes: int,
    log_prior: Array,
    shapes: Sequence[ReferenceShape],
    inflations: Sequence[float] = INFLATIONS,
) -> Candidate:
    """The best of some shapes on held-out cells, and its best inflation; arguments as in :func:`fit_reference`.

    Inflations are compared with overlap weights that other held-out cells gave: where many classes overlap, weights from the same cells
    flatter the sharpest densities.
    """
    y_held_out = np.concatenate([fold.y_held_out for fold in folds])
    rows = np.arange(len(y_held_out))
    part = np.repeat(np.arange(len(folds)), [len(fold.y_held_out) for fold in folds]) if len(folds) > 1 else rows % 5

    def log_posterior(log_density: Array, weights: Array) -> Array:
        joint = _mix(log_density, weights) + log_prior
        return joint - logsumexp(joint, axis=1, keepdims=True)

    def judged(shape: ReferenceShape) -> Candidate:
        held_out = [_held_out_densities(fold, shape, n_classes) for fold in folds]
        weights = overlap_weights(np.concatenate(held_out), y_held_out, n_classes)
        found = log_posterior(np.concatenate(held_out), weights)
        accuracy = float((found.argmax(1) == y_held_out).mean())
        return Candidate(shape, -found[rows, y_held_out], accuracy, weights, held_out)

    def cross_fitted(candidate: Candidate) -> Array:
        density, losses = np.concatenate(candidate.held_out), np.empty(len(rows))
        for i in np.unique(part):
            own, others = rows[part == i], rows[part != i]
            weights = overlap_weights(density[others], y_held_out[others], n_classes)
            losses[own] = -log_posterior(density[own], weights)[np.arange(len(own)), y_held_out[own]]
        return losses

    chosen = choose([judged(shape) for shape in shapes])
    if not inflations:
        return chosen
    inflated = [judged(replace(chosen.shape, inflation=factor)) for factor in inflations]
    losses, best = min(((cross_fitted(one), one) for one in inflated), key=lambda pair: pair[0].mean())
    return best if clearly_worse(cross_fitted(chosen), losses, standard_errors=_SURE) else chosen


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The lowest loss; of candidates that tie with it (within 1 %), the one with the most features.

    Features that cost nothing keep information for the residual, for attribution and for cells of other donors.
    """
    lowest = min(candidate.losses.mean() for candidate in candidates)
    ties = [candidate for candidate in candidates if candidate.losses.mean() <= 1.01 * lowest]
    return max(ties, key=lambda candidate: (candidate.shape.n_features, -candidate.losses.mean()))


def clearly_worse(losses: Array, best: Array, *, standard_errors: float = 1.0) -> bool:
    """Whether the mean of `losses` exceeds that of `best` by more than so many standard errors of the paired difference."""
    difference = losses - best
    return bool(difference.mean() > standard_errors * difference.std() / np.sqrt(len(difference)))


def build_reference(
    x: Array, y: NDArray[np.integer], *, n_classes: int, shape: ReferenceShape, weights: Array
) -> tuple[Whitening, GaussianReference]:
    """Fit whitening and Gaussians of a given shape to the cells `x`, with given component weights."""
    whitening = pooled_whitening(x[:, : shape.n_features], y, n_classes)
    z = (x[:, : shape.n_features] - whitening.center.numpy()) @ whitening.matrix.numpy()
    means, variances, axes = _class_gaussians(z, y, n_classes, shape)
    reference = GaussianReference(
        torch.from_numpy(means),
        torch.from_numpy(weights),
        torch.from_numpy(variances),
        None if axes is None else torch.from_numpy(axes),
        shape.inflation * torch.tensor(SCALES),
    )
    return whitening, reference


def pooled_whitening(x: Array, y: NDArray[np.integer], n_classes: int) -> Whitening:
    """Whitening by the pooled within-class covariance with Ledoit-Wolf shrinkage."""
    means = _class_means(x, y, n_classes)
    covariance, _ = ledoit_wolf(x - means[y], assume_centered=True)
    return whitening_of(x.mean(0), covariance * len(x) / max(len(x) - n_classes, 1))


def whitening_of(center: Array, covariance: Array) -> Whitening:
    """Whitening by a covariance around a centre."""
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    if eigenvalues[0] <= 1e-12 * eigenvalues[-1]:
        raise ValueError(
            "The representation is degenerate: its pooled within-class covariance is singular "
            "(constant or duplicated features, or too few distinct cells)."
        )
    return Whitening(torch.from_numpy(center), torch.from_numpy(eigenvectors / np.sqrt(eigenvalues)))


def overlap_weights(
    log_density: Array, y: NDArray[np.integer], n_classes: int, *, pseudo_count: float = 1.0, n_iterations: int = 300
) -> Array:
    """Class-specific weights of the shared components by EM.

    Parameters
    ----------
    log_density
        Held-out log density of every cell under every component, ``(n, n_components)``; the components are ordered by
        class, then by scale.
    y
        Class indices, ``(n,)``.
    n_classes
        Number of classes.
    pseudo_count
        Weight, in cells, of the prior that 9 in 10 cells of a class come from its own Gaussian.
    n_iterations
        Number of EM iterations.

    Returns
    -------
    Weights ``(n_classes, n_components)``, rows sum to one.
    """
    n_scales = log_density.shape[1] // n_classes
    prior = np.repeat(0.9 * np.eye(n_classes) + 0.1 / n_classes, n_scales, axis=1) / n_scales
    # the weights of a class depend on its own cells alone
    return np.stack(
        [
            mixture_weights(log_density[y == k], pseudo_count * prior[k], n_iterations=n_iterations)
            for k in range(n_classes)
        ]
    )


def mixture_weights(log_density: Array, pseudo_counts: Array, *, n_iterations: int = 300) -> Array:
    """Weights of the components of a mixture by EM, ``(n_components,)``.

    Parameters
    ----------
    log_density
        Held-out log density of every cell under every component, ``(n, n_components)``, up to a number per cell.
    pseudo_counts
        Cells that every component is given beforehand, ``(n_components,)``; EM starts at their shares.
    n_iterations
        Number of EM iterations.
    """
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    weights = pseudo_counts / pseudo_counts.sum()
    for _ in range(n_iterations):
        counts = weights * ((1 / np.maximum(density @ weights, 1e-300)) @ density) + pseudo_counts
        weights = counts / counts.sum()
    return weights


def _held_out_densities(fold: Fold, shape: ReferenceShape, n_classes: int) -> Array:
    """Log density of the held-out cells of a fold under every component, up to a constant per fold."""
    whitening = pooled_whitening(fold.x_train[:, : shape.n_features], fold.y_train, n_classes)
    center, matrix = whitening.center.numpy(), whitening.matrix.numpy()
    z_train, z = ((x[:, : shape.n_features] - center) @ matrix for x in (fold.x_train, fold.x_held_out))
    means, variances, axes = _class_gaussians(z_train, fold.y_train, n_classes, shape)
    scales = shape.inflation * np.asarray(SCALES)
    out = np.empty((len(z), n_classes, len(scales)))
    for k in range(n_classes):
        offsets = z - means[k] if axes is None else (z - means[k]) @ axes[k]
        square = (offsets**2 / variances[k]).sum(1)
        log_volume = np.log(variances[k]).sum() + len(means[k]) * np.log(scales)
        out[:, k] = -0.5 * (square[:, None] / scales + log_volume)
    return out.reshape(len(z), -1)


def _class_gaussians(
    z: Array, y: NDArray[np.integer], n_classes: int, shape: ReferenceShape
) -> tuple[Array, Array, Array | None]:
    """Means, covariance eigenvalues and eigenvectors of the classes in whitened space.

    Regularised discriminant analysis: the covariance of a class is blended with the pooled one (the identity), the more
    so the fewer cells the class has.
    """
    n_features = z.shape[1]
    means = _class_means(z, y, n_classes)
    variances = np.ones((n_classes, n_features))
    if shape.class_covariance == 0:
        return means, variances, None
    axes = np.empty((n_classes, n_features, n_features))
    identity = np.eye(n_features)
    for k in range(n_classes):
        cells = z[y == k] - means[k]
        own = cells.T @ cells / max(len(cells) - 1, 1)
        own = (1 - shape.isotropy) * own + shape.isotropy * np.trace(own) / n_features * identity
        amount = shape.class_covariance * len(cells) / (len(cells) + n_features)
        variances[k], axes[k] = np.linalg.eigh((1 - amount) * identity + amount * own)
    return means, variances, axes


def _class_means(x: Array, y: NDArray[np.integer], n_classes: int) -> Array:
    counts = np.bincount(y, minlength=n_classes)
    if (counts == 0).any():
        raise ValueError(
            f"Every class needs at least one cell in every split; classes without: {np.flatnonzero(counts == 0)}."
        )
    sums = np.zeros((n_classes, x.shape[1]))
    np.add.at(sums, y, x)
    return sums / counts[:, None]


def _mix(log_density: Array, weights: Array) -> Array:
    """Class log densities ``(n, n_classes)`` from component log densities."""
    highest = log_density.max(axis=1, keepdims=True)
    return np.log(np.maximum(np.exp(log_density - highest) @ weights.T, 1e-300)) + highest
