"""Validation runs: networks trained on one part of the cells and watched on cells that neither encoder nor network has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.direct import DirectNetwork, DirectPosterior
from scscore.core.readout import ReadoutChoice, ReadoutRun, ScoreMap, choose_readout, fit_readout, normaliser
from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import Array, Fold, Whitening
from scscore.core.schedule import NoiseSchedule
from scscore.core.target import TargetGrid
from scscore.core.thinning import evenly_spread
from scscore.core.training import TrainingConfig, TrainingResult, train
from scscore.core.value_readout import NetworkReadoutChoice, fit_network_pool

_ENOUGH_CELLS = 2000
_MOST_RUNS = 3
# of the networks: with a continuous target they have more to learn than the reference knows
_WIDTH, _WIDTH_OF_VALUES = 128, 256


@dataclass(frozen=True)
class NetworkTraining:
    """How the networks of a fit are made and trained.

    Attributes
    ----------
    schedule, config
        Noise schedule and hyper-parameters.
    log_prior
        Log prior of the classes, of a continuous target of the bins.
    seed
        Seed of weights, batches and noise.
    grid
        Bins of a continuous target.
    direct
        Fit the posterior of a continuous target without a density.
    checkpoint_dir, progress
        Where to write checkpoints and resume from; show progress bars.
    trainer
        `accelerator`, `devices` and `strategy` of :func:`scscore.core.training.train`.
    """

    schedule: NoiseSchedule
    config: TrainingConfig
    log_prior: Array
    seed: int
    grid: TargetGrid | None
    direct: bool
    checkpoint_dir: Path | None
    progress: bool
    trainer: dict[str, Any]

    def labels(self, y: NDArray[Any]) -> Tensor:
        """Class indices, or weights of the bins, of labels ``(n,)``."""
        if self.grid is None:
            return torch.from_numpy(y.astype(np.int64))
        return torch.from_numpy(self.grid.soft_labels(y).astype(np.float32))

    def untrained(
        self, reference: GaussianReference, z: Tensor, *, member: int = 0, readout: bool = False
    ) -> ConditionalDiffusion | DirectPosterior:
        """A model with an untrained network for points like `z`; for the readout of a continuous target, a direct one."""
        width = _WIDTH if self.grid is None else _WIDTH_OF_VALUES
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + member)
            if self.direct or readout:
                return DirectPosterior(DirectNetwork(z.std(0), reference.n_classes, width=width))
            network = ResidualDenoiser(reference.class_means, z.std(0), width=width)
            return ConditionalDiffusion(self.schedule, reference, network)

    def run(
        self,
        name: str,
        model: ConditionalDiffusion | DirectPosterior,
        z: Tensor,
        y: NDArray[Any],
        *,
        max_steps: int | None = None,
        member: int = 0,
        **validation: Any,
    ) -> TrainingResult:
        """Train the network of `model` on points and labels, for some steps, or until the cells of `validation` say that it is enough."""
        return train(
            model,
            z,
            self.labels(y),
            torch.from_numpy(self.log_prior).to(torch.float32),
            self.config if max_steps is None else replace(self.config, max_steps=max_steps),
            to_bins=None if self.grid is None else torch.from_numpy(self.grid.to_bins).to(torch.float32),
            seed=self.seed + member,
            checkpoint_dir=None if self.checkpoint_dir is None else self.checkpoint_dir / name.replace(" ", "_"),
            progress=self.progress,
            description=f"fit: {name}",
            **self.trainer,
            **validation,
        )


@dataclass(frozen=True)
class _Run:
    """One split: its fold, the rows of the held-out cells that are watched, and the course of both trainings."""

    whitening: Whitening
    fold: Fold
    rows: NDArray[np.integer]
    result: TrainingResult
    of_readout: TrainingResult | None
    depth: Array | None


@dataclass(frozen=True)
class ValidationRuns:
    """Runs on as many splits as it takes to watch 2,000 cells, three at most, or on every split.

    Attributes
    ----------
    runs
        One for every split.
    training
        How their networks were trained.
    n_scores
        Columns at the end of the representation that are class scores, for the readout alone.
    """

    runs: Sequence[_Run]
    training: NetworkTraining
    n_scores: int = 0

    @classmethod
    def of(
        cls,
        training: NetworkTraining,
        folds: Sequence[Fold],
        reference_of: Callable[[int], tuple[Whitening, GaussianReference]],
        *,
        n_steps: int,
        n_paths: int,
        depth: Sequence[Array] | None = None,
        every_split: bool = False,
        with_network_readout: bool = False,
        n_scores: int = 0,
    ) -> ValidationRuns:
        """Train and watch.

        Parameters
        ----------
        training
            How.
        folds
            The splits.
        reference_of
            From the number of a split to the whitening and the reference of its training part.
        n_steps, n_paths
            Sampling effort for the log-likelihoods of the watched cells.
        depth
            Log count totals of the held-out cells of every split, or ``None``.
        every_split
            Watch cells of every split, because each holds out other donors or studies.
        with_network_readout
            Train the network of a readout beside each.
        n_scores
            Columns at the end of the representation that are class scores.
        """
        runs: list[_Run] = []
        n_runs = n_watched_splits([len(fold.y_held_out) for fold in folds], every_split=every_split)
        n_watched = -(-_ENOUGH_CELLS // n_runs) if every_split else _ENOUGH_CELLS
        for i, fold in enumerate(folds[:n_runs]):
            whitening, reference = reference_of(i)
            z, rows = whitening(torch.from_numpy(fold.x_train)), evenly_spread(len(fold.y_held_out), n_watched)
            held_out = whitening(torch.from_numpy(fold.x_held_out[rows])), training.labels(fold.y_held_out[rows])
            name = f"validation {i + 1}"
            watched: dict[str, Any] = {"validation": held_out, "n_steps": n_steps, "n_paths": n_paths}
            model = training.untrained(reference, z)
            # what only some runs reach is not looked at
            longest = min((run.result.steps[-1] for run in runs), default=None)
            result = training.run(name, model, z, fold.y_train, max_steps=longest, **watched)
            of_readout = None
            if with_network_readout:
                model = training.untrained(reference, z, readout=True)
                longest = min((run.of_readout.steps[-1] for run in runs if run.of_readout is not None), default=None)
                of_readout = training.run(f"{name}, readout", model, z, fold.y_train, max_steps=longest, **watched)
            runs.append(_Run(whitening, fold, rows, result, of_readout, None if depth is None else depth[i][rows]))
        return cls(runs, training, n_scores)

    @cached_property
    def truth(self) -> NDArray[Any]:
        """Labels of the watched cells."""
        return np.concatenate([run.fold.y_held_out[run.rows] for run in self.runs])

    @property
    def log_depth(self) -> Array | None:
        """Log count totals of the watched cells."""
        found = [run.depth for run in self.runs if run.depth is not None]
        return np.concatenate(found) if found else None

    @property
    def log_abs_det(self) -> Array:
        """Log volume of the whitening behind every watched cell."""
        return np.repeat([run.whitening.log_abs_det for run in self.runs], self._sizes)

    @cached_property
    def loss(self) -> Array:
        """Mean validation loss at the checks that all runs have; of a density, in the space of the representation."""
        found = _mean_loss([run.result for run in self.runs], self._sizes)
        return found - (self.log_abs_det.mean() if len(self.training.log_prior) == 1 else 0)

    @property
    def training_loss(self) -> list[float]:
        """Mean training loss at these checks."""
        return np.mean([run.result.training_loss[: len(self.loss)] for run in self.runs], axis=0).tolist()

    @property
    def steps(self) -> list[int]:
        """Steps made at these checks."""
        return self.runs[0].result.steps[: len(self.loss)]

    @property
    def best(self) -> int:
        """The best check."""
        return int(self.loss.argmin())

    def n_steps_for(self, n_cells: int, steps: int) -> int:
        """As many epochs with so many cells as the runs made in some steps."""
        n_train = sum(len(run.fold.y_train) for run in self.runs)
        return round(steps * n_cells * len(self.runs) / n_train)

    def log_likelihood(self) -> Array:
        """Of the watched cells at the best check, in the whitened space, nats ``(n, n_classes)``; of a continuous target, ``(n, n_bins)``."""
        return self._at_bins([run.result.log_likelihood[self.best] for run in self.runs])

    def linear_readout(self) -> tuple[ReadoutChoice, Array]:
        """The readout of classes that suits the watched cells, and their log-likelihoods pooled with it."""
        runs = [
            ReadoutRun(
                run.whitening,
                run.fold.x_train,
                run.fold.y_train,
                run.fold.x_held_out[run.rows],
                run.fold.y_held_out[run.rows],
                run.result.log_likelihood[self.best].numpy(),
                self.n_scores,
            )
            for run in self.runs
        ]
        log_prior = self.training.log_prior
        choice, pooled = choose_readout(runs, log_prior), []
        n_scores = self.n_scores if choice.of_scores else 0
        # the scores of all watched cells are known: nothing has to be made of their features
        nowhere = ScoreMap(np.zeros((runs[0].x_train.shape[1], n_scores)), np.zeros(n_scores))
        for run in runs:
            readout = fit_readout(run.x_train, run.y_train, run.whitening, choice, log_prior, nowhere)
            z = run.whitening.with_scores(run.x_held_out, n_scores)
            pooled.append(readout(torch.from_numpy(run.log_likelihood), z).numpy())
        return choice, np.concatenate(pooled)

    def network_readout(self, grid: TargetGrid, n_cells: int) -> tuple[NetworkReadoutChoice, Array]:
        """The same for a continuous target; the number of steps is that for so many cells."""
        results = [run.of_readout for run in self.runs if run.of_readout is not None]
        best = max(int(_mean_loss(results, self._sizes).argmin()), 1)  # an untrained network has nothing to say
        ratios, bare = self._at_bins([result.log_likelihood[best] for result in results]), self.log_likelihood()
        log_prior = self.training.log_prior
        weights = fit_network_pool(bare, ratios, log_prior, self.truth, grid)
        choice = NetworkReadoutChoice(*weights, n_steps=self.n_steps_for(n_cells, results[0].steps[best]))
        pooled = weights[0] * bare + weights[1] * ratios
        return choice, pooled + normaliser(*(torch.from_numpy(part) for part in (bare, pooled, log_prior))).numpy()

    @property
    def _sizes(self) -> list[int]:
        return [len(run.rows) for run in self.runs]

    def _at_bins(self, values: Sequence[Tensor]) -> Array:
        found = torch.cat(list(values)).numpy()
        return found if self.training.grid is None else found @ self.training.grid.to_bins


def n_watched_splits(n_held_out: Sequence[int], *, every_split: bool) -> int:
    """Of how many of the splits, with these numbers of held-out cells, cells are watched: the first ones."""
    if every_split:
        return len(n_held_out)
    watched = np.cumsum([min(n, _ENOUGH_CELLS) for n in n_held_out[:_MOST_RUNS]])
    return min(int((watched < _ENOUGH_CELLS).sum()) + 1, len(watched))


def _mean_loss(results: Sequence[TrainingResult], sizes: Sequence[int]) -> Array:
    """Validation loss at the checks that all runs have, averaged over runs of some numbers of cells."""
    n_checks = min(len(result.steps) for result in results)
    return np.average([result.validation_loss[:n_checks] for result in results], axis=0, weights=sizes)
