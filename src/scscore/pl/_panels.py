"""Small multiples: panels of one size in rows and columns, as close as their labels allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _columns(n: int) -> int:
    return 2 if n == 4 else min(n, 3)


def axes_for_panels(n: int, size: tuple[float, float]) -> list[Axes]:
    """Axes of `size` inches in a new figure, not yet in place."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(2 * size[0], 2 * size[1]))
    return [figure.add_axes((0.2, 0.2, 0.5, 0.5), label=str(i)) for i in range(n)]


def fit_panels(axes: Sequence[Axes], size: tuple[float, float], margin: float = 0.12) -> None:
    """Put panels into rows and columns, as close as their labels allow; inner labels of shared axes are left out."""
    n_columns = _columns(len(axes))
    n_rows = -(-len(axes) // n_columns)
    for i, ax in enumerate(axes):
        if i % n_columns:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        if i + n_columns < len(axes):
            ax.set_xlabel("")
    figure = axes[0].figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    around = np.zeros((n_rows, n_columns, 4))  # room for labels at the left, bottom, right, top; inches
    for i, ax in enumerate(axes):
        inner = ax.get_window_extent()
        outer = ax.get_tightbbox() or inner
        room = (inner.x0 - outer.x0, inner.y0 - outer.y0, outer.x1 - inner.x1, outer.y1 - inner.y1)
        around[divmod(i, n_columns)] = np.array(room) / figure.dpi + margin
    left, right = around[..., 0].max(0), around[..., 2].max(0)
    below, above = around[..., 1].max(1), around[..., 3].max(1)
    width, height = (left + size[0] + right).sum(), (below + size[1] + above).sum()
    x0 = np.cumsum(left + size[0] + right) - right - size[0]
    y0 = height - np.cumsum(below + size[1] + above) + below
    figure.set_size_inches(width, height)  # type: ignore[union-attr]
    for i, ax in enumerate(axes):
        row, column = divmod(i, n_columns)
        ax.set_position((x0[column] / width, y0[row] / height, size[0] / width, size[1] / height))
