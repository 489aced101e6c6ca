"""Representations: the model's own encoder (normalise, log, centre, PCA) or one that the user stored in ``obsm``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from scscore.core.readout import ScoreMap
from scscore.io.genes import align_genes, check_unique
from scscore.io.pixels import PixelGrid
from scscore.io.readers import Chunk, MatrixReader, values

InputKind = Literal["counts", "log", "values", "pixels"]
Matrix = NDArray[np.float64]

_SAMPLE = 1000
# of the first component: features that follow from others, such as the last of an indicator for every letter
_NO_VARIANCE = 1e-6


class Representation(Protocol):
    """Turns the cells of an AnnData into points; what :class:`~scscore.ScoreModel` asks of an encoder."""

    n_features: int

    @property
    def n_scores(self) -> int:
        """Number of class scores behind the features."""
        ...

    def chunks(self, adata: AnnData, *, layer: str | None = None, size: int = 4096) -> Iterator[tuple[int, Matrix]]:
        """First row and points ``(n, n_features + n_scores)``, float64, of one chunk of cells after the other."""
        ...

    def transform(self, adata: AnnData, *, layer: str | None = None) -> Matrix:
        """Points of all cells, ``(n_obs, n_features + n_scores)``, float64."""
        ...

    def log_depth(self, adata: AnnData, *, layer: str | None = None) -> Matrix | None:
        """Log count total of all cells, ``(n_obs,)``; ``None`` where the representation does not come from counts."""
        ...

    def summary(self) -> str:
        """What it is, in a few words."""
        ...


class GeneClassifier(NamedTuple):
    """A linear classifier of log expression; :mod:`scscore.io.gene_classifier` fits it.

    Attributes
    ----------
    genes
        Positions of the genes that have a weight, ``(n_used,)``.
    weights
        Nats per unit of log expression, ``(n_used, n_classes)``.
    bias
        Nats, ``(n_classes,)``.
    """

    genes: NDArray[np.int64]
    weights: Matrix
    bias: Matrix

    def scores(self, expression: Chunk) -> Matrix:
        """Log-ratios of the classes without their prior, nats ``(n, n_classes)``."""
        return np.asarray(expression[:, self.genes] @ self.weights, dtype=np.float64) + self.bias

    def dense(self, n_genes: int) -> Matrix:
        """The weights of all genes, ``(n_genes, n_classes)``."""
        out = np.zeros((n_genes, len(self.bias)))
        out[self.genes] = self.weights
        return out


class PCAEncoder:
    """Normalise every cell to the same total, log1p, centre, project on principal components; no scaling of genes.

    Genes keep their natural variance, so that markers weigh more than noise. Sparse input stays sparse: the centre is
    subtracted after the projection.

    Parameters
    ----------
    genes
        Names of the genes, ``(n_genes,)``.
    mean
        Mean log expression of the training cells, ``(n_genes,)``.
    share
        Mean share of a gene in a cell's counts, ``(n_genes,)``, sums to one: corrects the library size of a query that
        lacks genes.
    components
        Loadings, ``(n_genes, n_features)``, ordered by explained variance.
    target_sum
        Counts per cell after normalisation.
    weights
        Factor on the centred log expression of every gene before the components were taken, ``(n_genes,)``, which the loadings hold; ``None`` is 1.
    kind
        What the model was fitted on: raw counts, log-normalised values that are used as they are, other features, or pixels of images.
    classifier
        Gives class scores, which stand behind the components in every point; ``None``: there are none.
    """

    def __init__(
        self,
        genes: NDArray[np.str_],
        mean: Matrix,
        share: Matrix,
        components: Matrix,
        *,
        target_sum: float,
        kind: InputKind = "counts",
        weights: Matrix | None = None,
        classifier: GeneClassifier | None = None,
    ) -> None:
        self.genes, self.mean, self.share, self.components = genes, mean, share, components
        self.target_sum, self.kind, self.weights, self.classifier = target_sum, kind, weights, classifier
        self.n_features: int = components.shape[1]

    @classmethod
    def fit(
        cls,
        chunk: Chunk,
        genes: NDArray[np.str_],
        *,
        n_features: int,
        kind: InputKind,
        target_sum: float = 1e4,
        unit_variance: bool = False,
    ) -> Self:
        """Fit to the training cells (counts or log-normalised values in memory, CSR or dense).

        With `unit_variance`, genes are divided by their standard deviation before the principal components are taken;
        the loadings then hold that factor and are not orthonormal.
        """
        totals = np.asarray(chunk.sum(axis=0), dtype=np.float64).ravel()
        log_expression = log_normalise(chunk, kind, target_sum)
        weights = np.ones(log_expression.shape[1])
        if unit_variance:
            weights = 1 / _standard_deviation(log_expression).astype(np.float64)
            log_expression = sp.csr_matrix(log_expression) @ sp.diags(weights)
        n_features = min(n_features, log_expression.shape[0] - 1, log_expression.shape[1])
        if (
            n_features >= log_expression.shape[1] - 1
        ):  # few features, e.g. antibodies: keep all, small enough to be dense
            dense = log_expression.toarray() if sp.issparse(log_expression) else log_expression
            pca = PCA(n_features, svd_solver="full").fit(dense)
            n_features = max(1, int((pca.explained_variance_ > _NO_VARIANCE * pca.explained_variance_[0]).sum()))
        else:
            pca = PCA(n_features, svd_solver="arpack", random_state=0).fit(log_expression)
        share = totals / max(totals.sum(), 1.0)
        components = np.ascontiguousarray(weights[:, None] * pca.components_[:n_features].T, dtype=np.float64)
        mean = (pca.mean_ / weights).astype(np.float64)
        factors = weights.astype(np.float64) if unit_variance else None
        return cls(genes, mean, share, components, target_sum=target_sum, kind=kind, weights=factors)

    def with_classifier(self, classifier: GeneClassifier | None) -> Self:
        """The same encoder, with class scores behind the components, or without."""
        found = copy.copy(self)
        found.classifier = classifier
        return found

    @property
    def n_scores(self) -> int:
        """Number of class scores behind the components."""
        return 0 if self.classifier is None else len(self.classifier.bias)

    @property
    def score_map(self) -> ScoreMap:
        """Class scores of the expression that is reconstructed from the components."""
        if self.classifier is None:
            return ScoreMap(np.zeros((self.n_features, 0)), np.zeros(0))
        dual = self.dual[self.classifier.genes]
        return ScoreMap(dual.T @ self.classifier.weights, self.classifier.scores(self.mean[None])[0])

    def decode(self, points: Matrix) -> Matrix:
        """Values ``(n, n_genes)`` as the encoder sees them, of points of which only the leading features are given; the others are average."""
        return self.mean + points @ self.dual[:, : points.shape[1]].T

    @cached_property
    def dual(self) -> Matrix:
        """Change of expression per unit of a component, ``(n_genes, n_features)``: the reconstruction by principal components.

        Its product with the transposed loadings is the identity. For genes at unit variance there are others, with smaller changes of genes that
        hardly vary at all; this is the one that has the covariances of the cells.
        """
        if self.weights is None:
            return np.asarray(np.linalg.pinv(self.components).T, dtype=np.float64)
        return self.components / self.weights[:, None] ** 2

    def encode(self, chunk: Chunk, position: NDArray[np.int64] | None = None) -> Matrix:
        """Points of the cells of a chunk, ``(n, n_features + n_scores)``.

        Parameters
        ----------
        chunk
            Values, ``(n, n_query_genes)``.
        position
            Column of every gene of the model in the chunk, -1 where missing. ``None``: the model's own genes.
        """
        projection = self._projection(position, chunk.shape[1])
        return _project(log_normalise(chunk, self.kind, projection.target_sum, projection.known), projection)

    def chunks(self, adata: AnnData, *, layer: str | None = None, size: int = 4096) -> Iterator[tuple[int, Matrix]]:
        """First row and points of one chunk of cells after the other; genes are aligned and values checked."""
        for start, _, x in self.expression_chunks(adata, layer=layer, size=size):
            yield start, x

    def expression_chunks(
        self, adata: AnnData, *, layer: str | None = None, size: int = 4096
    ) -> Iterator[tuple[int, Chunk, Matrix]]:
        """First row, log expression ``(n, n_vars)`` as the encoder sees it, and points of one chunk of cells after the other."""
        if self.kind == "pixels" and (grid := PixelGrid.of_names(self.genes)) is not None:
            grid.check(adata)
        position: NDArray[np.int64] | None = align_genes(self.genes, adata).position
        if np.array_equal(position, np.arange(adata.n_vars)):  # type: ignore[arg-type]
            position = None
        reader = MatrixReader(adata, layer)
        check_kind(reader, self.kind, declared=self.kind, where="the query")
        for _, chunk in reader.chunks():  # a pass of its own: bad values are found before the first chunk is handed out
            check_values(chunk, self.kind)
        projection = self._projection(position, adata.n_vars)
        for start, chunk in reader.chunks(size):
            expression = log_normalise(chunk, self.kind, projection.target_sum, projection.known)
            yield start, expression, _project(expression, projection)

    def transform(self, adata: AnnData, *, layer: str | None = None) -> Matrix:
        """Points of all cells, see :meth:`chunks`."""
        return np.concatenate([x for _, x in self.chunks(adata, layer=layer)])

    def log_depth(self, adata: AnnData, *, layer: str | None = None) -> Matrix | None:
        """Log count total over the genes of the model, ``(n_obs,)``, corrected for missing genes; ``None`` without counts."""
        if self.kind != "counts":
            return None
        position = align_genes(self.genes, adata).position
        known = position[position >= 0]
        share = float(self.share[position >= 0].sum())
        return np.concatenate(
            [log_depth(chunk[:, known]) for _, chunk in MatrixReader(adata, layer).chunks()]
        ) - np.log(share)

    def summary(self) -> str:
        """What it is, in a few words."""
        names = {"values": "features", "pixels": "pixels"}.get(self.kind, "genes")
        found = f"PCA of {len(self.genes)} {names}"
        if self.kind == "counts":
            found += f", counts normalised to {self.target_sum:.0f} per cell"
        return found if self.weights is None else f"{found}, {names} at unit variance"

    def _projection(self, position: NDArray[np.int64] | None, n_columns: int) -> _Projection:
        columns, added = self.components, np.zeros(self.n_features)
        if self.classifier is not None:
            columns = np.hstack([columns, self.classifier.dense(len(self.genes))])
            added = np.concatenate([added, self.classifier.scores(self.mean[None])[0]])
        if position is None:
            return _Projection(columns, self.mean @ columns - added, None, self.target_sum)
        found = position >= 0
        of_query, known = np.zeros((n_columns, columns.shape[1])), np.zeros(n_columns, dtype=bool)
        of_query[position[found]] = columns[found]
        known[position[found]] = True
        offset = self.mean[found] @ columns[found] - added
        return _Projection(of_query, offset, known, self.target_sum * float(self.share[found].sum()))


class _Projection(NamedTuple):
    """What turns the columns of a query into points: loadings by column, their centre, known genes, count total."""

    components: Matrix
    offset: Matrix
    known: NDArray[np.bool_] | None
    target_sum: float


def _project(expression: Chunk, projection: _Projection) -> Matrix:
    return np.asarray(expression @ projection.components, dtype=np.float64) - projection.offset


class ObsmRepresentation:
    """A representation that the user computed and stored in ``obsm``, e.g. ``X_pca`` or ``X_scVI``.

    Parameters
    ----------
    key
        Name in ``obsm``.
    n_features
        Its width.
    """

    def __init__(self, key: str, n_features: int) -> None:
        self.key, self.n_features, self.n_scores = key, n_features, 0

    def chunks(self, adata: AnnData, *, layer: str | None = None, size: int = 4096) -> Iterator[tuple[int, Matrix]]:
        """First row and points (float64) of one chunk of cells after the other; all are checked before the first."""
        if layer is not None:
            raise ValueError(
                f"layer={layer!r} has no effect on a model fitted with use_rep={self.key!r}; leave it out."
            )
        x = _obsm(adata, self.key)
        if x.shape[1] != self.n_features:
            raise ValueError(
                f"adata.obsm[{self.key!r}] has {x.shape[1]} features, the model was fitted on {self.n_features}. "
                "Compute the query's representation with the same procedure as the reference's."
            )
        for start in range(0, len(x), size):
            yield start, x[start : start + size].astype(np.float64)

    def transform(self, adata: AnnData, *, layer: str | None = None) -> Matrix:
        """Points of all cells, see :meth:`chunks`."""
        return np.concatenate([x for _, x in self.chunks(adata, layer=layer)])

    def log_depth(self, adata: AnnData, *, layer: str | None = None) -> Matrix | None:
        """``None``: how deep the cells were sequenced is not known."""
        return None

    def summary(self) -> str:
        """What it is, in a few words."""
        return f"obsm[{self.key!r}]"


def log_depth(chunk: Chunk) -> Matrix:
    """Log count total of every cell, ``(n,)``; zero for a cell without any count."""
    return np.log(np.maximum(np.asarray(chunk.sum(axis=1), dtype=np.float64).ravel(), 1.0))


def obsm_array(adata: AnnData, key: str) -> Matrix:
    """``adata.obsm[key]`` as a finite float64 array.

    Raises
    ------
    KeyError, ValueError
        Key missing; NaN or infinite values; not two-dimensional; not real numbers.
    """
    return _obsm(adata, key).astype(np.float64)


def _obsm(adata: AnnData, key: str) -> NDArray[np.number]:
    """``adata.obsm[key]`` as a checked array of its own type."""
    if key not in adata.obsm:
        raise KeyError(f"use_rep={key!r} is not in adata.obsm; available: {sorted(adata.obsm)}.")
    x = adata.obsm[key]
    x = x.to_numpy() if hasattr(x, "to_numpy") else x
    x = x.compute() if hasattr(x, "compute") else x
    x = x.toarray() if sp.issparse(x) else np.asarray(x)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"adata.obsm[{key!r}] must have shape (n_obs, n_features), got {x.shape}.")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"adata.obsm[{key!r}] must hold real numbers, found {x.dtype}; convert it first.")
    rows = sum(int((~np.isfinite(x[i : i + 4096])).any(1).sum()) for i in range(0, len(x), 4096))
    if rows:
        raise ValueError(
            f"adata.obsm[{key!r}] holds NaN or infinite values in {rows} of {len(x)} cells; remove or impute them."
        )
    return x


def detect_kind(reader: MatrixReader) -> InputKind:
    """``"pixels"`` of images, ``"counts"`` when the first cells hold whole numbers only, else ``"log"``."""
    if reader.pixels:
        return "pixels"
    sample = values(reader.rows(0, min(reader.shape[0], _SAMPLE)))
    return _kind_of(sample[np.isfinite(sample)])


def _kind_of(sample: NDArray[np.floating]) -> InputKind:
    return "counts" if np.array_equal(sample, np.rint(sample)) else "log"


def check_kind(reader: MatrixReader, kind: InputKind, *, declared: str, where: str) -> None:
    """Raise ValueError when values are not of the kind that is declared."""
    sample = values(reader.rows(0, min(reader.shape[0], _SAMPLE)))
    if kind in ("values", "pixels") or not np.isfinite(sample).all() or not sample.any() or _kind_of(sample) == kind:
        return  # NaN and infinite values are the business of check_values; all zero may be either kind
    if kind == "counts":
        raise ValueError(
            f"input={declared!r}: raw counts are expected in {where}, but the values are not whole numbers, as if already "
            "normalised or logged. Pass the layer that holds counts (layer='counts'), or fit with input='log'."
        )
    raise ValueError(
        f"input={declared!r}: log-normalised values are expected in {where}, but all values are whole numbers, as in raw "
        "counts. Normalise and log them as the training data (sc.pp.normalize_total, sc.pp.log1p), or fit on counts."
    )


def check_values(chunk: Chunk, kind: InputKind) -> None:
    """Raise ValueError for NaN, infinite or (in counts) negative values."""
    data = values(chunk)
    if not np.isfinite(data).all():
        raise ValueError(
            f"The expression matrix holds {int((~np.isfinite(data)).sum())} NaN or infinite value(s); remove or impute them first."
        )
    if kind == "counts" and data.size and data.min() < 0:
        raise ValueError(
            f"Counts must not be negative, found a minimum of {data.min():g}: the data look scaled. "
            "Pass the layer that holds raw counts, or a representation with use_rep=."
        )
    if kind == "counts" and _kind_of(data) != "counts":
        raise ValueError(
            "Raw counts are expected, as the first cells hold, but some later cells hold values that are not whole "
            "numbers: the data look like a mix of counts and normalised values. Bring all cells to one kind."
        )
    if kind == "log" and data.size and data.min() < 0:
        raise ValueError(
            f"Log-normalised values must not be negative, found a minimum of {data.min():g}: the data look scaled per "
            "gene. Pass unscaled values, a representation with use_rep=, or input='values' where these are no genes."
        )


def training_matrix(
    adata: AnnData, mask: NDArray[np.bool_], *, layer: str | None, kind: InputKind | None
) -> tuple[Chunk, InputKind]:
    """The training cells in memory, checked, and the kind of their values (detected when `kind` is None)."""
    check_unique(adata)
    reader = MatrixReader(adata, layer)
    if reader.pixels and kind is not None:
        raise ValueError(f"input={kind!r}: adata holds images, whose pixels are used as they are; leave input out.")
    if kind is None:
        kind = detect_kind(reader)
    else:
        check_kind(reader, kind, declared=kind, where="adata")
    chunk = reader.take(mask)
    check_values(chunk, kind)
    return chunk, kind


def log_normalise(chunk: Chunk, kind: InputKind, target: float, known: NDArray[np.bool_] | None = None) -> Chunk:
    """Log expression, float32: the values as they are, or log1p of counts scaled to `target` per cell.

    Cells without any count stay zero. `known` marks the genes that make up the total (``None``: all).
    """
    if kind != "counts":
        return chunk.astype(np.float32)
    subset = chunk if known is None else chunk[:, known]
    totals = np.asarray(subset.sum(axis=1), dtype=np.float64).ravel()
    factors = np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0)
    if sp.issparse(chunk):
        return (sp.diags(factors) @ chunk).tocsr().log1p().astype(np.float32)
    return np.log1p(np.asarray(chunk) * factors[:, None]).astype(np.float32)


def _standard_deviation(x: Chunk) -> NDArray[np.float32]:
    """Standard deviation of every column, not below that of the least variable twentieth of the columns."""
    mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
    square = np.asarray((x.multiply(x) if sp.issparse(x) else x * x).mean(axis=0), dtype=np.float64).ravel()
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    floor = np.quantile(deviation[deviation > 0], 0.05) if deviation.any() else 1.0
    return np.maximum(deviation, floor).astype(np.float32)
