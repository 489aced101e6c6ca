"""Energies that were stored in ``obs``, read and checked."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore.io.keys import Keys
from scscore.io.params import stored_params


def stored_energy(adata: AnnData, keys: Keys) -> NDArray[np.float64]:
    """``obs[keys.energy]`` of all cells, ``(n_obs,)``.

    Raises
    ------
    KeyError, ValueError
        No energies under this key; not numbers; NaN or infinite values.
    """
    return number_column(
        adata,
        keys.energy,
        missing=f"adata.obs[{keys.energy!r}] is missing (key={keys.key_added!r}): run scscore.tl.energy first, or pass the "
        "name that its key_added= gave.",
    )


def number_column(adata: AnnData, name: str, *, missing: str) -> NDArray[np.float64]:
    """A column of ``obs`` as finite numbers, ``(n_obs,)``; KeyError with the text `missing` where there is none."""
    if name not in adata.obs:
        raise KeyError(missing)
    column = adata.obs[name]
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_complex_dtype(column):
        raise ValueError(f"adata.obs[{name!r}] must hold numbers, found {column.dtype}; convert it first.")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"adata.obs[{name!r}] holds NaN or infinite values in {bad} of {len(values)} cells; leave these cells out."
        )
    return values


def energy_unit(adata: AnnData, keys: Keys) -> str:
    """Unit of the stored energies."""
    return "nats per feature" if stored_params(adata, keys.energy_uns).get("per_dof") else "nats"
