"""Posterior from log-likelihoods, its calibration, prior shift, and the metrics that judge both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

Array = NDArray[np.float64]

TEMPERATURE_BOUNDS = (0.1, 3.0)
_BOUNDS_OF_VALUES = (0.1, 10.0)
_LOG_TEMPERATURE_SD = 0.5
_LOG_WEIGHT_SD = 1.0
_OFFSET_SD = 0.3  # nats
_MOST_ITERATIONS = 1000
_MOST_WEIGHT = 5.0


@dataclass(frozen=True)
class Calibration:
    """What turns raw log-likelihoods into a posterior, and the sampling effort it was fitted for.

    The posterior is ``softmax(temperature * log_likelihood + offsets + log_prior)``; without offsets these are zero. `density_temperature` is
    that of the log-likelihoods without the readout of a continuous target.
    """

    temperature: float = 1.0
    offsets: tuple[float, ...] = ()
    n_steps: int = 4
    n_paths: int = 8
    density_temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", tuple(self.offsets))  # JSON has lists

    def log_weights(self, log_prior: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is added to the tempered log-likelihoods: log prior and class offsets, nats ``(n_classes,)``."""
        return log_prior + np.asarray(self.offsets) if self.offsets else log_prior


def log_posterior(log_likelihood: ArrayLike, log_prior: ArrayLike, temperature: float = 1.0) -> Array:
    r"""Log posterior :math:`\log\mathrm{softmax}_c(T \log p_c(x) + \log\pi_c)`.

    Parameters
    ----------
    log_likelihood
        Nats, shape ``(n, n_classes)``.
    log_prior
        Nats, shape ``(n_classes,)``; ``-inf`` excludes a class.
    temperature
        Factor on the log-likelihoods, :math:`T`. Below one softens the posterior. The prior is never tempered.
    """
    return log_softmax(temperature * np.asarray(log_likelihood, dtype=np.float64) + np.asarray(log_prior), axis=1)


def fit_calibration(log_likelihood: ArrayLike, log_prior: ArrayLike, y: ArrayLike) -> tuple[float, Array]:
    r"""Temperature and class offsets that minimise the negative log posterior of held-out cells.

    The calibrated log-likelihood is :math:`T\log p_c(x) + b_c`. A log-normal prior on the temperature (standard deviation 0.5
    around one) with the bounds `TEMPERATURE_BOUNDS`, and a normal one on the offsets (standard deviation 0.3 nats around
    zero) keep both finite when the held-out cells happen to be perfectly separated.

    Cells are weighted to the class frequencies of the prior (by a factor of five at most), so that the offsets do not learn those of the held-out
    cells, which differ where whole donors or guides are held out.

    Parameters
    ----------
    log_likelihood
        Nats, shape ``(n, n_classes)``.
    log_prior
        Nats, shape ``(n_classes,)``.
    y
        Class indices, shape ``(n,)``.

    Returns
    -------
    The temperature, and the offsets in nats, ``(n_classes,)``.
    """
    weights, offsets = fit_pool([log_likelihood], log_prior, y)
    return float(weights[0]), offsets


def fit_pool(experts: Sequence[ArrayLike], log_prior: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    r"""Weights of a logarithmic opinion pool, and class offsets, as in :func:`fit_calibration`.

    The calibrated log-likelihood is :math:`\sum_e w_e \log p_e(x \mid c) + b_c`. The prior of the weights is log-normal around equal ones that sum
    to one, with a standard deviation of one (of a single expert, .5): no expert is ruled out by a handful of cells. Source: Genest and Zidek 1986.

    Parameters
    ----------
    experts
        Log-likelihoods of every expert, up to a number per cell, nats, each of shape ``(n, n_classes)``.
    log_prior, y
        As in :func:`fit_calibration`.

    Returns
    -------
    Weights, all positive, ``(n_experts,)``, and the offsets in nats, ``(n_classes,)``.
    """
    log_prior, y, n = np.asarray(log_prior), np.asarray(y), len(experts)
    values = np.stack([np.asarray(expert, dtype=np.float64) for expert in experts])
    rows, n_classes = np.arange(len(y)), values.shape[2]
    counts = np.bincount(y, minlength=n_classes)
    ratio = np.clip(np.exp(log_prior) * len(y) / np.maximum(counts, 1), 1 / _MOST_WEIGHT, _MOST_WEIGHT)
    of_cell = ratio[y] * len(y) / ratio[y].sum()
    expected = np.bincount(y, weights=of_cell, minlength=n_classes)
    values = values - values[:, rows, y][:, :, None]  # relative to the true class, which changes nothing
    center, sd, (low, high) = -np.log(n), _LOG_TEMPERATURE_SD if n == 1 else _LOG_WEIGHT_SD, TEMPERATURE_BOUNDS

    def objective(parameters: Array) -> tuple[float, Array]:
        logs, offsets = parameters[:n], parameters[n:]
        log_p = log_posterior(np.tensordot(np.exp(logs), values, 1), log_prior + offsets)
        p, deviation = np.exp(log_p), (logs - center) / sd
        penalty = 0.5 * (deviation @ deviation + offsets @ offsets / _OFFSET_SD**2)
        slope = np.exp(logs) * ((p * values).sum(2) @ of_cell) + deviation / sd
        gradient = np.concatenate([slope, of_cell @ p - expected + offsets / _OFFSET_SD**2])
        return -of_cell @ log_p[rows, y] + penalty, gradient

    bounds = [(np.log(low / n**2), np.log(high))] * n + [(None, None)] * n_classes
    start = np.concatenate([np.full(n, center), np.zeros(n_classes)])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, tol=1e-10)
    return np.clip(np.exp(found.x[:n]), low / n**2, high), found.x[n:]


def fit_temperature(loss: Callable[[float], float], n: int) -> float:
    """The temperature that minimises a mean loss of `n` held-out cells, with the prior of :func:`fit_calibration`.

    Parameters
    ----------
    loss
        Mean negative log-likelihood, nats, of a temperature.
    n
        Number of cells.
    """
    found = minimize_scalar(
        lambda log_t: n * loss(float(np.exp(log_t))) + 0.5 * (log_t / _LOG_TEMPERATURE_SD) ** 2,
        bounds=tuple(np.log(_BOUNDS_OF_VALUES)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return float(np.exp(found.x))


def fit_weights(loss: Callable[[Array], float], n: int, n_experts: int) -> Array:
    """The weights of a logarithmic opinion pool that minimise a mean loss of `n` held-out cells, with the prior of :func:`fit_pool`, ``(n_experts,)``.

    Parameters
    ----------
    loss
        Mean negative log-likelihood, nats, of the weights.
    n, n_experts
        Numbers of cells and of experts.
    """
    center, (low, high) = -np.log(n_experts), TEMPERATURE_BOUNDS

    def objective(logs: Array) -> float:
        return n * loss(np.exp(logs)) + 0.5 * float(((logs - center) ** 2).sum()) / _LOG_WEIGHT_SD**2

    found = minimize(
        objective,
        np.full(n_experts, center),
        method="Nelder-Mead",
        bounds=[(np.log(low / n_experts**2), np.log(high))] * n_experts,
        options={"xatol": 1e-3, "fatol": 1e-3},
    )
    return np.exp(found.x)


def estimate_prior(
    log_likelihood: ArrayLike,
    log_prior: ArrayLike,
    temperature: float = 1.0,
    offsets: ArrayLike = 0.0,
    *,
    tolerance: float = 1e-6,
) -> Array:
    r"""Class frequencies of unlabelled cells by maximum likelihood, as a log prior, nats ``(n_classes,)``.

    The expectation-maximisation of Saerens et al. 2002: the posterior of every cell under the current frequencies, then
    frequencies that are its mean, until they change by less than `tolerance`. One cell is shared out according to
    `log_prior`, so that no class that it allows is ruled out for good.

    Parameters
    ----------
    log_likelihood
        Nats, shape ``(n, n_classes)``.
    log_prior
        Where to start, nats, ``(n_classes,)``.
    temperature, offsets
        Calibration of the log-likelihoods, see :func:`fit_calibration`.
    tolerance
        Largest change of a frequency at which to stop.
    """
    start = log_softmax(np.asarray(log_prior, dtype=np.float64))
    first, n = np.exp(start), len(np.asarray(log_likelihood))
    frequency = first
    for _ in range(_MOST_ITERATIONS):
        with np.errstate(divide="ignore"):
            posterior = np.exp(log_posterior(log_likelihood, np.log(frequency) + np.asarray(offsets), temperature))
        following = (posterior.sum(0) + first) / (n + 1)
        change = np.abs(following - frequency).max()
        frequency = following
        if change < tolerance:
            break
    with np.errstate(divide="ignore"):
        return np.log(frequency)


def entropy(log_posterior: ArrayLike) -> Array:
    """Entropy of every row of a log posterior, nats, ``(n,)``."""
    log_p = np.asarray(log_posterior)
    return -(np.exp(log_p) * np.maximum(log_p, -700.0)).sum(1)


def standard_error(draws: Array) -> Array:
    """Standard error of the mean over the first axis, where NaN means that a draw was not made; NaN for a single draw."""
    made = np.isfinite(draws)
    n = made.sum(0)
    mean = np.where(made, draws, 0).sum(0) / np.maximum(n, 1)
    square = np.where(made, (draws - mean) ** 2, 0).sum(0)
    return np.where(n > 1, np.sqrt(square / np.maximum(n - 1, 1) / np.maximum(n, 1)), np.nan)


def confidence_standard_error(draws: Array, log_posterior: Array, temperature: float) -> Array:
    r"""Monte-Carlo standard error of the highest posterior of every row, ``(n,)``, by the delta method.

    The confidence changes by :math:`p_b\,T\,(\ell_b - \sum_c p_c\ell_c)` per change :math:`\ell` of the log-likelihoods;
    the standard error is that of the mean of this functional over independent draws. NaN for a single draw.

    Parameters
    ----------
    draws
        Log-likelihoods, nats, ``(n_draws, n, n_classes)``; NaN where a draw was not made, for a point or for a class that
        cannot win.
    log_posterior
        Of their mean, ``(n, n_classes)``.
    temperature
        Factor on the log-likelihoods in the posterior.
    """
    posterior, best = np.exp(log_posterior), log_posterior.argmax(1)
    rows = np.arange(draws.shape[1])
    of_best = draws[:, rows, best]
    of_all = np.where(np.isfinite(draws), draws, np.nanmean(draws, axis=0))
    return temperature * posterior[rows, best] * standard_error(of_best - (of_all * posterior).sum(-1))


def negative_log_likelihood(posterior: ArrayLike, y: ArrayLike) -> float:
    """Mean negative log posterior of the true classes, nats, with probabilities clipped at 1e-9."""
    posterior, y = np.asarray(posterior, dtype=np.float64), np.asarray(y)
    return float(-np.log(np.clip(posterior[np.arange(len(y)), y], 1e-9, None)).mean())


def expected_calibration_error(posterior: ArrayLike, y: ArrayLike, n_bins: int = 15) -> float:
    """Expected calibration error of the most probable class over equal-width bins of its probability.

    Source: Guo et al. 2017, equation 3.
    """
    posterior, y = np.asarray(posterior, dtype=np.float64), np.asarray(y)
    confidence, correct = posterior.max(1), posterior.argmax(1) == y
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(y))
