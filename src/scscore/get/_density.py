"""``get.density``: the posterior density of a continuous target as a data frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scscore.io.keys import Keys


def density(adata: AnnData, *, key: str = "scscore") -> pd.DataFrame:
    """Posterior density of a continuous target for all cells.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.regress`.
    key
        The `key_added` of that call.

    Returns
    -------
    Cells x bins, float32, per unit of the target; columns are the bins, an interval index: rows times its lengths sum to one. Reads
    ``obsm[f"{key}_density"]`` and ``uns[key]["edges"]``. A copy.

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
    >>> cells.obs["dose"] = cells.obsm["X_toy"][:, 0] + 0.1
    >>> model = scs.tl.fit(cells, "dose", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.regress(cells, model, progress=False)
    >>> scs.get.density(cells).shape
    (300, 64)
    """
    keys = Keys(key)
    stored = adata.uns.get(keys.uns, {})
    if keys.density not in adata.obsm or "edges" not in stored:
        raise KeyError(
            f"adata.obsm[{keys.density!r}] or adata.uns[{keys.uns!r}]['edges'] is missing (key={key!r}): run "
            "scscore.tl.regress first, or pass the key= that its key_added= named."
        )
    values, edges = np.array(adata.obsm[keys.density]), np.asarray(stored["edges"], dtype=np.float64)
    if values.shape != (adata.n_obs, len(edges) - 1):
        raise ValueError(
            f"adata.obsm[{keys.density!r}] has shape {values.shape}, adata.uns[{keys.uns!r}] names {len(edges) - 1} bins: they stem "
            "from different models; run scscore.tl.regress again."
        )
    return pd.DataFrame(values, index=adata.obs_names.copy(), columns=pd.IntervalIndex.from_breaks(edges))
