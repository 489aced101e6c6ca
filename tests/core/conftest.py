"""Known truths: Gaussian mixtures whose noised score is exact, and a denoiser that has learned something."""

from collections.abc import Callable

import pytest
import torch

from scscore.core.analytic import MixtureDiffusion
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule


@pytest.fixture
def mixture() -> Callable[..., GaussianReference]:
    """Random mixtures: ``mixture(n_features, n_classes, seed, full=True)``."""

    def make(n_features: int, n_classes: int = 3, seed: int = 0, *, full: bool = True) -> GaussianReference:
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(n_classes, n_features, generator=generator, dtype=torch.float64)
        weights = torch.softmax(torch.randn(n_classes, 2 * n_classes, generator=generator, dtype=torch.float64), 1)
        variances = axes = None
        if full:
            variances = 0.5 + torch.rand(n_classes, n_features, generator=generator, dtype=torch.float64)
            random = torch.randn(n_classes, n_features, n_features, generator=generator, dtype=torch.float64)
            axes = torch.linalg.qr(random)[0]
        return GaussianReference(means, weights, variances, axes, torch.tensor([1.0, 2.0]))

    return make


@pytest.fixture
def exact_model(mixture: Callable[..., GaussianReference]) -> Callable[..., tuple[MixtureDiffusion, GaussianReference]]:
    """A model whose score is exactly that of a mixture `truth`, while its reference is another mixture.

    The noise runs nearly from the data to the prior, so that nothing is left out.
    """

    def make(n_features: int, n_classes: int = 3, lam: float = 12.0) -> tuple[MixtureDiffusion, GaussianReference]:
        truth = mixture(n_features, n_classes, seed=1)
        reference = mixture(n_features, n_classes, seed=2, full=False)
        return MixtureDiffusion(truth, reference=reference, schedule=NoiseSchedule(lam, -lam)), truth

    return make


@pytest.fixture
def overlapping_classes() -> Callable[..., MixtureDiffusion]:
    """Classes of two components with covariances of their own, in a space where the pooled covariance is the identity.

    Eight of them in 30 dimensions, which is the default, overlap such that the best possible accuracy is about .9.
    """

    def make(n_classes: int = 8, n_features: int = 30, separation: float = 0.45) -> MixtureDiffusion:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(n_classes, *shape, generator=generator, dtype=torch.float64)

        centre, offset = separation * normal(1, n_features), normal(1, n_features)
        offset = 1.5 * offset / offset.norm(dim=-1, keepdim=True)
        variances = torch.exp(0.4 * normal(2, n_features))
        axes = torch.linalg.qr(normal(2, n_features, n_features))[0]
        covariances = torch.einsum("kcij,kcj,kclj->kcil", axes, variances, axes)
        pooled = covariances.mean((0, 1)) + (offset * offset.transpose(1, 2)).mean(0)
        whiten = torch.linalg.inv(torch.linalg.cholesky(pooled))
        means = torch.cat([centre - offset, centre + offset], dim=1)
        return MixtureDiffusion.from_components(means @ whiten.T, whiten @ covariances @ whiten.T)

    return make


@pytest.fixture
def three_wells() -> Callable[..., MixtureDiffusion]:
    """The mixture of three wells in one dimension (means -30, 0, 40, sd 8, 5, 10), in units of its standard deviation.

    Variance-exploding noise of sd sigma, in the units of the wells, is the log SNR ``2 log(30.05 / sigma)``: the range of sigma
    from .1 to 70 is that of log SNR from 11.4 to -1.7.
    """

    def make(schedule: NoiseSchedule, unit: float = 30.05162225) -> MixtureDiffusion:
        means = torch.tensor([-30.0, 0.0, 40.0], dtype=torch.float64)[None, :, None] / unit
        variances = torch.tensor([64.0, 25.0, 100.0], dtype=torch.float64)[None, :, None] / unit**2
        weights = torch.tensor([[0.4, 0.3, 0.3]], dtype=torch.float64)
        return MixtureDiffusion.from_components(means, variances, weights, schedule=schedule)

    return make


@pytest.fixture
def learned() -> Callable[..., ResidualDenoiser]:
    """Denoisers whose residual is not zero: random weights, double precision, ``learned(reference)``."""

    def make(reference: GaussianReference, size: float = 0.3) -> ResidualDenoiser:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            means = reference.means[: reference.n_classes]
            denoiser = ResidualDenoiser(means, torch.ones(reference.n_features), width=16, n_blocks=1, rank=8)
            torch.nn.init.normal_(denoiser.output.weight, std=size)
            torch.nn.init.normal_(denoiser.output.bias, std=size)
        return denoiser.double().eval().requires_grad_(False)

    return make
