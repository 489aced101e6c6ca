"""``tl.regress``: the posterior of a continuous target for every cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore._logging import logger
from scscore._version import __version__
from scscore.core.calibration import log_posterior, standard_error
from scscore.core.prior import Prior
from scscore.core.target import Predictive, TargetGrid, entropies
from scscore.io.keys import Keys
from scscore.io.modalities import of_modality
from scscore.io.params import json_params, jsonable
from scscore.model import ScoreModel
from scscore.tl._validate import (
    check_adata,
    check_model,
    check_name,
    check_number,
    check_paths,
    check_positive,
    log_unknown_batches,
    seed_of,
    usable_device,
)

if TYPE_CHECKING:
    from mudata import MuData


def regress(
    adata: AnnData | MuData,
    model: ScoreModel,
    *,
    modality: str | None = None,
    layer: str | None = None,
    prior: Prior | None = None,
    coverage: float = 0.9,
    n_steps: int | None = None,
    n_paths: int | None = None,
    batch_size: int = 1024,
    device: str = "auto",
    key_added: str = "scscore",
    copy: bool = False,
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> AnnData | None:
    r"""Predict a continuous target with its whole distribution.

    The model gives the log-likelihood of every bin of the target at once, so that
    :math:`p(y \mid x) \propto p(y)\, p(x \mid y)^T` is a posterior on a grid, with the model's temperature :math:`T`. What soft
    labels and bins add to its width is taken out again. Nothing depends on the batch that a cell comes in.

    Parameters
    ----------
    adata
        Cells, or whatever the rows are, with the kind of values that the model was fitted on; as in :func:`scscore.tl.classify`.
    model
        From :func:`scscore.tl.fit` with a continuous `condition`, or :func:`scscore.load`.
    modality
        For a MuData: the modality to work on. ``None``: the only one, or ``"rna"``.
    layer
        Layer with the values; ``None`` is ``X``.
    prior
        Density of the target before anything is measured: ``"train"``, ``"uniform"``, or an array over the bins
        (their probabilities; the bins are ``model.target.edges``). ``None``: the prior of the model. Models of ``objective="direct"`` know that of the training cells alone.
    coverage
        Probability that the interval holds the value, for cells like the held-out cells of the model (split-conformal).
    n_steps, n_paths
        Jumps per noising trajectory, and trajectories per cell (an even number). ``None``: what the temperature was fitted for.
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
    ``None``, or the copy. With ``k = key_added``, writes, in units of the target where nothing else is said,

    - ``obs[f"{k}_mean"]``, ``obs[f"{k}_sd"]``: mean and standard deviation of the posterior (float32); of a circular target, the circular mean
      and the standard deviation around it;
    - ``obs[f"{k}_lower"]``, ``obs[f"{k}_upper"]``: ends of the interval (float32); on a circle the upper end may be below the lower one;
    - ``obs[f"{k}_aleatoric_entropy"]``: differential entropy of the posterior, nats, the mean over the networks of the diffusion, without the
      readout (float32): noise of the target;
    - ``obs[f"{k}_mutual_information"]``: how far these networks disagree, nats (float32); not written where there are not several;
    - ``obs[f"{k}_mcse"]``: Monte-Carlo standard error of the mean that remains (float32);
    - ``obs[f"{k}_typicality"]``: p-value of log p(x) against held-out cells, small for cells unlike all of them (float32); not
      with ``objective="direct"``;
    - ``obsm[f"{k}_density"]``: density of the posterior at the bins, per unit, float32 ``(n_obs, n_bins)``;
    - ``uns[k]``: ``edges`` of the bins, which are narrow where training values are frequent, ``params`` (JSON), ``model_hash``, ``version``.

    Raises
    ------
    TypeError
        Not an AnnData, or not a ScoreModel.
    KeyError
        Unknown layer, or the model's representation is not in ``obsm``.
    ValueError
        A model of classes, another prior for a direct model, an invalid `coverage`; what :func:`scscore.tl.classify` raises.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> cells.obs["dose"] = cells.obsm["X_toy"][:, 0] + 0.1
    >>> model = scs.tl.fit(cells, "dose", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.regress(cells, model, progress=False)
    >>> cells.obsm["scscore_density"].shape
    (300, 64)

    Notes
    -----
    Derivation page, *Continuous targets*. Soft labels: Imani and White, ICML 2018; conformal intervals on the probability integral
    transform: Chernozhukov et al., PNAS 2021.
    """
    adata = of_modality(adata, modality)
    check_adata(adata)
    check_model(model, continuous=True)
    keys, seed = Keys(key_added), seed_of(rng)
    check_name(layer, "layer")
    check_positive("n_steps", n_steps)
    check_positive("batch_size", batch_size, optional=False)
    steps, paths = n_steps or model.calibration.n_steps, n_paths or model.calibration.n_paths
    check_paths(paths)
    check_number("coverage", coverage)
    if not coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage!r}.")
    direct = model.params["objective"] == "direct"
    if direct and prior is not None and not (isinstance(prior, str) and prior == "train"):
        raise ValueError(
            "prior= needs a likelihood, which a model of objective='direct' does not have: fit with 'hybrid'."
        )
    grid: TargetGrid = model.target  # type: ignore[assignment]
    log_prior, temperature = model.log_prior(prior), model.calibration.temperature

    log_unknown_batches(adata, model)
    n_obs, members = adata.n_obs, model.members()
    weights, marginal = np.zeros((2, n_obs, grid.n_bins))
    error, own_entropy, mutual_information = np.zeros((3, n_obs))
    for rows, estimates in model.log_likelihoods(
        adata,
        members,
        layer=layer,
        n_steps=steps,
        n_paths=paths,
        seed=seed,
        batch_size=batch_size,
        device=usable_device(device),
        progress=progress,
        description="regress",
    ):
        posteriors = np.exp([log_posterior(estimate.mean.numpy(), log_prior, temperature) for estimate in estimates])
        weights[rows] = posteriors.mean(0)
        densities = [estimate.density.numpy() for estimate in estimates]
        marginal[rows] = np.mean(densities, axis=0)
        # of the diffusion alone: the networks of a readout agree where nothing was measured
        own = np.exp(
            [log_posterior(density, log_prior, model.calibration.density_temperature) for density in densities]
        )
        own_entropy[rows], mutual_information[rows] = entropies(grid, own)
        error[rows] = sum(
            _error_of_mean(estimate.draws.numpy(), Predictive(grid, posterior), temperature) ** 2
            for estimate, posterior in zip(estimates, posteriors, strict=True)
            if not estimate.exact
        )
    predictive = Predictive(grid, weights)
    columns = {keys.mean: predictive.mean, keys.sd: predictive.sd}
    if (held_out := model.held_out_values) is not None:
        share = held_out.central_share(grid, log_prior, temperature, coverage=coverage)
        interval = predictive.quantile(np.array([0.5 - 0.5 * share, 0.5 + 0.5 * share]))
        if share == 1:
            logger.warning(
                "%d held-out cells cannot vouch for a coverage of %g: intervals are the whole range.",
                len(held_out.y),
                coverage,
            )
            interval = np.tile([grid.edges[0], grid.edges[-1]], (n_obs, 1))
        columns |= {keys.lower: interval[:, 0], keys.upper: interval[:, 1]}
    columns[keys.aleatoric_entropy] = own_entropy
    if len((model.engine if direct else model.diffusion.density).members()) > 1:
        columns[keys.mutual_information] = mutual_information
    columns[keys.mcse] = np.sqrt(error) / len(members)
    if held_out is not None and not direct:
        depth = model.representation.log_depth(adata, layer=layer)
        columns[keys.typicality] = held_out.typicality(marginal, log_prior, depth)

    target = adata.copy() if copy else adata
    for name in {keys.lower, keys.upper, keys.mutual_information, keys.typicality} - set(columns):
        if name in target.obs:  # what another model left behind must not pass for this one's
            del target.obs[name]
    for name, column in columns.items():
        target.obs[name] = pd.Series(np.asarray(column, dtype=np.float32), index=target.obs_names)
    target.obsm[keys.density] = predictive.density().astype(np.float32)
    params = {
        "condition": model.params["condition"],
        "layer": layer,
        "n_steps": steps,
        "n_paths": paths,
        "prior": np.exp(log_prior),
        "coverage": coverage,
        "temperature": temperature,
        "circular": grid.circular,
        "seed": seed,
    }
    target.uns[keys.uns] = {
        **{k: v for k, v in dict(target.uns.get(keys.uns, {})).items() if k.endswith(("_loss", "_steps"))},
        "edges": np.asarray(grid.edges),
        "params": json_params(jsonable(params)),
        "model_hash": model.hash,
        "version": __version__,
    }
    logger.info(
        "predicted %r of %d cells\nwrote obs%r, obsm[%r], uns[%r]",
        model.params["condition"],
        n_obs,
        list(columns),
        keys.density,
        keys.uns,
    )
    return target if copy else None


def _error_of_mean(draws: NDArray[np.float64], predictive: Predictive, temperature: float) -> NDArray[np.float64]:
    """Monte-Carlo standard error of the posterior mean, to first order, from independent draws ``(n_draws, n, n_bins)``."""
    offset = predictive.grid.difference(predictive.grid.centers, predictive.mean[:, None])
    return temperature * standard_error((draws * (predictive.weights * offset)).sum(-1))
