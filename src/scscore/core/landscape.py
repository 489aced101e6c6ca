"""Basins, barriers and funnels of an energy that is known at points only; paths lead over nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.special import logsumexp
from scipy.stats import rankdata

Vector = NDArray[np.float64]
Indices = NDArray[np.int64]


class Basins(NamedTuple):
    """Basins of an energy landscape, numbered from the deepest.

    Attributes
    ----------
    labels
        Basin of every point, ``(n,)``.
    minima
        The point of lowest energy of every basin, ``(n_basins,)``.
    barriers
        Barrier from minimum i to minimum j, ``(n_basins, n_basins)``: the energy at the saddle less the energy of minimum i.
    """

    labels: Indices
    minima: Indices
    barriers: Vector


def smoothed(energy: Vector, neighbours: Indices) -> Vector:
    """Mean energy of every point and its neighbours, ``(n,)``.

    Parameters
    ----------
    energy
        ``(n,)``.
    neighbours
        Indices of the neighbours, ``(n, n_neighbors)``.
    """
    return (energy + energy[neighbours].sum(1)) / (1 + neighbours.shape[1])


def basins(energy: Vector, neighbours: Indices, *, min_barrier: float = 0.0) -> Basins:
    """Watershed basins on the neighbour graph, merged by persistence.

    Two points are joined when one is a neighbour of the other. From every point a path leads to its lowest neighbour, and on
    to a local minimum, which names its basin. The saddle of two minima is the highest point of the path between
    them whose highest point is lowest (minimax). Saddles are visited from the lowest to the highest; where two parts of the
    landscape meet, the minimum of the shallower part is merged into the basin across the saddle if it lies less than
    `min_barrier` below the saddle, and is kept otherwise. What is kept are the minima that every path to a deeper one leaves
    over at least `min_barrier`. Equal energies are told apart by the order of the points.

    Parameters
    ----------
    energy
        ``(n,)``, finite.
    neighbours
        Indices of the neighbours, ``(n, n_neighbors)``.
    min_barrier
        In the unit of `energy`, not negative; 0 keeps every local minimum.

    Returns
    -------
    Basins, the deepest first. ``barriers[i, j]`` is ``energy[saddle of i and j] - energy[minima[i]]``: 0 on the diagonal, infinite
    where no path leads from i to j. ``barriers[i, j] - barriers[j, i]`` is the energy of minimum j less that of minimum i.
    """
    order = np.argsort(energy, kind="stable").astype(np.int64)
    # points are numbered by the rank of their energy from here on, so that they compare as integers
    u, v = _edges(energy, neighbours, order)
    root = np.arange(len(energy))
    np.minimum.at(root, u, v)
    np.minimum.at(root, v, u)
    while (root[root] != root).any():
        root = root[root]

    height = energy[order]
    parent: dict[int, int] = {}  # of parts that are joined below the current saddle; a part is named by its minimum
    merged: dict[int, int] = {}  # basins that are merged, and into which
    kept: dict[int, list[int]] = {int(minimum): [int(minimum)] for minimum in np.unique(root)}  # minima by part
    saddles: list[tuple[list[int], list[int], int]] = []
    for a, b, saddle in _passes(root[u], root[v], np.maximum(u, v)):
        deep, shallow = _find(parent, a), _find(parent, b)
        if deep == shallow:
            continue
        if deep > shallow:
            a, deep, shallow = b, shallow, deep
        if height[saddle] - height[shallow] < min_barrier:
            # nothing but this minimum is left of its part: the others were less deep still
            merged[shallow] = _find(merged, a)
        else:
            saddles.append((list(kept[deep]), kept[shallow], saddle))
            kept[deep] += kept[shallow]
        parent[shallow] = deep

    minima = np.array(sorted(minimum for minimum in kept if minimum not in merged), dtype=np.int64)
    number = {int(minimum): i for i, minimum in enumerate(minima)}
    top = np.full((len(minima), len(minima)), np.inf)
    for left, right, saddle in saddles:
        rows, columns = [number[i] for i in left], [number[i] for i in right]
        top[np.ix_(rows, columns)] = height[saddle]
        top[np.ix_(columns, rows)] = height[saddle]
    np.fill_diagonal(top, height[minima])
    names, inverse = np.unique(root, return_inverse=True)
    labels = np.empty(len(energy), dtype=np.int64)
    labels[order] = np.array([number[_find(merged, int(name))] for name in names], dtype=np.int64)[inverse]
    return Basins(labels, order[minima], top - height[minima][:, None])


def saddle_energies(energy: Vector, neighbours: Indices, target: int) -> Vector:
    """Highest energy on the minimax path from every point to a target, ``(n,)``, infinite without a path.

    The path runs over the graph of :func:`basins` and includes both ends, so no value is below the point's own energy. The
    edges of the minimax paths are those of a minimum spanning tree.

    Parameters
    ----------
    energy
        ``(n,)``, finite.
    neighbours
        Indices of the neighbours, ``(n, n_neighbors)``.
    target
        Index of the point where the paths end.
    """
    n = len(energy)
    order = np.argsort(energy, kind="stable").astype(np.int64)
    u, v = _edges(energy, neighbours, order)
    # one weight per edge; ranks from 1 on, since an energy of zero would count as no edge
    low, high = np.divmod(np.unique(np.minimum(u, v) * n + np.maximum(u, v)), n)
    tree = minimum_spanning_tree(sp.csr_array((high + 1.0, (low, high)), shape=(n, n)))
    start = int(np.flatnonzero(order == target)[0])
    reached, before = breadth_first_order(tree, start, directed=False)
    highest = np.full(n, -1, dtype=np.int64)
    highest[start] = start
    for point in reached[1:]:
        highest[point] = max(point, highest[before[point]])
    result = np.full(n, np.inf)
    result[order[reached]] = energy[order[highest[reached]]]
    return result


class Funnel(NamedTuple):
    """How well an energy leads to a reference state.

    Attributes
    ----------
    reference
        Index of the point that stands for the reference state: the one at the smallest distance.
    spearman
        Rank correlation of energy and distance; NaN for fewer than three points, or where either is constant.
    p_near
        Boltzmann weight near the reference state, 0 to 1.
    p_near_flat
        The same for an energy that is equal everywhere: what the choice of the points alone gives.
    reference_rank
        One plus the number of points with less energy than the reference.
    """

    reference: int
    spearman: float
    p_near: float
    p_near_flat: float
    reference_rank: int


def funnel(energy: Vector, distance: Vector, *, scale: float, temperature: float = 1.0) -> Funnel:
    r"""Measures of a funnel: Spearman correlation, P_near, rank of the reference.

    .. math:: P_\mathrm{near} = \sum_i e^{-d_i^2/l^2 - E_i/T} \Big/ \sum_i e^{-E_i/T}

    (Bhardwaj et al. 2016). Adding a constant to all energies changes nothing.

    Parameters
    ----------
    energy, distance
        Of every point, ``(n,)``, finite; distances are not negative.
    scale
        The distance :math:`l` at which a point counts as near by a factor of 1/e.
    temperature
        :math:`T`, in the unit of `energy`.

    Returns
    -------
    Funnel. Of several points at the smallest distance the first is the reference.
    """
    near, weight = -((distance / scale) ** 2), -energy / temperature
    nearest = int(distance.argmin())
    return Funnel(
        reference=nearest,
        spearman=_spearman(energy, distance),
        p_near=float(np.exp(logsumexp(near + weight) - logsumexp(weight))),
        p_near_flat=float(np.exp(near).mean()),
        reference_rank=1 + int((energy < energy[nearest]).sum()),
    )


def deepest_trap(energy: Vector, neighbours: Indices, reference: int) -> float:
    """The highest barrier that a point has to climb to get to the reference; 0 in a perfect funnel.

    The largest difference, over all points, between the highest energy on the minimax path to the reference and the energy
    of the point; infinite if a point has no path to the reference.

    Parameters
    ----------
    energy, neighbours
        See :func:`basins`.
    reference
        Index of the point.
    """
    return float((saddle_energies(energy, neighbours, reference) - energy).max())


def _spearman(a: Vector, b: Vector) -> float:
    ranks = np.stack([rankdata(a), rankdata(b)])
    ranks -= ranks.mean(1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(1))
    return float(ranks[0] @ ranks[1] / norms.prod()) if len(a) > 2 and norms.all() else float("nan")


def _edges(energy: Vector, neighbours: Indices, order: Indices) -> tuple[Indices, Indices]:
    """Both ends of all edges, as ranks of their energies."""
    rank = np.empty(len(energy), dtype=np.int64)
    rank[order] = np.arange(len(energy))
    u, v = np.repeat(rank, neighbours.shape[1]), rank[neighbours].ravel()
    return u[u != v], v[u != v]


def _passes(a: Indices, b: Indices, height: Indices) -> list[tuple[int, int, int]]:
    """The lowest edge between any two adjacent basins, lowest first."""
    between = a != b
    low, high, height = np.minimum(a, b)[between], np.maximum(a, b)[between], height[between]
    order = np.argsort(height, kind="stable")
    _, first = np.unique(low[order] * (len(a) + 1) + high[order], return_index=True)
    chosen = order[np.sort(first)]
    return list(zip(low[chosen].tolist(), high[chosen].tolist(), height[chosen].tolist(), strict=True))


def _find(parent: dict[int, int], node: int) -> int:
    """The end of a chain of parents; the chain is shortened on the way."""
    end = node
    while end in parent:
        end = parent[end]
    while node != end:
        parent[node], node = end, parent[node]
    return end
