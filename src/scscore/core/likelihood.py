"""Log-likelihood of every class from the dissipation along noising trajectories, with the reference as control variate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.schedule import Jump
from scscore.core.trajectories import NoiseStream


@dataclass(frozen=True)
class LogLikelihood:
    """Estimates of log p(z | class) for a chunk of points.

    Attributes
    ----------
    draws
        One estimate per independent draw (an antithetic pair of trajectories counts as one), nats, float64, shape
        ``(n_draws, n, n_classes)``.
    """

    draws: Tensor

    @property
    def mean(self) -> Tensor:
        """Estimate of the log-likelihood, nats, shape ``(n, n_classes)``."""
        return self.draws.mean(0)

    @property
    def standard_error(self) -> Tensor:
        """Monte-Carlo standard error of `mean`, nats, shape ``(n, n_classes)``; NaN for a single draw."""
        return standard_error(self.draws)


def standard_error(draws: Tensor) -> Tensor:
    """Standard error of the mean over the first axis; NaN where there is a single draw."""
    if len(draws) < 2:
        return torch.full_like(draws[0], torch.nan)
    return draws.std(0) / len(draws) ** 0.5


def dissipation_increment(
    model: ConditionalDiffusion, z: Tensor, z_next: Tensor, lam: Tensor, lam_next: Tensor
) -> Tensor:
    r"""Log-ratio of the reverse kernels of model and reference for jumps ``z -> z_next``.

    With the reverse kernel :math:`N(z_i; m(z_{i+1}), v)` evaluated at the noisier end (a backward Ito sum), this is
    :math:`\log N(z_i; m_c, v) - \log N(z_i; m_c^\mathrm{ref}, v)`: the dissipation of the model less the dissipation of
    the reference along the same noise (derivation page, *Dissipation*).

    Parameters
    ----------
    model
        The conditional diffusion model.
    z, z_next
        Noised points before and after the jumps, shape ``(..., n_features)``.
    lam, lam_next
        Their log SNRs, scalars or of a shape that broadcasts against ``(..., 1)``.

    Returns
    -------
    Nats, shape ``(..., n_classes)``.
    """
    jump = Jump.between(lam, lam_next)
    eps, residual = model.eps_and_residual(z_next, lam_next)
    base = z - jump.from_noisy.to(z.dtype) * z_next
    gain = jump.from_eps.to(z.dtype)
    work = (residual * (base[..., None, :] - gain[..., None] * (eps + 0.5 * residual))).sum(-1)
    return work * (jump.from_eps / jump.variance).to(z.dtype)


def dissipation(
    model: ConditionalDiffusion, z: Tensor, *, n_steps: int, n_paths: int, noise: NoiseStream, start: int = 0
) -> LogLikelihood:
    r"""Log-likelihood of every class by the dissipation estimator.

    .. math:: \log p(z \mid c) \approx \log p_\mathrm{ref}(z \mid c)
              + \sum_i \log\frac{N(z_i; m_c(z_{i+1}), v_i)}{N(z_i; m_c^\mathrm{ref}(z_{i+1}), v_i)}

    All classes, the model and the reference see the same trajectories.

    Parameters
    ----------
    model
        The conditional diffusion model, in evaluation mode.
    z
        Clean points, shape ``(n, n_features)``.
    n_steps
        Number of jumps of a trajectory; the network is called once per jump and path.
    n_paths
        Number of trajectories, in antithetic pairs (an even number).
    noise
        Source of the noise.
    start
        Position of the first row of `z` in the whole data set.

    Returns
    -------
    LogLikelihood
        ``n_paths / 2`` independent draws.
    """
    if n_paths < 2 or n_paths % 2:
        raise ValueError(f"n_paths must be a positive even number (antithetic pairs), got {n_paths}.")
    reference = model.reference.log_prob(z)
    if model.denoiser is None:
        return LogLikelihood(reference.expand(n_paths // 2, -1, -1))
    draws = []
    for pair in range(n_paths // 2):
        total = torch.zeros_like(reference)
        for step in dissipation_steps(model, z, n_steps=n_steps, noise=noise, pair=pair, start=start):
            total += step
        draws.append(reference + total)
    return LogLikelihood(torch.stack(draws))


def dissipation_steps(
    model: ConditionalDiffusion, z: Tensor, *, n_steps: int, noise: NoiseStream, pair: int, start: int = 0
) -> Iterator[Tensor]:
    """Increments along one antithetic pair of trajectories, averaged over the pair, from the noise floor upwards.

    Yields
    ------
    ``n_steps`` tensors of shape ``(n, n_classes)``, nats, float64: the evidence added at each noise level.
    """
    n, n_features = z.shape
    levels = model.schedule.levels(n_steps).to(z.device)
    mirrored = torch.cat([z, z])

    def draw(step: int) -> Tensor:
        normal = noise.normal(start, start + n, n_features, pair=pair, step=step).to(z)
        return torch.cat([normal, -normal])

    current = levels[0].sigmoid().sqrt().to(z.dtype) * mirrored + (-levels[0]).sigmoid().sqrt().to(z.dtype) * draw(0)
    for i, (lam, lam_next) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        jump = Jump.between(lam, lam_next)
        following = jump.ratio.to(z.dtype) * current + jump.spread.to(z.dtype) * draw(i + 1)
        step = dissipation_increment(model, current, following, lam, lam_next).to(torch.float64)
        yield 0.5 * (step[:n] + step[n:])
        current = following
