"""Between genes and the engine's space: what turns gradients of the evidence into a sum over genes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scscore.io.genes import align_genes
from scscore.io.readers import MatrixReader
from scscore.io.representation import PCAEncoder, log_normalise

Array = NDArray[np.float64]


class GeneSpace(NamedTuple):
    r"""The linear map from expression to the engine's space, and the expression of a point of that space.

    With loadings ``E`` a point is :math:`z = E^\top (x - m)`; a covector (gradient) :math:`g` of that space is :math:`E g` in genes, and the
    expression :math:`m + B (z - z_m)`, :math:`E^\top B = 1`, has the point :math:`z`.

    Attributes
    ----------
    loadings
        ``E``, nats per unit of expression and unit of gradient, float64 ``(n_vars, n_features)``; zero for genes that the model does
        not know.
    mean
        Mean expression of the training cells, ``(n_vars,)``.
    dual
        ``B``, ``(n_vars, n_features)``.
    origin
        The point of the mean expression, ``(n_features,)``.
    """

    loadings: Array
    mean: Array
    dual: Array
    origin: Array

    def expression(self, z: Array) -> Array:
        """Expression whose point is `z`, ``(n, n_vars)``: the mean and what the leading components add to it."""
        return self.mean + (z - self.origin) @ self.dual.T


def gene_space(encoder: PCAEncoder, adata: AnnData, *, center: Array, matrix: Array) -> GeneSpace:
    """Of the genes of `adata`, for an encoder followed by a whitening.

    Parameters
    ----------
    encoder
        The model's own encoder.
    adata
        Cells, whose genes are aligned to those of the model. Where genes are missing the maps have fewer rows, and what they
        would have added is the same for all cells.
    center, matrix
        Of the whitening, ``(n_features,)`` and ``(n_features, n_features)``.
    """
    position = align_genes(encoder.genes, adata).position
    found, n_features = position >= 0, len(center)
    loadings = np.zeros((adata.n_vars, n_features))
    loadings[position[found]] = (encoder.components[:, :n_features] @ matrix)[found]
    dual = np.zeros_like(loadings)
    dual[position[found]] = np.linalg.solve(matrix, np.linalg.pinv(encoder.components)[:n_features]).T[found]
    mean = np.zeros(adata.n_vars)
    mean[position[found]] = encoder.mean[found]
    return GeneSpace(loadings, mean, dual, -center @ matrix)


def expression_chunks(
    encoder: PCAEncoder, adata: AnnData, *, layer: str | None, size: int
) -> Iterator[tuple[int, Array]]:
    """First row and log expression, float32 ``(n, n_vars)``, of one chunk of cells after the other, as the encoder sees it.

    Genes that the model does not know are zero.
    """
    position = align_genes(encoder.genes, adata).position
    found = position >= 0
    known = np.zeros(adata.n_vars, dtype=bool)
    known[position[found]] = True
    target = encoder.target_sum * (float(encoder.share[found].sum()) if encoder.kind == "counts" else 1.0)
    for start, chunk in MatrixReader(adata, layer).chunks(size):
        x = log_normalise(chunk, encoder.kind, target, known)
        dense = x.toarray() if hasattr(x, "toarray") else np.array(x)
        dense[:, ~known] = 0
        yield start, dense
