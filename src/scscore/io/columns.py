"""Columns of ``obs``, found and read as numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray


def obs_column(adata: AnnData, name: str, argument: str) -> pd.Series:
    """A column of ``obs``; KeyError that names the argument and what there is."""
    if name not in adata.obs:
        raise KeyError(f"{argument}={name!r} is not a column of adata.obs; available: {adata.obs.columns.tolist()}.")
    return adata.obs[name]


def numbers(column: pd.Series, refusal: str, *, booleans: bool = False) -> NDArray[np.float64]:
    """Values of a column ``(n,)``, NaN where they are missing.

    Parameters
    ----------
    column
        Of a table.
    refusal
        Begin of the message of the ValueError where the column does not hold real numbers.
    booleans
        Take truth values for 0 and 1, too.
    """
    if not pd.api.types.is_numeric_dtype(column) or column.dtype.kind in ("c" if booleans else "bc"):
        raise ValueError(f"{refusal}, found {column.dtype}; convert it first.")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def number_column(adata: AnnData, name: str, *, missing: str) -> NDArray[np.float64]:
    """A column of ``obs`` as finite numbers, ``(n_obs,)``; KeyError with the text `missing` where there is none."""
    if name not in adata.obs:
        raise KeyError(missing)
    values = numbers(adata.obs[name], f"adata.obs[{name!r}] must hold numbers", booleans=True)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"adata.obs[{name!r}] holds NaN or infinite values in {bad} of {len(values)} cells; leave these cells out."
        )
    return values
