r"""Linear readout: a discriminative classifier pooled with the diffusion's class log-likelihoods, on the diffusion's own log p(x).

The density of every class is fitted to its cells and says where they are; a linear classifier of the same features is fitted to the
borders between classes and says nothing else. The pool of the two,

.. math:: u_c(z) = a \log p(z \mid c) + w_c \cdot z + b_c ,

has the better posterior wherever few cells fix many parameters. With :math:`p(z)` left to the diffusion, the joint density
:math:`p(z, c) = p(z)\,\mathrm{softmax}_c(u_c + \log\pi_c)` is normalised (derivation page, *Readout*). Where the representation comes with class scores
:math:`s_c` of a second classifier, one of single genes that the features hold little of, these are pooled as well: :math:`u_c + b\,s_c`.
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
from scscore.core.reference_fit import Whitening, clearly_worse
from scscore.core.schedule import NoiseSchedule
from scscore.core.thinning import evenly_spread

PENALTIES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
"""Those of the classifier that are compared: factors on half its squared weights beside the mean loss of a cell, for features of unit mean variance."""
ENOUGH_CELLS = 10_000
"""With so many, a linear classifier is known well enough to compare it with others."""
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
        """Its log-ratios times their weight, of points ``(..., n_features + n_scores)`` at a log SNR (``None``: clean), nats ``(..., n_classes)``."""

    def pooled(
        self, log_likelihood: Tensor, z: Tensor, *, lam: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        r"""The pool :math:`u_c`, nats, up to a number that all classes share.

        Parameters
        ----------
        log_likelihood
            Of the classes, nats, shape ``(..., n_classes)``, or ``(..., n_wanted)``.
        z
            Points, shape ``(..., n_features + n_scores)``.
        lam
            Their log SNR, a scalar; ``None``: clean. Class scores are those of the clean points.
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
    :math:`\alpha\,w_c \cdot z_\lambda + \alpha^2 b_c`. Class scores do not come from :math:`z` alone: of a noised cell they are :math:`\alpha^2 s_c`, the mean of
    such a log-ratio.

    Parameters
    ----------
    weight, bias
        Of the classifier, nats per unit ``(n_classes, n_features)`` and nats ``(n_classes,)``, times its weight in the pool; without the prior
        of the classes.
    exponent, log_prior
        As in :class:`Readout`.
    of_scores
        What the class scores weigh in the log-ratio of every class, ``(n_classes, n_scores)``; ``None``: there are none.
    score_slopes, score_bias
        Class scores of a point that is known by its features only, such as the mean of a class (:meth:`completed`): nats per unit ``(n_features, n_scores)`` and
        nats ``(n_scores,)``.
    """

    weight: Tensor
    bias: Tensor
    of_scores: Tensor
    score_slopes: Tensor
    score_bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        exponent: Tensor,
        log_prior: Tensor,
        of_scores: Tensor | None = None,
        score_slopes: Tensor | None = None,
        score_bias: Tensor | None = None,
    ) -> None:
        super().__init__(exponent, log_prior)
        (n_classes, n_features), n_scores = weight.shape, 0 if of_scores is None else of_scores.shape[1]
        buffers = {
            "weight": weight,
            "bias": bias,
            "of_scores": weight.new_zeros(n_classes, 0) if of_scores is None else of_scores,
            "score_slopes": weight.new_zeros(n_features, n_scores) if score_slopes is None else score_slopes,
            "score_bias": weight.new_zeros(n_scores) if score_bias is None else score_bias,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(torch.float64))

    def completed(self, z: Tensor) -> Tensor:
        """Points ``(..., n_features)`` with the class scores of what their features alone make of a cell, ``(..., n_features + n_scores)``."""
        return torch.cat([z, (z.to(torch.float64) @ self.score_slopes + self.score_bias).to(z.dtype)], dim=-1)

    def expert(self, z: Tensor, lam: Tensor | None) -> Tensor:
        """See :meth:`Readout.expert`.

        Raises
        ------
        ValueError
            The points have other columns than features and class scores.
        """
        if z.shape[-1] != sum(self.score_slopes.shape):
            n_features, n_scores = self.score_slopes.shape
            raise ValueError(
                f"points have {z.shape[-1]} columns; the readout needs {n_features} features and {n_scores} class scores."
            )
        alpha = 1.0 if lam is None else NoiseSchedule.alpha(lam).to(torch.float64)
        own, scores = z.to(torch.float64).tensor_split([len(self.score_slopes)], dim=-1)
        return alpha * (own @ self.weight.T) + alpha**2 * (self.bias + scores @ self.of_scores.T)


class ScoreMap(NamedTuple):
    """Class scores of a cell that is known by the features of the representation only, ``x @ slopes + bias``.

    Attributes
    ----------
    slopes
        Nats per unit, ``(n_features, n_scores)``.
    bias
        Nats, ``(n_scores,)``.
    """

    slopes: Array
    bias: Array

    @property
    def n_scores(self) -> int:
        """Number of class scores."""
        return len(self.bias)

    def whitened(self, whitening: Whitening) -> tuple[Tensor, Tensor]:
        """Slopes and bias in the whitened space of the leading features."""
        slopes, bias = torch.from_numpy(self.slopes[: len(whitening.center)]), torch.from_numpy(self.bias)
        return torch.linalg.solve(whitening.matrix, slopes), whitening.center @ slopes + bias


class ReadoutRun(NamedTuple):
    """A validation run of the diffusion: its cells, before whitening, and the log-likelihoods of the held-out ones.

    The last `n_scores` columns of the cells are class scores.
    """

    whitening: Whitening
    x_train: Array
    y_train: NDArray[np.integer]
    x_held_out: Array
    y_held_out: NDArray[np.integer]
    log_likelihood: Array
    n_scores: int = 0


class ReadoutChoice(NamedTuple):
    """What is chosen on held-out cells.

    Attributes
    ----------
    penalty, whitened
        Of the classifier, and whether the features are whitened before it.
    of_diffusion, of_classifier, of_scores
        Weights in the pool; the last is zero where class scores are of no use, or there are none.
    """

    penalty: float
    whitened: bool
    of_diffusion: float
    of_classifier: float
    of_scores: float = 0.0


def choose_readout(runs: Sequence[ReadoutRun], log_prior: Array) -> ReadoutChoice:
    """Penalty and weights with the lowest negative log posterior of held-out cells.

    Features are penalised as they are, so that components of little variance count little, or whitened; whichever is better. Of the penalties
    within one standard error (or two nats in all) of the best, the strongest is taken. Class scores are pooled where that gains more than a standard error.

    Parameters
    ----------
    runs
        Validation runs of the diffusion.
    log_prior
        Log prior of the classes, nats, ``(n_classes,)``.
    """
    n_classes = len(log_prior)
    y, values = (np.concatenate(part) for part in zip(*((r.y_held_out, r.log_likelihood) for r in runs), strict=True))
    scores = np.concatenate([run.x_held_out[:, run.x_held_out.shape[1] - run.n_scores :] for run in runs])
    without: list[_Tried] = []
    with_scores: list[_Tried] = []
    for whitened in (True, False):
        paths = [_classifiers(run, n_classes, PENALTIES, whitened=whitened) for run in runs]
        for i, penalty in enumerate(PENALTIES):
            of_runs = [_logits(run.x_held_out, run.whitening, path[i]) for run, path in zip(runs, paths, strict=True)]
            experts = [values, np.concatenate(of_runs)]
            without.append(_tried(experts, y, log_prior, penalty, whitened=whitened))
            if scores.shape[1]:
                with_scores.append(_tried([*experts, scores], y, log_prior, penalty, whitened=whitened))
    choice, losses = _strongest(without)
    if with_scores:
        other, lower = _strongest(with_scores)
        if clearly_worse(losses, lower):
            return other
    return choice


_Tried = tuple[ReadoutChoice, Array]  # with the negative log posterior of every held-out cell


def _tried(
    experts: Sequence[Array], y: NDArray[np.integer], log_prior: Array, penalty: float, *, whitened: bool
) -> _Tried:
    weights, offsets = fit_pool(experts, log_prior, y)
    log_p = log_posterior(np.tensordot(weights, np.stack(experts), 1), log_prior + offsets)
    return ReadoutChoice(penalty, whitened, *weights.tolist()), -log_p[np.arange(len(y)), y]


def _strongest(tried: Sequence[_Tried]) -> _Tried:
    """What has the strongest penalty, the first, of those that are as good as the best."""
    best, lowest = min(tried, key=lambda pair: pair[1].mean())
    for choice, losses in tried:
        difference = losses - lowest
        chance = max(float(difference.std()) * np.sqrt(len(difference)), _NEGLIGIBLE)
        if choice.whitened == best.whitened and difference.sum() <= chance:
            break
    return choice, losses


def fit_readout(
    x: Array,
    y: NDArray[np.integer],
    whitening: Whitening,
    choice: ReadoutChoice,
    log_prior: Array,
    scores: ScoreMap | None = None,
) -> LinearReadout:
    """The readout of chosen penalty and weights, with the classifier fitted to cells ``(n, >= n_features)``."""
    run = ReadoutRun(whitening, x, y, x[:0], y[:0], x[:0])
    ((weight, bias),) = _classifiers(run, len(log_prior), [choice.penalty], whitened=choice.whitened, at_most=None)
    scale = choice.of_classifier
    parts = [
        torch.from_numpy(part) for part in (scale * weight, scale * bias, np.asarray(choice.of_diffusion), log_prior)
    ]
    if scores is not None and scores.n_scores:
        parts += [choice.of_scores * torch.eye(scores.n_scores), *scores.whitened(whitening)]
    return LinearReadout(*parts)


def _logits(x: Array, whitening: Whitening, classifier: tuple[Array, Array]) -> Array:
    weight, bias = classifier
    return whitening(torch.from_numpy(x)).numpy().astype(np.float64) @ weight.T + bias


def _classifiers(
    run: ReadoutRun,
    n_classes: int,
    penalties: Sequence[float],
    *,
    whitened: bool,
    at_most: int | None = ENOUGH_CELLS,
) -> list[tuple[Array, Array]]:
    """Weights and biases, on whitened points, of logistic regressions from the strongest penalty to the weakest, without the prior."""
    center, matrix = run.whitening.center.numpy(), run.whitening.matrix.numpy()
    rows = some_cells(run.y_train, n_classes, at_most)
    x, y = run.x_train[rows, : len(center)], run.y_train[rows]
    features = (x - center) @ matrix if whitened else x - center
    found = linear_classifiers(features, y, n_classes, penalties)
    return found if whitened else [(np.linalg.solve(matrix, weight.T).T, bias) for weight, bias in found]


def some_cells(y: NDArray[np.integer], n_classes: int, at_most: int | None = ENOUGH_CELLS) -> NDArray[np.integer]:
    """Rows of evenly spread cells, with a few of every class; all where there are not so many."""
    if at_most is None or len(y) <= at_most:
        return np.arange(len(y))
    rare = [np.flatnonzero(y == k)[:_LEAST_CELLS] for k in range(n_classes)]
    return np.unique(np.concatenate([evenly_spread(len(y), at_most), *rare]))


def linear_classifiers(
    x: Array, y: NDArray[np.integer], n_classes: int, penalties: Sequence[float]
) -> list[tuple[Array, Array]]:
    """Logistic regressions of features ``(n, n_features)``, one for every penalty, from the strongest on.

    Returns
    -------
    Weights ``(n_classes, n_features)`` and biases ``(n_classes,)`` of the log-ratios of the classes, nats, without the prior. A class without cells gets the lowest
    bias of the others.
    """
    mean, scale = x.mean(0), np.sqrt(x.var(0).mean()) or 1.0  # constant features have nothing to say
    present, counts = np.unique(y, return_counts=True)
    model = LogisticRegression(max_iter=_MOST_ITERATIONS, tol=1e-4, warm_start=True)
    out = []
    for penalty in penalties:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a classifier that stops early is a smoother one
            model.set_params(C=1 / (penalty * len(y))).fit((x - mean) / scale, y)
        own, intercept = model.coef_ / scale, model.intercept_
        if len(present) == 2:
            own, intercept = np.concatenate([-own / 2, own / 2]), np.concatenate([-intercept / 2, intercept / 2])
        intercept = intercept - own @ mean - np.log(counts / counts.sum())
        weight, bias = np.zeros((n_classes, x.shape[1])), np.full(n_classes, intercept.min())
        weight[present], bias[present] = own, intercept
        out.append((weight, bias))
    return out
