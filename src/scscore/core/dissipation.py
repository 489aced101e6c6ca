"""The dissipation estimator: log-ratio of the reverse kernels of model and reference along noising trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.schedule import Jump
from scscore.core.trajectories import noising_trajectory


def dissipation_increment(
    model: ConditionalDiffusion,
    z: Tensor,
    z_next: Tensor,
    lam: Tensor,
    lam_next: Tensor,
    classes: Tensor | None = None,
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
    classes
        The classes wanted, see :meth:`ConditionalDiffusion.eps_and_residual`.

    Returns
    -------
    Nats, shape ``(..., n_classes)``.
    """
    return torch.linalg.vecdot(*dissipation_factors(model, z, z_next, lam, lam_next, classes))


def dissipation_factors(
    model: ConditionalDiffusion,
    z: Tensor,
    z_next: Tensor,
    lam: Tensor,
    lam_next: Tensor,
    classes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The two vectors ``(..., n_classes, n_features)`` whose product is the increment: a force and a displacement.

    The force, the residual noise prediction, is a covector of the space, like every score; the displacement is a vector. Arguments as in
    :func:`dissipation_increment`.
    """
    jump = Jump.between(lam, lam_next)
    eps, residual = model.eps_and_residual(z_next, lam_next, classes)
    weight = (jump.from_eps / jump.variance).to(z.dtype)
    base = weight * (z - jump.from_noisy.to(z.dtype) * z_next)
    gain = weight * jump.from_eps.to(z.dtype)
    return residual, base[..., None, :] - gain[..., None] * (eps + 0.5 * residual)


def dissipation(
    model: ConditionalDiffusion,
    z: Tensor,
    levels: Tensor,
    draw: Callable[[int], Tensor],
    classes: Tensor | None = None,
) -> Iterator[Tensor]:
    r"""What every jump of one antithetic pair of trajectories adds to the log-ratio of model and reference.

    .. math:: \log p(z \mid c) \approx \log p_\mathrm{ref}(z \mid c)
              + \sum_i \log\frac{N(z_i; m_c(z_{i+1}), v_i)}{N(z_i; m_c^\mathrm{ref}(z_{i+1}), v_i)}

    All classes, the model and the reference see the same trajectories. The network is called once per jump and path.

    Parameters
    ----------
    model
        The conditional diffusion model, in evaluation mode.
    z
        Clean points, shape ``(n, n_features)``.
    levels
        Log SNRs of the trajectory from the noise floor to the prior end, ``(n_steps + 1,)``.
    draw
        Standard normal noise ``(n, n_features)`` of step 0, 1, ...
    classes
        The classes wanted at every point, ``(n, n_wanted)``; ``None``: all.

    Yields
    ------
    For every jump, nats of both members of the pair, shape ``(2, n, n_classes)``, float64.
    """
    path = noising_trajectory(z, levels, _mirrored(draw))
    for (point, following), (lam, lam_next) in zip(pairwise(path), pairwise(levels), strict=True):
        yield dissipation_increment(model, point, following, lam, lam_next, classes).to(torch.float64)


def evidence_by_level(model: ConditionalDiffusion, z: Tensor, levels: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
    r"""How the log-likelihood of every class builds up while noise is taken away, for one antithetic pair.

    At level :math:`\lambda_i` it is :math:`\log p_{\mathrm{ref},\lambda_i}(z_i \mid c)` plus the increments of all jumps that are
    noisier: the log-likelihood of the noised cell, up to a number that all classes share (derivation page, *Evidence by
    noise level*), pooled with the readout where the model has one. Arguments as in :func:`dissipation`.

    Returns
    -------
    Nats, shape ``(n_steps + 2, 2, n, n_classes)``, float64: from the prior end to the noise floor, then the clean cell.
    """
    own, scores = z.tensor_split([model.n_features], dim=-1)
    path = list(noising_trajectory(own, levels, _mirrored(draw)))

    def pooled(found: Tensor, point: Tensor, lam: Tensor) -> Tensor:
        whole = torch.cat([point, scores.expand(*point.shape[:-1], -1)], dim=-1)
        return model.pooled(found, whole, lam=lam)

    jumps = zip(pairwise(path), pairwise(levels), strict=True)
    increments = [
        dissipation_increment(model, point, following, lam, lam_next).to(torch.float64)
        for (point, following), (lam, lam_next) in jumps
    ]
    noisier = torch.zeros_like(increments[0])
    found = model.reference.log_prob(path[-1], levels[-1])
    out = [pooled(found, path[-1], levels[-1])]
    for point, lam, increment in zip(path[-2::-1], levels.flip(0)[1:], increments[::-1], strict=True):
        noisier = noisier + increment
        out.append(pooled(model.reference.log_prob(point, lam) + noisier, point, lam))
    out.append(model.pooled(model.reference.log_prob(own) + noisier, z))
    return torch.stack(out)


def _mirrored(draw: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """Noise of an antithetic pair of paths, shape ``(2, n, n_features)``."""

    def pair(step: int) -> Tensor:
        noise = draw(step)
        return torch.stack([noise, -noise])

    return pair
