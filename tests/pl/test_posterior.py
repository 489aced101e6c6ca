import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

import scscore as scs
from scscore.pl._base import palette


def image_of(ax):
    return np.asarray(ax.images[0].get_array())


def names_of(labels):
    return [label.get_text() for label in labels]


def bar_colors(ax):
    bar = next(child for child in ax.child_axes if child.patches)
    return [to_hex(patch.get_facecolor()) for patch in bar.patches]


def bar_label(ax):
    return next(child.get_ylabel() for child in ax.child_axes if child.get_ylabel())


@pytest.mark.parametrize("n_classes", [3, 60])
@pytest.mark.parametrize("groupby", [None, "class"])
def test_cells_sorted_within_groups(classified, n_classes, groupby):
    adata = classified(n_classes)
    column = groupby or "scscore_label"
    ax = scs.pl.posterior(adata, groupby=groupby, cells_per_group=20, show=False)
    order = [name for name in adata.obs[column].cat.categories if (adata.obs[column] == name).any()]
    frame = scs.get.posterior(adata)
    columns = order + [name for name in frame if name not in order]
    assert names_of(ax.get_xticklabels()) == columns
    assert names_of(ax.get_yticklabels()) == [f"{name} ({(adata.obs[column] == name).sum()})" for name in order]
    image = image_of(ax)
    assert image.shape == (20 * len(order), n_classes)
    for g, name in enumerate(order):
        cells = frame.loc[adata.obs[column] == name, columns].sort_values(name, ascending=False)
        block = image[20 * g : 20 * (g + 1)]
        assert (np.diff(block[:, g]) <= 0).all()
        if len(cells) == 20:  # every cell once
            np.testing.assert_array_equal(block[:, g], cells[name])
            np.testing.assert_allclose(np.sort(block, axis=0), np.sort(cells, axis=0))
    assert bar_label(ax) == "posterior"
    assert ax.images[0].get_clim() == (0, 1)


def test_rows_are_quantiles_of_large_and_small_groups(classified):
    adata = classified(3)
    adata.obs["part"] = pd.Categorical(["a"] * 2 + ["b"] * 58)
    image = image_of(scs.pl.posterior(adata, groupby="part", cells_per_group=4, show=False))
    frame = scs.get.posterior(adata)
    a = frame.iloc[:2].sort_values("a", ascending=False).to_numpy()
    np.testing.assert_array_equal(image[:4], a[[0, 0, 1, 1]])
    b = frame.iloc[2:].sort_values("b", ascending=False).to_numpy()
    np.testing.assert_array_equal(image[4:, 1], b[[7, 21, 36, 50], 1])


@pytest.mark.parametrize("n_classes", [3, 60])
def test_mean(classified, n_classes):
    adata = classified(n_classes)
    ax = scs.pl.posterior(adata, groupby="class", kind="mean", show=False)
    order = adata.obs["class"].cat.categories.tolist()
    expected = scs.get.posterior(adata).groupby(adata.obs["class"], observed=True).mean().loc[order, order]
    np.testing.assert_allclose(image_of(ax), expected, rtol=1e-4, atol=1e-7)
    texts = [text.get_text() for text in ax.texts]
    assert texts == ([f"{value:.2f}" for value in image_of(ax).ravel()] if n_classes == 3 else [])
    assert bar_label(ax) == "mean posterior"


def test_groups_that_are_no_classes(classified):
    adata = classified(3)
    frame = scs.get.posterior(adata)
    adata.obs["cluster"] = adata.obs["scscore_label"].map({"a": 2, "b": 0, "c": 1}).astype(int)
    ax = scs.pl.posterior(adata, groupby="cluster", cells_per_group=10, show=False)
    assert names_of(ax.get_xticklabels()) == ["b", "c", "a"]
    assert [name.split()[0] for name in names_of(ax.get_yticklabels())] == ["0", "1", "2"]
    adata.obs["donor"] = pd.Categorical(["d"] * adata.n_obs)
    ax = scs.pl.posterior(adata, groupby="donor", cells_per_group=adata.n_obs, show=False)
    image, columns = image_of(ax), names_of(ax.get_xticklabels())
    assert (np.diff(image.argmax(1)) >= 0).all()
    np.testing.assert_allclose(np.bincount(image.argmax(1)), frame.idxmax(axis=1).value_counts()[columns])
    for k in range(3):
        assert (np.diff(image[image.argmax(1) == k, k]) <= 0).all()


def test_unlabelled_cells_and_category_order(classified):
    adata = classified(3)
    adata.obs["class"] = adata.obs["class"].cat.reorder_categories(["c", "a", "b"]).cat.add_categories("empty")
    adata.obs.loc[adata.obs["class"] == "a", "class"] = np.nan
    ax = scs.pl.posterior(adata, groupby="class", kind="mean", show=False)
    assert names_of(ax.get_yticklabels()) == ["c (20)", "b (20)"]
    assert names_of(ax.get_xticklabels()) == ["c", "b", "a"]


def test_colors(classified):
    adata = classified(3)
    before = set(adata.uns)
    assert bar_colors(scs.pl.posterior(adata, groupby="class", show=False)) == palette(3)
    assert set(adata.uns) == before  # written nowhere
    adata.uns["class_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    assert bar_colors(scs.pl.posterior(adata, groupby="class", show=False)) == ["#ff0000", "#00ff00", "#0000ff"]
    adata.obs["class"] = adata.obs["class"].where(adata.obs["class"] != "a")
    assert bar_colors(scs.pl.posterior(adata, groupby="class", show=False)) == ["#00ff00", "#0000ff"]
    adata.uns["class_colors"] = ["#ff0000"]  # too few
    assert bar_colors(scs.pl.posterior(adata, groupby="class", show=False)) == palette(2)


@pytest.mark.parametrize("n", [1, 8, 10, 60, 200])
def test_palette(n):
    colors = palette(n)
    assert len(set(colors)) == len(colors) == n
    rgb = np.array([to_rgb(color) for color in colors])
    assert (np.abs(np.diff(rgb, axis=0)).max(1) > 0.05).all()


def test_names_with_slash_and_unicode(classified):
    adata = classified(3)
    names = ["CD4+/CD25 T Reg", "Übergang α→β", "naïve"]
    adata.uns["scscore"]["classes"] = np.array(names, dtype=object)
    adata.obs["scscore_label"] = adata.obs["scscore_label"].cat.rename_categories(names)
    ax = scs.pl.posterior(adata, show=False)
    assert names_of(ax.get_xticklabels()) == names
    assert names_of(ax.get_yticklabels())[1].startswith("Übergang α→β (")


def test_bad_input(classified):
    adata = classified(3)
    with pytest.raises(KeyError, match="run scscore.tl.classify first"):
        scs.pl.posterior(scs.datasets.toy_gaussians(n_obs=6))
    with pytest.raises(KeyError, match="groupby='nothing' is not a column of adata.obs; available"):
        scs.pl.posterior(adata, groupby="nothing")
    with pytest.raises(ValueError, match="groupby='scscore_entropy' is continuous"):
        scs.pl.posterior(adata, groupby="scscore_entropy")
    with pytest.raises(ValueError, match="kind must be 'cells' or 'mean', got 'median'"):
        scs.pl.posterior(adata, kind="median")
    with pytest.raises(ValueError, match="cells_per_group must be a positive integer, got 0"):
        scs.pl.posterior(adata, cells_per_group=0)
    adata.obs["empty"] = pd.Categorical([None] * adata.n_obs, categories=["a"])
    with pytest.raises(ValueError, match="groupby='empty' holds no labelled cell"):
        scs.pl.posterior(adata, groupby="empty")
