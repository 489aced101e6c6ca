"""Known truths of the readout: what it leaves alone, what it is at every noise level, and which weights data ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scscore.core.attribution import Contrast, attribute, frozen_evidence
from scscore.core.calibration import Array, fit_pool, log_posterior, negative_log_likelihood
from scscore.core.combination import Pair, with_combinations
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.dissipation import evidence_by_level
from scscore.core.likelihood import log_likelihood
from scscore.core.readout import LinearReadout, ReadoutChoice, ReadoutRun, choose_readout, fit_readout
from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import Whitening, pooled_whitening
from scscore.core.schedule import NoiseSchedule
from scscore.core.stopping import Stopping
from scscore.core.trajectories import NoiseStream

N_FEATURES, N_CLASSES = 5, 4


def readout(seed: int = 0, exponent: float = 0.4) -> LinearReadout:
    generator = torch.Generator().manual_seed(seed)
    weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((N_CLASSES, N_FEATURES), N_CLASSES)
    )
    return LinearReadout(weight, bias, torch.tensor(exponent), torch.tensor([0.4, 0.3, 0.2, 0.1]).log())


def diffusion(*, trained: bool = True) -> ConditionalDiffusion:
    """Four Gaussians and a network with random weights, which is a density ratio like any other."""
    generator = torch.Generator().manual_seed(3)
    means = 2 * torch.randn(N_CLASSES, N_FEATURES, generator=generator)
    overlap = 0.85 * torch.eye(N_CLASSES) + 0.15 / N_CLASSES
    reference = GaussianReference(means, overlap / overlap.sum(1, keepdim=True))
    if not trained:
        return ConditionalDiffusion(NoiseSchedule(), reference).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResidualDenoiser(reference.class_means, torch.ones(N_FEATURES))
        torch.nn.init.normal_(network.output.weight, std=0.1)
    return ConditionalDiffusion(NoiseSchedule(), reference, network).eval()


def points(n: int = 60) -> torch.Tensor:
    return 2 * torch.randn(n, N_FEATURES, generator=torch.Generator().manual_seed(1))


def with_readout(model: ConditionalDiffusion, readout: LinearReadout) -> ConditionalDiffusion:
    return ConditionalDiffusion(model.schedule, model.reference, model.denoiser, readout).eval()


def test_log_p_of_x_stays_and_the_posterior_is_that_of_the_pool():
    head, z = readout(), points()
    before = diffusion(trained=False).reference.log_prob(z)
    after = head(before, z)
    torch.testing.assert_close(
        (after + head.log_prior).logsumexp(-1), (before + head.log_prior).logsumexp(-1), rtol=0, atol=1e-5
    )
    pool = 0.4 * before + z.to(torch.float64) @ head.weight.T + head.bias
    torch.testing.assert_close(
        (after + head.log_prior).softmax(-1), (pool + head.log_prior).softmax(-1), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("estimator", ["dissipation", "elbo", "flow"])
def test_every_estimator_is_read_out(estimator: str):
    model, z, head = diffusion(), points(7), readout()
    options = {"noise": NoiseStream(0), "n_steps": 4, "n_paths": 2, "estimator": estimator}
    bare, found = (log_likelihood(m, z, **options) for m in (model, with_readout(model, head)))
    torch.testing.assert_close(found.mean.detach(), head(bare.mean, z).detach(), atol=1e-9, rtol=0)
    marginals = [(mean + head.log_prior).logsumexp(-1).detach() for mean in (found.mean, bare.mean)]
    torch.testing.assert_close(*marginals, atol=1e-9, rtol=0)


@pytest.mark.parametrize("lam", [-3.0, 0.0, 4.0])
def test_the_linear_part_of_a_noised_point_is_the_log_ratio_of_two_noised_gaussians(lam: float):
    """Gaussians of unit variance have the log-ratio (m1 - m2).z - (|m1|^2 - |m2|^2) / 2, noised ones the same with their own means."""
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(N_CLASSES, N_FEATURES, generator=generator, dtype=torch.float64)
    head = LinearReadout(means, -0.5 * means.square().sum(1), torch.tensor(0.0), torch.zeros(N_CLASSES))
    gaussians = GaussianReference(means, torch.eye(N_CLASSES).clamp_min(1e-300))
    z, level = points(20), torch.tensor(lam)
    found, expected = head.pooled(torch.zeros(20, N_CLASSES), z, lam=level), gaussians.log_prob(z, level)
    torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1], atol=1e-5, rtol=0)


def test_evidence_by_level_ends_at_the_log_likelihood():
    model, z = with_readout(diffusion(), readout()), points(6)
    noise, levels = NoiseStream(0), diffusion().schedule.levels(8)

    def draw(step: int) -> torch.Tensor:
        return noise.normal(np.arange(6), N_FEATURES, pair=0, step=step).to(z)

    with torch.no_grad():
        by_level = evidence_by_level(model, z, levels, draw).mean(1)
        found = log_likelihood(model, z, noise=noise, n_steps=8, n_paths=2).mean
    torch.testing.assert_close(by_level[-1] - by_level[-1, :, :1], found - found[:, :1], atol=1e-5, rtol=0)
    spread = (by_level - by_level.mean(-1, keepdim=True)).square().mean((1, 2))
    assert spread[0] < 0.05 * spread[-1]  # all noise: nothing is known


def test_a_pair_of_classes_has_the_evidence_of_all():
    """Against one class only two log-likelihoods are computed."""
    model, z = with_readout(diffusion(), readout()), points(9)
    weights = torch.full((9, N_CLASSES), -torch.inf, dtype=torch.float64)
    weights[:, 2] = 0
    contrast = Contrast(torch.zeros(9, dtype=torch.int64), weights)
    evidence = frozen_evidence(model, contrast, noise=NoiseStream(0), start=0, pair=0, n_steps=4)(z).detach()
    found = log_likelihood(model, z, noise=NoiseStream(0), n_steps=4, n_paths=2).mean.detach()
    torch.testing.assert_close(evidence, found[:, 0] - found[:, 2], atol=1e-5, rtol=0)


def test_dropped_classes_do_not_disturb():
    model, z, head = diffusion(), points(200), readout()
    stopping = Stopping(head.log_prior.numpy(), 1.0, 0.02)
    options = {"noise": NoiseStream(0), "n_steps": 4, "n_paths": 32}
    with torch.no_grad():
        full = log_likelihood(with_readout(model, head), z, **options)
        early = log_likelihood(with_readout(model, head), z, stopping=stopping, **options)
    assert early.n_paths.max() > early.n_paths.min() and early.mean.isfinite().all()
    one, other = ((found.mean + head.log_prior).softmax(-1) for found in (full, early))
    assert (one - other).abs().max() < 0.05


def test_what_is_generated_knows_no_readout():
    model = with_readout(diffusion(), readout())
    z, lam = points(4), torch.tensor(1.0)
    torch.testing.assert_close(model.score(z, lam), diffusion().score(z, lam))
    assert model.density.readout is None and model.density.denoiser is model.denoiser


def test_independent_experts_get_one_each_and_a_copy_shares():
    """Evidence from independent measurements adds up: weights one; of two experts that say the same, the sum counts."""
    rng = np.random.default_rng(0)
    y, means = rng.integers(3, size=6000), rng.normal(size=(2, 3, 2))
    x = means[:, y] + rng.normal(size=(2, 6000, 2))
    experts = [-0.5 * ((x[e][:, None] - means[e]) ** 2).sum(2) for e in range(2)]
    log_prior = np.full(3, -np.log(3))
    weights, offsets = fit_pool(experts, log_prior, y)
    np.testing.assert_allclose(weights, 1, atol=0.1)
    np.testing.assert_allclose(offsets, 0, atol=0.15)
    twice, _ = fit_pool([experts[0], experts[0]], log_prior, y)
    assert twice.sum() == pytest.approx(1, abs=0.1)


def test_a_scaled_expert_is_scaled_back():
    rng = np.random.default_rng(1)
    y = rng.integers(2, size=4000)
    exact = np.stack([np.zeros(4000), 2 * (rng.normal(size=4000) + 2 * y - 1)], axis=1)
    weights, _ = fit_pool([exact / 3, np.zeros_like(exact)], np.log([0.5, 0.5]), y)
    assert weights[0] == pytest.approx(3, rel=0.1)


def run_of(
    x: Array, y: np.ndarray, log_likelihood: Array, whitening: Whitening | None = None, n_classes: int = 3
) -> ReadoutRun:
    """Half of the cells to train the classifier, half held out."""
    half = len(y) // 2
    whitening = whitening or pooled_whitening(x[:half], y[:half], n_classes)
    return ReadoutRun(whitening, x[:half], y[:half], x[half:], y[half:], log_likelihood[half:])


def gaussian_cells(n: int, seed: int, scales: Array | None = None) -> tuple[Array, np.ndarray, Array]:
    """Cells of three classes, unit variance, and their exact log-likelihoods."""
    rng = np.random.default_rng(seed)
    means = np.array([[1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 1.5, 0]])
    y = rng.integers(3, size=n)
    x = means[y] + rng.normal(size=(n, 4))
    exact = -0.5 * ((x[:, None] - means) ** 2).sum(2)
    return (x if scales is None else x * scales), y, exact


@pytest.mark.parametrize("scales", [None, np.array([5.0, 5.0, 5.0, 1.0])])
def test_where_the_diffusion_knows_nothing_the_classifier_is_bayes_optimal(scales: Array | None):
    """Log-ratios of these classes are linear: the pool has the exact ones."""
    log_prior = np.full(3, -np.log(3))
    x, y, _ = gaussian_cells(16000, 0, scales)
    choice = choose_readout([run_of(x, y, np.zeros((16000, 3)))], log_prior)
    head = fit_readout(x, y, pooled_whitening(x, y, 3), choice, log_prior)
    new, _, exact = gaussian_cells(1000, 1, scales)
    z = pooled_whitening(x, y, 3)(torch.from_numpy(new))
    found = head(torch.zeros(1000, 3), z).numpy()
    ratio, truth = found[:, 1:] - found[:, :1], exact[:, 1:] - exact[:, :1]
    assert np.polyfit(truth.ravel(), ratio.ravel(), 1)[0] == pytest.approx(1, abs=0.06)
    assert np.sqrt(np.mean((ratio - truth) ** 2)) < 0.25


def test_where_the_densities_are_exact_the_pool_keeps_their_posterior():
    """Classes that a plane cannot part: equal means, other variances. The classifier has nothing to add, and harms nothing."""
    rng = np.random.default_rng(2)
    log_prior, sd = np.full(3, -np.log(3)), np.array([0.5, 1.0, 2.0])
    y = rng.integers(3, size=3000)
    x = sd[y, None] * rng.normal(size=(3000, 4))
    exact = -0.5 * (x**2).sum(1)[:, None] / sd**2 - 4 * np.log(sd)
    choice = choose_readout([run_of(x, y, exact)], log_prior)
    assert choice.of_diffusion == pytest.approx(1, abs=0.1)
    head = fit_readout(x, y, pooled_whitening(x, y, 3), choice, log_prior)
    pooled = head(torch.from_numpy(exact), pooled_whitening(x, y, 3)(torch.from_numpy(x))).numpy()
    loss = [negative_log_likelihood(np.exp(log_posterior(v, log_prior)), y) for v in (pooled, exact)]
    assert loss[0] < loss[1] + 0.005


def test_over_confident_densities_are_pooled_down():
    """Means fitted to thirty cells a class in sixty directions: a good part of what they cost beside the true ones is won back."""
    rng = np.random.default_rng(3)
    means, n_train = np.zeros((3, 60)), 90
    means[:, :3] = 1.5 * np.eye(3)
    log_prior = np.full(3, -np.log(3))
    y = rng.integers(3, size=2 * n_train)
    x = means[y] + rng.normal(size=(2 * n_train, 60))
    fitted = np.stack([x[:n_train][y[:n_train] == k].mean(0) for k in range(3)])
    rough = -0.5 * ((x[:, None] - fitted) ** 2).sum(2)
    identity = Whitening(torch.zeros(60), torch.eye(60))
    choice = choose_readout([run_of(x, y, rough, identity)], log_prior)
    head = fit_readout(x[:n_train], y[:n_train], identity, choice, log_prior)
    y_new = rng.integers(3, size=4000)
    new = means[y_new] + rng.normal(size=(4000, 60))
    of_new = -0.5 * ((new[:, None] - fitted) ** 2).sum(2)
    pooled = head(torch.from_numpy(of_new), torch.from_numpy(new)).numpy()
    exact = -0.5 * ((new[:, None] - means) ** 2).sum(2)
    before, after, best = (
        negative_log_likelihood(np.exp(log_posterior(value, log_prior)), y_new) for value in (of_new, pooled, exact)
    )
    assert best < after < best + 0.8 * (before - best)


@pytest.mark.parametrize("whitened", [True, False])
def test_a_class_that_a_run_lacks_and_two_classes(whitened: bool):
    x, y, exact = gaussian_cells(600, 4)
    log_prior = np.full(3, -np.log(3))
    whitening = pooled_whitening(x, y, 3)
    choice = ReadoutChoice(1e-3, whitened, 0.5, 0.5)
    two = fit_readout(x[y < 2], y[y < 2], whitening, choice, log_prior)
    found = two(torch.from_numpy(exact), whitening(torch.from_numpy(x))).numpy()
    assert np.isfinite(found).all() and not two.weight[2].any()
    right = y < 2
    assert (found[right, :2].argmax(1) == y[right]).mean() > 0.8


@pytest.mark.parametrize("direction", [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0)])
def test_combined_classes_of_additive_gaussians_are_exact(direction: tuple[float, float]):
    """Unit variance and effects that add up: linear discriminants of four known classes, of which the last is combined from the others."""
    means = torch.zeros(4, N_FEATURES, dtype=torch.float64)
    means[0, 2] = 0.7  # control is not at the origin
    means[1], means[2] = means[0], means[0]
    means[1, 0] += 1.5
    means[2, :2] += 1.5 * torch.tensor(direction)
    means[3] = means[1] + means[2] - means[0]
    known = GaussianReference(means[:3], torch.eye(3).clamp_min(1e-300))
    head = LinearReadout(
        0.6 * means[:3], -0.3 * means[:3].square().sum(1), torch.tensor(0.4), torch.full((3,), -np.log(3.0))
    )
    found = with_combinations(ConditionalDiffusion(NoiseSchedule(), known, None, head), [Pair(1, 2)], control=0)
    z = points(50)
    truth = GaussianReference(means, torch.eye(4).clamp_min(1e-300)).log_prob(z)
    pooled = log_likelihood(found, z, noise=NoiseStream(0)).mean
    torch.testing.assert_close(pooled - pooled[:, :1], truth - truth[:, :1], atol=1e-5, rtol=0)


def test_combining_leaves_the_known_classes_alone():
    generator = torch.Generator().manual_seed(0)
    overlap = 0.7 * torch.eye(N_CLASSES) + 0.3 / N_CLASSES
    reference = GaussianReference(torch.randn(N_CLASSES, N_FEATURES, generator=generator), overlap)
    model = ConditionalDiffusion(NoiseSchedule(), reference, None, readout())
    found, z = with_combinations(model, [Pair(1, 2)], control=0), points(30)
    before, after = (log_likelihood(m, z, noise=NoiseStream(0)).mean for m in (model, found))
    torch.testing.assert_close(after[:, :4], before, atol=1e-6, rtol=0)
    assert after.isfinite().all()


def test_thinning_keeps_rare_classes():
    """40,000 cells are thinned for the choice of the penalty; five of them are all there is of a class."""
    rng = np.random.default_rng(3)
    y = np.zeros(40_000, dtype=np.int64)
    y[rng.choice(20_000, 3, replace=False)], y[20_000:20_003] = 1, 1
    x = rng.normal(size=(40_000, 2)) + 3 * y[:, None]
    log_prior = np.log([0.99, 0.01])
    whitening = Whitening(torch.zeros(2), torch.eye(2))
    choice = choose_readout([run_of(x, y, np.zeros((40_000, 2)), whitening, 2)], log_prior)
    head = fit_readout(x, y, whitening, choice, log_prior)
    pooled = head.pooled(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [3.0, 3.0]]))
    assert pooled[0, 1] - pooled[0, 0] < pooled[1, 1] - pooled[1, 0]


def with_class_scores(seed: int = 0) -> LinearReadout:
    """A readout that pools class scores, which are linear functions of the points where these are all that is known."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (N_CLASSES, N_CLASSES), (N_FEATURES, N_CLASSES), (N_CLASSES,)
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    plain = readout()
    return LinearReadout(plain.weight, plain.bias, plain.exponent, plain.log_prior, *parts)


def test_class_scores_that_follow_from_the_points_make_one_classifier_with_them():
    head, z = with_class_scores(), points()
    weight, bias = head.weight + head.of_scores @ head.score_slopes.T, head.bias + head.of_scores @ head.score_bias
    one = LinearReadout(weight, bias, head.exponent, head.log_prior)
    log_likelihood, whole = diffusion(trained=False).reference.log_prob(z), head.completed(z.to(torch.float64))
    torch.testing.assert_close(head(log_likelihood, whole), one(log_likelihood, z), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="5 columns; the readout needs 5 features and 4 class scores"):
        head(log_likelihood, z)


def test_class_scores_of_a_noised_cell_are_the_mean_of_their_noised_log_ratio():
    """A linear log-ratio of noised points, averaged over the noise, is what the readout gives to scores of the clean point."""
    head, z, level = with_class_scores(), points(3), torch.tensor(1.0)
    alone = LinearReadout(torch.zeros_like(head.weight), 0 * head.bias, head.exponent, head.log_prior, head.of_scores)
    direct = LinearReadout(head.score_slopes.T, head.score_bias, head.exponent, head.log_prior)
    eta = torch.randn(20000, 1, N_FEATURES, generator=torch.Generator().manual_seed(4))
    noised = NoiseSchedule.alpha(level) * z + NoiseSchedule.sigma(level) * torch.cat([eta, -eta])
    expected = direct.expert(noised, level).mean(0) @ head.of_scores.T
    alone.score_slopes = head.score_slopes
    found = alone.expert(head.completed(z), level)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_class_scores_of_a_cell_are_their_own_evidence():
    """One nat more for a class adds what the scores weigh, to the likelihood and at the clean end of the evidence by noise level."""
    head, z = with_class_scores(), points(6)
    model, whole = with_readout(diffusion(), head), head.completed(z)
    more = whole.clone()
    more[:, N_FEATURES + 1] += 1
    noise, levels = NoiseStream(0), diffusion().schedule.levels(4)

    def draw(step: int) -> torch.Tensor:
        return noise.normal(np.arange(6), N_FEATURES, pair=0, step=step).to(z)

    with torch.no_grad():
        one, other = (log_likelihood(model, x, noise=noise, n_steps=4, n_paths=2) for x in (whole, more))
        by_level = [evidence_by_level(model, x, levels, draw) for x in (whole, more)]
    torch.testing.assert_close(one.density, other.density, atol=0, rtol=0)
    gain = other.mean - one.mean
    column = head.of_scores[:, 1]
    torch.testing.assert_close(gain - gain[:, :1], (column - column[0]).expand_as(gain), atol=1e-4, rtol=0)
    steps = by_level[1] - by_level[0]
    torch.testing.assert_close(steps[-1, 0] - steps[-1, 0, :, :1], gain - gain[:, :1], atol=1e-4, rtol=0)
    assert steps[0].abs().max() < 0.05 * steps[-1].abs().max()  # all noise: scores say nothing either


def test_attributions_of_points_with_class_scores_add_up():
    head, z = with_class_scores(), points(8)
    model = with_readout(diffusion(), head)
    whole = head.completed(z) + torch.cat([torch.zeros(8, N_FEATURES), 0.5 * torch.ones(8, N_CLASSES)], dim=1)
    weights = torch.full((8, N_CLASSES), -np.log(N_CLASSES), dtype=torch.float64)
    contrast = Contrast(torch.ones(8, dtype=torch.int64), weights)
    found = attribute(model, whole, contrast, noise=NoiseStream(0), n_steps=4, n_paths=2)
    total = (found.gradient * found.displacement).sum(-1)
    torch.testing.assert_close(total, found.evidence - found.baseline, atol=1e-6, rtol=0)
    baseline = whole.double() - found.displacement
    torch.testing.assert_close(model.completed(model.own(baseline)), baseline, atol=1e-9, rtol=0)


def test_an_independent_measurement_in_the_class_scores_gets_weight_one():
    """The features and the scores are of independent measurements with the same classes; scores of noise get next to none."""
    rng = np.random.default_rng(5)
    log_prior = np.full(3, -np.log(3))
    x, y, exact = gaussian_cells(8000, 0)
    other = 1.5 * np.eye(3)[y] + rng.normal(size=(8000, 3))
    scores = 1.5 * other  # log-ratios of three Gaussians of unit variance around the corners of a triangle
    for values, weight in ((scores, 1.0), (rng.normal(size=scores.shape), 0.0)):
        run = run_of(np.hstack([x, values]), y, exact, pooled_whitening(x[:4000], y[:4000], 3))._replace(n_scores=3)
        choice = choose_readout([run], log_prior)
        assert choice.of_scores == pytest.approx(weight, abs=0.15 if weight else 0.0)  # noise is left out
        assert choice.of_diffusion + choice.of_classifier == pytest.approx(1, abs=0.2)
    alone = run_of(x, y, exact, pooled_whitening(x[:4000], y[:4000], 3))
    assert choose_readout([alone], log_prior) == choice  # as if the scores did not exist


def test_combinations_have_class_scores_that_add_up():
    model, z = with_readout(diffusion(), with_class_scores()), points(5)
    found = with_combinations(model, [Pair(1, 2)], control=0)
    head, whole = model.readout, model.completed(z)
    more = whole + torch.cat([torch.zeros(5, N_FEATURES), torch.ones(5, N_CLASSES)], dim=1)
    gain = found.readout.expert(more, None) - found.readout.expert(whole, None)
    torch.testing.assert_close(gain[:, 4], gain[:, 1] + gain[:, 2] - gain[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(gain[:, :4], head.of_scores.sum(1).expand(5, -1), atol=1e-5, rtol=0)
