"""``tl.fit(covariates=)``: known levels are taken out, unknown ones summed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.special import logsumexp
from scipy.stats import norm

import scscore as scs

SHIFTS = {"left": -2.0, "right": 2.0}


def batched(n: int, seed: int) -> AnnData:
    """Two classes two standard deviations apart; batches move both by as much."""
    rng = np.random.default_rng(seed)
    y, batch = rng.integers(2, size=n), rng.choice(list(SHIFTS), n)
    x = rng.normal(size=(n, 2))
    x[:, 0] += 2 * y + np.array([SHIFTS[b] for b in batch])
    obs = pd.DataFrame(
        {"class": pd.Categorical(np.array(["a", "b"])[y]), "batch": batch}, index=[f"c{i}" for i in range(n)]
    )
    return AnnData(np.zeros((n, 1), dtype=np.float32), obs=obs, obsm={"X_toy": x})


@pytest.fixture(scope="module")
def models() -> dict[str, scs.ScoreModel]:
    cells = batched(1500, 0)
    fit: dict[str, Any] = {"use_rep": "X_toy", "max_epochs": 2, "progress": False}
    return {
        "with": scs.tl.fit(cells, "class", covariates="batch", **fit),
        "without": scs.tl.fit(cells, "class", **fit),
    }


def classified(cells: AnnData, model: scs.ScoreModel, **options: Any) -> AnnData:
    return scs.tl.classify(cells, model, copy=True, progress=False, **options)


def accuracy(cells: AnnData) -> float:
    return float((scs.get.posterior(cells).idxmax(axis=1) == cells.obs["class"].astype(str)).mean())


def test_known_batches_are_taken_out(models: dict[str, scs.ScoreModel]):
    query = batched(1000, 1)
    assert accuracy(classified(query, models["with"])) == pytest.approx(0.841, abs=0.04)  # Phi(1), Bayes
    assert accuracy(classified(query, models["without"])) < 0.75


def test_unknown_batches_are_summed_over(models: dict[str, scs.ScoreModel]):
    """By hand: the likelihoods under every level, weighted by their frequencies."""
    query, model = batched(300, 2), models["with"]
    unknown = query.copy()
    del unknown.obs["batch"]
    found = classified(unknown, model).obsm["scscore_log_likelihood"]
    assert model.covariates is not None
    by_level = []
    for level in model.covariates.levels:
        query.obs["batch"] = level
        by_level.append(classified(query, model).obsm["scscore_log_likelihood"].astype(np.float64))
    expected = logsumexp(by_level, axis=0, b=model.covariates.frequencies[:, None, None])
    np.testing.assert_allclose(found, expected, atol=0.02)  # the mean over paths of the logarithm, not of the sum
    query.obs["batch"] = "a batch that nobody has seen"
    np.testing.assert_array_equal(classified(query, model).obsm["scscore_log_likelihood"], found)


def test_known_and_unknown_cells_in_one_query(models: dict[str, scs.ScoreModel]):
    query, model = batched(200, 3), models["with"]
    unknown = query.copy()
    unknown.obs["batch"] = np.nan
    mixed = query.copy()
    mixed.obs.loc[mixed.obs_names[::2], "batch"] = np.nan
    one, other, both = (classified(q, model).obsm["scscore_log_likelihood"] for q in (query, unknown, mixed))
    np.testing.assert_allclose(both[::2], other[::2], atol=1e-4)
    np.testing.assert_allclose(both[1::2], one[1::2], atol=1e-4)
    parts = classified(mixed, model, batch_size=7).obsm["scscore_log_likelihood"]
    np.testing.assert_allclose(parts, both, atol=1e-4)


def test_precision_works_with_unknown_batches(models: dict[str, scs.ScoreModel]):
    unknown = batched(60, 4)
    unknown.obs["batch"] = np.nan
    found = classified(unknown, models["with"], precision=0.05)
    assert np.isfinite(found.obsm["scscore_posterior"]).all()


def test_covariates_survive_saving(models: dict[str, scs.ScoreModel], tmp_path: Path):
    models["with"].save(tmp_path / "m")
    loaded, query = scs.load(tmp_path / "m"), batched(50, 5)
    assert loaded.hash == models["with"].hash
    assert loaded.covariates.levels == ("left", "right")
    one, other = (classified(query, m).obsm["scscore_log_likelihood"] for m in (loaded, models["with"]))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("covariates", "change", "error", "says"),
    [
        ("nothing", {}, KeyError, "covariates='nothing'"),
        ("batch", {"batch": "one"}, ValueError, "at least two levels"),
        ("batch", {"batch": 1.5}, ValueError, "at least two levels"),
        ("batch", {"batch": np.r_[np.inf, np.arange(100.0)]}, ValueError, "infinite"),
        ("batch", {"batch": np.r_[np.nan, np.arange(100.0)]}, ValueError, "1 labelled cells have no value"),
        (["batch", 3], {}, TypeError, "covariates must be a name"),
        (["batch", "batch"], {}, ValueError, "different columns"),
        (["batch", "class"], {}, ValueError, "not the condition"),
        ("n", {"n": np.arange(101)}, ValueError, "101 levels for 101 cells"),
        ("batch", {"batch": [None] + ["left", "right"] * 50}, ValueError, "1 labelled cells have no value"),
    ],
)
def test_bad_covariates_are_named(covariates: Any, change: dict[str, Any], error: type, says: str):
    cells = batched(101, 0)
    for name, value in change.items():
        cells.obs[name] = value
    with pytest.raises(error, match=says):
        scs.tl.fit(cells, "class", covariates=covariates, use_rep="X_toy", max_epochs=1, progress=False)
    assert "scscore" not in cells.uns


def dosed(n: int, seed: int) -> AnnData:
    """The same classes and batches; a dose moves both classes by 1.5 per unit."""
    cells = batched(n, seed)
    cells.obs["dose"] = np.random.default_rng([seed, 1]).normal(size=n)
    cells.obsm["X_toy"][:, 0] += 1.5 * cells.obs["dose"].to_numpy()
    return cells


@pytest.fixture(scope="module")
def of_doses() -> scs.ScoreModel:
    options: dict[str, Any] = {"use_rep": "X_toy", "max_epochs": 2, "progress": False}
    return scs.tl.fit(dosed(1500, 0), "class", covariates=["dose", "batch"], **options)


def test_known_doses_are_taken_out(of_doses: scs.ScoreModel):
    assert accuracy(classified(dosed(1000, 1), of_doses)) == pytest.approx(norm.cdf(1), abs=0.04)  # Bayes
    assert of_doses.params["covariates"] == ["batch", "dose"]
    assert "covariates      batch (2 levels), dose (slope)" in of_doses.summary()


@pytest.mark.parametrize("missing", ["dose", "batch", "both"])
def test_what_is_unknown_is_summed_over_and_what_is_known_is_used(of_doses: scs.ScoreModel, missing: str):
    """The log-ratio in closed form: doses widen the classes, unknown batches make mixtures of them."""
    query = dosed(400, 2)
    x = query.obsm["X_toy"][:, 0]
    shift = np.array([SHIFTS[b] for b in query.obs["batch"]]) if missing == "dose" else 0.0
    dose = 1.5 * query.obs["dose"].to_numpy() if missing == "batch" else 0.0
    width = 1.0 if missing == "batch" else np.hypot(1, 1.5)
    shifts = [shift] if missing == "dose" else list(SHIFTS.values())
    log_density = [logsumexp([norm(2 * c + s, width).logpdf(x - dose) for s in shifts], axis=0) for c in range(2)]
    query.obs = query.obs.drop(columns=["dose", "batch"] if missing == "both" else [missing])
    found = classified(query, of_doses).obsm["scscore_log_likelihood"]
    assert (
        np.corrcoef(found[:, 1] - found[:, 0], log_density[1] - log_density[0])[0, 1] > 0.95
    )  # five doses stand for all
    own, best = accuracy(classified(query, of_doses)), (log_density[1] > log_density[0]).astype(int)
    bayes = float((best == (query.obs["class"] == "b")).mean())
    assert own > bayes - 0.03


def test_a_covariate_that_goes_with_the_target_does_not_eat_it():
    """x tells y, the covariate only goes with y: with its slope taken out, x still tells as much."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=1200)
    x = np.stack([y + 0.5 * rng.normal(size=1200), rng.normal(size=1200)], axis=1)
    obs = pd.DataFrame({"y": y, "cov": y + 0.3 * rng.normal(size=1200)}, index=[f"c{i}" for i in range(1200)])
    cells = AnnData(np.zeros((1200, 1), dtype=np.float32), obs=obs, obsm={"X_toy": x})
    options: dict[str, Any] = {"use_rep": "X_toy", "max_epochs": 1, "n_members": 1, "progress": False}
    model = scs.tl.fit(cells[:800].copy(), "y", covariates="cov", **options)
    assert model.covariates is not None
    assert abs(model.covariates.slopes[0, 0]) < 0.1
    query = cells[800:].copy()
    scs.tl.regress(query, model, progress=False)
    assert np.corrcoef(query.obs["scscore_mean"], query.obs["y"])[0, 1] ** 2 > 0.75  # .8 is known


def test_a_number_that_is_constant_in_a_split_does_no_harm():
    cells = batched(1200, 7)
    donor = np.arange(1200) % 4
    cells.obs["donor"], cells.obs["dose"] = donor.astype(str), np.where(donor == 3, 0.5, 0.001)
    options: dict[str, Any] = {"use_rep": "X_toy", "max_epochs": 2, "progress": False, "split_key": "donor"}
    with_dose, without = (scs.tl.fit(cells, "class", covariates=c, **options) for c in (["batch", "dose"], "batch"))
    assert with_dose.params["validation_nll"] == pytest.approx(without.params["validation_nll"], abs=0.02)


def test_a_dose_survives_saving_and_a_new_batch(of_doses: scs.ScoreModel, tmp_path: Path):
    of_doses.save(tmp_path / "m")
    loaded, query = scs.load(tmp_path / "m"), dosed(400, 3)
    assert loaded.hash == of_doses.hash
    one, other = (classified(query, m).obsm["scscore_log_likelihood"] for m in (loaded, of_doses))
    np.testing.assert_array_equal(one, other)
    moved = dosed(600, 4)
    moved.obsm["X_toy"][:, 0] += np.where(moved.obs["batch"] == "left", 2, -2) + 1.0  # all in one batch, one unit away
    moved.obs["batch"] = "new"
    adapted = scs.tl.adapt(moved, loaded, batch_key="batch", progress=False)
    assert adapted.covariates.numeric == ("dose",)
    assert adapted.covariates.levels == ("left", "right", "new")
    assert adapted.covariates.shifts[2, 0] == pytest.approx(1.0, abs=0.3)
    assert accuracy(classified(moved, adapted)) == pytest.approx(0.841, abs=0.05)
    again = scs.tl.adapt(moved, adapted, batch_key="batch", progress=False)
    np.testing.assert_allclose(again.covariates.shifts, adapted.covariates.shifts)
    nothing_new = scs.tl.adapt(dosed(50, 5), loaded, batch_key="batch", progress=False)
    np.testing.assert_array_equal(nothing_new.covariates.typical, loaded.covariates.typical)
    del moved.obs["dose"]
    without = scs.tl.adapt(moved, loaded, batch_key="batch", progress=False)
    assert without.covariates.shifts[2, 0] == pytest.approx(1.0, abs=0.4)
    assert accuracy(classified(moved, without)) == pytest.approx(norm.cdf(1 / np.hypot(1, 1.5)), abs=0.05)


def test_whole_numbers_with_a_slope_are_pointed_out(caplog: pytest.LogCaptureFixture):
    cells = batched(200, 0)
    cells.obs["lane"] = np.where(np.arange(200) % 2, 1.0, 2.0)
    model = scs.tl.fit(cells, "class", covariates="lane", use_rep="X_toy", max_epochs=1, progress=False)
    assert model.covariates is not None
    assert model.covariates.numeric == ("lane",)
    assert "2 whole numbers as float64 and is taken for a number" in caplog.text


def test_a_query_with_words_for_doses_is_refused(of_doses: scs.ScoreModel):
    query = dosed(20, 6)
    query.obs["dose"] = "high"
    with pytest.raises(ValueError, match=r"obs\['dose'\] must hold numbers"):
        classified(query, of_doses)


def test_evidence_of_dosed_cells_is_complete():
    cells = scs.datasets.pbmc()[:600].copy()
    cells.obs["score"] = np.random.default_rng(0).normal(size=600)
    model = scs.tl.fit(cells, "cell_type", covariates="score", max_epochs=1, progress=False)
    found = scs.tl.attribute(cells[:40], model, progress=False, copy=True, per_cell=True)
    assert found.uns["scscore_attribution"]["completeness"] < 1e-4
