"""Images side by side in one axes: what the plots of images share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.floating]

_TILE = 0.95  # inches
_GAP = 0.08  # of a tile
_WHITE = 0.99  # quantile
_BEYOND, _LITTLE = 0.5, 0.25


def as_rgb(images: Array) -> Array:
    """Colours ``(n, height, width, 3)`` between 0 and 1 of images ``(n, n_channels, height, width)``.

    Three channels are red, green and blue, others are averaged. Where intensities leave the range from 0 to 1, or use little of it, as those of
    cameras with 12 bits do, the lowest are black and the highest white.
    """
    found = images if images.shape[1] == 3 else np.repeat(images.mean(1, keepdims=True), 3, axis=1)
    low, high = (float(value) for value in np.quantile(found, (1 - _WHITE, _WHITE)))
    low = min(low, 0.0)
    if low < -_BEYOND or high > 1 + _BEYOND or high < _LITTLE:
        found = (found - low) / max(high - low, 1e-12)
    return np.clip(np.moveaxis(found, 1, -1), 0, 1)


def mosaic_axes(ax: Axes | None, tiles: Array, *, between: float = 0.0) -> Axes:
    """Axes for tiles ``(n_rows, n_columns, height, width, 3)``; `between` is further space between rows, in tiles."""
    n_rows, n_columns, height, width = tiles.shape[:4]
    rows = n_rows + (n_rows - 1) * (_GAP + between)
    return _base.axes_of_size(ax, (_TILE * (n_columns + (n_columns - 1) * _GAP), _TILE * rows * height / width))


def draw_mosaic(
    ax: Axes,
    tiles: Array,
    *,
    above: Sequence[Sequence[str]] | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    between: float = 0.0,
) -> None:
    """Draw tiles ``(n_rows, n_columns, height, width, 3)``, texts above each of them, and names of rows and columns."""
    n_rows, n_columns, height, width = tiles.shape[:4]
    step_x, step_y = 1 + _GAP, 1 + _GAP + between
    for i in range(n_rows):
        for j in range(n_columns):
            x, y = j * step_x, i * step_y
            ax.imshow(np.clip(tiles[i, j], 0, 1), extent=(x, x + 1, y + 1, y), interpolation="nearest", aspect="auto")
            if above is not None and above[i][j]:
                ax.text(x + 0.5, y - 0.03, above[i][j], ha="center", va="bottom", fontsize=7.5, linespacing=1.1)
    ax.set_xlim(0, (n_columns - 1) * step_x + 1)
    ax.set_ylim((n_rows - 1) * step_y + 1, 0)
    ax.set_yticks([i * step_y + 0.5 for i in range(len(rows))], rows, fontsize=9)
    ax.set_xticks([j * step_x + 0.5 for j in range(len(columns))], columns, fontsize=8)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.set_aspect(height / width)
    for spine in ax.spines.values():
        spine.set_visible(False)
