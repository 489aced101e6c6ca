"""``tl.attribution_test``: which genes speak for a class by more than chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scscore._logging import logger
from scscore._version import __version__
from scscore.core.permutation import benjamini_hochberg, permutation_p_values
from scscore.core.thinning import evenly_spread
from scscore.core.trajectories import NoiseStream
from scscore.io.columns import obs_column
from scscore.io.gene_space import GeneChunk, Genes, Map
from scscore.io.keys import Keys
from scscore.io.params import json_params, jsonable
from scscore.model import ScoreModel
from scscore.tl._contrasts import contrast_of
from scscore.tl._gene_evidence import EvidenceSplit, genes_of
from scscore.tl._validate import (
    check_adata,
    check_model,
    check_name,
    check_positive,
    seed_of,
    usable_device,
)


def attribution_test(
    adata: AnnData,
    model: ScoreModel,
    labels: str,
    *,
    n_permutations: int = 10_000,
    max_cells: int = 2000,
    layer: str | None = None,
    encoder: str | Map | None = None,
    decoder: Map | None = None,
    device: str = "auto",
    key_added: str = "scscore",
    copy: bool = False,
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> AnnData | None:
    """Test which genes speak for a class in its cells more than in the others, by permuting labels.

    The attribution of a gene is its expression above the baseline times nats per unit of expression. The second factor is averaged over
    the cells of the class and held fixed; a gene that speaks for the class then has a higher mean in the cells of the class than in
    as many cells with labels at random. (Without holding it fixed, a gene that does not differ between classes
    seems to speak for one of them when the gradient differs between them.) The labels must
    be independent of the model: of cells that it was not trained on, and given by something else than the model or the expression
    that it reads. Otherwise the p-values are too small, however careful the test.

    Parameters
    ----------
    adata
        Labelled cells that the model has not seen.
    model
        From :func:`scscore.tl.fit` or :func:`scscore.load`.
    labels
        Column of ``obs`` with the true classes. Cells with other labels count as cells of no class; cells without label are left out.
    n_permutations
        Draws of labels at most; p-values are not smaller than ``1 / (1 + n_permutations)``. Genes that are clearly not significant get fewer.
    max_cells
        Use at most so many cells, evenly spread over the data. Cells, genes and draws set the cost: 534 cells, 8,900 genes, 9 classes take four
        seconds.
    layer, encoder, decoder, device, progress
        As in :func:`scscore.tl.attribute`.
    key_added
        Name of the slots, that of :func:`scscore.tl.attribute`, for instance.
    copy
        Return an annotated copy instead of writing to `adata`.
    rng
        Seed or generator of noise and permutations.

    Returns
    -------
    ``None``, or the copy. With ``k = key_added``, writes

    - ``varm[f"{k}_attribution_pvalue"]``: one-sided permutation p-value, float32 ``(n_vars, n_classes)``; NaN for genes that the model does
      not know and classes without a cell;
    - ``varm[f"{k}_attribution_fdr"]``: adjusted over the genes of a class by Benjamini and Hochberg;
    - ``uns[f"{k}_attribution_test"]``: ``n_cells``, ``params`` (JSON), ``model_hash``, ``version``.

    Raises
    ------
    TypeError
        Not an AnnData, or not a ScoreModel.
    KeyError
        Unknown column.
    ValueError
        Labels that the model itself gave, labels of which none is a class of the model, and what :func:`scscore.tl.attribute` refuses.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.pbmc()
    >>> train, test = (cells[cells.obs["split"] == part].copy() for part in ("train", "test"))
    >>> model = scs.tl.fit(train, "cell_type", max_epochs=2, progress=False)
    >>> scs.tl.attribution_test(test, model, "cell_type", n_permutations=99, progress=False)
    >>> test.varm["scscore_attribution_fdr"].shape
    (765, 10)

    Notes
    -----
    Derivation: the *Attribution* page of the documentation. False discovery rate: Benjamini and Hochberg 1995.
    """
    check_adata(adata)
    check_model(model)
    keys, seed = Keys(key_added), seed_of(rng)
    check_name(labels, "labels", optional=False)
    check_positive("n_permutations", n_permutations, optional=False)
    check_positive("max_cells", max_cells, optional=False, at_least=2)
    column = obs_column(adata, labels, "labels")
    if _given_by_model(adata, labels):
        raise ValueError(
            f"labels={labels!r} were given by a model of scscore: the test would find its own doing. Pass labels from elsewhere."
        )
    classes = model.classes.tolist()
    labelled = np.flatnonzero(column.notna())
    rows = labelled[evenly_spread(len(labelled), max_cells)]
    truth = column.iloc[rows].astype(str).to_numpy()
    present = [name for name in classes if 0 < (truth == name).sum() < len(truth)]
    if not present:
        raise ValueError(
            f"labels={labels!r} must hold classes of the model ({classes}) and more than one label, found {sorted(set(truth))[:5]}."
        )
    cells, generator = adata[rows].copy(), np.random.default_rng([seed, 1])
    genes = genes_of(cells, model, encoder, decoder, layer=layer)
    expression, slopes = _slopes(cells, model, truth, genes, device=usable_device(device), seed=seed)
    p_values, rates = np.full((2, adata.n_vars, len(classes)), np.nan, dtype=np.float32)
    for name in tqdm(present, desc="test", unit="class", disable=not progress):
        k = classes.index(name)
        p = permutation_p_values(expression * slopes[k], truth == name, n_permutations=n_permutations, rng=generator)
        p[slopes[k] == 0] = np.nan
        p_values[:, k], rates[:, k] = p, benjamini_hochberg(p)
    target = adata.copy() if copy else adata
    target.varm[keys.attribution_pvalue], target.varm[keys.attribution_fdr] = p_values, rates
    params = {"labels": labels, "n_permutations": n_permutations, "max_cells": max_cells, "layer": layer, "seed": seed}
    target.uns[keys.attribution_test] = {
        "n_cells": len(rows),
        "params": json_params(jsonable(params)),
        "model_hash": model.hash,
        "version": __version__,
    }
    logger.info(
        "tested %d genes for %d classes on %d cells, %d at a false discovery rate of 5%%\nwrote varm%r",
        adata.n_vars,
        len(present),
        len(rows),
        int((rates < 0.05).sum()),
        [keys.attribution_pvalue, keys.attribution_fdr],
    )
    return target if copy else None


def _slopes(
    cells: AnnData, model: ScoreModel, truth: NDArray[np.str_], genes: Genes, *, device: str, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Expression ``(n, n_vars)``, and nats per unit of it for every class ``(n_classes, n_vars)``, over the cells of the class."""
    classes = model.classes.tolist()
    codes = pd.Index(classes).get_indexer(truth)
    n_steps = model.calibration.n_steps
    split = EvidenceSplit(model, genes, "integrated_gradients", n_steps=n_steps, n_paths=2, n_segments=8, device=device)
    products, squares = np.zeros((2, len(classes), cells.n_vars))
    expression, noise, covariates = [], NoiseStream(seed), model.covariates_of(cells)
    for chunk in genes.chunks(1024):
        expression.append(chunk.expression)
        own = chunk.start + np.arange(len(chunk.points))
        known = codes[own] >= 0
        part = GeneChunk(chunk.start, chunk.expression[known], chunk.points[known])
        if not known.any():
            continue
        points = model.without_covariates(part.points, covariates.rows(own[known]))
        z = model.in_engine(points).to(device)
        rows, y = slice(chunk.start, chunk.start + len(z)), codes[own][known]
        contrast = contrast_of(model, z, "rest", y, model.log_prior(), n_steps, noise, rows)
        found = split(part, z, points, contrast, noise)
        members = np.eye(len(classes))[:, y]
        products += members @ (found.parts * found.above)
        squares += members @ found.above**2
    slopes = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    return np.concatenate(expression), slopes.astype(np.float32)


def _given_by_model(adata: AnnData, column: str) -> bool:
    """Whether a column is the label or target that a call of scscore wrote."""
    for slot, stored in adata.uns.items():
        if isinstance(stored, dict) and "model_hash" in stored:
            key = slot.removesuffix("_attribution")
            if column in (Keys(key).label, Keys(key).target):
                return True
    return False
