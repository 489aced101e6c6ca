"""An exact diffusion model: Gaussian mixtures, whose noised densities and scores have closed forms at every level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule


class ExactResidual(nn.Module):
    """A perfect denoiser: what the exact noise prediction of a mixture adds to that of the reference.

    Parameters
    ----------
    truth
        The density whose score is exact.
    reference
        The reference of the model.
    """

    def __init__(self, truth: GaussianReference, reference: GaussianReference) -> None:
        super().__init__()
        self.shape = {"exact": True}
        self.truth = truth
        self.reference = reference

    def forward(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        """Residual noise prediction, see :meth:`ConditionalDiffusion.eps_and_residual`."""
        return self.truth.eps(z, lam, classes) - self.reference.eps(z, lam, classes)


class MixtureDiffusion(ConditionalDiffusion):
    """A conditional diffusion model whose classes are Gaussian mixtures, and whose score is exact.

    It has the interface of the learned model, and knows in addition its own density, so every estimate can be compared with
    the truth. Use it in float64.

    Parameters
    ----------
    truth
        The mixtures: shared components, class-specific weights.
    reference
        The reference, which may be wrong in any way. ``None``: one Gaussian per class with the mean of the mixture and
        the pooled covariance of all classes.
    schedule
        Noise schedule. ``None``: the default one. The ends beyond its window are taken from the reference, so an exact
        likelihood needs a wide one.

    Examples
    --------
    >>> import torch
    >>> from scscore.core.analytic import MixtureDiffusion
    >>> from scscore.core.likelihood import log_likelihood
    >>> from scscore.core.schedule import NoiseSchedule
    >>> from scscore.core.trajectories import NoiseStream
    >>> means = torch.tensor([[[-2.0], [2.0]], [[0.0], [3.0]]])  # two classes of two components, in one dimension
    >>> model = MixtureDiffusion.from_components(means, torch.full((2, 2, 1), 0.5), schedule=NoiseSchedule(10.0, -10.0))
    >>> z = torch.tensor([[1.0]], dtype=torch.float64)
    >>> found = log_likelihood(model, z, estimator="flow", n_steps=64, noise=NoiseStream(0)).mean
    >>> bool((found - model.log_prob(z)).abs().max() < 1e-3)
    True
    """

    def __init__(
        self,
        truth: GaussianReference,
        *,
        reference: GaussianReference | None = None,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        reference = moment_matched(truth) if reference is None else reference
        super().__init__(schedule or NoiseSchedule(), reference, ExactResidual(truth, reference))
        self.truth = truth

    @classmethod
    def from_components(
        cls,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor | None = None,
        *,
        reference: GaussianReference | None = None,
        schedule: NoiseSchedule | None = None,
    ) -> MixtureDiffusion:
        """The model of given mixtures, each class with components of its own.

        Parameters
        ----------
        means
            Shape ``(n_classes, n_components, n_features)``.
        covariances
            Shape ``(n_classes, n_components, n_features)`` for diagonals (variances), or with another ``n_features``.
        weights
            Shape ``(n_classes, n_components)``, rows sum to one. ``None``: equal.
        reference, schedule
            See the class.
        """
        n_classes, n_components, n_features = means.shape
        means = means.to(torch.float64).reshape(-1, n_features)
        axes = None
        variances = covariances.to(torch.float64).flatten(0, 1)
        if covariances.ndim == 4:
            variances, axes = torch.linalg.eigh(variances)
        if weights is None:
            weights = torch.full((n_classes, n_components), 1 / n_components)
        own = torch.block_diag(*weights.to(torch.float64)[:, None, :])
        return cls(GaussianReference(means, own, variances, axes), reference=reference, schedule=schedule)

    def log_prob(self, z: Tensor, lam: Tensor | None = None) -> Tensor:
        """Exact log density of every class, nats, ``(..., n_classes)``, float64; arguments of :meth:`GaussianReference.log_prob`."""
        return self.truth.log_prob(z, lam)

    def sample(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Clean points of given classes.

        Parameters
        ----------
        y
            Class indices, shape ``(n,)``.
        generator
            Source of randomness. ``None``: torch's own.

        Returns
        -------
        Shape ``(n, n_features)``, float64.
        """
        truth = self.truth
        drawn = torch.multinomial(truth.weights[y], 1, replacement=True, generator=generator)[:, 0]
        component, scale = drawn // len(truth.scales), truth.scales[drawn % len(truth.scales)]
        noise = torch.randn(len(y), truth.n_features, dtype=torch.float64, generator=generator)
        offsets = noise * (truth.variances[component] * scale[:, None]).sqrt()
        if truth.axes is not None:
            offsets = torch.einsum("nj,ndj->nd", offsets, truth.axes[component])
        return truth.means[component] + offsets


def moment_matched(truth: GaussianReference) -> GaussianReference:
    """One Gaussian per class: the mean of its mixture, the pooled within-class covariance, as discriminant analysis has it."""
    shares = truth.weights.unflatten(1, (len(truth.means), len(truth.scales)))
    spread = (shares * truth.scales).sum(2)  # mean scale factor of every component, times its weight
    share = shares.sum(2)
    axes = (
        torch.eye(truth.n_features).to(truth.means).expand(len(truth.means), -1, -1)
        if truth.axes is None
        else truth.axes
    )
    covariances = torch.einsum("kdj,kj,kej->kde", axes, truth.variances, axes)
    means = share @ truth.means
    second = torch.einsum("ck,kde->cde", spread, covariances) + torch.einsum(
        "ck,kd,ke->cde", share, truth.means, truth.means
    )
    pooled = (second - torch.einsum("cd,ce->cde", means, means)).mean(0)
    variances, axes = torch.linalg.eigh(pooled)
    n_classes = len(means)
    return GaussianReference(
        means, torch.eye(n_classes), variances.expand(n_classes, -1), axes.expand(n_classes, -1, -1)
    )
