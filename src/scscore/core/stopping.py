"""Adaptive effort: which points need more trajectories, and which of their classes cannot win any more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from scscore.core.calibration import Array, confidence_standard_error, log_posterior, standard_error


@dataclass(frozen=True)
class Stopping:
    """When the estimates of a point are good enough for a decision between the classes.

    All bounds are those of the 95 % interval by Student's t with the number of independent draws that were made, so that a
    lucky agreement of few draws does not pass for precision (derivation page, *Adaptive effort*).

    Attributes
    ----------
    log_prior
        Log prior of the classes, nats, ``(n_classes,)``.
    temperature
        Factor on the log-likelihoods in the posterior.
    precision
        A point is settled when the half-width of the interval of its highest posterior is below this number, and no other
        class can be the best one within the interval of its log-ratio.
    negligible
        A class is dropped when the upper bound of its posterior odds against the best class is below this number.
    """

    log_prior: Array
    temperature: float
    precision: float
    negligible: float = 1e-6

    def settled(self, draws: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Points that need no further draws, and classes that cannot win.

        Parameters
        ----------
        draws
            Log-likelihoods, nats, ``(n_draws, n, n_classes)``; NaN where a class was dropped before.

        Returns
        -------
        Two masks, ``(n,)`` and ``(n, n_classes)``.
        """
        log_p = log_posterior(np.nanmean(draws, axis=0), self.log_prior, self.temperature)
        best = log_p.argmax(1)[:, None]
        of_best = np.take_along_axis(draws, best[None], axis=2)
        quantile = stdtrit(max(len(draws) - 1, 1), 0.975)
        margin = np.take_along_axis(log_p, best, axis=1) - log_p
        bound = quantile * self.temperature * standard_error(of_best - draws)
        rival = margin <= bound
        np.put_along_axis(rival, best, False, axis=1)
        half_width = quantile * confidence_standard_error(draws, log_p, self.temperature)
        return ~rival.any(1) & (half_width < self.precision), margin - bound > -np.log(self.negligible)
