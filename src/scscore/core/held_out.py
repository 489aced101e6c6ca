"""Labelled cells that the model was not trained on: what prediction sets and typicality are measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from scscore.core.calibration import log_posterior
from scscore.core.conformal import SetMethod, conformal_p_values, conformal_share, nonconformity
from scscore.core.novelty import class_entropies, depth_trend, p_value, typicality_score
from scscore.core.target import Predictive, TargetGrid
from scscore.core.thinning import evenly_spread

Array = NDArray[np.float64]

_MOST_CELLS = 5000


@dataclass(frozen=True)
class _HeldOutCells:
    """What both kinds of labels share; the attributes are explained there."""

    log_likelihood: NDArray[np.float32]
    y: NDArray[Any]
    log_depth: NDArray[np.float32] | None = None
    bare: NDArray[np.float32] | None = None
    label_type: ClassVar[type[np.generic]]

    @classmethod
    def of(
        cls,
        log_likelihood: ArrayLike,
        y: ArrayLike,
        log_depth: ArrayLike | None = None,
        bare: ArrayLike | None = None,
    ) -> Self:
        """At most 5,000 of the cells, evenly spread."""
        labels = np.asarray(y, dtype=cls.label_type)
        rows = evenly_spread(len(labels), _MOST_CELLS)
        values, depth, density = (
            None if part is None else np.ascontiguousarray(np.asarray(part, dtype=np.float32)[rows])
            for part in (log_likelihood, log_depth, bare)
        )
        return cls(values, labels[rows], depth, density)  # type: ignore[arg-type]

    @property
    def density(self) -> NDArray[np.float32]:
        """The diffusion's own log-likelihoods, without a readout, nats."""
        return self.log_likelihood if self.bare is None else self.bare

    def _p_value(
        self, score: Callable[[Array], Array], log_likelihood: ArrayLike, log_depth: ArrayLike | None
    ) -> Array:
        """Rank of new cells among these by a score of the log-likelihoods, less what the depth explains of it, ``(n,)``."""
        new, own = (score(np.asarray(v, dtype=np.float64)) for v in (log_likelihood, self.density))
        if self.log_depth is not None and log_depth is not None:
            trend = depth_trend(own, self.log_depth)
            new, own = new - trend(log_depth), own - trend(self.log_depth)
        return p_value(new, own)


@dataclass(frozen=True)
class HeldOut(_HeldOutCells):
    """Log-likelihoods and labels of held-out cells.

    Attributes
    ----------
    log_likelihood
        Nats, float32 ``(n, n_classes)``, in the units of the model's log-likelihoods.
    y
        Class indices, int64 ``(n,)``.
    log_depth
        Log count totals, float32 ``(n,)``, or ``None`` where the model does not read counts.
    bare
        `log_likelihood` without the readout, which typicality is judged by; ``None`` where there is no readout.
    """

    label_type = np.int64

    def frequencies(self, log_prior: Array) -> Array:
        """Class frequencies of these cells, one more cell being shared out by the prior: none is zero where that is not."""
        counts = np.bincount(self.y, minlength=len(log_prior))
        return (counts + np.exp(log_prior)) / (len(self.y) + 1)

    def typicality(self, log_likelihood: ArrayLike, log_depth: ArrayLike | None = None) -> Array:
        """P-value of log p(x) of new cells, ``(n,)``, small for cells unlike all known classes; see :mod:`scscore.core.novelty`.

        Parameters
        ----------
        log_likelihood
            Of the new cells, without the readout, nats, ``(n, n_classes)``.
        log_depth
            Their log count totals, ``(n,)``, where the held-out cells have them, too.
        """
        entropies = class_entropies(self.density, self.y)
        return self._p_value(lambda values: typicality_score(values, entropies), log_likelihood, log_depth)

    def prediction_sets(
        self,
        posterior: ArrayLike,
        log_prior: Array,
        temperature: float,
        offsets: ArrayLike = 0.0,
        *,
        coverage: float,
        method: SetMethod = "lac",
        class_conditional: bool = False,
        seed: int = 0,
    ) -> NDArray[np.bool_]:
        """Conformal sets of new cells, ``(n, n_classes)``.

        Where the prior is not that of the held-out cells, these are weighted (label shift).

        Parameters
        ----------
        posterior
            Of the new cells, ``(n, n_classes)``.
        log_prior, temperature, offsets
            What the posterior was made with, see :func:`scscore.core.calibration.fit_calibration`; the held-out cells are
            given the same.
        coverage
            Probability that the set holds the true label, between 0 and 1.
        method, class_conditional
            See :mod:`scscore.core.conformal`.
        seed
            Of the random part of ``"aps"``.
        """
        own = np.exp(log_posterior(self.log_likelihood, log_prior + np.asarray(offsets), temperature))
        random, own_random = (np.random.default_rng([seed, stream]) for stream in range(2))
        new = nonconformity(posterior, method, random.random(len(np.asarray(posterior))))
        calibration = nonconformity(own, method, own_random.random(len(own)))[np.arange(len(own)), self.y]
        weights = np.exp(log_prior) / np.maximum(self.frequencies(log_prior), 1e-300)
        p = conformal_p_values(new, calibration, self.y, class_weights=weights, class_conditional=class_conditional)
        return p > 1 - coverage + 1e-12  # a p-value of exactly 1 - coverage, up to rounding, is outside


@dataclass(frozen=True)
class HeldOutValues(_HeldOutCells):
    """The same with a continuous target.

    Attributes
    ----------
    log_likelihood
        Nats, float32 ``(n, n_bins)``.
    y
        Values, float64 ``(n,)``.
    log_depth
        Log count totals, float32 ``(n,)``, or ``None`` where the model does not read counts.
    bare
        As in :class:`HeldOut`.
    """

    label_type = np.float64

    def typicality(self, log_likelihood: ArrayLike, log_prior: Array, log_depth: ArrayLike | None = None) -> Array:
        """P-value of log p(x), the mixture over the prior, of new cells, from log-likelihoods without the readout, ``(n,)``; see :meth:`HeldOut.typicality`."""
        return self._p_value(lambda values: logsumexp(values + log_prior, axis=1), log_likelihood, log_depth)

    def central_share(self, grid: TargetGrid, log_prior: Array, temperature: float, *, coverage: float) -> float:
        """Central share of a predictive distribution that covers with probability `coverage`; see :func:`conformal_share`."""
        own = Predictive(grid, np.exp(log_posterior(self.log_likelihood, log_prior, temperature)))
        return conformal_share(np.abs(2 * own.cdf(self.y) - 1), coverage)
