"""``get.perturbation``: what is known of every perturbation, as a data frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scscore.io.keys import Keys
from scscore.io.params import stored_params

_COLUMNS = ("n_cells", "auroc", "pvalue", "fdr", "effect", "effect_se", "escape", "control_response")
_ALIKE = 0.05


def perturbation(adata: AnnData, *, key: str = "scscore") -> pd.DataFrame:
    """Detectability, effect and escape of every perturbation.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.predict_perturbation`.
    key
        The `key_added` of that call.

    Returns
    -------
    One row per perturbation, the best detected first, with the columns

    - ``n_cells``: cells that were assigned to it;
    - ``auroc``, ``pvalue``, ``fdr``: how well its cells are told from control cells by the evidence; below an ``fdr`` of 0.05 it is detected;
    - ``effect``, ``effect_se``: mean evidence against control of its cells, nats, and standard error;
    - ``escape``: share of its cells that look like control cells; ``control_response``: share of control cells that look like its cells. Where a
      perturbation is not detected the two add up to about one, and mean nothing;
    - ``alike``: perturbations that it cannot be told from at a false discovery rate of 5%, joined by commas.

    Reads ``uns[f"{key}_perturbation"]``. A copy: changing it leaves `adata` alone.

    Raises
    ------
    KeyError
        There are no perturbations under `key`.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.predict_perturbation(cells, model, control="a", progress=False)
    >>> scs.get.perturbation(cells)["n_cells"].tolist()
    [100, 100]
    """
    slot = Keys(key).perturbation
    if slot not in adata.uns:
        raise KeyError(
            f"adata.uns[{slot!r}] is missing (key={key!r}): run scscore.tl.predict_perturbation first, or pass the key= that "
            "its key_added= named."
        )
    stored = adata.uns[slot]
    names = [str(name) for name in stored["names"]]  # zarr reads them as numpy variable-width strings
    table = pd.DataFrame(
        {column: np.array(stored[column]) for column in _COLUMNS},
        index=pd.Index(names, dtype=object, name=stored_params(adata, slot)["condition"]),
    )
    rates = np.asarray(stored["pairwise_fdr"])[:-1, :-1]
    table["alike"] = [
        ", ".join(other for j, other in enumerate(names) if j != i and rates[i, j] >= _ALIKE) for i in range(len(names))
    ]
    return table.sort_values("auroc", ascending=False, kind="stable")
