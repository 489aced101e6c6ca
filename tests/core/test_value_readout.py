"""The readout of a continuous target against pools and posteriors in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from scscore.core.calibration import log_posterior
from scscore.core.denoiser import Ensemble
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.direct import DirectNetwork
from scscore.core.likelihood import log_likelihood
from scscore.core.readout import LinearReadout, normaliser
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule
from scscore.core.target import Predictive, TargetGrid
from scscore.core.trajectories import NoiseStream
from scscore.core.value_readout import NetworkReadout, fit_network_pool

NOISE = 0.5


class Linear(nn.Module):
    """A network whose log-ratios are linear."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.shape: dict[str, int] = {}

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.weight.T + self.bias


def values(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two features, each the target with noise of its own."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    return y[:, None] + NOISE * rng.normal(size=(n, 2)), y


def evidence(grid: TargetGrid, x: np.ndarray) -> np.ndarray:
    """Log-likelihood of every bin by one feature."""
    return norm(grid.centers, NOISE).logpdf(x[:, None])


def random_readout(seed: int = 0, n_members: int = 1) -> tuple[NetworkReadout, TargetGrid]:
    grid = TargetGrid.of(np.random.default_rng(seed).normal(size=500))
    n_nodes = len(grid.nodes)
    networks = []
    with torch.random.fork_rng():
        for i in range(n_members):
            torch.manual_seed(seed + i)
            network = DirectNetwork(torch.ones(3), n_nodes, width=8).eval()
            nn.init.normal_(network.output.weight)
            networks.append(network)
    log_prior = torch.full((grid.n_bins,), -float(np.log(grid.n_bins)))
    scalars = torch.tensor(0.4), torch.tensor(0.7)
    whole = networks[0] if n_members == 1 else Ensemble(networks)
    return NetworkReadout(whole, *scalars, log_prior, torch.from_numpy(grid.to_bins)), grid


def test_independent_experts_are_multiplied():
    """Two features that are independent given the target: the posterior is the product, weights one and one."""
    x, y = values(20_000, 0)
    grid = TargetGrid.of(y)
    log_prior = np.log(grid.frequencies(y))
    weights = fit_network_pool(evidence(grid, x[:, 0]), evidence(grid, x[:, 1]), log_prior, y, grid)
    np.testing.assert_allclose(weights, 1, atol=0.08)


def test_the_same_expert_twice_is_counted_once():
    x, y = values(20_000, 1)
    grid = TargetGrid.of(y)
    log_prior = np.log(grid.frequencies(y))
    once = evidence(grid, x[:, 0])
    assert sum(fit_network_pool(once, once, log_prior, y, grid)) == pytest.approx(1, abs=0.08)


def test_an_expert_that_knows_nothing_is_not_listened_to():
    """And the density of held-out values is that of the better expert alone, to a few thousandths of a nat."""
    x, y = values(5000, 2)
    grid = TargetGrid.of(y)
    log_prior = np.log(grid.frequencies(y))
    good, bad = evidence(grid, x[:, 0]), evidence(grid, np.random.default_rng(3).permutation(x[:, 1]))
    of_good, of_bad = fit_network_pool(good, bad, log_prior, y, grid)
    assert of_good == pytest.approx(1, abs=0.1)
    assert of_bad < 0.05
    pooled, alone = (
        Predictive(grid, np.exp(log_posterior(v, log_prior))).log_density(y).mean()
        for v in (of_good * good + of_bad * bad, good)
    )
    assert pooled > alone - 0.005


def test_log_p_of_x_is_left_alone():
    readout, grid = random_readout()
    z, found = torch.randn(50, 3), torch.randn(50, len(grid.nodes), dtype=torch.float64) * 5
    before, after = ((part @ readout.to_bins + readout.log_prior).logsumexp(-1) for part in (found, readout(found, z)))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    expected = (0.7 * found + 0.4 * readout.network(z)) @ readout.to_bins
    posterior = [(part + readout.log_prior).softmax(-1) for part in (readout(found, z) @ readout.to_bins, expected)]
    torch.testing.assert_close(*posterior, rtol=0, atol=1e-6)
    same = expected + normaliser(found @ readout.to_bins, expected, readout.log_prior)
    torch.testing.assert_close(same, readout(found, z) @ readout.to_bins, rtol=0, atol=1e-5)


def test_a_linear_network_is_a_linear_readout_at_every_noise_level():
    grid = TargetGrid.of(np.random.default_rng(0).normal(size=500))
    n = len(grid.nodes)
    weight, bias = torch.randn(n, 3), torch.randn(n)
    exponent, to_bins = torch.tensor(0.6), torch.from_numpy(grid.to_bins)
    one = NetworkReadout(Linear(weight, bias), torch.tensor(0.5), exponent, torch.zeros(grid.n_bins), to_bins)
    other = LinearReadout(0.5 * weight, 0.5 * bias, exponent, torch.zeros(n))
    z, found = torch.randn(20, 3), torch.randn(20, n, dtype=torch.float64)
    for lam in (None, torch.tensor(4.0), torch.tensor(-3.0)):
        torch.testing.assert_close(one.pooled(found, z, lam=lam), other.pooled(found, z, lam=lam), rtol=1e-5, atol=1e-5)


def test_members_have_a_network_each():
    readout, grid = random_readout(n_members=3)
    n = len(grid.nodes)
    reference = GaussianReference(torch.randn(n, 3), torch.eye(n))
    model = ConditionalDiffusion(NoiseSchedule(), reference, readout=readout).eval()
    z = torch.randn(10, 3)
    members = model.members()
    assert len(members) == 3

    def at(one: ConditionalDiffusion) -> Tensor:
        found = log_likelihood(one, z, noise=NoiseStream(0)).mean
        return found - found.mean(-1, keepdim=True)

    with torch.no_grad():
        found = torch.stack([at(member) for member in members])
        torch.testing.assert_close(found.mean(0), at(model), rtol=1e-5, atol=1e-4)
    assert found.std(0).mean() > 0.01
    assert len(model.density.members()) == 1
