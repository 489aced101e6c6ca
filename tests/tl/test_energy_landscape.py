"""``tl.energy_landscape``: slots, spaces, known wells, bad input."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.tests.helpers import assert_equal
from scipy.special import logsumexp

import scscore as scs

RoundTrip = Callable[[AnnData], None]

MEANS = np.array([[0.0, 0, 0], [5, 0, 0], [0, 5, 0]])
LOG_WEIGHTS = np.log([0.5, 0.3, 0.2])


def mixture_energy(x: np.ndarray) -> np.ndarray:
    square = ((x[:, None] - MEANS) ** 2).sum(2)
    return -logsumexp(LOG_WEIGHTS - 0.5 * square - 1.5 * np.log(2 * np.pi), axis=1)


@pytest.fixture
def wells() -> AnnData:
    """Three wells of known energy; the UMAP shows nothing of them."""
    rng = np.random.default_rng(0)
    well = rng.choice(3, size=3000, p=np.exp(LOG_WEIGHTS))
    x = MEANS[well] + rng.normal(size=(3000, 3))
    cells = AnnData(np.zeros((3000, 1), dtype=np.float32), obs=pd.DataFrame(index=[f"cell/{i}" for i in range(3000)]))
    cells.obs["well"] = well
    cells.obs["scscore_energy"] = mixture_energy(x).astype(np.float32)
    cells.obsm["X_space"], cells.obsm["X_umap"] = x, rng.normal(size=(3000, 2))
    return cells


def landscape(adata: AnnData, *args: Any, **kwargs: Any) -> AnnData:
    found = scs.tl.energy_landscape(adata, *args, copy=True, **kwargs)
    assert found is not None
    return found


def test_known_wells_and_slots(wells: AnnData, round_trip: RoundTrip):
    assert scs.tl.energy_landscape(wells, use_rep="X_space") is None
    basin, stored = wells.obs["scscore_basin"], wells.uns["scscore_energy_landscape"]
    assert basin.cat.categories.tolist() == ["0", "1", "2"]  # the deepest first, as are the wells
    assert (basin.astype(int) == wells.obs["well"]).mean() > 0.97
    assert wells.obs["scscore_energy_smoothed"].dtype == np.float32

    bottom = wells.obs.loc[stored["minima"]]
    assert bottom["scscore_basin"].tolist() == ["0", "1", "2"]
    lowest = wells.obs.groupby("scscore_basin", observed=True)["scscore_energy_smoothed"].min()
    np.testing.assert_allclose(stored["energies"], lowest, rtol=1e-6)
    np.testing.assert_allclose(bottom["scscore_energy_smoothed"], lowest, rtol=1e-6)
    assert (np.diff(stored["energies"]) > 0).all()
    np.testing.assert_allclose(stored["energies"], mixture_energy(MEANS), atol=0.5)

    barriers = stored["barriers"]
    assert barriers.dtype == np.float64 and (np.diag(barriers) == 0).all()
    difference = stored["energies"] - stored["energies"][:, None]
    np.testing.assert_allclose(barriers - barriers.T, difference, atol=1e-9)
    # the pass from a small well to the large one is on the line between them; few cells are there, so it is found too low
    along = np.linspace(0.2, 0.9, 200)[:, None]
    truth = [mixture_energy(along * MEANS[k]).max() - mixture_energy(MEANS[k : k + 1])[0] for k in (1, 2)]
    assert np.round(truth, 1).tolist() == [2.2, 2.0]
    error = barriers[1:, 0] - truth
    assert (-0.7 < error).all() and (error < 0.05).all()
    params = {"use_rep": "X_space", "layer": None, "n_neighbors": 15, "min_barrier": 1.0}
    assert json.loads(stored["params"]) == params
    assert stored["version"] == scs.__version__ and "model_hash" not in stored
    round_trip(wells)


def test_smoothed_energy_is_the_mean_over_the_nearest_cells(wells: AnnData):
    found = landscape(wells, use_rep="X_space", n_neighbors=4)
    x, energy = wells.obsm["X_space"], wells.obs["scscore_energy"].to_numpy(dtype=float)
    for i in (0, 7, 300):
        nearest = np.argsort(((x - x[i]) ** 2).sum(1))[:5]  # the cell itself is the first of them
        assert found.obs["scscore_energy_smoothed"].iloc[i] == pytest.approx(energy[nearest].mean(), rel=1e-6)


def test_neighbours_are_those_of_the_space_not_of_the_umap(wells: AnnData):
    moved = wells.copy()
    moved.obsm["X_umap"] = -3 * moved.obsm["X_umap"][::-1]
    a, b = (landscape(cells, use_rep="X_space") for cells in (wells, moved))
    pd.testing.assert_frame_equal(a.obs, b.obs)
    on_umap = landscape(wells, use_rep="X_umap")  # what it would give: noise
    assert (a.obs["scscore_basin"].astype(int) == wells.obs["well"]).mean() > 0.97
    assert len(on_umap.uns["scscore_energy_landscape"]["minima"]) != 3


@pytest.mark.parametrize(("min_barrier", "n_basins"), [(0.0, None), (1.0, 3), (np.float32(2.9), 1), (50, 1)])
def test_min_barrier(wells: AnnData, min_barrier: float, n_basins: int | None):
    wells.obs["scscore_energy"] += np.random.default_rng(0).normal(size=3000)
    stored = landscape(wells, use_rep="X_space", min_barrier=min_barrier).uns["scscore_energy_landscape"]
    n = len(stored["minima"])
    assert n > 3 if n_basins is None else n == n_basins
    for i in range(1, n):
        assert stored["barriers"][i, :i].min() >= min_barrier


def test_model_space(wells: AnnData, round_trip: RoundTrip):
    wells = wells[::3].copy()
    wells.obs["class"] = [f"w{i}" for i in wells.obs["well"]]
    model = scs.tl.fit(wells, "class", use_rep="X_space", max_epochs=1, progress=False)
    scs.tl.energy(wells, model, n_steps=8, n_paths=4, gap=False, progress=False)
    scs.tl.energy_landscape(wells, model)
    assert wells.uns["scscore_energy_landscape"]["model_hash"] == model.hash
    assert (wells.obs["scscore_basin"].astype(int) == wells.obs["well"]).mean() > 0.95
    wells.obsm["whitened"] = model.encode(wells).numpy()
    same = landscape(wells, use_rep="whitened")
    pd.testing.assert_series_equal(same.obs["scscore_basin"], wells.obs["scscore_basin"])
    round_trip(wells)


def test_layer_of_the_model(counts: AnnData, model: scs.ScoreModel):
    counts.obs["scscore_energy"] = np.random.default_rng(0).normal(size=counts.n_obs)
    expected = landscape(counts, model)
    counts.layers["raw"], counts.X = counts.X, counts.X.log1p()
    found = landscape(counts, model, layer="raw")
    np.testing.assert_array_equal(found.obs["scscore_basin"], expected.obs["scscore_basin"])


def test_energies_of_another_model_are_noticed(counts: AnnData, model: scs.ScoreModel):
    counts.obs["scscore_energy"] = np.arange(240.0)
    counts.uns["scscore_energy"] = {"model_hash": "another"}
    with pytest.warns(UserWarning, match="computed with another model than model="):
        scs.tl.energy_landscape(counts, model)


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")  # writing turns a view into a copy
def test_views_copies_and_keys(wells: AnnData):
    before = wells.copy()
    found = landscape(wells, use_rep="X_space")
    assert_equal(wells, before)
    view = wells[wells.obs["well"] < 2]
    assert view.is_view
    scs.tl.energy_landscape(view, use_rep="X_space")
    assert view.obs["scscore_basin"].cat.categories.tolist() == ["0", "1"]
    assert_equal(wells, before)
    wells.obs["mine_energy"] = wells.obs.pop("scscore_energy")
    scs.tl.energy_landscape(wells, use_rep="X_space", key_added="mine")
    assert "scscore_basin" not in wells.obs
    np.testing.assert_array_equal(wells.obs["mine_basin"], found.obs["scscore_basin"])


def test_two_islands_have_no_path(round_trip: RoundTrip):
    cells = AnnData(np.zeros((40, 1), dtype=np.float32))
    cells.obsm["X_space"] = np.r_[np.arange(20.0), 1e3 + np.arange(20.0)][:, None]
    cells.obs["scscore_energy"] = np.abs(np.r_[np.arange(-10, 10), np.arange(-10, 10) + 0.5])
    scs.tl.energy_landscape(cells, use_rep="X_space", n_neighbors=2)
    barriers = cells.uns["scscore_energy_landscape"]["barriers"]
    np.testing.assert_array_equal(barriers, [[0, np.inf], [np.inf, 0]])
    round_trip(cells)


REFUSED = [
    ({"use_rep": None}, ValueError, "give either model= .* or use_rep= .*, got neither"),
    ({"use_rep": "X_umap2"}, KeyError, "use_rep='X_umap2' is not in adata.obsm; available: "),
    ({"use_rep": 3}, TypeError, "use_rep must be a name"),
    ({"layer": "raw"}, ValueError, "layer='raw' has no effect with use_rep="),
    ({"key_added": "mine"}, KeyError, r"obs\['mine_energy'\] is missing \(key='mine'\): run scscore.tl.energy first"),
    ({"n_neighbors": 0}, ValueError, "n_neighbors must be a positive integer, got 0"),
    ({"n_neighbors": 3000}, ValueError, "n_neighbors must be below the number of cells, 3000, got 3000"),
    ({"min_barrier": -1}, ValueError, "min_barrier must be a number that is not negative, got -1"),
    ({"min_barrier": np.nan}, ValueError, "min_barrier must be a number that is not negative, got nan"),
    ({"min_barrier": True}, ValueError, "min_barrier must be a number that is not negative, got True"),
    ({"min_barrier": "1"}, ValueError, "min_barrier must be a number that is not negative, got '1'"),
]


@pytest.mark.parametrize(("kwargs", "error", "message"), REFUSED)
def test_bad_arguments(wells: AnnData, kwargs: dict[str, Any], error: type[Exception], message: str):
    before = wells.copy()
    with pytest.raises(error, match=message):
        scs.tl.energy_landscape(wells, **{"use_rep": "X_space", **kwargs})
    assert_equal(wells, before)


def test_bad_model(wells: AnnData, model: scs.ScoreModel):
    with pytest.raises(ValueError, match="give either model= .* or use_rep= .*, got both"):
        scs.tl.energy_landscape(wells, model, use_rep="X_space")
    with pytest.raises(TypeError, match="model must be a ScoreModel .*, got str"):
        scs.tl.energy_landscape(wells, "model")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="adata must be an AnnData, got str"):
        scs.tl.energy_landscape("cells", use_rep="X_space")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.r_[np.nan, np.inf, np.zeros(2998)], "holds NaN or infinite values in 2 of 3000 cells"),
        (pd.Categorical(["a"] * 3000), "must hold numbers, found category"),
        (np.array(["1.0"] * 3000, dtype=object), "must hold numbers, found object"),
        (np.full(3000, 1j), "must hold numbers, found complex128"),
    ],
)
def test_bad_energies(wells: AnnData, values: Any, message: str):
    wells.obs["scscore_energy"] = values
    before = wells.copy()
    with pytest.raises(ValueError, match=re.escape("adata.obs['scscore_energy'] ") + message):
        scs.tl.energy_landscape(wells, use_rep="X_space")
    assert_equal(wells, before)


def test_nan_in_the_representation(wells: AnnData):
    wells.obsm["X_space"][5] = np.nan
    with pytest.raises(ValueError, match=r"obsm\['X_space'\] holds NaN or infinite values in 1 of 3000 cells"):
        scs.tl.energy_landscape(wells, use_rep="X_space")
    assert "scscore_basin" not in wells.obs


def test_what_was_written_is_logged(wells: AnnData, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="scscore"):
        scs.tl.energy_landscape(wells, use_rep="X_space")
    for slot in ("scscore_energy_smoothed", "scscore_basin", "scscore_energy_landscape", "3 basins"):
        assert slot in caplog.text
