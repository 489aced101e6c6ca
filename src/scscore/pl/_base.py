"""What the plots share: axes of a wanted size, the show and return convention, groups of cells and their colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore.io.columns import obs_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Okabe and Ito's colour-blind-safe hues, with grey for black
_HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_FONT = 9.0  # points


def groups_of(adata: AnnData, column: str, argument: str) -> pd.Series:
    """A column of ``obs`` as an ordered grouping: category names are strings, unused categories are gone."""
    values = obs_column(adata, column, argument)
    if pd.api.types.is_float_dtype(values):
        raise ValueError(
            f"{argument}={column!r} is continuous ({values.dtype}), a column of groups is needed; bin it first."
        )
    values = values.astype("category").cat.remove_unused_categories()
    if values.notna().sum() == 0:
        raise ValueError(f"{argument}={column!r} holds no labelled cell.")
    return values.cat.rename_categories(values.cat.categories.astype(str))


def colors_of(adata: AnnData, column: str, names: Sequence[str]) -> list[str]:
    """Colours of groups: from ``uns[f"{column}_colors"]`` where that has one for every category, else a palette."""
    stored, values = adata.uns.get(f"{column}_colors"), adata.obs[column].astype("category")
    categories = values.cat.categories.astype(str).tolist()
    if stored is not None and len(stored) >= len(categories):
        return [str(stored[categories.index(name)]) for name in names]
    return palette(len(names))


def palette(n: int) -> list[str]:
    """`n` colours: eight colour-blind-safe hues, in as many tones as it takes; neighbours always differ in hue."""
    from matplotlib.colors import to_hex, to_rgb

    n_tones = -(-n // len(_HUES))
    lighter, darker = np.linspace(0, 0.65, n_tones // 2 + 1)[1:], np.linspace(0, -0.55, (n_tones + 1) // 2)[1:]
    tones = [0.0, *lighter, *darker]  # share of white, or of black where negative
    mixed = [(1 - abs(t)) * np.array(to_rgb(hue)) + max(t, 0.0) for t in tones for hue in _HUES]
    return [to_hex(rgb) for rgb in mixed[:n]]


def cell_side(n: int) -> float:
    """Side of one class in a heatmap of `n` classes, inches: generous for few, just readable for many."""
    return float(np.clip(3.6 / n, 0.16, 0.8))


def axes_of_size(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """`ax`, or axes of exactly `size` inches in a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(size[0] + 2, size[1] + 2))
    return figure.add_axes((1 / (size[0] + 2), 1 / (size[1] + 2), size[0] / (size[0] + 2), size[1] / (size[1] + 2)))


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes."""
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi, box.height / ax.figure.dpi


def label_classes(ax: Axes, rows: Sequence[str], columns: Sequence[str], *, pad: float = 3.5) -> None:
    """Tick labels of a heatmap, as large as they fit; columns are tilted where they would touch."""
    width, height = (72 * side for side in inches(ax))
    row_font, column_font = (min(_FONT, 0.8 * side / n) for side, n in ((height, len(rows)), (width, len(columns))))
    ax.set_yticks(np.arange(len(rows)), rows, fontsize=row_font)
    ax.set_xticks(np.arange(len(columns)), columns, fontsize=column_font)
    spacing = width / len(columns)
    if max(map(len, columns)) * 0.65 * column_font > spacing:
        tilt = 45 if 0.7 * spacing > 1.2 * column_font else 90  # tilted lines come closer to each other
        ax.tick_params(axis="x", rotation=tilt, pad=6 if tilt == 45 else 3.5)
        for label in ax.get_xticklabels() if tilt == 45 else []:
            label.set(rotation_mode="anchor", horizontalalignment="right", verticalalignment="center")
    ax.tick_params(length=0)
    ax.grid(False)  # scanpy's figure parameters switch it on
    ax.tick_params(axis="y", pad=pad)
    for spine in ax.spines.values():
        spine.set(color="0.6", linewidth=0.6)


def write_values(ax: Axes, image: AxesImage, matrix: NDArray[np.floating], form: str) -> None:
    """The values of a small matrix on its heatmap, zeros left out."""
    texts = [["" if value == 0 else format(value, form) for value in row] for row in matrix]
    longest = max(len(text) for row in texts for text in row)
    font = min(_FONT, 72 * inches(ax)[0] / matrix.shape[1] / (0.9 * max(longest, 1)))
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            luminance = np.dot(image.cmap(image.norm(matrix[i, j]))[:3], (0.299, 0.587, 0.114))
            ax.text(j, i, text, ha="center", va="center", fontsize=font, color="k" if luminance > 0.5 else "w")


def leaves(tree: NDArray[np.floating]) -> list[int]:
    """Rows in the order in which a tree (a scipy linkage) draws them."""
    from scipy.cluster.hierarchy import leaves_list

    return leaves_list(tree).tolist()


def draw_tree(ax: Axes, tree: NDArray[np.floating]) -> None:
    """A tree (a scipy linkage) that grows to the right, its leaves at 0, 1, 2 ... of the vertical axis."""
    from scipy.cluster.hierarchy import dendrogram

    drawn = dendrogram(tree, no_plot=True)
    for across, along in zip(drawn["dcoord"], drawn["icoord"], strict=True):
        ax.plot(across, (np.array(along) - 5) / 10, color="0.35", linewidth=0.8)  # scipy puts leaves at 5, 15, 25 ...
    ax.set_xlim(0, 1.05 * float(tree[:, 2].max()) or 1.0)


def positions(adata: AnnData, cells: Sequence[str] | None, n_first: int) -> NDArray[np.int64]:
    """Rows of the named cells, or the first ones; KeyError for those that are not there."""
    if cells is None:
        return np.arange(min(n_first, adata.n_obs))
    names = [cells] if isinstance(cells, str) else list(cells)
    rows = adata.obs_names.get_indexer(names)
    if not names:
        raise ValueError("cells names no cell; None takes the first ones.")
    if (rows < 0).any():
        unknown = [name for name, row in zip(names, rows, strict=True) if row < 0]
        raise KeyError(f"cells={unknown} are not in adata.obs_names, e.g. {adata.obs_names[:3].tolist()}.")
    return rows.astype(np.int64)


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless this is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def add_colorbar(ax: Axes, image: ScalarMappable, label: str) -> None:
    """A colour bar of constant width at the right of a heatmap."""
    width, height = inches(ax)
    bar = ax.inset_axes((1 + 0.12 / width, 0.0, 0.13 / width, min(1.0, 1.8 / height)))
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, integer=image.norm.vmax > 1)  # type: ignore[operator]
    bar.grid(False)
    ax.figure.colorbar(image, cax=bar, ticks=ticks).set_label(label, fontsize=_FONT)
    bar.tick_params(labelsize=_FONT - 1)


def finish(ax: Axes, given: Axes | None, *, show: bool | None, return_fig: bool) -> Axes | Figure | None:
    """Fit a figure of our own around its axes, then show or return; see :mod:`scscore.pl`."""
    if given is None:
        _fit_figure(ax)
    if return_fig:
        return ax.figure  # type: ignore[return-value]
    if show is None:
        from scanpy import settings

        show = given is None and settings.autoshow
    if show:
        import matplotlib.pyplot as plt

        plt.show()
        return None
    return ax


def _fit_figure(ax: Axes, margin: float = 0.1) -> None:
    """Grow or shrink the figure to what the labels need; the axes keep their size."""
    figure, (width, height) = ax.figure, inches(ax)
    figure.draw_without_rendering()  # type: ignore[union-attr]
    inner = ax.get_window_extent()
    outer = ax.get_tightbbox() or inner
    left, bottom = ((a - b) / figure.dpi + margin for a, b in ((inner.x0, outer.x0), (inner.y0, outer.y0)))
    right, top = ((b - a) / figure.dpi + margin for a, b in ((inner.x1, outer.x1), (inner.y1, outer.y1)))
    total = (left + width + right, bottom + height + top)
    figure.set_size_inches(total)  # type: ignore[union-attr]
    ax.set_position((left / total[0], bottom / total[1], width / total[0], height / total[1]))
