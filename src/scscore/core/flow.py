"""The flow estimator: probability-flow ODE with the divergence of the residual, the reference as control variate."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.func import jvp, vmap

from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.runge_kutta import runge_kutta_step
from scscore.core.schedule import NoiseSchedule, broadcastable_level

EXACT_UP_TO = 256
"""Dimensions up to which the divergence is exact; Hutchinson's estimate above."""
_TANGENTS = 16  # of the divergence at a time


def flow(
    model: ConditionalDiffusion,
    z: Tensor,
    levels: Tensor,
    *,
    classes: Tensor | None = None,
    probes: Tensor | None = None,
) -> Tensor:
    r"""Log-ratio of model and reference by the probability flow of every class, in nats.

    .. math:: \frac{dz}{d\lambda} = \tfrac12\bigl(\sigma^2 z - \sigma\epsilon_c\bigr), \qquad
              \log\frac{p(z \mid c)}{p_\mathrm{ref}(z \mid c)} = \tfrac12\int
              \bigl[\sigma\nabla\!\cdot r_c - \epsilon_c^\mathrm{ref}\!\cdot r_c\bigr]\, d\lambda

    along the flow from the noise floor to the prior end: the reference's own flow is integrated in closed form, so that only
    the divergence of the residual :math:`r_c` is left (derivation page, *Probability flow*). Integrated by the classical
    Runge-Kutta method of fourth order, with one step from level to level. Every class has a flow of its own, so one step calls
    the network four times per class and per dimension (or probe).

    Parameters
    ----------
    model
        The conditional diffusion model, in evaluation mode.
    z
        Clean points, shape ``(n, n_features)``.
    levels
        Log SNRs from the noise floor to the prior end, ``(n_steps + 1,)``.
    classes
        The classes wanted at every point, ``(n, n_wanted)``; ``None``: all.
    probes
        Random signs, ``(n_probes, n, n_features)``, for Hutchinson's estimate of the divergence; the same along the whole
        flow. ``None``: the exact divergence.

    Returns
    -------
    Shape ``(n, n_classes)``, float64; with probes ``(n_probes, n, n_classes)``.
    """
    if classes is None:
        classes = torch.arange(model.n_classes, device=z.device)
    own = classes[..., None]  # every point has one class
    lead = () if probes is None else (len(probes),)
    if probes is None:
        tangents = torch.eye(model.n_features, dtype=z.dtype, device=z.device)[:, None, None, :]
    else:
        tangents = probes[:, :, None, :].to(z)
    x = NoiseSchedule.alpha(levels[0]).to(z.dtype) * z[:, None, :].expand(-1, classes.shape[-1], -1)
    total = torch.zeros((*lead, *x.shape[:-1]), dtype=torch.float64, device=z.device)

    def derivative(x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        level = broadcastable_level(lam, x)
        sigma = NoiseSchedule.sigma(level)
        eps = model.reference.eps(x, lam, own).squeeze(-2)
        residual, divergence = _residual_and_divergence(model, x, lam, own, tangents, exact=probes is None)
        velocity = 0.5 * (sigma.square() * x - sigma * (eps + residual))
        gain = 0.5 * (sigma.squeeze(-1) * divergence - (eps * residual).sum(-1))
        return velocity, gain.to(torch.float64)

    for lam, lam_next in pairwise(levels):
        x, gained = runge_kutta_step(derivative, x, lam, lam_next)
        total = total - gained
    return total


def _residual_and_divergence(
    model: ConditionalDiffusion, x: Tensor, lam: Tensor, own: Tensor, tangents: Tensor, *, exact: bool
) -> tuple[Tensor, Tensor]:
    """Residual at the points ``(n, n_classes, n_features)`` and its divergence, exact or one estimate per probe."""
    if model.denoiser is None:
        return torch.zeros_like(x), torch.zeros((() if exact else (len(tangents),)) + x.shape[:-1]).to(x)

    def residual_at(points: Tensor) -> Tensor:
        return model.denoiser(points, lam, own).squeeze(-2)  # type: ignore[misc]

    def projected(tangent: Tensor) -> Tensor:
        return (tangent * jvp(residual_at, (x,), (tangent.expand_as(x),))[1]).sum(-1)

    along = vmap(projected, chunk_size=_TANGENTS)(tangents)
    return residual_at(x), along.sum(0) if exact else along
