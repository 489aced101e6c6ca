"""``tl.calibrate``: temperature, offsets, sets and typicality from new labelled cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

import scscore as scs
from scscore.core.calibration import negative_log_likelihood


@pytest.fixture(scope="module")
def toy() -> tuple[AnnData, scs.ScoreModel]:
    """Cells of overlapping classes, and the model with their exact score: it has no held-out cells."""
    return scs.datasets.toy_mixture(n_obs=1500)


def split(cells: AnnData) -> tuple[AnnData, AnnData]:
    return cells[:700].copy(), cells[700:].copy()


def true_columns(cells: AnnData, model: scs.ScoreModel) -> np.ndarray:
    return np.searchsorted(model.classes, cells.obs["class"].astype(str))


def test_a_model_without_held_out_cells_gets_sets_and_typicality(toy: tuple[AnnData, scs.ScoreModel]):
    cells, exact = toy
    first, second = split(cells)
    scs.tl.classify(second, exact, progress=False)
    assert "scscore_typicality" not in second.obs
    assert "scscore_prediction_set" not in second.obsm
    model = scs.tl.calibrate(first, exact, "class", progress=False)
    scs.tl.classify(second, model, coverage=0.8, progress=False)
    covered = second.obsm["scscore_prediction_set"][np.arange(800), true_columns(second, model)]
    assert covered.mean() == pytest.approx(0.8, abs=0.06)  # four standard errors of 700 and 800 cells
    assert (second.obs["scscore_typicality"] < 0.1).mean() == pytest.approx(0.1, abs=0.06)
    assert exact.held_out is None


def test_the_weights_stay_and_the_calibration_improves(toy: tuple[AnnData, scs.ScoreModel]):
    cells, exact = toy
    first, second = split(cells)
    spoilt = scs.tl.calibrate(first, exact, "class", progress=False)
    spoilt.calibration = type(spoilt.calibration)(temperature=3.0, n_steps=8)
    repaired = scs.tl.calibrate(first, spoilt, "class", progress=False)
    assert repaired.diffusion is spoilt.diffusion
    assert spoilt.calibration.temperature == 3
    assert repaired.calibration.temperature == pytest.approx(1, abs=0.3)
    y = true_columns(second, exact)
    before, after = (
        negative_log_likelihood(scs.tl.classify(second, m, copy=True, progress=False).obsm["scscore_posterior"], y)
        for m in (spoilt, repaired)
    )
    assert after < before


def test_a_calibrated_model_survives_saving(toy: tuple[AnnData, scs.ScoreModel], tmp_path: Path):
    first, second = split(toy[0])
    model = scs.tl.calibrate(first, toy[1], "class", progress=False)
    model.save(tmp_path / "toy.scscore")
    loaded = scs.load(tmp_path / "toy.scscore")
    assert loaded.hash == model.hash != toy[1].hash
    assert loaded.calibration == model.calibration
    one, other = (scs.tl.classify(second, m, copy=True, progress=False) for m in (model, loaded))
    np.testing.assert_array_equal(one.obsm["scscore_prediction_set"], other.obsm["scscore_prediction_set"])
    np.testing.assert_array_equal(one.obs["scscore_typicality"], other.obs["scscore_typicality"])


def test_cells_without_a_label_are_left_out(toy: tuple[AnnData, scs.ScoreModel]):
    first, _ = split(toy[0])
    first.obs.loc[first.obs_names[::7], "class"] = np.nan
    model = scs.tl.calibrate(first, toy[1], "class", progress=False)
    assert len(model.held_out.y) == 600


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"condition": "nothing"}, KeyError, "nothing"),
        ({"condition": None}, TypeError, "condition"),
        ({"labels": "Martian"}, ValueError, "Martian"),
        ({"labels": np.nan}, ValueError, "holds no label"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"rng": -1}, ValueError, "rng"),
        ({"device": "moon"}, ValueError, "moon"),
    ],
)
def test_bad_input_is_named(toy: tuple[AnnData, scs.ScoreModel], change: dict[str, Any], error: type, says: str):
    cells, exact = toy[0][:20].copy(), toy[1]
    if "labels" in change:
        cells.obs["class"] = cells.obs["class"].astype(object)
        cells.obs["class"] = change.pop("labels")
    before = cells.copy()
    with pytest.raises(error, match=says):
        scs.tl.calibrate(cells, exact, **{"condition": "class", "progress": False, **change})
    assert cells.obs.equals(before.obs)


def test_a_density_has_nothing_to_calibrate():
    cells = scs.datasets.toy_gaussians(n_obs=60)
    model = scs.tl.fit(cells, None, use_rep="X_toy", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="no classes"):
        scs.tl.calibrate(cells, model, "class", progress=False)
