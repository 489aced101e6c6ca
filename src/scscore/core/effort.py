"""Where to put the noise levels of a trained model, and how many jumps it takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scscore.core.calibration import Array, log_posterior
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.dissipation import dissipation
from scscore.core.likelihood import log_likelihood
from scscore.core.schedule import NoiseSchedule
from scscore.core.target import Predictive, TargetGrid
from scscore.core.trajectories import NoiseStream

_N_PARTS = 20
_FINE_STEPS = 64
_CANDIDATES = (4, 8, 16, 32)
_TOLERANCE = 0.01  # total variation of the posterior
_TOLERANCE_OF_VALUES = 0.1  # of a predictive distribution, standard deviations
_NEGLIGIBLE = 1e-3  # share of the importance that may lie beyond either end of the window


def choose_levels(
    model: ConditionalDiffusion, z: Tensor, log_prior: Array, *, grid: TargetGrid | None = None, seed: int = 0
) -> NoiseSchedule:
    r"""The window and the placement of noise levels that suit a trained model.

    In parts of equal width of the model's window, the loss of the path-wise objective is measured at points `z`: the root mean
    square of the log-ratio increments of the classes, relative to their mean under the posterior (with a single class, of the
    increments themselves). Parts at either end that hold less than a thousandth of the total are cut off; in what is left, the
    density of the levels is proportional to the square root (derivation page, *Noise levels*).

    Parameters
    ----------
    model
        The trained model.
    z
        Points, shape ``(n, n_features)``.
    log_prior
        Log prior of the classes, nats, ``(n_classes,)``; of a continuous target, of the bins.
    grid
        Bins of a continuous target.
    seed
        Seed of the noise.
    """
    schedule, rows = model.schedule, np.arange(len(z))
    if model.denoiser is None:
        return schedule
    levels = NoiseSchedule(schedule.lam_max, schedule.lam_min).levels(_N_PARTS)

    def draw(step: int) -> Tensor:
        return NoiseStream(seed).normal(rows, z.shape[1], pair=0, step=step).to(z)

    with torch.inference_mode():
        increments = torch.stack(list(dissipation(model, z, levels.to(z.device), draw))).cpu()
        total = model.reference.log_prob(z).cpu() + increments.sum(0)
    if grid is not None:
        to_bins = torch.from_numpy(grid.to_bins)
        increments, total = increments @ to_bins, total @ to_bins
    posterior = torch.softmax(total + torch.from_numpy(log_prior), -1)
    if model.n_classes > 1:
        increments = increments - (increments * posterior).sum(-1, keepdim=True)
    loss = (increments.square() * posterior).sum(-1).mean((1, 2)).sqrt().numpy()
    if not loss.any():
        return schedule
    share = loss.cumsum() / loss.sum()
    first = int((share < _NEGLIGIBLE).sum())
    last = _N_PARTS - int((1 - share[:-1] < _NEGLIGIBLE).sum())
    importance = np.sqrt(loss[first:last]) + 1e-6 * np.sqrt(loss.max())
    return NoiseSchedule(float(levels[first]), float(levels[last]), tuple((importance / importance.mean()).tolist()))


def choose_effort(
    model: ConditionalDiffusion,
    z: Tensor,
    log_prior: Array,
    temperature: float,
    *,
    n_paths: int,
    grid: TargetGrid | None = None,
    seed: int = 0,
) -> tuple[NoiseSchedule, int]:
    """The levels, and the smallest number of jumps, that leave the posterior as it is.

    As it is: within .01 in total variation of the posterior with 64 jumps, on average over the points. Tried are 4, 8, 16 and
    32 jumps (a network is trained with 4), each with evenly spaced levels and with those of :func:`choose_levels`; of both, the
    better ones are taken. With a single class, which has no posterior, the levels of :func:`choose_levels`.

    Parameters
    ----------
    model, z, log_prior, seed
        As in :func:`choose_levels`; the model is left alone.
    temperature
        Factor on the log-likelihoods in the posterior.
    n_paths
        Paths per point.
    grid
        Bins of a continuous target: mean and standard deviation are then compared, and may differ by a tenth of the latter.
    """
    by_loss = choose_levels(model, model.own(z), log_prior, grid=grid, seed=seed)
    if model.denoiser is None or model.n_classes == 1:
        return by_loss, _CANDIDATES[0]

    def posterior(schedule: NoiseSchedule, n_steps: int) -> Array:
        tried = ConditionalDiffusion(schedule, model.reference, model.denoiser, model.readout)
        with torch.inference_mode():
            found = log_likelihood(tried, z, noise=NoiseStream(seed), n_steps=n_steps, n_paths=n_paths)
        values = found.mean.cpu().numpy()
        return np.exp(log_posterior(values if grid is None else values @ grid.to_bins, log_prior, temperature))

    def difference(found: Array) -> float:
        if grid is None:
            return float(0.5 * np.abs(found - fine).sum(1).mean())
        one, other = Predictive(grid, found), Predictive(grid, fine)
        shift = grid.difference(one.mean, other.mean) / other.sd
        return float(np.sqrt(np.mean(shift**2 + np.log(one.sd / other.sd) ** 2)))

    fine = posterior(model.schedule, _FINE_STEPS)
    for n_steps in _CANDIDATES:
        distance = {s: difference(posterior(s, n_steps)) for s in (model.schedule, by_loss)}
        best = min(distance, key=distance.__getitem__)
        if distance[best] <= (_TOLERANCE if grid is None else _TOLERANCE_OF_VALUES):
            break
    return best, n_steps
