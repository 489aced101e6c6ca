"""``tl.adapt``: take out the shift of new batches, from their unlabelled cells."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scscore._logging import logger
from scscore.core.adaptation import BatchShift, fit_batch_shift
from scscore.core.covariates import ALL_CELLS, CovariateShift, fifths, level_names
from scscore.core.thinning import evenly_spread
from scscore.io.columns import obs_column
from scscore.io.modalities import of_modality
from scscore.io.representation import PCAEncoder
from scscore.model import ScoreModel
from scscore.tl._validate import check_adata, check_batches, check_model, check_name, check_positive, usable_device

if TYPE_CHECKING:
    from mudata import MuData

_ENOUGH_CELLS, _FEW_CELLS = 5000, 30  # of a batch


def adapt(
    adata: AnnData | MuData,
    model: ScoreModel,
    *,
    batch_key: str | None = None,
    modality: str | None = None,
    layer: str | None = None,
    batch_size: int = 1024,
    device: str = "auto",
    progress: bool = True,
) -> ScoreModel:
    r"""Adapt a model to new batches, such as another donor, chemistry or study, from cells without labels.

    All cells of a batch are taken to be moved by the same shift, whatever their class, and its classes to come in proportions of their own. Both are fitted
    to the density of the model by expectation-maximisation, batch by batch; the model that is returned takes the shift out before it does anything
    else with a cell. A batch stays where it is unless a likelihood-ratio test rejects that at one per cent. Weights, calibration and held-out cells stay as they are.

    Parameters
    ----------
    adata
        The cells to be classified, with the kind of values that the model was fitted on. Up to 5,000 cells of every batch are used. Left unchanged.
    model
        From :func:`scscore.tl.fit` or :func:`scscore.load`; left unchanged.
    batch_key
        Column of ``obs`` with the batch of every cell. ``None``: all cells are one batch.
    modality
        For a MuData: the modality to work on. ``None``: the only one, or ``"rna"``.
    layer
        Layer with the values; ``None`` is ``X``.
    batch_size
        Cells per chunk. Changes memory and speed, not results.
    device
        Torch device on which images are encoded; ``"auto"`` takes a GPU if there is one.
    progress
        Show a progress bar.

    Returns
    -------
    A :class:`~scscore.ScoreModel` for these batches and no others: its ``covariates`` are the batches, and a cell whose batch is missing or new to it
    is taken to be of one of them, which cells of the reference are not. Where the model was fitted with ``covariates=batch_key``, the levels that it was fitted with
    stay, and the other batches are added; other covariates are replaced, but for numeric ones, whose slopes stay. The batches of an earlier adaptation are fitted anew. Writes nothing to `adata`.

    Raises
    ------
    TypeError
        Not an AnnData or MuData, or not a ScoreModel.
    KeyError
        Unknown column, modality or representation.
    ValueError
        `batch_key` holds no value, or numbers that are no batches; a model of a continuous target; and whatever :func:`scscore.tl.classify` refuses.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> moved = cells.copy()
    >>> moved.obsm["X_toy"] = moved.obsm["X_toy"] + 1.0
    >>> scs.tl.classify(moved, scs.tl.adapt(moved, model, progress=False), progress=False)

    Notes
    -----
    A whole batch tells what a single cell cannot: results for a cell then depend on the others of its batch. What the cells of a batch have in common is taken for technical.
    It cannot be told from biology that moves all of them, and where a batch holds a single class, that class cannot be told from a neighbouring one. The prior of the model
    says which classes a batch may hold, and in what proportions if it has few cells. Cells that no class explains pull little, so that a minority of them does no harm
    to the others, but a new class next to a known one becomes harder to notice. What the model generates stays where the reference is.

    Derivation: *New batches* in the *Trust* page of the documentation.
    """
    adata = of_modality(adata, modality)
    check_adata(adata)
    check_model(model)
    check_name(batch_key, "batch_key")
    check_name(layer, "layer")
    check_positive("batch_size", batch_size, optional=False)
    torch_device = usable_device(device)
    columns = () if batch_key is None else (batch_key,)
    if batch_key is not None:
        check_batches(obs_column(adata, batch_key, "batch_key"), batch_key)
    names = level_names(adata.obs, columns)
    numeric = _by_numbers(model)
    fitted = _fitted_columns(model)
    known = _of_fit(model) if columns and columns == fitted else None
    if fitted and known is None:
        logger.warning(
            "the shifts of %s, which the model was fitted with, are replaced by those of these batches", list(fitted)
        )
    new = [name for name in names.dropna().unique() if known is None or name not in known.levels]
    sizes = names.value_counts()
    if few := [name for name in new if sizes[name] < _FEW_CELLS]:
        logger.warning(
            "%d of %d batches have fewer than %d cells, and hardly move: %s", len(few), len(new), _FEW_CELLS, few[:5]
        )

    reference, log_prior = copy.deepcopy(model.diffusion.reference).cpu(), torch.from_numpy(model.log_prior())
    found: dict[str, BatchShift] = {}
    for name in new:
        rows = np.flatnonzero((names == name).to_numpy())
        some = rows[evenly_spread(len(rows), _ENOUGH_CELLS)]
        cells = adata if len(some) == adata.n_obs else adata[some]
        z = _points(cells, model, numeric, layer, batch_size, torch_device, progress, name)
        if not torch.isfinite(z).all():
            raise ValueError(f"batch {name!r} has cells with values too large to be represented: leave them out.")
        found[name] = fit_batch_shift(reference, z, log_prior)
        shift, gain = float(found[name].shift.norm()), found[name].gain
        moved = f"shift of {shift:.2f} standard deviations, which makes them {gain:.2f} nats per cell more likely"
        logger.info("batch %r: %d cells, %s", name, len(rows), moved if shift else "no shift beyond chance")
    if known is not None and (kept := sorted(set(names.dropna()) & set(known.levels))):
        logger.info("batches that the model was fitted with keep their shift: %s", kept)

    shifts = _of_representation(model, [one.shift for one in found.values()])
    counts = sizes[new].to_numpy(dtype=np.float64)
    if known is not None:
        shifts = np.concatenate([known.shifts, shifts])
        counts = np.concatenate([known.frequencies * model.class_counts.sum(), counts])
    levels = (*(() if known is None else known.levels), *new)
    adapted = copy.copy(model)
    adapted.covariates = replace(
        numeric or CovariateShift(columns, levels, shifts, counts),
        columns=columns,
        levels=levels,
        shifts=shifts,
        frequencies=counts / counts.sum(),
        typical=None if numeric is None else _typical(numeric, known, [adata.obs[names == name] for name in new]),
    )
    adapted.params = {
        **model.params,
        "adapted": {"batch_key": batch_key, "shifts": {name: float(one.shift.norm()) for name, one in found.items()}},
    }
    return adapted


def _fitted_columns(model: ScoreModel) -> tuple[str, ...]:
    """Columns of the levels that the model was fitted with."""
    numeric = () if model.covariates is None else model.covariates.numeric
    return tuple(name for name in model.params.get("covariates") or () if name not in numeric)


def _by_numbers(model: ScoreModel) -> CovariateShift | None:
    """The part of the covariates that numbers have, with one level for all cells; ``None`` without."""
    covariates = model.covariates
    if covariates is None or covariates.typical is None:
        return None
    return replace(
        covariates,
        columns=(),
        levels=(ALL_CELLS,),
        shifts=np.zeros_like(covariates.shifts[:1]),
        frequencies=np.ones(1),
        typical=np.tensordot(covariates.frequencies, covariates.typical, 1)[None],
    )


def _typical(
    numeric: CovariateShift, known: CovariateShift | None, batches: list[pd.DataFrame]
) -> NDArray[np.float64] | None:
    """Typical numbers of the known batches and of new ones; where a batch has none, those of the training cells."""
    if numeric.typical is None or numeric.slopes is None:
        return None
    found = [] if known is None or known.typical is None else list(known.typical)
    for obs in batches:
        cells = numeric.of_cells(obs)
        complete = cells.numbers[~cells.unknown]
        found.append(fifths(complete, numeric.slopes) if len(complete) else numeric.typical[0])
    return np.stack(found)


def _of_fit(model: ScoreModel) -> CovariateShift | None:
    """The covariates that the model was fitted with, without the batches of an earlier adaptation; None where those have replaced them."""
    covariates, earlier = model.covariates, model.params.get("adapted", {}).get("shifts", {})
    if covariates is None or covariates.columns != _fitted_columns(model):
        return None
    own = [i for i, name in enumerate(covariates.levels) if name not in earlier]
    frequencies = covariates.frequencies[own]
    return replace(
        covariates,
        levels=tuple(covariates.levels[i] for i in own),
        shifts=covariates.shifts[own],
        frequencies=frequencies / frequencies.sum(),
        typical=None if covariates.typical is None else covariates.typical[own],
    )


def _points(
    cells: AnnData,
    model: ScoreModel,
    numeric: CovariateShift | None,
    layer: str | None,
    batch_size: int,
    device: str,
    progress: bool,
    name: str,
) -> torch.Tensor:
    """Points of the engine's space with no shift taken out but that of numeric covariates."""
    bare = copy.copy(model)
    bare.covariates = numeric
    chunks = bare.points(
        cells, layer=layer, batch_size=batch_size, device=device, progress=progress, description=f"adapt to {name}"
    )
    with torch.inference_mode():
        return torch.cat([bare.diffusion.own(z).cpu() for _, z in chunks])


def _of_representation(model: ScoreModel, shifts: list[torch.Tensor]) -> NDArray[np.float64]:
    """Shifts of the whitened space as shifts of the representation, ``(n_shifts, n_features + n_scores)``.

    Features that are not used do not move; class scores move by what the others make of the expression.
    """
    encoder = model.representation
    out = np.zeros((len(shifts), encoder.n_features))
    if shifts:
        used = model.whitening.inverse(torch.stack(shifts)) - model.whitening.center
        out[:, : used.shape[1]] = used.numpy()
    return np.hstack([out, out @ encoder.score_map.slopes]) if isinstance(encoder, PCAEncoder) else out
