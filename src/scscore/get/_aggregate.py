"""``get.aggregate``: the posterior of coarser classes."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from anndata import AnnData

from scscore.get._posterior import posterior


def aggregate(adata: AnnData, parents: Mapping[str, str], *, key: str = "scscore") -> pd.DataFrame:
    """Posterior of the groups of a hierarchy: the sum over the classes of every group.

    A cell that cannot be told to be a naive or a memory T cell is still a T cell for certain; sums of a posterior are exact.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.classify`.
    parents
        Group of every class. A Series with the classes as index will do.
    key
        The `key_added` of that call.

    Returns
    -------
    Cells x groups, float32, in the order in which the groups first occur in `parents`; rows sum to one.

    Raises
    ------
    KeyError
        A slot is missing.
    ValueError
        `parents` leaves out a class, or names one that the model does not know.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.classify(cells, model, progress=False)
    >>> scs.get.aggregate(cells, {"a": "first", "b": "other", "c": "other"}).columns.tolist()
    ['first', 'other']
    """
    found = posterior(adata, key=key)
    groups = {str(name): str(group) for name, group in parents.items()}
    missing, unknown = sorted(set(found.columns) - set(groups)), sorted(set(groups) - set(found.columns))
    if missing or unknown:
        raise ValueError(f"parents must give a group for every class; missing: {missing}, unknown: {unknown}.")
    order = list(dict.fromkeys(groups.values()))
    return found.T.groupby(groups).sum().T[order].astype("float32")
