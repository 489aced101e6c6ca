"""``tl.predict_perturbation``: which perturbation a cell had, whether it responded, which targets can be detected, and by which genes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.special import expit

from scscore._logging import logger, quiet
from scscore._version import __version__
from scscore.core.detectability import merge_tree, pairwise_separation, separation
from scscore.core.permutation import benjamini_hochberg
from scscore.core.thinning import evenly_spread
from scscore.io.columns import obs_column
from scscore.io.keys import Keys
from scscore.io.modalities import of_modality
from scscore.io.params import json_params, jsonable
from scscore.model import ScoreModel
from scscore.tl._attribute import attribute
from scscore.tl._classify import classify
from scscore.tl._validate import check_adata, check_model, check_name, check_positive, seed_of

if TYPE_CHECKING:
    from mudata import MuData

FDR = 0.05


def predict_perturbation(
    adata: AnnData | MuData,
    model: ScoreModel,
    *,
    control: str,
    assigned: str | None = None,
    exclude: str | None = None,
    modality: str | None = None,
    layer: str | None = None,
    max_cells: int | None = 300,
    batch_size: int = 1024,
    device: str = "auto",
    key_added: str = "scscore",
    copy: bool = False,
    rng: int | np.random.Generator = 0,
    progress: bool = True,
    **classify_options: Any,
) -> AnnData | None:
    r"""Posterior over all perturbations, response of every cell to its own, detectability and genes of every target.

    Every cell is classified as by :func:`scscore.tl.classify`. Its evidence is :math:`\log p(x \mid a) - \log p(x \mid \mathrm{control})` for the
    perturbation :math:`a` that it was assigned to (the target of its guide, the drug of its well), and its response probability the
    calibrated posterior of these two alone at even odds: a cell below one half looks like a control cell, it *escaped*.
    A perturbation can be detected where the evidence for it is higher in its cells than in control cells.

    Detectability is only meaningful on cells that the model has not seen: of another replicate, other guides, or held out. On training
    cells it is too high, and targets without any effect appear to have one.

    Parameters
    ----------
    adata
        Cells, or a MuData with them, with the kind of values that the model was fitted on.
    model
        From :func:`scscore.tl.fit` on the column with the perturbations, of which one is the control.
    control
        The class of unperturbed cells.
    assigned
        Column of ``obs`` with the perturbation that every cell was assigned to. ``None``: the column that the model was fitted on. Cells
        without one, or with one that the model does not know, are classified and take no part in the rest.
    exclude
        Column of ``obs``, true for cells that take no part in the rest, either, for instance those with two guides.
    modality
        For a MuData: the modality with the cells, to which results are written. ``None``: the only one, or ``"rna"``.
    layer
        Layer with the values; ``None`` is ``X``.
    max_cells
        Attribute at most so many cells of every perturbation to genes. ``None``: all.
    batch_size, device, rng, progress
        As in :func:`scscore.tl.classify`.
    key_added
        Name of all slots that are written.
    copy
        Return an annotated copy (of the modality) instead of writing.
    **classify_options
        More arguments of :func:`scscore.tl.classify`, for instance `prior`, `reject` or `precision`.

    Returns
    -------
    ``None``, or the copy. With ``k = key_added``, writes what :func:`scscore.tl.classify` writes, and

    - ``obs[f"{k}_perturbation_evidence"]``: evidence for the assigned perturbation against control, nats (float32; NaN for control cells and those without one);
    - ``obs[f"{k}_response"]``: response probability (float32; NaN likewise);
    - ``obs[f"{k}_escape"]``: response probability below one half (bool; false likewise);
    - ``varm[f"{k}_attribution"]``, ``..._se``, ``..._presence``, ``uns[f"{k}_attribution"]``: genes that speak for every perturbation against control
      over its cells, see :func:`scscore.tl.attribute`; missing for a model of a stored representation without loadings;
    - ``uns[f"{k}_perturbation"]``: ``names`` of the perturbations, and for each of them ``n_cells``, ``auroc`` of the evidence in its cells against control
      cells, ``pvalue`` (rank-sum test, that is, under permuted labels), ``fdr`` (Benjamini-Hochberg), ``effect`` and ``effect_se`` (mean evidence of its cells, nats),
      ``escape`` (share of escaped cells), ``control_response`` (share of control cells that would count as responding), ``threshold`` (evidence at which the
      response probability is one half, nats); ``n_control``; ``pairwise`` and ``pairwise_fdr``: AUROC of every two perturbations against each other, control last,
      and ``tree``, their average linkage (scipy); ``control``, ``params`` (JSON), ``model_hash``, ``version``.

    Raises
    ------
    TypeError
        Not an AnnData or MuData, or not a ScoreModel.
    KeyError
        Unknown column, layer or modality.
    ValueError
        `control` is no class of the model, no cell is assigned to a perturbation of the model, or none to control, `exclude` is not boolean, and what
        :func:`scscore.tl.classify` refuses.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.predict_perturbation(cells, model, control="a", progress=False)
    >>> scs.get.perturbation(cells).index.tolist()
    ['b', 'c']
    """
    adata = of_modality(adata, modality)
    check_adata(adata)
    check_model(model)
    keys, seed = Keys(key_added), seed_of(rng)
    for name, value in (("control", control), ("assigned", assigned), ("exclude", exclude)):
        check_name(value, name, optional=name != "control")
    check_positive("max_cells", max_cells)
    classes = model.classes.tolist()
    if control not in classes:
        raise ValueError(f"control must be a class of the model, got {control!r}; classes: {classes}.")
    column = model.params["condition"] if assigned is None else assigned
    y = _assigned(adata, column, exclude, classes)
    c = classes.index(control)
    if not (y == c).any() or not ((y >= 0) & (y != c)).any():
        raise ValueError(
            f"assigned={column!r} must hold cells of control ({control!r}) and of a perturbation of the model, found "
            f"{int((y == c).sum())} and {int(((y >= 0) & (y != c)).sum())}."
        )
    target = adata.copy() if copy else adata
    classify(
        target,
        model,
        layer=layer,
        batch_size=batch_size,
        device=device,
        key_added=key_added,
        rng=seed,
        progress=progress,
        **classify_options,
    )
    log_likelihood = np.asarray(target.obsm[keys.log_likelihood], dtype=np.float64)
    perturbed, rows = (y >= 0) & (y != c), np.arange(adata.n_obs)
    evidence = np.where(perturbed, log_likelihood[rows, y] - log_likelihood[:, c], np.nan)
    offsets = np.asarray(model.calibration.offsets or np.zeros(len(classes)))
    response = expit(model.calibration.temperature * evidence + np.where(perturbed, offsets[y] - offsets[c], 0))
    target.obs[keys.perturbation_evidence] = evidence.astype(np.float32)
    target.obs[keys.response] = response.astype(np.float32)
    target.obs[keys.escape] = response < 0.5  # not true of NaN

    threshold = (offsets[c] - offsets) / model.calibration.temperature
    figures = _figures(log_likelihood, y, c, threshold)
    order = [k for k in range(len(classes)) if k != c and (y == k).any()]
    area, p = pairwise_separation(log_likelihood[:, [*order, c]], pd.Index([*order, c]).get_indexer(y))
    upper = np.triu_indices(len(area), 1)
    rates = np.ones_like(p)
    rates[upper] = benjamini_hochberg(p[upper])
    _attribute_targets(
        target,
        model,
        y,
        c,
        control,
        keys,
        max_cells=max_cells,
        layer=layer,
        seed=seed,
        device=device,
        progress=progress,
    )
    params = {
        "condition": column,
        "control": control,
        "exclude": exclude,
        "layer": layer,
        "max_cells": max_cells,
        "seed": seed,
    }
    target.uns[keys.perturbation] = {
        "names": np.array([classes[k] for k in order], dtype=object),
        **{name: values[order] for name, values in figures.items()},
        "pairwise": area,
        "pairwise_fdr": np.minimum(rates, rates.T),
        "tree": merge_tree(area),
        "control": control,
        "n_control": int((y == c).sum()),
        "params": json_params(jsonable(params)),
        "model_hash": model.hash,
        "version": __version__,
    }
    detected = [k for k in order if figures["fdr"][k] < FDR]
    own = np.isin(y, detected)
    logger.info(
        "%d of %d perturbations are detected at a false discovery rate of %.0f%%; %d of their %d cells escaped\n"
        "wrote obs%r, uns[%r]%s",
        len(detected),
        len(order),
        100 * FDR,
        int(target.obs[keys.escape].to_numpy()[own].sum()),
        int(own.sum()),
        [keys.perturbation_evidence, keys.response, keys.escape],
        keys.perturbation,
        f", varm[{keys.attribution!r}] and its kin" if keys.attribution in target.varm else "",
    )
    return target if copy else None


def _assigned(adata: AnnData, column: str, exclude: str | None, classes: list[str]) -> NDArray[np.int64]:
    """Class that every cell was assigned to; -1 for none, an unknown one, and cells to be left out."""
    values = obs_column(adata, column, "assigned")
    y = pd.Index(classes).get_indexer(values.astype(str))
    unknown = (y < 0) & values.notna().to_numpy()
    if unknown.any():
        names = sorted(set(values[unknown].astype(str)))
        logger.warning(
            "%d cells are assigned to %d labels that the model does not know (%s%s): they are classified only.",
            int(unknown.sum()),
            len(names),
            ", ".join(names[:3]),
            ", ..." if len(names) > 3 else "",
        )
    if exclude is not None:
        out = obs_column(adata, exclude, "exclude")
        if not pd.api.types.is_bool_dtype(out):
            raise ValueError(f"exclude={exclude!r} must be a boolean column, found {out.dtype}.")
        y[out.to_numpy()] = -1
    return y


def _figures(
    log_likelihood: NDArray[np.float64], y: NDArray[np.int64], c: int, threshold: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """What is told about every perturbation, by class."""
    n_classes = log_likelihood.shape[1]
    names = ("auroc", "pvalue", "effect", "effect_se", "escape", "control_response")
    found = {name: np.full(n_classes, np.nan) for name in names}
    for k in range(n_classes):
        own = y == k
        if k == c or not own.any():
            continue
        ratio = log_likelihood[:, k] - log_likelihood[:, c]
        found["auroc"][k], found["pvalue"][k] = separation(ratio[own], ratio[y == c])
        found["effect"][k], found["escape"][k] = ratio[own].mean(), (ratio[own] < threshold[k]).mean()
        found["control_response"][k] = (ratio[y == c] >= threshold[k]).mean()
        if own.sum() > 1:
            found["effect_se"][k] = ratio[own].std(ddof=1) / np.sqrt(own.sum())
    n_cells = np.array([(y == k).sum() for k in range(n_classes)])
    return {"n_cells": n_cells, **found, "fdr": benjamini_hochberg(found["pvalue"]), "threshold": threshold}


def _attribute_targets(
    target: AnnData,
    model: ScoreModel,
    y: NDArray[np.int64],
    c: int,
    control: str,
    keys: Keys,
    *,
    max_cells: int | None,
    **options: Any,
) -> None:
    """Genes of every perturbation against control, over some of its cells."""
    rows = [np.flatnonzero(y == k) for k in range(len(model.classes)) if k != c]
    rows = [own if max_cells is None else own[evenly_spread(len(own), max_cells)] for own in rows]
    chosen = np.sort(np.concatenate(rows))
    cells = target[chosen].copy()
    column = "assigned to"
    cells.obs[column] = model.classes[y[chosen]]
    seed, reason = options.pop("seed"), ""
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore", UserWarning)  # missing genes were reported by classify
        try:
            attribute(cells, model, target=column, reference=control, key_added=keys.key_added, rng=seed, **options)
        except (KeyError, ValueError) as error:
            if model.genes is not None:
                raise
            reason = str(error).strip('"')
    if keys.attribution not in cells.varm:
        logger.warning("no gene attributions: %s", reason)
        return
    for slot in (keys.attribution, keys.attribution_se, keys.attribution_presence):
        target.varm[slot] = cells.varm[slot]
    target.uns[keys.attribution] = cells.uns[keys.attribution]
