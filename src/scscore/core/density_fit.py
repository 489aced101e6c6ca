"""Reference of a model without classes: one Gaussian mixture for all cells, its size chosen by cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import (
    Array,
    Fold,
    ReferenceFit,
    ReferenceShape,
    Whitening,
    clearly_worse,
    pooled_whitening,
)
from scscore.core.thinning import evenly_spread

N_COMPONENTS = (1, 2, 4, 8, 16, 32)
_CELLS_PER_COMPONENT = 20
_MAX_CELLS = 20_000
_REGULARISATION = 1e-3  # added to the variances, in whitened space


def fit_density(folds: Sequence[Fold], x: Array, *, seed: int = 0) -> ReferenceFit:
    """Choose the number of components by the held-out log density and fit the mixture.

    More components are taken as long as they are clearly better: by more than one standard error of the paired difference.

    Parameters
    ----------
    folds
        Cross-validation splits.
    x
        Representation of all cells, ``(n, n_features)``; all features are used.
    seed
        Seed of the initialisation.
    """
    smallest = min(len(fold.x_train) for fold in folds)
    candidates = [m for m in N_COMPONENTS if m == 1 or m * _CELLS_PER_COMPONENT <= smallest]
    losses = {m: np.concatenate([_held_out_loss(fold, m, seed) for fold in folds]) for m in candidates}
    chosen = candidates[0]
    for m in candidates[1:]:
        if clearly_worse(losses[chosen], losses[m]):
            chosen = m
    shape = ReferenceShape(x.shape[1], class_covariance=1.0, n_components=chosen)
    whitening, reference = build_density(x, shape, seed=seed)
    return ReferenceFit(
        whitening=whitening,
        reference=reference,
        shape=shape,
        nll=float(losses[chosen].mean()),
        accuracy=1.0,
        losses=losses[chosen],
        held_out=[],
    )


def build_density(x: Array, shape: ReferenceShape, *, seed: int = 0) -> tuple[Whitening, GaussianReference]:
    """Fit whitening and a mixture of a given number of components to the cells `x`."""
    whitening = pooled_whitening(x, np.zeros(len(x), dtype=np.int64), 1)
    mixture = _fit(_apply(whitening, x), shape.n_components, seed)
    variances, axes = np.linalg.eigh(mixture.covariances_)
    reference = GaussianReference(
        torch.from_numpy(mixture.means_),
        torch.from_numpy(mixture.weights_[None] / mixture.weights_.sum()),
        torch.from_numpy(variances),
        torch.from_numpy(axes),
    )
    return whitening, reference


def _held_out_loss(fold: Fold, n_components: int, seed: int) -> Array:
    """Negative log density of the held-out cells, nats, in the units of the representation."""
    whitening = pooled_whitening(fold.x_train, np.zeros(len(fold.x_train), dtype=np.int64), 1)
    mixture = _fit(_apply(whitening, fold.x_train), n_components, seed)
    return -mixture.score_samples(_apply(whitening, fold.x_held_out)) - whitening.log_abs_det


def _fit(z: Array, n_components: int, seed: int) -> GaussianMixture:
    some = z[evenly_spread(len(z), _MAX_CELLS)]
    mixture = GaussianMixture(n_components, reg_covar=_REGULARISATION, max_iter=200, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the network learns what the mixture does not
        return mixture.fit(some)


def _apply(whitening: Whitening, x: Array) -> Array:
    return (x - whitening.center.numpy()) @ whitening.matrix.numpy()
