"""Overlapping classes whose densities and noised scores are known exactly, and estimators measured against them."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from scscore.core.analytic import MixtureDiffusion
from scscore.core.likelihood import LogLikelihood, log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.schedule import Jump, NoiseSchedule
from scscore.core.stopping import Stopping
from scscore.core.trajectories import NoiseStream, noising_trajectory

CONTROLS = ("reference", "N(0, I)", "none")
"""What the noise of the estimates is compared with: one Gaussian per class (the package's way), the standard normal
distribution for all classes, or nothing (textbook)."""


def overlapping_classes(
    n_features: int, *, n_classes: int = 8, n_components: int = 2, accuracy: float = 0.9, seed: int = 0
) -> GaussianReference:
    """Gaussian mixtures with a given accuracy of the best possible classifier.

    Every class has components of its own, 3 standard deviations apart, with unequal weights and unequal diagonal
    covariances near the identity; the distance between the classes is found by bisection.
    """
    generator = torch.Generator().manual_seed(seed + n_features)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    centres = normal(n_classes, 1, n_features) / n_features**0.5
    offsets = torch.zeros(n_classes, 1, n_features, dtype=torch.float64)
    if n_components > 1:
        offsets = normal(n_classes, n_components, n_features)
        offsets = offsets - offsets.mean(1, keepdim=True)
        offsets = 1.5 * offsets / offsets.norm(dim=-1, keepdim=True)
    variances = torch.exp(min(0.5, 1.5 / n_features**0.5) * normal(n_classes, n_components, n_features))
    shares = torch.arange(n_components, 0, -1, dtype=torch.float64) + 1
    weights = torch.block_diag(*(shares / shares.sum()).expand(n_classes, 1, -1))

    def at(distance: float) -> GaussianReference:
        means = (distance * centres + offsets).expand(-1, n_components, -1)
        return GaussianReference(means.reshape(-1, n_features), weights, variances.flatten(0, 1))

    low, high = 0.0, 50.0
    for _ in range(14):
        middle = 0.5 * (low + high)
        z, y = draw_cells(at(middle), 3000, seed=-1)
        low, high = (middle, high) if bayes_accuracy(at(middle), z, y) < accuracy else (low, middle)
    return at(high)


def draw_cells(truth: GaussianReference, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Points of all classes in equal numbers, and their classes."""
    y = torch.arange(n) % truth.n_classes
    return MixtureDiffusion(truth).sample(y, torch.Generator().manual_seed(1_000_003 + seed)), y


def exact_log_prob(truth: GaussianReference, z: Tensor) -> Tensor:
    """Exact log densities of all classes, a few points at a time."""
    return torch.cat([truth.log_prob(part) for part in z.split(256)])


def bayes_accuracy(truth: GaussianReference, z: Tensor, y: Tensor) -> float:
    """Accuracy of the exact posterior under a uniform prior."""
    return float((exact_log_prob(truth, z).argmax(1) == y).to(torch.float64).mean())


def exact_model(truth: GaussianReference, control: str, schedule: NoiseSchedule | None = None) -> MixtureDiffusion:
    """The model with the exact score and one of the references of `CONTROLS` (``none`` has the default one, unused)."""
    normal = GaussianReference(torch.zeros(1, truth.n_features), torch.ones(truth.n_classes, 1))
    return MixtureDiffusion(truth, reference=normal if control == "N(0, I)" else None, schedule=schedule)


def estimate(
    model: MixtureDiffusion, z: Tensor, *, control: str, estimator: str, n_steps: int, n_paths: int
) -> tuple[LogLikelihood, float]:
    """Log-likelihoods, and the processor seconds that they took."""
    settings: dict[str, Any] = {"estimator": estimator, "n_steps": n_steps, "n_paths": n_paths}
    start = time.process_time()
    with torch.no_grad():
        if control == "none":
            found = textbook(model, z, noise=NoiseStream(0), **settings)
        else:
            found = log_likelihood(model, z, noise=NoiseStream(0), **settings)
    return found, time.process_time() - start


def textbook(
    model: MixtureDiffusion, z: Tensor, *, noise: NoiseStream, estimator: str, n_steps: int, n_paths: int
) -> LogLikelihood:
    """Absolute estimates without any control variate, on the same noise: the variational bound of a diffusion model.

    ``dissipation`` is the log-ratio of reverse and forward kernels along the trajectory, with the posterior variance of the
    forward process (Ho et al. 2020, equation 5); ``elbo`` is the denoising error at stratified noise levels (Kingma et al.
    2021), with everything that does not depend on the model in closed form.
    """
    rows, n_features = np.arange(len(z)), z.shape[1]
    levels = model.schedule.levels(n_steps)
    paths = []
    for pair in range(n_paths // 2):

        def draw(step: int, pair: int = pair) -> Tensor:
            one = noise.normal(rows, n_features, pair=pair, step=step).to(z)
            return torch.stack([one, -one])

        if estimator == "elbo":
            total = _standard_log_prob(z) + _window_constant(z, levels)
            for i, (upper, lower) in enumerate(pairwise(levels)):
                u = noise.uniform(n_steps, pair=pair)[i]
                lam = (lower + (upper - lower) * torch.stack([u, 1 - u]))[:, None, None]
                eps = draw(i)
                noised = NoiseSchedule.alpha(lam) * z + NoiseSchedule.sigma(lam) * eps
                error = (eps[..., None, :] - model.truth.eps(noised, lam)).square().sum(-1)
                total = total - 0.5 * (upper - lower) * error
        else:
            path = noising_trajectory(z, levels, draw)
            point, first = next(path), draw(0)
            error = (first[..., None, :] - model.truth.eps(point, levels[0])).square().sum(-1)
            total = 0.5 * (first.square().sum(-1)[..., None] - error)
            total = total + n_features * float(NoiseSchedule.alpha(levels[0]).log())
            for following, (lam, lam_next) in zip(path, pairwise(levels), strict=True):
                jump = Jump.between(lam, lam_next)
                variance = torch.sigmoid(-lam) * -torch.expm1(lam_next - lam)
                mean = jump.from_noisy * following[..., None, :] + jump.from_eps * model.truth.eps(following, lam_next)
                reverse = (point[..., None, :] - mean).square().sum(-1) / variance
                forward = (following - jump.ratio * point).square().sum(-1) / jump.spread.square()
                total = total + 0.5 * (forward[..., None] - reverse)
                total = total + n_features * float(jump.spread.log() - 0.5 * variance.log())
                point = following
            total = total + _standard_log_prob(point)
        paths.append(total)
    return LogLikelihood(torch.stack(paths))


def _standard_log_prob(z: Tensor) -> Tensor:
    """Log density of N(0, I), shape ``(..., 1)``."""
    return -0.5 * (z.square().sum(-1, keepdim=True) + z.shape[-1] * math.log(2 * math.pi))


def _window_constant(z: Tensor, levels: Tensor) -> Tensor:
    """Half the denoising error of N(0, I), in expectation over the noise and integrated over the window, ``(n, 1)``."""

    def integral(lam: Tensor) -> Tensor:
        share = torch.sigmoid(lam)
        return z.shape[1] * (torch.nn.functional.softplus(lam) - share) + share * z.square().sum(1, keepdim=True)

    return 0.5 * (integral(levels[0]) - integral(levels[-1]))


def errors(found: LogLikelihood, exact: Tensor, y: Tensor) -> dict[str, float]:
    """Errors against the truth.

    Returns
    -------
    ``bias`` and ``rms`` of log p of the own class (nats), ``slope`` of estimated on exact log-ratios of all other classes
    to the own one, ``tv`` (mean total-variation error of the posterior under a uniform prior), and ``coverage`` of the 95 %
    interval by Student's t: of log p of the own class, and of the log-ratio of the two best classes.
    """
    rows = torch.arange(len(y))
    mean = found.mean
    error = (mean - exact)[rows, y]
    others = torch.ones_like(exact, dtype=torch.bool)
    others[rows, y] = False
    ratios, exact_ratios = ((x - x[rows, y][:, None])[others] for x in (mean, exact))
    slope = np.polyfit(exact_ratios.numpy(), ratios.numpy(), 1)[0]
    result = {
        "bias": float(error.mean()),
        "rms": float(error.square().mean().sqrt()),
        "slope": float(slope),
        "tv": float(0.5 * (mean.softmax(1) - exact.softmax(1)).abs().sum(1).mean()),
    }
    draws = found.draws
    if len(draws) > 1 and not found.exact:
        top = exact.topk(2, dim=1).indices
        pair = exact.gather(1, top)
        of_pair = draws.gather(2, top.expand(len(draws), -1, -1))
        result["coverage"] = _coverage(draws[:, rows, y], exact[rows, y])
        result["coverage_ratio"] = _coverage(of_pair[..., 0] - of_pair[..., 1], pair[:, 0] - pair[:, 1])
    return result


def _coverage(draws: Tensor, exact: Tensor) -> float:
    half_width = float(stdtrit(len(draws) - 1, 0.975)) * draws.std(0) / len(draws) ** 0.5
    return float(((draws.mean(0) - exact).abs() <= half_width).to(torch.float64).mean())


def truth_rows(
    n_features: int, *, n_cells: int, steps: tuple[int, ...], paths: tuple[int, ...], most_calls: int, flow_cells: int
) -> list[dict[str, Any]]:
    """All estimators on one mixture. Few paths are the first ones of many; their time is taken in proportion."""
    truth = overlapping_classes(n_features)
    z, y = draw_cells(truth, n_cells, seed=0)
    exact = exact_log_prob(truth, z)
    rows = []
    for control in CONTROLS:
        model = exact_model(truth, control)
        for estimator in ("dissipation", "elbo"):
            for n_steps in steps:
                most = most_calls if control == "reference" else most_calls // 2
                feasible = [p for p in paths if p * n_steps <= most]
                found, seconds = estimate(
                    model, z, control=control, estimator=estimator, n_steps=n_steps, n_paths=feasible[-1]
                )
                for n_paths in feasible:
                    part = LogLikelihood(found.paths[: n_paths // 2])
                    spent = seconds * n_paths / feasible[-1] / n_cells
                    rows.append(
                        {"estimator": estimator, "control": control, "steps": n_steps, "paths": n_paths}
                        | {"calls": n_steps * n_paths, "cells": n_cells, "seconds_per_1000": 1000 * spent}
                        | errors(part, exact, y)
                    )
    few = min(flow_cells, n_cells)
    for control, window, n_steps in (("reference", 5.0, 8), ("reference", 10.0, 16), ("N(0, I)", 5.0, 8)):
        model = exact_model(truth, control, NoiseSchedule(window, -window))
        found, seconds = estimate(model, z[:few], control=control, estimator="flow", n_steps=n_steps, n_paths=2)
        rows.append(
            {"estimator": "flow", "control": control, "window": window, "steps": n_steps, "paths": 1}
            | {"calls": 4 * n_steps * truth.n_classes * (n_features + 1), "cells": few}
            | {"seconds_per_1000": 1000 * seconds / few}
            | errors(found, exact[:few], y[:few])
        )
    return [{"n_features": n_features, "bayes_accuracy": bayes_accuracy(truth, z, y), **row} for row in rows]


def adaptive_rows(
    truth: GaussianReference, *, n_cells: int, n_steps: int, fixed: tuple[int, ...], precisions: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Fixed numbers of paths beside adaptive ones, the same noise; dissipation with the reference."""
    model, (z, y) = exact_model(truth, "reference"), draw_cells(truth, n_cells, seed=1)
    exact = exact_log_prob(truth, z)
    log_prior = np.full(truth.n_classes, -math.log(truth.n_classes))
    rows = []
    efforts: list[tuple[str, int, Stopping | None]] = [(f"{n} paths", n, None) for n in fixed]
    efforts += [(f"precision {p}", 64, Stopping(log_prior, 1.0, p)) for p in precisions]
    for name, n_paths, stopping in efforts:
        start = time.process_time()
        with torch.no_grad():
            found = log_likelihood(model, z, noise=NoiseStream(0), n_steps=n_steps, n_paths=n_paths, stopping=stopping)
        seconds = time.process_time() - start
        posterior, best = found.mean.softmax(1), found.mean.argmax(1)
        confidence_error = (posterior - exact.softmax(1)).gather(1, best[:, None]).abs()
        spent = found.n_paths.amax(1)
        rows.append(
            {"n_features": truth.n_features, "n_classes": truth.n_classes, "effort": name, "steps": n_steps}
            | {"calls": float(spent.mean()) * n_steps, "median_calls": float(spent.median()) * n_steps}
            | {"share_of_classes": float((found.n_paths.sum(1) / (spent * truth.n_classes)).mean())}
            | {"cells": n_cells, "tv": errors(found, exact, y)["tv"]}
            | {f"within_{p}": float((confidence_error <= p).to(torch.float64).mean()) for p in precisions}
            | {"label_agrees": float((best == exact.argmax(1)).double().mean())}
            | {"seconds_per_1000": 1000 * seconds / n_cells}
        )
    return rows
