"""Checks of arguments that several ``tl`` functions share."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore._logging import logger


def seed_of(rng: int | np.random.Generator) -> int:
    """A seed from a seed or a generator (which is advanced)."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**31))
    if isinstance(rng, (bool, float)) or not isinstance(rng, (int, np.integer)) or rng < 0:
        raise ValueError(f"rng must be a non-negative integer or a numpy Generator, got {rng!r}.")
    return int(rng)


def check_positive(name: str, value: int | None) -> None:
    """Raise ValueError unless `value` is a positive integer or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def obs_column(adata: AnnData, name: str, argument: str) -> pd.Series:
    """A column of ``obs``; KeyError that names the argument and what there is."""
    if adata.n_obs == 0:
        raise ValueError("adata holds no cells.")
    if name not in adata.obs:
        raise KeyError(f"{argument}={name!r} is not a column of adata.obs; available: {adata.obs.columns.tolist()}.")
    return adata.obs[name]


def condition_labels(adata: AnnData, condition: str) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Class labels of all cells as strings, and which cells have one.

    Raises
    ------
    KeyError, ValueError
        Unknown column, continuous values, fewer than two classes, a class with fewer than two cells.
    """
    column = obs_column(adata, condition, "condition")
    if pd.api.types.is_float_dtype(column) or column.dtype.kind == "c":
        raise ValueError(
            f"condition={condition!r} is continuous ({column.dtype}); this version fits classes. "
            f"Bin it, or make it categorical: adata.obs[{condition!r}].astype(str).astype('category')."
        )
    labelled = column.notna().to_numpy()
    labels = column.astype(str).to_numpy(dtype=str)
    names, counts = np.unique(labels[labelled], return_counts=True)
    if len(names) < 2:
        raise ValueError(f"condition={condition!r} must hold at least two classes, found {names.tolist()}.")
    if (counts < 2).any():
        rare = names[counts < 2].tolist()
        raise ValueError(
            f"condition={condition!r}: every class needs at least 2 cells, these have 1: {rare}. Merge them into other "
            f"classes, or set their labels to NaN to leave the cells out."
        )
    dropped = int((~labelled).sum())
    if dropped:
        logger.warning("%d of %d cells have no label in obs[%r] and are left out.", dropped, len(labels), condition)
    return labels, labelled


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
