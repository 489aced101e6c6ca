"""Fits the encoder of images on all training images and, for honest validation, on the training part of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scscore.images._conv import Conv
from scscore.io.folds import Split
from scscore.io.gene_space import Map
from scscore.io.image_encoder import ImageEncoder, encoded
from scscore.io.pixels import PixelGrid

Array = NDArray[np.float64]


def fit_image_encoder(
    pixels: NDArray[np.float32],
    grid: PixelGrid,
    y: NDArray[np.integer],
    splits: Sequence[Split],
    how: Conv | Map,
    *,
    checkpoint_dir: Path | None,
    **training: Any,
) -> tuple[ImageEncoder, Array, list[tuple[Array, Array]]]:
    """The encoder, its points of all images, and points of training and held-out images of the splits that are of use.

    A trained network places the images that it was trained on better than others. The held-out images of the first split are
    therefore encoded by a network that has not seen them; training then goes on with all images. A function that knows nothing of the
    labels serves all splits.

    Parameters
    ----------
    pixels
        Intensities, ``(n, n_vars)``.
    grid
        Channels and size of the images.
    y
        Class indices, ``(n,)``.
    splits
        Training and held-out rows.
    how
        Settings of the convolutional network, or a function from images to points.
    checkpoint_dir
        Where trained networks are kept, and read from.
    **training
        `seed`, `progress` and the arguments of Lightning, of :func:`scscore.images._training.fit_network`.
    """
    if not isinstance(how, Conv):
        encoder, x = ImageEncoder.fit(how, grid, pixels)
        return encoder, x, [(x[train], x[held_out]) for train, held_out in splits]
    from scscore.images._training import fit_network  # here, because Lightning takes seconds to import

    train, held_out = splits[0]
    content = hashlib.sha256(repr((how, training["seed"])).encode())
    for array in (pixels, y, train):
        content.update(np.ascontiguousarray(array).tobytes())

    def checkpoint(name: str) -> Path | None:
        """A file that belongs to these images, labels and settings alone."""
        return (
            None
            if checkpoint_dir is None
            else checkpoint_dir / f"encoder_{name}_{content.hexdigest()[:16]}.safetensors"
        )

    images = pixels.reshape(-1, *grid.shape)
    first = fit_network(
        images[train], y[train], how, checkpoint=checkpoint("validation"), description="fit: encoder", **training
    )
    points = encoded(first, grid, pixels[train]), encoded(first, grid, pixels[held_out])
    network = fit_network(
        images, y, how, start=first, checkpoint=checkpoint("all"), description="fit: encoder, all images", **training
    )
    encoder, x = ImageEncoder.fit(network, grid, pixels)
    return encoder, x, [points]
