"""``tl.classify``: results, invariances, slots."""

from collections.abc import Callable
from typing import Any

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import scscore as scs

RoundTrip = Callable[[AnnData], None]


def classified(adata: AnnData, model: scs.ScoreModel, **kwargs: Any) -> AnnData:
    found = scs.tl.classify(adata, model, copy=True, progress=False, **kwargs)
    assert found is not None
    return found


def posterior(adata: AnnData, model: scs.ScoreModel, **kwargs: Any) -> np.ndarray:
    return classified(adata, model, **kwargs).obsm["scscore_posterior"]


def test_every_slot_is_what_it_says(counts: AnnData, model: scs.ScoreModel, round_trip: RoundTrip):
    assert scs.tl.classify(counts, model, progress=False) is None
    p = counts.obsm["scscore_posterior"]
    log_likelihood = counts.obsm["scscore_log_likelihood"]
    assert p.dtype == log_likelihood.dtype == np.float32
    assert p.shape == log_likelihood.shape == (240, 3)
    np.testing.assert_allclose(p.astype(np.float64).sum(1), 1, atol=1e-6)
    labels = counts.obs["scscore_label"]
    assert model.classes.tolist() == counts.uns["scscore"]["classes"].tolist()
    typicality = counts.obs["scscore_typicality"].to_numpy()
    assert 0 < typicality.min() <= typicality.max() <= 1
    expected = np.where(typicality < 0.01, "unknown", model.classes[p.argmax(1)])
    np.testing.assert_array_equal(labels.astype(str), expected)
    sets = counts.obsm["scscore_prediction_set"]
    assert sets.dtype == bool
    np.testing.assert_array_equal(counts.obs["scscore_set_size"], sets.sum(1))
    np.testing.assert_allclose(counts.obs["scscore_confidence"], p.max(1), rtol=1e-6)
    np.testing.assert_allclose(counts.obs["scscore_entropy"], -(p * np.log(p + 1e-30)).sum(1), atol=1e-4)
    assert (counts.obs["scscore_mcse"] >= 0).all()
    tempered = model.calibration.temperature * log_likelihood.astype(np.float64) + model.log_prior()
    tempered += np.array(model.calibration.offsets)
    expected = np.exp(tempered - tempered.max(1, keepdims=True))
    np.testing.assert_allclose(p, expected / expected.sum(1, keepdims=True), atol=1e-4)
    assert counts.uns["scscore"]["model_hash"] == model.hash
    assert (model.classes[p.argmax(1)] == counts.obs["cell_type"].astype(str)).mean() > 0.9
    round_trip(counts)


def test_fit_and_classify_slots_live_side_by_side(counts: AnnData, round_trip: RoundTrip):
    model = scs.tl.fit(counts, "cell_type", n_comps=4, max_epochs=1, progress=False)
    round_trip(counts)
    scs.tl.classify(counts, model, progress=False)
    scs.tl.classify(counts, model, key_added="again", progress=False)
    assert {"training_loss", "validation_loss", "classes"} <= set(counts.uns["scscore"])
    np.testing.assert_array_equal(counts.obsm["again_posterior"], counts.obsm["scscore_posterior"])
    round_trip(counts)


def test_copy_leaves_the_original_alone(counts: AnnData, model: scs.ScoreModel):
    before = counts.copy()
    classified(counts, model)
    assert set(counts.obsm) == set(before.obsm) == set()
    assert counts.uns == {}


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batch_size_changes_nothing(counts: AnnData, model: scs.ScoreModel, batch_size: int):
    few = counts[:100].copy()
    np.testing.assert_allclose(posterior(few, model, batch_size=batch_size), posterior(few, model), atol=1e-5)


@pytest.mark.parametrize("array", ["dense", "csc", "csr_array", "dask", "int", "view", "float64", "layer"])
def test_array_type_changes_nothing(counts: AnnData, model: scs.ScoreModel, array: str):
    expected, kwargs = posterior(counts, model), {}
    other = counts.copy()
    if array == "dense":
        other.X = counts.X.toarray()
    elif array == "csc":
        other.X = sp.csc_matrix(counts.X)
    elif array == "csr_array":
        other.X = sp.csr_array(counts.X)
    elif array == "dask":
        other.X = da.from_array(counts.X.toarray(), chunks=(50, 60))
    elif array == "int":
        other.X = counts.X.astype(np.int64)
    elif array == "float64":
        other.X = counts.X.astype(np.float64)
    elif array == "view":
        other = ad.concat([counts, counts], index_unique="-")[:240]
        assert other.is_view
    elif array == "layer":
        other.layers["raw"], other.X, kwargs = other.X, other.X.log1p(), {"layer": "raw"}
    np.testing.assert_allclose(posterior(other, model, **kwargs), expected, atol=1e-5)


@pytest.mark.parametrize("array", ["csr", "dense"])
def test_backed_files_are_classified_in_place(counts: AnnData, model: scs.ScoreModel, tmp_path: Any, array: str):
    if array == "dense":
        counts.X = counts.X.toarray()
    counts.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    scs.tl.classify(backed, model, progress=False)
    np.testing.assert_allclose(backed.obsm["scscore_posterior"], posterior(counts, model), atol=1e-5)
    backed.file.close()


def test_same_seed_same_result_and_another_seed_another(counts: AnnData, model: scs.ScoreModel):
    first, second = (classified(counts, model, rng=3) for _ in range(2))
    np.testing.assert_array_equal(first.obsm["scscore_log_likelihood"], second.obsm["scscore_log_likelihood"])
    if model.diffusion.denoiser is None:
        pytest.fail("the model of these tests must have a residual")
    other = classified(counts, model, rng=np.random.default_rng(4))
    assert np.abs(other.obsm["scscore_log_likelihood"] - first.obsm["scscore_log_likelihood"]).max() > 1e-4


def test_shuffled_and_extra_genes_change_nothing(counts: AnnData, model: scs.ScoreModel):
    order = np.random.default_rng(0).permutation(counts.n_vars)
    np.testing.assert_allclose(posterior(counts[:, order].copy(), model), posterior(counts, model), atol=1e-5)
    extra = counts.copy()
    extra.var_names = [f"new{j}" for j in range(counts.n_vars)]
    joined = ad.concat([counts, extra], axis="var", merge="first")
    joined = joined[:, np.random.default_rng(1).permutation(joined.n_vars)].copy()
    np.testing.assert_allclose(posterior(joined, model), posterior(counts, model), atol=1e-5)


def test_missing_genes_are_counted_in_a_warning(counts: AnnData, model: scs.ScoreModel):
    """30 % of the genes missing: most labels stay."""
    keep = np.random.default_rng(0).permutation(counts.n_vars)[:42]
    with pytest.warns(UserWarning, match=r"42 of the model's 60 genes found \(70%\); 18 missing"):
        found = classified(counts[:, keep].copy(), model)
    same = found.obs["scscore_label"].astype(str) == counts.obs["cell_type"].astype(str)
    assert same.mean() > 0.8


def test_the_library_size_of_missing_genes_is_made_up_for(counts: AnnData, model: scs.ScoreModel):
    """Dropping genes must not inflate the remaining ones: the mean of the encoded cells stays in place."""
    keep = np.arange(30, 60)  # all markers gone
    with pytest.warns(UserWarning, match="30 missing"):
        few = model.representation.transform(counts[:, keep].copy())
    full = model.representation.transform(counts)
    assert np.linalg.norm(few.mean(0) - full.mean(0)) < 0.2 * np.linalg.norm(full.std(0))


def test_prior_is_an_argument(counts: AnnData, model: scs.ScoreModel):
    base = classified(counts, model)
    log_likelihood = base.obsm["scscore_log_likelihood"].astype(np.float64) * model.calibration.temperature
    names = model.classes.tolist()
    skewed = {names[0]: 98.0, names[1]: 1.0, names[2]: 1.0}
    expected = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True)) * np.array([0.98, 0.01, 0.01])
    expected /= expected.sum(1, keepdims=True)
    for prior in (skewed, np.array([98.0, 1.0, 1.0])):
        np.testing.assert_allclose(posterior(counts, model, prior=prior), expected, atol=1e-4)
    excluded = posterior(counts, model, prior=[1.0, 1.0, 0.0])
    assert (excluded[:, 2] == 0).all()


def test_permuting_class_names_permutes_the_columns(counts: AnnData, model: scs.ScoreModel):
    """Of a model with a trained residual: nothing in the fit may depend on the order of the classes."""
    renamed = counts.copy()
    mapping = {"B/naïve": "zz", "T cell": "aa", "γδ": "mm"}
    renamed.obs["cell_type"] = renamed.obs["cell_type"].astype(str).map(mapping).astype("category")
    other = scs.tl.fit(renamed, "cell_type", n_comps=8, max_epochs=60, progress=False)
    assert other.params["n_steps_trained"] == model.params["n_steps_trained"] > 0
    order = [other.classes.tolist().index(mapping[name]) for name in model.classes]
    np.testing.assert_allclose(posterior(renamed, other)[:, order], posterior(counts, model), atol=1e-5)


def test_more_paths_less_error(counts: AnnData, model: scs.ScoreModel):
    few, many = classified(counts, model, n_paths=4), classified(counts, model, n_paths=32)
    assert many.obs["scscore_mcse"].mean() < few.obs["scscore_mcse"].mean()
    assert np.isnan(classified(counts, model, n_paths=2).obs["scscore_mcse"]).all()


def test_cells_without_counts_get_an_answer(counts: AnnData, model: scs.ScoreModel):
    lil = counts.X.tolil()
    lil[0] = 0
    counts.X = sp.csr_matrix(lil)
    assert np.isfinite(posterior(counts, model)).all()


def test_toy_posterior_is_the_true_one():
    """Known densities: the fitted posterior of new cells against the exact one."""
    cells = scs.datasets.toy_gaussians(n_obs=4000, separation=1.5)
    train, test = cells[:3000].copy(), cells[3000:].copy()
    model = scs.tl.fit(train, "class", use_rep="X_toy", progress=False, max_epochs=10)
    found = classified(test, model)
    total_variation = 0.5 * np.abs(found.obsm["scscore_posterior"] - test.obsm["posterior"]).sum(1).mean()
    assert total_variation < 0.03
    error = found.obsm["scscore_log_likelihood"] - test.obsm["log_likelihood"]
    near = test.obsm["posterior"] > 0.05  # far from a class its density is extrapolated
    assert abs(error[near].mean()) < 0.1
    assert np.abs(error[near]).mean() < 0.25


@pytest.mark.parametrize("estimator", ["dissipation", "elbo", "flow"])
def test_all_estimators_find_the_exact_posterior(estimator: str):
    cells, exact = scs.datasets.toy_mixture(60, rng=3)
    found = classified(cells, exact, estimator=estimator, n_steps=64, n_paths=64)
    error = np.abs(found.obsm["scscore_posterior"] - cells.obsm["posterior"]).sum(1) / 2
    assert error.mean() < (0.001 if estimator == "flow" else 0.01)
    if estimator == "flow":
        assert (found.obs["scscore_mcse"] == 0).all()


def test_precision_spends_paths_on_hard_cells_and_keeps_its_promise():
    cells, exact = scs.datasets.toy_mixture(300, rng=4)
    found = classified(cells, exact, n_steps=64, n_paths=256, precision=0.05)
    paths, p = found.obs["scscore_n_paths"], found.obsm["scscore_posterior"]
    assert paths.min() == 4 and paths.max() > 4 * paths.median()
    clear = cells.obsm["posterior"].max(1) > 0.999
    assert paths[clear].mean() < 0.5 * paths[~clear].mean()
    confidence = np.take_along_axis(cells.obsm["posterior"], p.argmax(1)[:, None], axis=1)[:, 0]
    met = paths < 256
    assert (np.abs(found.obs["scscore_confidence"] - confidence)[met] < 0.05).mean() > 0.95


def test_precision_does_not_depend_on_the_batch():
    cells, exact = scs.datasets.toy_mixture(20, rng=5)
    whole = classified(cells, exact, n_steps=4, n_paths=16, precision=0.05)
    for size in (1, 7):
        parts = classified(cells, exact, n_steps=4, n_paths=16, precision=0.05, batch_size=size)
        np.testing.assert_allclose(parts.obsm["scscore_posterior"], whole.obsm["scscore_posterior"], atol=1e-5)
        np.testing.assert_array_equal(parts.obs["scscore_n_paths"], whole.obs["scscore_n_paths"])


@pytest.mark.parametrize(
    "wrong", [{"precision": 0}, {"precision": 1.5}, {"precision": 0.1, "estimator": "flow"}, {"estimator": "guess"}]
)
def test_impossible_effort_is_refused(counts: AnnData, model: scs.ScoreModel, wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        scs.tl.classify(counts, model, **wrong)
    assert "scscore_label" not in counts.obs
