"""``tl.attribute``: which genes speak for a class, in nats that add up to the evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scscore._logging import logger
from scscore._version import __version__
from scscore.core.attribution import Contrast
from scscore.core.trajectories import NoiseStream
from scscore.io.gene_sets import GeneSets
from scscore.io.gene_space import LinearGenes
from scscore.io.keys import Keys
from scscore.io.modalities import of_modality
from scscore.io.params import json_params, jsonable
from scscore.model import ScoreModel
from scscore.tl._contrasts import ClassContrasts, ValueContrasts
from scscore.tl._gene_evidence import EvidenceSplit, Method, genes_of
from scscore.tl._validate import (
    check_adata,
    check_model,
    check_name,
    check_paths,
    check_positive,
    seed_of,
    usable_device,
)

if TYPE_CHECKING:
    from mudata import MuData


def attribute(
    adata: AnnData | MuData,
    model: ScoreModel,
    *,
    target: str | float | None = None,
    reference: str | float | None = None,
    method: Method = "integrated_gradients",
    per_cell: bool | int = False,
    by_level: bool = False,
    gene_sets: str | Mapping[str, Sequence[str]] | None = None,
    modality: str | None = None,
    layer: str | None = None,
    encoder: str | Callable[[torch.Tensor], torch.Tensor] | None = None,
    decoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
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
        From :func:`scscore.tl.fit` or :func:`scscore.load`.
    target
        ``None``: every cell's own most probable class (by its posterior; the evidence for it is a ratio of likelihoods, without the prior, and may be
        negative). The name of a class: that class, for all cells. The name of a column of
        ``obs`` with class names: the class that stands there. In a model of a continuous target, a value, or a column of ``obs`` with values;
        ``None`` is one standard deviation above the mean of the training values.
    reference
        What the target is compared with: ``"rest"`` (``None`` is the same), the other classes, weighted by the prior of the model;
        ``"runner-up"``, the most probable other class of every cell; ``"marginal"``, all classes with the target; or the name of a class. In a model
        of a continuous target, another value, or ``"marginal"``, all values; ``None`` is one standard deviation below the mean where `target` is
        ``None``, too, else all values. Positive evidence then speaks for the higher value.
    method
        ``"integrated_gradients"``: as above. ``"dissipation"``: only the closed-form reference is integrated; what the network adds to the evidence is
        split along the noising trajectories of the likelihood, jump by jump, as products of force and displacement. Its products of two
        factors per gene do not vanish for genes at the baseline.
    per_cell
        Keep the attributions of every cell, too: ``True`` all of them, dense; a number only so many genes per cell, those of the
        largest size, sparse.
    by_level
        Split the evidence into noise levels, too: which genes speak while the cell is still noisy (coarse identity), and which only at
        the end (fine differences). Costs as much again for every level. With ``method="integrated_gradients"`` and linear encoders.
    gene_sets
        Sum the attributions of every cell over sets, too: a mapping from names to genes (of which some may be missing), or a
        column of ``var``, such as the modality of a feature.
    modality
        For a MuData: the modality to work on. ``None``: the only one, or ``"rna"``.
    layer
        Layer with the values; ``None`` is ``X``. For a model of a stored representation, the values that it was computed from.
    encoder, decoder
        For a model that was fitted with `use_rep`. ``None``: the loadings of ``sc.pp.pca`` in ``varm["PCs"]``; a string: other loadings in
        ``varm``; a function: a differentiable encoder, from a float32 tensor ``(n, n_vars)`` of expression to points ``(n, n_features)``,
        such as the mean of an autoencoder in evaluation mode. The line from baseline to cell then runs in genes, and its baseline is decoded by
        `decoder`, or by a ridge regression of expression on points.
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
    - ``obs[f"{k}_target"]``: the target of the cell (categorical); ``obs[f"{k}_runner_up"]``: what it is compared with, where that is the runner-up;
    - ``obs[f"{k}_evidence"]`` and ``obs[f"{k}_evidence_baseline"]``: evidence of the cell, and the part of it that is there at the baseline
      already, nats (float32);
    - ``layers[f"{k}_attribution"]`` with `per_cell`: nats, float32 ``(n_obs, n_vars)``;
    - ``varm[f"{k}_attribution_levels"]`` with `by_level`: what every step from noise to the clean cell adds to the mean, nats, float32
      ``(n_vars, n_classes, n_levels)``; sums to ``varm[f"{k}_attribution"]`` over the levels;
    - ``obsm[f"{k}_attribution_sets"]`` with `gene_sets`: nats, float32 ``(n_obs, n_sets)``, in the order of ``gene_sets`` in ``uns``;
    - ``uns[f"{k}_attribution"]``: ``classes``, ``n_cells``, ``baseline`` (mean evidence at the baseline, nats), ``completeness`` (largest difference
      of the sum over genes from the evidence less its baseline, relative to the larger of one nat and this), ``params`` (JSON), ``model_hash``, ``version``.

    What an earlier call with the same key wrote in slots that this one does not write is deleted.

    Raises
    ------
    TypeError
        Not an AnnData, or not a ScoreModel.
    KeyError
        Unknown layer, loadings or column of ``var``, or a target that is neither a class nor a column.
    ValueError
        A model without classes, loadings or an encoder that do not lead from the values to the representation, an unknown reference, a
        reference that is the target, labels that are no classes, gene sets without a gene, and what :func:`scscore.tl.classify` refuses.

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
    Of a continuous target the evidence is that of the density, without the readout. Derivation: the *Attribution* page of the documentation. Integrated gradients: Sundararajan et al. 2017.
    """
    adata = of_modality(adata, modality)
    check_adata(adata)
    check_model(model, continuous=None)
    keys, seed = Keys(key_added), seed_of(rng)
    check_name(layer, "layer")
    check_positive("n_steps", n_steps)
    check_paths(n_paths)
    check_positive("n_segments", n_segments, optional=False)
    check_positive("batch_size", batch_size, optional=False)
    if not isinstance(per_cell, bool):
        check_positive("per_cell", per_cell, optional=False)
    compared = (ClassContrasts if model.target is None else ValueContrasts).of(adata, model, target, reference)
    classes = compared.names
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {list(get_args(Method))}, got {method!r}.")
    if by_level and (method != "integrated_gradients" or callable(encoder)):
        raise ValueError("by_level=True needs method='integrated_gradients' and an encoder that is linear.")
    sets = None if gene_sets is None else GeneSets.of(gene_sets, adata)
    torch_device, n_steps = usable_device(device), n_steps or model.calibration.n_steps
    genes = genes_of(adata, model, encoder, decoder, layer=layer)
    if by_level and not isinstance(genes, LinearGenes):
        raise ValueError("by_level=True needs method='integrated_gradients' and an encoder that is linear.")
    split = EvidenceSplit(
        model, genes, method, n_steps=n_steps, n_paths=n_paths, n_segments=n_segments, device=torch_device
    )

    sums = _Sums(np.zeros((3, len(classes), adata.n_vars)), np.zeros(len(classes), dtype=np.int64))
    others = np.empty(adata.n_obs, dtype=np.int64) if compared.reference == "runner-up" else None
    evidence, at_baseline, targets = np.empty(adata.n_obs), np.empty(adata.n_obs), np.empty(adata.n_obs, dtype=np.int64)
    worst, kept, in_sets = 0.0, [], []
    n_levels = n_steps + 2 if by_level else 0
    of_levels = np.zeros((n_levels, len(classes), adata.n_vars))
    noise, covariates = NoiseStream(seed), model.covariates_of(adata)
    with tqdm(total=adata.n_obs, desc="attribute", unit="cell", disable=not progress) as bar:
        for chunk in genes.chunks(batch_size):
            rows = slice(chunk.start, chunk.start + len(chunk.points))
            points = model.without_covariates(chunk.points, covariates.rows(rows))
            z = model.in_engine(points).to(torch_device)
            contrast = compared.of_cells(model, z, n_steps, noise, rows)
            found = split(chunk, z, points, contrast, noise)
            y = contrast.target.cpu().numpy()
            if others is not None and isinstance(contrast, Contrast):
                others[rows] = contrast.log_weights.argmax(1).cpu().numpy()
            sums.add(y, found.parts, np.where(found.above > 0, found.parts, 0))
            evidence[rows], at_baseline[rows], targets[rows] = found.evidence, found.evidence - found.change, y
            worst = max(worst, found.completeness)
            for level in range(n_levels):  # the last one is the clean cell
                at_level = found if level == n_levels - 1 else split(chunk, z, points, contrast, noise, level=level)
                of_levels[level] += np.eye(len(classes))[:, y] @ at_level.parts
            if sets is not None:
                in_sets.append((found.parts @ sets.members).astype(np.float32))
            if per_cell:
                whole = per_cell is True
                kept.append(found.parts.astype(np.float32) if whole else _largest(found.parts, int(per_cell)))
            bar.update(len(z))

    target_adata = adata.copy() if copy else adata
    mean, error, presence = sums.results()
    target_adata.varm[keys.attribution] = mean
    target_adata.varm[keys.attribution_se] = error
    target_adata.varm[keys.attribution_presence] = presence
    named = pd.Categorical.from_codes(targets, categories=np.array(classes, dtype=object))
    target_adata.obs[keys.target] = pd.Series(named, index=target_adata.obs_names)
    if others is not None:
        named = pd.Categorical.from_codes(others, categories=np.array(classes, dtype=object))
        target_adata.obs[keys.runner_up] = pd.Series(named, index=target_adata.obs_names)
    elif keys.runner_up in target_adata.obs:
        del target_adata.obs[keys.runner_up]
    target_adata.obs[keys.evidence] = evidence.astype(np.float32)
    target_adata.obs[keys.evidence_baseline] = at_baseline.astype(np.float32)
    if per_cell:
        target_adata.layers[keys.attribution] = (
            np.concatenate(kept) if per_cell is True else sp.vstack(kept, format="csr")
        )
    elif keys.attribution in target_adata.layers:  # of an earlier call
        del target_adata.layers[keys.attribution]
    if by_level:
        with np.errstate(invalid="ignore"):
            steps = np.diff(of_levels, axis=0, prepend=0) / sums.n_cells[:, None]
        target_adata.varm[keys.attribution_levels] = np.ascontiguousarray(steps.T.astype(np.float32))
    elif keys.attribution_levels in target_adata.varm:
        del target_adata.varm[keys.attribution_levels]
    if sets is not None:
        target_adata.obsm[keys.attribution_sets] = np.concatenate(in_sets)
    elif keys.attribution_sets in target_adata.obsm:
        del target_adata.obsm[keys.attribution_sets]
    params = {
        "condition": model.params["condition"],
        "target": compared.target,
        "reference": compared.reference,
        "method": method,
        "layer": layer,
        "n_steps": n_steps,
        "n_paths": n_paths,
        "n_segments": n_segments,
        "encoder": encoder if encoder is None or isinstance(encoder, str) else "function",
        "seed": seed,
    }
    with np.errstate(invalid="ignore"):
        baseline = np.bincount(targets, weights=at_baseline, minlength=len(classes)) / sums.n_cells
    target_adata.uns[keys.attribution] = {
        "classes": np.array(classes, dtype=object),
        "n_cells": sums.n_cells,
        "baseline": baseline,
        "completeness": worst,
        **({"log_snr": model.diffusion.schedule.levels(n_steps).flip(0).numpy()} if by_level else {}),
        **({} if sets is None else {"gene_sets": np.array(sets.names, dtype=object)}),
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
        (f", layers[{keys.attribution!r}]" if per_cell else "")
        + (f", obsm[{keys.attribution_sets!r}]" if sets is not None else ""),
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


def _largest(parts: NDArray[np.float64], n: int) -> sp.csr_matrix:
    """The `n` genes of the largest size of every cell."""
    n = min(n, parts.shape[1])
    columns = np.sort(np.argpartition(-abs(parts), n - 1, axis=1)[:, :n], axis=1)
    values = np.take_along_axis(parts, columns, axis=1).astype(np.float32)
    starts = np.arange(0, len(parts) * n + 1, n)
    return sp.csr_matrix((values.ravel(), columns.ravel(), starts), shape=parts.shape)
