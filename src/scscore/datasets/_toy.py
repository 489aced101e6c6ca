"""A generated data set whose class densities are known exactly."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import log_softmax


def toy_gaussians(
    n_obs: int = 1000,
    *,
    n_classes: int = 3,
    n_features: int = 2,
    separation: float = 3.0,
    rng: int | np.random.Generator = 0,
) -> AnnData:
    """Cells drawn from one Gaussian per class, with the true log-likelihoods and posterior.

    The class means are drawn once per `rng`; all classes share the covariance ``0.5**abs(i - j)``.

    Parameters
    ----------
    n_obs
        Number of cells, in equal parts (up to one cell) for every class.
    n_classes
        Number of classes.
    n_features
        Dimension.
    separation
        Standard deviation of the class means along every axis.
    rng
        Seed or generator.

    Returns
    -------
    AnnData with the points in ``X`` and ``obsm["X_toy"]``, the class in ``obs["class"]`` (named a, b, ...), and the truth in
    ``obsm["log_likelihood"]`` (nats, ``(n_obs, n_classes)``) and ``obsm["posterior"]`` (equal priors).

    Examples
    --------
    >>> import scscore as scs
    >>> scs.datasets.toy_gaussians(n_obs=6).obs["class"].tolist()
    ['a', 'b', 'c', 'a', 'b', 'c']
    """
    generator = np.random.default_rng(rng)
    means = separation * generator.standard_normal((n_classes, n_features))
    covariance = 0.5 ** np.abs(np.subtract.outer(np.arange(n_features), np.arange(n_features)))
    y = np.arange(n_obs) % n_classes
    x = means[y] + generator.standard_normal((n_obs, n_features)) @ np.linalg.cholesky(covariance).T
    offsets = x[:, None, :] - means
    square = np.einsum("nki,ij,nkj->nk", offsets, np.linalg.inv(covariance), offsets)
    log_likelihood = -0.5 * (square + np.linalg.slogdet(covariance)[1] + n_features * np.log(2 * np.pi))
    names = [chr(ord("a") + k) if n_classes <= 26 else f"class_{k}" for k in range(n_classes)]
    obs = pd.DataFrame({"class": pd.Categorical.from_codes(y, names)}, index=[f"cell_{i}" for i in range(n_obs)])
    var = pd.DataFrame(index=[f"feature_{j}" for j in range(n_features)])
    obsm = {"X_toy": x, "log_likelihood": log_likelihood, "posterior": np.exp(log_softmax(log_likelihood, axis=1))}
    return AnnData(x.copy(), obs=obs, var=var, obsm=obsm)
