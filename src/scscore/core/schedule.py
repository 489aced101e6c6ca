"""Noise schedule: variance-preserving noising with the log signal-to-noise ratio as its clock."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    lam_max: float = 5.0
    lam_min: float = -5.0

    def __post_init__(self) -> None:
        if not self.lam_max > self.lam_min:
            raise ValueError(f"lam_max must be greater than lam_min, got lam_max={self.lam_max}, lam_min={self.lam_min}.")

    @staticmethod
    def alpha(lam: Tensor) -> Tensor:
        """Signal amplitude at log SNR `lam`, any shape."""
        return torch.sigmoid(lam).sqrt()

    @staticmethod
    def sigma(lam: Tensor) -> Tensor:
        """Noise amplitude at log SNR `lam`, any shape."""
        return torch.sigmoid(-lam).sqrt()

    def levels(self, n_steps: int) -> Tensor:
        """The ``n_steps + 1`` log SNRs of a trajectory, from `lam_max` down to `lam_min`, evenly spaced, float64."""
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}.")
        return torch.linspace(self.lam_max, self.lam_min, n_steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Jump:
    r"""Exact noising jumps :math:`z' = a z + s\eta` and their reverse kernels.

    Given a prediction :math:`\hat\epsilon` of the noise in :math:`z'`, the reverse kernel is Gaussian with mean
    ``from_noisy * z' + from_eps * eps`` and variance `variance` (derivation page, *Jumps*). A jump over any distance is
    exact: nothing is inherited from finer steps. All fields have the shape of the two log SNRs.
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
        var, var_next = torch.sigmoid(-lam), torch.sigmoid(-lam_next)
        gain = -torch.expm1(lam_next - lam)  # 1 - SNR'/SNR, so that spread^2 = var' * gain without cancellation
        from_clean = alpha * gain
        return cls(
            ratio=alpha_next / alpha,
            spread=(var_next * gain).sqrt(),
            from_noisy=alpha_next / alpha * var / var_next + from_clean / alpha_next,
            from_eps=-from_clean * var_next.sqrt() / alpha_next,
            variance=var * gain,
        )
