"""scscore beside the published inference procedure, with one and the same network."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from _exact import bayes_accuracy, draw_cells, exact_log_prob, exact_model, overlapping_classes
from _metrics import NLL_FLOOR, evaluate
from _published import NoisePrediction, path_sums, posterior
from anndata import AnnData
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from torch import Tensor

import scscore as scs
from scscore.core.calibration import Calibration
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.likelihood import log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import Whitening
from scscore.core.schedule import NoiseSchedule
from scscore.core.stopping import Stopping
from scscore.core.trajectories import NoiseStream
from scscore.io.representation import ObsmRepresentation
from scscore.model import ScoreModel

PUBLISHED_STEPS, PUBLISHED_PATHS, PUBLISHED_CLASSES = 1000, 256, 164
_POINTS_PER_CALL = 2048
_ENOUGH_FOR_TEMPERATURE = 100
_OWN = "scscore, defaults"


def prediction(model: ConditionalDiffusion) -> NoisePrediction:
    """The model's noise prediction, for levels of any schedule.

    Beyond the noise levels that the model uses it is the reference's, as in the model itself: the residual has not been
    trained there.
    """
    low, high = model.schedule.lam_min, model.schedule.lam_max

    def predict(points: Tensor, level: Tensor, classes: Tensor | None) -> Tensor:
        inside = low <= float(level) <= high
        return (model if inside else model.reference).eps(points, level, classes)

    return predict


def all_sums(
    predict: NoisePrediction, z: Tensor, *, n_classes: int, n_paths: int, points_per_call: int = _POINTS_PER_CALL
) -> tuple[dict[str, Tensor], float]:
    """Sums of both variants for many cells, one network call for all classes, and the processor seconds."""
    size = max(1, points_per_call // n_paths)
    start = time.process_time()
    with torch.inference_mode():
        parts = [
            path_sums(predict, z[i : i + size], n_classes=n_classes, n_paths=n_paths, seed=i)
            for i in range(0, len(z), size)
        ]
    seconds = time.process_time() - start
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}, seconds


def seconds_class_by_class(network: Callable[..., Tensor], *, n_features: int, n_classes: int, n_steps: int) -> float:
    """Processor seconds per path and step of the published loop, one network call per class, with 256 paths per cell."""
    z = torch.randn(_POINTS_PER_CALL // PUBLISHED_PATHS, n_features, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"n_classes": n_classes, "n_paths": PUBLISHED_PATHS, "class_by_class": True}
    with torch.inference_mode():
        path_sums(network, z, seed=0, n_evaluated=1, **settings)
        start = time.process_time()
        path_sums(network, z, seed=0, n_evaluated=n_steps, **settings)
    return (time.process_time() - start) / (n_steps * len(z) * PUBLISHED_PATHS)


def best_temperature(values: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Posterior of log-likelihoods with the temperature that is best for these very cells: a bound for any calibration."""

    def at(log_temperature: float) -> np.ndarray:
        return softmax(np.exp(log_temperature) * values, axis=1)

    def loss(log_temperature: float) -> float:
        return log_loss(at(log_temperature), y).mean()

    return at(minimize_scalar(loss, bounds=np.log([1e-2, 10.0]), method="bounded").x)


def log_loss(proba: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Negative log posterior of every cell, with the floor that all metrics share."""
    return -np.log(np.clip(proba[np.arange(len(y)), y], NLL_FLOOR, 1.0))


def published_posteriors(sums: dict[str, Tensor], y: np.ndarray) -> dict[str, np.ndarray]:
    """Posteriors of both variants, with both ways to average over the paths, and tempered."""
    found = {}
    for name, values in sums.items():
        found[name] = posterior(values)
        found[f"{name}, softmax of the mean"] = posterior(values, per_path=False)
        if len(y) >= _ENOUGH_FOR_TEMPERATURE:
            found[f"{name}, best temperature"] = best_temperature(values.mean(0).numpy(), y)
    return found


def scored(
    posteriors: dict[str, np.ndarray], y: np.ndarray, *, baseline: np.ndarray, exact: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Metrics of posteriors of the same cells, with the paired difference of the NLL to a baseline and its standard error."""
    rows = {}
    for label, proba in posteriors.items():
        difference = log_loss(proba, y) - log_loss(baseline, y)
        rows[label] = evaluate(y, proba) | {
            "nll_difference": float(difference.mean()),
            "nll_difference_se": float(difference.std(ddof=1) / len(y) ** 0.5) if len(y) > 1 else float("nan"),
        }
        if exact is not None:
            rows[label]["tv"] = _distance(proba, exact)
    return rows


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean total-variation distance of posteriors."""
    return float(0.5 * np.abs(one - other).sum(1).mean())


def head_to_head(
    name: str, model: ScoreModel, test: AnnData, labels: np.ndarray, *, paths: int, few: int, timed_steps: int
) -> list[dict[str, Any]]:
    """Both procedures with one trained model, on all test cells with few paths and on few cells with 256 paths."""
    y = np.searchsorted(model.classes, labels)
    diffusion, n_classes, calibration = model.diffusion, len(model.classes), model.calibration
    z = model.encode(test)
    start = time.process_time()
    scs.tl.classify(test, model, progress=False, device="cpu")
    own_seconds = (time.process_time() - start) / len(y)
    likelihood = test.obsm["scscore_log_likelihood"].astype(np.float64)
    own = {
        _OWN: test.obsm["scscore_posterior"].astype(np.float64),
        "scscore, uniform prior, temperature 1": softmax(likelihood, axis=1),
    }
    if len(y) >= _ENOUGH_FOR_TEMPERATURE:
        own["scscore, uniform prior, best temperature"] = best_temperature(likelihood, y)
    reference = {"reference alone, uniform prior": softmax(diffusion.reference.log_prob(z).numpy(), axis=1)}
    own_calls = 0 if diffusion.denoiser is None else calibration.n_steps * calibration.n_paths
    network = prediction(diffusion) if diffusion.denoiser is None else diffusion.denoiser
    per_path_step = seconds_class_by_class(network, n_features=z.shape[1], n_classes=n_classes, n_steps=timed_steps)
    check_class_by_class(prediction(diffusion), z[:2], n_classes)

    some = np.sort(np.random.default_rng(0).permutation(len(y))[:few])
    rows = []
    few_paths: dict[str, np.ndarray] = {}
    for n_paths, cells in ((paths, np.arange(len(y))), (PUBLISHED_PATHS, some)):
        sums, together = all_sums(prediction(diffusion), z[cells], n_classes=n_classes, n_paths=n_paths)
        costs = {
            "own": {"paths": calibration.n_paths, "calls": own_calls, "seconds_per_cell": own_seconds},
            "reference": {"paths": 0, "calls": 0},
            "published": {
                "paths": n_paths,
                "calls": PUBLISHED_STEPS * n_paths * n_classes,
                "seconds_per_cell": per_path_step * PUBLISHED_STEPS * n_paths,
                "seconds_all_classes_at_once": together / len(cells),
            },
        }
        of = {
            "own": {label: proba[cells] for label, proba in own.items()},
            "reference": {label: proba[cells] for label, proba in reference.items()},
            "published": published_posteriors(sums, y[cells]),
        }
        for kind, posteriors in of.items():
            for label, metrics in scored(posteriors, y[cells], baseline=own[_OWN][cells]).items():
                if label in few_paths:
                    metrics["tv_to_few_paths"] = _distance(posteriors[label], few_paths[label][cells])
                rows.append({"method": label, "cells": len(cells), **costs[kind], **metrics})
        few_paths = of["published"]
    return [{"data": name, "classes": n_classes, "features": z.shape[1], **row} for row in rows]


def check_class_by_class(predict: NoisePrediction, z: Tensor, n_classes: int) -> None:
    """One call for all classes gives the sums of one call per class: what is timed is what is judged."""
    with torch.inference_mode():
        both = [
            path_sums(predict, z, n_classes=n_classes, n_paths=2, seed=0, class_by_class=flag)["corrected"]
            for flag in (False, True)
        ]
    ratios = [sums - sums[..., :1] for sums in both]
    if not torch.allclose(ratios[0], ratios[1], rtol=1e-3, atol=0.05):
        raise RuntimeError(f"class by class differs by {(ratios[0] - ratios[1]).abs().max():.3g} nats")


def many_classes_rows(
    n_classes: int, *, n_cells: int, paths: int, few: int, precision: float = 0.05
) -> list[dict[str, Any]]:
    """Many overlapping Gaussian classes in 50 dimensions with a perfect network: both procedures against the truth."""
    truth = overlapping_classes(50, n_classes=n_classes, n_components=1)
    z, codes = draw_cells(truth, n_cells, seed=2)
    y, exact = codes.numpy(), exact_log_prob(truth, z).softmax(1).numpy()
    model = exact_model(truth, "reference")
    efforts: list[tuple[str, int, int, Stopping | None]] = [
        (f"scscore, {s} jumps x {p} paths", s, p, None) for s, p in ((4, 8), (8, 8), (16, 8), (16, 32))
    ]
    log_prior = np.full(n_classes, -np.log(n_classes))
    efforts.append((f"scscore, 16 jumps, precision {precision}", 16, 64, Stopping(log_prior, 1.0, precision)))
    own = {"exact posterior": exact, "reference alone": exact_log_prob(model.reference, z).softmax(1).numpy()}
    own_calls = dict.fromkeys(own, 0.0)
    for label, n_steps, n_paths, stopping in efforts:
        settings: dict[str, Any] = {"n_steps": n_steps, "n_paths": n_paths, "stopping": stopping}
        with torch.no_grad():
            parts = [
                log_likelihood(model, part, noise=NoiseStream(0), start=64 * i, **settings)
                for i, part in enumerate(z.split(64))
            ]
        own[label] = torch.cat([part.mean for part in parts]).softmax(1).numpy()
        own_calls[label] = n_steps * float(torch.cat([part.n_paths.amax(1) for part in parts]).mean())

    rows = []
    for n_paths, cells in ((paths, np.arange(n_cells)), (PUBLISHED_PATHS, np.arange(few))):
        sums, _ = all_sums(
            _exact_prediction(truth), z[cells], n_classes=n_classes, n_paths=n_paths, points_per_call=512
        )
        posteriors = {label: proba[cells] for label, proba in own.items()} | published_posteriors(sums, y[cells])
        baseline = posteriors["scscore, 16 jumps x 8 paths"]
        for label, metrics in scored(posteriors, y[cells], baseline=baseline, exact=exact[cells]).items():
            calls = own_calls.get(label, float(PUBLISHED_STEPS * n_paths * n_classes))
            rows.append({"method": label, "cells": len(cells), "calls": calls, **metrics})
    bayes = bayes_accuracy(truth, z, codes)
    return [{"classes": n_classes, "features": 50, "bayes_accuracy": bayes, **row} for row in rows]


def _exact_prediction(truth: GaussianReference) -> NoisePrediction:
    """Exact noise prediction of classes with one diagonal Gaussian each, without the cost of a general mixture."""

    def predict(points: Tensor, level: Tensor, classes: Tensor | None) -> Tensor:
        means, variances = (x if classes is None else x[classes] for x in (truth.means, truth.variances))
        alpha, sigma = NoiseSchedule.alpha(level), NoiseSchedule.sigma(level)
        return sigma * (points[:, None, :] - alpha * means) / (alpha**2 * variances + sigma**2)

    return predict


def cost_rows(n_classes: int, *, n_features: int = 50, n_cells: int, timed_steps: int) -> list[dict[str, Any]]:
    """Processor seconds of both procedures with a network of the default size, random weights and overlapping classes."""
    model, test = _random_model(n_classes, n_features, n_cells)
    rows = []
    for label, precision in (
        ("scscore, defaults", None),
        ("scscore, precision 0.05", 0.05),
        ("scscore, precision 0.02", 0.02),
    ):
        scs.tl.classify(test[:64].copy(), model, precision=precision, progress=False, device="cpu")  # warm up
        start = time.process_time()
        scs.tl.classify(test, model, precision=precision, progress=False, device="cpu")
        seconds = (time.process_time() - start) / n_cells
        calls = model.calibration.n_steps * float(test.obs["scscore_n_paths"].mean())
        rows.append(
            {"method": label, "calls": calls, "class_evaluations": calls * n_classes, "seconds_per_cell": seconds}
            | {"measured": "all of it"}
        )
    per_path_step = seconds_class_by_class(
        model.diffusion.denoiser,
        n_features=n_features,
        n_classes=n_classes,
        n_steps=timed_steps,  # type: ignore[arg-type]
    )
    calls = PUBLISHED_STEPS * PUBLISHED_PATHS * n_classes
    rows.append(
        {"method": "published", "calls": calls, "class_evaluations": calls}
        | {"seconds_per_cell": per_path_step * PUBLISHED_STEPS * PUBLISHED_PATHS}
        | {"measured": f"{timed_steps} of 1,000 steps, network alone; times {PUBLISHED_STEPS / timed_steps:.0f}"}
    )
    for row in rows:
        row |= {key + "_ratio": rows[-1][key] / row[key] for key in ("calls", "class_evaluations", "seconds_per_cell")}
    return [{"classes": n_classes, "features": n_features, "cells": n_cells, **row} for row in rows]


def _random_model(n_classes: int, n_features: int, n_cells: int) -> tuple[ScoreModel, AnnData]:
    """A model with full class covariances, two scales and a small random residual, and cells from its reference."""
    truth = overlapping_classes(n_features, n_classes=n_classes, n_components=1)
    overlap = 0.9 * torch.eye(n_classes, dtype=torch.float64) + 0.1 / n_classes
    axes = torch.eye(n_features, dtype=torch.float64).expand(n_classes, -1, -1).clone()
    reference = GaussianReference(
        truth.means, overlap.repeat_interleave(2, dim=1) / 2, truth.variances, axes, torch.tensor([1.0, 2.0])
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = ResidualDenoiser(truth.means, torch.ones(n_features))
        torch.nn.init.normal_(denoiser.output.weight, std=0.02)
    names = np.array([f"class {i:03}" for i in range(n_classes)])
    model = ScoreModel(
        classes=names,
        class_counts=np.full(n_classes, 100),
        representation=ObsmRepresentation("X_latent", n_features),
        whitening=Whitening(torch.zeros(n_features), torch.eye(n_features)),
        engine=ConditionalDiffusion(NoiseSchedule(), reference, denoiser),
        calibration=Calibration(),
        params={"condition": "class", "prior": "uniform", "version": scs.__version__},
    )
    z, _ = draw_cells(truth, n_cells, seed=3)
    obs = pd.DataFrame(index=[str(i) for i in range(n_cells)])
    return model, AnnData(obs=obs, obsm={"X_latent": z.numpy().astype(np.float32)})


def collapse_rows(*, n_cells: int, n_paths: int, n_features: int = 20) -> list[dict[str, Any]]:
    """What the missing 1 / sigma does to a perfect network: unequal and equal covariances."""
    generator = torch.Generator().manual_seed(3)
    shifts = torch.randn(8, n_features, generator=generator, dtype=torch.float64)
    four = torch.logspace(-0.5, 0.5, 4, dtype=torch.float64)[:, None].expand(4, n_features)
    one = torch.ones(8, n_features, dtype=torch.float64)
    settings = {
        "4 classes, equal means, variances 0.3 to 3.2": (0 * shifts[:4], four),
        "4 classes, means 0.15 apart, variances 0.3 to 3.2": (0.15 * shifts[:4], four),
        "4 classes, means 0.3 apart, variances 0.4 to 2.2": (0.3 * shifts[:4], four**0.7),
        "8 classes, equal variances 1": (0.6 * shifts, one),
        "8 classes, equal variances 0.3": (0.6 * 0.3**0.5 * shifts, 0.3 * one),
    }
    rows = []
    for name, (means, variances) in settings.items():
        truth = GaussianReference(means, torch.eye(len(means)), variances)
        z, codes = draw_cells(truth, n_cells, seed=4)
        y, exact = codes.numpy(), truth.log_prob(z)
        sums, _ = all_sums(_exact_prediction(truth), z, n_classes=len(means), n_paths=n_paths)
        with torch.no_grad():
            own = log_likelihood(exact_model(truth, "reference"), z, noise=NoiseStream(0), n_steps=16, n_paths=8).mean
        estimates = {
            "exact": (exact, exact.softmax(1).numpy(), 0),
            "published": (sums["published"].mean(0), posterior(sums["published"]), 1000 * n_paths * len(means)),
            "corrected": (sums["corrected"].mean(0), posterior(sums["corrected"]), 1000 * n_paths * len(means)),
            "scscore": (own, own.softmax(1).numpy(), 16 * 8),
        }
        for method, (values, proba, calls) in estimates.items():
            slope, correlation = _agreement(values, exact, codes)
            metrics = evaluate(y, proba)
            rows.append(
                {"setting": name, "method": method, "cells": n_cells, "calls": calls, "slope": slope}
                | {"correlation": correlation}
                | {key: metrics[key] for key in ("accuracy", "nll", "ece")}
            )
    return rows


def _agreement(values: Tensor, exact: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope and correlation of estimated on exact log-ratios of all other classes to the own one."""
    others = torch.ones_like(exact, dtype=torch.bool).scatter(1, y[:, None], False)
    found, true = ((x - x.gather(1, y[:, None]))[others].numpy() for x in (values, exact))
    return float(np.polyfit(true, found, 1)[0]), float(np.corrcoef(true, found)[0, 1])
