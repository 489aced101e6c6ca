"""From represented cells to a calibrated model: reference by cross-validation, residual by validated training, refit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scscore.core.calibration import fit_temperature, log_posterior
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.likelihood import dissipation
from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import (
    Array,
    Fold,
    ReferenceFit,
    ReferenceShape,
    Whitening,
    build_reference,
    fit_reference,
    overlap_weights,
)
from scscore.core.schedule import NoiseSchedule
from scscore.core.training import TrainingConfig, TrainingResult, train
from scscore.core.trajectories import NoiseStream

_MAX_CHECKED_CELLS = 2000


@dataclass(frozen=True)
class FitOutcome:
    """A trained and calibrated model, and the figures that led to it.

    Attributes
    ----------
    whitening, diffusion
        The model.
    temperature
        Fitted to the validation cells.
    reference
        How the reference was chosen.
    training
        The run with validation, whose best step count the refit uses.
    validation_nll, validation_accuracy
        Of the calibrated posterior of the validation cells.
    n_steps
        Training steps of the final weights.
    """

    whitening: Whitening
    diffusion: ConditionalDiffusion
    temperature: float
    reference: ReferenceFit
    training: TrainingResult
    validation_nll: float
    validation_accuracy: float
    n_steps: int


def fit_conditional_diffusion(
    folds: Sequence[Fold],
    validation: Fold,
    x: Array,
    y: NDArray[np.integer],
    *,
    n_classes: int,
    log_prior: Array,
    shapes: Sequence[ReferenceShape],
    schedule: NoiseSchedule,
    config: TrainingConfig,
    n_steps: int,
    n_paths: int,
    seed: int,
    checkpoint_dir: Path | None = None,
    progress: bool = True,
    **trainer: Any,
) -> FitOutcome:
    """Fit reference, residual and temperature.

    The residual is trained twice: on the training part of `validation`, to find the number of steps and the temperature
    on cells that neither encoder nor model has seen; then on all cells for as many epochs, so that no labelled cell is
    lost. Where training does not improve on the reference, the model stays without a denoiser.

    Parameters
    ----------
    folds
        Splits for the choice of the reference.
    validation
        Split for early stopping and temperature; the first of `folds`, possibly with more cells.
    x, y
        Representation and class indices of all cells.
    n_classes, log_prior
        Number of classes and their log prior.
    shapes
        Candidate shapes of the reference.
    schedule, config
        Noise schedule and training hyper-parameters.
    n_steps, n_paths
        Sampling effort for which the temperature is fitted.
    seed
        Seed of everything random.
    checkpoint_dir
        Where to write checkpoints and resume from.
    progress
        Show progress bars.
    **trainer
        `accelerator`, `devices` and `strategy` of :func:`scscore.core.training.train`.
    """
    chosen = fit_reference(folds, x, y, n_classes=n_classes, log_prior=log_prior, shapes=shapes)
    others = slice(1, None) if len(folds) > 1 else slice(None)
    labels = np.concatenate([fold.y_held_out for fold in folds[others]])
    weights = overlap_weights(np.concatenate(chosen.held_out[others]), labels, n_classes)
    whitening, reference = build_reference(
        validation.x_train, validation.y_train, n_classes=n_classes, shape=chosen.shape, weights=weights
    )
    prior = torch.from_numpy(log_prior).to(torch.float32)

    def stage(name: str) -> dict[str, Any]:
        directory = None if checkpoint_dir is None else checkpoint_dir / name
        return {"seed": seed, "checkpoint_dir": directory, "progress": progress, "description": f"fit: {name}", **trainer}

    z, z_held_out = (whitening(torch.from_numpy(part)) for part in (validation.x_train, validation.x_held_out))
    y_train, y_held_out = (torch.from_numpy(part.astype(np.int64)) for part in (validation.y_train, validation.y_held_out))
    model = _with_denoiser(schedule, reference, z, seed)
    checked = _spread(len(z_held_out), _MAX_CHECKED_CELLS)
    training = train(
        model, z, y_train, prior, config, validation=(z_held_out[checked], y_held_out[checked]), **stage("validation")
    )
    if training.n_steps == 0:
        model.denoiser = None
    held_out = _log_likelihood(model, z_held_out, n_steps=n_steps, n_paths=n_paths, seed=seed)
    temperature = fit_temperature(held_out, log_prior, validation.y_held_out)
    log_p = log_posterior(held_out, log_prior, temperature)
    nll = -float(log_p[np.arange(len(log_p)), validation.y_held_out].mean())
    accuracy = float((log_p.argmax(1) == validation.y_held_out).mean())

    final_steps = round(training.n_steps * len(x) / len(z))
    z_all = chosen.whitening(torch.from_numpy(x))
    final = ConditionalDiffusion(schedule, chosen.reference)
    if final_steps:
        final = _with_denoiser(schedule, chosen.reference, z_all, seed)
        refit = TrainingConfig(**{**vars(config), "max_steps": final_steps})
        train(final, z_all, torch.from_numpy(y.astype(np.int64)), prior, refit, **stage("all cells"))
    return FitOutcome(
        chosen.whitening, final.cpu().eval(), temperature, chosen, training, nll, accuracy, final_steps
    )


def _with_denoiser(
    schedule: NoiseSchedule, reference: GaussianReference, z: Tensor, seed: int
) -> ConditionalDiffusion:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = ResidualDenoiser(reference.n_features, reference.n_classes, z.std(0))
    return ConditionalDiffusion(schedule, reference, denoiser)


def _log_likelihood(model: ConditionalDiffusion, z: Tensor, *, n_steps: int, n_paths: int, seed: int) -> Array:
    """Log-likelihoods of all points, in chunks, ``(n, n_classes)``."""
    model, noise, size = model.cpu().eval(), NoiseStream(seed), 1024
    with torch.inference_mode():
        parts = [
            dissipation(model, z[i : i + size], n_steps=n_steps, n_paths=n_paths, noise=noise, start=i).mean.numpy()
            for i in range(0, len(z), size)
        ]
    return np.concatenate(parts)


def _spread(n: int, at_most: int) -> NDArray[np.int64]:
    """Evenly spread row numbers, at most `at_most` of them."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64))
