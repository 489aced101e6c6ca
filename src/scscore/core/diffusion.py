"""The conditional diffusion model: closed-form reference plus learned residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scscore.core.denoiser import networks_of
from scscore.core.readout import LinearReadout, Readout
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule, broadcastable_level


class ConditionalDiffusion(nn.Module):
    r"""Noise predictions and scores of all classes in one pass.

    :math:`\epsilon_c(z, \lambda)` is the reference's exact noise prediction plus the denoiser's residual. Without a
    denoiser the model is the reference, and every likelihood is exact.

    Parameters
    ----------
    schedule
        Noise schedule.
    reference
        Closed-form density and score of every class.
    denoiser
        What gives the residual, ``denoiser(z, lam, classes)``: a trained :class:`~scscore.core.denoiser.ResidualDenoiser`, an
        exact residual (:mod:`scscore.core.analytic`), or ``None``.
    readout
        A classifier, or the network of a continuous target, that is pooled with the log-likelihoods of the classes, or ``None``. Scores, samples and
        energies are without it.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        reference: GaussianReference,
        denoiser: nn.Module | None = None,
        readout: Readout | None = None,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.reference = reference
        self.denoiser = denoiser
        self.readout = readout

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.reference.n_classes

    @property
    def n_features(self) -> int:
        """Dimension of the space."""
        return self.reference.n_features

    @property
    def n_scores(self) -> int:
        """Number of class scores that the readout pools."""
        return self.readout.of_scores.shape[1] if isinstance(self.readout, LinearReadout) else 0

    def own(self, z: Tensor) -> Tensor:
        """The features of points ``(..., n_features)`` or more, without the class scores that only the readout knows of."""
        return z[..., : self.n_features]

    def completed(self, z: Tensor) -> Tensor:
        """Points ``(..., n_features)`` with the class scores that belong to their features, where the readout knows of any."""
        return self.readout.completed(z) if isinstance(self.readout, LinearReadout) else z

    @property
    def density(self) -> ConditionalDiffusion:
        """The same model without its readout."""
        return ConditionalDiffusion(self.schedule, self.reference, self.denoiser)

    def members(self) -> list[ConditionalDiffusion]:
        """Every network of an ensemble, with its own readout, in a model of its own."""
        networks = networks_of(self.denoiser)
        readouts = [None] if self.readout is None else self.readout.members()
        n = max(len(networks), len(readouts))
        pairs = zip(*(part * n if len(part) == 1 else part for part in (networks, readouts)), strict=True)
        return [ConditionalDiffusion(self.schedule, self.reference, network, readout) for network, readout in pairs]

    def pooled(
        self, log_likelihood: Tensor, z: Tensor, *, lam: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """Log-likelihoods pooled with the readout, up to a number that all classes share; see :meth:`Readout.pooled`."""
        if self.readout is None:
            return log_likelihood
        return self.readout.pooled(log_likelihood, z, lam=lam, classes=classes)

    def eps_and_residual(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The reference's noise prediction and the residual.

        Parameters
        ----------
        z
            Noised points, shape ``(..., n_features)``.
        lam
            Log SNR, a scalar or of a shape that broadcasts against ``(..., 1)``.
        classes
            The classes wanted at every point, indices of a shape that broadcasts against ``(..., n_wanted)``. ``None``: all.

        Returns
        -------
        Two tensors of shape ``(..., n_classes, n_features)``, or ``(..., n_wanted, n_features)``.
        """
        eps = self.reference.eps(z, lam, classes)
        return eps, torch.zeros_like(eps) if self.denoiser is None else self.denoiser(z, lam, classes)

    def eps(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        """Noise prediction, of a shape as in :meth:`eps_and_residual`."""
        return torch.add(*self.eps_and_residual(z, lam, classes))

    def score(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        r"""Score :math:`\nabla\log p_\lambda(z\mid c) = -\epsilon_c/\sigma`, of a shape as in :meth:`eps_and_residual`."""
        return -self.eps(z, lam, classes) / NoiseSchedule.sigma(broadcastable_level(lam, z))[..., None]
