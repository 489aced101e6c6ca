"""Log-likelihood of every class: three estimators behind one call, adaptive effort, and what their draws tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scscore.core.calibration import Array, standard_error
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.direct import DirectPosterior
from scscore.core.dissipation import dissipation
from scscore.core.elbo import elbo
from scscore.core.flow import EXACT_UP_TO, flow
from scscore.core.stopping import Stopping
from scscore.core.trajectories import NoiseStream

Estimator = Literal["dissipation", "elbo", "flow"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


@dataclass(frozen=True)
class LogLikelihood:
    """Estimates of log p(z | class) for a chunk of points.

    Attributes
    ----------
    paths
        One estimate per noising trajectory, nats, float64, shape ``(n_draws, size, n, n_classes)``: independent draws of `size`
        antithetic paths each. NaN where a draw was not made, because point or class were settled before.
    exact
        The estimates are free of Monte-Carlo error (probability flow with exact divergence, or a model without residual).
    bare
        `mean` without the readout, nats ``(n, n_classes)``; ``None``: there is none.
    """

    paths: Tensor
    exact: bool = False
    bare: Tensor | None = None

    @property
    def draws(self) -> Tensor:
        """Independent draws: the means of the antithetic paths, nats, ``(n_draws, n, n_classes)``."""
        return self.paths.mean(1)

    @property
    def mean(self) -> Tensor:
        """Estimate of the log-likelihood, nats, shape ``(n, n_classes)``."""
        return self.draws.nanmean(0)

    @property
    def density(self) -> Tensor:
        """Estimate of the diffusion's own log-likelihood, without a readout, nats, shape ``(n, n_classes)``."""
        return self.mean if self.bare is None else self.bare

    @property
    def standard_error(self) -> Tensor:
        """Monte-Carlo standard error of `mean`, nats, ``(n, n_classes)``; NaN for a single draw, zero for exact estimates."""
        if self.exact:
            return torch.zeros_like(self.paths[0, 0])
        return torch.from_numpy(standard_error(self.draws.cpu().numpy())).to(self.paths.device)

    @property
    def jarzynski(self) -> Tensor:
        """Logarithm of the mean over paths of the exponential, nats, ``(n, n_classes)``: Jarzynski's average.

        For the dissipation estimator and short jumps it is consistent for the density of the points that the model generates
        (derivation page, *Second law*).
        """
        return _log_sum_exp(self.paths) - self.n_paths.log()

    @property
    def second_law_gap(self) -> Tensor:
        """`jarzynski` less `mean`, nats, ``(n, n_classes)``, never negative: the mean excess work of the trajectories."""
        return self.jarzynski - self.mean

    @property
    def effective_sample_size(self) -> Tensor:
        """Paths that carry the Jarzynski average, ``(n, n_classes)``, between 1 and the number of paths."""
        return (2 * _log_sum_exp(self.paths) - _log_sum_exp(2 * self.paths)).exp()

    @property
    def n_paths(self) -> Tensor:
        """Number of paths behind every estimate, ``(n, n_classes)``, float64."""
        return self.paths.isfinite().to(torch.float64).sum((0, 1))

    @classmethod
    def mixture(cls, parts: Sequence[LogLikelihood], log_weights: NDArray[np.float64]) -> LogLikelihood:
        """Log-likelihood of a mixture, such as one over unknown covariates: weighted sums of the parts, path by path."""
        n_draws = max(len(part.paths) for part in parts)
        stacked = torch.stack(
            [_with_draws(part.paths, n_draws) + w for part, w in zip(parts, log_weights, strict=True)]
        )
        bare = None
        if any(part.bare is not None for part in parts):
            weighted = [part.density + w for part, w in zip(parts, log_weights, strict=True)]
            bare = torch.stack(weighted).logsumexp(0)
        return cls(stacked.logsumexp(0), all(part.exact for part in parts), bare)

    def replaced(self, other: LogLikelihood, rows: NDArray[np.bool_]) -> LogLikelihood:
        """These estimates, with those of `other` at some rows, bool ``(n,)``."""
        n_draws = max(len(self.paths), len(other.paths))
        chosen = torch.from_numpy(rows).to(self.paths.device)[:, None]
        paths = torch.where(chosen, _with_draws(other.paths, n_draws), _with_draws(self.paths, n_draws))
        bare = None
        if self.bare is not None or other.bare is not None:
            bare = torch.where(chosen, other.density, self.density)
        return LogLikelihood(paths, self.exact and other.exact, bare)

    def mapped(self, weights: Array) -> LogLikelihood:
        """Linear combinations of the classes, ``(n_classes, n_wanted)``, such as the log-likelihoods of bins from those at the nodes."""
        to_wanted = torch.from_numpy(weights).to(self.paths)
        return LogLikelihood(self.paths @ to_wanted, self.exact, None if self.bare is None else self.bare @ to_wanted)

    def shifted(self, nats: float) -> LogLikelihood:
        """The same estimates on the CPU with a constant added, such as the volume of a change of coordinates."""
        return LogLikelihood(self.paths.cpu() + nats, self.exact, None if self.bare is None else self.bare.cpu() + nats)


def log_likelihood(
    model: ConditionalDiffusion | DirectPosterior,
    z: Tensor,
    *,
    noise: NoiseStream,
    estimator: Estimator = "dissipation",
    n_steps: int = 16,
    n_paths: int = 8,
    start: int = 0,
    stopping: Stopping | None = None,
) -> LogLikelihood:
    """Log-likelihood of every class, with the reference's exact one as control variate.

    Parameters
    ----------
    model
        The conditional diffusion model, in evaluation mode; its readout, if it has one, is pooled with the log-likelihoods. Of the twin without a density
        the ratio to log p(y) is given.
    z
        Clean points, shape ``(n, n_features)``, with class scores behind the features where the readout knows of any.
    noise
        Source of the noise.
    estimator
        ``"dissipation"`` along noising trajectories, ``"elbo"`` at stratified noise levels, or ``"flow"``, the probability
        flow (deterministic up to 256 dimensions, costly).
    n_steps
        Jumps per trajectory, strata, or Runge-Kutta steps.
    n_paths
        Number of trajectories, in antithetic pairs (an even number). For the flow above 256 dimensions, the number of
        Hutchinson's probes; below, it has no influence.
    start
        Position of the first row of `z` in the whole data set.
    stopping
        Stop early where a decision is settled: `n_paths` is then an upper bound. The number of pairs starts at two and
        doubles, for points that are not settled and classes that may still win. ``None``: all paths for all. The flow is never
        stopped.

    Returns
    -------
    LogLikelihood
        ``n_paths / 2`` independent draws.
    """
    if isinstance(model, DirectPosterior):
        return LogLikelihood(model.log_ratio(z).to(torch.float64)[None, None], exact=True)
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {list(ESTIMATORS)}, got {estimator!r}.")
    if n_paths < 2 or n_paths % 2:
        raise ValueError(f"n_paths must be a positive even number (antithetic pairs), got {n_paths}.")
    found = _of_density(
        model,
        z,
        noise=noise,
        estimator=estimator,
        n_steps=n_steps,
        n_paths=n_paths,
        start=start,
        stopping=stopping,
    )
    if model.readout is None:
        return found
    return LogLikelihood(_read_out(model, found.paths, z), found.exact, bare=found.mean)


def _of_density(
    model: ConditionalDiffusion,
    z: Tensor,
    *,
    noise: NoiseStream,
    estimator: Estimator,
    n_steps: int,
    n_paths: int,
    start: int,
    stopping: Stopping | None,
) -> LogLikelihood:
    """The log-likelihoods without the readout, which only decides when to stop."""
    own = model.own(z)
    if estimator == "flow":
        return flow_log_likelihood(model, own, n_steps=n_steps, noise=noise, n_probes=n_paths, start=start)
    reference = model.reference.log_prob(own)
    if model.denoiser is None:
        return LogLikelihood(reference.expand(1, 1, -1, -1), exact=True)
    levels = model.schedule.levels(n_steps).to(z.device)

    paths = torch.full((n_paths // 2, 2, *reference.shape), torch.nan, dtype=torch.float64, device=z.device)
    active, wanted = np.arange(len(z)), torch.ones_like(reference, dtype=torch.bool)
    n_done, n_next = 0, n_paths // 2 if stopping is None else min(2, n_paths // 2)
    while True:
        points, rows, classes = own[active], start + active, _most_wanted(wanted[active])
        for pair in range(n_done, n_next):
            draw = _on_device(partial(noise.normal, rows, model.n_features, pair=pair), z)
            if estimator == "elbo":
                steps = elbo(model, points, levels, draw, noise.uniform(n_steps, pair=pair), classes)
            else:
                steps = dissipation(model, points, levels, draw, classes)
            gain = reference[active] + _for_all_classes(sum(steps), classes, model.n_classes)  # type: ignore[arg-type]
            paths[pair][:, active] = torch.where(wanted[active], gain, torch.nan)
        n_done = n_next
        if stopping is None or n_done == n_paths // 2:
            return LogLikelihood(paths)
        draws = _read_out(model, paths[:n_done, :, active], z[active]).mean(1)
        settled, hopeless = stopping.settled(draws.cpu().numpy())
        wanted[active] &= torch.from_numpy(~hopeless).to(z.device)
        active = active[~settled]
        if not len(active):
            return LogLikelihood(paths[:n_done])
        n_next = min(2 * n_done, n_paths // 2)


def flow_log_likelihood(
    model: ConditionalDiffusion,
    z: Tensor,
    *,
    n_steps: int,
    noise: NoiseStream,
    n_probes: int = 2,
    start: int = 0,
    classes: Tensor | None = None,
) -> LogLikelihood:
    """Log-likelihood by the probability flow, of all or of some classes, without the readout.

    Parameters
    ----------
    model, z, noise, start
        As in :func:`log_likelihood`.
    n_steps
        Runge-Kutta steps.
    n_probes
        Hutchinson's probes, above 256 dimensions.
    classes
        The classes wanted at every point, ``(n, n_wanted)``; ``None``: all.
    """
    reference = model.reference.log_prob(z)
    if classes is not None:
        reference = reference.gather(-1, classes)
    if model.denoiser is None:
        return LogLikelihood(reference[None, None], exact=True)
    levels = model.schedule.levels(n_steps).to(z.device)
    if model.n_features <= EXACT_UP_TO:
        return LogLikelihood((reference + flow(model, z, levels, classes=classes))[None, None], exact=True)
    rows = start + np.arange(len(z))
    probes = torch.stack([noise.normal(rows, model.n_features, pair=i, step=0).sign() for i in range(n_probes)])
    return LogLikelihood((reference + flow(model, z, levels, classes=classes, probes=probes))[:, None])


def _read_out(model: ConditionalDiffusion, paths: Tensor, z: Tensor) -> Tensor:
    """Paths ``(n_draws, size, n, n_classes)`` pooled with the readout, which leaves log p(x) of their mean alone."""
    if model.readout is None:
        return paths
    return model.readout.pooled(paths, z) + model.readout.normaliser(paths.nanmean((0, 1)), z)


def _with_draws(paths: Tensor, n_draws: int) -> Tensor:
    """Paths with draws that were not made, NaN, at the end."""
    return torch.nn.functional.pad(paths, (0, 0, 0, 0, 0, 0, 0, n_draws - len(paths)), value=torch.nan)


def _most_wanted(wanted: Tensor) -> Tensor | None:
    """Indices of the wanted classes of every point, ``(n, widest)``, filled up with others; ``None`` where all are wanted."""
    widest = int(wanted.sum(-1).max())
    if widest == wanted.shape[-1]:
        return None
    return wanted.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :widest]


def _for_all_classes(values: Tensor, classes: Tensor | None, n_classes: int) -> Tensor:
    """Values ``(2, n, n_wanted)`` at their places among all classes, NaN elsewhere."""
    if classes is None:
        return values
    out = values.new_full((*values.shape[:-1], n_classes), torch.nan)
    return out.scatter(-1, classes.expand_as(values), values)


def _on_device(draw: Callable[..., Tensor], z: Tensor) -> Callable[[int], Tensor]:
    """The noise of a step in the precision and on the device of `z`."""
    return lambda step: draw(step=step).to(z)


def _log_sum_exp(paths: Tensor) -> Tensor:
    """Over draws and paths; a draw that was not made weighs nothing."""
    return torch.where(paths.isfinite(), paths, -torch.inf).flatten(0, 1).logsumexp(0)
