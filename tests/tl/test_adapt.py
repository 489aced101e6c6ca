"""``tl.adapt``: the shift of new batches, from unlabelled cells."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scscore as scs

SHIFTS = {"a": [1.5, 0.5], "b": [-1.0, 1.0]}
FIT: dict[str, Any] = {"use_rep": "X_toy", "max_epochs": 2, "progress": False}


def cells(n: int, seed: int, batches: dict[str, list[float]] | None = None, share: float = 0.5) -> AnnData:
    """Two classes three standard deviations apart, in batches that are moved as a whole."""
    rng = np.random.default_rng(seed)
    batches = batches or {"train": [0.0, 0.0]}
    y, batch = (rng.random(n) < share).astype(int), rng.choice(list(batches), n)
    x = rng.normal(size=(n, 2)) + np.array([batches[b] for b in batch])
    x[:, 0] += 3 * y
    obs = pd.DataFrame({"class": np.array(["p", "q"])[y], "batch": batch}, index=[f"c{i}" for i in range(n)])
    return AnnData(np.zeros((n, 1), dtype=np.float32), obs=obs, obsm={"X_toy": x})


@pytest.fixture(scope="module")
def model() -> scs.ScoreModel:
    return scs.tl.fit(cells(1000, 0), "class", **FIT)


def accuracy(query: AnnData, model: scs.ScoreModel) -> float:
    found = scs.tl.classify(query, model, copy=True, reject=0, progress=False)
    return float((found.obs["scscore_label"].astype(str) == query.obs["class"]).mean())


BAYES = 0.933  # Phi(1.5)


def test_every_batch_gets_its_shift(model: scs.ScoreModel):
    query = cells(2000, 1, SHIFTS, share=0.5)
    before = query.copy()
    adapted = scs.tl.adapt(query, model, batch_key="batch", progress=False)
    assert accuracy(query, model) < 0.87
    assert accuracy(query, adapted) == pytest.approx(BAYES, abs=0.02)
    found = dict(zip(adapted.covariates.levels, adapted.covariates.shifts, strict=True))
    for name, shift in SHIFTS.items():
        np.testing.assert_allclose(found[name], shift, atol=0.15)
    assert model.covariates is None and "adapted" not in model.params
    pd.testing.assert_frame_equal(query.obs, before.obs)
    assert not query.uns and list(query.obsm) == ["X_toy"]


def test_one_batch_needs_no_column(model: scs.ScoreModel):
    query = cells(1000, 2, {"a": SHIFTS["a"]}, share=0.2)
    adapted = scs.tl.adapt(query, model, progress=False)
    np.testing.assert_allclose(adapted.covariates.shifts, [SHIFTS["a"]], atol=0.2)
    assert accuracy(query, adapted) > accuracy(query, model) + 0.05
    assert "adapted" in adapted.summary() and "adapted" not in model.summary()


def test_typicality_and_sets_come_back(model: scs.ScoreModel):
    query = cells(2000, 3, {"far": [0.0, 4.0]})
    adapted = scs.tl.adapt(query, model, progress=False)

    def rejected(model: scs.ScoreModel) -> float:
        found = scs.tl.classify(query, model, copy=True, progress=False)
        return float((found.obs["scscore_label"] == "unknown").mean())

    assert rejected(model) > 0.5
    assert rejected(adapted) < 0.03


def test_cells_of_other_batches_are_summed_over(model: scs.ScoreModel):
    adapted = scs.tl.adapt(cells(1000, 4, SHIFTS), model, batch_key="batch", progress=False)
    other = cells(100, 5)
    found = scs.tl.classify(other, adapted, copy=True, progress=False).obsm["scscore_log_likelihood"]
    parts = []
    for name in adapted.covariates.levels:
        moved = other.copy()
        moved.obs["batch"] = name
        parts.append(scs.tl.classify(moved, adapted, copy=True, progress=False).obsm["scscore_log_likelihood"])
    expected = np.logaddexp(*(p + np.log(f) for p, f in zip(parts, adapted.covariates.frequencies, strict=True)))
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_batches_by_number_are_found_whatever_their_type(model: scs.ScoreModel, caplog: pytest.LogCaptureFixture):
    query = cells(400, 21, SHIFTS)
    query.obs["batch"] = (query.obs["batch"] == "a").astype(int)
    adapted = scs.tl.adapt(query, model, batch_key="batch", progress=False)
    assert sorted(adapted.covariates.levels) == ["0", "1"]
    whole = scs.tl.classify(query, adapted, copy=True, progress=False).obsm["scscore_log_likelihood"]
    query.obs["batch"] = query.obs["batch"].astype(float)
    query.obs.iloc[0, query.obs.columns.get_loc("batch")] = np.nan
    with caplog.at_level(logging.INFO, logger="scscore"):
        found = scs.tl.classify(query, adapted, copy=True, progress=False).obsm["scscore_log_likelihood"]
    np.testing.assert_array_equal(found[1:], whole[1:])
    assert "1 of 400 cells lack a value of ['batch'] that the model knows" in caplog.text


def test_known_batches_keep_their_shift():
    model = scs.tl.fit(cells(1500, 6, SHIFTS), "class", covariates="batch", **FIT)
    query = cells(900, 7, {**SHIFTS, "new": [0.5, -2.0]})
    adapted = scs.tl.adapt(query, model, batch_key="batch", progress=False)
    assert adapted.covariates.levels == ("a", "b", "new")
    np.testing.assert_array_equal(adapted.covariates.shifts[:2], model.covariates.shifts)
    assert adapted.covariates.frequencies.sum() == pytest.approx(1)
    assert accuracy(query, adapted) == pytest.approx(BAYES, abs=0.03)
    nothing_new = scs.tl.adapt(cells(100, 8, SHIFTS), model, batch_key="batch", progress=False)
    np.testing.assert_array_equal(nothing_new.covariates.shifts, model.covariates.shifts)


def test_missing_batches_take_no_part(model: scs.ScoreModel):
    query = cells(600, 9, SHIFTS)
    some = query.copy()
    some.obs.loc[some.obs["batch"] == "b", "batch"] = np.nan
    adapted = scs.tl.adapt(some, model, batch_key="batch", progress=False)
    assert adapted.covariates.levels == ("a",)
    some.obs["batch"] = np.nan
    with pytest.raises(ValueError, match="holds no batch: all 600"):
        scs.tl.adapt(some, model, batch_key="batch", progress=False)


def test_files_and_logs(model: scs.ScoreModel, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    query = cells(300, 10, SHIFTS)
    with caplog.at_level(logging.INFO, logger="scscore"):
        adapted = scs.tl.adapt(query, model, batch_key="batch", progress=False)
    assert "batch 'a':" in caplog.text
    adapted.save(tmp_path / "m")
    again = scs.load(tmp_path / "m")
    assert again.summary() == adapted.summary() and again.hash == adapted.hash != model.hash
    one = scs.tl.adapt(query, model, progress=False)
    one.save(tmp_path / "one")
    first, second = (
        scs.tl.classify(query, m, copy=True, progress=False).obsm["scscore_posterior"]
        for m in (one, scs.load(tmp_path / "one"))
    )
    np.testing.assert_array_equal(first, second)


def test_attributions_and_other_tools_follow(counts: AnnData, round_trip: Any):
    """A model of counts: the moved cells are attributed to genes completely, and energies fall."""
    model = scs.tl.fit(counts, "cell_type", n_comps=8, max_epochs=20, progress=False)
    query = counts.copy()
    query.X = query.X.toarray() * np.where(np.arange(query.n_vars) < 25, 1, 3).astype(np.float32)
    adapted = scs.tl.adapt(query, model, progress=False)
    scs.tl.classify(query, adapted, progress=False)
    scs.tl.attribute(query, adapted, progress=False)
    assert query.uns["scscore_attribution"]["completeness"] < 1e-4
    energies = []
    for one in (model, adapted):
        scs.tl.energy(query, one, gap=False, progress=False, key_added="e")
        energies.append(query.obs["e_energy"].mean())
    assert energies[1] < energies[0] - 0.3
    round_trip(query)


def test_a_second_adaptation_starts_afresh(model: scs.ScoreModel):
    first = scs.tl.adapt(cells(500, 12, {"a": SHIFTS["a"]}), model, progress=False)
    second = scs.tl.adapt(cells(500, 13, {"b": SHIFTS["b"]}), first, progress=False)
    np.testing.assert_allclose(second.covariates.shifts, [SHIFTS["b"]], atol=0.2)
    with_key = scs.tl.adapt(cells(500, 12, SHIFTS), model, batch_key="batch", progress=False)
    swapped = scs.tl.adapt(
        cells(500, 14, {"a": SHIFTS["b"], "c": SHIFTS["a"]}), with_key, batch_key="batch", progress=False
    )
    assert sorted(swapped.covariates.levels) == ["a", "c"]
    np.testing.assert_allclose(swapped.covariates.shifts[swapped.covariates.levels.index("a")], SHIFTS["b"], atol=0.2)


def test_levels_of_the_fit_outlive_several_adaptations(caplog: pytest.LogCaptureFixture):
    model = scs.tl.fit(cells(1500, 15, SHIFTS), "class", covariates="batch", **FIT)
    once = scs.tl.adapt(cells(400, 16, {"x": [0.5, 0.0]}), model, batch_key="batch", progress=False)
    twice = scs.tl.adapt(cells(400, 17, {"y": [0.0, 0.5], "a": SHIFTS["a"]}), once, batch_key="batch", progress=False)
    assert twice.covariates.levels == ("a", "b", "y")
    np.testing.assert_array_equal(twice.covariates.shifts[:2], model.covariates.shifts)
    n_new = int(1500 * twice.covariates.frequencies[2] / twice.covariates.frequencies[:2].sum())
    assert 150 < n_new < 250
    with caplog.at_level(logging.WARNING, logger="scscore"):
        scs.tl.adapt(cells(100, 18), once, progress=False)
    assert "fitted with, are replaced" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_reference_may_be_elsewhere(model: scs.ScoreModel):
    """On a GPU the engine stays there after the cells were encoded; the fit is made on the CPU."""
    query = cells(200, 19, {"a": SHIFTS["a"]})
    expected = scs.tl.adapt(query, model, device="cpu", progress=False).covariates.shifts
    found = scs.tl.adapt(query, model, device="auto", progress=False).covariates.shifts
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_few_cells_are_named(model: scs.ScoreModel, caplog: pytest.LogCaptureFixture):
    query = cells(200, 20, SHIFTS)
    query.obs["batch"] = np.where(np.arange(200) < 5, "tiny", "large")
    with caplog.at_level(logging.WARNING, logger="scscore"):
        scs.tl.adapt(query, model, batch_key="batch", progress=False)
    assert "1 of 2 batches have fewer than 30 cells" in caplog.text and "tiny" in caplog.text


def test_bad_input(model: scs.ScoreModel):
    query = cells(50, 11)
    with pytest.raises(KeyError, match="batch_key='lab' is not a column"):
        scs.tl.adapt(query, model, batch_key="lab", progress=False)
    with pytest.raises(TypeError, match="must be a ScoreModel"):
        scs.tl.adapt(query, "model", progress=False)
    with pytest.raises(ValueError, match="holds no cells"):
        scs.tl.adapt(query[:0], model, progress=False)
    query.obs["depth"] = np.random.default_rng(0).random(50)
    with pytest.raises(ValueError, match="batch_key='depth' is continuous"):
        scs.tl.adapt(query, model, batch_key="depth", progress=False)
    query.obsm["X_toy"][3, 0] = 1e200
    with pytest.raises(ValueError, match="values too large"):
        scs.tl.adapt(query, model, progress=False)
    del query.obsm["X_toy"]
    with pytest.raises(KeyError, match="X_toy"):
        scs.tl.adapt(query, model, progress=False)
