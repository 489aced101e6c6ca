"""Images in an AnnData: a stack in ``obsm``, and its pixels as variables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

IMAGES = "single_cell_images"
"""Slot of ``obsm`` with the stack ``(n_obs, n_channels, height, width)``, and of ``uns`` with what is known about it; as in scPortrait."""

_NAME = re.compile(r"(?P<channel>.+)_(?P<row>\d+)_(?P<column>\d+)")


@dataclass(frozen=True)
class PixelGrid:
    """Channels, height and width of images, whose pixels are variables in this order: channel by channel, row by row.

    Attributes
    ----------
    channels
        Names of the channels.
    height, width
        In pixels.
    """

    channels: tuple[str, ...]
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return len(self.channels), self.height, self.width

    @property
    def names(self) -> NDArray[np.str_]:
        """Names of the variables, ``channel_row_column``."""
        channels, rows, columns = self._places()
        return np.array([f"{c}_{row}_{column}" for c, row, column in zip(channels, rows, columns, strict=True)])

    def var(self) -> pd.DataFrame:
        """One row per pixel: ``channel``, ``row``, ``column``."""
        channels, rows, columns = self._places()
        frame = {"channel": pd.Categorical(channels, categories=list(self.channels)), "row": rows, "column": columns}
        return pd.DataFrame(frame, index=self.names.astype(object))

    @classmethod
    def of_names(cls, names: Iterable[str]) -> Self | None:
        """The grid that variables with these names make up; ``None`` where they are no pixels of whole images in order."""
        names = list(names)
        found = [_NAME.fullmatch(str(name)) for name in (*names[:1], *names[-1:])]
        if not found or any(match is None for match in found):
            return None
        height, width = (int(found[-1][part]) + 1 for part in ("row", "column"))  # type: ignore[index]
        firsts = names[:: height * width]
        channels = tuple(match["channel"] for name in firsts if (match := _NAME.fullmatch(str(name))))
        grid = cls(channels, height, width)
        return grid if len(names) == np.prod(grid.shape) and list(grid.names) == names else None

    def check(self, adata: AnnData) -> None:
        """Raise ValueError unless the variables of `adata` are these pixels."""
        if not np.array_equal(adata.var_names.to_numpy(dtype=str), self.names):
            other = type(self).of_names(adata.var_names)
            found = f"variables such as {adata.var_names[:2].tolist()}" if other is None else f"images of {other}"
            raise ValueError(f"The model was fitted on images of {self}; adata has {found}.")

    def __str__(self) -> str:
        return f"{self.height} x {self.width} pixels and channels {list(self.channels)}"

    def _places(self) -> tuple[NDArray[Any], ...]:
        channel, rows, columns = np.indices(self.shape).reshape(3, -1)
        return np.array(self.channels, dtype=object)[channel], rows, columns


def image_stack(adata: AnnData) -> Any:
    """The images of `adata`, ``(n_obs, n_channels, height, width)``, as they are stored.

    Raises
    ------
    KeyError, ValueError
        There are none, or their pixels are not the variables of `adata`.
    """
    if IMAGES not in adata.obsm:
        raise KeyError(f"adata.obsm[{IMAGES!r}] is missing: make the AnnData with scscore.images.from_arrays.")
    stack, grid = adata.obsm[IMAGES], PixelGrid.of_names(adata.var_names)
    if grid is None or stack.shape[1:] != grid.shape:
        raise ValueError(
            f"adata.obsm[{IMAGES!r}] has shape {stack.shape} and adata {adata.n_vars} variables: images need shape (n_obs, n_channels, "
            "height, width) and a variable for every pixel, in this order; scscore.images.from_arrays makes such an AnnData."
        )
    if stack.dtype.kind not in "uf":
        raise ValueError(f"adata.obsm[{IMAGES!r}] holds {stack.dtype}; unsigned integers or floats are expected.")
    return stack


def intensity_factor(dtype: np.dtype[Any]) -> float:
    """What brings stored values to intensities: one over the largest value of an unsigned integer type, else one."""
    return 1.0 / float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0
