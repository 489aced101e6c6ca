"""``tl.calibrate``: temperature, prediction sets and typicality from new labelled cells."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from anndata import AnnData

from scscore._logging import logger
from scscore.core.calibration import fit_calibration
from scscore.core.held_out import HeldOut
from scscore.io.columns import obs_column
from scscore.model import ScoreModel
from scscore.tl._validate import (
    check_adata,
    check_model,
    check_name,
    check_positive,
    seed_of,
    usable_device,
)


def calibrate(
    adata: AnnData,
    model: ScoreModel,
    condition: str,
    *,
    layer: str | None = None,
    batch_size: int = 1024,
    device: str = "auto",
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> ScoreModel:
    """Recalibrate a model on labelled cells that it was not trained on, such as a few from a new study.

    Temperature and class offsets of the posterior are refitted, and the cells take the place of the held-out training cells that prediction sets and typicality
    are measured against. Sets then have their coverage for cells exchangeable with these; the weights of the model stay as they
    are.

    Parameters
    ----------
    adata
        Labelled cells outside the training cells, with the kind of values that the model was fitted on.
    model
        From :func:`scscore.tl.fit` or :func:`scscore.load`; left unchanged.
    condition
        Column of ``obs`` with their classes, by the names of the model. Cells without a label are left out.
    layer
        Layer with the values; ``None`` is ``X``.
    batch_size
        Cells per chunk. Changes memory and speed, not results.
    device
        Torch device; ``"auto"`` takes a GPU if there is one.
    rng
        Seed or generator of the noise.
    progress
        Show a progress bar.

    Returns
    -------
    A :class:`~scscore.ScoreModel` with the same weights and a new calibration. Writes nothing to `adata`.

    Raises
    ------
    TypeError
        Not an AnnData, or not a ScoreModel.
    KeyError
        Unknown column, layer or representation.
    ValueError
        No labelled cells, labels that the model does not know, a model without classes, and what :func:`scscore.tl.classify` refuses.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells[:200], "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> model = scs.tl.calibrate(cells[200:], model, "class", progress=False)
    >>> len(model.held_out.y)
    100

    Notes
    -----
    Derivation: *Prediction sets* and *Novelty* in the *Trust* page of the documentation.
    """
    check_adata(adata)
    check_model(model)
    check_name(condition, "condition", optional=False)
    check_name(layer, "layer")
    check_positive("batch_size", batch_size, optional=False)
    if len(model.classes) < 2:
        raise ValueError("model holds one density and no classes (fitted with condition=None): nothing to calibrate.")
    seed, torch_device = seed_of(rng), usable_device(device)
    column = obs_column(adata, condition, "condition")
    labelled = column.notna().to_numpy()
    if not labelled.any():
        raise ValueError(f"condition={condition!r} holds no label: all {len(column)} values are missing.")
    labels = column[labelled].astype(str).to_numpy(dtype=str)
    unknown = sorted(set(labels) - set(model.classes.tolist()))
    if unknown:
        raise ValueError(
            f"condition={condition!r} holds {len(unknown)} labels that the model does not know: {unknown[:5]}; its classes are "
            f"{model.classes.tolist()}. Rename them, or set them to NaN to leave the cells out."
        )
    y = np.searchsorted(model.classes, labels)
    effort = model.calibration
    cells = adata if labelled.all() else adata[labelled]
    found = model.log_likelihood(
        cells,
        layer=layer,
        n_steps=effort.n_steps,
        n_paths=effort.n_paths,
        seed=seed,
        batch_size=batch_size,
        device=torch_device,
        progress=progress,
        description="calibrate",
    )
    estimates = [(estimate.mean.numpy(), estimate.density.numpy()) for _, estimate in found]
    values, density = (np.concatenate(part) for part in zip(*estimates, strict=True))
    held_out = HeldOut.of(
        values,
        y,
        model.representation.log_depth(cells, layer=layer),
        None if model.diffusion.readout is None else density,
    )
    log_prior = np.log(np.maximum(held_out.frequencies(model.log_prior("train")), 1e-300))
    temperature, offsets = fit_calibration(values, log_prior, y)
    new = copy.copy(model)
    new.calibration, new.held_out = replace(effort, temperature=temperature, offsets=offsets.tolist()), held_out
    logger.info(
        "calibrated on %d cells (%d without a label left out): temperature %.2f, before %.2f",
        len(y),
        int((~labelled).sum()),
        temperature,
        effort.temperature,
    )
    return new
