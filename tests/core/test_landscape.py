"""Basins, barriers and funnels: brute force on small graphs, closed forms, a double well."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from scscore.core.landscape import basins, deepest_trap, funnel, saddle_energies, smoothed
from scscore.core.neighbours import nearest_neighbours

LINE = np.array([[1, 1], [0, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7], [6, 8], [7, 7]])  # nine points in a row


def adjacency(neighbours: np.ndarray) -> np.ndarray:
    n = len(neighbours)
    joined = np.zeros((n, n), dtype=bool)
    joined[np.repeat(np.arange(n), neighbours.shape[1]), neighbours.ravel()] = True
    return joined | joined.T


def minimax(energy: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """Lowest highest energy on a path between any two points, by Floyd and Warshall."""
    top = np.where(joined, np.maximum(energy[:, None], energy), np.inf)
    np.fill_diagonal(top, energy)
    for k in range(len(energy)):
        top = np.minimum(top, np.maximum(top[:, k : k + 1], top[k]))
    return top


def merged_basins(energy: np.ndarray, joined: np.ndarray, min_barrier: float) -> np.ndarray:
    """The minimum of every point's basin: steepest descent, then the lowest pass that is low enough, again and again."""
    home = np.arange(len(energy))
    for i in range(len(energy)):
        while True:
            around = np.flatnonzero(joined[home[i]])
            lowest = around[energy[around].argmin()] if len(around) else home[i]
            if energy[lowest] >= energy[home[i]]:
                break
            home[i] = lowest
    while True:
        passes = [
            (max(energy[i], energy[j]), home[i], home[j])
            for i, j in np.argwhere(joined)
            if home[i] != home[j] and energy[home[i]] > energy[home[j]]
        ]
        low = [(s, a, b) for s, a, b in passes if s - energy[a] < min_barrier]
        if not low:
            return home
        _, a, b = min(low)
        home[home == a] = b


def random_landscape(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 40))
    x = rng.normal(size=(n, 2)) + 4 * rng.integers(3, size=(n, 1))
    return rng.normal(size=n), nearest_neighbours(x, int(rng.integers(1, min(5, n - 1) + 1)))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("min_barrier", [0.0, 0.4, 1.0, 2.5])
def test_basins_against_brute_force(seed: int, min_barrier: float):
    energy, neighbours = random_landscape(seed)
    joined = adjacency(neighbours)
    home, top = merged_basins(energy, joined, min_barrier), minimax(energy, joined)
    found = basins(energy, neighbours, min_barrier=min_barrier)
    expected = np.unique(home)[np.argsort(energy[np.unique(home)])]
    np.testing.assert_array_equal(found.minima, expected)
    np.testing.assert_array_equal(found.minima[found.labels], home)
    np.testing.assert_array_equal(found.barriers, top[np.ix_(expected, expected)] - energy[expected][:, None])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_is_what_is_persistent(seed: int):
    """The other definition of the kept minima: no deeper point within reach of a lower climb."""
    energy, neighbours = random_landscape(seed)
    top = minimax(energy, adjacency(neighbours))
    top[energy[:, None] <= energy] = np.inf  # only deeper points
    escape = top.min(1) - energy
    minima = np.flatnonzero(escape > 0)
    for min_barrier in (0.0, 0.7, 1.5):
        found = basins(energy, neighbours, min_barrier=min_barrier)
        assert set(found.minima) == {i for i in minima if escape[i] >= min_barrier}


@pytest.mark.parametrize("seed", range(20))
def test_saddle_energies_against_brute_force(seed: int):
    energy, neighbours = random_landscape(seed)
    target = seed % len(energy)
    top = minimax(energy, adjacency(neighbours))[:, target]
    np.testing.assert_array_equal(saddle_energies(energy, neighbours, target), top)
    assert deepest_trap(energy, neighbours, target) == (top - energy).max()


def test_a_line_by_hand():
    energy = np.array([0.0, 2, 1, 5, 3, 4.5, 2.5, 6, -1])  # minima at 0, 2, 4, 6, 8; passes 2, 5, 4.5, 6
    found = basins(energy, LINE, min_barrier=1.8)
    assert found.minima.tolist() == [8, 0, 6]  # 2 lies 1.0 below its pass, 4 lies 1.5 below
    assert found.labels.tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 0]
    np.testing.assert_allclose(found.barriers, [[0, 7, 7], [6, 0, 5], [3.5, 2.5, 0]])
    assert len(basins(energy, LINE, min_barrier=2.5).minima) == 3  # at least: a pass of just that height is kept
    assert len(basins(energy, LINE, min_barrier=2.51).minima) == 2
    assert basins(energy, LINE, min_barrier=100).labels.tolist() == [0] * 9
    assert saddle_energies(energy, LINE, 0).tolist() == [0, 2, 2, 5, 5, 5, 5, 6, 6]
    assert deepest_trap(energy, LINE, 0) == 7
    assert deepest_trap(np.arange(9.0), LINE, 0) == 0  # downhill all the way


def test_a_constant_adds_nothing_and_equal_energies_are_one_basin():
    energy, neighbours = random_landscape(3)
    found, shifted = (basins(e, neighbours, min_barrier=0.5) for e in (energy, energy - 1000.0))
    np.testing.assert_array_equal(found.labels, shifted.labels)
    np.testing.assert_allclose(found.barriers, shifted.barriers, atol=1e-9)
    flat = basins(np.zeros(9), LINE, min_barrier=0.0)
    assert flat.minima.tolist() == [0] and flat.labels.tolist() == [0] * 9


def test_parts_without_a_path():
    neighbours = np.array([[1], [0], [3], [2]])
    found = basins(np.array([1.0, 2, 0, 5]), neighbours, min_barrier=50)
    assert found.minima.tolist() == [2, 0] and found.labels.tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(found.barriers, [[0, np.inf], [np.inf, 0]])
    assert saddle_energies(np.array([1.0, 2, 0, 5]), neighbours, 1).tolist() == [2, 2, np.inf, np.inf]


def test_smoothed_by_hand():
    np.testing.assert_allclose(smoothed(np.arange(9.0) ** 2, LINE)[[0, 1, 7]], [2 / 3, 5 / 3, (36 + 49 + 64) / 3])


def double_well(x: np.ndarray) -> np.ndarray:
    return 4 * (x[:, 0] ** 2 - 1) ** 2 + 0.5 * x[:, 0] + 3 * x[:, 1] ** 2


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_double_well(noise: float):
    """Points drawn from the well's own Boltzmann distribution: barriers within 0.35 nats of the true 4.51 and 3.51."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, (200_000, 2))
    x = x[rng.random(len(x)) < np.exp(-double_well(x) - 0.5)][:5000]
    axis = np.column_stack([np.linspace(-2, 2, 8001), np.zeros(8001)])
    profile = double_well(axis)
    deep, shallow = profile[axis[:, 0] < 0].min(), profile[axis[:, 0] > 0.5].min()
    saddle = profile[np.abs(axis[:, 0]) < 0.5].max()
    assert (round(saddle - deep, 2), round(saddle - shallow, 2)) == (4.51, 3.51)

    neighbours = nearest_neighbours(x, 15)
    energy = double_well(x) + noise * rng.normal(size=len(x))
    found = basins(smoothed(energy, neighbours), neighbours, min_barrier=1.0)
    assert len(found.minima) == 2
    np.testing.assert_allclose(found.barriers, [[0, saddle - deep], [saddle - shallow, 0]], atol=0.35)
    np.testing.assert_allclose(x[found.minima], [[-1, 0], [1, 0]], atol=0.3)
    assert ((x[:, 0] > 0) == found.labels).mean() > 0.99
    if noise:  # what smoothing is for
        assert len(basins(energy, neighbours, min_barrier=1.0).minima) > 2


def test_funnel_by_hand():
    found = funnel(np.array([1.0, 0.0, 3.0, 2.0]), np.array([1.0, 0.0, 2.0, 3.0]), scale=2.0)
    weight, near = np.exp([-1, 0, -3, -2]), np.exp([-1 / 4, 0, -1, -9 / 4])
    assert found.p_near == pytest.approx((weight * near).sum() / weight.sum(), rel=1e-12)
    assert found.p_near_flat == pytest.approx(near.mean(), rel=1e-12)
    assert found.spearman == pytest.approx(0.8)  # ranks 2 1 4 3 and 2 1 3 4: 1 - 6 * 2 / (4 * 15)
    assert (found.reference, found.reference_rank) == (1, 1)
    hot = funnel(np.array([1.0, 0.0, 3.0, 2.0]), np.array([1.0, 0.0, 2.0, 3.0]), scale=2.0, temperature=1e9)
    assert hot.p_near == pytest.approx(found.p_near_flat, rel=1e-6)


@pytest.mark.parametrize("n", [3, 50])
def test_spearman_is_that_of_scipy(n: int):
    rng = np.random.default_rng(n)
    energy, distance = rng.integers(8, size=n).astype(float), rng.integers(8, size=n).astype(float)  # with ties
    expected = stats.spearmanr(energy, distance).statistic
    assert funnel(energy, distance, scale=1.0).spearman == pytest.approx(expected, abs=1e-12)


def test_two_states_are_a_logistic_function():
    """One near and one far point: P_near is that of a two-level system, whatever the size of the energies."""
    for gap in (-800.0, -3.0, 0.0, 2.0, 800.0):
        found = funnel(np.array([5e4, 5e4 + gap]), np.array([0.0, 1e3]), scale=1.0)
        assert found.p_near == pytest.approx(expit(gap), rel=1e-9)
        assert found.reference_rank == (1 if gap >= 0 else 2)


@pytest.mark.parametrize(("stiffness", "temperature"), [(60.0, 1.0), (60.0, 4.0), (20.0, 0.5)])
def test_docking_well(stiffness: float, temperature: float):
    """A harmonic well in 3-D, points uniform in a ball around it: P_near = (1 + 2 T / (k l^2))^(-3/2)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400_000, 3))
    x *= (rng.random(len(x)) ** (1 / 3) * 2 / np.linalg.norm(x, axis=1))[:, None]
    distance = np.linalg.norm(x, axis=1)
    found = funnel(0.5 * stiffness * distance**2, distance, scale=1.0, temperature=temperature)
    expected = (1 + 2 * temperature / stiffness) ** -1.5
    assert found.p_near == pytest.approx(expected, abs=0.01)
    assert found.spearman == pytest.approx(1.0)
    assert found.p_near_flat < 0.2


def test_too_little_for_a_correlation():
    assert np.isnan(funnel(np.array([1.0, 2.0]), np.array([0.0, 1.0]), scale=1.0).spearman)
    assert np.isnan(funnel(np.ones(5), np.arange(5.0), scale=1.0).spearman)
    alone = funnel(np.array([3.0]), np.array([1.0]), scale=1.0)
    assert (alone.p_near, alone.reference_rank) == (pytest.approx(np.exp(-1)), 1)
