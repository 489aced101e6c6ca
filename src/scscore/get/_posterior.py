"""``get.posterior``: the posterior of every cell as a data frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scscore.io.keys import UNKNOWN, Keys


def posterior(adata: AnnData, *, key: str = "scscore") -> pd.DataFrame:
    """Calibrated posterior of all cells, with class names.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.classify`.
    key
        The `key_added` of that call.

    Returns
    -------
    Cells x classes, float32, rows sum to one. Reads ``obsm[f"{key}_posterior"]`` and ``uns[key]["classes"]``. A copy: changing it
    leaves `adata` alone.

    Raises
    ------
    KeyError
        A slot is missing.
    ValueError
        The slots stem from different models.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.classify(cells, model, progress=False)
    >>> scs.get.posterior(cells).columns.tolist()
    ['a', 'b', 'c']
    """
    keys = Keys(key)
    return class_frame(adata, keys.posterior, keys)


def class_frame(adata: AnnData, slot: str, keys: Keys) -> pd.DataFrame:
    """A cells x classes array of ``obsm`` as a data frame; checks that the stored class names belong to it."""
    fix = "run scscore.tl.classify first, or pass the key= that its key_added= named."
    if slot not in adata.obsm:
        raise KeyError(f"adata.obsm[{slot!r}] is missing (key={keys.key_added!r}): {fix}")
    stored = adata.uns.get(keys.uns)
    if stored is None or "classes" not in stored:
        raise KeyError(f"adata.uns[{keys.uns!r}]['classes'] is missing (key={keys.key_added!r}): {fix}")
    values = np.array(adata.obsm[slot])
    classes = [str(name) for name in stored["classes"]]  # zarr reads them as numpy variable-width strings
    labels = adata.obs.get(keys.label)
    # fit() on these cells with the same key replaces the class names and leaves the older posterior where it is
    other_names = {} if labels is None else set(labels.dropna().astype(str)) - {*classes, UNKNOWN}
    if values.ndim != 2 or values.shape[1] != len(classes) or other_names:
        raise ValueError(
            f"adata.obsm[{slot!r}] has shape {values.shape}, adata.uns[{keys.uns!r}] names {len(classes)} classes"
            + (f" without {sorted(other_names)[:5]} of adata.obs[{keys.label!r}]" if other_names else "")
            + ": they stem from different models; run scscore.tl.classify again."
        )
    return pd.DataFrame(values, index=adata.obs_names.copy(), columns=pd.Index(classes, dtype=object))
