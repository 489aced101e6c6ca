"""``tl.fit``: trains the conditional diffusion model on an AnnData."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scscore._logging import logger
from scscore._version import __version__
from scscore.core.calibration import Calibration
from scscore.core.covariates import fit_covariates, fit_shifts
from scscore.core.prior import Prior, resolve_prior
from scscore.core.reference_fit import Fold
from scscore.core.schedule import NoiseSchedule
from scscore.core.target import TargetGrid
from scscore.images._conv import Conv
from scscore.io.folds import hold_out_groups, make_folds
from scscore.io.gene_space import Map
from scscore.io.keys import Keys
from scscore.io.modalities import bring_target, of_modality
from scscore.io.params import json_params, jsonable
from scscore.io.representation import PCAEncoder
from scscore.model import ScoreModel
from scscore.tl._encode import encode_components, encode_images, encode_stored
from scscore.tl._validate import (
    check_adata,
    check_encoder,
    check_name,
    check_positive,
    condition_labels,
    covariate_columns,
    group_labels,
    is_continuous,
    seed_of,
    target_values,
)

if TYPE_CHECKING:
    from mudata import MuData


_MAX_CHOICE_CELLS = 10_000
_MIN_CELLS = 20  # of a density without classes
_COARSE = 5  # classes that stand for a continuous target where cells are split and encoders compared
# the reference knows less of a continuous target than of classes: the network has further to go
_LEARNING_RATE_OF_VALUES = 1e-3
_MEMBERS_OF_VALUES = 5


def fit(
    adata: AnnData | MuData,
    condition: str | None,
    *,
    modality: str | None = None,
    layer: str | None = None,
    use_rep: str | None = None,
    encoder: Literal["pca", "conv"] | Conv | Map = "pca",
    input: Literal["auto", "counts", "log", "values"] = "auto",
    continuous: bool | None = None,
    circular: bool | float = False,
    n_top_genes: int | None = None,
    n_comps: int | None = None,
    covariates: str | Sequence[str] | None = None,
    split_key: str | None = None,
    prior: Prior = "train",
    objective: Literal["hybrid", "generative", "direct"] = "hybrid",
    n_members: int | None = None,
    max_epochs: int | None = None,
    batch_size: int = 256,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: str = "auto",
    checkpoint_dir: str | Path | None = None,
    key_added: str = "scscore",
    rng: int | np.random.Generator = 0,
    progress: bool = True,
) -> ScoreModel:
    r"""Train a conditional diffusion model that gives log p(x given class) of a cell for every class.

    The model is a closed-form reference plus a learned residual. By default it owns its encoder: counts are normalised
    to a common total, log-transformed, centred and projected on principal components of all genes, so a query may come
    with raw counts, another gene order or missing genes. The count total, whether genes are brought to unit variance,
    the number of components and the amount of class-specific covariance are chosen by cross-validation in which the
    encoder is refitted too; the number of
    training steps, the weights of the readout and the calibration come from validation cells; the final model is fitted on all cells.

    Parameters
    ----------
    adata
        Labelled cells, with raw counts or log-normalised values; in memory, backed or with dask arrays.
    condition
        Column of ``obs`` with the classes, or with numbers: see `continuous`. Cells without a label are left out. In a MuData a feature of another
        modality may be the target, ``"prot:CD4"``, with its values in ``X`` as they are; they are copied to ``obs`` under that name. ``None``: one density of all cells, for
        :func:`scscore.tl.energy`; its reference is a Gaussian mixture whose size is chosen by cross-validation.
    modality
        For a MuData: the modality to work on. ``None``: the only one, or ``"rna"``.
    layer
        Layer with the values; ``None`` is ``X``.
    use_rep
        Name of a representation in ``obsm`` to use instead of the model's own encoder, e.g. ``"X_scVI"``. All its features
        are used. A query then needs the same representation.
    encoder
        What turns values into points. ``"pca"``; for images (:func:`scscore.images.from_arrays`) also ``"conv"``, a convolutional network that is
        trained on the classes, with the settings of :class:`scscore.images.Conv` if such are given, or a function of your own, a backbone
        in evaluation mode: from a float32 tensor of intensities ``(n, n_channels, height, width)`` to points ``(n, n_features)``. A model with
        such a function cannot be saved.
    input
        What the values are: raw ``"counts"``, ``"log"``-normalised values that are used as they are, or other features with ``"values"``
        of any sign and unit, which are brought to unit variance. ``"auto"`` takes whole numbers for counts, others for log-normalised.
    continuous
        Whether `condition` is a continuous target, for :func:`scscore.tl.regress`: its ordered bins then take the place of the
        classes. ``None``: columns of floating-point numbers are.
    circular
        Whether a continuous target goes round, such as a phase of the cell cycle: ``True`` for a period of :math:`2\pi`, or the period.
    n_top_genes
        Use only this many highly variable genes. ``None``: all genes.
    n_comps
        Number of principal components. ``None``: chosen by cross-validation among 20, 30, 50 and, for a panel of up to 100 genes or 500
        features with ``input="values"``, all (30 without classes).
    covariates
        Columns of ``obs`` with what shifts cells of all classes alike: batches, donors or other categories, level by level; a dose, a score or other
        floating-point numbers, in proportion (one slope for all classes; take the logarithm of doses). A query whose ``obs`` has the columns is
        corrected; what is unknown of a cell is summed over as it occurs in the training cells, at the cost of one likelihood per level where the
        level is unknown, times five where a number is.
    split_key
        Column of ``obs`` with donors, batches or replicates, or with guides, each of which belongs to one class. Whole groups are then held out in
        cross-validation and validation, so that choices and temperature hold for new groups. Needs at least four groups, or two within
        some class.
    prior
        Class prior of the posterior: ``"train"`` (class frequencies), ``"uniform"``, a mapping or an array. It can be replaced
        in :func:`scscore.tl.classify`. With a continuous target, a density over it: ``"train"``, ``"uniform"``, or an array over the bins.
    objective
        ``"hybrid"`` adds the cross-entropy of the class posterior to the generative loss, and pools the log-likelihoods of the classes with a linear
        classifier of the same features (not with ``encoder="conv"``, which is one), those of a continuous target with networks for p(y given x);
        ``"generative"`` does neither: a density per class and nothing else. ``"direct"``, for continuous targets, is these networks alone: faster, without
        densities, novelty and attributions.
    n_members
        Train so many networks on all cells, from different random numbers, and use their mean. Fitting and classifying take that
        many times longer. ``None``: 1 for classes, 5 for a continuous target, where the mean posterior is used and the disagreement is the
        mutual information of :func:`scscore.tl.regress`.
    max_epochs
        Upper bound on training. ``None``: 3,000 steps. Early stopping usually ends long before.
    batch_size
        Cells per training step.
    accelerator, devices, strategy
        Passed to :class:`lightning.pytorch.Trainer`.
    checkpoint_dir
        Directory for checkpoints. A fit that was interrupted resumes when called again with the same data and arguments,
        and ends with the same model. Delete it afterwards.
    key_added
        Name of the entry in ``uns``.
    rng
        Seed or generator. The same seed gives the same model.
    progress
        Show progress bars.

    Returns
    -------
    The trained :class:`~scscore.ScoreModel`. Writes ``adata.uns[key_added]``: ``classes``, ``params`` (JSON), ``model_hash``,
    ``version``, and the loss curves ``training_steps``, ``training_loss``, ``validation_loss`` (nats per cell).

    Raises
    ------
    TypeError
        Not an AnnData, or a name that is not a string.
    KeyError
        Unknown column, layer or representation.
    ValueError
        Fewer than two classes, a class with fewer than two cells, a number that may be class or value, NaN, infinite or negative values,
        logged values where counts are declared or the reverse, duplicated gene names, a checkpoint of another fit.

    Examples
    --------
    >>> import scscore as scs
    >>> reference = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(reference, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> model.classes.tolist()
    ['a', 'b', 'c']

    Notes
    -----
    Method and derivations: the *Method* page of the documentation; source: Kuznets-Speck et al., Keeping SCORE, bioRxiv
    2025.11.26.690838.
    """
    from scscore.core.fitting import fit_conditional_diffusion  # here, because Lightning takes seconds to import
    from scscore.core.training import TrainingConfig, check_trainer
    from scscore.core.validation import n_watched_splits

    whole, adata = adata, of_modality(adata, modality)
    check_adata(adata)
    bring_target(whole, adata, condition)
    keys, seed = Keys(key_added), seed_of(rng)
    check_name(condition, "condition")
    for argument, value in (("layer", layer), ("use_rep", use_rep), ("split_key", split_key)):
        check_name(value, argument)
    if objective not in ("hybrid", "generative", "direct"):
        raise ValueError(f"objective must be 'hybrid', 'generative' or 'direct', got {objective!r}.")
    if input not in ("auto", "counts", "log", "values"):
        raise ValueError(f"input must be 'auto', 'counts', 'log' or 'values', got {input!r}.")
    check_positive("n_top_genes", n_top_genes, at_least=2)
    check_positive("n_comps", n_comps)
    check_positive("n_members", n_members)
    check_positive("max_epochs", max_epochs)
    check_positive("batch_size", batch_size, optional=False)
    if use_rep is not None and (layer is not None or n_top_genes is not None or n_comps is not None or input != "auto"):
        raise ValueError("use_rep= replaces the model's own encoder: leave out layer, input, n_top_genes and n_comps.")
    if use_rep is not None and encoder != "pca":
        raise ValueError("use_rep= and encoder= both say how to turn cells into points: leave one of them out.")
    check_encoder(adata, encoder, n_comps=n_comps, n_top_genes=n_top_genes, input=None if input == "auto" else input)
    grid: TargetGrid | None = None
    y: NDArray[Any]
    counts: NDArray[Any]
    if condition is not None and is_continuous(adata, condition, continuous, circular):
        if objective == "direct" and not (isinstance(prior, str) and prior == "train"):
            raise ValueError(
                "prior= needs a likelihood, which objective='direct' does not have: leave one of them out."
            )
        values, labelled, grid = target_values(adata, condition, circular)
        y = values[labelled]
        coarse, classes = _coarse(y), np.array([f"{center:.9g}" for center in grid.centers])
        counts = len(y) * grid.frequencies(y)
        n_members = n_members or _MEMBERS_OF_VALUES
    else:
        if objective == "direct":
            raise ValueError(f"objective='direct' is for continuous targets, and condition={condition!r} is none.")
        labels, labelled = _one_class(adata) if condition is None else condition_labels(adata, condition)
        classes, y = np.unique(labels[labelled], return_inverse=True)
        counts, coarse = np.bincount(y), y
        n_members = n_members or 1
    if not callable(encoder) and encoder != "pca" and (condition is None or grid is not None):
        raise ValueError("encoder='conv' is trained on classes: use encoder='pca' or a function of your own.")
    log_prior = resolve_prior("train", classes, counts)
    stored_prior = prior if isinstance(prior, str) else np.exp(resolve_prior(prior, classes, counts))
    resolve_prior(stored_prior, classes, counts)
    coarse_prior = np.log(np.bincount(coarse) / len(coarse))
    groups = group_labels(adata, split_key, labelled)
    columns, numeric = covariate_columns(adata, covariates, labelled, condition)
    check_trainer(accelerator, devices, strategy)
    if checkpoint_dir is not None:
        Path(checkpoint_dir).mkdir(parents=True, exist_ok=True)
    splits = make_folds(coarse, groups, seed=seed)
    every_split = grid is None and hold_out_groups(splits, groups)
    n_watched = n_watched_splits([len(test) for _, test in splits], every_split=every_split)

    if use_rep is not None:
        encoded = encode_stored(adata, labelled, use_rep, splits)
    elif encoder == "pca":
        encoded = encode_components(
            adata,
            labelled,
            coarse,
            splits,
            layer=layer,
            kind=None if input == "auto" else input,
            n_top_genes=n_top_genes,
            n_comps=n_comps,
            log_prior=coarse_prior,
            classifiers_of=splits[:n_watched] if grid is None and objective == "hybrid" and len(classes) > 1 else None,
        )
    else:
        encoded = encode_images(
            adata,
            labelled,
            coarse,
            splits,
            Conv() if isinstance(encoder, str) else encoder,
            layer=layer,
            seed=seed,
            checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
            progress=progress,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
        )
    x, represented, splits = encoded.points, encoded.of_splits, encoded.splits
    shift = None
    if columns or numeric:
        design = np.eye(len(classes))[y] if grid is None else grid.hats(y)
        shift, cells = fit_covariates(x, design, adata.obs[labelled], columns, numeric)
        x = x - shift.of(cells)
        for i, ((train, test), (x_train, x_test)) in enumerate(zip(splits, represented, strict=True)):
            shifts, slopes = fit_shifts(x_train, design[train], cells.rows(train), n_levels=len(shift.levels))
            own = replace(shift, shifts=shifts, slopes=slopes if numeric else None)  # around the same mean numbers
            represented[i] = x_train - own.of(cells.rows(train)), x_test - own.of(cells.rows(test))
    folds = [
        Fold(x_train, y[train], x_test, y[test])
        for (train, test), (x_train, x_test) in zip(splits, represented, strict=True)
    ]

    steps: dict[str, Any] = {} if max_epochs is None else {"max_steps": max(1, -(-max_epochs * len(y) // batch_size))}
    if grid is not None:
        steps["learning_rate"] = _LEARNING_RATE_OF_VALUES
    config = TrainingConfig(discriminative_weight=float(objective != "generative"), batch_size=batch_size, **steps)
    params = jsonable(
        {
            "condition": condition,
            "layer": layer,
            "use_rep": use_rep,
            "encoder": encoder
            if isinstance(encoder, str)
            else vars(encoder)
            if isinstance(encoder, Conv)
            else "function",
            "input": input,
            "n_top_genes": n_top_genes,
            "n_comps": n_comps,
            "circular": circular,
            "covariates": (*columns, *numeric),
            "split_key": split_key,
            "prior": stored_prior,
            "objective": objective,
            "n_members": n_members,
            "max_epochs": max_epochs,
            "seed": seed,
            "training": vars(config),
            "version": __version__,
        }
    )
    calibration = Calibration()
    outcome = fit_conditional_diffusion(
        [_subsample(fold, _MAX_CHOICE_CELLS, seed) for fold in folds],
        folds,
        x,
        y,
        n_classes=len(classes),
        log_prior=log_prior,
        shapes=encoded.shapes,
        schedule=NoiseSchedule(),
        config=config,
        n_steps=calibration.n_steps,
        n_paths=calibration.n_paths,
        seed=seed,
        grid=grid,
        direct=objective == "direct",
        n_members=n_members,
        validation_depth=encoded.log_depth,
        every_split=every_split,
        with_readout=callable(encoder) or encoder == "pca",
        scores=encoded.scores,
        checkpoint_dir=_checkpoints(checkpoint_dir, params, x, y),
        progress=progress,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
    )
    params |= jsonable(
        {
            "reference": {
                **vars(outcome.reference.shape),
                "nll": outcome.reference.nll,
                "accuracy": outcome.reference.accuracy,
            },
            "readout": None if outcome.readout is None else outcome.readout._asdict(),
            "unit_variance": encoded.unit_variance,
            "n_steps_trained": outcome.n_steps,
            "validation_nll": outcome.validation_nll,
            "validation_nll_reference": outcome.validation_loss[0],
            "validation_nll_diffusion": min(outcome.validation_loss),
            "validation_accuracy": outcome.validation_accuracy,
        }
    )
    representation = encoded.representation
    if isinstance(representation, PCAEncoder) and not getattr(outcome.engine, "n_scores", 0):
        representation = representation.with_classifier(None)  # of no use beside the components
        shift = None if shift is None else shift.of_features(representation.n_features)
    model = ScoreModel(
        classes=classes,
        class_counts=counts,
        representation=representation,
        whitening=outcome.whitening,
        engine=outcome.engine,
        calibration=replace(
            calibration,
            temperature=outcome.temperature,
            offsets=outcome.offsets,
            n_steps=outcome.n_jumps,
            density_temperature=outcome.density_temperature,
        ),
        held_out=outcome.held_out if condition is not None else None,
        held_out_values=outcome.held_out_values,
        covariates=shift,
        target=grid,
        params=params,
    )
    adata.uns[keys.uns] = {
        "classes": classes.astype(object),
        "params": json_params(params),
        "model_hash": model.hash,
        "version": __version__,
        "training_steps": np.array(outcome.steps),
        "training_loss": np.array(outcome.training_loss),
        "validation_loss": np.array(outcome.validation_loss),
    }
    logger.info("%s\nwrote uns[%r]", model.summary(), keys.uns)
    return model


def _one_class(adata: AnnData) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Labels of a density without classes, and which cells have one: all."""
    if adata.n_obs < _MIN_CELLS:
        raise ValueError(f"adata holds {adata.n_obs} cells; a density needs at least {_MIN_CELLS}.")
    return np.full(adata.n_obs, "all"), np.ones(adata.n_obs, dtype=bool)


def _coarse(y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Classes of about equal size that stand for a continuous target."""
    edges = np.unique(np.quantile(y, np.linspace(0, 1, _COARSE + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, y, side="left"), return_inverse=True)[1]


def _subsample(fold: Fold, at_most: int, seed: int) -> Fold:
    """At most so many cells of either part of a fold, with all classes that the training part has."""

    def rows(y: NDArray[np.integer]) -> NDArray[np.int64]:
        order = np.random.default_rng(seed).permutation(len(y))
        if y.dtype.kind == "f":  # a continuous target
            return order[:at_most]
        first = np.unique(y[order], return_index=True)[1]  # one cell of every class comes first
        return np.concatenate([order[first], np.delete(order, first)])[:at_most]

    if max(len(fold.y_train), len(fold.y_held_out)) <= at_most:
        return fold
    train, test = rows(fold.y_train), rows(fold.y_held_out)
    return Fold(fold.x_train[train], fold.y_train[train], fold.x_held_out[test], fold.y_held_out[test])


def _checkpoints(
    directory: str | Path | None, params: dict[str, object], x: NDArray[np.float64], y: NDArray[Any]
) -> Path | None:
    """Directory of the checkpoints of this fit; refuses those of another fit."""
    if directory is None:
        return None
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    data = hashlib.sha256(np.ascontiguousarray(x.round(6)).tobytes() + y.tobytes()).hexdigest()
    fingerprint = json.dumps({"params": params, "data": data}, sort_keys=True)
    stamp = directory / "fit.json"
    if stamp.exists() and stamp.read_text() != fingerprint:
        raise ValueError(
            f"checkpoint_dir={str(directory)!r} holds the checkpoints of a fit with other data or arguments; "
            "delete it or choose another directory."
        )
    stamp.write_text(fingerprint)
    return directory
