"""One modality of a MuData, or the AnnData itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

DEFAULT = "rna"


def of_modality(data: Any, modality: str | None) -> Any:
    """The modality of a MuData to work on, which is what results are written to; what is no MuData is returned as it is.

    Parameters
    ----------
    data
        AnnData, MuData, or something else, which is left to the checks of the caller.
    modality
        Name of the modality. ``None``: the only one, or ``"rna"``.

    Raises
    ------
    KeyError, ValueError
        No such modality; several and none is called ``"rna"``; a modality of an AnnData.
    """
    mod = getattr(data, "mod", None)
    if not isinstance(mod, Mapping):
        if modality is not None and isinstance(data, AnnData):
            raise ValueError(f"modality={modality!r} is for MuData, got an AnnData: leave it out.")
        return data
    names = list(mod)
    if modality is None:
        if len(names) != 1 and DEFAULT not in names:
            raise ValueError(f"modality must name one of {names}: none of them is called {DEFAULT!r}.")
        modality = names[0] if len(names) == 1 else DEFAULT
    if modality not in names:
        raise KeyError(f"modality={modality!r} is not in the MuData; available: {names}.")
    return mod[modality]


def bring_target(data: Any, adata: AnnData, condition: str | None) -> None:
    """Copy a feature of another modality, named ``"prot:CD4"``, to ``obs`` of the modality that is worked on, where it is a target.

    Cells that the other modality does not have get no value. Anything else than the name of such a feature is left alone.
    """
    mod = getattr(data, "mod", None)
    if not isinstance(mod, Mapping) or not isinstance(condition, str):
        return
    name, _, feature = condition.partition(":")
    if name not in mod or not feature:
        return
    if feature not in mod[name].var_names:
        if condition in adata.obs:
            return
        raise KeyError(
            f"condition={condition!r}: {feature!r} is not among the {mod[name].n_vars} features of mod[{name!r}]."
        )
    if not mod[name].var_names.is_unique:
        raise ValueError(
            f"condition={condition!r}: features of mod[{name!r}] are duplicated; run var_names_make_unique()."
        )
    values = mod[name].obs_vector(feature)
    adata.obs[condition] = (
        pd.Series(np.asarray(values), index=mod[name].obs_names).reindex(adata.obs_names).astype(np.float64)
    )
