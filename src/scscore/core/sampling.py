"""New points of a class: the noising run backwards, as a stochastic process or as its probability flow."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.special import ndtr

from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.reference import GaussianReference
from scscore.core.runge_kutta import Derivative, runge_kutta_step
from scscore.core.schedule import Jump, NoiseSchedule
from scscore.core.trajectories import NoiseStream

Direction = Literal["to_noise", "to_clean"]

_FAR = 20.0
"""Log SNR that counts as clean, and with the other sign as pure noise: what is left of the other is below 5e-5."""
_FAR_STEP = 1.0  # Runge-Kutta steps, in log SNR, where only the reference is asked
_CLASS_PAIR = 1  # address of the noise that draws classes; points have that of pair 0


class Diversity(NamedTuple):
    """Distances of samples to the nearest real point, and what they are among real points.

    Attributes
    ----------
    distances
        Of every sample to the nearest real point, ``(n_samples,)``.
    expected
        Of every held-out real point to the nearest other real point, ``(n_held_out,)``.
    """

    distances: NDArray[np.float64]
    expected: NDArray[np.float64]

    @property
    def ratio(self) -> float:
        """Median distance over the expected one: near 0 for copies, 1 for points like new real ones, above 1 for points off the data."""
        return float(np.median(self.distances) / np.median(self.expected))


def draw_classes(log_prior: ArrayLike, noise: NoiseStream, n: int) -> Tensor:
    """Classes of rows 0 to n - 1, drawn from a prior; a function of (seed, row).

    Parameters
    ----------
    log_prior
        Log prior of the classes, nats, ``(n_classes,)``.
    noise
        Source of randomness.
    n
        Number of rows.

    Returns
    -------
    Indices ``(n,)``.
    """
    weights = torch.as_tensor(np.exp(np.asarray(log_prior, dtype=np.float64)))
    uniform = ndtr(noise.normal(np.arange(n), 1, pair=_CLASS_PAIR, step=0)[:, 0].to(torch.float64))
    return _pick(weights.expand(n, -1), uniform)


def reverse_sde(
    model: ConditionalDiffusion, classes: Tensor, noise: NoiseStream, levels: Tensor, *, start: int = 0
) -> Tensor:
    r"""Clean points of given classes, by the noising process run backwards (ancestral sampling).

    The trajectory starts in the reference's density at the prior end, which is drawn from exactly, and jumps from level to level
    with the reverse kernel of the reference, whose mean the residual corrects:

    .. math:: z_i \sim p_\mathrm{ref}(z_i \mid z_{i+1}, c) + b_i\, r_c(z_{i+1}), \qquad
              b_i = -\frac{\alpha_i \sigma_{i+1}}{\alpha_{i+1}} \Bigl(1 - \frac{\mathrm{SNR}_{i+1}}{\mathrm{SNR}_i}\Bigr)

    The kernel of the reference is a Gaussian mixture: a component is drawn by its responsibility for :math:`z_{i+1}`, then a point
    of its Gaussian. So a model without a residual is sampled exactly with any number of jumps, and the mean of every jump is
    exactly that of the total noise prediction. The last jump, from the noise floor to the clean point, is one of these, too.

    Parameters
    ----------
    model
        The conditional diffusion model, in evaluation mode.
    classes
        Class indices, ``(n,)``.
    noise
        Source of randomness.
    levels
        Log SNRs from the noise floor to the prior end, ``(n_steps + 1,)``; the network is called once per level.
    start
        Position of the first row in the whole sample: the noise of a point is a function of (seed, row).

    Returns
    -------
    Points of the engine's space, float32 ``(n, n_features)``, on the device of the model.

    Notes
    -----
    Ancestral sampling: Ho et al., NeurIPS 2020, eq. 7 (its kernel has the variance of a single clean point); kernels with the
    covariance of the data: Bao et al., ICLR 2022 (Analytic-DPM), here that of the reference.
    """
    device = model.reference.means.device
    rows, classes = start + np.arange(len(classes)), classes.to(device)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        """Standard normal noise, and one uniform number per point, float64."""
        normal = noise.normal(rows, model.n_features + 1, pair=0, step=step).to(device)
        return normal[:, :-1], ndtr(normal[:, -1].to(torch.float64))

    z = _draw_noised(model.reference, classes, levels[-1], *draw(0))
    clean = levels.new_tensor([math.inf])
    path = levels[-1:] if model.denoiser is None else levels.flip(0)
    for step, (lam_noisy, lam) in enumerate(pairwise(torch.cat([path, clean])), start=1):
        following = _draw_reverse(model.reference, z, classes, lam, lam_noisy, *draw(step))
        if model.denoiser is not None:
            gain = Jump.between(lam, lam_noisy).from_eps.to(z)
            following = following + gain * model.denoiser(z, lam_noisy, classes[:, None]).squeeze(-2)
        z = following
    return z


def flow_map(
    model: ConditionalDiffusion, z: Tensor, classes: Tensor, levels: Tensor, direction: Direction = "to_noise"
) -> Tensor:
    r"""Points carried by the probability flow of their classes, between clean and pure noise.

    .. math:: \frac{dz}{d\lambda} = \tfrac12\bigl(\sigma^2 z - \sigma\epsilon_c(z, \lambda)\bigr)

    A deterministic, invertible map that takes the density of a class to a standard normal one, or back. Over `levels` it is that of
    the model; beyond, up to log SNRs of 20 and -20, that of the reference, as in every likelihood. Integrated by the classical
    Runge-Kutta method of fourth order, with one step from level to level, at four network calls per step.

    Parameters
    ----------
    model
        The conditional diffusion model, in evaluation mode.
    z
        Clean points, or noise, ``(n, n_features)``.
    classes
        Class indices, ``(n,)``.
    levels
        Log SNRs from the noise floor to the prior end, ``(n_steps + 1,)``, whatever the direction.
    direction
        ``"to_noise"`` or ``"to_clean"``.

    Returns
    -------
    Noise, or clean points, of the shape and precision of `z`.

    Raises
    ------
    ValueError
        Unknown direction.

    Notes
    -----
    Song et al., ICLR 2021, eq. 13. The map between two classes, to noise under one and to clean under the other: Su et al.,
    ICLR 2023 (dual diffusion implicit bridges). Between Gaussians with commuting covariances it is the optimal transport map;
    otherwise it is close to, but not always equal to it.
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {list(get_args(Direction))}, got {direction!r}.")
    own = classes.to(z.device)[:, None]
    outside = ConditionalDiffusion(model.schedule, model.reference)
    first, last = float(levels[0]), float(levels[-1])
    parts = [(outside, _far_levels(_FAR, first)), (model, levels), (outside, _far_levels(last, -_FAR))]
    if direction == "to_clean":
        parts = [(part, at.flip(0)) for part, at in reversed(parts)]
    for part, at in parts:
        for lam, lam_next in pairwise(at):
            z, _ = runge_kutta_step(_velocity(part, own), z, lam, lam_next)
    return z


def diversity(samples: ArrayLike, real: ArrayLike, held_out: ArrayLike | None = None) -> Diversity:
    """Whether samples are new: distance to the nearest real point, against that of real points that were held out.

    Parameters
    ----------
    samples
        Points, ``(n_samples, n_features)``.
    real
        Real points of the same space and the same classes, those that the model was fitted to, ``(n_real, n_features)``.
    held_out
        Real points that the model has not seen, ``(n_held_out, n_features)``. ``None``: every one of `real`, against the others.

    Returns
    -------
    Both distances, and their ratio.

    Raises
    ------
    ValueError
        Different numbers of features, or fewer than two real points.
    """
    from sklearn.neighbors import NearestNeighbors

    given = {"samples": samples, "real": real, "held_out": real if held_out is None else held_out}
    points = {name: np.asarray(value, dtype=np.float64) for name, value in given.items()}
    for name, value in points.items():
        if value.ndim != 2 or value.shape[1:] != points["real"].shape[1:] or len(value) < 1 + (name == "real"):
            raise ValueError(
                f"{name} must have shape (n, n_features) with the features of real, {points['real'].shape[1:]}, and real "
                f"two points or more; got {value.shape}."
            )
    search = NearestNeighbors(n_neighbors=1).fit(points["real"])
    # without an argument a point is left out of its own neighbours
    expected = search.kneighbors()[0] if held_out is None else search.kneighbors(points["held_out"])[0]
    return Diversity(search.kneighbors(points["samples"])[0][:, 0], expected[:, 0])


def _pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per row, ``(n,)``, by weights ``(n, n_indices)`` and uniform numbers ``(n,)``."""
    cumulative = weights.to(torch.float64).cumsum(-1)
    cumulative = cumulative / cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform[:, None], right=True)[:, 0]


def _draw_noised(reference: GaussianReference, classes: Tensor, lam: Tensor, normal: Tensor, uniform: Tensor) -> Tensor:
    """Points of the reference's classes noised to log SNR `lam`, exact."""
    chosen = _pick(reference.weights[classes], uniform)
    component, variance = chosen // len(reference.scales), _variance(reference, chosen, normal)
    variance = lam.sigmoid() * variance + (-lam).sigmoid()
    centre = NoiseSchedule.alpha(lam).to(normal) * reference.means[component].to(normal)
    return centre + _turned(reference, component, variance.sqrt().to(normal) * normal)


def _draw_reverse(
    reference: GaussianReference,
    z: Tensor,
    classes: Tensor,
    lam: Tensor,
    lam_noisy: Tensor,
    normal: Tensor,
    uniform: Tensor,
) -> Tensor:
    """Points at log SNR `lam`, given those at the noisier `lam_noisy`, under the reference, exact."""
    offsets, precision = reference.offsets(z, lam_noisy)
    log_weights = reference.weights[classes].log().to(z)
    log_share = reference.component_log_prob(offsets, precision) + log_weights
    chosen = _pick(torch.softmax(log_share.to(torch.float64), dim=-1), uniform)
    component, jump = chosen // len(reference.scales), Jump.between(lam, lam_noisy)
    offset = offsets[torch.arange(len(z), device=z.device), component]  # along the axes of the component
    variance = _variance(reference, chosen, z)
    before, after = (at.sigmoid() * variance + (-at).sigmoid() for at in (lam, lam_noisy))
    gain, deviation = jump.ratio * before / after, jump.spread * (before / after).sqrt()
    centre = NoiseSchedule.alpha(lam).to(z) * reference.means[component].to(z)
    return centre + _turned(reference, component, gain.to(z) * offset + deviation.to(z) * normal)


def _variance(reference: GaussianReference, chosen: Tensor, like: Tensor) -> Tensor:
    """Variances ``(n, n_features)`` of the chosen components at their scales, along their axes."""
    component, scale = chosen // len(reference.scales), chosen % len(reference.scales)
    return (reference.scales[scale, None] * reference.variances[component]).to(like)


def _turned(reference: GaussianReference, component: Tensor, offset: Tensor) -> Tensor:
    """Offsets along the axes of their components, in the coordinates of the space."""
    if reference.axes is None:
        return offset
    out = torch.empty_like(offset)
    for k in component.unique().tolist():  # a matrix per point would take n_features times the memory
        members = component == k
        out[members] = offset[members] @ reference.axes[k].to(offset).T
    return out


def _far_levels(upper: float, lower: float) -> Tensor:
    """Decreasing log SNRs in steps of about one; a single one where `upper` is not above `lower`."""
    n_steps = max(math.ceil((upper - lower) / _FAR_STEP), 0)
    return torch.linspace(upper, lower, n_steps + 1, dtype=torch.float64)


def _velocity(model: ConditionalDiffusion, own: Tensor) -> Derivative:
    """Velocity of the probability flow of every point's own class ``(n, 1)``; nothing is gathered along."""

    def derivative(x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        sigma = NoiseSchedule.sigma(lam).to(x)
        return 0.5 * sigma * (sigma * x - model.eps(x, lam, own).squeeze(-2)), x.new_zeros(())

    return derivative
