"""``get.likelihood``: the log-likelihood of every class for every cell as a data frame."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from scscore.get._posterior import class_frame
from scscore.io.keys import Keys


def likelihood(adata: AnnData, *, key: str = "scscore") -> pd.DataFrame:
    """Log p(x given class) of all cells and classes, with class names.

    The values are densities in the model's representation, before temperature and prior: differences between the classes
    of one cell are evidence in nats, and may be compared between cells.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.classify`.
    key
        The `key_added` of that call.

    Returns
    -------
    Cells x classes, float32, nats. Reads ``obsm[f"{key}_log_likelihood"]`` and ``uns[key]["classes"]``. A copy: changing it leaves
    `adata` alone.

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
    >>> scs.get.likelihood(cells).shape
    (300, 3)
    """
    keys = Keys(key)
    return class_frame(adata, keys.log_likelihood, keys)
