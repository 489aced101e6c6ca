"""``tl.predict_perturbation``: planted responders, escapees, silent targets, own genes; MuData; messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

import scscore as scs

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
TARGETS = ("strong", "half", "twin", "silent")
N_GENES, N_MOVED = 120, 15


def screen(n: int, seed: int) -> AnnData:
    """Counts of a screen: two targets lower the same genes (in 9 of 10, and in half of their cells), the third its own, the fourth none."""
    rng = np.random.default_rng(seed)
    rates = np.random.default_rng(0).gamma(1.5, 1.0, N_GENES) + 0.3
    names = rng.choice(["control", *TARGETS], size=n)
    responds = np.where(names == "half", rng.random(n) < 0.5, rng.random(n) < 0.9) & ~np.isin(
        names, ["control", "silent"]
    )
    rate = np.tile(rates, (n, 1))
    first, second = np.arange(N_MOVED), np.arange(N_MOVED, 2 * N_MOVED)
    rate[np.ix_(responds & np.isin(names, ["strong", "twin"]), first)] *= 0.25
    rate[np.ix_(responds & (names == "half"), second)] *= 0.25
    counts = rng.poisson(rate * rng.gamma(5, 0.2, (n, 1)))
    obs = pd.DataFrame(
        {"target": pd.Categorical(names), "responds": responds, "two_guides": rng.random(n) < 0.1},
        index=[f"c{i}" for i in range(n)],
    )
    return AnnData(sp.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


@pytest.fixture(scope="module")
def model() -> scs.ScoreModel:
    return scs.tl.fit(screen(1500, 1), "target", progress=False)


@pytest.fixture(scope="module")
def predicted(model: scs.ScoreModel) -> AnnData:
    found = scs.tl.predict_perturbation(screen(1500, 2), model, control="control", copy=True, progress=False)
    assert found is not None
    return found


def test_responders_are_told_from_escapees(predicted: AnnData):
    obs = predicted.obs
    for name in ("strong", "half", "twin"):
        own = obs["target"] == name
        assert roc_auc_score(obs["responds"][own], obs["scscore_response"][own]) > 0.95
        assert obs["scscore_escape"][own].mean() == pytest.approx((~obs["responds"][own]).mean(), abs=0.1)
    control = obs["target"] == "control"
    assert obs.loc[control, ["scscore_response", "scscore_perturbation_evidence"]].isna().all(axis=None)
    assert not obs["scscore_escape"][control].any()
    ratio = predicted.obsm["scscore_log_likelihood"] @ (
        np.array(predicted.uns["scscore"]["classes"]) == "strong"
    ).astype(float)
    ratio -= predicted.obsm["scscore_log_likelihood"][:, 0]  # control is the first class
    own = (obs["target"] == "strong").to_numpy()
    np.testing.assert_allclose(obs["scscore_perturbation_evidence"][own], ratio[own], rtol=1e-4, atol=1e-4)


def test_detectability(predicted: AnnData):
    table = scs.get.perturbation(predicted)
    assert (table.loc[["strong", "half", "twin"], "fdr"] < 1e-6).all()
    assert abs(table.loc["silent", "auroc"] - 0.5) < 0.06
    assert table.loc["strong", "auroc"] > 0.9
    assert table.loc["half", "auroc"] < table.loc["strong", "auroc"]
    assert table.loc["strong", "effect"] > table.loc["half", "effect"] > 0
    assert table.loc["strong", "alike"] == "twin"
    assert table.loc["half", "alike"] == ""


def test_genes_of_a_perturbation_are_the_planted_ones(predicted: AnnData):
    genes = scs.get.attribution(predicted)
    assert set(genes.obs_names) == set(TARGETS)
    for name, start in (("strong", 0), ("half", N_MOVED)):
        top = np.argsort(-genes[name].X[0])[:N_MOVED]
        assert ((top >= start) & (top < start + N_MOVED)).mean() >= 0.9
        assert (
            genes[name].layers["absence"][0, top].sum() > genes[name].layers["presence"][0, top].sum()
        )  # they went down


def test_targets_without_effect_are_not_detected(model: scs.ScoreModel):
    """A silent target, and random assignments, in 25 screens: p-values are uniform."""
    silent, shuffled = [], []
    for seed in range(25):
        cells = screen(300, 10 + seed)
        scs.tl.predict_perturbation(cells, model, control="control", max_cells=2, progress=False)
        silent.append(scs.get.perturbation(cells).loc["silent", "pvalue"])
        cells.obs["target"] = np.random.default_rng(seed).permutation(cells.obs["target"])
        scs.tl.predict_perturbation(cells, model, control="control", max_cells=2, progress=False)
        shuffled += scs.get.perturbation(cells)["pvalue"].tolist()
    assert kstest(silent, "uniform").pvalue > 0.01
    assert (np.array(shuffled) < 0.05).mean() < 0.11  # 100 of them: 5 % and three standard errors


def test_slots_round_trip_and_cells_without_a_target(model: scs.ScoreModel, round_trip: Callable[[AnnData], None]):
    cells = screen(300, 4)
    names = cells.obs["target"].astype(object)
    names.iloc[:5], names.iloc[5:9] = np.nan, "another screen"
    cells.obs["mine"] = names
    scs.tl.predict_perturbation(
        cells, model, control="control", assigned="mine", exclude="two_guides", max_cells=20, progress=False
    )
    assert cells.obs["scscore_response"].iloc[:9].isna().all()
    assert cells.obs["scscore_confidence"].notna().all()
    left = (~cells.obs["two_guides"] & (cells.obs["mine"] == "strong")).sum()
    assert scs.get.perturbation(cells).loc["strong", "n_cells"] == left
    assert cells.uns["scscore_attribution"]["n_cells"].max() <= 20
    for slot in ("perturbation_evidence", "response"):
        assert cells.obs[f"scscore_{slot}"].dtype == np.float32
    round_trip(cells)


def test_mudata_with_one_call(model: scs.ScoreModel):
    cells = screen(400, 5)
    guides = AnnData(np.ones((400, 2), dtype=np.float32), obs=pd.DataFrame(index=cells.obs_names))
    mdata = MuData({"rna": cells.copy(), "gdo": guides})
    scs.tl.predict_perturbation(mdata, model, control="control", progress=False)
    scs.tl.predict_perturbation(cells, model, control="control", progress=False)
    pd.testing.assert_frame_equal(scs.get.perturbation(mdata["rna"]), scs.get.perturbation(cells))
    fitted = scs.tl.fit(mdata, "target", max_epochs=1, progress=False)
    scs.tl.classify(mdata, fitted, progress=False)
    assert "scscore_label" in mdata["rna"].obs


def test_a_stored_representation_needs_no_genes(round_trip: Callable[[AnnData], None]):
    cells = scs.datasets.toy_gaussians(n_obs=300)
    model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=1, progress=False)
    scs.tl.predict_perturbation(cells, model, control="a", progress=False)
    assert not cells.varm.keys()
    assert (scs.get.perturbation(cells)["fdr"] < 0.05).all()
    round_trip(cells)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"control": "nothing"}, ValueError, "control must be a class of the model"),
        ({"control": None}, TypeError, "control must be a name"),
        ({"control": "control", "assigned": "guide"}, KeyError, "assigned='guide'"),
        ({"control": "control", "assigned": "one"}, ValueError, "must hold cells of control"),
        ({"control": "control", "exclude": "one"}, ValueError, "must be a boolean column"),
        ({"control": "control", "max_cells": 0}, ValueError, "max_cells"),
        ({"control": "control", "modality": "rna"}, ValueError, "is for MuData"),
        ({"control": "control", "reject": 2}, ValueError, "reject"),
    ],
)
def test_bad_input_is_named(model: scs.ScoreModel, options: dict[str, Any], error: type, says: str):
    cells = screen(30, 6)
    cells.obs["one"] = "strong"
    before = cells.copy()
    with pytest.raises(error, match=says):
        scs.tl.predict_perturbation(cells, model, progress=False, **options)
    assert list(cells.obs) == list(before.obs)
    assert not cells.uns
