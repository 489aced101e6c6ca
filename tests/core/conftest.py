"""Known truths: Gaussian mixtures whose noised score is exact."""

from collections.abc import Callable

import pytest
import torch

from scscore.core.analytic import MixtureDiffusion
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
