"""Reads expression values, or the pixels of images, row by row from AnnData: in memory, backed or dask, dense or sparse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scscore.io.pixels import IMAGES, PixelGrid, image_stack, intensity_factor

Chunk: TypeAlias = Any  # CSR matrix or dense array; scipy has no types

_ROWS = 4096


class MatrixReader:
    """Row chunks of a matrix of an AnnData, as CSR or dense arrays in memory.

    Never holds more than one chunk of a backed or dask matrix, and never makes a sparse matrix dense.

    Parameters
    ----------
    adata
        The data.
    layer
        Name of a layer, or ``None`` for ``X``; where that is empty, the pixels of the images in ``obsm``, as intensities.

    Attributes
    ----------
    shape
        Of the matrix.
    pixels
        Whether the variables are pixels of images.
    """

    def __init__(self, adata: AnnData, layer: str | None = None) -> None:
        if layer is not None and layer not in adata.layers:
            raise KeyError(f"layer={layer!r} is not in adata.layers; available: {sorted(adata.layers)}.")
        matrix = values_of(adata) if layer is None else adata.layers[layer]
        self.pixels, self._factor = PixelGrid.of_names(adata.var_names) is not None, 1.0
        if matrix is None and IMAGES in adata.obsm:
            stack = image_stack(adata)
            matrix, self._factor = stack.reshape(len(stack), -1), intensity_factor(stack.dtype)
        if matrix is None:
            raise ValueError("adata.X is empty (None). Pass layer= or use_rep= to say where the values are.")
        if isinstance(matrix, (sp.csc_matrix, sp.csc_array)):
            matrix = matrix.tocsr()  # rows of a CSC matrix cannot be sliced cheaply
        self._matrix = matrix
        self.shape: tuple[int, int] = (int(matrix.shape[0]), int(matrix.shape[1]))

    def rows(self, start: int, stop: int) -> Chunk:
        """The rows ``start <= row < stop``."""
        block = _in_memory(self._matrix[start:stop])
        return block if self._factor == 1 else block * np.float32(self._factor)

    def chunks(self, size: int = _ROWS) -> Iterator[tuple[int, Chunk]]:
        """Pairs of the first row of a chunk and the chunk."""
        for start in range(0, self.shape[0], size):
            yield start, self.rows(start, min(start + size, self.shape[0]))

    def take(self, mask: NDArray[np.bool_]) -> Chunk:
        """The rows where `mask` is true, in memory."""
        if mask.all() and self._factor == 1 and isinstance(self._matrix, (np.ndarray, sp.csr_matrix, sp.csr_array)):
            return _in_memory(self._matrix)
        parts = [chunk[mask[start : start + chunk.shape[0]]] for start, chunk in self.chunks()]
        if sp.issparse(parts[0]):
            return sp.vstack(parts, format="csr")
        return np.concatenate(parts)


def values_of(adata: AnnData) -> Any:
    """``X``, or ``None`` where there is none, in a backed file, too."""
    if adata.isbacked and "X" not in adata.file._file:
        return None
    return adata.X


def _in_memory(block: Any) -> Chunk:
    """CSR or dense ndarray, float, of a slice of whatever AnnData may hold."""
    if hasattr(block, "compute"):
        block = block.compute()
    if hasattr(block, "to_memory"):
        block = block.to_memory()
    if sp.issparse(block):
        block = sp.csr_matrix(block)
    else:
        block = np.asarray(block)
    if block.dtype.kind not in "biuf":
        raise ValueError(f"Expression values must be real numbers, found {block.dtype} in adata; convert them first.")
    if not np.issubdtype(block.dtype, np.floating):
        block = block.astype(np.float32)
    return block


def values(chunk: Chunk) -> NDArray[np.floating]:
    """The stored values of a chunk: the data of a sparse one, all of a dense one."""
    return chunk.data if sp.issparse(chunk) else np.asarray(chunk)
