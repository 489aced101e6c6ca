"""``pl.image_trajectory``: an image on its way into noise, and what every class makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from scscore.images import stack
from scscore.pl import _base
from scscore.pl._mosaic import as_rgb, draw_mosaic, mosaic_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def image_trajectory(
    adata: AnnData, *, ax: Axes | None = None, show: bool | None = None, return_fig: bool = False
) -> Axes | Figure | None:
    """Strips from the clean image to noise: the noised image, and below it the clean image that every class expects behind the noise.

    Parameters
    ----------
    adata
        From :func:`scscore.tl.image_trajectory`.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    The axes, the figure, or ``None``. Columns are noise levels, by their log signal-to-noise ratio.

    Raises
    ------
    KeyError
        `adata` is not from that function.
    ValueError
        It is only a part of it.

    Examples
    --------
    >>> import scscore as scs
    >>> digits = scs.datasets.digits()
    >>> model = scs.tl.fit(digits, "digit", max_epochs=2, progress=False)
    >>> steps = scs.tl.image_trajectory(digits, model, digits.obs_names[0])
    >>> axes = scs.pl.image_trajectory(steps, show=False)
    """
    if missing := {"image", "log_snr"} - set(adata.obs):
        raise KeyError(f"adata.obs has no {sorted(missing)}: pass what scscore.tl.image_trajectory returned.")
    kinds = adata.obs["image"].astype("category").cat.categories.astype(str).tolist()
    images = as_rgb(stack(adata))
    if (
        adata.n_obs % len(kinds)
        or adata.obs["image"].astype(str).tolist() != np.repeat(kinds, adata.n_obs // len(kinds)).tolist()
    ):
        raise ValueError(
            "adata is a part of a trajectory: pass the whole of what scscore.tl.image_trajectory returned."
        )
    tiles = images.reshape(len(kinds), -1, *images.shape[1:])
    levels = np.asarray(adata.obs["log_snr"])[: tiles.shape[1]]
    given, ax = ax, mosaic_axes(ax, tiles)
    draw_mosaic(
        ax,
        tiles,
        rows=[kinds[0], *(f"as {kind}" for kind in kinds[1:])],
        columns=[f"{x:.1f}".replace("-", "−") for x in levels],
    )
    ax.set_xlabel("log signal-to-noise ratio", fontsize=9)
    return _base.finish(ax, given, show=show, return_fig=return_fig)
