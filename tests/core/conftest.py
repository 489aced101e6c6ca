"""Known truths: Gaussian mixtures whose noised score is exact."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule


class ExactResidual(nn.Module):
    """A denoiser that is perfect: what the exact noise prediction of another mixture adds to the reference."""

    def __init__(self, truth: GaussianReference, reference: GaussianReference) -> None:
        super().__init__()
        self.truth, self.reference = truth, reference

    def forward(self, z: Tensor, lam: Tensor) -> Tensor:
        return self.truth.eps(z, lam) - self.reference.eps(z, lam)


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
def exact_model(mixture: Callable[..., GaussianReference]) -> Callable[..., ConditionalDiffusion]:
    """A model whose score is exactly that of a mixture `truth`, while its reference is another mixture.

    The noise runs nearly from the data to the prior, so that nothing is left out.
    """

    def make(n_features: int, n_classes: int = 3, lam: float = 12.0) -> tuple[ConditionalDiffusion, GaussianReference]:
        truth = mixture(n_features, n_classes, seed=1)
        reference = mixture(n_features, n_classes, seed=2, full=False)
        residual = ExactResidual(truth, reference)
        return ConditionalDiffusion(NoiseSchedule(lam, -lam), reference, residual), truth  # type: ignore[arg-type]

    return make
