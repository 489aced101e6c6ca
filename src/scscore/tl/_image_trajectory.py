"""``tl.image_trajectory``: an image on its way into noise, and what every class makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scscore._logging import logger
from scscore.core.trajectories import NoiseStream
from scscore.images import from_arrays
from scscore.io.pixels import PixelGrid
from scscore.model import ScoreModel
from scscore.tl._validate import check_adata, check_model, check_positive, seed_of, warn_of_inflation

NOISED = "noised"


def image_trajectory(
    adata: AnnData,
    model: ScoreModel,
    cell: str,
    *,
    classes: str | Sequence[str] | None = None,
    n_levels: int = 8,
    rng: int | np.random.Generator = 0,
) -> AnnData:
    r"""One image at several noise levels, and what is behind the noise if the image belongs to one class or another.

    The noise prediction of class :math:`c` turns the noised image :math:`z_\lambda = \alpha z + \sigma\eta` back into
    :math:`(z_\lambda - \sigma\hat\epsilon_c) / \alpha`, the clean image to be expected. Where the classes disagree about it, and the image
    sides with one of them, is where its evidence comes from.

    Parameters
    ----------
    adata
        Images, see :func:`scscore.images.from_arrays`.
    model
        From :func:`scscore.tl.fit`, best with ``encoder="pca"``: what other encoders forget cannot be drawn.
    cell
        Name of the image.
    classes
        Classes of the model. ``None``: the two most probable ones.
    n_levels
        Number of noise levels, from the cleanest to the noisiest.
    rng
        Seed or generator of the noise.

    Returns
    -------
    AnnData of images (:func:`scscore.images.stack`), the noised one and that of every class at every level, with ``obs["image"]`` (``"noised"``
    or the class, categorical) and ``obs["log_snr"]``; for :func:`scscore.pl.image_trajectory`.

    Raises
    ------
    KeyError
        There is no such image, or no such class.
    ValueError
        The model was not fitted on images with classes, they are of another size, or repeated classes.

    Examples
    --------
    >>> import scscore as scs
    >>> digits = scs.datasets.digits()
    >>> model = scs.tl.fit(digits, "digit", max_epochs=2, progress=False)
    >>> steps = scs.tl.image_trajectory(digits, model, digits.obs_names[0], n_levels=5)
    >>> steps.obs["image"].nunique(), steps.n_obs
    (3, 15)
    """
    check_adata(adata)
    check_model(model)
    warn_of_inflation(model)
    if (adata.obs_names == cell).sum() != 1:
        raise KeyError(f"cell={cell!r} is not one of adata.obs_names, e.g. {adata.obs_names[:3].tolist()}.")
    grid = None if model.genes is None else PixelGrid.of_names(model.genes)
    if grid is None:
        raise ValueError("model was not fitted on images; see scscore.images.from_arrays.")
    check_positive("n_levels", n_levels, at_least=2, optional=False)
    classes = [classes] if isinstance(classes, str) else classes
    if classes is not None and (len(set(classes)) < len(classes) or NOISED in classes):
        raise ValueError(f"classes must be different names, and none of them {NOISED!r}, got {list(classes)}.")
    one, diffusion, noise = adata[[cell]].copy(), model.diffusion.cpu(), NoiseStream(seed_of(rng))
    with torch.inference_mode():
        z = model.encode(one)
        order = np.argsort(-model.log_posterior(z, noise, start=0)[0], kind="stable")
        names = model.classes.tolist()
        if unknown := [name for name in classes or [] if name not in names]:
            raise KeyError(f"classes={unknown} are no classes of the model; classes: {names}.")
        chosen = [names.index(name) for name in classes] if classes is not None else order[:2].tolist()
        eta = noise.normal(np.arange(1), z.shape[1], pair=0, step=0).to(z)
        points = []
        levels = diffusion.schedule.levels(n_levels - 1).to(z)
        for lam in levels:
            alpha, sigma = diffusion.schedule.alpha(lam), diffusion.schedule.sigma(lam)
            noised = alpha * z + sigma * eta
            clean = (noised[:, None] - sigma * diffusion.eps(noised, lam)[:, chosen]) / alpha
            points.append(torch.cat([noised, clean[0]]))
        found = model.whitening.inverse(torch.stack(points, 1).reshape(-1, z.shape[1])).numpy()
    pixels = model.representation.decode(found)  # type: ignore[attr-defined]
    kinds = [NOISED, *(names[k] for k in chosen)]
    obs = pd.DataFrame(
        {
            "image": pd.Categorical(np.repeat(kinds, n_levels), categories=kinds),
            "log_snr": np.tile(levels.numpy(), len(kinds)),
        }
    )
    obs.index = [f"{cell}_{kind}_{i}" for kind in kinds for i in range(n_levels)]
    logger.info("drew %s at %d noise levels, as %s", cell, n_levels, kinds[1:])
    images = pixels.reshape(-1, *grid.shape).astype(np.float32)
    return from_arrays(images, obs=obs, channels=grid.channels, channel_axis=1)
