"""Images as AnnData, and back."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import scscore as scs
from scscore.io.pixels import IMAGES, PixelGrid

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "stored"),
    [
        ((5, 8, 6), (5, 1, 8, 6)),
        ((5, 8, 6, 3), (5, 3, 8, 6)),
        ((5, 3, 8, 6), (5, 3, 8, 6)),
        ((5, 8, 6, 2), (5, 2, 8, 6)),
    ],
)
def test_layouts(shape, stored):
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    cells = scs.images.from_arrays(images)
    found = cells.obsm[IMAGES]
    assert found.shape == stored and found.dtype == np.uint8
    channels_last = shape[-1] in (2, 3)
    np.testing.assert_array_equal(found, np.moveaxis(images, -1, 1) if channels_last else images.reshape(stored))
    np.testing.assert_allclose(scs.images.stack(cells), found / 255, rtol=1e-6)
    assert cells.n_vars == np.prod(stored[1:]) and PixelGrid.of_names(cells.var_names).shape == stored[1:]
    # a pixel is where its name says
    pixel = cells.var.iloc[7]
    values = scs.images.stack(cells, np.arange(cells.n_vars))
    channel = cells.uns[IMAGES]["channel_names"].tolist().index(pixel["channel"])
    assert values[channel, pixel["row"], pixel["column"]] == 7


def test_types_of_numbers():
    images = RNG.random((4, 5, 5))
    as_floats = scs.images.stack(scs.images.from_arrays(images))
    np.testing.assert_allclose(as_floats[:, 0], images, rtol=1e-6)
    sixteen = scs.images.from_arrays((images * 65535).round().astype(np.uint16))
    np.testing.assert_allclose(scs.images.stack(sixteen), as_floats, atol=1e-5)
    binary = scs.images.from_arrays(images > 0.5)
    assert set(np.unique(scs.images.stack(binary))) == {0.0, 1.0}


def test_names_and_files(round_trip):
    obs = pd.DataFrame({"kind": ["a", "b", "a"]}, index=["x", "y", "z"])
    cells = scs.images.from_arrays(np.zeros((3, 2, 4, 4)), obs=obs, channels=["DNA", "tubulin_2"], channel_axis=1)
    assert cells.obs_names.tolist() == ["x", "y", "z"] and cells.obs["kind"].tolist() == ["a", "b", "a"]
    assert cells.var_names[-1] == "tubulin_2_3_3"
    assert PixelGrid.of_names(cells.var_names) == PixelGrid(("DNA", "tubulin_2"), 4, 4)
    assert obs.columns.tolist() == ["kind"]
    round_trip(cells)


@pytest.mark.parametrize("names", [[], ["CD3E", "MS4A1"], ["a_0_0", "a_0_2"], ["a_0_1", "a_0_0"]])
def test_other_names_are_no_pixels(names):
    assert PixelGrid.of_names(names) is None


@pytest.mark.parametrize(
    ("images", "arguments", "error", "message"),
    [
        (np.zeros((3, 4)), {}, ValueError, "must have shape"),
        (np.zeros((0, 4, 4)), {}, ValueError, "none of them zero"),
        (np.array([["a"]]), {}, TypeError, "array of numbers"),
        (np.zeros((2, 4, 4), dtype=int), {}, ValueError, "astype"),
        (np.full((2, 4, 4), np.nan), {}, ValueError, "2 of 2 images"),
        (np.zeros((2, 9, 9, 9)), {}, ValueError, "channel_axis"),
        (np.zeros((2, 3, 9, 3)), {}, ValueError, "channel_axis"),
        (np.zeros((2, 4, 4)), {"channels": ["a", "b"]}, ValueError, "1 different names"),
        (np.zeros((2, 4, 4)), {"obs": pd.DataFrame(index=["a"])}, ValueError, "1 rows"),
        (np.zeros((2, 4, 4)), {"obs": pd.DataFrame(index=["a", "a"])}, ValueError, "twice"),
        (np.zeros((2, 4, 4)), {"obs": ["a", "b"]}, TypeError, "DataFrame"),
    ],
)
def test_bad_arrays(images, arguments, error, message):
    with pytest.raises(error, match=message):
        scs.images.from_arrays(images, **arguments)


def test_folders(tmp_path):
    written = RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    for i, name in enumerate(["cat/b.png", "cat/a.png", "dog/c.png", "dog/deep/d.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(written[i]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    cells = scs.images.from_folder(tmp_path)
    assert cells.obs["path"].tolist() == ["cat/a.png", "cat/b.png", "dog/c.png", "dog/deep/d.png"]
    assert cells.obs["label"].tolist() == ["cat", "cat", "dog", "dog"]
    np.testing.assert_array_equal(cells.obsm[IMAGES], np.moveaxis(written[[1, 0, 2, 3]], -1, 1))
    grey = scs.images.from_folder(tmp_path, size=(4, 3), mode="L")
    assert grey.obsm[IMAGES].shape == (4, 1, 4, 3)
    Image.fromarray(written[0, :3]).save(tmp_path / "dog" / "small.png")
    with pytest.raises(ValueError, match="differ in size"):
        scs.images.from_folder(tmp_path)
    (tmp_path / "dog" / "small.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"small\.png cannot be read"):
        scs.images.from_folder(tmp_path)


def test_files_of_other_kinds(tmp_path):
    pages = [Image.fromarray(RNG.integers(0, 256, (6, 5), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="3 pages"):
        scs.images.from_folder(tmp_path)
    (tmp_path / "pages.tif").unlink()
    Image.fromarray(RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8), "RGBA").save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_text("of another system")
    assert scs.images.from_folder(tmp_path).obsm[IMAGES].shape == (1, 3, 6, 5)
    with pytest.raises(ValueError, match="pair of positive integers"):
        scs.images.from_folder(tmp_path, size=(0, 4))


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        scs.images.from_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no images"):
        scs.images.from_folder(tmp_path)


def test_values_of_other_shapes(counts):
    with pytest.raises(ValueError, match="no pixels"):
        scs.images.stack(counts)
    cells = scs.images.from_arrays(np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"\(\.\.\., 9\)"):
        scs.images.stack(cells, np.zeros(5))
