"""``pl.image_attribution``: which pixels speak for the class of an image, and which against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scscore import get
from scscore.images import stack
from scscore.io.columns import number_column
from scscore.io.keys import Keys
from scscore.pl import _base
from scscore.pl._attribution_heatmap import against
from scscore.pl._mosaic import as_rgb, draw_mosaic, mosaic_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_N_IMAGES = 6
_CLIP = 0.995  # quantile of the sizes at full colour
_FAINT = 0.35  # weight of the image below the colours
_DARK = 0.25  # median intensity of images with a dark background, which is shown white


def image_attribution(
    adata: AnnData,
    cells: Sequence[str] | None = None,
    *,
    key: str = "scscore",
    cmap: str = "RdBu_r",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Images, and below each of them its attribution: red pixels speak for the target, blue ones against it.

    Parameters
    ----------
    adata
        Images after :func:`scscore.tl.attribute` with ``per_cell=True``, best with ``reference="runner-up"``.
    cells
        Names of the images. ``None``: the first six.
    key
        The `key_added` of that call.
    cmap
        Diverging matplotlib colour map.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    The axes, the figure, or ``None``. Over each image stand target, what it is compared with, and the evidence of the image in nats. The
    map is the sum over channels; all maps have one scale, nats per pixel.

    Raises
    ------
    KeyError
        `adata` has no attributions of single images under `key`, or there is no such image.
    ValueError
        The variables of `adata` are no pixels.

    Examples
    --------
    >>> import scscore as scs
    >>> digits = scs.datasets.digits()
    >>> model = scs.tl.fit(digits, "digit", max_epochs=2, progress=False)
    >>> some = digits[:6].copy()
    >>> scs.tl.attribute(some, model, reference="runner-up", per_cell=True, progress=False)
    >>> axes = scs.pl.image_attribution(some, show=False)
    """
    keys = Keys(key)
    found = get.attribution(adata, key=key)
    if keys.attribution not in adata.layers:
        raise KeyError(
            f"adata.layers[{keys.attribution!r}] is missing (key={key!r}): run scscore.tl.attribute with per_cell=True."
        )
    rows = _base.positions(adata, cells, _N_IMAGES)
    evidence = number_column(
        adata, keys.evidence, missing=f"adata.obs[{keys.evidence!r}] is missing: run scscore.tl.attribute again."
    )[rows]
    layer = adata.layers[keys.attribution][rows]
    parts = stack(adata, layer.toarray() if sp.issparse(layer) else np.asarray(layer)).sum(1)
    images = as_rgb(stack(adata[rows]))
    target = adata.obs[keys.target].astype(str).to_numpy()[rows]
    other = [against(found)] * len(rows)
    if keys.runner_up in adata.obs:
        other = adata.obs[keys.runner_up].astype(str).to_numpy()[rows].tolist()

    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    limit = float(np.quantile(abs(parts), _CLIP)) or 1.0
    mappable = ScalarMappable(Normalize(-limit, limit), colormaps[cmap])
    colored = np.asarray(colormaps[cmap](np.clip(0.5 + 0.5 * parts / limit, 0, 1)))[..., :3]
    strength = np.clip(abs(parts) / limit, 0, 1)[..., None]
    grey = images.mean(-1, keepdims=True)
    grey = 1 - _FAINT * (grey if np.median(grey) < _DARK else 1 - grey)
    maps = strength * colored + (1 - strength) * grey

    titles = [f"{a}\nagainst {b}\n{value:.1f} nats" for a, b, value in zip(target, other, evidence, strict=True)]
    tiles = np.stack([images, maps])
    given, ax = ax, mosaic_axes(ax, tiles)
    draw_mosaic(ax, tiles, above=[titles, [""] * len(rows)], rows=("image", "attribution"))
    _base.add_colorbar(ax, mappable, "nats per pixel")
    return _base.finish(ax, given, show=show, return_fig=return_fig)
