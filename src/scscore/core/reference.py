"""Closed-form reference: per class, a mixture of Gaussians shared by all classes, with its noised density and score."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scscore.core.schedule import NoiseSchedule, broadcastable_level

_LEAST_WEIGHT = 1e-12


class GaussianReference(nn.Module):
    r"""Shared Gaussian components with class-specific weights.

    .. math:: p(z \mid c) = \sum_{k,s} A_{c,ks}\, N(z;\, \mu_k,\, r_s S_k)

    The components (one Gaussian per class, at several scales :math:`r_s` so that tails may be heavier than Gaussian)
    are shared by all classes; only their weights belong to a class. Noised to log SNR :math:`\lambda`, a component stays
    Gaussian, with mean :math:`\alpha\mu_k` and covariance :math:`\alpha^2 r_s S_k + \sigma^2 I`, so density and score
    are exact at every noise level (derivation page, *Reference*).

    Parameters
    ----------
    means
        Component means :math:`\mu_k`, shape ``(n_components, n_features)``.
    weights
        Class-specific mixture weights :math:`A`, shape ``(n_classes, n_components * n_scales)``; rows sum to one.
    variances
        Eigenvalues of the covariances :math:`S_k`, shape ``(n_components, n_features)``. ``None``: all one.
    axes
        Eigenvectors of :math:`S_k` as columns, shape ``(n_components, n_features, n_features)``. ``None``: the
        coordinate axes.
    scales
        The factors :math:`r_s`, shape ``(n_scales,)``. ``None``: the single scale 1.
    """

    means: Tensor
    weights: Tensor
    variances: Tensor
    axes: Tensor | None
    scales: Tensor

    def __init__(
        self,
        means: Tensor,
        weights: Tensor,
        variances: Tensor | None = None,
        axes: Tensor | None = None,
        scales: Tensor | None = None,
    ) -> None:
        super().__init__()
        variances = torch.ones_like(means) if variances is None else variances
        scales = torch.ones(1) if scales is None else scales
        buffers = {"means": means, "weights": weights, "variances": variances, "axes": axes, "scales": scales}
        if weights.shape[1] != len(means) * len(scales):
            raise ValueError(f"weights need {len(means) * len(scales)} columns, got {weights.shape[1]}.")
        for name, value in buffers.items():
            self.register_buffer(name, None if value is None else value.to(torch.float64))

    @property
    def _all_overlap(self) -> bool:
        """Whether every component belongs to every class with some weight: sums over components then never underflow."""
        return bool(self.weights.min() > _LEAST_WEIGHT)

    @property
    def pooled(self) -> bool:
        """Whether all components have the identity as covariance."""
        return self.axes is None and bool((self.variances == 1).all())

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.weights.shape[0]

    @property
    def n_features(self) -> int:
        """Dimension of the space."""
        return self.means.shape[1]

    @property
    def class_means(self) -> Tensor:
        """Means of the classes, ``(n_classes, n_features)``."""
        return self.weights.unflatten(1, (len(self.means), len(self.scales))).sum(2) @ self.means

    def log_prob(self, z: Tensor, lam: Tensor | None = None) -> Tensor:
        """Exact log density of every class, nats, shape ``(..., n_classes)``, float64.

        Parameters
        ----------
        z
            Points, shape ``(..., n_features)``.
        lam
            Log SNR of the noised density, a scalar or of a shape that broadcasts against ``(..., 1)``. ``None`` is the
            density of the clean data.
        """
        if self.pooled and self._all_overlap:
            z = z.to(torch.float64)
            components = self._pooled_components(z, None if lam is None else broadcastable_level(lam, z))[0].flatten(-2)
            highest = components.detach().amax(-1, keepdim=True)
            return ((components - highest).exp() @ self.weights.T).log() + highest
        components = self.component_log_prob(*self.offsets(z.to(torch.float64), lam))
        return torch.logsumexp(components[..., None, :] + self.weights.log(), dim=-1)

    def eps(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        r"""Exact noise prediction :math:`-\sigma\nabla\log p_\lambda(z\mid c)` of every class.

        Parameters
        ----------
        z
            Noised points, shape ``(..., n_features)``.
        lam
            Log SNR, a scalar or of a shape that broadcasts against ``(..., 1)``.
        classes
            The classes wanted at every point, indices of a shape that broadcasts against ``(..., n_wanted)``. ``None``: all.

        Returns
        -------
        Tensor of shape ``(..., n_classes, n_features)``, or ``(..., n_wanted, n_features)``, in the precision of `z`.
        """
        lam = broadcastable_level(lam, z)
        if classes is None and self.pooled and self._all_overlap:
            return self._pooled_eps(z, lam)
        offsets, precision = self.offsets(z, lam)
        components = self.component_log_prob(offsets, precision)
        weights = self.weights.log().to(z.dtype)
        responsibilities = torch.softmax(
            components[..., None, :] + (weights if classes is None else weights[classes]), dim=-1
        )
        pull = precision * offsets[..., None, :]
        if self.axes is not None:
            pull = torch.einsum("...ksj,kdj->...ksd", pull, self.axes.to(z.dtype))
        return NoiseSchedule.sigma(lam)[..., None] * (responsibilities @ pull.flatten(-3, -2))

    def _pooled_eps(self, z: Tensor, lam: Tensor) -> Tensor:
        """The same where all components have one covariance: a few products of matrices, for many classes."""
        components, precision = self._pooled_components(z, lam)
        weights = self.weights.to(z.dtype)
        density = (components - components.detach().amax((-2, -1), keepdim=True)).exp()
        total = (density.flatten(-2) @ weights.T)[..., None]
        pull = (density * precision[..., None, :]).flatten(-2)
        place = torch.einsum("cks,kd->kscd", weights.unflatten(1, (-1, len(self.scales))), self.means.to(z.dtype))
        mean = (pull @ place.flatten(0, 1).flatten(1)).unflatten(-1, (self.n_classes, -1))
        own = (pull @ weights.T)[..., None] * z[..., None, :]
        alpha, sigma = NoiseSchedule.alpha(lam)[..., None], NoiseSchedule.sigma(lam)[..., None]
        return sigma / total * (own - alpha * mean)

    def _pooled_components(self, z: Tensor, lam: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log densities ``(..., n_components, n_scales)`` and precisions ``(..., n_scales)`` where all covariances are the identity."""
        means, noised = self.means.to(z.dtype), self.scales.to(z.dtype)
        if lam is None:
            square = z.square().sum(-1, keepdim=True) - 2 * (z @ means.T) + means.square().sum(-1)
        else:
            noised, alpha = lam.sigmoid() * noised + (-lam).sigmoid(), NoiseSchedule.alpha(lam)
            square = z.square().sum(-1, keepdim=True) - 2 * alpha * (z @ means.T) + alpha**2 * means.square().sum(-1)
        volume = self.n_features * (noised * 2 * math.pi).log()
        return -0.5 * (square[..., None] / noised[..., None, :] + volume[..., None, :]), noised.reciprocal()

    def offsets(self, z: Tensor, lam: Tensor | None) -> tuple[Tensor, Tensor]:
        """Offsets from the noised means, ``(..., components, features)``, and noised precisions, along the components' axes.

        The precisions have shape ``(..., components, scales, features)``, with length 1 where points share a noise level.
        """
        means, variances = self.means.to(z.dtype), self.variances.to(z.dtype)
        noised = self.scales.to(z.dtype)[:, None] * variances[:, None, :]
        if lam is not None:
            lam = broadcastable_level(lam, z)[..., None]
            noised = lam.sigmoid()[..., None] * noised + (-lam).sigmoid()[..., None]
        if self.axes is None:
            points = z[..., None, :]
        else:
            axes = self.axes.to(z.dtype)
            points = (z @ axes.permute(1, 0, 2).flatten(1)).unflatten(-1, means.shape)
            means = torch.einsum("kd,kdj->kj", means, axes)
        return points - (means if lam is None else NoiseSchedule.alpha(lam) * means), noised.reciprocal()

    def component_log_prob(self, offsets: Tensor, precision: Tensor) -> Tensor:
        """Log density of the noised components, nats, shape ``(..., n_components * n_scales)``."""
        square = (offsets.square()[..., None, :] * precision).sum(-1)
        log_prob = -0.5 * (square - precision.log().sum(-1) + self.n_features * math.log(2 * math.pi))
        return log_prob.flatten(-2)
