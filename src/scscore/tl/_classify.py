"""``tl.classify``: labels, calibrated posterior, prediction sets, novelty and likelihoods of every cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from scscore._logging import logger
from scscore._version import __version__
from scscore.core.calibration import confidence_standard_error, entropy, estimate_prior, log_posterior
from scscore.core.conformal import SET_METHODS, SetMethod
from scscore.core.likelihood import Estimator
from scscore.core.prior import Prior
from scscore.core.stopping import Stopping
from scscore.core.thinning import evenly_spread
from scscore.io.keys import UNKNOWN, Keys
from scscore.io.modalities import of_modality
from scscore.io.params import json_params, jsonable
from scscore.model import ScoreModel
from scscore.tl._validate import (
    check_adata,
    check_estimator,
    check_model,
    check_name,
    check_paths,
    check_positive,
    log_unknown_batches,
    seed_of,
    usable_device,
)

if TYPE_CHECKING:
    from mudata import MuData

_MOST_PATHS = 8  # times the usual number, where a precision is asked for
_ENOUGH_CELLS_FOR_PRIOR = 5000


def classify(
    adata: AnnData | MuData,
    model: ScoreModel,
    *,
    modality: str | None = None,
    layer: str | None = None,
    prior: Prior | Literal["estimate"] | None = None,
    reject: float = 0.01,
    coverage: float = 0.9,
    set_method: SetMethod = "lac",
    class_conditional: bool = False,
    estimator: Estimator = "dissipation",
    n_steps: int | None = None,
    n_paths: int | None = None,
    precision: float | None = None,
    batch_size: int = 1024,
    device: str = "auto",
    key_added: str = "scscore",
    copy: bool = False,
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> AnnData | None:
    r"""Label cells with a calibrated posterior over the classes of a model.

    The log-likelihood of every class is the exact one of the reference plus the dissipation of the model less that of
    the reference along shared noising trajectories, pooled with linear classifiers where the model has any
    (``objective="hybrid"``), which leaves log p(x) alone. The posterior is
    :math:`\mathrm{softmax}(T \log p(x \mid c) + \log\pi_c)` with the model's temperature :math:`T`.

    Parameters
    ----------
    adata
        Cells, with the kind of values that the model was fitted on; in memory, backed or with dask arrays. Genes may come
        in any order; genes that the model does not know are ignored, genes that are missing count as average.
    model
        From :func:`scscore.tl.fit` or :func:`scscore.load`.
    modality
        For a MuData: the modality to work on. ``None``: the only one, or ``"rna"``.
    layer
        Layer with the values; ``None`` is ``X``.
    prior
        Class prior: ``"train"``, ``"uniform"``, a mapping from class to weight, or an array. ``"estimate"``: the class frequencies
        of these cells, by expectation-maximisation on their likelihoods. ``None``: the prior of the model.
    reject
        Label cells as ``"unknown"`` whose typicality is below this: about this share of new cells of known classes is lost. 0: none.
        The training cells themselves are rejected more often, because the encoder was fitted to their noise, too.
    coverage
        Probability that a prediction set holds the true class, for cells like the held-out cells of the model. Where the model
        is surer than that, some sets are empty: the guarantee is met by the other cells.
    set_method
        ``"lac"``: the smallest sets on average. ``"aps"``: adaptive sets, larger for ambiguous cells.
    class_conditional
        Meet the coverage within every class, not only on average. Sets are larger, and a class with fewer than
        ``1 / (1 - coverage)`` held-out cells is in all of them.
    estimator
        How log p(x given class) is estimated: ``"dissipation"`` along noising trajectories, ``"elbo"`` at stratified noise
        levels, or ``"flow"``, the probability flow, which has no Monte-Carlo error and is orders of magnitude slower.
    n_steps, n_paths
        Jumps per noising trajectory, and trajectories per cell (an even number: antithetic pairs). One cell costs
        ``n_steps * n_paths`` network calls for all classes together. ``None``: what the temperature was fitted for. With
        ``estimator="elbo"`` these are strata and draws; with ``"flow"`` `n_steps` counts Runge-Kutta steps, 16 or more for an
        accurate one, at ``4 * n_steps * (n_features + 1)`` calls for every class.
    precision
        Spend trajectories where they are needed, between 4 and `n_paths` (``None``: 8 times what the temperature was fitted for):
        more are added until the label is certain, given the Monte-Carlo error, and the confidence is known within this
        half-width of its 95 % interval, for instance 0.02; classes that cannot win any more are dropped. ``None``: the same
        number for every cell.
    batch_size
        Cells per chunk. Changes memory and speed, not results.
    device
        Torch device; ``"auto"`` takes a GPU if there is one.
    key_added
        Name of all slots that are written.
    copy
        Return an annotated copy instead of writing to `adata`.
    rng
        Seed or generator of the noise. The same seed gives the same result.
    progress
        Show a progress bar.

    Returns
    -------
    ``None``, or the copy. With ``k = key_added``, writes

    - ``obs[f"{k}_label"]``: most probable class, or ``"unknown"`` (categorical);
    - ``obs[f"{k}_confidence"]``: its posterior (float32);
    - ``obs[f"{k}_entropy"]``: entropy of the posterior, nats (float32);
    - ``obs[f"{k}_mcse"]``: Monte-Carlo standard error of the confidence that remains (float32);
    - ``obs[f"{k}_typicality"]``: p-value of log p(x) against held-out cells of the known classes; small for cells that are unlike
      all of them, uniform for known ones (float32);
    - ``obs[f"{k}_set_size"]``: number of classes in the prediction set (int32);
    - ``obs[f"{k}_n_paths"]``: trajectories that were spent on the cell (int32);
    - ``obsm[f"{k}_log_likelihood"]``: log p(x given class) in the model's representation, nats, float32 ``(n_obs, n_classes)``;
    - ``obsm[f"{k}_posterior"]``: posterior, rows sum to one, float32 ``(n_obs, n_classes)``;
    - ``obsm[f"{k}_prediction_set"]``: conformal prediction set, bool ``(n_obs, n_classes)``;
    - ``uns[k]``: ``classes``, ``params`` (JSON), ``model_hash``, ``version``.

    Three uncertainties are kept apart: Monte-Carlo error (``mcse``), ambiguity between known classes (``entropy``, ``set_size``) and
    novelty (``typicality``). Typicality and sets need held-out cells, which :func:`scscore.tl.fit` provides and
    :func:`scscore.tl.calibrate` replaces; without them they are not written.

    Raises
    ------
    TypeError
        Not an AnnData, or not a ScoreModel.
    KeyError
        Unknown layer, or the model's representation is not in ``obsm``.
    ValueError
        No cells, too few shared genes, duplicated genes, NaN, infinite or negative values, logged values where the model
        needs counts or the reverse, an invalid prior, `reject`, `coverage` or method, `precision` together with the flow.

    Warns
    -----
    UserWarning
        Genes of the model are missing.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.classify(cells, model, progress=False)
    >>> cells.obsm["scscore_posterior"].shape
    (300, 3)
    """
    adata = of_modality(adata, modality)
    check_adata(adata)
    check_model(model)
    if len(model.classes) < 2:
        raise ValueError("model holds one density and no classes (fitted with condition=None); use scscore.tl.energy.")
    keys, seed = Keys(key_added), seed_of(rng)
    check_name(layer, "layer")
    check_positive("n_steps", n_steps)
    check_positive("n_paths", n_paths)
    check_positive("batch_size", batch_size, optional=False)
    check_estimator(estimator)
    if precision is not None and not 0 < precision < 1:
        raise ValueError(f"precision must be between 0 and 1, or None, got {precision!r}.")
    if precision is not None and estimator == "flow":
        raise ValueError("precision= adds trajectories, and estimator='flow' has none: leave one of them out.")
    steps, paths = n_steps or model.calibration.n_steps, n_paths or model.calibration.n_paths
    if precision is not None and n_paths is None:
        paths *= _MOST_PATHS
    check_paths(paths)
    if not 0 <= reject < 1 or not 0 < coverage < 1:
        raise ValueError(
            f"reject must be in [0, 1) and coverage between 0 and 1, got reject={reject!r}, coverage={coverage!r}."
        )
    if set_method not in SET_METHODS:
        raise ValueError(f"set_method must be one of {list(SET_METHODS)}, got {set_method!r}.")
    log_unknown_batches(adata, model)
    trust = {"reject": reject, "coverage": coverage, "set_method": set_method, "class_conditional": class_conditional}
    estimated = isinstance(prior, str) and prior == "estimate"
    log_prior, torch_device = model.log_prior(None if estimated else prior), usable_device(device)
    temperature, log_weights, held_out = model.calibration.temperature, model.calibration.log_weights, model.held_out
    if estimated:
        some = evenly_spread(adata.n_obs, _ENOUGH_CELLS_FOR_PRIOR)
        found = model.log_likelihood(
            adata if len(some) == adata.n_obs else adata[some],
            layer=layer,
            estimator=estimator,
            n_steps=steps,
            n_paths=model.calibration.n_paths,
            seed=seed,
            batch_size=batch_size,
            device=torch_device,
            progress=progress,
            description="estimate prior",
        )
        values = np.concatenate([estimate.mean.numpy() for _, estimate in found])
        log_prior = estimate_prior(values, log_prior, temperature, model.calibration.offsets or 0.0)
    stopping = None if precision is None else Stopping(log_weights(log_prior), temperature, precision)

    n_obs, n_classes = adata.n_obs, len(model.classes)
    log_likelihood = np.empty((n_obs, n_classes), dtype=np.float32)
    density = (
        log_likelihood if model.diffusion.readout is None else np.empty_like(log_likelihood)
    )  # without the readout
    posterior = np.empty((n_obs, n_classes), dtype=np.float32)
    uncertainty = np.empty((n_obs, 3), dtype=np.float32)  # confidence, entropy, Monte-Carlo standard error
    best = np.empty(n_obs, dtype=np.int64)
    spent = np.empty(n_obs, dtype=np.int32)
    for rows, estimate in model.log_likelihood(
        adata,
        layer=layer,
        estimator=estimator,
        n_steps=steps,
        n_paths=paths,
        stopping=stopping,
        seed=seed,
        batch_size=batch_size,
        device=torch_device,
        progress=progress,
    ):
        mean = estimate.mean.numpy()
        log_p = log_posterior(mean, log_weights(log_prior), temperature)
        log_likelihood[rows], density[rows] = mean, estimate.density.numpy()
        posterior[rows], best[rows] = np.exp(log_p), log_p.argmax(1)
        uncertainty[rows, 0] = np.exp(log_p.max(1))
        uncertainty[rows, 1] = entropy(log_p)
        error = confidence_standard_error(estimate.draws.numpy(), log_p, temperature)
        uncertainty[rows, 2] = 0.0 if estimate.exact else error
        spent[rows] = estimate.n_paths.amax(1).numpy()

    target = adata.copy() if copy else adata
    earlier = target.uns.get(keys.uns, {})  # of a fit with the same key, whose curves stay
    curves = earlier.items() if isinstance(earlier, Mapping) else ()
    labels = pd.Categorical.from_codes(best, categories=model.classes.astype(object))
    columns = dict(zip((keys.confidence, keys.entropy, keys.mcse), uncertainty.T, strict=True))
    if held_out is None:  # what an earlier call with another model left behind must not pass for this one's
        for slots, names in ((target.obs, (keys.typicality, keys.set_size)), (target.obsm, (keys.prediction_set,))):
            for name in set(names) & set(slots.keys()):
                del slots[name]
    else:
        typicality = held_out.typicality(density, model.representation.log_depth(adata, layer=layer))
        if (novel := typicality < reject).any():
            labels = labels.add_categories([] if UNKNOWN in labels.categories else [UNKNOWN])
            labels[novel] = UNKNOWN
        sets = held_out.prediction_sets(
            posterior,
            log_prior,
            temperature,
            model.calibration.offsets or 0.0,
            coverage=coverage,
            method=set_method,
            class_conditional=class_conditional,
            seed=seed,
        )
        columns[keys.typicality] = typicality.astype(np.float32)
        columns[keys.set_size] = sets.sum(1).astype(np.int32)
        target.obsm[keys.prediction_set] = sets
    target.obs[keys.label] = pd.Series(labels, index=target.obs_names)
    for name, column in columns.items():
        target.obs[name] = column
    target.obs[keys.n_paths] = spent
    target.obsm[keys.log_likelihood] = log_likelihood
    target.obsm[keys.posterior] = posterior
    params = {
        "condition": model.params["condition"],
        "layer": layer,
        "estimator": estimator,
        "n_steps": steps,
        "n_paths": paths,
        "precision": precision,
        "prior": np.exp(log_prior),
        "prior_estimated": estimated,
        **({} if held_out is None else trust),
        "temperature": temperature,
        "offsets": model.calibration.offsets,
        "seed": seed,
    }
    target.uns[keys.uns] = {
        **{k: v for k, v in curves if k.endswith(("_loss", "_steps"))},
        "classes": model.classes.astype(object),
        "params": json_params(jsonable(params)),
        "model_hash": model.hash,
        "version": __version__,
    }
    logger.info(
        "classified %d cells into %d classes%s\nwrote obs%r, obsm%r, uns[%r]",
        n_obs,
        n_classes,
        "" if held_out is None else f", {int((target.obs[keys.label] == UNKNOWN).sum())} of them {UNKNOWN!r}",
        [keys.label, *columns, keys.n_paths],
        [keys.log_likelihood, keys.posterior, *([] if held_out is None else [keys.prediction_set])],
        keys.uns,
    )
    return target if copy else None
