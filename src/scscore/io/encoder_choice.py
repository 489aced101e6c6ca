"""Fits the encoder on all training cells and, for honest validation, on the training part of every fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scscore.core.reference_fit import Array, Fold, ReferenceShape, clearly_worse, cross_validate
from scscore.core.thinning import evenly_spread
from scscore.io.folds import Split
from scscore.io.gene_classifier import most_variable
from scscore.io.readers import Chunk
from scscore.io.representation import InputKind, PCAEncoder, log_normalise

DEFAULT_TARGET = 1e4
PANEL = 100
"""So many genes, or fewer, were chosen with care: all of their components may be of use."""
_MAX_PCA_CELLS = 20_000
CHOICE_FEATURES = 20
"""Components with which count totals are compared."""
_CHOICE_CELLS, _CHOICE_SPLITS = 5_000, 3
_TIE = 0.5  # standard errors


def informative_genes(
    chunk: Chunk, genes: NDArray[np.str_], *, n_top_genes: int | None, kind: InputKind
) -> tuple[Chunk, NDArray[np.str_]]:
    """Drop genes without any count, and keep only the most variable ones if asked.

    Raises
    ------
    ValueError
        Fewer than two genes are left.
    """
    if kind == "pixels":
        if n_top_genes is not None:
            raise ValueError(
                f"n_top_genes={n_top_genes}: adata holds images, of which all pixels are used; leave it out."
            )
        return chunk, genes
    keep = np.asarray(abs(chunk).sum(axis=0)).ravel() > 0
    if n_top_genes is not None and n_top_genes < keep.sum():
        variable = most_variable(log_normalise(chunk[:, keep], kind, DEFAULT_TARGET), n_top_genes)
        variable = np.flatnonzero(keep)[variable]
        keep[:] = False
        keep[variable] = True
    if keep.sum() < 2:
        raise ValueError(f"At least two genes with values above zero are needed, adata has {int(keep.sum())}.")
    return chunk[:, keep], genes[keep]


def choose_target_sum(
    chunk: Chunk,
    y: NDArray[np.integer],
    splits: Sequence[Split],
    *,
    kind: InputKind,
    log_prior: Array,
    n_features: int = CHOICE_FEATURES,
) -> float:
    """Count total per cell with the lowest cross-validated negative log posterior of the reference.

    log1p of counts scaled to a small total is nearly linear, of counts scaled to 10,000 nearly binary: which one
    separates the classes depends on the data. Compared are 10,000, and a third and a tenth of the median total; 10,000
    stays where it is not clearly worse.

    Parameters
    ----------
    n_features
        Number of components with which the totals are compared.
    """
    if kind != "counts":
        return DEFAULT_TARGET
    median = float(np.median(np.asarray(chunk.sum(axis=1)).ravel()))
    candidates = [DEFAULT_TARGET, *(t for t in (median / 3, median / 10) if t > 0)]
    n_features = min(n_features, chunk.shape[1])
    losses = []
    for target in candidates:
        folds = []
        for train, test in splits[:_CHOICE_SPLITS]:
            train, test = _thin(train, _CHOICE_CELLS), _thin(test, _CHOICE_CELLS)
            if len(np.unique(y[train])) < len(log_prior):
                return DEFAULT_TARGET
            encoder = PCAEncoder.fit(chunk[train], np.array([]), n_features=n_features, kind=kind, target_sum=target)
            folds.append(Fold(encoder.encode(chunk[train]), y[train], encoder.encode(chunk[test]), y[test]))
        width = min(fold.x_train.shape[1] for fold in folds)
        shapes = [ReferenceShape(width, amount) for amount in (0.0, 0.6)]
        losses.append(
            cross_validate(folds, n_classes=len(log_prior), log_prior=log_prior, shapes=shapes, inflations=()).losses
        )
    best = int(np.argmin([loss.mean() for loss in losses]))
    return candidates[best] if clearly_worse(losses[0], losses[best]) else DEFAULT_TARGET


def fit_encoder(chunk: Chunk, genes: NDArray[np.str_], **how: Any) -> tuple[PCAEncoder, Array]:
    """The encoder and its points of all cells.

    Parameters
    ----------
    chunk, genes
        Values of the training cells, and names of the genes.
    **how
        `n_features`, `kind`, `target_sum` and `unit_variance` of :meth:`PCAEncoder.fit`.
    """
    encoder = PCAEncoder.fit(chunk[_thin(np.arange(chunk.shape[0]), _MAX_PCA_CELLS)], genes, **how)
    return encoder, encoder.encode(chunk)


def represent(chunk: Chunk, genes: NDArray[np.str_], splits: Sequence[Split], **how: Any) -> list[tuple[Array, Array]]:
    """Points of training and held-out cells of every split; arguments as in :func:`fit_encoder`.

    Principal components of a training cell are larger than those of a new cell, because the cell helped to choose the
    axes. Therefore every split gets an encoder of its own, unless there are so many cells (20,000) that the difference
    is nothing.
    """
    if chunk.shape[0] > _MAX_PCA_CELLS:
        _, x = fit_encoder(chunk, genes, **how)
        return [(x[train], x[test]) for train, test in splits]
    found = []
    for train, test in splits:
        own, x_train = fit_encoder(chunk[train], genes, **how)
        found.append((x_train, own.encode(chunk[test])))
    return found


def choose_encoder(
    chunk: Chunk,
    genes: NDArray[np.str_],
    y: NDArray[np.integer],
    splits: Sequence[Split],
    *,
    shapes: Callable[[int], Sequence[ReferenceShape]],
    n_features: int,
    kind: InputKind,
    target_sum: float,
    log_prior: Array,
) -> tuple[PCAEncoder, Array, list[tuple[Array, Array]], bool]:
    """Encoders of genes as they are and of genes at unit variance: the one with the lower cross-validated loss.

    As they are, markers outweigh noise, which is better on most data and carries over to other studies. Where few, well chosen
    genes were measured, unit variance can be better; a gain of less than half its standard error is a tie. Features that are no genes
    have units of their own: they always get unit variance; pixels share one, and never do.

    Parameters
    ----------
    shapes
        Candidate shapes of the reference for a number of features.

    Returns
    -------
    The encoder, its points of all cells, those of the splits (:func:`represent`), and whether genes have unit variance.
    """
    n_features = possible_features(n_features, splits)
    how: dict[str, Any] = {"n_features": n_features, "kind": kind, "target_sum": target_sum}
    if kind in ("values", "pixels"):
        how["unit_variance"] = kind == "values"
        encoder, x = fit_encoder(chunk, genes, **how)
        return encoder, x, represent(chunk, genes, splits, **how), kind == "values"
    tried, losses = [], []
    for unit_variance in (False, True):
        tried.append(represent(chunk, genes, splits, unit_variance=unit_variance, **how))
        folds = []
        for (train, test), (x_train, x_test) in zip(splits, tried[-1], strict=True):
            rows, held_out = (_thin(np.arange(len(part)), _CHOICE_CELLS) for part in (train, test))
            folds.append(Fold(x_train[rows], y[train][rows], x_test[held_out], y[test][held_out]))
        if any(len(np.unique(fold.y_train)) < len(log_prior) for fold in folds):
            break
        candidates = shapes(folds[0].x_train.shape[1])
        found = cross_validate(folds, n_classes=len(log_prior), log_prior=log_prior, shapes=candidates, inflations=())
        losses.append(found.losses)
    best = int(len(losses) == 2 and clearly_worse(*losses, standard_errors=_TIE))
    encoder, x = fit_encoder(chunk, genes, unit_variance=bool(best), **how)
    return encoder, x, tried[best], bool(best)


def possible_features(n_features: int, splits: Sequence[Split]) -> int:
    """No more features than the training cells of the smallest split allow."""
    return min(n_features, *(len(train) - 1 for train, _ in splits))


def _thin(rows: NDArray[np.int64], at_most: int) -> NDArray[np.int64]:
    """An evenly spread subset of sorted row numbers."""
    return rows[evenly_spread(len(rows), at_most)]
