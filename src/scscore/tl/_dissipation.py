"""``tl.dissipation``: how the evidence for every class builds up in single cells while noise is taken away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from scscore._logging import logger
from scscore._version import __version__
from scscore.core.dissipation import evidence_by_level
from scscore.core.prior import Prior
from scscore.core.trajectories import NoiseStream
from scscore.io.keys import Keys
from scscore.io.params import json_params, jsonable
from scscore.model import ScoreModel
from scscore.tl._validate import (
    check_adata,
    check_model,
    check_name,
    check_paths,
    check_positive,
    seed_of,
    usable_device,
)

_MOST_CELLS = 100  # a picture of single cells: what is stored grows with levels times classes


def dissipation(
    adata: AnnData,
    model: ScoreModel,
    cells: str | Sequence[str] | Sequence[bool] | NDArray[np.bool_] | pd.Series | pd.Index,
    *,
    layer: str | None = None,
    prior: Prior | None = None,
    n_steps: int = 64,
    n_paths: int = 32,
    device: str = "auto",
    key_added: str = "scscore",
    copy: bool = False,
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> AnnData | None:
    r"""Follow the evidence for every class of some cells from all noise to the clean cell.

    Every noising trajectory is read backwards. At log SNR :math:`\lambda` it gives the log-likelihoods :math:`e_c` of the noised
    cell, and with them what the model knows of the cell at that noise level. The **evidence** for a class is what that adds to
    its prior,

    .. math:: \log p(c \mid z_\lambda) - \log \pi_c = e_c - \log \sum_{c'} \pi_{c'} \exp e_{c'} ,

    in nats and without temperature. It is zero where all is noise. At the clean cell it is the log posterior that
    :func:`scscore.tl.classify` would give with temperature one and the same `n_steps`, `n_paths` and `rng`, less the log
    prior. It cannot exceed :math:`-\log\pi_c`; evidence against a class has no bound. See :func:`scscore.pl.dissipation` for
    the picture.

    At every level the :math:`e_c` are averaged over paths first and the average is centred by the formula above, as
    classification does it. (The mean of centred paths would be lower, by the same number for all classes.) The spread over
    paths is that of the single centred paths. It says how much depends on the noise: a good part of it at middle levels, where
    every path sees another noised cell, and only Monte-Carlo error at the clean cell.

    Parameters
    ----------
    adata
        Cells, with the kind of values that the model was fitted on; in memory, backed or with dask arrays. Only the wanted
        cells are read.
    model
        From :func:`scscore.tl.fit` or :func:`scscore.load`.
    cells
        The cells to follow, 100 at most: one name of ``obs_names``, several names, or a boolean mask of all cells.
    layer
        Layer with the values; ``None`` is ``X``.
    prior
        Class prior: ``"train"``, ``"uniform"``, a mapping from class to weight, or an array. ``None``: the prior of the model.
    n_steps, n_paths
        Jumps per noising trajectory, and trajectories per cell (an even number: antithetic pairs). More jumps give finer
        noise levels and a smaller error, more paths smoother curves.
    device
        Torch device; ``"auto"`` takes a GPU if there is one.
    key_added
        Name of the slot that is written.
    copy
        Return an annotated copy instead of writing to `adata`.
    rng
        Seed or generator of the noise. A cell has the same noise whichever cells are asked for with it, and the same as in
        :func:`scscore.tl.classify`.
    progress
        Show a progress bar.

    Returns
    -------
    ``None``, or the copy. With ``k = key_added``, replaces ``uns[f"{k}_dissipation"]``, a dictionary of

    - ``cells``: names of the cells, in the order of the argument (of `adata` for a mask), ``(n_cells,)``;
    - ``classes``: names of the classes, ``(n_classes,)``;
    - ``log_snr``: noise levels from the prior end to the noise floor, then ``inf`` for the clean cell, ``(n_levels,)`` with
      ``n_levels = n_steps + 2``;
    - ``evidence``: nats, float32 ``(n_cells, n_levels, n_classes)``;
    - ``evidence_sd``: its standard deviation over paths, nats, of the same shape;
    - ``lead``: share of the paths on which the class has the highest evidence of all, float32 of the same shape;
    - ``prior``: probabilities, ``(n_classes,)``;
    - ``params`` (JSON, with the temperature of the model), ``model_hash``, ``version``.

    Raises
    ------
    TypeError
        Not an AnnData, not a ScoreModel, or `cells` is neither names nor a mask.
    KeyError
        A cell is not in ``obs_names``, unknown layer, or the model's representation is not in ``obsm``.
    ValueError
        No cell, a cell named twice, more than 100 cells, a mask of the wrong length or order, names that several cells share, an
        odd `n_paths`, an invalid prior, and what :func:`scscore.tl.classify` refuses in the values of cells.

    Warns
    -----
    UserWarning
        Genes of the model are missing.

    Notes
    -----
    At the prior end of the schedule (log SNR -5 by default) a cell is nearly noise, not quite: where the means of classes lie far
    apart some evidence is left, on blood cells half a nat on average and up to two nats against the least similar class.

    The estimator is that of Kuznets-Speck et al., *Keeping SCORE*, bioRxiv 2025.11.26.690838, read at every level instead of at
    its end.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.dissipation(cells, model, ["cell_0", "cell_7"], n_steps=16, progress=False)
    >>> cells.uns["scscore_dissipation"]["evidence"].shape
    (2, 18, 3)
    """
    check_adata(adata)
    check_model(model)
    if len(model.classes) < 2:
        raise ValueError("model holds one density and no classes (fitted with condition=None): nothing is decided.")
    keys = Keys(key_added)
    positions = _positions(adata, cells)
    check_name(layer, "layer")
    check_positive("n_steps", n_steps, optional=False)
    check_paths(n_paths)
    log_prior, torch_device, seed = model.log_prior(prior), usable_device(device), seed_of(rng)

    rows = np.sort(positions)
    ((_, z),) = model.points(adata[rows], layer=layer, batch_size=len(rows), device=torch_device)
    levels = model.diffusion.schedule.levels(n_steps)
    found = _evidence(
        model,
        z,
        rows,
        levels.to(torch_device),
        torch.from_numpy(log_prior).to(torch_device),
        n_paths=n_paths,
        noise=NoiseStream(seed),
        progress=progress,
    )
    asked = np.searchsorted(rows, positions)
    evidence, spread, lead = (x.permute(1, 0, 2)[asked].to(torch.float32).cpu().numpy() for x in found)

    target = adata.copy() if copy else adata
    params = {
        "condition": model.params["condition"],
        "layer": layer,
        "n_steps": n_steps,
        "n_paths": n_paths,
        "temperature": model.calibration.temperature,
        "offsets": model.calibration.offsets,
        "seed": seed,
    }
    target.uns[keys.dissipation] = {
        "cells": adata.obs_names[positions].to_numpy(dtype=object),
        "classes": model.classes.astype(object),
        "log_snr": np.append(levels.numpy()[::-1], np.inf),
        "evidence": evidence,
        "evidence_sd": spread,
        "lead": lead,
        "prior": np.exp(log_prior),
        "params": json_params(jsonable(params)),
        "model_hash": model.hash,
        "version": __version__,
    }
    logger.info(
        "followed the evidence for %d classes in %d cells over %d noise levels\nwrote uns[%r]",
        len(model.classes),
        len(positions),
        n_steps + 2,
        keys.dissipation,
    )
    return target if copy else None


def _positions(adata: AnnData, cells: object) -> NDArray[np.int64]:
    """Positions of the wanted cells in `adata`, in the order of their names."""
    if isinstance(cells, str):
        cells = [cells]
    if not isinstance(cells, Sequence | np.ndarray | pd.Series | pd.Index) or isinstance(cells, bytes):
        raise TypeError(
            f"cells must be a name of adata.obs_names, several names or a boolean mask, got {type(cells).__name__}."
        )
    if np.ndim(cells) != 1:
        raise ValueError(f"cells must be one-dimensional, got shape {np.shape(cells)}.")
    is_mask = len(cells) > 0 and all(isinstance(value, bool | np.bool_) for value in cells)
    if is_mask and len(cells) != adata.n_obs:
        raise ValueError(
            f"cells is a mask of {len(cells)} cells, adata has {adata.n_obs}; make the mask from adata itself."
        )
    if is_mask and isinstance(cells, pd.Series) and not cells.index.equals(adata.obs_names):
        raise ValueError("cells is a mask whose index differs from adata.obs_names; make it from adata.obs.")
    positions = np.flatnonzero(np.asarray(cells, dtype=bool)) if is_mask else np.arange(len(cells))
    if not len(positions):
        raise ValueError("cells is empty: " + ("the mask selects no cell." if is_mask else "name at least one cell."))
    if len(positions) > _MOST_CELLS:
        raise ValueError(
            f"cells selects {len(positions)} cells, at most {_MOST_CELLS} can be followed at a time; name those to look at."
        )
    return positions if is_mask else _positions_of_names(adata.obs_names, list(cells))


def _positions_of_names(index: pd.Index, names: Sequence[object]) -> NDArray[np.int64]:
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise TypeError(
            f"cells must be names of adata.obs_names (strings) or a boolean mask, got {type(wrong[0]).__name__} "
            f"{wrong[0]!r}; for positions pass adata.obs_names[positions]."
        )
    missing = [str(name) for name in names if name not in index]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise KeyError(f"cells: {missing[:5]}{more} not in adata.obs_names, which starts with {index[:3].tolist()}.")
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"cells names {twice[:5]} more than once; name every cell once.")
    found = [index.get_loc(name) for name in names]
    shared = [str(name) for name, where in zip(names, found, strict=True) if not isinstance(where, int)]
    if shared:
        raise ValueError(
            f"cells: {shared[:5]} each name several cells; call adata.obs_names_make_unique() or pass a mask."
        )
    return np.array(found, dtype=np.int64)


def _evidence(
    model: ScoreModel,
    z: Tensor,
    rows: NDArray[np.int64],
    levels: Tensor,
    log_prior: Tensor,
    *,
    n_paths: int,
    noise: NoiseStream,
    progress: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Evidence, its standard deviation over paths, share of paths led; each ``(n_levels, n, n_classes)``, float64."""
    diffusion = model.diffusion.to(z.device)

    def centred(log_likelihood: Tensor) -> Tensor:
        return log_likelihood - torch.logsumexp(log_likelihood + log_prior, dim=-1, keepdim=True)

    shape = (len(levels) + 1, len(rows), diffusion.n_classes)
    total, mean, squares, led = torch.zeros((4, *shape), dtype=torch.float64, device=z.device)
    n_done = 0
    for pair in tqdm(range(n_paths // 2), desc="dissipation", unit="pair", disable=not progress):
        with torch.no_grad():
            paths = evidence_by_level(
                diffusion,
                z,
                levels,
                lambda step, pair=pair: noise.normal(rows, diffusion.n_features, pair=pair, step=step).to(z),  # type: ignore[misc]
            )
        for path in paths.unbind(1):  # Welford's update: paths are not kept, there may be many
            n_done += 1
            total += path
            led += torch.nn.functional.one_hot(path.argmax(-1), diffusion.n_classes)
            evidence = centred(path)
            deviation = evidence - mean
            mean += deviation / n_done
            squares += deviation * (evidence - mean)
    return centred(total / n_paths), (squares / (n_paths - 1)).sqrt(), led / n_paths
