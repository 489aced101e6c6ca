"""Checks of arguments that several ``tl`` functions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scscore._logging import logger
from scscore.core.likelihood import ESTIMATORS
from scscore.core.target import TargetGrid
from scscore.images._conv import Conv
from scscore.io.columns import numbers, obs_column
from scscore.io.pixels import PixelGrid
from scscore.model import ScoreModel

_FEW_VALUES = 20
_MIN_VALUES = 20
_MOST_OFFSET = 1e4  # standard deviations
_MOST_RANGES = 100  # distances of the quartiles


def seed_of(rng: int | np.random.Generator) -> int:
    """A seed from a seed or a generator (which is advanced)."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**31))
    if isinstance(rng, (bool, float)) or not isinstance(rng, (int, np.integer)) or not 0 <= rng < 2**32:
        raise ValueError(f"rng must be a non-negative integer below 2**32 or a numpy Generator, got {rng!r}.")
    return int(rng)


def check_positive(name: str, value: int | None, *, at_least: int = 1, optional: bool = True) -> None:
    """Raise ValueError unless `value` is an integer that is large enough, or None where that is allowed."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        expected = "a positive integer" if at_least == 1 else f"an integer of at least {at_least}"
        raise ValueError(f"{name} must be {expected}, got {value!r}.")


def check_number(name: str, value: float, *, positive: bool = True) -> None:
    """Raise ValueError unless `value` is a finite number above zero, or, where that is allowed, zero."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not np.isfinite(value) or value < 0 or (positive and value == 0):
        expected = "a positive number" if positive else "a number that is not negative"
        raise ValueError(f"{name} must be {expected}, got {value!r}.")


def check_name(name: object, argument: str, *, optional: bool = True) -> None:
    """Raise TypeError unless the name of a column, layer or representation is a string, or None where that is allowed."""
    if not (isinstance(name, str) or (name is None and optional)):
        raise TypeError(f"{argument} must be a name (a string), got {name!r}.")


def check_adata(adata: object) -> None:
    """Raise TypeError unless this is an AnnData, ValueError when it has no cells."""
    if isinstance(getattr(adata, "mod", None), Mapping):
        names = list(adata.mod)  # type: ignore[attr-defined]
        raise TypeError(f"adata is a {type(adata).__name__} with {names}; pass one modality: mdata[{names[0]!r}].")
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, got {type(adata).__name__}.")
    if adata.n_obs == 0:
        raise ValueError("adata holds no cells.")


def check_model(model: object, *, continuous: bool | None = False) -> None:
    """Raise TypeError unless this is a ScoreModel, ValueError unless its target is of the right kind (``None``: any)."""
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"model must be a ScoreModel (from scscore.tl.fit or scscore.load), got {type(model).__name__}."
        )
    if continuous is False and model.target is not None:
        raise ValueError(
            f"model was fitted on the continuous target {model.params['condition']!r}, this function needs classes; see "
            "scscore.tl.regress and scscore.tl.attribute."
        )
    if continuous and model.target is None:
        raise ValueError(
            f"model was fitted on the classes of {model.params['condition']!r}; use scscore.tl.classify. A column of numbers "
            "is taken for a continuous target with scscore.tl.fit(..., continuous=True)."
        )


def check_encoder(adata: AnnData, encoder: object, **unused: object) -> None:
    """Raise ValueError unless `encoder` can be fitted on these cells; arguments that only ``"pca"`` knows must be None."""
    if isinstance(encoder, str) and encoder == "pca":
        return
    if encoder != "conv" and not isinstance(encoder, Conv) and (not callable(encoder) or isinstance(encoder, type)):
        raise ValueError(f"encoder must be 'pca', 'conv', scscore.images.Conv(...) or a function, got {encoder!r}.")
    if PixelGrid.of_names(adata.var_names) is None:
        raise ValueError(
            "encoder= other than 'pca' needs images, whose pixels are the variables of adata: make it with scscore.images.from_arrays."
        )
    for name, value in unused.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} is for encoder='pca'; leave it out.")


def warn_of_inflation(model: ScoreModel) -> None:
    """Say so where the density of the model was made broader than the cells, for the sake of its posterior."""
    factor = model.params.get("reference", {}).get("inflation", 1.0)
    if factor > 1:
        logger.warning(
            "the covariances of this model are inflated by %g for a better posterior: generated cells vary too much. Fit with "
            "objective='generative' to generate.",
            factor,
        )


def log_unknown_batches(adata: AnnData, model: ScoreModel) -> None:
    """Say how many cells are of no batch that the model knows, which is then summed over."""
    unknown = int(model.covariates_of(adata).unknown.sum()) if model.covariates is not None else 0
    if unknown:
        logger.info(
            "%d of %d cells lack a value of %s that the model knows: what is missing is summed over",
            unknown,
            adata.n_obs,
            model.covariates.names,  # type: ignore[union-attr]
        )


def check_estimator(estimator: object) -> None:
    """Raise ValueError unless this names an estimator of the log-likelihood."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {list(ESTIMATORS)}, got {estimator!r}.")


def check_paths(n_paths: int) -> None:
    """Raise ValueError unless the number of trajectories is positive and even."""
    check_positive("n_paths", n_paths, optional=False)
    if n_paths % 2:
        raise ValueError(f"n_paths must be even (trajectories come in antithetic pairs), got {n_paths}.")


def usable_device(device: str) -> str:
    """A usable torch device; ``"auto"`` takes a GPU if there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=torch.device(device)).cpu()  # a meta tensor cannot come back
    except (RuntimeError, AssertionError, TypeError) as error:  # what torch raises without CUDA is an AssertionError
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def condition_labels(adata: AnnData, condition: str) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Class labels of all cells as strings, and which cells have one.

    Raises
    ------
    KeyError, ValueError
        Unknown column, continuous values, fewer than two classes, a class with fewer than two cells.
    """
    column = obs_column(adata, condition, "condition")
    labelled = column.notna().to_numpy()
    if not labelled.any():
        raise ValueError(f"condition={condition!r} holds no label: all {len(column)} values are missing.")
    if column.dtype.kind == "c":
        raise ValueError(f"condition={condition!r} holds complex numbers, which are neither classes nor a target.")
    labels = column.astype(str).to_numpy(dtype=str)
    names, counts = np.unique(labels[labelled], return_counts=True)
    if pd.api.types.is_integer_dtype(column) and len(names) > _FEW_VALUES:
        logger.warning(
            "condition=%r holds %d integers, taken for names of classes; for values pass continuous=True.",
            condition,
            len(names),
        )
    if len(names) < 2:
        raise ValueError(f"condition={condition!r} must hold at least two classes, found {names.tolist()}.")
    if (counts < 2).any():
        rare = names[counts < 2].tolist()
        shown = f"{rare[:5]}" + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        raise ValueError(
            f"condition={condition!r}: every class needs at least 2 cells, {len(rare)} of {len(names)} classes have 1: "
            f"{shown}. Merge them into other classes, or set their labels to NaN to leave the cells out; numbers that are "
            "values, not names, need continuous=True."
        )
    dropped = int((~labelled).sum())
    if dropped:
        logger.warning("%d of %d cells have no label in obs[%r] and are left out.", dropped, len(labels), condition)
    return labels, labelled


def is_continuous(adata: AnnData, condition: str, continuous: bool | None, circular: bool | float) -> bool:
    """Whether a column is a continuous target: what is said, else whether it holds floating-point numbers.

    Raises
    ------
    KeyError, ValueError
        Unknown column; floating-point numbers that look like codes of classes, where nothing is said; contradictions.
    """
    column = obs_column(adata, condition, "condition")
    number = isinstance(circular, int | float | np.integer | np.floating)
    if not isinstance(circular, bool) and not (number and np.isfinite(circular) and circular > 0):
        raise ValueError(f"circular must be True, False or a period above zero, got {circular!r}.")
    if continuous is False and circular:
        raise ValueError("circular= is for continuous targets: leave out continuous=False.")
    if continuous or circular:
        return True
    if continuous is False or not pd.api.types.is_float_dtype(column):
        return False
    distinct = np.unique(column.dropna().to_numpy(dtype=np.float64))
    if not len(distinct):
        return False
    if len(distinct) <= _FEW_VALUES and np.array_equal(distinct, np.rint(distinct)):
        raise ValueError(
            f"condition={condition!r} holds {len(distinct)} whole numbers as {column.dtype}: {distinct[:5].tolist()}. Say whether they are "
            f"values of a continuous target (continuous=True) or names of classes (continuous=False)."
        )
    return True


def target_values(
    adata: AnnData, condition: str, circular: bool | float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], TargetGrid]:
    """Values of a continuous target, which cells have one, and the grid for them.

    Raises
    ------
    ValueError
        No real numbers, fewer than twenty values, infinite or constant ones, values that span more than the period.
    """
    refusal = f"condition={condition!r} must hold real numbers for a continuous target"
    values = numbers(obs_column(adata, condition, "condition"), refusal)
    labelled = ~np.isnan(values)
    known = values[labelled]
    if np.isinf(known).any():
        raise ValueError(
            f"condition={condition!r} holds {int(np.isinf(known).sum())} infinite values; remove or replace them."
        )
    if len(known) < _MIN_VALUES:
        raise ValueError(
            f"condition={condition!r} holds {len(known)} values; a continuous target needs at least {_MIN_VALUES}."
        )
    if known.min() == known.max():
        raise ValueError(f"condition={condition!r} is {known[0]:g} in all cells: there is nothing to predict.")
    low, middle, high = (float(q) for q in np.quantile(known, (0.25, 0.5, 0.75)))
    if abs(middle) > _MOST_OFFSET * known.std():
        raise ValueError(
            f"condition={condition!r} varies by {known.std():g} around {middle:.10g}, too little for single precision: subtract an offset."
        )
    if high > low and (most := np.abs(known - middle).max()) > _MOST_RANGES * (high - low):
        logger.warning(
            "condition=%r holds a value %g away from the median, %g times the distance of the quartiles. Does it stand for a missing one? Set it to NaN.",
            condition,
            most,
            most / (high - low),
        )
    period = None if circular is False else 2 * np.pi if circular is True else float(circular)
    if period is not None and known.max() - known.min() > period * (1 + 1e-6):
        raise ValueError(
            f"condition={condition!r} spans {known.max() - known.min():g}, more than the period {period:g}. Pass the period of its unit, "
            "for instance circular=360 for degrees."
        )
    if dropped := int((~labelled).sum()):
        logger.warning("%d of %d cells have no value in obs[%r] and are left out.", dropped, len(values), condition)
    return values, labelled, TargetGrid.of(known, period=period)


def group_labels(adata: AnnData, split_key: str | None, labelled: NDArray[np.bool_]) -> NDArray[np.str_] | None:
    """Groups of the labelled cells for cross-validation, or None."""
    if split_key is None:
        return None
    column = obs_column(adata, split_key, "split_key")[labelled]
    if column.isna().any():
        raise ValueError(
            f"split_key={split_key!r}: {int(column.isna().sum())} labelled cells have no group; fill them in."
        )
    if column.nunique() < 2:
        raise ValueError(f"split_key={split_key!r} must hold at least two groups, found {column.unique().tolist()}.")
    return column.astype(str).to_numpy(dtype=str)


def covariate_columns(
    adata: AnnData, covariates: str | Sequence[str] | None, labelled: NDArray[np.bool_], condition: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the covariate columns with levels, and of those with floating-point numbers.

    Raises
    ------
    KeyError, ValueError
        A column that is missing, incomplete, infinite, constant, named twice or the condition itself, or with a level for nearly every cell.
    """
    if covariates is None:
        return (), ()
    names = (covariates,) if isinstance(covariates, str) else tuple(covariates)
    if len(set(names)) < len(names) or condition in names:
        raise ValueError(f"covariates={list(names)} must be different columns, and not the condition {condition!r}.")
    numeric: list[str] = []
    for name in names:
        check_name(name, "covariates", optional=False)
        column = obs_column(adata, name, "covariates")[labelled]
        if column.isna().any():
            raise ValueError(
                f"covariates={name!r}: {int(column.isna().sum())} labelled cells have no value; fill them in."
            )
        if column.nunique() < 2:
            raise ValueError(f"covariates={name!r} must hold at least two levels, found {column.unique().tolist()}.")
        if pd.api.types.is_float_dtype(column):
            if np.isinf(column.to_numpy(dtype=np.float64)).any():
                raise ValueError(f"covariates={name!r} holds infinite values; remove or replace them.")
            numeric.append(name)
            distinct = np.unique(column.to_numpy(dtype=np.float64))
            if len(distinct) <= _FEW_VALUES and np.array_equal(distinct, np.rint(distinct)):
                logger.warning(
                    "covariates=%r holds %d whole numbers as %s and is taken for a number, with one slope; names of batches must be strings "
                    "or integers.",
                    name,
                    len(distinct),
                    column.dtype,
                )
        elif column.nunique() > len(column) / 2:
            raise ValueError(
                f"covariates={name!r} holds {column.nunique()} levels for {len(column)} cells. A number must be a floating-point column."
            )
    return tuple(name for name in names if name not in numeric), tuple(numeric)


def check_batches(column: pd.Series, name: str) -> None:
    """Raise ValueError unless a column of ``obs`` holds batches: something, and no continuous numbers."""
    if column.isna().all():
        raise ValueError(f"batch_key={name!r} holds no batch: all {len(column)} values are missing.")
    if column.dtype.kind == "f" and (column.dropna() % 1 != 0).any():
        raise ValueError(f"batch_key={name!r} is continuous ({column.dtype}): it must name a batch for every cell.")


def class_codes(adata: AnnData, name: str, argument: str, classes: list[str]) -> NDArray[np.int64]:
    """Class of every cell, ``(n_obs,)``: that of this name for all, or those in a column of ``obs``.

    Raises
    ------
    KeyError, ValueError
        Neither a class nor a column; a column with other values than classes.
    """
    if name in classes:
        return np.full(adata.n_obs, classes.index(name))
    if name not in adata.obs:
        raise KeyError(
            f"{argument}={name!r} is neither a class of the model ({classes}) nor a column of adata.obs "
            f"({adata.obs.columns.tolist()})."
        )
    labels = obs_column(adata, name, argument).astype(str)
    codes = pd.Index(classes).get_indexer(labels)
    if (codes < 0).any():
        strange = sorted(set(labels) - set(classes))
        raise ValueError(
            f"{argument}: {int((codes < 0).sum())} of {adata.n_obs} cells have no class of the model in adata.obs[{name!r}], but "
            f"{strange[:5]}, which are no classes of the model ({classes}). Leave these cells out, or pass the name of a class or "
            f"another column as {argument}=."
        )
    return codes
