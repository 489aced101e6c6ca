"""The conditional diffusion model: closed-form reference plus learned residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scscore.core.denoiser import ResidualDenoiser
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
        The learned residual, or ``None``.
    """

    def __init__(
        self, schedule: NoiseSchedule, reference: GaussianReference, denoiser: ResidualDenoiser | None = None
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.reference = reference
        self.denoiser = denoiser

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.reference.n_classes

    @property
    def n_features(self) -> int:
        """Dimension of the space."""
        return self.reference.n_features

    def eps_and_residual(self, z: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        """The reference's noise prediction and the residual, each of shape ``(..., n_classes, n_features)``."""
        eps = self.reference.eps(z, lam)
        return eps, torch.zeros_like(eps) if self.denoiser is None else self.denoiser(z, lam)

    def eps(self, z: Tensor, lam: Tensor) -> Tensor:
        """Noise prediction of every class at noised points `z`, shape ``(..., n_classes, n_features)``."""
        return torch.add(*self.eps_and_residual(z, lam))

    def score(self, z: Tensor, lam: Tensor) -> Tensor:
        r"""Score :math:`\nabla\log p_\lambda(z\mid c) = -\epsilon_c/\sigma`, shape ``(..., n_classes, n_features)``."""
        return -self.eps(z, lam) / NoiseSchedule.sigma(broadcastable_level(lam, z))[..., None]
