"""``tl.energy_landscape``: smoothed energies, basins and the barriers between them."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore._logging import logger
from scscore._version import __version__
from scscore.core.landscape import basins, smoothed
from scscore.core.neighbours import nearest_neighbours
from scscore.io.energies import stored_energy
from scscore.io.keys import Keys
from scscore.io.params import json_params
from scscore.io.representation import obsm_array
from scscore.model import ScoreModel
from scscore.tl._validate import check_adata, check_model, check_name, check_number, check_positive


def energy_landscape(
    adata: AnnData,
    model: ScoreModel | None = None,
    *,
    use_rep: str | None = None,
    layer: str | None = None,
    n_neighbors: int = 15,
    min_barrier: float = 1.0,
    key_added: str = "scscore",
    copy: bool = False,
) -> AnnData | None:
    r"""Basins of the energy, and the barriers between them, along paths over neighbouring cells.

    Everything is computed in the model's space; a UMAP only displays it (:func:`scscore.pl.energy`). Neighbours are Euclidean
    nearest neighbours there, and two cells are joined when one is a neighbour of the other. Energies are first averaged over a
    cell and its neighbours: the Monte-Carlo error of single cells would otherwise make a minimum out of every lucky cell.

    Every cell belongs to the local minimum that is reached by going to the lowest neighbour again and again (watershed). The
    path between two minima is the one whose highest cell is lowest (minimax); that cell is the saddle. Saddles are visited from
    the lowest to the highest: where two parts of the landscape meet, the minimum of the shallower part is merged into the
    basin across the saddle if it lies less than `min_barrier` below it (persistence). What remains are the minima that every
    path to a deeper one leaves over a barrier of at least `min_barrier`.

    Parameters
    ----------
    adata
        Cells after :func:`scscore.tl.energy`.
    model
        The model of the energies: neighbours are found among its whitened points.
    use_rep
        Instead of `model`, a representation in ``obsm``, e.g. the one that the model was fitted on. Not a UMAP: it tears
        neighbours apart and makes up densities.
    layer
        Layer with the values for `model`; ``None`` is ``X``.
    n_neighbors
        Neighbours per cell. More smooth the energies further and join more cells, which lowers barriers.
    min_barrier
        Least barrier, in the unit of the energies (nats), out of a basin of its own. 1 nat is a factor e in density, the size
        of a thermal fluctuation; choose it well above the remaining error of the smoothed energies, about
        ``energy_se / sqrt(n_neighbors)``. 0 keeps every local minimum.
    key_added
        Name of all slots that are read and written.
    copy
        Return an annotated copy instead of writing to `adata`.

    Returns
    -------
    ``None``, or the copy. With ``k = key_added``, writes

    - ``obs[f"{k}_energy_smoothed"]``: mean energy of the cell and its neighbours, nats (float32);
    - ``obs[f"{k}_basin"]``: basin (categorical), named "0", "1", ... from the deepest minimum up;
    - ``uns[f"{k}_energy_landscape"]``: ``minima``, the cell at the bottom of every basin (names, ``(n_basins,)``); ``energies``, its
      smoothed energy, nats, ``(n_basins,)``; ``barriers``, nats, ``(n_basins, n_basins)``: entry (i, j) is the smoothed energy of
      the saddle between minima i and j less that of minimum i, what it takes to get from i to j, 0 on the diagonal and infinite
      where no path over neighbours leads from i to j; ``params`` (JSON), ``model_hash`` (with `model`), ``version``.

    Raises
    ------
    TypeError
        Not an AnnData, or not a ScoreModel.
    KeyError
        No energies under `key_added`, `use_rep` is not in ``obsm``, unknown layer.
    ValueError
        Neither or both of `model` and `use_rep`, NaN or infinite energies, no more cells than `n_neighbors`, a negative
        `min_barrier`, and what the model's encoder refuses.

    Warns
    -----
    UserWarning
        The energies were computed with another model.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300, separation=12)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.energy(cells, model, n_steps=4, gap=False, progress=False)
    >>> scs.tl.energy_landscape(cells, model)
    >>> cells.uns["scscore_energy_landscape"]["barriers"].shape
    (3, 3)

    Notes
    -----
    A path runs over cells, so a saddle is as high as the highest cell on it: where cells are sparse a path steps across the
    top, and the barrier comes out too low, or the parts come apart and it is infinite. Little can be seen of what lies more than
    about ``log(n_obs)`` nats above a minimum. In many dimensions nearly all cells lie in a shell around the bottom of
    their basin, the barriers over them are far too low, and a few cells that are neighbours of very many join unlike ones: basins are
    coarse there. Barriers of one landscape can still be compared with each other. Fewer neighbours, or a `use_rep` of fewer dimensions or
    with its natural variances (``X_pca``), tell more basins apart.

    Energies: Chen et al., bioRxiv 2025.11.28.690021; watershed merged by persistence: Chazal et al., J. ACM 60, 41 (2013).
    """
    check_adata(adata)
    keys = Keys(key_added)
    if (model is None) == (use_rep is None):
        raise ValueError(
            "the space of the neighbours is needed: give either model= (that of the energies) or use_rep= (a representation in "
            f"adata.obsm), got {'neither' if model is None else 'both'}."
        )
    if model is not None:
        check_model(model)
    elif layer is not None:
        raise ValueError(f"layer={layer!r} has no effect with use_rep=, only with model=; leave it out.")
    check_name(use_rep, "use_rep")
    check_name(layer, "layer")
    check_positive("n_neighbors", n_neighbors, optional=False)
    check_number("min_barrier", min_barrier, positive=False)
    if n_neighbors >= adata.n_obs:
        raise ValueError(
            f"n_neighbors must be below the number of cells, {adata.n_obs}, got {n_neighbors}; a cell is not its own neighbour."
        )
    energy = stored_energy(adata, keys)
    if model is not None:
        _check_same_model(adata, keys, model)
    points = _points(adata, model, use_rep, layer)

    neighbours = nearest_neighbours(points, n_neighbors)
    mean = smoothed(energy, neighbours)
    found = basins(mean, neighbours, min_barrier=min_barrier)

    target = adata.copy() if copy else adata
    target.obs[keys.energy_smoothed] = mean.astype(np.float32)
    names = np.arange(len(found.minima)).astype(str).astype(object)
    target.obs[keys.basin] = pd.Series(
        pd.Categorical.from_codes(found.labels, categories=names), index=target.obs_names
    )
    params = {"use_rep": use_rep, "layer": layer, "n_neighbors": n_neighbors, "min_barrier": min_barrier}
    target.uns[keys.energy_landscape] = {
        "minima": target.obs_names.to_numpy(dtype=object)[found.minima],
        "energies": mean[found.minima],
        "barriers": found.barriers,
        "params": json_params(params),
        **({} if model is None else {"model_hash": model.hash}),
        "version": __version__,
    }
    logger.info(
        "energy landscape of %d cells: %d basins\nwrote obs[%r, %r], uns[%r]",
        adata.n_obs,
        len(found.minima),
        keys.energy_smoothed,
        keys.basin,
        keys.energy_landscape,
    )
    return target if copy else None


def _check_same_model(adata: AnnData, keys: Keys, model: ScoreModel) -> None:
    written = adata.uns.get(keys.energy_uns, {}).get("model_hash")
    if written is not None and written != model.hash:
        warnings.warn(
            f"adata.obs[{keys.energy!r}] was computed with another model than model=: neighbours and energies may belong to "
            "different spaces. Run scscore.tl.energy with this model, or pass the other one.",
            UserWarning,
            stacklevel=3,
        )


def _points(adata: AnnData, model: ScoreModel | None, use_rep: str | None, layer: str | None) -> NDArray[np.floating]:
    if model is not None:
        return model.encode(adata, layer=layer).numpy()
    return obsm_array(adata, str(use_rep))
