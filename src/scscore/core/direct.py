"""The twin without a density: a network that gives the posterior of a continuous target directly (HL-Gauss)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scscore.core.denoiser import networks_of


class DirectPosterior(nn.Module):
    """What takes the place of :class:`~scscore.core.diffusion.ConditionalDiffusion` where only p(y given z) is wanted.

    Parameters
    ----------
    denoiser
        The network (named as in its twin, so that both are trained by the same code).
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    @property
    def n_classes(self) -> int:
        """Number of nodes of the target."""
        return self.network.n_classes

    @property
    def n_features(self) -> int:
        """Dimension of the space."""
        return self.network.n_features

    @property
    def network(self) -> DirectNetwork:
        """The network, of several the first."""
        return self.members()[0].denoiser  # type: ignore[return-value]

    def members(self) -> list[DirectPosterior]:
        """Every network of an ensemble in a posterior of its own."""
        return [DirectPosterior(network) for network in networks_of(self.denoiser)]  # type: ignore[arg-type]

    def log_ratio(self, z: Tensor) -> Tensor:
        """Log p(y given z) less log p(y), up to a number that all values share, nats ``(n, n_classes)``."""
        return self.denoiser(z)


class DirectNetwork(nn.Module):
    """Residual network on clean points.

    Parameters
    ----------
    scale
        Standard deviation of the points along every axis, ``(n_features,)``.
    n_classes
        Number of outputs.
    width, n_blocks, dropout
        As in :class:`~scscore.core.denoiser.ResidualDenoiser`.
    """

    scale: Tensor

    def __init__(
        self, scale: Tensor, n_classes: int, *, width: int = 128, n_blocks: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.shape = {"width": width, "n_blocks": n_blocks, "dropout": dropout}
        self.register_buffer("scale", scale.to(torch.float32))
        self.stem = nn.Linear(len(scale), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for _ in range(n_blocks)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.SiLU())
        self.output = nn.Linear(width, n_classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    @property
    def n_classes(self) -> int:
        """Number of outputs."""
        return self.output.out_features

    @property
    def n_features(self) -> int:
        """Dimension of the space."""
        return len(self.scale)

    def forward(self, z: Tensor) -> Tensor:
        """Log-ratios of the nodes, ``(n, n_classes)``."""
        hidden = self.stem(z / self.scale)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.output(self.last(hidden))
