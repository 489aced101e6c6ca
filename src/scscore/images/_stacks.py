"""``images.from_arrays``, ``images.from_folder``: images as AnnData; ``images.stack``: the images, or values of their pixels, as an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from scscore._version import __version__
from scscore.io.pixels import IMAGES, PixelGrid, image_stack, intensity_factor
from scscore.io.readers import values_of

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"}
_MOST_CHANNELS = 4
_MODES = {"1": "L", "LA": "L", "P": "RGB", "RGBA": "RGB"}
"""Modes of PIL without opacity and palettes."""


def from_arrays(
    images: ArrayLike,
    *,
    obs: pd.DataFrame | None = None,
    channels: Sequence[str] | None = None,
    channel_axis: int | None = None,
) -> AnnData:
    """A stack of images as AnnData: one row per image, one variable per pixel.

    Parameters
    ----------
    images
        ``(n, height, width)``, ``(n, height, width, n_channels)`` or ``(n, n_channels, height, width)``. Unsigned integers stand for
        intensities between 0 and 1 (255 of 8 bits is 1), other numbers for themselves.
    obs
        What is known of every image, such as its class, ``(n, ...)``; its index names the images.
    channels
        Names of the channels. ``None``: ``"intensity"`` for one, ``"red", "green", "blue"`` for three, else numbers.
    channel_axis
        Where the channels are, 1 or -1. ``None``: where one axis only is short (four at most).

    Returns
    -------
    AnnData without ``X``, with

    - ``obsm["single_cell_images"]``: the images, ``(n, n_channels, height, width)``, as in scPortrait; the type of the numbers is kept;
    - ``var``: ``channel``, ``row``, ``column`` of every pixel, named ``channel_row_column``;
    - ``uns["single_cell_images"]``: ``channel_names``, ``image_size`` (height, width), ``version``.

    Raises
    ------
    TypeError
        `images` are no numbers, or `obs` is no DataFrame.
    ValueError
        Another shape, no images, an axis of channels that is not clear, NaN or infinite values, signed whole numbers, `obs` or `channels` of
        another length, repeated names.

    Examples
    --------
    >>> import numpy as np
    >>> import scscore as scs
    >>> cells = scs.images.from_arrays(np.zeros((5, 8, 6, 3), dtype=np.uint8))
    >>> cells.shape, cells.obsm["single_cell_images"].shape, cells.var_names[0]
    ((5, 144), (5, 3, 8, 6), 'red_0_0')
    """
    found = np.asarray(images)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"images must be an array of numbers, got {type(images).__name__} of {found.dtype}.")
    if found.ndim not in (3, 4) or 0 in found.shape:
        raise ValueError(
            "images must have shape (n, height, width), (n, height, width, n_channels) or (n, n_channels, height, width), none of "
            f"them zero, got {found.shape}."
        )
    if obs is not None and not isinstance(obs, pd.DataFrame):
        raise TypeError(f"obs must be a DataFrame with one row per image, got {type(obs).__name__}.")
    if obs is not None and len(obs) != len(found):
        raise ValueError(f"obs has {len(obs)} rows, and there are {len(found)} images.")
    last = _channels_last(found.shape, channel_axis)
    if found.ndim == 3:
        found = found[:, None]
    elif last:
        found = np.moveaxis(found, -1, 1)
    found = found.astype(np.uint8) * np.uint8(255) if found.dtype.kind == "b" else found
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        rows = int((~np.isfinite(found)).any(axis=(1, 2, 3)).sum())
        raise ValueError(f"images hold NaN or infinite values in {rows} of {len(found)} images; remove or impute them.")
    if found.dtype.kind == "i":
        raise ValueError(
            f"images are {found.dtype}, of which nothing says how large an intensity may be: convert them, "
            "images.astype(np.uint8) if 255 is white, images.astype(np.uint16) if 65535 is."
        )
    names = _names(channels, found.shape[1])
    grid = PixelGrid(names, *found.shape[2:])
    obs = pd.DataFrame(index=[f"image_{i}" for i in range(len(found))]) if obs is None else obs.copy()
    obs.index = obs.index.astype(str)
    if obs.index.has_duplicates:
        raise ValueError(f"obs names {int(obs.index.duplicated().sum())} images twice; give every image its own name.")
    what = {
        "channel_names": np.array(names, dtype=object),
        "image_size": np.array(found.shape[2:]),
        "version": __version__,
    }
    return AnnData(obs=obs, var=grid.var(), obsm={IMAGES: np.array(found, order="C")}, uns={IMAGES: what})


def from_folder(
    path: str | os.PathLike[str], *, size: tuple[int, int] | None = None, mode: str | None = None
) -> AnnData:
    """The image files of a folder as AnnData; see :func:`from_arrays`.

    Parameters
    ----------
    path
        The folder. Its subfolders, if there are any, are the classes; they may hold further folders.
    size
        Height and width that all images are brought to (bilinear). ``None``: they must have one size.
    mode
        Mode of `PIL <https://pillow.readthedocs.io/en/stable/handbook/concepts.html#modes>`_ that all are brought to: ``"L"`` for one channel,
        ``"RGB"`` for three. ``None``: that of the first image, without opacity.

    Returns
    -------
    As :func:`from_arrays`, images in the order of their paths, with ``obs["path"]``, relative to the folder, and ``obs["label"]``, the
    subfolder (categorical), unless there is none.

    Raises
    ------
    FileNotFoundError
        No such folder.
    ValueError
        No images in it, a file that cannot be read or holds several pages, images of several sizes without `size`.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"path={str(path)!r} is not a folder.")
    if size is not None and (len(np.atleast_1d(size)) != 2 or min(size) < 1):
        raise ValueError(f"size must be a pair of positive integers, height and width, got {size!r}.")
    files = sorted(
        file
        for file in root.rglob("*")
        if file.suffix.lower() in _SUFFIXES and file.is_file() and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(f"path={str(path)!r} holds no images ({', '.join(sorted(_SUFFIXES))}).")
    images: list[NDArray[Any]] = []
    for file in files:
        try:
            with Image.open(file) as image:
                if (pages := getattr(image, "n_frames", 1)) > 1:
                    raise ValueError(f"it holds {pages} pages; make the channels an array, and use from_arrays")
                mode = mode or _MODES.get(image.mode, image.mode)
                one = image.convert(mode)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as an image of mode {mode!r}: {error}.") from error
        images.append(np.asarray(one if size is None else one.resize(size[::-1], Image.Resampling.BILINEAR)))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"images differ in size: {files[0].name} has {images[0].shape}, {file.name} has {images[-1].shape}; pass size=(height, width)."
            )
    relative = [file.relative_to(root) for file in files]
    obs = pd.DataFrame({"path": [str(name.as_posix()) for name in relative]})
    obs.index = obs["path"].to_numpy()
    if all(len(name.parts) > 1 for name in relative):
        obs["label"] = pd.Categorical([name.parts[0] for name in relative])
    return from_arrays(np.stack(images), obs=obs, channel_axis=-1)


def stack(adata: AnnData, values: ArrayLike | None = None) -> NDArray[np.floating]:
    """Images, or any values of their pixels, as an array.

    Parameters
    ----------
    adata
        From :func:`from_arrays`, or what a ``tl`` function made of it: generated images have their pixels in ``X``.
    values
        Values of the variables, ``(n_vars,)`` or ``(..., n_vars)``: a row of ``layers["scscore_attribution"]``, a column of
        ``varm["scscore_attribution"]``. ``None``: the images, as intensities.

    Returns
    -------
    ``(..., n_channels, height, width)``, float32 for the images.

    Raises
    ------
    ValueError
        The variables of `adata` are no pixels of whole images, or `values` has another length.
    """
    if values is None and IMAGES in adata.obsm:
        images = image_stack(adata)
        return np.asarray(images, dtype=np.float32) * np.float32(intensity_factor(images.dtype))
    if (grid := PixelGrid.of_names(adata.var_names)) is None:
        raise ValueError(
            f"the variables of adata ({', '.join(adata.var_names[:3])}, ...) are no pixels of whole images, named 'channel_row_column'."
        )
    found: Any = values_of(adata) if values is None else values
    found = found.toarray() if sp.issparse(found) else np.asarray(found)
    if found.ndim == 0 or found.shape[-1] != adata.n_vars:
        raise ValueError(f"values must have shape (..., {adata.n_vars}), one per pixel, got {found.shape}.")
    return found.reshape(*found.shape[:-1], *grid.shape)


def _channels_last(shape: tuple[int, ...], axis: int | None) -> bool:
    if axis not in (None, 1, -1):
        raise ValueError(f"channel_axis must be 1 or -1, got {axis!r}.")
    if axis is not None or len(shape) == 3:
        return axis == -1
    short = [shape[i] <= _MOST_CHANNELS for i in (1, -1)]
    if short[0] == short[1]:
        raise ValueError(
            f"images have shape {shape}: say with channel_axis=1 or channel_axis=-1 where the channels are."
        )
    return short[1]


def _names(channels: Sequence[str] | None, n: int) -> tuple[str, ...]:
    if channels is None:
        return {1: ("intensity",), 3: ("red", "green", "blue")}.get(n, tuple(f"channel{i}" for i in range(n)))
    names = tuple(str(name) for name in channels)
    if isinstance(channels, str) or len(names) != n or len(set(names)) < n:
        raise ValueError(f"channels must be {n} different names, one per channel, got {channels!r}.")
    return names
