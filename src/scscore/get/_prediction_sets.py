"""``get.prediction_sets``: the conformal prediction set of every cell."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from scscore.get._posterior import class_frame
from scscore.io.keys import Keys


def prediction_sets(adata: AnnData, *, key: str = "scscore") -> pd.DataFrame:
    """Prediction sets of all cells, with class names.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.classify`.
    key
        The `key_added` of that call.

    Returns
    -------
    Cells x classes, bool: true where a class is in the set. Reads ``obsm[f"{key}_prediction_set"]`` and ``uns[key]["classes"]``. A
    copy: changing it leaves `adata` alone.

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
    >>> scs.tl.classify(cells, model, coverage=0.95, progress=False)
    >>> bool(scs.get.prediction_sets(cells).any().all())
    True
    """
    keys = Keys(key)
    return class_frame(adata, keys.prediction_set, keys).astype(bool)
