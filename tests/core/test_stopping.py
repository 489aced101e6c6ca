"""Adaptive effort against decisions that are known, or made with ten times as many trajectories."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from scscore.core.analytic import MixtureDiffusion
from scscore.core.calibration import log_posterior
from scscore.core.likelihood import Estimator, LogLikelihood, log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule
from scscore.core.stopping import Stopping
from scscore.core.trajectories import NoiseStream

ExactModel = Callable[..., tuple[MixtureDiffusion, GaussianReference]]
Classes = Callable[..., MixtureDiffusion]
N_PATHS = 32


def uniform(n_classes: int) -> np.ndarray:
    return np.full(n_classes, -np.log(n_classes))


def samples(model: MixtureDiffusion, n: int) -> Tensor:
    return model.sample(torch.arange(n) % model.n_classes, torch.Generator().manual_seed(1))


def adaptive(
    model: MixtureDiffusion,
    z: Tensor,
    precision: float,
    *,
    seed: int = 0,
    estimator: Estimator = "dissipation",
    n_steps: int = 8,
) -> tuple[LogLikelihood, np.ndarray, np.ndarray]:
    """Estimates, posterior and number of paths of every point."""
    rule = Stopping(uniform(model.n_classes), 1.0, precision)
    found = log_likelihood(
        model, z, estimator=estimator, n_steps=n_steps, n_paths=N_PATHS, noise=NoiseStream(seed), stopping=rule
    )
    return found, posterior_of(found), found.n_paths.max(1).values.numpy()


def posterior_of(found: LogLikelihood) -> np.ndarray:
    return np.exp(log_posterior(found.mean.numpy(), uniform(found.mean.shape[1])))


def draws_of(*means: float, spread: float, n_draws: int = 4) -> np.ndarray:
    """One point whose classes have the given log-likelihoods, with independent noise."""
    noise = np.random.default_rng(0).normal(size=(n_draws, 1, len(means)))
    return np.array(means) + spread * (noise - noise.mean(0))


def test_a_clear_point_is_settled_and_hopeless_classes_are_dropped():
    settled, hopeless = Stopping(uniform(3), 1.0, 0.02).settled(draws_of(0.0, -8.0, -200.0, spread=0.1))
    assert settled.tolist() == [True]
    assert hopeless.tolist() == [[False, False, True]]


@pytest.mark.parametrize(("margin", "spread"), [(0.1, 0.5), (1.0, 2.0), (0.0, 0.1)])
def test_a_rival_within_the_interval_is_not_settled(margin: float, spread: float):
    """However coarse the posterior may be."""
    settled, hopeless = Stopping(uniform(2), 1.0, precision=1.0).settled(draws_of(0.0, -margin, spread=spread))
    assert not settled.any()
    assert not hopeless.any()


def test_precision_of_the_posterior_is_asked_for():
    draws = draws_of(0.0, -1.0, spread=0.2, n_draws=16)
    assert Stopping(uniform(2), 1.0, precision=0.1).settled(draws)[0].all()
    assert not Stopping(uniform(2), 1.0, precision=0.01).settled(draws)[0].any()


def test_few_draws_that_agree_by_luck_do_not_count_as_much():
    """The same spread: Student's t of two draws is wider by 12.7 / 2.0 than that of many."""
    rule = Stopping(uniform(2), 1.0, precision=1.0)
    pair = np.array([[[0.0, -1.05]], [[0.0, -0.95]]])  # standard error of .05 around one
    wide = np.array([[[0.0, -1.2]], [[0.0, -0.8]]])  # of .2
    assert rule.settled(pair)[0].all()
    assert not rule.settled(wide)[0].any()
    many = np.concatenate([wide] * 8)
    assert rule.settled(many)[0].all()


def test_a_single_draw_settles_nothing():
    settled, hopeless = Stopping(uniform(2), 1.0, 0.5).settled(np.array([[[0.0, -500.0]]]))
    assert not settled.any()
    assert not hopeless.any()


def test_noise_that_the_classes_share_does_not_matter():
    common = np.random.default_rng(1).normal(scale=50, size=(4, 1, 1))
    draws = draws_of(0.0, -4.0, spread=0.1)
    rule = Stopping(uniform(2), 1.0, 0.05)
    assert rule.settled(draws + common)[0].tolist() == rule.settled(draws)[0].tolist() == [True]


def test_prior_and_temperature_decide_what_is_far():
    draws = draws_of(0.0, -20.0, spread=0.1)
    assert Stopping(uniform(2), 1.0, 0.05).settled(draws)[1].tolist() == [[False, True]]
    assert not Stopping(uniform(2), 0.5, 0.05).settled(draws)[1].any()
    assert not Stopping(np.log([1e-5, 1 - 1e-5]), 1.0, 0.05).settled(draws)[1].any()
    excluded = Stopping(np.array([0.0, -np.inf]), 1.0, 0.05).settled(draws_of(0.0, 3.0, spread=0.1))
    assert excluded[0].all()
    assert excluded[1].tolist() == [[False, True]]


def test_temperature_scales_the_margin_and_its_error():
    """With equal priors, which class is best does not depend on it."""
    draws = draws_of(0.0, -1.0, spread=0.5, n_draws=8)
    assert all(Stopping(uniform(2), t, precision=1.0).settled(draws)[0].all() for t in (1.0, 0.3))
    wide = draws_of(0.0, -1.0, spread=2.0, n_draws=8)
    assert not any(Stopping(uniform(2), t, precision=1.0).settled(wide)[0].any() for t in (1.0, 3.0))


def test_settled_points_have_fewer_paths_and_the_hard_ones_all(overlapping_classes: Classes):
    model = overlapping_classes(3, 2, separation=1.0)
    model.schedule = NoiseSchedule(8.0, -8.0)
    z = samples(model, 300)
    _, _, n_paths = adaptive(model, z, precision=0.05)
    ordered = np.sort(log_posterior(model.log_prob(z).numpy(), uniform(3)), axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    assert set(np.unique(n_paths)) <= {4, 8, 16, 32}
    assert n_paths.mean() < 0.75 * N_PATHS
    assert (n_paths[margin < 0.05] == N_PATHS).all()  # ties within the error of all paths
    assert n_paths[margin > 3].mean() < 0.6 * n_paths[margin < 1].mean()


def test_without_early_stops_all_paths_are_made(exact_model: ExactModel):
    """Where a precision is asked for that cannot be had, the estimates are those without a rule."""
    model, _ = exact_model(2, lam=8.0)
    z = samples(model, 10)
    found, _, n_paths = adaptive(model, z, precision=1e-9)
    assert (n_paths == N_PATHS).all()
    plain = log_likelihood(model, z, n_steps=8, n_paths=N_PATHS, noise=NoiseStream(0))
    kept = found.n_paths == N_PATHS
    assert kept.double().mean() > 0.9
    torch.testing.assert_close(found.mean[kept], plain.mean[kept])


@pytest.mark.parametrize("estimator", ["dissipation", "elbo"])
def test_decisions_and_posteriors_agree_with_tenfold_effort(exact_model: ExactModel, estimator: Estimator):
    """Of points that were settled early: the decision in 97 % at least, the posterior within the precision in about 95 %."""
    model, _ = exact_model(2, lam=8.0)
    z = samples(model, 200)
    noise = NoiseStream(9)
    fine = posterior_of(log_likelihood(model, z, estimator=estimator, n_steps=8, n_paths=10 * N_PATHS, noise=noise))
    rows, close, same = np.arange(200), [], []
    for seed in range(4):
        _, found, n_paths = adaptive(model, z, precision=0.05, seed=seed, estimator=estimator)
        early, best = n_paths < N_PATHS, found.argmax(1)
        close.append((np.abs(found - fine)[rows, best] < 0.05)[early])
        same.append((best == fine.argmax(1))[early])
    close, same = np.concatenate(close), np.concatenate(same)
    assert len(close) > 300
    assert same.mean() >= 0.97
    assert 0.93 <= close.mean() < 1


def test_decisions_in_many_dimensions_agree_with_the_truth(overlapping_classes: Classes):
    model = overlapping_classes()
    z = samples(model, 200)
    _, found, n_paths = adaptive(model, z, precision=0.05)
    early = n_paths < N_PATHS
    exact = np.exp(log_posterior(model.log_prob(z).numpy(), uniform(8)))
    assert early.mean() > 0.4
    assert (found.argmax(1) == exact.argmax(1))[early].mean() >= 0.97
    assert (np.abs(found.max(1) - exact[np.arange(200), found.argmax(1)]) < 0.05)[early].mean() >= 0.93


def test_the_number_of_classes_falls_and_the_best_one_stays(overlapping_classes: Classes):
    """164 classes: many are hopeless after two draws, and the true best class is never dropped."""
    model = overlapping_classes(164, 20, separation=1.0)
    z = samples(model, 16)
    found, _, n_paths = adaptive(model, z, precision=0.01, n_steps=6)
    made = found.paths[:, 0].isfinite().sum(-1).double().numpy()  # classes of every draw and point
    mean = [made[i, n_paths > 2 * i].mean() for i in range(len(made)) if (n_paths > 2 * i).any()]
    assert mean[0] == 164
    assert mean[2] < 0.6 * 164
    best = torch.softmax(model.log_prob(z), -1).argmax(1)
    assert (found.n_paths[torch.arange(16), best].numpy() == n_paths).all()
    assert found.mean.isfinite().all()


def test_dropped_classes_have_no_weight(overlapping_classes: Classes):
    model = overlapping_classes(20, 10, separation=1.0)
    model.schedule = NoiseSchedule(8.0, -8.0)
    z = samples(model, 200)
    found, posterior, n_paths = adaptive(model, z, precision=0.01)
    dropped = found.n_paths.numpy() < n_paths[:, None]
    assert dropped.any()
    exact = np.exp(log_posterior(model.log_prob(z).numpy(), uniform(20)))
    assert posterior[dropped].max() < 1e-6
    assert (exact[dropped] < 1e-6).mean() > 0.975  # the bound is that of a 95 % interval
    assert exact[dropped].max() < 1e-4
