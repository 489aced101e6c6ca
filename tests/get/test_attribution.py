"""``get.attribution``: the stored slots as classes x genes, in the form that other tools take."""

import json

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData

import scscore as scs

CLASSES = ["B", "CD4+/CD25", "造血", "empty"]
FILLED = CLASSES[:3]


@pytest.fixture
def cells() -> AnnData:
    """Slots as ``tl.attribute`` writes them; no cell has the class ``empty``, one has ``造血``."""
    rng, n_genes = np.random.default_rng(0), 6
    labels = ["CD4+/CD25", "B", "B", "造血", "CD4+/CD25"]
    adata = AnnData(
        rng.random((5, n_genes), dtype=np.float32),
        obs=pd.DataFrame({"type": pd.Categorical(labels)}, index=[f"cell{i}" for i in range(5)]),
        var=pd.DataFrame({"symbol": list("uvwxyz")}, index=[f"g{i}" for i in range(n_genes)]),
    )
    mean = rng.normal(size=(n_genes, 4)).astype(np.float32)
    presence, se = mean * rng.random(mean.shape, dtype=np.float32), abs(mean) / 10
    mean[:, 3] = presence[:, 3] = se[:, 3] = se[:, 2] = np.nan
    adata.varm["scscore_attribution"], adata.varm["scscore_attribution_se"] = mean, se
    adata.varm["scscore_attribution_presence"] = presence
    adata.uns["scscore_attribution"] = {
        "classes": np.array(CLASSES, dtype=object),
        "n_cells": np.array([2, 2, 1, 0]),
        "baseline": np.array([0.5, -1.0, 2.0, np.nan]),
        "params": json.dumps({"condition": "type", "reference": "rest", "target": "type"}),
    }
    return adata


def test_values_are_what_is_stored_also_from_files(cells, tmp_path):
    cells.write_h5ad(tmp_path / "a.h5ad")
    cells.write_zarr(tmp_path / "a.zarr")
    for adata in (cells, ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        found = scs.get.attribution(adata)
        assert found.obs_names.tolist() == FILLED and found.var.equals(cells.var)
        assert found.X.dtype == np.float32
        assert (found.X == cells.varm["scscore_attribution"].T[:3]).all()
        assert (found.layers["presence"] == cells.varm["scscore_attribution_presence"].T[:3]).all()
        np.testing.assert_array_equal(found.layers["se"], cells.varm["scscore_attribution_se"].T[:3])
        np.testing.assert_allclose(found.layers["presence"] + found.layers["absence"], found.X, atol=1e-6)
        assert found.obs["n_cells"].tolist() == [2, 2, 1]
        assert found.obs["baseline"].tolist() == [0.5, -1.0, 2.0]
        assert json.loads(found.uns["params"])["reference"] == "rest"


def test_a_copy_that_can_be_written(cells, tmp_path):
    before = cells.copy()
    found = scs.get.attribution(cells)
    found.X[:] = 7
    found.layers["presence"][:] = 7
    found.var["symbol"] = "a"
    assert (cells.varm["scscore_attribution"][:, :3] == before.varm["scscore_attribution"][:, :3]).all()
    assert cells.var.equals(before.var)
    found.write_h5ad(tmp_path / "b.h5ad")
    assert ad.read_h5ad(tmp_path / "b.h5ad").obs["type"].tolist() == FILLED


def test_colors_follow_the_names(cells):
    assert "type_colors" not in scs.get.attribution(cells).uns
    cells.uns["type_colors"] = ["#00000b", "#0000cd", "#000123"]  # of the categories in their order
    assert cells.obs["type"].cat.categories.tolist() == ["B", "CD4+/CD25", "造血"]
    assert scs.get.attribution(cells).uns["type_colors"] == ["#00000b", "#0000cd", "#000123"]
    cells.obs["type"] = cells.obs["type"].cat.reorder_categories(["造血", "B", "CD4+/CD25"])
    assert scs.get.attribution(cells).uns["type_colors"] == ["#0000cd", "#000123", "#00000b"]


def test_colors_of_the_predicted_label_where_the_condition_has_none(cells):
    cells.obs["scscore_label"] = pd.Categorical(["unknown", *FILLED, "B"], categories=["unknown", *FILLED])
    cells.uns["scscore_label_colors"] = ["#000000", "#111111", "#222222", "#333333"]
    assert scs.get.attribution(cells).uns["type_colors"] == ["#111111", "#222222", "#333333"]
    cells.uns["scscore_label_colors"] = ["#000000"]  # fewer than categories: of something else
    assert "type_colors" not in scs.get.attribution(cells).uns


def test_scanpy_plots_take_it(cells):
    cells.uns["type_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    found = scs.get.attribution(cells)
    drawn = sc.pl.matrixplot(found, ["g4", "g1"], groupby="type", layer="presence", return_fig=True)
    np.testing.assert_array_equal(drawn.values_df.to_numpy(), found[:, ["g4", "g1"]].layers["presence"])
    sc.pl.heatmap(found, ["g4", "g1"], groupby="type", show=False)
    plt.close("all")


def test_a_subset_of_genes_keeps_its_values(cells):
    found = scs.get.attribution(cells[:, ["g5", "g2"]].copy())
    assert (found.X == scs.get.attribution(cells)[:, ["g5", "g2"]].X).all()


def test_errors_name_the_fix(cells):
    with pytest.raises(KeyError, match=r"uns\['other_attribution'\].*run scscore\.tl\.attribute first"):
        scs.get.attribution(cells, key="other")
    for slot in ("scscore_attribution", "scscore_attribution_se", "scscore_attribution_presence"):
        without = cells.copy()
        del without.varm[slot]
        with pytest.raises(KeyError, match=rf"varm\['{slot}'\] is missing.*run scscore\.tl\.attribute"):
            scs.get.attribution(without)
    cells.varm["scscore_attribution_se"] = np.zeros((6, 2))
    with pytest.raises(ValueError, match=r"shape \(6, 2\).*4 classes.*again"):
        scs.get.attribution(cells)
