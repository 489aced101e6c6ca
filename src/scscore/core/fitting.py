"""From represented cells to a calibrated model: reference by cross-validation, residual by validated training, refit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scscore.core.calibration import fit_calibration, fit_temperature, log_posterior, negative_log_likelihood
from scscore.core.denoiser import Ensemble
from scscore.core.density_fit import build_density, fit_density
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.direct import DirectPosterior
from scscore.core.effort import choose_effort
from scscore.core.held_out import HeldOut, HeldOutValues
from scscore.core.readout import ReadoutChoice, ScoreMap, fit_readout
from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import (
    INFLATIONS,
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
from scscore.core.target import Predictive, TargetGrid
from scscore.core.target_reference import fit_target_reference
from scscore.core.thinning import evenly_spread
from scscore.core.training import TrainingConfig
from scscore.core.validation import NetworkTraining, ValidationRuns
from scscore.core.value_readout import NetworkReadout, NetworkReadoutChoice

_ENOUGH_CELLS_FOR_LEVELS = 300


@dataclass(frozen=True)
class FitOutcome:
    """A trained and calibrated model, and the figures that led to it.

    Attributes
    ----------
    whitening, engine
        The model.
    temperature, offsets, density_temperature
        Calibration of the posterior, fitted to the validation cells; the last is that of the log-likelihoods without a readout.
    reference
        How the reference was chosen.
    readout
        What was chosen for the readout; ``None`` without one.
    steps, training_loss, validation_loss
        Course of the validation runs, averaged: steps made, training loss, and negative log posterior of the validation
        cells (nats per cell). The first entry is the reference alone.
    n_steps
        Training steps of the final weights.
    n_jumps
        Jumps per noising trajectory that the posterior of this model needs.
    validation_nll, validation_accuracy
        Of the calibrated posterior of the validation cells at the chosen step. With a continuous target, negative log density
        (nats per unit) and the coefficient of determination of the mean.
    held_out, held_out_values
        Log-likelihoods (of the representation, not of the whitened space) and labels of the validation cells.
    """

    whitening: Whitening
    engine: ConditionalDiffusion | DirectPosterior
    temperature: float
    offsets: tuple[float, ...]
    density_temperature: float
    reference: ReferenceFit
    readout: ReadoutChoice | NetworkReadoutChoice | None
    steps: list[int]
    training_loss: list[float]
    validation_loss: list[float]
    n_steps: int
    n_jumps: int
    validation_nll: float
    validation_accuracy: float
    held_out: HeldOut | None
    held_out_values: HeldOutValues | None


def fit_conditional_diffusion(
    folds: Sequence[Fold],
    validation: Sequence[Fold],
    x: Array,
    y: NDArray[Any],
    *,
    n_classes: int,
    log_prior: Array,
    shapes: Sequence[ReferenceShape],
    schedule: NoiseSchedule,
    config: TrainingConfig,
    n_steps: int,
    n_paths: int,
    seed: int,
    grid: TargetGrid | None = None,
    direct: bool = False,
    n_members: int = 1,
    validation_depth: Sequence[Array] | None = None,
    every_split: bool = False,
    with_readout: bool = True,
    scores: ScoreMap | None = None,
    checkpoint_dir: Path | None = None,
    progress: bool = True,
    **trainer: Any,
) -> FitOutcome:
    """Fit reference, residual and calibration.

    First the residual is trained on the training part of a few splits (as many as it takes to watch 2,000 cells, three at
    most); the number of steps and the calibration come from their held-out cells, which neither encoder nor model has
    seen. Then it is trained on all cells for as many epochs, so that no labelled cell is lost. Where training does not
    improve on the reference, the model stays without a denoiser. Window and placement of the noise levels and the number of
    jumps are chosen last, for the final model.

    Parameters
    ----------
    folds
        Splits for the choice of the reference.
    validation
        Splits for the number of steps and the temperature.
    x, y
        Representation and class indices (values of a continuous target) of all cells.
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
    grid
        Bins of a continuous target, which take the place of the classes.
    direct
        Fit the posterior of a continuous target without a density.
    n_members
        Denoisers trained on all cells, from different random numbers; the mean of their residuals is used.
    validation_depth
        Log count totals of the held-out cells of every split in `validation`, or ``None``.
    every_split
        Watch cells of every split, because each holds out other donors or studies, instead of as few splits as it takes.
    with_readout
        Pool the log-likelihoods with a linear classifier, with a continuous target with networks that give its posterior directly (with the hybrid
        objective). Of no use behind an encoder that has seen the labels: its training points are easier to tell apart than new ones.
    scores
        The last columns of the representation are class scores, for the readout alone; those of a cell that is known by its features only.
    checkpoint_dir
        Where to write checkpoints and resume from.
    progress
        Show progress bars.
    **trainer
        `accelerator`, `devices` and `strategy` of :func:`scscore.core.training.train`.
    """
    chosen, of_fold = _choose_reference(
        folds,
        validation,
        x,
        y,
        log_prior=log_prior,
        shapes=shapes,
        inflations=INFLATIONS if config.discriminative_weight else (),
        seed=seed,
        grid=grid,
    )
    training = NetworkTraining(
        schedule=schedule,
        config=config,
        log_prior=log_prior,
        seed=seed,
        grid=grid,
        direct=direct,
        checkpoint_dir=checkpoint_dir,
        progress=progress,
        trainer=trainer,
    )
    n_scores = 0 if scores is None else scores.n_scores
    with_readout &= config.discriminative_weight > 0 and n_classes > 1 and not direct
    runs = ValidationRuns.of(
        training,
        validation,
        of_fold,
        n_steps=n_steps,
        n_paths=n_paths,
        depth=validation_depth,
        every_split=every_split,
        with_network_readout=with_readout and grid is not None,
        n_scores=n_scores,
    )
    bare = log_likelihood = runs.log_likelihood()
    choice: ReadoutChoice | NetworkReadoutChoice | None = None
    if with_readout:
        choice, log_likelihood = runs.linear_readout() if grid is None else runs.network_readout(grid, len(x))
    if not (isinstance(choice, ReadoutChoice) and choice.of_scores):
        scores = None
    judged = _judge if grid is None else partial(_judge_values, grid=grid)
    temperature, offsets, nll, accuracy = judged(log_likelihood, log_prior, runs.truth)
    density_temperature = temperature  # which differs only with a readout, and is asked for only of a continuous target
    if choice is not None and grid is not None:
        density_temperature = judged(bare, log_prior, runs.truth)[0]
    if n_classes == 1:
        nll = float(runs.loss.min())
    if not direct:  # from the whitened space to the representation
        volume = runs.log_abs_det[:, None]
        log_likelihood, bare = log_likelihood + volume, bare + volume

    final_steps = runs.n_steps_for(len(x), runs.steps[runs.best])
    if direct:  # there is no reference to do without a network
        final_steps = max(final_steps, 1)
    final = _final_model(training, chosen, x, y, final_steps, choice, n_members, scores)
    n_jumps = n_steps
    if isinstance(final, ConditionalDiffusion):
        some = chosen.whitening.with_scores(x[evenly_spread(len(x), _ENOUGH_CELLS_FOR_LEVELS)], final.n_scores)
        log_weights = log_prior + (np.asarray(offsets) if offsets else 0.0)
        # with a continuous target the posteriors of the networks are averaged, not their residuals
        alone = final if grid is None else final.members()[0].eval()
        final.schedule, n_jumps = choose_effort(
            alone, some, log_weights, temperature, n_paths=n_paths, grid=grid, seed=seed
        )
    held_out = log_likelihood, runs.truth, runs.log_depth, None if choice is None else bare
    return FitOutcome(
        whitening=chosen.whitening,
        engine=final,
        temperature=temperature,
        offsets=offsets,
        density_temperature=density_temperature,
        reference=chosen,
        readout=choice,
        steps=runs.steps,
        training_loss=runs.training_loss,
        validation_loss=runs.loss.tolist(),
        n_steps=final_steps,
        n_jumps=n_jumps,
        validation_nll=nll,
        validation_accuracy=accuracy,
        held_out=HeldOut.of(*held_out) if grid is None else None,
        held_out_values=None if grid is None else HeldOutValues.of(*held_out),
    )


def _final_model(
    training: NetworkTraining,
    chosen: ReferenceFit,
    x: Array,
    y: NDArray[Any],
    n_steps: int,
    choice: ReadoutChoice | NetworkReadoutChoice | None,
    n_members: int,
    scores: ScoreMap | None,
) -> ConditionalDiffusion | DirectPosterior:
    """The model of all cells: the reference, networks trained for so many steps (none: without them), the readout."""
    z, log_prior = chosen.whitening(torch.from_numpy(x)), training.log_prior

    def trained(name: str, max_steps: int, *, readout: bool) -> list[ConditionalDiffusion | DirectPosterior]:
        models = []
        for i in range(n_members):
            model = training.untrained(chosen.reference, z, member=i, readout=readout)
            training.run(name.format(i + 1), model, z, y, max_steps=max_steps, member=i)
            models.append(model)
        return models

    final: ConditionalDiffusion | DirectPosterior = ConditionalDiffusion(training.schedule, chosen.reference)
    if n_steps:
        name = "all cells" if n_members == 1 else "all cells, member {}"
        final = _ensemble(trained(name, n_steps, readout=False))
    if isinstance(choice, ReadoutChoice):
        final.readout = fit_readout(x, y, chosen.whitening, choice, log_prior, scores)
    elif choice is not None and training.grid is not None:
        networks = _ensemble(trained("all cells, readout {}", choice.n_steps, readout=True)).denoiser
        parts = choice.of_network, choice.of_diffusion, log_prior, training.grid.to_bins
        final.readout = NetworkReadout(networks, *(torch.as_tensor(part) for part in parts))  # type: ignore[arg-type]
    return final.eval()


def _ensemble(models: list[ConditionalDiffusion | DirectPosterior]) -> ConditionalDiffusion | DirectPosterior:
    """The first of the models, with the mean of all networks."""
    if len(models) > 1:
        models[0].denoiser = Ensemble([model.denoiser for model in models])  # type: ignore[misc]
    return models[0]


def _judge(
    log_likelihood: Array, log_prior: Array, truth: NDArray[np.integer]
) -> tuple[float, tuple[float, ...], float, float]:
    """Temperature and offsets from held-out cells, and the negative log posterior and accuracy that they give."""
    temperature, offsets = 1.0, np.zeros(len(log_prior))
    if len(log_prior) > 1:
        temperature, offsets = fit_calibration(log_likelihood, log_prior, truth)
    posterior = np.exp(log_posterior(log_likelihood, log_prior + offsets, temperature))
    accuracy = float((posterior.argmax(1) == truth).mean())
    return temperature, tuple(offsets.tolist()), negative_log_likelihood(posterior, truth), accuracy


def _judge_values(
    log_likelihood: Array, log_prior: Array, truth: Array, *, grid: TargetGrid
) -> tuple[float, tuple[float, ...], float, float]:
    """The same for a continuous target: no offsets, negative log density, coefficient of determination."""

    def predictive(temperature: float) -> Predictive:
        return Predictive(grid, np.exp(log_posterior(log_likelihood, log_prior, temperature)))

    def loss(temperature: float) -> float:
        return -float(predictive(temperature).log_density(truth).mean())

    temperature = fit_temperature(loss, len(truth))
    return temperature, (), loss(temperature), grid.r2(truth, predictive(temperature).mean)


def _choose_reference(
    folds: Sequence[Fold],
    validation: Sequence[Fold],
    x: Array,
    y: NDArray[Any],
    *,
    log_prior: Array,
    shapes: Sequence[ReferenceShape],
    inflations: Sequence[float],
    seed: int,
    grid: TargetGrid | None = None,
) -> tuple[ReferenceFit, Callable[[int], tuple[Whitening, GaussianReference]]]:
    """The reference of all cells, and how to get that of the training part of a validation split."""
    n_classes = len(log_prior)
    if grid is not None:
        widths = list(dict.fromkeys(shape.n_features for shape in shapes))
        of_target, built = fit_target_reference(folds, x, y, grid=grid, log_prior=log_prior, n_features=widths)
        return of_target, lambda i: built(validation[i], i)
    if n_classes == 1:
        density = fit_density(folds, x, seed=seed)
        return density, lambda i: build_density(validation[i].x_train, density.shape, seed=seed)
    chosen = fit_reference(folds, x, y, n_classes=n_classes, log_prior=log_prior, shapes=shapes, inflations=inflations)

    def of_fold(i: int) -> tuple[Whitening, GaussianReference]:
        weights = _weights_without(i, folds, chosen, n_classes)
        fold = validation[i]
        return build_reference(fold.x_train, fold.y_train, n_classes=n_classes, shape=chosen.shape, weights=weights)

    return chosen, of_fold


def _weights_without(i: int, folds: Sequence[Fold], chosen: ReferenceFit, n_classes: int) -> Array:
    """Component weights from the held-out cells of all folds but one (of the only fold, where there is just one)."""
    others = [j for j in range(len(folds)) if j != i] or [i]
    labels = np.concatenate([folds[j].y_held_out for j in others])
    return overlap_weights(np.concatenate([chosen.held_out[j] for j in others]), labels, n_classes)
