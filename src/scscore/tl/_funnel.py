"""``tl.funnel``: does the energy lead to a reference state?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore._logging import logger
from scscore._version import __version__
from scscore.core import landscape
from scscore.core.neighbours import nearest_neighbours
from scscore.io.columns import number_column, obs_column
from scscore.io.energies import stored_energy
from scscore.io.keys import Keys
from scscore.io.params import json_params
from scscore.io.representation import obsm_array
from scscore.tl._validate import check_adata, check_name, check_number, check_positive

_NEAR = 0.2  # of the median distance, the default scale

Vector = NDArray[np.float64]


def funnel(
    adata: AnnData,
    *,
    distance: str | None = None,
    reference: str | None = None,
    use_rep: str | None = None,
    groupby: str | None = None,
    scale: float | None = None,
    temperature: float = 1.0,
    n_neighbors: int = 15,
    key_added: str = "scscore",
    copy: bool = False,
) -> AnnData | None:
    r"""How well the energy leads to a reference state: rank correlation, P_near, rank of the reference, deepest trap.

    A funnel is an energy that falls towards the reference state, for instance of docking poses towards the native one:

    - Spearman correlation of energy and distance to the reference, 1 in a perfect funnel;
    - :math:`P_\mathrm{near} = \sum_i e^{-d_i^2/l^2 - E_i/T} / \sum_i e^{-E_i/T}`, the Boltzmann weight near the reference, from 0
      to 1, beside its value for an energy that is equal everywhere, which is what the choice of the points alone gives;
    - rank by energy of the reference, that is, of the point at the smallest distance; 1 is the lowest energy;
    - with a representation, the deepest trap: the highest barrier that any point has to climb on its way to the reference,
      0 where all ways lead downhill.

    The sums run over the points as they are: over candidates from a search, say, one as good as the other before its energy is
    known. A sample from the density itself already has :math:`e^{-E}` in its numbers, and `P_near` weights it twice.

    Parameters
    ----------
    adata
        Points (poses, conformations, cells) after :func:`scscore.tl.energy`.
    distance
        Column of ``obs`` with the distance of every point to the reference state, e.g. ligand RMSD; not negative.
    reference
        Instead of `distance`: name (in ``obs_names``) of the point that is the reference; distances are Euclidean in `use_rep`.
    use_rep
        Representation in ``obsm``, e.g. the one that the model was fitted on. Needed with `reference`; with `distance` it adds the
        barrier.
    groupby
        Column of ``obs`` with groups that have a funnel each, e.g. the complexes of a docking benchmark. Points without a group
        are left out. ``None``: all points are one group, named "all".
    scale
        The distance :math:`l` at which a point counts as near by a factor 1/e, in the unit of the distances; the same in
        all groups. Where a unit has a custom, follow it: 1.5 to 4 Angstrom for the RMSD of peptides and proteins. ``None``: a fifth
        of the median `distance`, which is about a tenth of the largest without following outliers; with `reference`, the
        distance to its `n_neighbors`-th nearest point, because in many dimensions nothing is as near as a fifth of the median.
    temperature
        :math:`T`, in the unit of the energies. Energies in nats are in units of kT: 1 is the temperature of the density.
    n_neighbors
        Neighbours per point on the paths of the barrier (fewer in groups that have fewer points), and of the default scale
        with `reference`.
    key_added
        Name of all slots that are read and written.
    copy
        Return an annotated copy instead of writing to `adata`.

    Returns
    -------
    ``None``, or the copy. With ``k = key_added``, writes ``uns[f"{k}_funnel"]``, for :func:`scscore.get.funnel`, with one entry per group
    in the order of the categories: ``groups`` (names), ``n`` (points), ``spearman`` (NaN for fewer than three points, or where energies
    or distances are all equal), ``p_near``, ``p_near_flat``, ``reference`` (name of the point at the smallest distance), ``reference_rank``,
    with a representation ``barrier`` (the deepest trap, nats; infinite where a point has no path to the reference), and ``params`` (JSON),
    ``version``. With `reference` also ``obs[f"{k}_reference_distance"]`` (float32).

    Raises
    ------
    TypeError
        Not an AnnData, or a name that is no string.
    KeyError
        No energies under `key_added`; `distance`, `groupby`, `reference` or `use_rep` is not there.
    ValueError
        Neither or both of `distance` and `reference`, `reference` without `use_rep` or not unique, distances or energies that are
        NaN, infinite or no numbers, negative distances, no group, a `scale` or `temperature` that is not positive, a default scale
        of zero.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.energy(cells, model, n_steps=4, gap=False, progress=False)
    >>> scs.tl.funnel(cells, reference="cell_0", use_rep="X_toy", groupby="class")
    >>> scs.get.funnel(cells).index.tolist()
    ['a', 'b', 'c']

    Notes
    -----
    P_near: Bhardwaj et al., Nature 538, 329 (2016). Funnels of learned energies: Chen et al., bioRxiv 2025.11.28.690021. The barrier
    is that of :func:`scscore.tl.energy_landscape`: of energies smoothed over neighbours, along minimax paths, within a group.
    """
    check_adata(adata)
    keys = Keys(key_added)
    for value, argument in (
        (distance, "distance"),
        (reference, "reference"),
        (use_rep, "use_rep"),
        (groupby, "groupby"),
    ):
        check_name(value, argument)
    if (distance is None) == (reference is None):
        raise ValueError(
            "give either distance= (a column of adata.obs) or reference= (the name of a point, with use_rep=), got "
            f"{'neither' if distance is None else 'both'}."
        )
    if scale is not None:
        check_number("scale", scale)
    check_number("temperature", temperature)
    check_positive("n_neighbors", n_neighbors, optional=False)
    energy = stored_energy(adata, keys)
    groups = _groups(adata, groupby)
    points = None if use_rep is None else obsm_array(adata, use_rep)
    if reference is not None:
        away = _distance_to(adata, reference, points)
    else:
        away = _stored_distance(adata, str(distance))
    labelled = groups.notna().to_numpy()
    if scale is None:
        scale = _default_scale(away[labelled], None if reference is None else n_neighbors)

    found = []
    codes = groups.cat.codes.to_numpy()
    for code in range(len(groups.cat.categories)):
        rows = np.flatnonzero(codes == code)
        space = None if points is None else points[rows]
        found.append(_of_group(energy[rows], away[rows], rows, space, float(scale), float(temperature), n_neighbors))

    target = adata.copy() if copy else adata
    names = target.obs_names.to_numpy(dtype=object)
    params = {
        "distance": distance,
        "reference": reference,
        "use_rep": use_rep,
        "groupby": groupby,
        "scale": float(scale),
        "temperature": float(temperature),
        "n_neighbors": n_neighbors,
    }
    target.uns[keys.funnel] = {
        "groups": groups.cat.categories.to_numpy(dtype=object),
        "n": np.array([one.n for one in found]),
        "spearman": np.array([one.measures.spearman for one in found]),
        "p_near": np.array([one.measures.p_near for one in found]),
        "p_near_flat": np.array([one.measures.p_near_flat for one in found]),
        "reference": names[[one.reference for one in found]],
        "reference_rank": np.array([one.measures.reference_rank for one in found]),
        **({} if points is None else {"barrier": np.array([one.barrier for one in found])}),
        "params": json_params(params),
        "version": __version__,
    }
    if reference is not None:
        target.obs[keys.reference_distance] = away.astype(np.float32)
    logger.info(
        "funnels of %d group(s), %d points, scale %.4g\nwrote %suns[%r]",
        len(found),
        labelled.sum(),
        scale,
        f"obs[{keys.reference_distance!r}], " if reference is not None else "",
        keys.funnel,
    )
    return target if copy else None


class _GroupFunnel(NamedTuple):
    measures: landscape.Funnel
    reference: int
    n: int
    barrier: float


def _of_group(
    energy: Vector,
    distance: Vector,
    rows: NDArray[np.int64],
    points: Vector | None,
    scale: float,
    temperature: float,
    n_neighbors: int,
) -> _GroupFunnel:
    measures = landscape.funnel(energy, distance, scale=scale, temperature=temperature)
    barrier = 0.0
    if points is not None and len(rows) > 1:
        neighbours = nearest_neighbours(points, min(n_neighbors, len(rows) - 1))
        barrier = landscape.deepest_trap(landscape.smoothed(energy, neighbours), neighbours, measures.reference)
    return _GroupFunnel(measures, int(rows[measures.reference]), len(rows), barrier)


def _groups(adata: AnnData, groupby: str | None) -> pd.Series:
    """Groups of all points, names as strings in the order of the categories."""
    if groupby is None:
        return pd.Series(pd.Categorical(["all"] * adata.n_obs), index=adata.obs_names)
    column = obs_column(adata, groupby, "groupby")
    if pd.api.types.is_float_dtype(column):
        raise ValueError(f"groupby={groupby!r} is continuous ({column.dtype}), a column of groups is needed.")
    column = column.astype("category").cat.remove_unused_categories()
    missing = int(column.isna().sum())
    if missing == len(column):
        raise ValueError(f"groupby={groupby!r} holds no group: all {missing} values are missing.")
    if missing:
        logger.warning("%d of %d points have no group in obs[%r] and are left out.", missing, len(column), groupby)
    return column.cat.rename_categories(column.cat.categories.astype(str))


def _stored_distance(adata: AnnData, name: str) -> Vector:
    obs_column(adata, name, "distance")
    values = number_column(adata, name, missing=name)
    negative = int((values < 0).sum())
    if negative:
        raise ValueError(
            f"distance={name!r} must not be negative, found {negative} of {len(values)} values below zero, the lowest "
            f"{values.min():g}; a score or a similarity is no distance."
        )
    return values


def _distance_to(adata: AnnData, reference: str, points: Vector | None) -> Vector:
    if points is None:
        raise ValueError(
            f"reference={reference!r} needs use_rep=, the representation in adata.obsm to measure distances in."
        )
    position = np.flatnonzero(adata.obs_names == reference)
    if len(position) == 0:
        raise KeyError(
            f"reference={reference!r} is not in adata.obs_names, which start with {adata.obs_names[:3].tolist()}."
        )
    if len(position) > 1:
        raise ValueError(
            f"reference={reference!r} is the name of {len(position)} points; run adata.obs_names_make_unique() first."
        )
    return np.linalg.norm(points - points[position[0]], axis=1)


def _default_scale(distance: Vector, rank: int | None) -> float:
    """See :func:`funnel`; ``rank``: number of the neighbour of the reference whose distance counts."""
    if rank is None:
        scale, what = _NEAR * float(np.median(distance)), "a fifth of the median distance"
    else:  # the reference itself comes first
        scale, what = float(np.sort(distance)[min(rank, len(distance) - 1)]), f"the distance to neighbour {rank}"
    if scale <= 0:
        raise ValueError(
            f"scale=None takes {what}, which is 0 here: too many points coincide with the reference; give scale=."
        )
    return scale
