"""``tl.attribute``: which genes speak for a class, in nats that add up to the evidence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scscore._logging import logger
from scscore._version import __version__
from scscore.core.attribution import Contrast, dissipation_parts
from scscore.core.attribution import attribute as attribute_points
from scscore.core.calibration import log_posterior
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.likelihood import log_likelihood
from scscore.core.trajectories import NoiseStream
from scscore.io.gene_space import expression_chunks, gene_space
from scscore.io.keys import Keys
from scscore.io.representation import PCAEncoder
from scscore.model import ScoreModel, json_params, jsonable
from scscore.tl._validate import (
    check_adata,
    check_model,
    check_name,
    check_paths,
    check_positive,
    obs_column,
    seed_of,
    usable_device,
)

REFERENCES = ("rest", "runner-up", "marginal")
Method = Literal["integrated_gradients", "dissipation"]


def attribute(
    adata: AnnData,
    model: ScoreModel,
    *,
    target: str | None = None,
    reference: str = "rest",
    method: Method = "integrated_gradients",
    per_cell: bool | int = False,
    layer: str | None = None,
    n_steps: int | None = None,
    n_paths: int = 2,
    n_segments: int = 8,
    batch_size: int = 1024,
    device: str = "auto",
    key_added: str = "scscore",
    copy: bool = False,
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> AnnData | None:
    r"""Split the evidence for a class into genes.

    The evidence of a cell is :math:`\log p(x \mid c) - \log p(x \mid \text{reference})`, in nats. It is integrated from a baseline between
    class and reference, where neither is favoured, to the cell, with the noise of the estimator held fixed, and every gene gets its part of the
    integral: (expression less that of the baseline) times (mean gradient). The parts add up to the evidence, up to
    what it is at the baseline, and do not change when the latent axes are rotated, flipped or reordered.

    A part from expression above the baseline is evidence by *presence*, one from below by *absence*: many a T cell is recognised by
    what it lacks.

    Parameters
    ----------
    adata
        Cells, with the kind of values that the model was fitted on; in memory, backed or with dask arrays.
    model
        From :func:`scscore.tl.fit` or :func:`scscore.load`, with its own encoder.
    target
        ``None``: every cell's own most probable class. The name of a class: that class, for all cells. The name of a column of
        ``obs`` with class names: the class that stands there.
    reference
        What the target is compared with: ``"rest"``, the other classes, weighted by the prior of the model; ``"runner-up"``, the
        most probable other class of every cell; ``"marginal"``, all classes with the target; or the name of a class.
    method
        ``"integrated_gradients"``: as above. ``"dissipation"``: only the closed-form reference is integrated; what the network adds to the evidence is
        split along the noising trajectories of the likelihood, jump by jump, as products of force and displacement. Its products of two
        factors per gene do not vanish for genes at the baseline.
    per_cell
        Keep the attributions of every cell, too: ``True`` all of them, dense; a number only so many genes per cell, those of the
        largest size, sparse.
    layer
        Layer with the values; ``None`` is ``X``.
    n_steps, n_paths
        Jumps per noising trajectory (``None``: as for the classification), and trajectories per cell (an even number).
    n_segments
        Parts of the line from the baseline to the cell. Completeness does not depend on it; more parts divide the evidence
        more faithfully where it bends.
    batch_size
        Cells per chunk. Changes memory and speed, not results.
    device
        Torch device; ``"auto"`` takes a GPU if there is one.
    key_added
        Name of all slots that are written.
    copy
        Return an annotated copy instead of writing to `adata`.
    rng
        Seed or generator of the noise.
    progress
        Show a progress bar.

    Returns
    -------
    ``None``, or the copy. With ``k = key_added``, writes

    - ``varm[f"{k}_attribution"]``: mean nats per gene over the cells whose target is the class, float32 ``(n_vars, n_classes)``; NaN for a
      class that is no cell's target;
    - ``varm[f"{k}_attribution_se"]``: its standard error over cells and trajectories, float32 ``(n_vars, n_classes)``; NaN for fewer
      than two cells;
    - ``varm[f"{k}_attribution_presence"]``: the part from expression above the baseline; the rest is absence;
    - ``obs[f"{k}_target"]``: the target of the cell (categorical);
    - ``obs[f"{k}_evidence"]`` and ``obs[f"{k}_evidence_baseline"]``: evidence of the cell, and the part of it that is there at the baseline
      already, nats (float32);
    - ``layers[f"{k}_attribution"]`` with `per_cell`: nats, float32 ``(n_obs, n_vars)``;
    - ``uns[f"{k}_attribution"]``: ``classes``, ``n_cells``, ``baseline`` (mean evidence at the baseline, nats), ``completeness`` (largest difference
      of the sum over genes from the evidence less its baseline, relative to the larger of one nat and this; what missing genes and
      covariates contribute is in it), ``params`` (JSON), ``model_hash``, ``version``.

    Raises
    ------
    TypeError
        Not an AnnData, or not a ScoreModel.
    KeyError
        Unknown layer, or a target that is neither a class nor a column.
    ValueError
        A model without classes or without an encoder of its own, an unknown reference, a reference that is the target, labels that are
        no classes, and what :func:`scscore.tl.classify` refuses.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.pbmc()
    >>> train, test = (cells[cells.obs["split"] == part].copy() for part in ("train", "test"))
    >>> model = scs.tl.fit(train, "cell_type", max_epochs=2, progress=False)
    >>> scs.tl.attribute(test, model, progress=False)
    >>> test.varm["scscore_attribution"].shape
    (765, 10)

    Notes
    -----
    Derivation: the *Attribution* page of the documentation. Integrated gradients: Sundararajan et al. 2017.
    """
    check_adata(adata)
    check_model(model)
    keys, seed = Keys(key_added), seed_of(rng)
    for name, value in (("target", target), ("layer", layer), ("reference", reference)):
        check_name(value, name, optional=name != "reference")
    check_positive("n_steps", n_steps)
    check_paths(n_paths)
    check_positive("n_segments", n_segments, optional=False)
    check_positive("batch_size", batch_size, optional=False)
    if not isinstance(per_cell, bool):
        check_positive("per_cell", per_cell, optional=False)
    encoder, classes = model.representation, model.classes.tolist()
    if len(classes) < 2:
        raise ValueError(
            "model holds one density and no classes (fitted with condition=None): there is nothing to compare."
        )
    if not isinstance(encoder, PCAEncoder):
        raise ValueError(
            f"model reads obsm[{encoder.key!r}], which has no genes: fit without use_rep= to attribute to genes."  # type: ignore[attr-defined]
        )
    if reference not in (*REFERENCES, *classes):
        raise ValueError(
            f"reference must be one of {list(REFERENCES)} or a class of the model ({classes}), got {reference!r}."
        )
    if target is not None and target == reference:
        raise ValueError(f"target and reference are the same class {target!r}.")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {list(get_args(Method))}, got {method!r}.")
    fixed = _fixed_targets(adata, target, classes)
    torch_device, n_steps = usable_device(device), n_steps or model.calibration.n_steps
    log_prior = model.log_prior()

    whitening = model.whitening
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # missing genes are reported once, by the chunks below
        space = gene_space(encoder, adata, center=whitening.center.numpy(), matrix=whitening.matrix.numpy())
    sums = _Sums(np.zeros((3, len(classes), adata.n_vars)), np.zeros(len(classes), dtype=np.int64))
    evidence, at_baseline, targets = np.empty(adata.n_obs), np.empty(adata.n_obs), np.empty(adata.n_obs, dtype=np.int64)
    worst, kept = 0.0, []
    noise = NoiseStream(seed)
    native = method == "dissipation"
    # what is integrated: the whole evidence, or the part of the closed-form reference
    integrated = (
        ConditionalDiffusion(model.diffusion.schedule, model.diffusion.reference) if native else model.diffusion
    )
    maps = [torch.from_numpy(value).to(torch_device) for value in (space.loadings, space.dual)]
    chunks = zip(
        model.points(adata, layer=layer, batch_size=batch_size, device=torch_device),
        expression_chunks(encoder, adata, layer=layer, size=batch_size),
        strict=True,
    )
    with tqdm(total=adata.n_obs, desc="attribute", unit="cell", disable=not progress) as bar:
        for (rows, z), (_, x) in chunks:
            contrast = _contrast(
                model, z, reference, None if fixed is None else fixed[rows], log_prior, n_steps, noise, rows
            )
            effort = {"noise": noise, "n_steps": n_steps, "n_paths": n_paths, "start": rows.start}
            found = attribute_points(integrated, z, contrast, n_segments=n_segments, **effort)
            gradient, displacement = (value.cpu().numpy() for value in (found.gradient.mean(0), found.displacement))
            change = (found.evidence - found.baseline).mean(0).cpu().numpy()
            above = x - space.expression(z.cpu().numpy().astype(np.float64) - displacement)
            above[:, ~space.loadings.any(1)] = 0
            parts = above * (gradient @ space.loadings.T)
            whole = found.evidence.mean(0).cpu().numpy()
            if native:
                with torch.inference_mode():
                    native_parts = dissipation_parts(model.diffusion, z, contrast, *maps, **effort)
                of_genes, of_residual, whole = (value.cpu().numpy() for value in native_parts)
                parts, change = parts + of_genes, change + of_residual
            worst = max(worst, float((abs(parts.sum(1) - change) / np.maximum(abs(change), 1)).max()))
            y = contrast.target.cpu().numpy()
            sums.add(y, parts, np.where(above > 0, parts, 0))
            evidence[rows], at_baseline[rows], targets[rows] = whole, whole - change, y
            if per_cell:
                kept.append(parts.astype(np.float32) if per_cell is True else _largest(parts, int(per_cell)))
            bar.update(len(z))

    target_adata = adata.copy() if copy else adata
    mean, error, presence = sums.results()
    target_adata.varm[keys.attribution] = mean
    target_adata.varm[keys.attribution_se] = error
    target_adata.varm[keys.attribution_presence] = presence
    named = pd.Categorical.from_codes(targets, categories=model.classes.astype(object))
    target_adata.obs[keys.target] = pd.Series(named, index=target_adata.obs_names)
    target_adata.obs[keys.evidence] = evidence.astype(np.float32)
    target_adata.obs[keys.evidence_baseline] = at_baseline.astype(np.float32)
    if per_cell:
        target_adata.layers[keys.attribution] = (
            np.concatenate(kept) if per_cell is True else sp.vstack(kept, format="csr")
        )
    elif keys.attribution in target_adata.layers:  # of an earlier call
        del target_adata.layers[keys.attribution]
    params = {
        "condition": model.params["condition"],
        "target": target,
        "reference": reference,
        "method": method,
        "layer": layer,
        "n_steps": n_steps,
        "n_paths": n_paths,
        "n_segments": n_segments,
        "seed": seed,
    }
    with np.errstate(invalid="ignore"):
        baseline = np.bincount(targets, weights=at_baseline, minlength=len(classes)) / sums.n_cells
    target_adata.uns[keys.attribution] = {
        "classes": model.classes.astype(object),
        "n_cells": sums.n_cells,
        "baseline": baseline,
        "completeness": worst,
        "params": json_params(jsonable(params)),
        "model_hash": model.hash,
        "version": __version__,
    }
    logger.info(
        "attributed the evidence of %d cells to %d genes, complete to %.1g\nwrote varm%r, obs%r, uns[%r]%s",
        adata.n_obs,
        adata.n_vars,
        worst,
        [keys.attribution, keys.attribution_se, keys.attribution_presence],
        [keys.target, keys.evidence, keys.evidence_baseline],
        keys.attribution,
        f", layers[{keys.attribution!r}]" if per_cell else "",
    )
    return target_adata if copy else None


@dataclass
class _Sums:
    """Running sums over the cells of every class: values, squares, presence, ``(3, n_classes, n_vars)``, and numbers of cells."""

    values: NDArray[np.float64]
    n_cells: NDArray[np.int64]

    def add(self, y: NDArray[np.integer], parts: NDArray[np.float64], presence: NDArray[np.float64]) -> None:
        members = np.eye(len(self.n_cells))[:, y]
        for total, value in zip(self.values, (parts, parts**2, presence), strict=True):
            total += members @ value
        self.n_cells += np.bincount(y, minlength=len(self.n_cells))

    def results(self) -> tuple[NDArray[np.float32], ...]:
        """Mean, standard error and presence, float32 ``(n_vars, n_classes)``."""
        n = self.n_cells[:, None].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean, square, presence = self.values / n
            error = np.where(n > 1, np.sqrt(np.maximum(square - mean**2, 0) / (n - 1)), np.nan)
        return tuple(np.ascontiguousarray(value.T.astype(np.float32)) for value in (mean, error, presence))


def _fixed_targets(adata: AnnData, target: str | None, classes: list[str]) -> NDArray[np.int64] | None:
    """Target of every cell, or None where it is the most probable class."""
    if target is None:
        return None
    if target in classes:
        return np.full(adata.n_obs, classes.index(target))
    if target not in adata.obs:
        raise KeyError(
            f"target={target!r} is neither a class of the model ({classes}) nor a column of adata.obs ({adata.obs.columns.tolist()})."
        )
    labels = obs_column(adata, target, "target").astype(str)
    strange = sorted(set(labels) - set(classes))
    if strange:
        raise ValueError(
            f"target={target!r} holds {len(strange)} values that are no classes of the model: {strange[:5]}; classes: {classes}. "
            "Leave these cells out."
        )
    return pd.Index(classes).get_indexer(labels)


def _contrast(
    model: ScoreModel,
    z: torch.Tensor,
    reference: str,
    target: NDArray[np.int64] | None,
    log_prior: NDArray[np.float64],
    n_steps: int,
    noise: NoiseStream,
    rows: slice,
) -> Contrast:
    """The contrasts of a chunk of cells."""
    n, n_classes = len(z), len(log_prior)
    cells, calibration = np.arange(n), model.calibration
    if target is None or reference == "runner-up":
        with torch.inference_mode():
            found = log_likelihood(
                model.diffusion, z, noise=noise, n_steps=n_steps, n_paths=calibration.n_paths, start=rows.start
            ).mean
        log_p = log_posterior(found.cpu().numpy(), calibration.log_weights(log_prior), calibration.temperature)
        target = log_p.argmax(1) if target is None else target
    if reference in ("rest", "marginal"):
        weights = np.tile(log_prior, (n, 1))
        if reference == "rest":
            weights[cells, target] = -np.inf
    else:
        if reference == "runner-up":
            log_p[cells, target] = -np.inf
            other = log_p.argmax(1)
        else:
            other = model.classes.tolist().index(reference)
        weights = np.full((n, n_classes), -np.inf)
        weights[cells, other] = 0
    weights -= np.log(np.exp(weights).sum(1, keepdims=True))
    return Contrast(torch.from_numpy(target).to(z.device), torch.from_numpy(weights).to(z.device))


def _largest(parts: NDArray[np.float64], n: int) -> sp.csr_matrix:
    """The `n` genes of the largest size of every cell."""
    n = min(n, parts.shape[1])
    columns = np.sort(np.argpartition(-abs(parts), n - 1, axis=1)[:, :n], axis=1)
    values = np.take_along_axis(parts, columns, axis=1).astype(np.float32)
    starts = np.arange(0, len(parts) * n + 1, n)
    return sp.csr_matrix((values.ravel(), columns.ravel(), starts), shape=parts.shape)
