r"""Linear readout: a discriminative classifier pooled with the diffusion's class log-likelihoods, on the diffusion's own log p(x).

The density of every class is fitted to its cells and says where they are; a linear classifier of the same features is fitted to the
borders between classes and says nothing else. The pool of the two,

.. math:: u_c(z) = a \log p(z \mid c) + w_c \cdot z + b_c ,

has the better posterior wherever few cells fix many parameters. With :math:`p(z)` left to the diffusion, the joint density
:math:`p(z, c) = p(z)\,\mathrm{softmax}_c(u_c + \log\pi_c)` is normalised (derivation page, *Readout*).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from scscore.core.calibration import Array, fit_pool, log_posterior
from scscore.core.reference_fit import Whitening
from scscore.core.schedule import NoiseSchedule
from scscore.core.thinning import evenly_spread

PENALTIES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
"""Those of the classifier that are compared: factors on half its squared weights beside the mean loss of a cell, for features of unit mean variance."""
_ENOUGH_CELLS = 10_000  # for the choice of the penalty
_LEAST_CELLS = 10  # of every class
_MOST_ITERATIONS = 300
_NEGLIGIBLE = 2.0  # nats, of all held-out cells together


class Readout(nn.Module, ABC):
    r"""What is pooled with the log-likelihoods of a diffusion, and leaves its log p(z) alone.

    Parameters
    ----------
    exponent
        :math:`a`, what the log-likelihoods weigh in the pool.
    log_prior
        Log prior for which the pool leaves :math:`\log p(z)` alone, nats, ``(n_classes,)``; of a continuous target, of the bins.
    to_bins
        Linear map ``(n_nodes, n_bins)`` of the log-likelihoods at the nodes of a continuous target; ``None`` for classes.
    """

    exponent: Tensor
    log_prior: Tensor
    to_bins: Tensor | None

    def __init__(self, exponent: Tensor, log_prior: Tensor, to_bins: Tensor | None = None) -> None:
        super().__init__()
        for name, value in {"exponent": exponent, "log_prior": log_prior, "to_bins": to_bins}.items():
            self.register_buffer(name, None if value is None else value.to(torch.float64))

    @abstractmethod
    def expert(self, z: Tensor, lam: Tensor | None) -> Tensor:
        """Its log-ratios times their weight, of points ``(..., n_features)`` at a log SNR (``None``: clean), nats ``(..., n_classes)``."""

    def pooled(
        self, log_likelihood: Tensor, z: Tensor, *, lam: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        r"""The pool :math:`u_c`, nats, up to a number that all classes share.

        Parameters
        ----------
        log_likelihood
            Of the classes, nats, shape ``(..., n_classes)``, or ``(..., n_wanted)``.
        z
            Points, shape ``(..., n_features)``.
        lam
            Their log SNR, a scalar; ``None``: clean.
        classes
            The classes that `log_likelihood` is of, ``(..., n_wanted)``; ``None``: all.
        """
        own = self.expert(z, lam)
        if classes is not None:
            own = own.gather(-1, classes)
        return self.exponent * log_likelihood + own

    def normaliser(self, log_likelihood: Tensor, z: Tensor) -> Tensor:
        """What is added to the pool of all classes so that its mixture over the prior is that of `log_likelihood`, nats ``(..., 1)``."""
        values = log_likelihood, self.pooled(log_likelihood, z)
        if self.to_bins is not None:
            values = values[0] @ self.to_bins, values[1] @ self.to_bins
        return normaliser(*values, self.log_prior)

    def forward(self, log_likelihood: Tensor, z: Tensor) -> Tensor:
        """Log-likelihoods whose posterior is that of the pool and whose mixture over the prior is that of `log_likelihood`, nats."""
        return self.pooled(log_likelihood, z) + self.normaliser(log_likelihood, z)

    def members(self) -> list[Readout]:
        """One readout for every network of an ensemble."""
        return [self]


def normaliser(log_likelihood: Tensor, pooled: Tensor, log_prior: Tensor) -> Tensor:
    """What is added to pooled log-likelihoods ``(..., n_classes)`` so that their mixture over a log prior is the unpooled one, nats ``(..., 1)``."""
    return (log_likelihood + log_prior).logsumexp(-1, keepdim=True) - (pooled + log_prior).logsumexp(-1, keepdim=True)


class LinearReadout(Readout):
    r"""Pools the log-likelihoods of the classes with a linear classifier.

    Noised to log SNR :math:`\lambda`, a linear log-ratio is that of two Gaussians of unit variance, hence
    :math:`\alpha\,w_c \cdot z_\lambda + \alpha^2 b_c`.

    Parameters
    ----------
    weight, bias
        Of the classifier, nats per unit ``(n_classes, n_features)`` and nats ``(n_classes,)``, times its weight in the pool; without the prior
        of the classes.
    exponent, log_prior
        As in :class:`Readout`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, exponent: Tensor, log_prior: Tensor) -> None:
        super().__init__(exponent, log_prior)
        for name, value in {"weight": weight, "bias": bias}.items():
            self.register_buffer(name, value.to(torch.float64))

    def expert(self, z: Tensor, lam: Tensor | None) -> Tensor:
        """See :meth:`Readout.expert`."""
        alpha = 1.0 if lam is None else NoiseSchedule.alpha(lam).to(torch.float64)
        return alpha * (z.to(torch.float64) @ self.weight.T) + alpha**2 * self.bias


class ReadoutRun(NamedTuple):
    """A validation run of the diffusion: its cells, before whitening, and the log-likelihoods of the held-out ones."""

    whitening: Whitening
    x_train: Array
    y_train: NDArray[np.integer]
    x_held_out: Array
    y_held_out: NDArray[np.integer]
    log_likelihood: Array


class ReadoutChoice(NamedTuple):
    """What is chosen on held-out cells.

    Attributes
    ----------
    penalty, whitened
        Of the classifier, and whether the features are whitened before it.
    of_diffusion, of_classifier
        Weights in the pool.
    """

    penalty: float
    whitened: bool
    of_diffusion: float
    of_classifier: float


def choose_readout(runs: Sequence[ReadoutRun], log_prior: Array) -> ReadoutChoice:
    """Penalty and weights with the lowest negative log posterior of held-out cells.

    Features are penalised as they are, so that components of little variance count little, or whitened; whichever is better. Of the penalties
    within one standard error (or two nats in all) of the best, the strongest is taken.

    Parameters
    ----------
    runs
        Validation runs of the diffusion.
    log_prior
        Log prior of the classes, nats, ``(n_classes,)``.
    """
    n_classes = len(log_prior)
    y, values = (np.concatenate(part) for part in zip(*((r.y_held_out, r.log_likelihood) for r in runs), strict=True))
    found: list[tuple[ReadoutChoice, Array]] = []
    for whitened in (True, False):
        paths = [_classifiers(run, n_classes, PENALTIES, whitened=whitened) for run in runs]
        for i, penalty in enumerate(PENALTIES):
            of_runs = [_logits(run.x_held_out, run.whitening, path[i]) for run, path in zip(runs, paths, strict=True)]
            linear = np.concatenate(of_runs)
            weights, offsets = fit_pool([values, linear], log_prior, y)
            log_p = log_posterior(weights[0] * values + weights[1] * linear, log_prior + offsets)
            choice = ReadoutChoice(penalty, whitened, *weights.tolist())
            found.append((choice, -log_p[np.arange(len(y)), y]))
    best, lowest = min(found, key=lambda pair: pair[1].mean())
    for choice, losses in found:  # from the strongest penalty
        difference = losses - lowest
        chance = max(float(difference.std()) * np.sqrt(len(difference)), _NEGLIGIBLE)
        if choice.whitened == best.whitened and difference.sum() <= chance:
            break
    return choice


def fit_readout(
    x: Array, y: NDArray[np.integer], whitening: Whitening, choice: ReadoutChoice, log_prior: Array
) -> LinearReadout:
    """The readout of chosen penalty and weights, with the classifier fitted to cells ``(n, n_features)``."""
    run = ReadoutRun(whitening, x, y, x[:0], y[:0], x[:0])
    ((weight, bias),) = _classifiers(run, len(log_prior), [choice.penalty], whitened=choice.whitened, at_most=None)
    scale = choice.of_classifier
    parts = scale * weight, scale * bias, np.asarray(choice.of_diffusion), log_prior
    return LinearReadout(*(torch.from_numpy(part) for part in parts))


def _logits(x: Array, whitening: Whitening, classifier: tuple[Array, Array]) -> Array:
    weight, bias = classifier
    return whitening(torch.from_numpy(x)).numpy().astype(np.float64) @ weight.T + bias


def _classifiers(
    run: ReadoutRun,
    n_classes: int,
    penalties: Sequence[float],
    *,
    whitened: bool,
    at_most: int | None = _ENOUGH_CELLS,
) -> list[tuple[Array, Array]]:
    """Weights and biases, on whitened points, of logistic regressions from the strongest penalty to the weakest, without the prior."""
    center, matrix = run.whitening.center.numpy(), run.whitening.matrix.numpy()
    rows = np.arange(len(run.y_train))
    if at_most is not None and len(rows) > at_most:
        rare = [np.flatnonzero(run.y_train == k)[:_LEAST_CELLS] for k in range(n_classes)]
        rows = np.unique(np.concatenate([evenly_spread(len(rows), at_most), *rare]))
    x, y = run.x_train[rows, : len(center)], run.y_train[rows]
    features = (x - center) @ matrix if whitened else x - center
    mean, scale = features.mean(0), np.sqrt(features.var(0).mean())
    present, counts = np.unique(y, return_counts=True)
    model = LogisticRegression(max_iter=_MOST_ITERATIONS, tol=1e-4, warm_start=True)
    out = []
    for penalty in penalties:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a classifier that stops early is a smoother one
            model.set_params(C=1 / (penalty * len(y))).fit((features - mean) / scale, y)
        own, intercept = model.coef_ / scale, model.intercept_
        if len(present) == 2:
            own, intercept = np.concatenate([-own / 2, own / 2]), np.concatenate([-intercept / 2, intercept / 2])
        intercept = intercept - own @ mean - np.log(counts / counts.sum())
        weight, bias = np.zeros((n_classes, len(center))), np.full(n_classes, intercept.min())
        weight[present] = own if whitened else np.linalg.solve(matrix, own.T).T
        bias[present] = intercept
        out.append((weight, bias))
    return out
