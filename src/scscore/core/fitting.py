"""From represented cells to a calibrated model: reference by cross-validation, residual by validated training, refit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scscore.core.calibration import (
    fit_calibration,
    fit_temperature,
    leave_marginal,
    log_posterior,
    negative_log_likelihood,
)
from scscore.core.denoiser import Ensemble, ResidualDenoiser
from scscore.core.density_fit import build_density, fit_density
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.direct import DirectNetwork, DirectPosterior
from scscore.core.effort import choose_effort
from scscore.core.held_out import HeldOut, HeldOutValues
from scscore.core.readout import Readout, ReadoutChoice, ReadoutRun, choose_readout, fit_readout
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
from scscore.core.training import TrainingConfig, TrainingResult, train
from scscore.core.value_readout import NetworkReadout, NetworkReadoutChoice, fit_network_pool

_ENOUGH_VALIDATION_CELLS = 2000
_MAX_VALIDATION_RUNS = 3
_ENOUGH_CELLS_FOR_LEVELS = 300
# of the networks: with a continuous target they have more to learn than the reference knows
_WIDTH, _WIDTH_OF_VALUES = 128, 256


@dataclass(frozen=True)
class FitOutcome:
    """A trained and calibrated model, and the figures that led to it.

    Attributes
    ----------
    whitening, engine
        The model.
    temperature, offsets
        Calibration of the posterior, fitted to the validation cells.
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
    prior = torch.from_numpy(log_prior).to(torch.float32)

    def labels(y: NDArray[Any]) -> Tensor:
        return torch.from_numpy(y.astype(np.int64) if grid is None else grid.soft_labels(y).astype(np.float32))

    def untrained(
        reference: GaussianReference, z: Tensor, seed: int, *, direct: bool = direct
    ) -> ConditionalDiffusion | DirectPosterior:
        width = _WIDTH if grid is None else _WIDTH_OF_VALUES
        return _with_network(schedule, reference, z, seed, width=width, direct=direct)

    def run(
        name: str, model: ConditionalDiffusion | DirectPosterior, z: Tensor, y: NDArray[Any], **more: Any
    ) -> TrainingResult:
        directory = None if checkpoint_dir is None else checkpoint_dir / name.replace(" ", "_")
        common: dict[str, Any] = {
            "seed": seed,
            "checkpoint_dir": directory,
            "progress": progress,
            "description": f"fit: {name}",
        }
        if grid is not None:
            common["to_bins"] = torch.from_numpy(grid.to_bins).to(torch.float32)
        return train(model, z, labels(y), prior, **{"config": config, **common, **trainer, **more})

    with_readout &= config.discriminative_weight > 0 and n_classes > 1 and not direct
    results: list[TrainingResult] = []
    of_networks: list[TrainingResult] = []
    whitenings: list[Whitening] = []
    truths: list[NDArray[np.integer]] = []
    watched_rows: list[NDArray[np.integer]] = []
    depths: list[Array] = []
    n_train, n_watched = 0, _ENOUGH_VALIDATION_CELLS
    n_runs = len(validation) if every_split else min(len(validation), _MAX_VALIDATION_RUNS)
    for i, fold in enumerate(validation[:n_runs]):
        if every_split:
            n_watched = -(-_ENOUGH_VALIDATION_CELLS // n_runs)
        elif sum(len(truth) for truth in truths) >= _ENOUGH_VALIDATION_CELLS:
            break
        whitening, reference = of_fold(i)
        z = whitening(torch.from_numpy(fold.x_train))
        watched = evenly_spread(len(fold.y_held_out), n_watched)
        held_out = whitening(torch.from_numpy(fold.x_held_out[watched])), labels(fold.y_held_out[watched])
        model = untrained(reference, z, seed)
        name = f"validation {i + 1}"
        whitenings.append(whitening)
        results.append(run(name, model, z, fold.y_train, validation=held_out, n_steps=n_steps, n_paths=n_paths))
        if with_readout and grid is not None:
            network = untrained(reference, z, seed, direct=True)
            of_networks.append(run(f"{name}, readout", network, z, fold.y_train, validation=held_out))
        truths.append(fold.y_held_out[watched])
        watched_rows.append(watched)
        if validation_depth is not None:
            depths.append(validation_depth[i][watched])
        n_train += len(z)

    sizes, volumes = [len(truth) for truth in truths], [whitening.log_abs_det for whitening in whitenings]
    validation_loss = _mean_loss(results, sizes)
    n_checks = len(validation_loss)
    if n_classes == 1:  # a log density, which is that of the representation
        validation_loss -= np.average(volumes, weights=sizes)
    training_loss = np.mean([result.training_loss[:n_checks] for result in results], axis=0)
    best = int(validation_loss.argmin())
    held_out_log_likelihood = torch.cat([result.log_likelihood[best] for result in results]).numpy()
    if grid is not None:
        held_out_log_likelihood = held_out_log_likelihood @ grid.to_bins
    truth = np.concatenate(truths)
    in_all = len(x) * len(results) / n_train  # steps with all cells for one of a validation run
    choice: ReadoutChoice | NetworkReadoutChoice | None = None
    if with_readout and grid is None:
        runs = [
            ReadoutRun(
                whitening, fold.x_train, fold.y_train, fold.x_held_out[rows], truth, run.log_likelihood[best].numpy()
            )
            for whitening, fold, rows, truth, run in zip(
                whitenings, validation, watched_rows, truths, results, strict=False
            )
        ]
        choice = choose_readout(runs, log_prior)
    bare = held_out_log_likelihood
    if isinstance(choice, ReadoutChoice):
        held_out_log_likelihood = np.concatenate([_read_out(run, choice, log_prior) for run in runs])
    elif with_readout and grid is not None:
        at = max(int(_mean_loss(of_networks, sizes).argmin()), 1)  # an untrained network has nothing to say
        ratios = torch.cat([result.log_likelihood[at] for result in of_networks]).numpy() @ grid.to_bins
        weights = fit_network_pool(bare, ratios, log_prior, truth, grid)
        choice = NetworkReadoutChoice(*weights, n_steps=round(of_networks[0].steps[at] * in_all))
        held_out_log_likelihood = leave_marginal(weights[0] * bare + weights[1] * ratios, bare, log_prior)
    depth = np.concatenate(depths) if depths else None
    judged = _judge if grid is None else partial(_judge_values, grid=grid)
    temperature, offsets, nll, accuracy = judged(held_out_log_likelihood, log_prior, truth)
    if n_classes == 1:
        nll = float(validation_loss[best])
    if not direct:  # from the whitened space to the representation
        volume = np.repeat(volumes, sizes)[:, None]
        held_out_log_likelihood, bare = held_out_log_likelihood + volume, bare + volume

    final_steps = round(results[0].steps[best] * in_all)
    if direct:  # there is no reference to do without a network
        final_steps = max(final_steps, 1)
    z, members = chosen.whitening(torch.from_numpy(x)), []
    for i in range(n_members if final_steps else 0):
        name = "all cells" if n_members == 1 else f"all cells, member {i + 1}"
        members.append(untrained(chosen.reference, z, seed + i))
        run(name, members[i], z, y, config=replace(config, max_steps=final_steps), seed=seed + i)
    final = members[0] if members else ConditionalDiffusion(schedule, chosen.reference)
    if len(members) > 1:
        final.denoiser = Ensemble([member.denoiser for member in members])  # type: ignore[misc]
    readout: Readout | None = None
    if isinstance(choice, ReadoutChoice):
        readout = fit_readout(x, y, chosen.whitening, choice, log_prior)
    elif choice is not None and grid is not None:
        networks: list[nn.Module] = []
        for i in range(n_members):
            network = untrained(chosen.reference, z, seed + i, direct=True)
            name = f"all cells, readout {i + 1}"
            run(name, network, z, y, config=replace(config, max_steps=choice.n_steps), seed=seed + i)
            networks.append(network.denoiser)  # type: ignore[arg-type]
        readout = NetworkReadout(
            networks[0] if n_members == 1 else Ensemble(networks),
            torch.tensor(choice.of_network),
            torch.tensor(choice.of_diffusion),
            torch.from_numpy(log_prior),
            torch.from_numpy(grid.to_bins),
        )
    if readout is not None:
        final.readout = readout
    final.eval()
    n_jumps = n_steps
    if isinstance(final, ConditionalDiffusion):
        some = chosen.whitening(torch.from_numpy(x[evenly_spread(len(x), _ENOUGH_CELLS_FOR_LEVELS)]))
        log_weights = log_prior + (np.asarray(offsets) if offsets else 0.0)
        # with a continuous target the posteriors of the networks are averaged, not their residuals
        alone = final if grid is None else final.members()[0].eval()
        final.schedule, n_jumps = choose_effort(
            alone, some, log_weights, temperature, n_paths=n_paths, grid=grid, seed=seed
        )
    return FitOutcome(
        whitening=chosen.whitening,
        engine=final,
        temperature=temperature,
        offsets=offsets,
        reference=chosen,
        readout=choice,
        steps=results[0].steps[:n_checks],
        training_loss=training_loss.tolist(),
        validation_loss=validation_loss.tolist(),
        n_steps=final_steps,
        n_jumps=n_jumps,
        validation_nll=nll,
        validation_accuracy=accuracy,
        held_out=HeldOut.of(held_out_log_likelihood, truth, depth, None if choice is None else bare)
        if grid is None
        else None,
        held_out_values=None
        if grid is None
        else HeldOutValues.of(held_out_log_likelihood, truth, depth, None if choice is None else bare),
    )


def _mean_loss(results: Sequence[TrainingResult], sizes: Sequence[int]) -> Array:
    """Validation loss at the checks that all runs have, averaged over runs of some numbers of cells."""
    n_checks = min(len(result.steps) for result in results)
    return np.average([result.validation_loss[:n_checks] for result in results], axis=0, weights=sizes)


def _read_out(run: ReadoutRun, choice: ReadoutChoice, log_prior: Array) -> Array:
    """Log-likelihoods of the held-out cells of a run, pooled with a readout of its training cells."""
    readout = fit_readout(run.x_train, run.y_train, run.whitening, choice, log_prior)
    z = run.whitening(torch.from_numpy(run.x_held_out))
    return readout(torch.from_numpy(run.log_likelihood), z).numpy()


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


def _with_network(
    schedule: NoiseSchedule, reference: GaussianReference, z: Tensor, seed: int, *, width: int, direct: bool
) -> ConditionalDiffusion | DirectPosterior:
    """A model with an untrained network for points like `z`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if direct:
            return DirectPosterior(DirectNetwork(z.std(0), reference.n_classes, width=width))
        return ConditionalDiffusion(schedule, reference, ResidualDenoiser(reference.class_means, z.std(0), width=width))
