"""``pl.dissipation``: evidence for the classes of single cells against the noise level."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scscore._logging import logger
from scscore.io.keys import Keys
from scscore.pl import _base
from scscore.pl._evidence_panel import LINE_HEIGHT, EvidenceCurves, draw_panel
from scscore.pl._panels import axes_for_panels, fit_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PANELS = 12


def dissipation(
    adata: AnnData,
    cells: str | Sequence[str] | None = None,
    *,
    n_classes: int = 5,
    key: str = "scscore",
    palette: Mapping[str, str] | Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Evidence for the classes of single cells while noise is taken away: at which noise level was a cell decided?

    One panel per cell, read from left to right. At the left all is noise and every class has its prior (the dashed line at
    zero); at the right is the clean cell. A line above zero is a class that the cell, as far as it can be seen through that
    much noise, makes more probable than its prior, a line below one that it makes less probable. Classes that part early (at
    low log SNR) differ in the coarse structure of the data, classes that part late in fine detail.

    The band is one standard deviation over noising trajectories. The thin vertical line marks where the predicted class takes
    the lead for good: from there on it has the highest evidence on at least nine of ten trajectories. (Their mean favours
    it earlier, often from the start.) A cell for which that never happens is not decided. The title has the predicted class and its
    posterior, with the temperature of the model; it may differ slightly from that of :func:`scscore.tl.classify`, which uses
    other numbers of jumps and paths.

    The vertical axis is chosen for the decision among the strongest classes: it ends a little below the third strongest
    class at the clean cell, at most 12 nats from the prior. Classes that leave it are labelled with their evidence at the
    clean cell. Several panels share both axes.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.dissipation`.
    cells
        Cells to draw, 12 at most: one name or several. ``None``: all that were followed, the first 12 of them.
    n_classes
        Classes drawn in colour and labelled: the strongest at the clean cell, among them the predicted one. The others are light grey.
    key
        The `key_added` of :func:`scscore.tl.dissipation`.
    palette
        Colours: a mapping from class to colour, or a list for the classes in colour, in the order of the model. ``None``: the
        colours of the condition, ``uns[f"{condition}_colors"]``, where they are known for all classes in colour, else
        colour-blind-safe ones.
    ax
        For a single cell. Labels need room at the right.
    show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes`` (a list of them for several cells), ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``uns[f"{key}_dissipation"]``
    and the colours. Writes nothing.

    Raises
    ------
    KeyError
        Nothing was followed under `key`, not a cell that is asked for, or `palette` lacks a class.
    TypeError
        `cells` is no name and no list of names.
    ValueError
        No or too many cells, `ax` for several cells, `n_classes` below one, too few or invalid colours.

    Notes
    -----
    After the dissipation of class conditional diffusion models in Kuznets-Speck et al., *Keeping SCORE*, bioRxiv 2025.11.26.690838.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.dissipation(cells, model, ["cell_0", "cell_7"], progress=False)
    >>> axes = scs.pl.dissipation(cells, "cell_7", show=False)
    """
    stored = adata.uns.get(Keys(key).dissipation)
    if stored is None:
        raise KeyError(
            f"adata.uns[{Keys(key).dissipation!r}] is missing (key={key!r}): run scscore.tl.dissipation first, "
            "or pass the key= that its key_added= named."
        )
    _base.check_positive("n_classes", n_classes)
    curves = [EvidenceCurves.of(stored, position, n_classes) for position in _chosen(stored, cells)]
    if ax is not None and len(curves) > 1:
        raise ValueError(f"ax takes one cell, but {len(curves)} are to be drawn: name one in cells=, or leave ax out.")
    shown = sorted(set().union(*(one.shown for one in curves)))
    predicted = {one.predicted for one in curves}
    colors = _colors(adata, stored, Keys(key), shown, predicted, palette)

    single, given, n_labels = len(curves) == 1, ax, 1 + max(len(one.shown) for one in curves)
    width, height = (4.0, 3.0) if single else (2.4, 2.0)
    size = (width, max(height, n_labels * LINE_HEIGHT / 72))
    axes = [_base.axes_of_size(ax, size)] if single else axes_for_panels(len(curves), size)
    bottom, top = min(one.floor for one in curves), max(one.ceiling for one in curves)
    for panel, one in zip(axes, curves, strict=True):
        panel.set_ylim(bottom - 0.04 * (top - bottom), top + 0.06 * (top - bottom))
        draw_panel(panel, one, colors)
    if single:
        return _base.finish(axes[0], given, show=show, return_fig=return_fig)
    fit_panels(axes, size)
    if show is None:
        from scanpy import settings

        show = settings.autoshow
    done = _base.finish(axes[0], axes[0], show=show, return_fig=return_fig)
    return axes if done is axes[0] else done


def _chosen(stored: Mapping[str, Any], cells: object) -> list[int]:
    """Positions of the wanted cells among the stored ones."""
    names = [str(name) for name in stored["cells"]]
    if cells is None:
        if len(names) > _MOST_PANELS:
            logger.info("drew the first %d of %d cells; name others with cells=", _MOST_PANELS, len(names))
        return list(range(min(len(names), _MOST_PANELS)))
    wanted = [cells] if isinstance(cells, str) else cells
    if not isinstance(wanted, Sequence | np.ndarray | pd.Index | pd.Series) or not all(
        isinstance(c, str) for c in wanted
    ):
        raise TypeError(f"cells must be a name of a cell or a list of names, got {cells!r}.")
    if not 0 < len(wanted) <= _MOST_PANELS:
        raise ValueError(f"cells must name between 1 and {_MOST_PANELS} cells, got {len(wanted)}.")
    missing = [str(name) for name in wanted if name not in names]
    if missing:
        raise KeyError(
            f"cells: {missing[:5]} were not followed; stored: {names[:5]}{' ...' if len(names) > 5 else ''}. "
            "Run scscore.tl.dissipation with their names."
        )
    return [names.index(name) for name in wanted]


def _colors(
    adata: AnnData,
    stored: Mapping[str, Any],
    keys: Keys,
    shown: Sequence[int],
    predicted: Container[int],
    palette: Mapping[str, str] | Sequence[str] | None,
) -> dict[int, str]:
    """Colour of every class that is drawn in colour."""
    names = [str(stored["classes"][k]) for k in shown]
    if palette is None:
        for column in (json.loads(stored["params"])["condition"], keys.label):
            if column in adata.obs and f"{column}_colors" in adata.uns:
                categories = adata.obs[column].astype("category").cat.categories.astype(str)
                if set(names) <= set(categories) and len(adata.uns[f"{column}_colors"]) >= len(categories):
                    return dict(zip(shown, _base.colors_of(adata, column, names), strict=True))
        hues = [color for color in _base.palette(len(names) + len(names) // 7 + 1) if not _is_grey(color)]
        winners_first = sorted(shown, key=lambda k: (k not in predicted, k))  # they get the strongest tones
        return dict(zip(winners_first, hues[: len(names)], strict=True))
    if isinstance(palette, Mapping):
        missing = [name for name in names if name not in palette]
        if missing:
            raise KeyError(f"palette has no colour for {missing[:5]}.")
        found = [palette[name] for name in names]
    else:
        if isinstance(palette, str) or len(palette) < len(names):
            raise ValueError(
                f"palette must map classes to colours or list at least {len(names)} colours, got {palette!r}."
            )
        found = list(palette[: len(names)])
    from matplotlib.colors import is_color_like

    invalid = [color for color in found if not is_color_like(color)]
    if invalid:
        raise ValueError(f"palette: {invalid[:5]} are no colours that matplotlib knows.")
    return dict(zip(shown, found, strict=True))


def _is_grey(color: str) -> bool:
    """Whether a colour could be taken for that of the other classes."""
    from matplotlib.colors import to_rgb

    return max(to_rgb(color)) - min(to_rgb(color)) < 0.1
