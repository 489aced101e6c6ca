"""Energies that were stored in ``obs``, read and checked."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scscore.io.columns import number_column
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


def energy_unit(adata: AnnData, keys: Keys) -> str:
    """Unit of the stored energies."""
    return "nats per feature" if stored_params(adata, keys.energy_uns).get("per_dof") else "nats"
