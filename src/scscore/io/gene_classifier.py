"""A linear classifier of variable genes, an expert for the readout: components of genes as they are hold little of a marker that varies little."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

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


class Classified(NamedTuple):
    """An encoder with a classifier of genes, its points of all cells, and those of the splits by their own."""

    encoder: PCAEncoder
    points: Matrix
    of_splits: list[tuple[Matrix, Matrix]]


def add_classifiers(
    encoder: PCAEncoder,
    points: Matrix,
    of_splits: Sequence[tuple[Matrix, Matrix]],
    chunk: Chunk,
    y: NDArray[np.integer],
    splits: Sequence[Split],
) -> Classified:
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
        Rows of the training and the held-out cells.
    """
    expression = sp.csr_matrix(log_normalise(chunk, encoder.kind, encoder.target_sum))
    n_classes = int(y.max()) + 1
    found = []
    for (train, test), (x_train, x_test) in zip(splits, of_splits, strict=True):
        own = fit_gene_classifier(expression[train], y[train], n_classes)
        scores = own.scores(expression)
        found.append((np.hstack([x_train, scores[train]]), np.hstack([x_test, scores[test]])))
    whole = fit_gene_classifier(expression, y, n_classes)
    return Classified(encoder.with_classifier(whole), np.hstack([points, whole.scores(expression)]), found)


def fit_gene_classifier(expression: sp.csr_matrix, y: NDArray[np.integer], n_classes: int) -> GeneClassifier:
    """Logistic regression of the 2,000 most variable genes, each divided by its standard deviation and the median one, behind 200 components.

    The median keeps genes that are hardly ever seen from counting as much as markers.

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
    x = (x - x.mean(axis=0)) * factors.astype(np.float32)
    n_comps = min(_N_COMPS, *x.shape)
    components = PCA(n_comps, svd_solver="randomized", random_state=0).fit(x).components_.T.astype(np.float64)
    ((weight, bias),) = linear_classifiers(x @ components, y, n_classes, [_PENALTY])
    weights = np.zeros((expression.shape[1], n_classes))
    weights[genes] = factors[:, None] * (components @ weight.T)
    mean = np.asarray(expression.mean(axis=0), dtype=np.float64).ravel()
    return GeneClassifier(weights, bias - mean @ weights)


def most_variable(expression: Chunk, n_genes: int) -> NDArray[np.int64]:
    """Columns of so many genes with the largest normalised dispersion of log expression, all where there are fewer; sorted."""
    if expression.shape[1] <= n_genes:
        return np.arange(expression.shape[1])
    import scanpy as sc

    view, threads = AnnData(expression), torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of genes that none of these cells has
        sc.pp.highly_variable_genes(view, n_top_genes=n_genes, flavor="seurat")
    torch.set_num_threads(threads)  # numba, under scanpy, sets those of torch to its own
    dispersion = view.var["dispersions_norm"].fillna(-np.inf).to_numpy()
    return np.sort(np.argsort(-dispersion, kind="stable")[:n_genes])  # ties would give more genes than asked for
