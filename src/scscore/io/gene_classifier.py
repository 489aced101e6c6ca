"""A linear classifier of variable genes, an expert for the readout: components of genes as they are hold little of a marker that varies little."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from scscore.core.readout import linear_classifiers, some_cells
from scscore.io.folds import Split
from scscore.io.readers import Chunk
from scscore.io.representation import GeneClassifier, Matrix, PCAEncoder, log_normalise

_N_GENES, _N_COMPS = 2000, 200
_PENALTY = 0.1
_LARGEST_LOG = 50.0


def add_classifiers(
    encoder: PCAEncoder,
    points: Matrix,
    of_splits: Sequence[tuple[Matrix, Matrix]],
    chunk: Chunk,
    y: NDArray[np.integer],
    splits: Sequence[Split],
) -> tuple[PCAEncoder, Matrix, list[tuple[Matrix, Matrix]]]:
    """Put class scores by genes behind the components: by a classifier of all cells, and, of every split, by one of its training cells.

    Parameters
    ----------
    encoder, points, of_splits
        Encoder of all cells, and the points that it and those of the splits gave.
    chunk
        Values of all cells, genes as in the encoder.
    y
        Class indices.
    splits
        Rows of the training and the held-out cells. Where there are fewer of them than points of splits, the rest of these are left as they are.

    Returns
    -------
    The encoder with its classifier, its points, and those of the splits.
    """
    expression = sp.csr_matrix(log_normalise(chunk, encoder.kind, encoder.target_sum))
    n_classes = int(y.max()) + 1
    found = list(of_splits)
    for i, (train, test) in enumerate(splits):
        own = fit_gene_classifier(expression[train], y[train], n_classes)
        x_train, x_test = of_splits[i]
        found[i] = (
            np.hstack([x_train, own.scores(expression[train])]),
            np.hstack([x_test, own.scores(expression[test])]),
        )
    whole = fit_gene_classifier(expression, y, n_classes)
    return encoder.with_classifier(whole), np.hstack([points, whole.scores(expression)]), found


def fit_gene_classifier(expression: sp.csr_matrix, y: NDArray[np.integer], n_classes: int) -> GeneClassifier:
    """Logistic regression of the 2,000 most variable genes, each divided by its standard deviation plus the median one, behind 200 components.

    The median keeps genes that are hardly ever seen from counting as much as markers. Of more than 10,000 cells, that many are used.

    Parameters
    ----------
    expression
        Log expression, ``(n, n_genes)``.
    y
        Class indices, ``(n,)``.
    n_classes
        Number of classes.
    """
    rows = some_cells(y, n_classes)
    expression, y = expression[rows], y[rows]
    genes = most_variable(expression, _N_GENES)
    x = expression[:, genes].toarray()
    spread = x.std(axis=0, dtype=np.float64)
    factors = 1 / (spread + max(float(np.median(spread)), 1e-6))
    mean = x.mean(axis=0)
    x = (x - mean) * factors.astype(np.float32)
    n_comps = min(_N_COMPS, *x.shape)
    components = PCA(n_comps, svd_solver="randomized", random_state=0).fit(x).components_.T.astype(np.float64)
    ((weight, bias),) = linear_classifiers(x @ components, y, n_classes, [_PENALTY])
    weights = factors[:, None] * (components @ weight.T)
    return GeneClassifier(genes, weights, bias - mean.astype(np.float64) @ weights)


def most_variable(expression: Chunk, n_genes: int) -> NDArray[np.int64]:
    """Columns of so many genes with the largest normalised dispersion of log expression, all where there are fewer; sorted.

    Of values that are too large to be logarithms, those with the largest variance.
    """
    if expression.shape[1] <= n_genes:
        return np.arange(expression.shape[1])
    if expression.max() > _LARGEST_LOG:
        values = sp.csr_matrix(expression, dtype=np.float64)
        variance = np.asarray(values.multiply(values).mean(axis=0) - np.square(values.mean(axis=0))).ravel()
        return np.sort(np.argsort(-variance, kind="stable")[:n_genes])
    import scanpy as sc

    view, threads = AnnData(expression), torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of genes that none of these cells has
        sc.pp.highly_variable_genes(view, n_top_genes=n_genes, flavor="seurat")
    torch.set_num_threads(threads)  # numba, under scanpy, sets those of torch to its own
    dispersion = view.var["dispersions_norm"].fillna(-np.inf).to_numpy()
    return np.sort(np.argsort(-dispersion, kind="stable")[:n_genes])  # ties would give more genes than asked for
