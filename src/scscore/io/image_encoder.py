"""Images as points: what :class:`~scscore.ScoreModel` asks of an encoder, for networks that take images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor, nn

from scscore.io.gene_space import Map, RidgeDecoder
from scscore.io.pixels import PixelGrid
from scscore.io.readers import MatrixReader
from scscore.io.representation import Matrix, check_values

_ROWS, _SAMPLE = 512, 8


class ImageEncoder:
    """Points of a differentiable network of images; see :class:`~scscore.io.representation.Representation`.

    Parameters
    ----------
    network
        From images ``(n, n_channels, height, width)``, float32 intensities, to points ``(n, n_features)``, without randomness.
        A module is used in evaluation mode.
    grid
        Channels and size of the images.
    decoder
        From points back to pixels, as far as that is linear.
    """

    def __init__(self, network: Map, grid: PixelGrid, decoder: RidgeDecoder) -> None:
        self.network = network.eval() if isinstance(network, nn.Module) else network
        self.grid, self.decoder, self.n_features, self.n_scores = grid, decoder, len(decoder.center), 0

    @classmethod
    def fit(cls, network: Map, grid: PixelGrid, pixels: NDArray[np.float32]) -> tuple[Self, Matrix]:
        """The encoder with a decoder for these training images, pixels ``(n, n_vars)``, and their points ``(n, n_features)``.

        Raises
        ------
        ValueError
            The network does not give finite points, one row per image, is random or constant.
        """
        if isinstance(network, nn.Module):
            network.eval()
        points = encoded(network, grid, pixels)
        some = pixels[:_SAMPLE]
        if not np.allclose(encoded(network, grid, some), points[: len(some)], rtol=1e-3, atol=1e-3 * points.std()):
            raise ValueError("encoder gives other points when it is called again: it must be without randomness.")
        if (points == points[0]).all():
            raise ValueError("encoder gives the same point for all images.")
        return cls(network, grid, RidgeDecoder.fit([(0, pixels)], points)), points

    @property
    def genes(self) -> NDArray[np.str_]:
        """Names of the pixels."""
        return self.grid.names

    def __call__(self, pixels: Tensor) -> Tensor:
        """Points ``(n, n_features)`` of pixels ``(n, n_vars)``, differentiable."""
        return _called(self.network, pixels.reshape(-1, *self.grid.shape))

    def decode(self, points: Matrix) -> Matrix:
        """Pixels ``(n, n_vars)`` of points, as far as they are a linear function of them."""
        return self.decoder.decode(points)

    def check_differentiable(self, pixels: Tensor) -> None:
        """Raise ValueError unless gradients come through to these pixels, ``(n, n_vars)``."""
        x = pixels.clone().requires_grad_()
        try:
            (gradient,) = torch.autograd.grad(self(x).sum(), x)
        except RuntimeError as error:
            raise ValueError(f"encoder is not differentiable, which attributions need: {error}") from error
        if not gradient.any():
            raise ValueError("encoder has no gradient (rounded, detached?), which attributions need.")

    def chunks(self, adata: AnnData, *, layer: str | None = None, size: int = 4096) -> Iterator[tuple[int, Matrix]]:
        """First row and points of one chunk of images after the other; all are checked before the first."""
        for start, _, x in self.pixel_chunks(adata, layer=layer, size=size):
            yield start, x

    def pixel_chunks(
        self, adata: AnnData, *, layer: str | None = None, size: int = 4096
    ) -> Iterator[tuple[int, NDArray[np.float32], Matrix]]:
        """First row, pixels ``(n, n_vars)`` and points of one chunk after the other."""
        self.grid.check(adata)
        reader = MatrixReader(adata, layer)
        for _, chunk in reader.chunks():
            check_values(chunk, "pixels")
        for start, chunk in reader.chunks(size):
            pixels = np.ascontiguousarray(chunk, dtype=np.float32)
            yield start, pixels, encoded(self.network, self.grid, pixels)

    def transform(self, adata: AnnData, *, layer: str | None = None) -> Matrix:
        """Points of all images, see :meth:`chunks`."""
        return np.concatenate([x for _, x in self.chunks(adata, layer=layer)])

    def log_depth(self, adata: AnnData, *, layer: str | None = None) -> Matrix | None:
        """``None``: images have no count total."""
        return None

    def summary(self) -> str:
        """What it is, in a few words."""
        name = type(self.network).__name__ if isinstance(self.network, nn.Module) else "function"
        channels, height, width = self.grid.shape
        return f"{name} of images, {channels} x {height} x {width} pixels"


def encoded(network: Map, grid: PixelGrid, pixels: NDArray[np.float32]) -> Matrix:
    """Points of images, float64 ``(n, n_features)``, from pixels ``(n, n_vars)``.

    Raises
    ------
    ValueError
        The network does not give finite points, one row per image.
    """
    with torch.no_grad():
        parts = [
            _called(network, torch.from_numpy(pixels[i : i + _ROWS]).reshape(-1, *grid.shape))
            for i in range(0, len(pixels), _ROWS)
        ]
    tensors = all(isinstance(part, Tensor) for part in parts)
    if (
        not tensors
        or any(part.ndim != 2 for part in parts)
        or parts[0].shape[1] == 0
        or sum(len(part) for part in parts) != len(pixels)
    ):
        found = f"shape {tuple(parts[0].shape)}" if tensors else type(parts[0]).__name__
        raise ValueError(
            f"encoder must be a function from images ({min(_ROWS, len(pixels))}, {', '.join(map(str, grid.shape))}) to points, a tensor of "
            f"shape ({min(_ROWS, len(pixels))}, n_features); it returned {found}."
        )
    points = torch.cat(parts).to(torch.float64).numpy()
    if not np.isfinite(points).all():
        raise ValueError(
            "encoder returned NaN or infinite points; look at its last layers and at the scale of its input."
        )
    return points


def _called(network: Map, images: Tensor) -> Tensor:
    """Points of images, on the CPU, by a network on any device."""
    parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    found = network(images if parameter is None else images.to(parameter.device, parameter.dtype))
    return found.float().cpu() if isinstance(found, Tensor) else found
