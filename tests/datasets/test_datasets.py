"""The bundled data sets against scipy, and the promises of their docstrings."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal

import scscore as scs

FIRST_TEST_CELLS = ["AAATTCGATGCACA-1", "AACACGTGGTCTTT-1", "ACAGTTCTTAGCCA-1"]


@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 1), (3, 2), (5, 4)])
def test_toy_truth_is_that_of_scipy(n_classes: int, n_features: int) -> None:
    adata = scs.datasets.toy_gaussians(n_obs=3000, n_classes=n_classes, n_features=n_features, rng=3)
    x, y = adata.obsm["X_toy"], adata.obs["class"].cat.codes.to_numpy()
    truth = adata.obsm["log_likelihood"]
    # the means are the only unknown: the documented covariance and the log densities of the cells determine them
    covariance = 0.5 ** np.abs(np.subtract.outer(np.arange(n_features), np.arange(n_features)))
    precision = np.linalg.inv(covariance)
    for k in range(n_classes):
        quadratic = -0.5 * np.einsum("ni,ij,nj->n", x, precision, x)
        slope_and_offset = np.linalg.lstsq(np.c_[x, np.ones(len(x))], truth[:, k] - quadratic, rcond=None)[0]
        mean = covariance @ slope_and_offset[:-1]
        np.testing.assert_allclose(truth[:, k], multivariate_normal(mean, covariance).logpdf(x), rtol=1e-8, atol=1e-8)
        of_class = x[y == k]
        standard_error = np.sqrt(covariance.diagonal() / len(of_class))
        assert (np.abs(of_class.mean(0) - mean) < 5 * standard_error).all()
        np.testing.assert_allclose(np.cov(of_class.T).reshape(covariance.shape), covariance, atol=0.25)


def test_toy_posterior_is_bayes_rule_with_equal_priors() -> None:
    adata = scs.datasets.toy_gaussians(n_obs=200, n_classes=4)
    density = np.exp(adata.obsm["log_likelihood"])
    np.testing.assert_allclose(adata.obsm["posterior"], density / density.sum(1, keepdims=True), rtol=1e-10)
    np.testing.assert_allclose(adata.obsm["posterior"].sum(1), 1)


def test_toy_shape_names_and_seed() -> None:
    adata = scs.datasets.toy_gaussians(n_obs=31, n_classes=30, n_features=3)
    assert adata.shape == (31, 3)
    assert adata.obs["class"].nunique() == 30 and adata.obs["class"].value_counts().max() == 2
    np.testing.assert_array_equal(adata.X, adata.obsm["X_toy"])
    again, other = (scs.datasets.toy_gaussians(n_obs=31, n_classes=30, n_features=3, rng=rng) for rng in (0, 1))
    np.testing.assert_array_equal(adata.X, again.X)
    assert not np.array_equal(adata.X, other.X)


@pytest.mark.parametrize(("n_classes", "n_components", "n_features"), [(2, 1, 1), (3, 2, 2), (4, 3, 5)])
def test_the_exact_model_of_a_toy_mixture_knows_the_truth(
    n_classes: int, n_components: int, n_features: int, tmp_path: Path
) -> None:
    sizes = {"n_classes": n_classes, "n_components": n_components, "n_features": n_features}
    cells, model = scs.datasets.toy_mixture(40, **sizes, rng=1)
    model.save(tmp_path / "exact")
    scs.tl.classify(cells, scs.load(tmp_path / "exact"), n_steps=64, n_paths=64, progress=False)
    found, truth = scs.get.likelihood(cells).to_numpy(), cells.obsm["log_likelihood"]
    near = truth > truth.max(1, keepdims=True) - 10
    assert np.abs(found - truth)[near].mean() < 0.15
    assert np.abs(cells.obsm["scscore_posterior"] - cells.obsm["posterior"]).max() < 0.15
    assert "exact" in model.summary()


def test_cells_of_a_toy_mixture_are_drawn_from_it() -> None:
    cells, model = scs.datasets.toy_mixture(3000, rng=2)
    y = cells.obs["class"].cat.codes.to_numpy()
    truth = model.diffusion.truth
    for k in range(3):
        x = cells.obsm["X_toy"][y == k]
        mean = (truth.weights[k] @ truth.means).numpy()
        assert (np.abs(x.mean(0) - mean) < 5 * x.std(0) / len(x) ** 0.5).all()
    gaussians = zip(truth.means, truth.variances, truth.axes, strict=True)
    components = [multivariate_normal(mean, (axes * variances) @ axes.T) for mean, variances, axes in gaussians]
    densities = np.stack([c.pdf(cells.obsm["X_toy"]) for c in components], axis=1) @ truth.weights.numpy().T
    np.testing.assert_allclose(cells.obsm["log_likelihood"], np.log(densities), atol=1e-8)


def test_pbmc_shape_labels_and_values() -> None:
    adata = scs.datasets.pbmc()
    assert adata.shape == (700, 765)
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    counts = adata.obs["cell_type"].value_counts()
    assert len(counts) == 10 and counts.sum() == 700
    assert counts["Dendritic"] == 240 and counts["CD14+ Monocyte"] == 129
    values = adata.X.data
    assert adata.X.format == "csr" and values.min() > 0 and values.max() < np.log(1e5)  # logged, not scaled
    assert adata.obsm["X_pca"].shape == (700, 50) and adata.obsm["X_umap"].shape == (700, 2)


def test_pbmc_split_is_stable_and_stratified() -> None:
    adata, again = scs.datasets.pbmc(), scs.datasets.pbmc()
    assert adata.obs["split"].tolist() == again.obs["split"].tolist()
    assert adata.obs["split"].value_counts().to_dict() == {"train": 490, "test": 210}
    first = adata.obs_names[(adata.obs["split"] == "test").to_numpy()][:3].tolist()
    assert first == FIRST_TEST_CELLS  # results quoted anywhere depend on the split
    share = (adata.obs["split"] == "train").groupby(adata.obs["cell_type"], observed=True).mean()
    assert share.between(0.6, 0.8).all()
