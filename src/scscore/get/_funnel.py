"""``get.funnel``: the measures of all funnels as a data frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scscore.io.keys import Keys
from scscore.io.params import stored_params

_COLUMNS = ("n", "spearman", "p_near", "p_near_flat", "reference", "reference_rank", "barrier")


def funnel(adata: AnnData, *, key: str = "scscore") -> pd.DataFrame:
    """Measures of the funnel of every group.

    Parameters
    ----------
    adata
        Points after :func:`scscore.tl.funnel`.
    key
        The `key_added` of that call.

    Returns
    -------
    One row per group, in the order of its categories, with the columns

    - ``n``: points;
    - ``spearman``: rank correlation of energy and distance;
    - ``p_near``, ``p_near_flat``: Boltzmann weight near the reference, and its value for an energy that is equal everywhere;
    - ``reference``, ``reference_rank``: the point at the smallest distance, and its rank by energy (1 is the lowest);
    - ``barrier``: the highest barrier on the way of any point to the reference, nats; only where a representation was given.

    Reads ``uns[f"{key}_funnel"]``. A copy: changing it leaves `adata` alone.

    Raises
    ------
    KeyError
        There are no funnels under `key`.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.energy(cells, model, n_steps=4, gap=False, progress=False)
    >>> scs.tl.funnel(cells, reference="cell_0", use_rep="X_toy", groupby="class")
    >>> scs.get.funnel(cells)["n"].tolist()
    [100, 100, 100]
    """
    slot = Keys(key).funnel
    if slot not in adata.uns:
        raise KeyError(
            f"adata.uns[{slot!r}] is missing (key={key!r}): run scscore.tl.funnel first, or pass the key= that its "
            "key_added= named."
        )
    stored = adata.uns[slot]
    names = [str(name) for name in stored["groups"]]  # zarr reads them as numpy variable-width strings
    columns = {column: np.array(stored[column]) for column in _COLUMNS if column in stored}
    columns["reference"] = np.array([str(name) for name in stored["reference"]], dtype=object)
    index = pd.Index(names, dtype=object, name=stored_params(adata, slot)["groupby"])
    return pd.DataFrame(columns, index=index)
