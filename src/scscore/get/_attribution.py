"""``get.attribution``: the genes of every class as an AnnData of its own."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore.io.keys import Keys
from scscore.io.params import stored_params


def attribution(adata: AnnData, *, gene_sets: bool = False, key: str = "scscore") -> AnnData:
    """Attributions of all classes, as classes x genes, or classes x gene sets.

    Rows are classes and columns genes, so that what takes cells x genes takes it: plots of scanpy, with the condition as `groupby`,
    and methods that score gene sets.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.attribute`.
    gene_sets
        Give the sums over the gene sets of that call instead of genes: ``X`` and ``layers["se"]``.
    key
        The `key_added` of that call.

    Returns
    -------
    AnnData of the classes that are the target of a cell, in the order of the model, with

    - ``X``: mean nats per gene, float32;
    - ``layers["se"]``: its standard error over cells; NaN for a class with one cell;
    - ``layers["pvalue"]``, ``layers["fdr"]``: after :func:`scscore.tl.attribution_test` with the same model;
    - ``layers["presence"]``, ``layers["absence"]``: the parts from expression above and below the baseline, whose sum is ``X``;
    - ``obs``: the class under the name of the condition, ``n_cells``, and ``baseline``, the mean evidence at the baseline, nats;
    - ``var``: that of `adata`;
    - ``uns["params"]``: the parameters of the call, JSON;
    - ``uns[f"{condition}_colors"]``: colours of the classes, where `adata` has them for the condition or for ``f"{key}_label"``.

    Reads ``varm[f"{key}_attribution"]``, ``varm[f"{key}_attribution_se"]``, ``varm[f"{key}_attribution_presence"]`` and
    ``uns[f"{key}_attribution"]``. A copy: changing it leaves `adata` alone.

    Raises
    ------
    KeyError
        A slot is missing.
    ValueError
        The slots stem from different calls.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scscore as scs
    >>> cells = scs.datasets.pbmc()
    >>> model = scs.tl.fit(cells, "cell_type", max_epochs=2, progress=False)
    >>> scs.tl.attribute(cells, model, target="cell_type", progress=False)
    >>> genes = scs.get.attribution(cells)
    >>> genes.shape
    (10, 765)
    >>> axes = sc.pl.matrixplot(
    ...     genes, ["CD79A", "NKG7"], groupby="cell_type", layer="presence", colorbar_title="mean nats", show=False
    ... )
    """
    keys = Keys(key)
    fix = "run scscore.tl.attribute first, or pass the key= that its key_added= named."
    stored = adata.uns.get(keys.attribution)
    if stored is None:
        raise KeyError(f"adata.uns[{keys.attribution!r}] is missing (key={key!r}): {fix}")
    names = [str(name) for name in stored["classes"]]  # zarr reads them as numpy variable-width strings
    n_cells = np.asarray(stored["n_cells"], dtype=np.int64)
    rows = np.flatnonzero(n_cells > 0)

    def values(slot: str) -> NDArray[np.float32]:
        if slot not in adata.varm:
            raise KeyError(f"adata.varm[{slot!r}] is missing (key={key!r}): {fix}")
        found = np.asarray(adata.varm[slot], dtype=np.float32)
        if found.ndim != 2 or found.shape[1] != len(names):
            raise ValueError(
                f"adata.varm[{slot!r}] has shape {found.shape}, adata.uns[{keys.attribution!r}] names {len(names)} classes: "
                "they stem from different models; run scscore.tl.attribute again."
            )
        return np.ascontiguousarray(found[:, rows].T)

    condition, kept = stored_params(adata, keys.attribution)["condition"], [names[row] for row in rows]
    obs = pd.DataFrame(
        {"n_cells": n_cells[rows], "baseline": np.asarray(stored["baseline"], dtype=np.float64)[rows]},
        index=pd.Index(kept, dtype=object),
    )
    obs[condition] = pd.Categorical(kept, categories=kept)
    if gene_sets:
        mean, layers, var = _of_sets(adata, keys, kept)
    else:
        mean, var = values(keys.attribution), adata.var.copy()
        presence = values(keys.attribution_presence)
        layers = {"se": values(keys.attribution_se), "presence": presence, "absence": mean - presence}
        tested = adata.uns.get(keys.attribution_test, {}).get("model_hash")
        if tested is not None and tested == stored.get("model_hash"):  # and not a test of another model
            layers |= {"pvalue": values(keys.attribution_pvalue), "fdr": values(keys.attribution_fdr)}
    result = AnnData(mean, obs=obs, var=var, layers=layers, uns={"params": str(stored["params"])})
    colors = _colors(adata, (condition, keys.label), kept)
    if colors is not None:
        result.uns[f"{condition}_colors"] = colors
    return result


def _of_sets(
    adata: AnnData, keys: Keys, classes: list[str]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]], pd.DataFrame]:
    """Mean and standard error of the gene sets over the cells whose target is a class."""
    names = adata.uns[keys.attribution].get("gene_sets")
    if names is None or keys.attribution_sets not in adata.obsm:
        raise KeyError(
            f"adata.obsm[{keys.attribution_sets!r}] is missing (key={keys.key_added!r}): run scscore.tl.attribute with gene_sets=."
        )
    table = pd.DataFrame(np.asarray(adata.obsm[keys.attribution_sets]), columns=[str(name) for name in names])
    groups = table.groupby(adata.obs[keys.target].astype(str).to_numpy())
    mean, error = (found.loc[classes].to_numpy(dtype=np.float32) for found in (groups.mean(), groups.sem()))
    return mean, {"se": error}, pd.DataFrame(index=table.columns)


def _colors(adata: AnnData, columns: tuple[str, ...], names: list[str]) -> list[str] | None:
    """Colours of the classes, from the first column that has one for each of them."""
    for column in columns:
        colors = adata.uns.get(f"{column}_colors")
        if column not in adata.obs or colors is None:
            continue
        categories = adata.obs[column].astype("category").cat.categories.astype(str).tolist()
        if len(colors) >= len(categories) and set(names) <= set(categories):
            return [str(colors[categories.index(name)]) for name in names]
    return None
