"""Plots of images show the images, and colours that mean what they say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes

import scscore as scs
from scscore.io.pixels import IMAGES
from scscore.pl._mosaic import as_rgb

SIZE = (6, 5)


@pytest.fixture
def cells() -> AnnData:
    """Ten images, and attributions that are positive in the left half and negative in the right one."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"class": ["a", "b"] * 5, "score": rng.random(10)}, index=[f"cell{i}" for i in range(10)])
    cells = scs.images.from_arrays(rng.integers(0, 256, (10, *SIZE, 3), dtype=np.uint8), obs=obs)
    parts = np.where(cells.var["column"] < 2, 1.0, np.where(cells.var["column"] > 2, -2.0, 0.0)).astype(np.float32)
    cells.layers["scscore_attribution"] = np.tile(parts, (10, 1))
    for name, shape in (("", (2,)), ("_se", (2,)), ("_presence", (2,))):
        cells.varm[f"scscore_attribution{name}"] = np.zeros((cells.n_vars, *shape), dtype=np.float32)
    cells.obs["scscore_target"] = pd.Categorical(["a", "b"] * 5)
    cells.obs["scscore_runner_up"] = pd.Categorical(["b", "a"] * 5)
    cells.obs["scscore_evidence"] = np.arange(10, dtype=np.float32)
    cells.obs["scscore_evidence_baseline"] = np.zeros(10, dtype=np.float32)
    cells.uns["scscore_attribution"] = {
        "classes": np.array(["a", "b"], dtype=object),
        "n_cells": np.array([5, 5]),
        "baseline": np.zeros(2),
        "completeness": 0.0,
        "params": '{"condition": "class", "reference": "runner-up", "target": null}',
        "model_hash": "",
        "version": "0",
    }
    return cells


def tiles(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in ax.images]


def test_images_are_shown_as_they_are(cells):
    ax = scs.pl.image_grid(cells, ["cell3", "cell0"], titles=["class", "score"], show=False)
    expected = np.moveaxis(cells.obsm[IMAGES][[3, 0]], 1, -1) / 255
    np.testing.assert_allclose(tiles(ax)[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(tiles(ax)[1], expected[1], atol=1e-6)
    assert [text.get_text() for text in ax.texts] == [
        f"b\n{cells.obs['score'].iloc[3]:.2f}",
        f"a\n{cells.obs['score'].iloc[0]:.2f}",
    ]
    box = ax.images[0].get_window_extent()
    np.testing.assert_allclose(box.height / box.width, SIZE[0] / SIZE[1], rtol=0.02)


def test_red_speaks_for_and_blue_against(cells):
    ax = scs.pl.image_attribution(cells, ["cell1", "cell4"], show=False)
    shown = tiles(ax)
    assert len(shown) == 4
    red, blue = shown[2][..., 0], shown[2][..., 2]
    assert (red[:, :2] > blue[:, :2]).all() and (blue[:, 3:] > red[:, 3:]).all()
    np.testing.assert_allclose(shown[2][:, 2, 0], shown[2][:, 2, 2])  # nothing: grey
    assert ax.texts[0].get_text() == "b\nagainst a\n1.0 nats"


@pytest.mark.parametrize("n_channels", [1, 2, 5])
def test_other_channels_are_grey(n_channels):
    images = np.random.default_rng(0).random((2, n_channels, 4, 4))
    colours = as_rgb(images)
    np.testing.assert_allclose(colours, np.repeat(images.mean(1)[..., None], 3, -1))


def test_intensities_above_one_are_scaled():
    images = 4000 * np.random.default_rng(0).random((2, 1, 20, 20))
    assert 0.95 < as_rgb(images).max() <= 1 and as_rgb(images).mean() > 0.4


def test_one_convention(cells, monkeypatch):
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    steps = cells[:6].copy()
    steps.obs["image"] = pd.Categorical(np.repeat(["noised", "a"], 3), categories=["noised", "a"])
    steps.obs["log_snr"] = np.tile([5.0, 0.0, -5.0], 2)
    for plot in (
        lambda **more: scs.pl.image_grid(cells, **more),
        lambda **more: scs.pl.image_attribution(cells, **more),
        lambda **more: scs.pl.image_trajectory(steps, **more),
    ):
        assert isinstance(plot(show=False), Axes)
        assert plot(show=True) is None
        figure = plot(return_fig=True)
        figure.draw_without_rendering()
        box = figure.axes[0].get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        _, given = plt.subplots()
        assert plot(ax=given) is given
    assert len(calls) == 3


def test_messages(cells, counts):
    with pytest.raises(KeyError, match="nobody"):
        scs.pl.image_grid(cells, ["cell0", "nobody"])
    with pytest.raises(KeyError, match="titles="):
        scs.pl.image_grid(cells, titles="kind")
    with pytest.raises(ValueError, match="no pixels"):
        scs.pl.image_grid(counts)
    with pytest.raises(KeyError, match=r"scscore\.tl\.image_trajectory"):
        scs.pl.image_trajectory(cells)
    del cells.layers["scscore_attribution"]
    with pytest.raises(KeyError, match="per_cell=True"):
        scs.pl.image_attribution(cells)
