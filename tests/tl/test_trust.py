"""Prior shift, prediction sets and novelty through ``tl.classify``, and the frames that read them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.special import logsumexp

import scscore as scs


@pytest.fixture(scope="module")
def trained() -> tuple[AnnData, scs.ScoreModel]:
    """New cells of three overlapping classes, and a model of others."""
    cells = scs.datasets.toy_gaussians(n_obs=2400)
    model = scs.tl.fit(cells[:800].copy(), "class", use_rep="X_toy", max_epochs=3, progress=False)
    return cells[800:].copy(), model


def classified(cells: AnnData, model: scs.ScoreModel, **options: Any) -> AnnData:
    return scs.tl.classify(cells, model, copy=True, progress=False, **options)


def covered(cells: AnnData) -> np.ndarray:
    sets = scs.get.prediction_sets(cells)
    return np.array([sets.loc[cell, name] for cell, name in cells.obs["class"].astype(str).items()])


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("class_conditional", [False, True])
@pytest.mark.parametrize("coverage", [0.7, 0.9])
def test_sets_cover(trained: tuple[AnnData, scs.ScoreModel], method: str, class_conditional: bool, coverage: float):
    found = classified(*trained, set_method=method, class_conditional=class_conditional, coverage=coverage)
    hit = covered(found)
    assert hit.mean() == pytest.approx(coverage, abs=0.05)
    if class_conditional:
        assert min(hit[found.obs["class"] == name].mean() for name in "abc") > coverage - 0.08


def test_sets_grow_with_the_coverage(trained: tuple[AnnData, scs.ScoreModel]):
    small, large = (scs.get.prediction_sets(classified(*trained, coverage=c)).to_numpy() for c in (0.8, 0.95))
    assert (small <= large).all()
    assert small.sum() < large.sum()


@pytest.mark.parametrize("reject", [0.0, 0.01, 0.2])
def test_reject_is_the_share_of_known_cells_that_is_lost(trained: tuple[AnnData, scs.ScoreModel], reject: float):
    found = classified(*trained, reject=reject)
    unknown = (found.obs["scscore_label"] == "unknown").mean()
    assert unknown == pytest.approx(reject, abs=0.03)
    assert (unknown == 0) == (reject == 0)


def test_cells_of_no_class_are_unknown_and_ambiguous_ones_are_not(
    trained: tuple[AnnData, scs.ScoreModel], round_trip: Callable[[AnnData], None]
):
    cells, model = trained
    centres = pd.DataFrame(cells.obsm["X_toy"]).groupby(cells.obs["class"].to_numpy(), observed=True).mean().to_numpy()
    between, away = centres[:2].mean(0), centres.mean(0) + 12 * (centres[2] - centres.mean(0))
    query = AnnData(np.zeros((2, 1), dtype=np.float32), obsm={"X_toy": np.stack([between, away])})
    scs.tl.classify(query, model, progress=False)
    assert query.obs["scscore_label"].tolist()[1] == "unknown"
    assert query.obs["scscore_label"].tolist()[0] != "unknown"
    assert query.obs["scscore_typicality"].iloc[0] > 0.05
    assert query.obs["scscore_entropy"].iloc[0] > query.obs["scscore_entropy"].iloc[1]
    round_trip(query)


@pytest.mark.parametrize("frequencies", [(0.9, 0.1, 0.0), (0.2, 0.1, 0.7)])
def test_the_prior_is_estimated(trained: tuple[AnnData, scs.ScoreModel], frequencies: tuple[float, ...]):
    cells, model = trained
    rng, label = np.random.default_rng(0), cells.obs["class"].to_numpy()
    rows = np.concatenate(
        [rng.choice(np.flatnonzero(label == k), int(400 * f)) for k, f in zip("abc", frequencies, strict=True)]
    )
    query = cells[rows].copy()
    query.obs_names_make_unique()
    found = classified(query, model, prior="estimate")
    params = json.loads(found.uns["scscore"]["params"])
    assert params["prior_estimated"]
    np.testing.assert_allclose(params["prior"], frequencies, atol=0.06)
    given = classified(query, model, prior=params["prior"])
    np.testing.assert_allclose(given.obsm["scscore_posterior"], found.obsm["scscore_posterior"], atol=1e-6)
    exact, y = classified(query, model), np.searchsorted(list("abc"), query.obs["class"].astype(str))
    rows = np.arange(len(y))
    gain = np.log(found.obsm["scscore_posterior"][rows, y]) - np.log(exact.obsm["scscore_posterior"][rows, y])
    assert gain.mean() > 0


def test_typicality_does_not_depend_on_the_prior(trained: tuple[AnnData, scs.ScoreModel]):
    one, other = (classified(*trained, prior=p).obs["scscore_typicality"] for p in ("uniform", [0.98, 0.01, 0.01]))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reject": -0.1},
        {"reject": 1.0},
        {"coverage": 0.0},
        {"coverage": 1.0},
        {"set_method": "best"},
        {"prior": "guess"},
    ],
)
def test_impossible_values_are_refused(trained: tuple[AnnData, scs.ScoreModel], wrong: dict[str, Any]):
    cells = trained[0].copy()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        scs.tl.classify(cells, trained[1], progress=False, **wrong)
    assert "scscore_label" not in cells.obs


def test_aggregate_sums_the_posterior(trained: tuple[AnnData, scs.ScoreModel]):
    found = classified(*trained)
    p = scs.get.posterior(found)
    coarse = scs.get.aggregate(found, pd.Series({"a": "left", "c": "right", "b": "left"}))
    assert coarse.columns.tolist() == ["left", "right"]
    np.testing.assert_allclose(coarse["left"], p["a"] + p["b"], rtol=1e-6)
    np.testing.assert_allclose(coarse.sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"missing: \['c'\], unknown: \['d'\]"):
        scs.get.aggregate(found, {"a": "left", "b": "left", "d": "right"})


def test_a_model_without_held_out_cells_takes_the_results_of_another_one_away():
    cells, exact = scs.datasets.toy_mixture(n_obs=60)
    calibrated = scs.tl.calibrate(cells, exact, "class", progress=False)
    scs.tl.classify(cells, calibrated, progress=False)
    assert {"scscore_typicality", "scscore_set_size"} <= set(cells.obs)
    scs.tl.classify(cells, exact, progress=False)
    assert not {"scscore_typicality", "scscore_set_size"} & set(cells.obs)
    assert "scscore_prediction_set" not in cells.obsm
    assert "coverage" not in json.loads(cells.uns["scscore"]["params"])


def test_sets_that_are_missing_are_named():
    cells, exact = scs.datasets.toy_mixture(n_obs=20)
    scs.tl.classify(cells, exact, progress=False)
    with pytest.raises(KeyError, match="scscore_prediction_set"):
        scs.get.prediction_sets(cells)


def test_the_readout_is_part_of_a_fitted_model(tmp_path: Path):
    """It changes posteriors and log-ratios, not log p(x); a generative fit has none; a stored model keeps it."""
    cells = scs.datasets.toy_gaussians(n_obs=400)
    model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=1, progress=False)
    assert "linear classifier" in model.summary() and model.params["readout"]["of_diffusion"] > 0
    scs.tl.classify(cells, model, progress=False)
    bare = copy.copy(model)
    bare.diffusion = model.diffusion.density
    assert model.held_out is not None and model.held_out.bare is not None
    bare.held_out = replace(model.held_out, log_likelihood=model.held_out.bare, bare=None)
    without = cells.copy()
    scs.tl.classify(without, bare, progress=False)
    log_prior = model.log_prior()
    pooled, alone = (np.asarray(a.obsm["scscore_log_likelihood"], np.float64) for a in (cells, without))
    np.testing.assert_allclose(logsumexp(pooled + log_prior, axis=1), logsumexp(alone + log_prior, axis=1), atol=1e-4)
    np.testing.assert_array_equal(cells.obs["scscore_typicality"], without.obs["scscore_typicality"])
    again = scs.tl.calibrate(cells, model, "class", progress=False)
    assert again.held_out is not None
    np.testing.assert_allclose(again.held_out.bare, alone, atol=1e-4)
    assert np.abs((pooled - pooled[:, :1]) - (alone - alone[:, :1])).max() > 0.01
    scs.tl.energy(cells, model, n_steps=4, progress=False)
    scs.tl.energy(without, bare, n_steps=4, progress=False)
    np.testing.assert_array_equal(cells.obs["scscore_energy"], without.obs["scscore_energy"])
    model.save(tmp_path / "model")
    again = cells.copy()
    scs.tl.classify(again, scs.load(tmp_path / "model"), progress=False)
    np.testing.assert_array_equal(again.obsm["scscore_posterior"], cells.obsm["scscore_posterior"])
    generative = scs.tl.fit(cells, "class", use_rep="X_toy", objective="generative", max_epochs=1, progress=False)
    assert generative.diffusion.readout is None and generative.params["readout"] is None
