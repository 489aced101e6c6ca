import pytest
import torch

from scscore.core.schedule import Jump, NoiseSchedule


def test_variance_is_preserved_and_log_snr_is_the_clock():
    lam = torch.linspace(-10, 10, 41, dtype=torch.float64)
    alpha, sigma = NoiseSchedule.alpha(lam), NoiseSchedule.sigma(lam)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(lam))
    torch.testing.assert_close((alpha**2 / sigma**2).log(), lam)


def test_levels_run_from_the_noise_floor_to_the_prior():
    levels = NoiseSchedule(4.0, -6.0).levels(5)
    torch.testing.assert_close(levels, torch.tensor([4.0, 2.0, 0.0, -2.0, -4.0, -6.0], dtype=torch.float64))


@pytest.mark.parametrize("middle", [-4.0, 0.0, 2.9])
def test_one_long_jump_equals_two_short_ones(middle: float):
    start, middle, end = (torch.tensor(v, dtype=torch.float64) for v in (3.0, middle, -5.0))
    first, second, direct = Jump.between(start, middle), Jump.between(middle, end), Jump.between(start, end)
    torch.testing.assert_close(first.ratio * second.ratio, direct.ratio)
    torch.testing.assert_close((second.ratio * first.spread) ** 2 + second.spread**2, direct.spread**2)


def test_a_jump_ends_at_the_noise_of_its_level():
    lam, lam_next = torch.tensor(2.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    jump = Jump.between(lam, lam_next)
    torch.testing.assert_close(
        (jump.ratio * NoiseSchedule.sigma(lam)) ** 2 + jump.spread**2, NoiseSchedule.sigma(lam_next) ** 2
    )
    torch.testing.assert_close(jump.ratio * NoiseSchedule.alpha(lam), NoiseSchedule.alpha(lam_next))


def test_reverse_mean_is_bayes_rule_and_a_jump_weighs_its_length():
    """Mean of p(z | z', z_0) from the joint Gaussian of z and z' given z_0."""
    lam, lam_next = torch.tensor(1.5, dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64)
    jump = Jump.between(lam, lam_next)
    clean, noisy = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    alpha, variance = NoiseSchedule.alpha(lam), NoiseSchedule.sigma(lam) ** 2
    covariance, marginal = jump.ratio * variance, NoiseSchedule.sigma(lam_next) ** 2
    mean = alpha * clean + covariance / marginal * (noisy - NoiseSchedule.alpha(lam_next) * clean)
    eps = (noisy - NoiseSchedule.alpha(lam_next) * clean) / NoiseSchedule.sigma(lam_next)
    torch.testing.assert_close(jump.from_noisy * noisy + jump.from_eps * eps, mean)
    torch.testing.assert_close(jump.from_eps**2 / jump.variance, lam - lam_next)


@pytest.mark.parametrize(("lam_max", "lam_min"), [(1.0, 1.0), (-2.0, 3.0)])
def test_a_schedule_must_run_downwards(lam_max: float, lam_min: float):
    with pytest.raises(ValueError, match="lam_max must be greater"):
        NoiseSchedule(lam_max, lam_min)
    with pytest.raises(ValueError, match="n_steps must be at least 1"):
        NoiseSchedule().levels(0)
