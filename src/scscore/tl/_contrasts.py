"""What an attribution compares for every cell: classes, or values of a continuous target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scscore.core.attribution import Contrast, ValueContrast
from scscore.core.target import TargetGrid
from scscore.core.trajectories import NoiseStream
from scscore.io.columns import numbers, obs_column
from scscore.model import ScoreModel
from scscore.tl._validate import check_name, class_codes

REFERENCES = ("rest", "runner-up", "marginal")


@dataclass(frozen=True)
class ClassContrasts:
    """What is compared in a model of classes: `fixed` are the target classes of the cells, ``None`` the most probable ones."""

    names: list[str]
    target: str | None
    reference: str
    fixed: NDArray[np.int64] | None

    @classmethod
    def of(cls, adata: AnnData, model: ScoreModel, target: object, reference: object) -> ClassContrasts:
        classes = model.classes.tolist()
        reference = "rest" if reference is None else reference
        check_name(target, "target")
        check_name(reference, "reference", optional=False)
        if len(classes) < 2:
            raise ValueError(
                "model holds one density and no classes (fitted with condition=None): there is nothing to compare."
            )
        if reference not in (*REFERENCES, *classes):
            raise ValueError(
                f"reference must be one of {list(REFERENCES)} or a class of the model ({classes}), got {reference!r}."
            )
        if target is not None and target == reference:
            raise ValueError(f"target and reference are the same class {target!r}.")
        fixed = None if target is None else class_codes(adata, str(target), "target", classes)
        return cls(classes, None if target is None else str(target), str(reference), fixed)

    def of_cells(self, model: ScoreModel, z: torch.Tensor, n_steps: int, noise: NoiseStream, rows: slice) -> Contrast:
        own = None if self.fixed is None else self.fixed[rows]
        return contrast_of(model, z, self.reference, own, model.log_prior(), n_steps, noise, rows)


@dataclass(frozen=True)
class ValueContrasts:
    """What is compared in a model of a continuous target: a value for every cell, and another, or all (``None``)."""

    names: list[str]
    target: float | str
    reference: float | str
    values: NDArray[np.float64]
    other: float | None

    @classmethod
    def of(cls, adata: AnnData, model: ScoreModel, target: object, reference: object) -> ValueContrasts:
        grid = model.target
        if grid is None:
            raise TypeError("ValueContrasts needs a model of a continuous target.")
        if target is None and reference is None and not grid.circular:
            target, reference = grid.mean + grid.sd, grid.mean - grid.sd
        if target is None:
            raise ValueError(
                "target= is missing: a value of the target, or a column of adata.obs with one for every cell."
            )
        if isinstance(target, str):
            refusal = f"target={target!r} must hold values of the continuous target"
            values = numbers(obs_column(adata, target, "target"), refusal)
        else:
            values = np.full(adata.n_obs, _number(target, "target"))
            target = float(values[0]) if len(values) else float("nan")
        if not np.isfinite(values).all():
            raise ValueError(
                f"target={target!r}: {int((~np.isfinite(values)).sum())} of {adata.n_obs} cells have no finite value."
            )
        other = None if reference in (None, "marginal") else _number(reference, "reference")
        known = values if other is None else np.append(values, other)
        if not grid.circular and ((known < grid.edges[0]) | (known > grid.edges[-1])).any():
            raise ValueError(
                f"target and reference must lie between {grid.edges[0]:.4g} and {grid.edges[-1]:.4g}, where the model knows the target."
            )
        if other is not None and not isinstance(target, str) and grid.difference(values[:1], other).tolist() == [0.0]:
            raise ValueError(f"target and reference are the same value {other:g}.")
        shown = "marginal" if other is None else other
        name = target if isinstance(target, str) else f"{target:.4g}"
        against = shown if isinstance(shown, str) else f"{shown:.4g}"
        return cls([f"{name} against {against}"], target, shown, values, other)

    def of_cells(
        self, model: ScoreModel, z: torch.Tensor, n_steps: int, noise: NoiseStream, rows: slice
    ) -> ValueContrast:
        """The contrasts of a chunk of cells: a value each, against another one, or against all under the prior."""
        grid: TargetGrid = model.target  # type: ignore[assignment]
        log_prior, values = model.log_prior(), self.values[rows]
        weights = torch.from_numpy(grid.spline(values)).to(z.device)
        if self.other is not None:
            against = grid.spline(np.full(len(values), self.other))
            return ValueContrast(weights, torch.from_numpy(against).to(z.device))
        mean = torch.from_numpy(np.exp(log_prior) @ grid.hats(grid.centers)).to(z.device)
        to_bins, log_weights = (torch.from_numpy(x).to(z.device) for x in (grid.to_bins, log_prior))
        return ValueContrast(weights, mean.expand_as(weights), to_bins, log_weights)


def _number(value: object, argument: str) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or not np.isfinite(value)
    ):
        raise ValueError(
            f"{argument} must be a value of the continuous target{' or marginal' if argument == 'reference' else ''}, got {value!r}."
        )
    return float(value)


def contrast_of(
    model: ScoreModel,
    z: torch.Tensor,
    reference: str,
    target: NDArray[np.int64] | None,
    log_prior: NDArray[np.float64],
    n_steps: int,
    noise: NoiseStream,
    rows: slice,
) -> Contrast:
    """The contrasts of a chunk of cells."""
    n, n_classes = len(z), len(log_prior)
    cells = np.arange(n)
    if target is None or reference == "runner-up":
        with torch.inference_mode():
            log_p = model.log_posterior(z, noise, start=rows.start, n_steps=n_steps)
        target = log_p.argmax(1) if target is None else target
    if reference in ("rest", "marginal"):
        weights = np.tile(log_prior, (n, 1))
        if reference == "rest":
            weights[cells, target] = -np.inf
    else:
        if reference == "runner-up":
            log_p[cells, target] = -np.inf
            other = log_p.argmax(1)
        else:
            other = model.classes.tolist().index(reference)
        weights = np.full((n, n_classes), -np.inf)
        weights[cells, other] = 0
    weights -= np.log(np.exp(weights).sum(1, keepdims=True))
    return Contrast(torch.from_numpy(target).to(z.device), torch.from_numpy(weights).to(z.device))
