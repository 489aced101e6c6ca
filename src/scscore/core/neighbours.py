"""Nearest neighbours of points in the model's space: exact, or approximate for many points."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_EXACT_UP_TO = 50_000  # points, beyond which comparing all pairs takes longer than half a minute
_TREE_UP_TO = 5  # features, beyond which a tree is slower than comparing all pairs


def nearest_neighbours(x: ArrayLike, n_neighbors: int) -> NDArray[np.int64]:
    """Indices of the Euclidean nearest neighbours of every point, nearest first; a point is not its own neighbour.

    The neighbours are exact for up to 50,000 points or up to five features, and else those of NN-descent with a fixed seed,
    of which about one in ten is not among the nearest.

    Parameters
    ----------
    x
        Points, ``(n, n_features)``, finite.
    n_neighbors
        Neighbours per point, below ``n``.

    Returns
    -------
    ``(n, n_neighbors)``.

    Raises
    ------
    ValueError
        Not one neighbour, or not enough points.
    """
    x = np.asarray(x)
    if not 1 <= n_neighbors < len(x):
        raise ValueError(
            f"n_neighbors must be between 1 and one less than the number of points, {len(x)}, got {n_neighbors!r}."
        )
    tree = x.shape[1] <= _TREE_UP_TO
    if tree or len(x) <= _EXACT_UP_TO:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=n_neighbors, algorithm="kd_tree" if tree else "brute").fit(x)
        # without an argument a point is left out of its own neighbours, also where points coincide
        return search.kneighbors(return_distance=False).astype(np.int64)
    from pynndescent import NNDescent

    found = NNDescent(x, n_neighbors=n_neighbors + 1, random_state=0).neighbor_graph[0].astype(np.int64)
    own = np.arange(len(x))[:, None]
    last = np.argsort(found == own, axis=1, kind="stable")[:, :n_neighbors]  # the point itself comes last and drops out
    found = np.take_along_axis(found, last, axis=1)
    return np.where(found < 0, own, found)  # -1: none found
