"""Reading rows from whatever AnnData holds."""

from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scscore.io.readers import MatrixReader, values

DENSE = np.random.default_rng(0).poisson(0.4, (23, 7)).astype(np.float64)
KINDS = [
    "dense",
    "csr",
    "csc",
    "csr_array",
    "csc_array",
    "int",
    "bool",
    "dask",
    "dask csr",
    "backed",
    "backed csr",
    "view",
]
STAYS_SPARSE = {"csr", "csc", "csr_array", "csc_array", "dask csr", "backed csr"}


def holding(kind: str, folder: Path) -> AnnData:
    made = {
        "csr": sp.csr_matrix,
        "csc": sp.csc_matrix,
        "csr_array": sp.csr_array,
        "csc_array": sp.csc_array,
        "int": lambda m: m.astype(np.int32),
        "bool": lambda m: m > 0,
        "dask": lambda m: da.from_array(m, chunks=(5, 7)),
        "dask csr": lambda m: da.from_array(m, chunks=(5, 7)).map_blocks(sp.csr_matrix),
        "backed csr": sp.csr_matrix,
    }.get(kind, np.array)(DENSE)
    adata = AnnData(made)
    if kind.startswith("backed"):
        adata.write_h5ad(folder / "cells.h5ad")
        return ad.read_h5ad(folder / "cells.h5ad", backed="r")
    return AnnData(np.concatenate([made, made]))[:23] if kind == "view" else adata


def dense(chunk: object) -> np.ndarray:
    return chunk.toarray() if sp.issparse(chunk) else np.asarray(chunk)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_chunks_and_masks_are_those_of_the_matrix(kind: str, tmp_path: Path):
    expected = (DENSE > 0).astype(float) if kind == "bool" else DENSE
    adata = holding(kind, tmp_path)
    reader = MatrixReader(adata)
    assert reader.shape == DENSE.shape
    np.testing.assert_array_equal(dense(reader.rows(4, 9)), expected[4:9])
    starts, chunks = zip(*reader.chunks(size=10), strict=True)
    assert starts == (0, 10, 20)
    np.testing.assert_array_equal(np.concatenate([dense(chunk) for chunk in chunks]), expected)
    for chunk in chunks:
        assert sp.issparse(chunk) == (kind in STAYS_SPARSE)
        assert np.issubdtype(chunk.dtype, np.floating)
    for mask in (np.ones(23, dtype=bool), np.arange(23) % 3 == 1):
        taken = reader.take(mask)
        np.testing.assert_array_equal(dense(taken), expected[mask])
        assert sp.issparse(taken) == (kind in STAYS_SPARSE)
    if adata.isbacked:
        adata.file.close()


@pytest.mark.parametrize("kind", sorted(STAYS_SPARSE))
def test_sparse_matrices_are_never_made_dense(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adata = holding(kind, tmp_path)

    def forbidden(*args: object, **kwargs: object) -> None:
        pytest.fail("a sparse matrix was made dense")

    for cls in (sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array):
        monkeypatch.setattr(cls, "toarray", forbidden)
        monkeypatch.setattr(cls, "todense", forbidden)
    reader = MatrixReader(adata)
    assert sum(chunk.sum() for _, chunk in reader.chunks(size=6)) == DENSE.sum()
    assert reader.take(np.arange(23) % 2 == 0).shape == (12, 7)


def test_layers():
    adata = AnnData(np.zeros((3, 2)), layers={"raw": np.ones((3, 2))})
    assert MatrixReader(adata, "raw").rows(0, 3).sum() == 6
    with pytest.raises(KeyError, match=r"layer='counts' is not in adata.layers; available: \['raw'\]"):
        MatrixReader(adata, "counts")
    del adata.X
    assert MatrixReader(adata, "raw").shape == (3, 2)
    with pytest.raises(ValueError, match=r"adata.X is empty \(None\)"):
        MatrixReader(adata)


@pytest.mark.parametrize("dtype", ["U1", "O", "complex128"])
def test_what_is_not_a_number_is_refused(dtype: str):
    adata = AnnData(np.full((3, 2), "1").astype(dtype))
    with pytest.raises(ValueError, match="must be real numbers, found"):
        MatrixReader(adata).rows(0, 2)


def test_values_are_the_stored_ones():
    matrix = sp.csr_matrix(DENSE)
    assert values(matrix).size == (DENSE > 0).sum()
    assert values(DENSE).shape == DENSE.shape


def test_reading_leaves_the_data_alone():
    adata = AnnData(sp.csc_matrix(DENSE))
    MatrixReader(adata).take(np.ones(23, dtype=bool))
    assert adata.X.format == "csc"
