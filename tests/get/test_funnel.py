"""``get.funnel``: the stored arrays as a data frame."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scscore as scs

NAMES = ["CD4+/CD25", "Überbrückung 造血"]


@pytest.fixture
def points() -> AnnData:
    rng = np.random.default_rng(0)
    adata = AnnData(
        np.zeros((20, 1)), obs=pd.DataFrame({"group": pd.Categorical(NAMES * 10)}, index=map(str, range(20)))
    )
    adata.obs["scscore_energy"], adata.obs["d"] = rng.normal(size=20), rng.random(20)
    adata.obsm["X_rep"] = rng.normal(size=(20, 2))
    return adata


def test_frame_is_what_is_stored_also_from_files(points: AnnData, tmp_path):
    scs.tl.funnel(points, distance="d", use_rep="X_rep", groupby="group")
    points.write_h5ad(tmp_path / "a.h5ad")
    points.write_zarr(tmp_path / "a.zarr")
    stored = points.uns["scscore_funnel"]
    for adata in (points, ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        frame = scs.get.funnel(adata)
        assert frame.index.tolist() == NAMES and frame.index.name == "group"
        columns = ["n", "spearman", "p_near", "p_near_flat", "reference", "reference_rank", "barrier"]
        assert frame.columns.tolist() == columns
        for column in columns:
            assert frame[column].tolist() == stored[column].tolist()


def test_without_groups_and_without_representation(points: AnnData):
    scs.tl.funnel(points, distance="d", key_added="scscore")
    frame = scs.get.funnel(points)
    assert frame.index.tolist() == ["all"] and frame.index.name is None
    assert "barrier" not in frame


def test_a_copy(points: AnnData):
    scs.tl.funnel(points, distance="d")
    frame = scs.get.funnel(points)
    frame.loc["all", "n"] = 7
    assert points.uns["scscore_funnel"]["n"].tolist() == [20]


def test_missing(points: AnnData):
    with pytest.raises(KeyError, match=r"uns\['mine_funnel'\] is missing \(key='mine'\): run scscore.tl.funnel first"):
        scs.get.funnel(points, key="mine")
