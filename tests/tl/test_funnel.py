"""``tl.funnel``: a docking well of known energy, slots, groups, bad input."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.tests.helpers import assert_equal
from scipy import stats

import scscore as scs

RoundTrip = Callable[[AnnData], None]

NAMES = ["1ABC/native", "2XYZ Überbrückung", "3DEF"]


@pytest.fixture
def poses() -> AnnData:
    """Poses of three complexes in a ball around the native one: a steep well, a flat energy, a well at the wrong place."""
    rng = np.random.default_rng(0)
    n = 1500
    x = rng.normal(size=(n, 3))
    x *= (12 * rng.random(n) ** (1 / 3) / np.linalg.norm(x, axis=1))[:, None]
    x[::500] = 0.0
    y = np.arange(n) // 500
    wrong = np.linalg.norm(x - [8.0, 0, 0], axis=1)
    distance = np.linalg.norm(x, axis=1)
    energy = np.choose(y, [2 * distance, np.zeros(n), 2 * wrong]) + 0.3 * rng.normal(size=n) - 500 * y
    obs = pd.DataFrame({"complex": pd.Categorical.from_codes(y, NAMES)}, index=[f"pose/{i}" for i in range(n)])
    adata = AnnData(np.zeros((n, 1), dtype=np.float32), obs=obs)
    adata.obs["rmsd"], adata.obs["scscore_energy"], adata.obsm["X_pose"] = distance, energy, x
    return adata


def funnels(adata: AnnData, **kwargs: Any) -> pd.DataFrame:
    found = scs.tl.funnel(adata, copy=True, **kwargs)
    assert found is not None
    return scs.get.funnel(found)


def test_docking_wells(poses: AnnData, round_trip: RoundTrip):
    assert scs.tl.funnel(poses, distance="rmsd", use_rep="X_pose", groupby="complex") is None
    frame = scs.get.funnel(poses)
    well, flat, wrong = (frame.loc[name] for name in NAMES)
    assert frame["n"].tolist() == [500, 500, 500]
    assert frame["reference"].tolist() == ["pose/0", "pose/500", "pose/1000"]
    assert well["spearman"] > 0.9 and well["p_near"] > 0.9 and well["reference_rank"] == 1 and well["barrier"] < 0.3
    assert abs(flat["spearman"]) < 0.1 and flat["p_near"] == pytest.approx(flat["p_near_flat"], abs=0.02)
    assert wrong["p_near"] < 1e-4 and wrong["reference_rank"] > 50 and wrong["barrier"] > 8

    stored, params = poses.uns["scscore_funnel"], json.loads(poses.uns["scscore_funnel"]["params"])
    assert params["scale"] == pytest.approx(0.2 * np.median(poses.obs["rmsd"]))
    assert (params["distance"], params["groupby"], params["temperature"]) == ("rmsd", "complex", 1.0)
    assert all(isinstance(stored[name], np.ndarray) for name in stored if name not in ("params", "version"))
    assert "scscore_reference_distance" not in poses.obs
    round_trip(poses)


def test_against_the_formulas(poses: AnnData):
    frame = funnels(poses, distance="rmsd", groupby="complex", scale=4, temperature=0.7)
    for name, row in frame.iterrows():
        part = poses.obs[poses.obs["complex"] == name]
        energy, d = part["scscore_energy"].to_numpy(), part["rmsd"].to_numpy()
        weight = np.exp(-(energy - energy.min()) / 0.7)
        near = np.exp(-((d / 4) ** 2))
        assert row["spearman"] == pytest.approx(stats.spearmanr(energy, d).statistic, abs=1e-12)
        assert row["p_near"] == pytest.approx((weight * near).sum() / weight.sum(), rel=1e-9)
        assert row["p_near_flat"] == pytest.approx(near.mean(), rel=1e-9)
        assert row["reference_rank"] == stats.rankdata(energy)[d.argmin()]
    assert "barrier" not in frame


def test_groups_do_not_see_each_other(poses: AnnData):
    together = funnels(poses, distance="rmsd", use_rep="X_pose", groupby="complex", scale=2.0)
    for name in NAMES:
        alone = funnels(poses[poses.obs["complex"] == name].copy(), distance="rmsd", use_rep="X_pose", scale=2.0)
        assert alone.index.tolist() == ["all"]
        pd.testing.assert_series_equal(alone.loc["all"], together.loc[name], check_names=False)


def test_reference(poses: AnnData, round_trip: RoundTrip):
    part = poses[poses.obs["complex"] == NAMES[0]].copy()
    scs.tl.funnel(part, reference="pose/0", use_rep="X_pose", n_neighbors=20)
    written = part.obs["scscore_reference_distance"]
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, part.obs["rmsd"], rtol=1e-6)
    scale = json.loads(part.uns["scscore_funnel"]["params"])["scale"]
    assert (written <= scale * (1 + 1e-6)).sum() == 21  # the reference and its 20 nearest
    by_column = funnels(part, distance="rmsd", use_rep="X_pose", n_neighbors=20, scale=scale)
    pd.testing.assert_frame_equal(scs.get.funnel(part), by_column)
    assert by_column.loc["all", "p_near"] > 0.9
    round_trip(part)


def test_a_deeper_trap_has_a_higher_barrier():
    """Points on a line: the barrier is what the lowest point of a side valley has to climb."""
    x = np.linspace(0, 10, 4001)
    valley = 3 * np.exp(-((x - 5) ** 2) / 0.5)  # a hill between the reference at 0 and a valley behind it
    line = AnnData(np.zeros((4001, 1), dtype=np.float32), obsm={"X_line": x[:, None]})
    line.obs["scscore_energy"] = valley
    line.obs["distance"] = x
    assert funnels(line, distance="distance", use_rep="X_line").loc["all", "barrier"] == pytest.approx(3, abs=0.05)
    line.obs["scscore_energy"] = valley - x / 100  # the valley behind the hill is a little deeper than the reference
    for one in (line, line[::-1].copy()):  # the reference is the first point, or the last
        trap = funnels(one, distance="distance", use_rep="X_line").loc["all", "barrier"]
        assert trap == pytest.approx(3 - 0.05 + 0.1, abs=0.02)
    line.obs["scscore_energy"] = x
    assert funnels(line, distance="distance", use_rep="X_line").loc["all", "barrier"] == 0


def test_small_groups(poses: AnnData, round_trip: RoundTrip):
    part = poses[:6].copy()
    part.obs["complex"] = pd.Categorical(["one", "two", "two", "three", "three", "three"])
    scs.tl.funnel(part, distance="rmsd", use_rep="X_pose", groupby="complex", scale=3.0)
    frame = scs.get.funnel(part)
    assert frame["n"].to_dict() == {"one": 1, "three": 3, "two": 2}
    assert frame["spearman"].isna().to_dict() == {"one": True, "three": False, "two": True}
    assert frame["p_near"].notna().all() and frame.loc["one", "barrier"] == 0
    round_trip(part)


def test_points_without_a_group_are_left_out(poses: AnnData, caplog: pytest.LogCaptureFixture):
    expected = funnels(poses[poses.obs["complex"] != "3DEF"].copy(), distance="rmsd", groupby="complex")
    poses.obs["complex"] = poses.obs["complex"].cat.remove_categories("3DEF")
    with caplog.at_level("INFO", logger="scscore"):
        found = funnels(poses, distance="rmsd", groupby="complex")
    pd.testing.assert_frame_equal(found, expected)
    assert "500 of 1500 points have no group in obs['complex'] and are left out" in caplog.text
    assert "uns['scscore_funnel']" in caplog.text


def test_groups_may_be_whole_numbers(poses: AnnData):
    poses.obs["number"] = poses.obs["complex"].cat.codes.to_numpy() * 5
    assert funnels(poses, distance="rmsd", groupby="number").index.tolist() == ["0", "5", "10"]


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")  # writing turns a view into a copy
def test_views_copies_and_keys(poses: AnnData):
    before = poses.copy()
    funnels(poses, reference="pose/0", use_rep="X_pose")
    assert_equal(poses, before)
    view = poses[:500]
    assert view.is_view
    scs.tl.funnel(view, distance="rmsd")
    assert scs.get.funnel(view)["n"].tolist() == [500]
    assert_equal(poses, before)
    poses.obs["mine_energy"] = poses.obs.pop("scscore_energy")
    scs.tl.funnel(poses, distance="rmsd", key_added="mine")
    assert set(poses.uns) == {"mine_funnel"}


REFUSED = [
    ({}, ValueError, "give either distance= .* or reference= .*, got neither"),
    ({"distance": "rmsd", "reference": "pose/0"}, ValueError, "give either distance= .* got both"),
    ({"distance": "lrmsd"}, KeyError, "distance='lrmsd' is not a column of adata.obs; available: "),
    ({"distance": "complex"}, ValueError, r"obs\['complex'\] must hold numbers, found category"),
    ({"distance": "score"}, ValueError, "distance='score' must not be negative, found 750 of 1500 values below zero"),
    ({"distance": "holes"}, ValueError, r"obs\['holes'\] holds NaN or infinite values in 3 of 1500 cells"),
    ({"distance": ["rmsd"]}, TypeError, "distance must be a name"),
    ({"reference": "pose/0"}, ValueError, "reference='pose/0' needs use_rep="),
    (
        {"reference": "nobody", "use_rep": "X_pose"},
        KeyError,
        "reference='nobody' is not in adata.obs_names, which start",
    ),
    ({"reference": "pose/0", "use_rep": "X"}, KeyError, "use_rep='X' is not in adata.obsm"),
    ({"distance": "rmsd", "groupby": "type"}, KeyError, "groupby='type' is not a column of adata.obs"),
    ({"distance": "rmsd", "groupby": "rmsd"}, ValueError, "groupby='rmsd' is continuous"),
    ({"distance": "rmsd", "groupby": "empty"}, ValueError, "groupby='empty' holds no group: all 1500"),
    ({"distance": "rmsd", "scale": 0}, ValueError, "scale must be a positive number, got 0"),
    ({"distance": "rmsd", "temperature": -1.0}, ValueError, "temperature must be a positive number, got -1.0"),
    ({"distance": "rmsd", "n_neighbors": 0}, ValueError, "n_neighbors must be a positive integer, got 0"),
    ({"distance": "zero"}, ValueError, "a fifth of the median distance, which is 0 here: .* give scale="),
    ({"distance": "rmsd", "key_added": "mine"}, KeyError, r"obs\['mine_energy'\] is missing .*: run scscore.tl.energy"),
]


@pytest.mark.parametrize(("kwargs", "error", "message"), REFUSED)
def test_bad_arguments(poses: AnnData, kwargs: dict[str, Any], error: type[Exception], message: str):
    poses.obs["score"] = np.tile([-1.0, 1.0], 750)
    poses.obs["holes"] = np.r_[[np.nan] * 3, np.zeros(1497)]
    poses.obs["zero"] = np.r_[1.0, np.zeros(1499)]
    poses.obs["empty"] = pd.Categorical([None] * 1500, categories=["a"])
    before = poses.copy()
    with pytest.raises(error, match=message):
        scs.tl.funnel(poses, **kwargs)
    assert_equal(poses, before)


def test_a_name_of_two_points_is_no_reference(poses: AnnData):
    poses.obs_names = ["twice", "twice", *poses.obs_names[2:]]
    with pytest.raises(ValueError, match="reference='twice' is the name of 2 points; run adata.obs_names_make_unique"):
        scs.tl.funnel(poses, reference="twice", use_rep="X_pose")
