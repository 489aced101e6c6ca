"""``tl.sample``: new cells of given classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scscore._logging import logger
from scscore._version import __version__
from scscore.core.sampling import draw_classes, flow_map, reverse_sde
from scscore.core.trajectories import NoiseStream
from scscore.io.keys import Keys
from scscore.io.params import json_params, jsonable
from scscore.io.pixels import PixelGrid
from scscore.io.representation import ObsmRepresentation, PCAEncoder
from scscore.model import ScoreModel
from scscore.tl._validate import check_model, check_positive, seed_of, usable_device, warn_of_inflation

Method = Literal["sde", "flow"]

# Mean log density of samples of eight exact mixtures in 30 dimensions, less the true one, in nats (standard error .02): -.22 with 16 jumps,
# -.11 with 32, -.07 with 64; -.05 with the flow, the same from 8 steps on.
_N_STEPS = {"sde": 64, "flow": 16}


def sample(
    model: ScoreModel,
    n: int | None = None,
    *,
    condition: str | Sequence[str] | Mapping[str, int] | None = None,
    method: Method = "sde",
    n_steps: int | None = None,
    batch_size: int = 1024,
    device: str = "auto",
    key_added: str = "scscore",
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> AnnData:
    """Generate new cells of the classes of a model.

    Parameters
    ----------
    model
        From :func:`scscore.tl.fit` or :func:`scscore.load`.
    n
        Number of cells. Not needed where `condition` has the number of every class.
    condition
        Classes of the cells. ``None``: drawn from the prior of the model. The name of a class: all of it. Several names: in equal parts (up
        to one cell), in that order. A mapping (or Series) from class to number of cells, such as ``obs[...].value_counts()``.
    method
        ``"sde"``: the noising run backwards, as a stochastic process, whose jumps are exact where the model has no residual.
        ``"flow"``: the probability flow, which makes one cell out of every point of the noise. Both have the same distribution where the
        network is the score of one density at all noise levels; the stochastic one corrects more of what the network got wrong.
    n_steps
        Jumps of a trajectory, one network call each; or Runge-Kutta steps of the flow, four each. ``None``: 64 and 16.
    batch_size
        Cells per chunk. Changes memory and speed, not results.
    device
        Torch device; ``"auto"`` takes a GPU if there is one.
    key_added
        Name of all slots that are written.
    rng
        Seed or generator of the noise. The same seed gives the same cells, and the first of many are those of few.
    progress
        Show a progress bar.

    Returns
    -------
    AnnData of the new cells. With ``k = key_added``, it has

    - ``obs[name of the condition]``: the class (categorical with all classes of the model); nothing for a model of one density;
    - ``X``, for a model with an encoder of its own: expression of the genes of the model (``var_names``), float32, as the encoder sees it:
      log1p of counts scaled to the same total per cell, or the log-normalised values that the model was fitted on; of a model of images, their
      pixels, see :func:`scscore.images.stack` (behind a convolutional encoder, a linear guess of them);
    - ``obsm[f"X_{k}"]``: the cells in the model's representation, the components that the model uses, float32. A model of a stored
      representation writes these to the key that it reads, ``obsm[use_rep]``, and neither ``X`` nor genes; features of the
      representation that the model does not use are zero;
    - ``uns[f"{k}_sample"]``: ``classes``, ``n_cells`` of every class, ``params`` (JSON), ``model_hash``, ``version``.

    Raises
    ------
    TypeError
        Not a ScoreModel, or a condition that is not made of names.
    KeyError
        A condition that is no class of the model.
    ValueError
        A condition for a model of one density, repeated classes, no cells, `n` and numbers per class that disagree, an unknown
        method, and numbers out of their range.

    Examples
    --------
    >>> import scscore as scs
    >>> _, model = scs.datasets.toy_mixture()
    >>> cells = scs.tl.sample(model, condition={"a": 2, "c": 1}, progress=False)
    >>> cells.obs["class"].tolist(), cells.obsm["X_toy"].shape
    (['a', 'a', 'c'], (3, 2))

    Notes
    -----
    The expression is denoised and of limited rank: the mean of the training cells and what the model's components add to it. Variation
    outside the components, above all the noise of counting, is not generated, and values are not clipped: where genes are sparse, one
    in eight may lie below zero. Compare it with means, correlations and neighbourhoods of cells in the components, not with the
    zeros or the variance of single genes.

    Shifts of covariates (``tl.fit(covariates=)``) and of adapted batches (:func:`scscore.tl.adapt`) are not added: the cells belong to an average batch of the training cells.

    Where cross-validation made the model's covariances broader for the sake of its posterior (``model.params["reference"]["inflation"]``
    above one), generated cells vary too much, which is logged; ``objective="generative"`` leaves them as they are.

    Whether cells are new, and not copies of training cells, can be asked of :func:`scscore.core.sampling.diversity`; the model
    itself holds no training cells.

    Reverse process: Ho et al., NeurIPS 2020; probability flow: Song et al., ICLR 2021.
    """
    check_model(model)
    warn_of_inflation(model)
    keys, seed = Keys(key_added), seed_of(rng)
    check_positive("n", n)
    check_positive("n_steps", n_steps)
    check_positive("batch_size", batch_size, optional=False)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {list(get_args(Method))}, got {method!r}.")
    noise = NoiseStream(seed)
    y = _classes(model, n, condition, noise)
    n_steps, torch_device = n_steps or _N_STEPS[method], usable_device(device)

    z = _points(model, y, noise, method, n_steps, batch_size, torch_device, progress)
    points = model.whitening.inverse(z).numpy()
    cells, written = _as_cells(model, points, y, keys.points)
    n_cells, encoder = np.bincount(y, minlength=len(model.classes)), model.representation
    params = {
        "condition": model.params["condition"],
        "requested": condition if condition is None or isinstance(condition, str) else _plain(condition),
        "n": len(y),
        "method": method,
        "n_steps": n_steps,
        "input": encoder.kind if isinstance(encoder, PCAEncoder) else None,
        "target_sum": encoder.target_sum if isinstance(encoder, PCAEncoder) else None,
        "seed": seed,
    }
    slot = keys.sample
    cells.uns[slot] = {
        "classes": model.classes.astype(object),
        "n_cells": n_cells,
        "params": json_params(jsonable(params)),
        "model_hash": model.hash,
        "version": __version__,
    }
    logger.info("generated %d cells of %d classes\nwrote %s, uns[%r]", len(y), (n_cells > 0).sum(), written, slot)
    return cells


def _classes(model: ScoreModel, n: int | None, condition: Any, noise: NoiseStream) -> NDArray[np.int64]:
    """Class of every cell to generate, ``(n,)``."""
    if isinstance(condition, (Mapping, pd.Series)):
        numbers = {_known(model, name): number for name, number in condition.items()}
        for name, number in condition.items():
            check_positive(f"condition[{name!r}]", number, at_least=0, optional=False)
        total = sum(numbers.values())
        if total == 0 or n not in (None, total):
            raise ValueError(
                f"condition= asks for {total} cells in all, n={n!r}: leave n out, and ask for one cell at least."
            )
        return np.repeat(list(numbers), list(numbers.values()))
    if n is None:
        raise ValueError("n=None: say how many cells, or give condition= as a mapping from class to number of cells.")
    if condition is None:
        return draw_classes(model.log_prior(), noise, n).numpy()
    names = _names(condition)
    chosen = [_known(model, name) for name in names]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"condition must name at least one class, and every class once, got {names}; for numbers of cells give a mapping, such "
            "as obs[...].value_counts()."
        )
    return np.array(chosen)[np.sort(np.arange(n) % len(chosen))]


def _names(condition: Any) -> list[Any]:
    if isinstance(condition, str):
        return [condition]
    if not isinstance(condition, Iterable):
        raise TypeError(
            f"condition must be None, a class, a list of classes or a mapping from class to number of cells, got {condition!r}."
        )
    return list(condition)


def _known(model: ScoreModel, name: Any) -> int:
    """Index of a class of the model."""
    if model.params["condition"] is None:
        raise ValueError(
            f"condition={name!r}: the model holds one density and no classes (fitted with condition=None); leave condition out."
        )
    if not isinstance(name, str):
        raise TypeError(f"condition must name classes (strings), got {name!r}.")
    classes = model.classes.tolist()
    if name not in classes:
        raise KeyError(f"condition={name!r} is no class of the model; classes: {classes}.")
    return classes.index(name)


def _plain(condition: Any) -> Any:
    """What JSON holds of the classes that were asked for."""
    return dict(condition.items()) if isinstance(condition, (Mapping, pd.Series)) else list(condition)


def _points(
    model: ScoreModel,
    y: NDArray[np.int64],
    noise: NoiseStream,
    method: Method,
    n_steps: int,
    batch_size: int,
    device: str,
    progress: bool,
) -> torch.Tensor:
    """Points of the engine's space, float32 ``(n, n_features)`` on the CPU."""
    diffusion, found = model.diffusion.to(device), []
    levels = diffusion.schedule.levels(n_steps)
    with tqdm(total=len(y), desc="sample", unit="cell", disable=not progress) as bar, torch.inference_mode():
        for start in range(0, len(y), batch_size):
            classes = torch.from_numpy(y[start : start + batch_size]).to(device)
            if method == "sde":
                z = reverse_sde(diffusion, classes, noise, levels, start=start)
            else:
                rows = start + np.arange(len(classes))
                latent = noise.normal(rows, diffusion.n_features, pair=0, step=0).to(device)
                z = flow_map(diffusion, latent, classes, levels, "to_clean")
            found.append(z.cpu())
            bar.update(len(z))
    return torch.cat(found)


def _as_cells(model: ScoreModel, points: NDArray[np.float64], y: NDArray[np.int64], key: str) -> tuple[AnnData, str]:
    """The cells, and the names of their slots."""
    encoder, condition = model.representation, model.params["condition"]
    obs = pd.DataFrame(index=[f"sample_{i}" for i in range(len(y))])
    written = ""
    if condition is not None:
        obs[condition] = pd.Categorical.from_codes(y, categories=model.classes.astype(object))
        written = f"obs[{condition!r}], "
    if isinstance(encoder, ObsmRepresentation):
        whole = np.zeros((len(points), encoder.n_features), dtype=np.float32)
        whole[:, : points.shape[1]] = points
        return AnnData(obs=obs, obsm={encoder.key: whole}), f"{written}obsm[{encoder.key!r}]"
    grid = PixelGrid.of_names(model.genes)  # type: ignore[arg-type]
    var = pd.DataFrame(index=model.genes.astype(object)) if grid is None else grid.var()  # type: ignore[union-attr]
    x = np.empty((len(points), len(var)), dtype=np.float32)
    for start in range(0, len(x), 4096):  # double precision for a few cells at a time
        x[start : start + 4096] = encoder.decode(points[start : start + 4096])  # type: ignore[attr-defined]
    return AnnData(x, obs=obs, var=var, obsm={key: points.astype(np.float32)}), f"X, {written}obsm[{key!r}]"
