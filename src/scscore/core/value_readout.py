r"""Readout of a continuous target: the posterior that a network gives directly, pooled with the log-likelihoods of the diffusion.

.. math:: u(y, z) = a\,\ell(y, z) + b\,r(y, z), \qquad r \approx \log p(y \mid z) - \log p(y)

The density says where points are and follows a relation where rows are few; the network, trained on the posterior alone, knows nothing of the points and bends
where rows are many. :math:`p(z)` is left to the diffusion, as with classes (:mod:`scscore.core.readout`; derivation page, *Continuous targets*).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scscore.core.calibration import Array, fit_weights, log_posterior
from scscore.core.denoiser import networks_of
from scscore.core.readout import Readout
from scscore.core.schedule import NoiseSchedule
from scscore.core.target import Predictive, TargetGrid


class NetworkReadout(Readout):
    """Pools the log-likelihoods at the nodes of a continuous target with a network.

    Parameters
    ----------
    network
        From points to log-ratios at the nodes: a :class:`~scscore.core.direct.DirectNetwork`, or an ensemble of them.
    weight
        What the network weighs in the pool, a scalar.
    exponent, log_prior, to_bins
        As in :class:`~scscore.core.readout.Readout`.
    """

    weight: Tensor

    def __init__(
        self, network: nn.Module, weight: Tensor, exponent: Tensor, log_prior: Tensor, to_bins: Tensor
    ) -> None:
        super().__init__(exponent, log_prior, to_bins)
        self.network = network
        self.register_buffer("weight", weight.to(torch.float64))

    def expert(self, z: Tensor, lam: Tensor | None) -> Tensor:
        r"""See :meth:`Readout.expert`.

        The network knows clean points alone. A point at log SNR :math:`\lambda` is scaled back, and its log-ratio shrinks with the signal,
        :math:`\alpha^2\,r(z_\lambda / \alpha)`, which is what a :class:`~scscore.core.readout.LinearReadout` does.
        """
        if lam is None:
            return self.weight * self.network(z.to(torch.float32)).to(torch.float64)
        alpha = NoiseSchedule.alpha(lam).to(torch.float64)
        return alpha**2 * self.expert(z / alpha, None)

    def members(self) -> list[Readout]:
        """One readout for every network."""
        shared = self.weight, self.exponent, self.log_prior, self.to_bins
        return [NetworkReadout(network, *shared) for network in networks_of(self.network)]  # type: ignore[arg-type]


class NetworkReadoutChoice(NamedTuple):
    """What is chosen on held-out rows: weights in the pool, and the training steps of the final networks."""

    of_diffusion: float
    of_network: float
    n_steps: int


def fit_network_pool(
    log_likelihood: Array, log_ratio: Array, log_prior: Array, y: Array, grid: TargetGrid
) -> tuple[float, float]:
    """Weights of diffusion and network with the lowest negative log density of held-out values.

    Parameters
    ----------
    log_likelihood, log_ratio
        Of the bins, by the diffusion and by the network, nats, ``(n, n_bins)``.
    log_prior
        Of the bins, nats, ``(n_bins,)``.
    y
        Values, ``(n,)``.
    grid
        The bins.
    """

    def loss(weights: Array) -> float:
        posterior = np.exp(log_posterior(weights[0] * log_likelihood + weights[1] * log_ratio, log_prior))
        return -float(Predictive(grid, posterior).log_density(y).mean())

    of_diffusion, of_network = fit_weights(loss, len(y), 2)
    return float(of_diffusion), float(of_network)
