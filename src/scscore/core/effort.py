"""Where to put the noise levels of a trained model, and how many jumps it takes."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from scscore.core.calibration import Array, log_posterior
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.dissipation import dissipation
from scscore.core.likelihood import log_likelihood
from scscore.core.schedule import NoiseSchedule
from scscore.core.trajectories import NoiseStream

_N_PARTS = 20
_FINE_STEPS = 64
_CANDIDATES = (2, 4, 8, 16, 32)
_TOLERANCE = 0.01  # total variation of the posterior
_NEGLIGIBLE = 1e-3  # share of the importance that may lie beyond either end of the window


def choose_levels(model: ConditionalDiffusion, z: Tensor, log_prior: Array, *, seed: int = 0) -> NoiseSchedule:
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
        Log prior of the classes, nats, ``(n_classes,)``.
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


def choose_n_steps(
    model: ConditionalDiffusion, z: Tensor, log_prior: Array, temperature: float, *, n_paths: int, seed: int = 0
) -> int:
    """The smallest number of jumps, among powers of two up to 32, that leaves the posterior as it is.

    As it is: within .01 in total variation of the posterior with 64 jumps, on average over the points.

    Parameters
    ----------
    model, z, log_prior, seed
        As in :func:`choose_levels`.
    temperature
        Factor on the log-likelihoods in the posterior.
    n_paths
        Paths per point.
    """
    if model.denoiser is None or model.n_classes == 1:
        return _CANDIDATES[0]
    estimate = partial(log_likelihood, model, z, noise=NoiseStream(seed), n_paths=n_paths)

    def posterior(n_steps: int) -> Array:
        with torch.inference_mode():
            mean = estimate(n_steps=n_steps).mean.cpu().numpy()
        return np.exp(log_posterior(mean, log_prior, temperature))

    fine = posterior(_FINE_STEPS)
    for n_steps in _CANDIDATES[:-1]:
        if 0.5 * np.abs(posterior(n_steps) - fine).sum(1).mean() <= _TOLERANCE:
            return n_steps
    return _CANDIDATES[-1]
