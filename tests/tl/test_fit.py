"""``tl.fit``: choices, determinism, resuming."""

import json
from pathlib import Path
from typing import Any

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import scscore as scs
from scscore.core import training


def fit(adata: AnnData, **kwargs: Any) -> scs.ScoreModel:
    return scs.tl.fit(adata, "cell_type", **{"n_comps": 8, "max_epochs": 30, "progress": False, **kwargs})


def test_uns_holds_curves_and_choices(counts: AnnData):
    model = fit(counts)
    stored = counts.uns["scscore"]
    assert stored["model_hash"] == model.hash
    assert stored["classes"].tolist() == model.classes.tolist()
    assert json.loads(stored["params"]) == model.params
    assert stored["training_steps"][0] == 0
    assert len(stored["training_steps"]) == len(stored["training_loss"]) == len(stored["validation_loss"])
    assert model.params["reference"]["n_features"] == 8
    assert "residual" in model.summary()
    assert model.genes.tolist() == counts.var_names.tolist()


@pytest.mark.parametrize("wrong", [{"accelerator": "abacus"}, {"devices": "many"}, {"strategy": "divide"}])
def test_impossible_trainers_are_refused_before_any_compute(counts: AnnData, wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        fit(counts, **wrong)
    assert counts.uns == {}


def test_same_seed_same_model_twice(counts: AnnData):
    assert fit(counts).hash == fit(counts).hash
    assert fit(counts, rng=1).hash != fit(counts, rng=2).hash


def test_global_random_state_is_neither_read_nor_changed(counts: AnnData):
    import torch

    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    first = fit(counts).hash
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert fit(counts).hash == first
    assert (torch.get_rng_state() == state).all()


@pytest.mark.parametrize("array", ["dense", "csc", "dask", "backed", "layer"])
def test_array_type_changes_nothing(counts: AnnData, array: str, tmp_path: Path):
    expected = fit(counts.copy())
    other, kwargs = counts.copy(), {}
    if array == "dense":
        other.X = counts.X.toarray()
    elif array == "csc":
        other.X = sp.csc_matrix(counts.X)
    elif array == "dask":
        other.X = da.from_array(counts.X.toarray(), chunks=(50, 60))
    elif array == "backed":
        counts.write_h5ad(tmp_path / "cells.h5ad")
        other = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    elif array == "layer":
        other.layers["raw"], other.X, kwargs = other.X, other.X.log1p(), {"layer": "raw"}
    found = fit(other, **kwargs)
    z, expected_z = found.encode(counts), expected.encode(counts)
    np.testing.assert_allclose(
        found.diffusion.reference.log_prob(z), expected.diffusion.reference.log_prob(expected_z), atol=1e-3
    )


def test_cells_without_a_label_are_left_out(counts: AnnData, caplog: pytest.LogCaptureFixture):
    partly = ad.concat([counts, counts[:50]], index_unique="-")
    partly.obs["cell_type"] = pd.Categorical(partly.obs["cell_type"].astype(object).where(np.arange(290) < 240))
    with caplog.at_level("WARNING", logger="scscore"):
        model = fit(partly)
    assert "50 of 290 cells have no label" in caplog.text
    assert model.class_counts.sum() == 240
    np.testing.assert_allclose(model.representation.mean, fit(counts).representation.mean)


def test_use_rep_needs_the_same_representation(counts: AnnData):
    counts.obsm["X_rep"] = (
        np.random.default_rng(0).normal(size=(240, 5)) + counts.obs["cell_type"].cat.codes.to_numpy()[:, None]
    )
    model = scs.tl.fit(counts, "cell_type", use_rep="X_rep", max_epochs=2, progress=False)
    assert model.genes is None
    scs.tl.classify(counts, model, progress=False)
    assert (counts.obs["scscore_label"].astype(str) == counts.obs["cell_type"].astype(str)).mean() > 0.6


def test_volume_of_the_representation_is_accounted_for(counts: AnnData):
    """Rescaling the representation by c shifts log p by -D log c, and leaves the posterior alone."""
    rep = np.random.default_rng(0).normal(size=(240, 4)) + counts.obs["cell_type"].cat.codes.to_numpy()[:, None]
    found = []
    for scale in (1.0, 10.0):
        cells = counts.copy()
        cells.obsm["X_rep"] = rep * scale
        model = scs.tl.fit(cells, "cell_type", use_rep="X_rep", max_epochs=1, progress=False)
        scs.tl.classify(cells, model, progress=False)
        found.append(cells)
    shift = found[1].obsm["scscore_log_likelihood"] - found[0].obsm["scscore_log_likelihood"]
    np.testing.assert_allclose(shift, -4 * np.log(10), atol=1e-3)


def test_groups_are_held_out_whole(counts: AnnData):
    from scscore.io.folds import make_folds

    y, groups = counts.obs["cell_type"].cat.codes.to_numpy(), counts.obs["donor"].to_numpy(dtype=str)
    for train, test in make_folds(y, groups, seed=0):
        assert not set(groups[train]) & set(groups[test])
    fit(counts, split_key="donor")
    counts.obs["pair"] = np.where(np.arange(240) % 2, "a", "b")
    with pytest.warns(UserWarning, match="only 2 groups"):
        fit(counts, split_key="pair")


def test_rare_classes_and_few_cells_fit(few_counts: AnnData):
    model = fit(few_counts, max_epochs=1)
    scs.tl.classify(few_counts, model, progress=False)
    assert np.isfinite(few_counts.obsm["scscore_posterior"]).all()


@pytest.mark.parametrize("stage", ["validation_1", "all_cells"])
def test_an_interrupted_fit_resumes_and_ends_the_same(
    counts: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
):
    uninterrupted = fit(counts, max_epochs=60)
    if uninterrupted.params["n_steps_trained"] < 30:
        pytest.fail("the fit of this test must train for a while")
    original, calls = training._DenoiserTask.training_step, {"n": 0}

    def interrupting(self: Any, batch: Any, batch_idx: int) -> Any:
        calls["n"] += 1
        if (tmp_path / stage).exists() and self.global_step == 28:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(training._DenoiserTask, "training_step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        fit(counts, max_epochs=60, checkpoint_dir=tmp_path)
    assert (tmp_path / stage / "last.ckpt").exists()
    monkeypatch.setattr(training._DenoiserTask, "training_step", original)
    with pytest.raises(ValueError, match="other data or arguments"):
        fit(counts, max_epochs=60, rng=1, checkpoint_dir=tmp_path)
    assert fit(counts, max_epochs=60, checkpoint_dir=tmp_path).hash == uninterrupted.hash


def test_cells_of_every_group_are_watched(counts: AnnData):
    """Calibration must not come from the first donors alone: each may differ from the others."""
    fit: dict[str, Any] = {"n_comps": 8, "max_epochs": 2, "progress": False}
    model = scs.tl.fit(counts, "cell_type", split_key="donor", **fit)
    assert len(model.held_out.y) == counts.n_obs
    assert len(scs.tl.fit(counts, "cell_type", **fit).held_out.y) < counts.n_obs


def test_a_gene_that_no_component_holds_is_still_used():
    """Sixty factors move 300 genes; one gene beside them parts the classes by three standard deviations. Bayes accuracy .933."""
    loadings = 0.2 * np.random.default_rng(9).normal(size=(60, 300))

    def cells(seed: int) -> AnnData:
        rng = np.random.default_rng(seed)
        y = rng.integers(2, size=600)
        x = 6 + rng.normal(size=(600, 60)) @ loadings + 0.2 * rng.normal(size=(600, 300))
        x[:, 0] = 0.5 * rng.normal(size=600) + 1.5 * y + 3
        obs = pd.DataFrame({"class": pd.Categorical(np.array(["a", "b"])[y])}, index=[f"c{i}" for i in range(600)])
        return AnnData(x.clip(0).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(300)]))

    query, found = cells(1), {}
    for objective in ("hybrid", "generative"):
        model = scs.tl.fit(cells(0), "class", objective=objective, max_epochs=2, progress=False)
        scs.tl.classify(query, model, progress=False)
        found[objective] = (scs.get.posterior(query).idxmax(axis=1) == query.obs["class"].astype(str)).mean()
        scs.tl.attribute(query, model, progress=False)
        assert query.uns["scscore_attribution"]["completeness"] < 1e-4
        if objective == "hybrid":
            genes = np.abs(query.varm["scscore_attribution"])
            assert "genes)" in model.summary()
            assert (genes[0] > 10 * genes[1:].max(0)).all()
    assert found["hybrid"] > 0.85 and found["generative"] < 0.6  # the density knows the components alone
