"""Generated data sets whose class densities are known exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.special import log_softmax

from scscore._version import __version__

if TYPE_CHECKING:
    from scscore.model import ScoreModel


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
    return _cells(x, y, log_likelihood)


def toy_mixture(
    n_obs: int = 600,
    *,
    n_classes: int = 3,
    n_components: int = 2,
    n_features: int = 2,
    separation: float = 2.0,
    rng: int | np.random.Generator = 0,
) -> tuple[AnnData, ScoreModel]:
    """Cells drawn from one Gaussian mixture per class, and the diffusion model whose score is exactly theirs.

    The model has the interface of a trained one, and every estimate it gives can be compared with the truth. Its reference is what
    linear discriminant analysis would make of the classes, so the residual has work to do.

    Parameters
    ----------
    n_obs
        Number of cells, in equal parts (up to one cell) for every class.
    n_classes
        Number of classes.
    n_components
        Gaussians per class, each with its own mean and covariance and the same weight.
    n_features
        Dimension.
    separation
        Standard deviation of the means along every axis; the components have standard deviations between .5 and 1.2.
    rng
        Seed or generator.

    Returns
    -------
    The cells as from :func:`toy_gaussians`, and the :class:`~scscore.ScoreModel`, which reads ``obsm["X_toy"]``.

    Examples
    --------
    >>> import numpy as np
    >>> import scscore as scs
    >>> cells, model = scs.datasets.toy_mixture(n_obs=6)
    >>> scs.tl.energy(cells, model, n_steps=64, progress=False)
    >>> truth = -np.log(np.exp(cells.obsm["log_likelihood"]).mean(1))
    >>> bool(np.abs(cells.obs["scscore_energy"] - truth).max() < 0.5)
    True
    """
    import torch  # here, because torch takes seconds to import

    from scscore.core.analytic import MixtureDiffusion
    from scscore.core.calibration import Calibration
    from scscore.core.reference_fit import Whitening
    from scscore.core.schedule import NoiseSchedule
    from scscore.io.representation import ObsmRepresentation
    from scscore.model import ScoreModel

    generator = np.random.default_rng(rng)
    means = separation * generator.standard_normal((n_classes, n_components, n_features))
    factors = generator.standard_normal((n_classes, n_components, n_features, n_features))
    rotations = np.linalg.qr(factors)[0]
    variances = generator.uniform(0.25, 1.44, (n_classes, n_components, 1, n_features))
    covariances = (rotations * variances) @ rotations.swapaxes(-1, -2)
    diffusion = MixtureDiffusion.from_components(
        torch.from_numpy(means), torch.from_numpy(covariances), schedule=NoiseSchedule(8.0, -8.0)
    )
    y = np.arange(n_obs) % n_classes
    torch_generator = torch.Generator().manual_seed(int(generator.integers(2**31)))
    x = diffusion.sample(torch.from_numpy(y), torch_generator)
    cells = _cells(x.numpy(), y, diffusion.log_prob(x).numpy())
    model = ScoreModel(
        classes=cells.obs["class"].cat.categories.to_numpy(dtype=str),
        class_counts=np.bincount(y, minlength=n_classes),
        representation=ObsmRepresentation("X_toy", n_features),
        whitening=Whitening(torch.zeros(n_features), torch.eye(n_features)),
        engine=diffusion,
        calibration=Calibration(n_steps=16, n_paths=16),
        params={"condition": "class", "prior": "uniform", "version": __version__},
    )
    return cells, model


def _cells(x: NDArray[np.float64], y: NDArray[np.int64], log_likelihood: NDArray[np.float64]) -> AnnData:
    """Points with their classes and their exact log-likelihoods."""
    (n_obs, n_features), n_classes = x.shape, log_likelihood.shape[1]
    names = [chr(ord("a") + k) if n_classes <= 26 else f"class_{k}" for k in range(n_classes)]
    obs = pd.DataFrame({"class": pd.Categorical.from_codes(y, names)}, index=[f"cell_{i}" for i in range(n_obs)])
    var = pd.DataFrame(index=[f"feature_{j}" for j in range(n_features)])
    obsm = {"X_toy": x, "log_likelihood": log_likelihood, "posterior": np.exp(log_softmax(log_likelihood, axis=1))}
    return AnnData(x.copy(), obs=obs, var=var, obsm=obsm)
