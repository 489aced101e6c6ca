"""Encoders: against scikit-learn, and the same for every kind of matrix."""

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from sklearn.decomposition import PCA

from scscore.io.encoder_choice import fit_encoder, informative_genes, represent
from scscore.io.readers import MatrixReader
from scscore.io.representation import (
    ObsmRepresentation,
    PCAEncoder,
    check_kind,
    check_values,
    detect_kind,
    log_normalise,
    obsm_array,
    training_matrix,
)

GENES = np.array([f"gene{j}" for j in range(40)])


@pytest.fixture(scope="module")
def counts_matrix() -> np.ndarray:
    """Counts with three strong directions, 150 cells and 40 genes."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(3, 40))
    return rng.poisson(np.exp(0.7 * rng.normal(size=(150, 3)) @ loadings)).astype(np.float64)


def log1p_normalised(counts: np.ndarray, target: float) -> np.ndarray:
    totals = counts.sum(1, keepdims=True)
    return np.log1p(counts / np.where(totals > 0, totals, 1) * target)


def cells(matrix: Any, names: np.ndarray = GENES) -> AnnData:
    return AnnData(matrix, var=pd.DataFrame(index=names))


def same_up_to_sign(found: np.ndarray, expected: np.ndarray, **tolerance: float) -> None:
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, **tolerance)


@pytest.mark.parametrize("n_features", [3, 40])
@pytest.mark.parametrize("target", [30.0, 1e4])
@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_encoder_is_pca_of_log_normalised_counts(counts_matrix: np.ndarray, n_features: int, target: float, kind: str):
    chunk = sp.csr_matrix(counts_matrix) if kind == "csr" else counts_matrix
    encoder = PCAEncoder.fit(chunk, GENES, n_features=n_features, kind="counts", target_sum=target)
    expression = log1p_normalised(counts_matrix, target)
    expected = PCA(n_features, svd_solver="full").fit(expression)
    np.testing.assert_allclose(encoder.mean, expression.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(encoder.components.T @ encoder.components, np.eye(n_features), atol=1e-5)
    leading = slice(0, 3)  # those with a clear order
    same_up_to_sign(encoder.components[:, leading], expected.components_.T[:, leading], atol=1e-3)
    same_up_to_sign(encoder.encode(chunk)[:, leading], expected.transform(expression)[:, leading], atol=1e-2)
    variances = encoder.encode(chunk).var(0, ddof=1)
    np.testing.assert_allclose(variances, expected.explained_variance_, rtol=1e-3, atol=1e-4)


def test_logged_values_are_used_as_they_are(counts_matrix: np.ndarray):
    expression = log1p_normalised(counts_matrix, 100.0)
    encoder = PCAEncoder.fit(sp.csr_matrix(expression), GENES, n_features=3, kind="log", target_sum=7.0)
    expected = PCA(3, svd_solver="full").fit(expression)
    same_up_to_sign(encoder.transform(cells(expression)), expected.transform(expression), atol=1e-3)


@pytest.mark.parametrize("make", [np.array, sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array])
def test_array_type_changes_nothing(counts_matrix: np.ndarray, make: Any):
    encoder = PCAEncoder.fit(sp.csr_matrix(counts_matrix), GENES, n_features=5, kind="counts", target_sum=50.0)
    np.testing.assert_allclose(
        encoder.transform(cells(make(counts_matrix))), encoder.transform(cells(counts_matrix)), atol=1e-5
    )
    again = PCAEncoder.fit(
        MatrixReader(cells(make(counts_matrix))).take(np.ones(150, dtype=bool)),
        GENES,
        n_features=5,
        kind="counts",
        target_sum=50.0,
    )
    same_up_to_sign(again.components, encoder.components, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 7, 149])
def test_chunks_change_nothing(counts_matrix: np.ndarray, rows: int):
    encoder = PCAEncoder.fit(sp.csr_matrix(counts_matrix), GENES, n_features=5, kind="counts", target_sum=50.0)
    adata = cells(sp.csr_matrix(counts_matrix))
    starts, parts = zip(*encoder.chunks(adata, size=rows), strict=True)
    assert list(starts) == list(range(0, 150, rows))
    assert max(map(len, parts)) == rows
    np.testing.assert_allclose(np.concatenate(parts), encoder.transform(adata), atol=1e-6)


def test_missing_genes_count_as_average(counts_matrix: np.ndarray):
    """The encoded cell is that of the full matrix with the training mean in the missing columns."""
    encoder = PCAEncoder.fit(sp.csr_matrix(counts_matrix), GENES, n_features=5, kind="counts", target_sum=50.0)
    here = np.arange(40) % 4 != 0
    target = 50.0 * counts_matrix[:, here].sum() / counts_matrix.sum()
    filled = np.tile(encoder.mean, (150, 1))
    filled[:, here] = log1p_normalised(counts_matrix[:, here], target)
    expected = (filled - encoder.mean) @ encoder.components
    order = np.random.default_rng(1).permutation(30)
    for make in (np.array, sp.csr_matrix, sp.csc_matrix):
        adata = cells(make(counts_matrix[:, here][:, order]), GENES[here][order])
        with pytest.warns(UserWarning, match="30 of the model's 40 genes"):
            np.testing.assert_allclose(encoder.transform(adata), expected, atol=1e-4)


def test_extra_genes_do_not_count_towards_the_total(counts_matrix: np.ndarray):
    encoder = PCAEncoder.fit(sp.csr_matrix(counts_matrix), GENES, n_features=5, kind="counts", target_sum=50.0)
    wide = np.c_[np.full((150, 3), 1000.0), counts_matrix]
    adata = cells(sp.csr_matrix(wide), np.array(["a", "b", "c", *GENES]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = encoder.transform(adata)
    np.testing.assert_allclose(found, encoder.transform(cells(counts_matrix)), atol=1e-5)


def test_cells_without_counts_stay_zero(counts_matrix: np.ndarray):
    counts = counts_matrix.copy()
    counts[3] = 0
    for chunk in (counts, sp.csr_matrix(counts)):
        out = log_normalise(chunk, "counts", 1e4)
        out = out.toarray() if sp.issparse(out) else out
        assert out.dtype == np.float32
        assert (out[3] == 0).all()
        np.testing.assert_allclose(np.expm1(np.delete(out, 3, 0).astype(float)).sum(1), 1e4, rtol=1e-4)


def test_sparse_data_are_never_made_dense(monkeypatch: pytest.MonkeyPatch):
    wide = sp.random(300, 500, density=0.02, format="csr", random_state=0)
    wide.data[:] = np.rint(wide.data * 5) + 1
    names = np.array([f"gene{j}" for j in range(500)])

    def forbidden(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a sparse matrix was made dense")

    for cls in (sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array):
        monkeypatch.setattr(cls, "toarray", forbidden)
        monkeypatch.setattr(cls, "todense", forbidden)
    chunk, kind = training_matrix(cells(wide, names), np.arange(300) < 290, layer=None, kind=None)
    chunk, kept = informative_genes(chunk, names, n_top_genes=None, kind=kind)
    splits = [(np.arange(0, 200), np.arange(200, 290))]
    encoder, x = fit_encoder(chunk, kept, n_features=10, kind=kind, target_sum=1e4)
    represent(chunk, kept, splits, n_features=10, kind=kind, target_sum=1e4)
    assert kind == "counts"
    assert x.shape == (290, 10)
    np.testing.assert_allclose(encoder.transform(cells(wide, names))[:290], x, atol=1e-5)
    with pytest.warns(UserWarning, match="missing"):
        encoder.transform(cells(wide[:, :400].tocsc(), names[:400]))


def test_held_out_cells_do_not_shape_their_encoder(counts_matrix: np.ndarray):
    splits = [(np.arange(0, 100), np.arange(100, 150)), (np.arange(50, 150), np.arange(0, 50))]
    options: dict[str, Any] = {"n_features": 3, "kind": "counts", "target_sum": 50.0}
    _, x = fit_encoder(counts_matrix, GENES, **options)
    represented = represent(counts_matrix, GENES, splits, **options)
    for (train, test), (x_train, x_test) in zip(splits, represented, strict=True):
        own = PCAEncoder.fit(counts_matrix[train], GENES, **options)
        np.testing.assert_allclose(x_train, own.encode(counts_matrix[train]))
        np.testing.assert_allclose(x_test, own.encode(counts_matrix[test]))
        assert np.abs(x_test - x[test]).max() > 1e-3


def test_informative_genes(counts_matrix: np.ndarray):
    counts = counts_matrix.copy()
    counts[:, 5] = 0
    for make in (np.array, sp.csr_matrix):
        chunk, kept = informative_genes(make(counts), GENES, n_top_genes=None, kind="counts")
        assert kept.tolist() == np.delete(GENES, 5).tolist()
        assert chunk.shape == (150, 39)
        for n in (2, 10, 38):
            chunk, kept = informative_genes(make(counts), GENES, n_top_genes=n, kind="counts")
            assert len(kept) == chunk.shape[1] == n
    with pytest.raises(ValueError, match="At least two genes.*adata has 1"):
        informative_genes(counts[:, 5:7], GENES[5:7], n_top_genes=None, kind="counts")


@pytest.mark.parametrize(
    ("sample", "kind"), [([0.0, 2.0], "counts"), ([0.5, 2.0], "log"), ([np.nan, 2.0], "counts"), ([np.inf, 0.5], "log")]
)
def test_the_kind_of_values_is_told_from_finite_ones(sample: list[float], kind: str):
    assert detect_kind(MatrixReader(AnnData(np.array([sample])))) == kind


def test_values_that_are_not_of_the_declared_kind_are_refused():
    counts, logged, zero = (MatrixReader(AnnData(np.full((3, 2), value))) for value in (2.0, 0.5, 0.0))
    with pytest.raises(ValueError, match="not whole numbers"):
        check_kind(logged, "counts", declared="counts", where="adata")
    with pytest.raises(ValueError, match="all values are whole numbers"):
        check_kind(counts, "log", declared="log", where="adata")
    for reader, kind in ((counts, "counts"), (logged, "log"), (zero, "log"), (zero, "counts")):
        check_kind(reader, kind, declared=kind, where="adata")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [np.array, sp.csr_matrix])
@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (np.nan, "log", "1 NaN or infinite"),
        (-np.inf, "counts", "1 NaN or infinite"),
        (-1.0, "counts", "Counts must not be negative"),
        (-0.5, "log", "Log-normalised values must not be negative"),
        (0.5, "counts", "not whole numbers"),
    ],
)
def test_single_bad_values_are_found(make: Any, value: float, kind: Any, message: str):
    matrix = np.ones((4, 3))
    check_values(make(matrix), kind)
    matrix[2, 1] = value
    with pytest.raises(ValueError, match=message):
        check_values(make(matrix), kind)


@pytest.mark.parametrize("kind", ["array", "float32", "int", "bool", "frame", "sparse", "dask"])
def test_obsm_of_any_kind_is_read(kind: str):
    import dask.array as da

    values = np.arange(12.0).reshape(4, 3) % 5
    adata = AnnData(np.zeros((4, 2)))
    expected = (values > 0).astype(float) if kind == "bool" else values
    adata.obsm["X_rep"] = {
        "array": values,
        "float32": values.astype(np.float32),
        "int": values.astype(int),
        "bool": values > 0,
        "frame": pd.DataFrame(values, index=adata.obs_names, columns=list("abc")),
        "sparse": sp.csr_matrix(values),
        "dask": da.from_array(values),
    }[kind]
    found = obsm_array(adata, "X_rep")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(ObsmRepresentation("X_rep", 3).transform(adata), expected)
    with pytest.raises(ValueError, match="has 3 features, the model was fitted on 2"):
        ObsmRepresentation("X_rep", 2).transform(adata)


def test_only_labelled_cells_are_taken(counts_matrix: np.ndarray):
    """A bad value in a cell that is left out does no harm."""
    counts = counts_matrix.copy()
    counts[149, 3] = np.nan
    chunk, kind = training_matrix(cells(counts), np.arange(150) < 149, layer=None, kind=None)
    assert kind == "counts"
    np.testing.assert_array_equal(chunk, counts[:149])
    with pytest.raises(ValueError, match="1 NaN"):
        training_matrix(cells(counts), np.ones(150, dtype=bool), layer=None, kind=None)
    many = ad.concat([cells(counts[:149])] * 2, index_unique="-")
    assert training_matrix(many, np.ones(298, dtype=bool), layer=None, kind="counts")[0].shape == (298, 40)


@pytest.mark.parametrize("unit_variance", [False, True])
def test_dual_is_the_reconstruction_of_principal_components(unit_variance: bool):
    """Against scikit-learn on the same, scaled values."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1, 2, 30) * rng.gamma(5, 0.2, (200, 1))).astype(np.float32)
    encoder = PCAEncoder.fit(
        counts, np.array([f"g{i}" for i in range(30)]), n_features=5, kind="counts", unit_variance=unit_variance
    )
    np.testing.assert_allclose(encoder.components.T @ encoder.dual, np.eye(5), atol=1e-5)
    x = log_normalise(counts, "counts", 1e4)
    scale = 1 / encoder.weights if unit_variance else np.ones(30)
    pca = PCA(5).fit(x / scale)
    expected = pca.inverse_transform(pca.transform(x / scale)) * scale
    np.testing.assert_allclose(encoder.mean + encoder.encode(counts) @ encoder.dual.T, expected, atol=1e-2)
