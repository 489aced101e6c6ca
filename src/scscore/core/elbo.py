"""The elbo estimator: difference of the denoising errors of reference and model, at stratified noise levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.schedule import NoiseSchedule


def elbo(
    model: ConditionalDiffusion,
    z: Tensor,
    levels: Tensor,
    draw: Callable[[int], Tensor],
    jitter: Tensor,
    classes: Tensor | None = None,
) -> Iterator[Tensor]:
    r"""What every stratum of noise levels adds to the log-ratio of model and reference, for one antithetic pair.

    .. math:: \log p(z \mid c) \approx \log p_\mathrm{ref}(z \mid c) + \tfrac12 \int
              \mathbb E\bigl[|\epsilon - \epsilon_c^\mathrm{ref}|^2 - |\epsilon - \epsilon_c|^2\bigr]\, d\lambda

    One level is drawn in every stratum, with noise of its own: the estimate is unbiased for the integral, whatever the number of
    strata (derivation page, *Evidence lower bound*). The second member of the pair has the mirrored noise and the mirrored
    position in the stratum.

    Parameters
    ----------
    model
        The conditional diffusion model, in evaluation mode.
    z
        Clean points, shape ``(n, n_features)``.
    levels
        Edges of the strata, log SNRs from the noise floor to the prior end, ``(n_steps + 1,)``.
    draw
        Standard normal noise ``(n, n_features)`` of stratum 0, 1, ...
    jitter
        Position in every stratum, in [0, 1), ``(n_steps,)``.
    classes
        The classes wanted at every point, ``(n, n_wanted)``; ``None``: all.

    Yields
    ------
    For every stratum, nats of both members of the pair, shape ``(2, n, n_classes)``, float64.
    """
    for i, (upper, lower) in enumerate(pairwise(levels)):
        width, noise = upper - lower, draw(i)
        position = torch.stack([jitter[i], 1 - jitter[i]]).to(levels)
        lam = (lower + width * position)[:, None, None].to(z.dtype)
        noise = torch.stack([noise, -noise])
        eps, residual = model.eps_and_residual(
            NoiseSchedule.alpha(lam) * z + NoiseSchedule.sigma(lam) * noise, lam, classes
        )
        gain = (residual * (noise[..., None, :] - eps - 0.5 * residual)).sum(-1)
        yield width * gain.to(torch.float64)
