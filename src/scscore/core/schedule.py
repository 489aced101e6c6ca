"""Noise schedule: variance-preserving noising with the log signal-to-noise ratio as its clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    r"""Variance-preserving noising :math:`z_\lambda = \alpha z_0 + \sigma\epsilon`, clocked by log SNR.

    :math:`\alpha^2 = \mathrm{sigmoid}(\lambda)` and :math:`\sigma^2 = \mathrm{sigmoid}(-\lambda)`, so that
    :math:`\lambda = \log(\alpha^2/\sigma^2)`. Noising runs from `lam_max` (the noise floor, near the data) down to
    `lam_min` (the prior). See *Noising* in the derivation page of the documentation.

    Parameters
    ----------
    lam_max
        Log SNR of the noise floor.
    lam_min
        Log SNR of the prior end.
    importance
        Relative density of the levels in parts of equal width between `lam_max` and `lam_min`, in that order. Empty: levels are
        evenly spaced.
    """

    lam_max: float = 5.0
    lam_min: float = -5.0
    importance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "importance", tuple(self.importance))  # JSON has lists
        if self.importance and not min(self.importance) > 0:
            raise ValueError(f"importance must be positive, got {self.importance}.")
        if not self.lam_max > self.lam_min:
            raise ValueError(
                f"lam_max must be greater than lam_min, got lam_max={self.lam_max}, lam_min={self.lam_min}."
            )

    @staticmethod
    def alpha(lam: Tensor) -> Tensor:
        """Signal amplitude at log SNR `lam`, any shape."""
        return torch.sigmoid(lam).sqrt()

    @staticmethod
    def sigma(lam: Tensor) -> Tensor:
        """Noise amplitude at log SNR `lam`, any shape."""
        return torch.sigmoid(-lam).sqrt()

    def levels(self, n_steps: int) -> Tensor:
        """The ``n_steps + 1`` log SNRs of a trajectory, from `lam_max` down to `lam_min`, float64."""
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}.")
        weights = np.asarray(self.importance or (1.0,))
        share = np.concatenate([[0.0], weights.cumsum() / weights.sum()])
        edges = np.linspace(self.lam_max, self.lam_min, len(share))
        return torch.from_numpy(np.interp(np.linspace(0.0, 1.0, n_steps + 1), share, edges))


def broadcastable_level(lam: Tensor | float, z: Tensor) -> Tensor:
    """Log SNR in the precision and on the device of `z`, with as many axes as `z`; the last one has length 1.

    Parameters
    ----------
    lam
        A scalar, or a tensor that broadcasts against ``(..., 1)``.
    z
        Points, shape ``(..., n_features)``.
    """
    lam = torch.as_tensor(lam, dtype=z.dtype, device=z.device)
    return lam.reshape((1,) * z.ndim) if lam.ndim == 0 else lam


@dataclass(frozen=True)
class Jump:
    r"""Exact noising jumps :math:`z' = a z + s\eta` and their reverse kernels.

    Given a prediction :math:`\hat\epsilon` of the noise in :math:`z'`, the mean of :math:`z` is
    ``from_noisy * z' + from_eps * eps``. A jump over any distance is exact: nothing is inherited from finer steps. The
    variance of the reverse kernel is free, because it cancels between model and reference; it is chosen such that a jump
    weighs exactly its length in log SNR, which keeps the bias of long jumps small (derivation page, *Jumps*). All fields
    have the shape of the two log SNRs.
    """

    ratio: Tensor  #: a = alpha' / alpha
    spread: Tensor  #: s, standard deviation of the noise added by the jump
    from_noisy: Tensor
    from_eps: Tensor
    variance: Tensor

    @classmethod
    def between(cls, lam: Tensor, lam_next: Tensor) -> Jump:
        """The jump from log SNR `lam` to the noisier `lam_next`."""
        alpha, alpha_next = NoiseSchedule.alpha(lam), NoiseSchedule.alpha(lam_next)
        var_next = torch.sigmoid(-lam_next)
        gain = -torch.expm1(lam_next - lam)  # 1 - SNR'/SNR, so that spread^2 = var' * gain without cancellation
        from_eps = -alpha * gain * var_next.sqrt() / alpha_next
        return cls(
            ratio=alpha_next / alpha,
            spread=(var_next * gain).sqrt(),
            from_noisy=alpha / alpha_next,
            from_eps=from_eps,
            variance=from_eps.square() / (lam - lam_next),
        )
