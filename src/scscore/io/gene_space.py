"""Between genes and the representation: what turns gradients of the evidence into a sum over genes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from scscore.io.genes import align_genes
from scscore.io.readers import Chunk, MatrixReader
from scscore.io.representation import PCAEncoder, check_values, obsm_array

if TYPE_CHECKING:
    from scscore.io.image_encoder import ImageEncoder

Array = NDArray[np.float64]
Map = Callable[[Tensor], Tensor]

_TOLERANCE = 1e-3  # of what loadings or an encoder make of the expression, relative to the spread of the representation
_SAMPLE, _FEW = 256, 4
_RIDGE = 1e-3


class GeneChunk(NamedTuple):
    """Cells in both spaces: first row, expression ``(n, n_vars)`` float32, and points of the representation ``(n, n_features)`` float64."""

    start: int
    expression: NDArray[np.float32]
    points: Array


@dataclass(frozen=True)
class LinearGenes:
    r"""Genes whose expression is projected linearly, by the model's own encoder or by loadings in ``varm``.

    With loadings ``E`` a point is :math:`x' E + b`; a covector (gradient) :math:`g` of that space is :math:`E g` in genes, and the expression
    :math:`m + B (p - p_m)`, :math:`E^\top B = 1`, has the point :math:`p`.

    Attributes
    ----------
    loadings
        ``E``, float64 ``(n_vars, n_features)``; zero for genes that the model does not know.
    dual
        ``B``, ``(n_vars, n_features)``.
    mean, origin
        Mean expression ``(n_vars,)``, and its point ``(n_features,)``.
    scores
        Change of the class scores behind the features per unit of expression, ``(n_vars, n_scores)``.
    """

    loadings: Array
    dual: Array
    mean: Array
    origin: Array
    scores: Array
    _chunks: Callable[[int], Iterator[tuple[int, Chunk, Array]]]

    @classmethod
    def of_encoder(cls, encoder: PCAEncoder, adata: AnnData, *, layer: str | None) -> Self:
        """The genes of `adata`, aligned to those of the model. Genes that are missing count as average."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # missing genes are reported once, with the first chunk
            position = align_genes(encoder.genes, adata).position
        found = position >= 0
        loadings, dual = np.zeros((2, adata.n_vars, encoder.n_features))
        loadings[position[found]] = encoder.components[found]
        dual[position[found]] = encoder.dual[found]
        mean = np.zeros(adata.n_vars)
        mean[position[found]] = encoder.mean[found]
        scores = np.zeros((adata.n_vars, encoder.n_scores))
        if encoder.classifier is not None:
            scores[position[found]] = encoder.classifier.dense(len(encoder.genes))[found]

        def chunks(size: int) -> Iterator[tuple[int, Chunk, Array]]:
            return encoder.expression_chunks(adata, layer=layer, size=size)

        return cls(loadings, dual, mean, np.zeros(encoder.n_features), scores, chunks)

    @classmethod
    def of_loadings(cls, adata: AnnData, key: str, varm_key: str, *, layer: str | None) -> Self:
        """``obsm[key]`` as the projection of ``X``, or of a layer, on the loadings in ``varm``, as ``sc.pp.pca`` stores them.

        Raises
        ------
        KeyError, ValueError
            There are no such loadings, or they do not lead from the expression to the representation.
        """
        points = obsm_array(adata, key)
        if varm_key not in adata.varm:
            raise KeyError(f"adata.varm[{varm_key!r}] is missing; available: {sorted(adata.varm)}. {_WAYS}")
        loadings = np.nan_to_num(np.asarray(adata.varm[varm_key], dtype=np.float64))
        if loadings.ndim != 2 or loadings.shape[1] < points.shape[1]:
            raise ValueError(
                f"adata.varm[{varm_key!r}] has shape {loadings.shape}, adata.obsm[{key!r}] has {points.shape[1]} features: "
                "these are not its loadings."
            )
        loadings = loadings[:, : points.shape[1]]

        def chunks(size: int) -> Iterator[tuple[int, Chunk, Array]]:
            for start, x in MatrixReader(adata, layer).chunks(size):
                yield start, x, points[start : start + x.shape[0]]

        total, offsets = np.zeros(adata.n_vars), []
        for _, x, p in chunks(4096):
            total += np.asarray(x.sum(axis=0), dtype=np.float64).ravel()
            offsets.append(p - np.asarray(x @ loadings))
        offset, mean = np.concatenate(offsets), total / adata.n_obs
        wrong = np.abs(offset - offset.mean(0)).max()
        if wrong > _TOLERANCE * points.std(0).max():
            raise ValueError(
                f"adata.obsm[{key!r}] is not {_source(layer)} times adata.varm[{varm_key!r}]: they differ by up to {wrong:.3g}. "
                f"Pass the layer= that the components were computed from (scaled values, for instance). {_WAYS}"
            )
        dual = np.asarray(np.linalg.pinv(loadings).T, dtype=np.float64)
        return cls(loadings, dual, mean, mean @ loadings + offset.mean(0), np.zeros((len(mean), 0)), chunks)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Genes that have a part in the representation, ``(n_vars,)``."""
        return np.asarray(self.loadings.any(1))

    def expression(self, points: Array) -> Array:
        """Expression ``(n, n_vars)`` of points of which only the leading features are given: the mean and what these add to it."""
        d = points.shape[1]
        return self.mean + (points - self.origin[:d]) @ self.dual[:, :d].T

    def chunks(self, size: int) -> Iterator[GeneChunk]:
        """One chunk of cells after the other."""
        for start, x, points in self._chunks(size):
            yield GeneChunk(start, _dense(x), points)


@dataclass(frozen=True)
class EncodedGenes:
    """Genes, or pixels, whose values go through a differentiable encoder.

    Attributes
    ----------
    encode
        From expression ``(n, n_vars)`` to points, float32 tensors.
    decode
        From points, of which only the leading features are given, to expression; arrays.
    """

    encode: Map
    decode: Callable[[Array], Array]
    _reader: MatrixReader

    @classmethod
    def of(cls, adata: AnnData, key: str, encoder: Map, decoder: Map | None, *, layer: str | None) -> Self:
        """Check `encoder` against ``obsm[key]``; without a `decoder` one is fitted by ridge regression of expression on points.

        Raises
        ------
        TypeError, ValueError
            Not functions of tensors; the encoder does not lead from the expression to the representation.
        """
        for name, value in (("encoder", encoder), ("decoder", decoder)):
            if not callable(value) and not (name == "decoder" and value is None):
                raise TypeError(f"{name} must be a function from a tensor to a tensor, got {type(value).__name__}.")
        points, reader = obsm_array(adata, key), MatrixReader(adata, layer)
        x = torch.from_numpy(_dense(reader.rows(0, min(_SAMPLE, adata.n_obs)))).requires_grad_()
        found = encoder(x)
        if not isinstance(found, Tensor) or found.shape != (len(x), points.shape[1]) or not found.requires_grad:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"encoder must be a differentiable function from expression ({len(x)}, {adata.n_vars}) to points "
                f"({len(x)}, {points.shape[1]}), float32 tensors; it returned {what}"
                f"{', without a gradient' if isinstance(found, Tensor) and not found.requires_grad else ''}."
            )
        wrong = np.abs(found.detach().numpy() - points[: len(x)]).max()
        if wrong > 10 * _TOLERANCE * points.std(0).max():
            raise ValueError(
                f"encoder does not lead from {_source(layer)} to adata.obsm[{key!r}]: they differ by up to {wrong:.3g}. Pass the "
                "layer= that it expects, and an encoder without randomness (a network in evaluation mode, the mean of a posterior)."
            )
        if decoder is None:
            return cls(encoder, RidgeDecoder.fit(reader.chunks(), points).decode, reader)

        def decode(leading: Array) -> Array:
            whole = np.tile(points.mean(0), (len(leading), 1))
            whole[:, : leading.shape[1]] = leading
            with torch.no_grad():
                return decoder(torch.from_numpy(whole).float()).numpy().astype(np.float64)

        return cls(encoder, decode, reader)

    @classmethod
    def of_images(cls, encoder: ImageEncoder, adata: AnnData, *, layer: str | None) -> Self:
        """The pixels of `adata`, with the encoder of a model and its decoder."""
        encoder.grid.check(adata)
        reader = MatrixReader(adata, layer)
        for _, chunk in reader.chunks():
            check_values(chunk, "pixels")
        encoder.check_differentiable(torch.from_numpy(_dense(reader.rows(0, min(_FEW, adata.n_obs)))))
        return cls(encoder, encoder.decoder.decode, reader)

    def expression(self, points: Array) -> Array:
        """Decoded expression ``(n, n_vars)`` of points of which only the leading features are given; the others are average."""
        return self.decode(points)

    def chunks(self, size: int) -> Iterator[GeneChunk]:
        """One chunk of cells after the other, their points by the encoder."""
        for start, chunk in self._reader.chunks(size):
            x = _dense(chunk)
            with torch.no_grad():
                points = self.encode(torch.from_numpy(x)).numpy().astype(np.float64)
            yield GeneChunk(start, x, points)


Genes = LinearGenes | EncodedGenes

_WAYS = (
    "A model with an encoder of its own (fitted without use_rep=) needs none; for any other representation pass encoder=, "
    "a differentiable function from expression to the representation."
)


class RidgeDecoder(NamedTuple):
    """Values as a linear function of the points, by ridge regression.

    Attributes
    ----------
    center
        Mean of the points, ``(n_features,)``.
    mean
        Mean of the values, ``(n_vars,)``.
    slopes
        Change of the values per unit, ``(n_features, n_vars)``.
    """

    center: Array
    mean: Array
    slopes: Array

    @classmethod
    def fit(cls, chunks: Iterable[tuple[int, Chunk]], points: Array) -> Self:
        """From first rows and values ``(n, n_vars)`` of chunks, and the points of all cells."""
        center = points.mean(0)
        p = points - center
        products, sums = [], []
        for start, chunk in chunks:
            products.append(np.asarray(chunk.T @ p[start : start + chunk.shape[0]]).T)
            sums.append(np.asarray(chunk.sum(axis=0), dtype=np.float64).ravel())
        gram, cross, total = p.T @ p, np.sum(products, axis=0), np.sum(sums, axis=0)
        slopes = np.linalg.solve(gram + _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), cross)
        return cls(center, total / len(points), slopes)

    def decode(self, points: Array) -> Array:
        """Values ``(n, n_vars)`` of points of which only the leading features are given; the others are average."""
        d = points.shape[1]
        return self.mean + (points - self.center[:d]) @ self.slopes[:d]


def _dense(x: Chunk) -> NDArray[np.float32]:
    dense = x.toarray() if hasattr(x, "toarray") else np.asarray(x)
    return np.ascontiguousarray(dense, dtype=np.float32)


def _source(layer: str | None) -> str:
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"
