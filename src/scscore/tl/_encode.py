"""From the cells of ``tl.fit`` to points: by components, by a network of images, or as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scscore._logging import logger
from scscore.core.readout import ScoreMap
from scscore.core.reference_fit import ReferenceShape, candidate_shapes
from scscore.images._conv import Conv
from scscore.images._fit import fit_image_encoder
from scscore.io.encoder_choice import (
    CHOICE_FEATURES,
    DEFAULT_TARGET,
    PANEL,
    choose_encoder,
    choose_target_sum,
    fit_encoder,
    informative_genes,
    possible_features,
    represent,
)
from scscore.io.folds import Split
from scscore.io.gene_classifier import add_classifiers
from scscore.io.gene_space import Map
from scscore.io.pixels import PixelGrid
from scscore.io.representation import (
    InputKind,
    ObsmRepresentation,
    PCAEncoder,
    Representation,
    log_depth,
    obsm_array,
    training_matrix,
)

Array = NDArray[np.float64]

_N_FEATURES = (20, 30, 50)
_MOST_VALUES = 500  # features that are no genes: all of their components are used


class Encoded(NamedTuple):
    """Training cells as points.

    Attributes
    ----------
    representation
        The encoder of all cells.
    points
        Of all training cells, ``(n, n_features)``.
    splits
        Training and held-out rows of the splits that are of use.
    of_splits
        Their points, by encoders that saw the training rows only.
    shapes
        Shapes of the reference to choose from.
    log_depth
        Log count totals of the held-out cells of every split; ``None`` where nothing was counted.
    unit_variance
        Whether genes were brought to unit variance.
    scores
        The last columns of all points are class scores by genes; those of a cell that is known by its features only. ``None``: there are none.
    """

    representation: Representation
    points: Array
    splits: list[Split]
    of_splits: list[tuple[Array, Array]]
    shapes: Sequence[ReferenceShape]
    log_depth: list[Array] | None = None
    unit_variance: bool = False
    scores: ScoreMap | None = None


def encode_stored(adata: AnnData, rows: NDArray[np.bool_], key: str, splits: list[Split]) -> Encoded:
    """Points that the user stored in ``obsm``; the masked rows are the training cells."""
    x = obsm_array(adata, key)[rows]
    of_splits = [(x[train], x[test]) for train, test in splits]
    return Encoded(ObsmRepresentation(key, x.shape[1]), x, splits, of_splits, candidate_shapes([x.shape[1]]))


def encode_images(
    adata: AnnData,
    rows: NDArray[np.bool_],
    y: NDArray[np.integer],
    splits: list[Split],
    how: Conv | Map,
    *,
    layer: str | None,
    **training: Any,
) -> Encoded:
    """Points of images behind a network; `training` is that of :func:`scscore.images._fit.fit_image_encoder`."""
    chunk, _ = training_matrix(adata, rows, layer=layer, kind=None)
    grid: PixelGrid = PixelGrid.of_names(adata.var_names)  # type: ignore[assignment]
    encoder, x, of_splits = fit_image_encoder(chunk, grid, y, splits, how, **training)
    return Encoded(encoder, x, splits[: len(of_splits)], of_splits, candidate_shapes([x.shape[1]]))


def encode_components(
    adata: AnnData,
    rows: NDArray[np.bool_],
    y: NDArray[np.integer],
    splits: list[Split],
    *,
    layer: str | None,
    kind: InputKind | None,
    n_top_genes: int | None,
    n_comps: int | None,
    log_prior: Array,
    classifiers_of: Sequence[Split] | None,
) -> Encoded:
    """Principal components of values in ``X`` or a layer; count total, unit variance and number are chosen where there are classes.

    With `classifiers_of`, the first of the splits, class scores stand behind the components of all cells and those of these splits, if the values are expression.
    """
    chunk, kind = training_matrix(adata, rows, layer=layer, kind=kind)
    chunk, genes = informative_genes(chunk, adata.var_names.to_numpy(dtype=str), n_top_genes=n_top_genes, kind=kind)
    depth = [log_depth(chunk[test]) for _, test in splits] if kind == "counts" else None
    panel = n_comps is None and chunk.shape[1] <= (_MOST_VALUES if kind == "values" else PANEL)
    width = n_comps or (chunk.shape[1] if panel else max(_N_FEATURES))

    def shapes_of(n_features: int) -> list[ReferenceShape]:
        widths = [d for d in _N_FEATURES if d < n_features] if n_comps is None else []
        return candidate_shapes([*widths, n_features])

    encoder: PCAEncoder
    unit_variance = False
    if len(log_prior) == 1:  # densities in different spaces cannot be compared: there is nothing to choose by
        how: dict[str, Any] = {
            "n_features": possible_features(n_comps or _N_FEATURES[1], splits),
            "kind": kind,
            "target_sum": DEFAULT_TARGET,
        }
        encoder, x = fit_encoder(chunk, genes, **how)
        of_splits = represent(chunk, genes, splits, **how)
    else:
        target_sum = choose_target_sum(
            chunk, y, splits, kind=kind, log_prior=log_prior, n_features=width if panel else CHOICE_FEATURES
        )
        encoder, x, of_splits, unit_variance = choose_encoder(
            chunk,
            genes,
            y,
            splits,
            shapes=shapes_of,
            n_features=width,
            kind=kind,
            target_sum=target_sum,
            log_prior=log_prior,
        )
    if n_top_genes is not None and n_top_genes > adata.n_vars:
        logger.warning("n_top_genes=%d, but adata holds %d genes: all are used.", n_top_genes, adata.n_vars)
    if n_comps is not None and x.shape[1] < n_comps:
        logger.warning("n_comps=%d, but the cells and genes allow %d: so many are used.", n_comps, x.shape[1])
    shapes = shapes_of(min(x.shape[1], *(part.shape[1] for parts in of_splits for part in parts)))
    scores = None
    if classifiers_of is not None and kind in ("counts", "log"):
        encoder, x, of_splits = add_classifiers(encoder, x, of_splits, chunk, y, classifiers_of)
        scores = encoder.score_map
    return Encoded(encoder, x, splits, of_splits, shapes, depth, unit_variance, scores)
