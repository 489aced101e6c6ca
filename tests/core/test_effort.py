"""Where the noise levels go, and how many jumps it takes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scscore.core.analytic import MixtureDiffusion
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.effort import choose_effort, choose_levels
from scscore.core.likelihood import log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule, broadcastable_level
from scscore.core.trajectories import NoiseStream

Mixture = Callable[..., GaussianReference]
UNIFORM = np.full(4, -np.log(4))


class Band(nn.Module):
    """A residual that lives in a narrow band of noise levels: a direction for every class, waving over space if `rough`."""

    def __init__(self, centre: float, width: float = 0.5, size: float = 0.5, rough: float = 0.0) -> None:
        super().__init__()
        self.centre, self.width, self.size, self.rough = centre, width, size, rough
        self.directions = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def forward(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        profile = torch.exp(-0.5 * ((broadcastable_level(lam, z) - self.centre) / self.width) ** 2)
        directions = self.directions if classes is None else self.directions[classes]
        return self.size * profile[..., None] * directions * torch.cos(self.rough * z[..., None, :])


def points(n: int = 200) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def banded(mixture: Mixture) -> Callable[..., ConditionalDiffusion]:
    def make(centre: float, **settings: float) -> ConditionalDiffusion:
        return ConditionalDiffusion(NoiseSchedule(), mixture(5, 4), Band(centre, **settings))

    return make


@pytest.mark.parametrize(("centre", "width"), [(2.0, 0.5), (-3.0, 0.4), (0.0, 1.0), (4.0, 0.3)])
def test_levels_are_where_the_loss_is(banded: Callable[..., ConditionalDiffusion], centre: float, width: float):
    """The window shrinks to the band, and most levels lie in its middle."""
    found = choose_levels(banded(centre, width=width), points(), UNIFORM)
    assert found.lam_max <= min(5.0, centre + 4.5 * width + 0.5)
    assert found.lam_min >= max(-5.0, centre - 4.5 * width - 0.5)
    assert found.lam_max >= min(5.0, centre + 2 * width)
    assert found.lam_min <= centre - 2 * width
    levels = found.levels(32).numpy()
    within = np.abs(levels - centre) <= 2 * width + 0.25
    assert within.mean() > 0.75
    spacing, middle = -np.diff(levels), int(np.abs(levels - centre).argmin())
    assert spacing[middle - 1 : middle + 1].mean() < 0.8 * min(spacing[:2].mean(), spacing[-2:].mean())


def test_chosen_levels_do_better_than_even_ones(banded: Callable[..., ConditionalDiffusion]):
    """With as few jumps, against many."""
    model, z = banded(2.0, width=0.3), points()
    noise = {"noise": NoiseStream(1), "n_paths": 16}
    fine = log_likelihood(model, z, n_steps=96, **noise).mean

    def error() -> float:
        return float((log_likelihood(model, z, n_steps=8, **noise).mean - fine).square().mean().sqrt())

    even = error()
    model.schedule = choose_levels(model, z, UNIFORM)
    assert error() < 0.5 * even


def test_what_all_classes_share_needs_no_levels(banded: Callable[..., ConditionalDiffusion]):
    """A residual that is the same in all classes decides nothing; with one class it is all there is."""
    model = banded(2.0)
    model.denoiser.directions = model.denoiser.directions[:1].expand(4, -1)
    shared = GaussianReference(torch.zeros(4, 5), torch.eye(4))
    common = ConditionalDiffusion(NoiseSchedule(), shared, model.denoiser)
    assert choose_levels(common, points(), UNIFORM) == NoiseSchedule()
    model.denoiser.directions = model.denoiser.directions[:1]
    one = ConditionalDiffusion(NoiseSchedule(), GaussianReference(torch.zeros(1, 5), torch.ones(1, 1)), model.denoiser)
    assert choose_levels(one, points(), np.zeros(1)).lam_min > -1
    assert choose_effort(one, points(), np.zeros(1), 1.0, n_paths=4) == (choose_levels(one, points(), np.zeros(1)), 4)


def test_without_residual_the_schedule_stays(mixture: Mixture):
    reference = mixture(5, 4)
    untrained = ResidualDenoiser(reference.means, torch.ones(5)).eval()
    schedule = NoiseSchedule(4.0, -6.0)
    for denoiser in (None, untrained):
        model = ConditionalDiffusion(schedule, reference, denoiser)
        assert choose_levels(model, points().float(), UNIFORM) == schedule
        assert choose_effort(model, points().float(), UNIFORM, 1.0, n_paths=4) == (schedule, 4)


def test_the_choice_keeps_the_window_of_an_exact_model(mixture: Mixture):
    """A mixture against a Gaussian: loss at all levels, so nothing of the default window is cut off."""
    model = MixtureDiffusion(mixture(5, 4))
    found = choose_levels(model, points(), UNIFORM)
    assert found.lam_max - found.lam_min > 8
    assert np.mean(found.importance) == pytest.approx(1)


def test_a_rough_residual_takes_more_jumps_than_a_small_one(banded: Callable[..., ConditionalDiffusion]):
    small, middle, rough = (
        choose_effort(banded(1.0, **settings), points(), UNIFORM, 1.0, n_paths=8)[1]
        for settings in (
            {"size": 1e-3, "width": 2.0},
            {"size": 0.3, "width": 1.0},
            {"size": 2.0, "width": 0.3, "rough": 5.0},
        )
    )
    assert small == 4
    assert small < middle < rough == 32


def test_a_flat_posterior_takes_fewer_jumps(banded: Callable[..., ConditionalDiffusion]):
    model = banded(1.0)
    sharp, flat = (choose_effort(model, points(), UNIFORM, t, n_paths=8)[1] for t in (1.0, 0.02))
    assert flat == 4 < sharp


@pytest.mark.parametrize("settings", [{"size": 0.1, "width": 1.0}, {"size": 0.3, "width": 0.3}])
def test_the_chosen_effort_leaves_the_posterior_as_it_is(
    banded: Callable[..., ConditionalDiffusion], settings: dict[str, float]
):
    """Against many more jumps and paths, on other points; and no worse than as many jumps with even levels."""
    model = banded(1.0, **settings)
    schedule, n_steps = choose_effort(model, points(), UNIFORM, 1.0, n_paths=16)
    z = torch.randn(100, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def posterior(levels: NoiseSchedule, n: int, n_repeats: int) -> Tensor:
        model.schedule = levels
        found = log_likelihood(model, z.repeat(n_repeats, 1), n_steps=n, n_paths=16, noise=NoiseStream(1)).mean
        return torch.softmax(found.unflatten(0, (n_repeats, -1)).mean(0), -1)  # repeated points have noise of their own

    fine = posterior(NoiseSchedule(), 64, 8)
    chosen, even = (0.5 * (posterior(s, n_steps, 1) - fine).abs().sum(1).mean() for s in (schedule, NoiseSchedule()))
    assert n_steps < 32
    assert chosen < 0.02
    assert chosen < even + 0.005


def test_a_narrow_band_takes_the_levels_of_the_loss(banded: Callable[..., ConditionalDiffusion]):
    """Four jumps do, where they would miss the band if they were even."""
    model = banded(2.0, width=0.2, size=0.3)
    assert choose_effort(model, points(), UNIFORM, 1.0, n_paths=16) == (choose_levels(model, points(), UNIFORM), 4)
    assert model.schedule == NoiseSchedule()


def test_the_seed_repeats_the_choice(banded: Callable[..., ConditionalDiffusion]):
    model = banded(1.0)
    assert choose_levels(model, points(), UNIFORM, seed=3) == choose_levels(model, points(), UNIFORM, seed=3)
