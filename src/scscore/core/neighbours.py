"""Nearest neighbours of points in the model's space: exact, or approximate for many points."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_EXACT_UP_TO = 50_000  # points; the exact search takes time proportional to their square, here half a minute


def nearest_neighbours(x: ArrayLike, n_neighbors: int) -> NDArray[np.int64]:
    """Indices of the Euclidean nearest neighbours of every point, nearest first; a point is not its own neighbour.

    Up to 50,000 points the neighbours are exact, beyond that those of NN-descent with a fixed seed.

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
    if len(x) <= _EXACT_UP_TO:
        from sklearn.neighbors import NearestNeighbors

        # without an argument a point is left out of its own neighbours, also where points coincide
        return NearestNeighbors(n_neighbors=n_neighbors).fit(x).kneighbors(return_distance=False).astype(np.int64)
    from pynndescent import NNDescent

    found = NNDescent(x, n_neighbors=n_neighbors + 1, random_state=0).neighbor_graph[0].astype(np.int64)
    own = np.arange(len(x))[:, None]
    last = np.argsort(found == own, axis=1, kind="stable")[:, :n_neighbors]  # the point itself comes last and drops out
    found = np.take_along_axis(found, last, axis=1)
    return np.where(found < 0, own, found)  # -1: none found
