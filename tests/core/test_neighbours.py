"""Nearest neighbours against all pairwise distances."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scscore.core import neighbours
from scscore.core.neighbours import nearest_neighbours


@pytest.mark.parametrize("n_features", [1, 3, 12])
def test_against_all_distances(n_features: int):
    x = np.random.default_rng(0).normal(size=(80, n_features))
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(nearest_neighbours(x, 7), np.argsort(distances, axis=1)[:, :7])


@pytest.mark.slow  # compiling takes a minute
def test_approximate_search_finds_most_of_them(monkeypatch: pytest.MonkeyPatch):
    x = np.random.default_rng(0).normal(size=(600, 8))
    exact = nearest_neighbours(x, 10)
    monkeypatch.setattr(neighbours, "_EXACT_UP_TO", 100)
    found = nearest_neighbours(x, 10)
    assert found.shape == exact.shape
    assert not (found == np.arange(600)[:, None]).any()
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(found, exact, strict=True)]) > 0.9
    np.testing.assert_array_equal(found, nearest_neighbours(x, 10))


@pytest.mark.parametrize("n_features", [2, 12])
def test_points_that_coincide_are_neighbours_of_each_other_not_of_themselves(n_features: int):
    x = np.repeat(np.random.default_rng(0).normal(size=(10, n_features)), 3, axis=0)
    found = nearest_neighbours(x, 2)
    for i, row in enumerate(found):
        assert set(row) == {3 * (i // 3), 3 * (i // 3) + 1, 3 * (i // 3) + 2} - {i}


@pytest.mark.parametrize("n_neighbors", [0, 5, 9])
def test_too_few_points(n_neighbors: int):
    with pytest.raises(ValueError, match=f"between 1 and one less than the number of points, 5, got {n_neighbors}"):
        nearest_neighbours(np.eye(5), n_neighbors)
