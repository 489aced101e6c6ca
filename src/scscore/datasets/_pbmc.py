"""Real blood cells that ship inside scanpy."""

from __future__ import annotations

import numpy as np
from anndata import AnnData


def pbmc() -> AnnData:
    """700 peripheral blood mononuclear cells of 10x Genomics' 68k data set, with cell types.

    The log-normalised values of 765 variable genes that scanpy ships as ``pbmc68k_reduced``; labels by similarity to sorted
    bulk populations (Zheng et al. 2017, Nat Commun 8:14049). Nothing is downloaded.

    Returns
    -------
    AnnData with log-normalised values in ``X`` (CSR), the cell type in ``obs["cell_type"]`` (10 classes), a fixed stratified
    split into train (70 %) and test cells in ``obs["split"]``, and scanpy's ``obsm["X_pca"]`` and ``obsm["X_umap"]``.

    Examples
    --------
    >>> import scscore as scs
    >>> scs.datasets.pbmc().shape
    (700, 765)
    """
    import scanpy as sc
    from sklearn.model_selection import train_test_split

    source = sc.datasets.pbmc68k_reduced()
    adata = AnnData(
        source.raw[:, source.var_names].X,
        obs=source.obs[["n_genes", "percent_mito", "n_counts"]].copy(),
        var=source.var[[]].copy(),
        obsm={key: source.obsm[key] for key in ("X_pca", "X_umap")},
    )
    adata.obs["cell_type"] = source.obs["bulk_labels"].astype("category")
    _, test = train_test_split(np.arange(adata.n_obs), test_size=0.3, stratify=adata.obs["cell_type"], random_state=0)
    split = np.full(adata.n_obs, "train", dtype=object)
    split[test] = "test"
    adata.obs["split"] = split
    adata.obs["split"] = adata.obs["split"].astype("category")
    return adata
