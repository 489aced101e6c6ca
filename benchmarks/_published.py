"""The published inference procedure, re-implemented from its formula: the baseline of the likelihood benchmark.

Source: Kuznets-Speck et al., Keeping SCORE, bioRxiv 2025.11.26.690838, and the scripts that accompany it. A cell is noised
by the 1,000 small steps of a DDPM schedule; on the way the network predicts the noise for one class at a time; the
predictions are added up as if they were scores; the sums of all classes on one path go through a softmax, and the
posterior is the mean of these softmaxes over the paths. Nothing of it is used by scscore itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

NoisePrediction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Noise prediction ``(points, log SNR, classes) -> (n_points, n_classes, n_features)``; ``None`` asks for all classes."""

VARIANTS = ("published", "corrected")
"""``published``: the noise prediction is taken for the score up to sign. ``corrected``: the score is -eps / sigma."""


def linear_betas(n_steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Variances of the noise that the steps add: the linear schedule of DDPM, float64."""
    return torch.linspace(first, last, n_steps, dtype=torch.float64)


def log_snr(betas: Tensor) -> Tensor:
    """Log signal-to-noise ratio after every step: what a network that is clocked by it has to be told."""
    log_signal = torch.log1p(-betas).cumsum(0)
    return log_signal - torch.log(-torch.expm1(log_signal))


def path_sums(
    predict: NoisePrediction,
    z: Tensor,
    *,
    n_classes: int,
    n_paths: int,
    seed: int,
    betas: Tensor | None = None,
    class_by_class: bool = False,
    n_evaluated: int | None = None,
) -> dict[str, Tensor]:
    r"""Log-likelihood sums of every class on every path, for both variants of the score.

    .. math:: \log p(z_0 \mid c) \approx \log N(z_n; 0, I) - \sum_i \bigl[ s_c(z_{i+1}) \cdot (z_{i+1} - z_i)
              + \tfrac{\beta_i}{2} ( |s_c(z_{i+1})|^2 + z_{i+1} \cdot s_c(z_{i+1}) + D ) \bigr]

    All classes see the same paths, which come in antithetic pairs, as in the published scripts. (These leave out the terms
    that all classes share; they do not change the posterior.)

    Parameters
    ----------
    predict
        Noise prediction of the network.
    z
        Clean points, shape ``(n, n_features)``.
    n_classes
        Number of classes.
    n_paths
        Paths per point, an even number.
    seed
        Seed of the noise.
    betas
        Noise variances of the steps. ``None``: :func:`linear_betas`.
    class_by_class
        One network call for every class, as published, instead of one for all classes. Slower, with the same result.
    n_evaluated
        Stop after so many steps (to measure the time of a step).

    Returns
    -------
    For every entry of `VARIANTS` the sums in nats, shape ``(n_paths, n, n_classes)``, float64.
    """
    if n_paths % 2:
        raise ValueError(f"n_paths must be even, got {n_paths}.")
    betas = linear_betas() if betas is None else betas
    levels = log_snr(betas)
    n, n_features = z.shape
    generator = torch.Generator().manual_seed(seed)
    point = z.repeat(n_paths, 1)
    sums = {name: torch.zeros(len(point), n_classes, dtype=torch.float64) for name in VARIANTS}
    for beta, level in list(zip(betas.tolist(), levels, strict=True))[:n_evaluated]:
        half = torch.randn(n_paths // 2, n, n_features, generator=generator, dtype=z.dtype)
        noise = torch.cat([half, -half]).reshape(-1, n_features)
        following = math.sqrt(1 - beta) * point + math.sqrt(beta) * noise
        direction = following - point + 0.5 * beta * following
        if class_by_class:
            one = torch.zeros(len(point), 1, dtype=torch.int64)
            parts = [_products(predict(following, level, one + c), direction) for c in range(n_classes)]
            along, square = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        else:
            along, square = _products(predict(following, level, None), direction)
        sigma = float(torch.sigmoid(-level).sqrt())
        for name, factor in (("published", 1.0), ("corrected", 1 / sigma)):
            sums[name] += factor * along - (0.5 * beta * factor**2) * square - 0.5 * beta * n_features
        point = following
    log_end = -0.5 * (point.to(torch.float64).square().sum(1, keepdim=True) + n_features * math.log(2 * math.pi))
    return {name: (total + log_end).unflatten(0, (n_paths, n)) for name, total in sums.items()}


def _products(eps: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """``eps . direction`` and ``|eps|^2`` of every class, shape ``(n_points, n_classes)``."""
    return (eps @ direction[..., None])[..., 0], eps.square().sum(-1)


def posterior(sums: Tensor, *, per_path: bool = True) -> np.ndarray:
    """Posterior under a uniform prior, shape ``(n, n_classes)``.

    Parameters
    ----------
    sums
        From :func:`path_sums`, shape ``(n_paths, n, n_classes)``.
    per_path
        Mean over paths of the softmaxes (published), or the softmax of the mean over paths.
    """
    values = sums.numpy()
    return softmax(values, axis=-1).mean(0) if per_path else softmax(values.mean(0), axis=-1)
