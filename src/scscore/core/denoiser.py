"""Residual denoiser: one pass of a shared trunk gives the residual noise prediction of every class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scscore.core.schedule import NoiseSchedule, broadcastable_level


class ResidualDenoiser(nn.Module):
    r"""What the noise prediction of every class adds to the closed-form reference.

    The trunk sees the noised point once. A class enters only in a bottleneck of width `rank`, by feature-wise scale and
    shift, followed by one output layer that all classes share, so that K classes cost one trunk plus
    ``K * rank * n_features``. The output is scaled by :math:`2\alpha\sigma` and starts at zero: the residual vanishes
    towards both ends of the noising, where the reference is right, and an untrained model *is* the reference. It is
    bounded, so that far away from the data the density keeps the tails of the reference (derivation page, *Residual*).

    Parameters
    ----------
    class_means
        Mean of every class, shape ``(n_classes, n_features)``. The embedding of a class starts as a random projection of
        its mean: similar classes start alike, and the order of the classes has no influence.
    scale
        Standard deviation of the clean data along every axis, shape ``(n_features,)``; brings inputs to unit variance.
    width
        Width of the trunk.
    n_blocks
        Number of residual blocks of the trunk.
    rank
        Width of the class-specific bottleneck.
    dropout
        Dropout probability in the trunk.
    """

    scale: Tensor
    frequencies: Tensor

    def __init__(
        self,
        class_means: Tensor,
        scale: Tensor,
        *,
        width: int = 128,
        n_blocks: int = 2,
        rank: int = 32,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.shape: dict[str, Any] = {"width": width, "n_blocks": n_blocks, "rank": rank, "dropout": dropout}
        n_features = class_means.shape[1]
        self.register_buffer("scale", scale.to(torch.float32))
        self.register_buffer("frequencies", math.pi * torch.arange(1, 9) / 16, persistent=False)
        self.level = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.stem = nn.Linear(n_features, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(n_blocks))
        self.bottleneck = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, rank))
        self.level_film = nn.Linear(width, 2 * rank)
        self.class_film = nn.Parameter(_standardised(class_means) @ torch.randn(n_features, 2 * rank) / n_features**0.5)
        self.output = nn.Linear(rank, n_features)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        """Residual noise prediction of every class.

        Parameters
        ----------
        z
            Noised points, shape ``(..., n_features)``.
        lam
            Log SNR, a scalar or of a shape that broadcasts against ``(..., 1)``; points of one level share its embedding.
        classes
            The classes wanted at every point, indices of a shape that broadcasts against ``(..., n_wanted)``. ``None``: all.

        Returns
        -------
        Tensor of shape ``(..., n_classes, n_features)``, or ``(..., n_wanted, n_features)``.
        """
        lam = broadcastable_level(lam, z)
        alpha, sigma = NoiseSchedule.alpha(lam), NoiseSchedule.sigma(lam)
        angles = lam * self.frequencies
        level = self.level(torch.cat([angles.sin(), angles.cos()], dim=-1))
        hidden = self.stem(z / (alpha**2 * self.scale**2 + sigma**2).sqrt())
        for block in self.blocks:
            hidden = block(hidden, level)
        class_film = self.class_film if classes is None else self.class_film[classes]
        gain, shift = (class_film + self.level_film(level)[..., None, :]).chunk(2, dim=-1)
        per_class = nn.functional.silu(self.bottleneck(hidden)[..., None, :] * gain + shift)
        return (2 * alpha * sigma)[..., None] * self.output(per_class)


class Ensemble(nn.Module):
    """Mean residual of denoisers that were trained independently: one model with less variance of training, at their summed cost.

    Parameters
    ----------
    members
        The denoisers.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.shape: dict[str, Any] = {**members[0].shape, "n_members": len(members)}  # type: ignore[dict-item]

    def forward(self, *inputs: Any) -> Tensor:
        """Mean of the members' outputs, see :meth:`ResidualDenoiser.forward`."""
        return torch.stack([member(*inputs) for member in self.members]).mean(0)


def networks_of(network: nn.Module | None) -> list[nn.Module | None]:
    """The members of an ensemble; a single network, or none, alone."""
    return list(network.members) if isinstance(network, Ensemble) else [network]


class _Block(nn.Module):
    """Residual block with the noise level as feature-wise scale and shift."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(width, 2 * width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, hidden: Tensor, level: Tensor) -> Tensor:
        gain, shift = self.film(level).chunk(2, dim=-1)
        return hidden + self.body(self.norm(hidden) * (1 + gain) + shift)


def _standardised(x: Tensor) -> Tensor:
    """Columns centred, and scaled by one common factor to a mean square of one, float32."""
    x = (x - x.mean(0)).to(torch.float32)
    return x / x.square().mean().sqrt().clamp_min(1e-6)
