r"""Closed-form reference of a continuous target: Gaussians whose means move smoothly with it, blurred along it.

.. math:: p(z \mid y) = \sum_m \sum_s w_{ms} \sum_k K_m(y, y_k)\, N(z;\, \mu_k,\, r_s I)

with one component for every node :math:`y_k` of the grid, and kernels :math:`K_m` of several widths: a measured value is noisy, and so is
what the features say about it. The few weights :math:`w` are fitted by expectation-maximisation on held-out cells (derivation page,
*Continuous targets*).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf

from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import (
    SCALES,
    Array,
    Candidate,
    Fold,
    ReferenceFit,
    ReferenceShape,
    Whitening,
    choose,
    mixture_weights,
    whitening_of,
)
from scscore.core.target import Predictive, TargetGrid, difference

# of the kernels, distances of the nodes; beside one that is linear between nodes, and a flat one
_WIDTHS = (0.5, 1.0, 2.0, 4.0)
# that have the mean of all, at every node: more would draw the ends, where cells are few, to the middle
_PSEUDO_CELLS = 0.01
_ROUGHNESS = 10.0  # cells that say that the means of three neighbouring nodes lie on a line


def fit_target_reference(
    folds: Sequence[Fold], x: Array, y: Array, *, grid: TargetGrid, log_prior: Array, n_features: Sequence[int]
) -> tuple[ReferenceFit, Callable[[Fold, int], tuple[Whitening, GaussianReference]]]:
    """Choose the number of features by cross-validation and fit the reference.

    Parameters
    ----------
    folds
        Splits for the choice, with values of the target as labels.
    x, y
        Representation ``(n, n_features)`` and values ``(n,)`` for the final fit.
    grid
        Nodes and bins.
    log_prior
        Log prior of the bins.
    n_features
        Candidates: numbers of leading features.

    Returns
    -------
    The reference, and a function from a split and its number to the reference of its training part, whose kernel weights come from the
    other splits. The field `accuracy` is a coefficient of determination.
    """
    values = np.concatenate([fold.y_held_out for fold in folds])
    soft = grid.soft_labels(values)
    candidates = []
    for d in n_features:
        held_out = [_node_densities(fold, d, grid) for fold in folds]
        of_nodes = np.concatenate(held_out)
        weights = _kernel_weights(_at_values(of_nodes, values, grid))
        log_density = logsumexp(of_nodes[:, None], axis=(2, 3), b=_mixed(grid, grid.value(grid.nodes), weights))
        joint = log_density @ grid.to_bins + log_prior
        log_posterior = joint - logsumexp(joint, axis=1, keepdims=True)
        mean = Predictive(grid, np.exp(log_posterior)).mean
        losses, r2 = -(soft * log_posterior).sum(1), grid.r2(values, mean)
        candidates.append(Candidate(ReferenceShape(d), losses, r2, weights, held_out))
    best = choose(candidates)
    whitening, reference = _build(x, y, best.shape.n_features, grid, best.weights)
    fit = ReferenceFit(
        whitening=whitening,
        reference=reference,
        shape=best.shape,
        nll=float(best.losses.mean()),
        accuracy=best.accuracy,
        losses=best.losses,
        held_out=[],
    )
    of_values = [_at_values(found, fold.y_held_out, grid) for found, fold in zip(best.held_out, folds, strict=True)]

    def of_fold(fold: Fold, i: int) -> tuple[Whitening, GaussianReference]:
        others = [density for j, density in enumerate(of_values) if j != i] or of_values
        weights = _kernel_weights(np.concatenate(others))
        return _build(fold.x_train, fold.y_train, best.shape.n_features, grid, weights)

    return fit, of_fold


def kernels(grid: TargetGrid, y: Array) -> Array:
    """Blur of values over the nodes, ``(n_kernels, n, n_nodes)``; rows sum to one."""
    nodes = grid.nodes
    distance = difference(grid.position(y)[:, None], nodes, grid.turn) / (nodes[1] - nodes[0])
    blurred = [np.exp(-0.5 * (distance / width) ** 2) for width in _WIDTHS]
    found = [grid.hats(y), *(kernel / kernel.sum(1, keepdims=True) for kernel in blurred)]
    return np.stack([*found, np.full_like(distance, 1 / len(nodes))])


def _mixed(grid: TargetGrid, y: Array, weights: Array) -> Array:
    """Weights of the components for some values, ``(n, n_nodes, n_scales)``."""
    return np.einsum("ms,mck->cks", weights.reshape(-1, len(SCALES)), kernels(grid, y))


def _build(x: Array, y: Array, d: int, grid: TargetGrid, weights: Array) -> tuple[Whitening, GaussianReference]:
    whitening, means = _whitened_means(x[:, :d], y, grid)
    mixed = _mixed(grid, grid.value(grid.nodes), weights)
    reference = GaussianReference(
        torch.from_numpy(means), torch.from_numpy(mixed.reshape(len(means), -1)), None, None, torch.tensor(SCALES)
    )
    return whitening, reference


def _whitened_means(x: Array, y: Array, grid: TargetGrid) -> tuple[Whitening, Array]:
    """Whitening by the covariance around the mean at the target, and the means of the nodes in the whitened space."""
    hats, center = grid.hats(y), x.mean(0)
    bends = np.diff(np.eye(hats.shape[1]), 2, axis=0)
    if grid.circular:
        bends = np.eye(hats.shape[1]) - 0.5 * (
            np.roll(np.eye(hats.shape[1]), 1, 1) + np.roll(np.eye(hats.shape[1]), -1, 1)
        )
    gram = hats.T @ hats + _PSEUDO_CELLS * np.eye(hats.shape[1]) + _ROUGHNESS * bends.T @ bends
    means = np.linalg.solve(gram, hats.T @ (x - center))
    covariance, _ = ledoit_wolf(x - center - hats @ means, assume_centered=True)
    whitening = whitening_of(center, covariance * len(x) / max(len(x) - hats.shape[1], 1))
    return whitening, means @ whitening.matrix.numpy()


def _node_densities(fold: Fold, d: int, grid: TargetGrid) -> Array:
    """Log density of the held-out cells of a fold under every component, ``(n, n_nodes, n_scales)``."""
    whitening, means = _whitened_means(fold.x_train[:, :d], fold.y_train, grid)
    z = (fold.x_held_out[:, :d] - whitening.center.numpy()) @ whitening.matrix.numpy()
    square = (z**2).sum(1)[:, None] - 2 * z @ means.T + (means**2).sum(1)
    scales = np.asarray(SCALES)
    return -0.5 * (square[..., None] / scales + d * np.log(scales)) + whitening.log_abs_det


def _at_values(log_density: Array, y: Array, grid: TargetGrid) -> Array:
    """Log density of every cell at its own value, by kernel and scale, ``(n, n_kernels * n_scales)``, up to a number per cell."""
    density = np.exp(log_density - log_density.max((1, 2), keepdims=True))
    found = np.einsum("mnk,nks->nms", kernels(grid, y), density)
    return np.log(np.maximum(found, 1e-300)).reshape(len(y), -1)


def _kernel_weights(log_density: Array) -> Array:
    """Weights of kernels and scales by expectation-maximisation, ``(n_kernels * n_scales,)``, from held-out log densities."""
    n = log_density.shape[1]
    return mixture_weights(log_density, np.full(n, 1 / n))
