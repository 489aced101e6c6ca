"""``tl.combine``: a model that knows combinations of perturbations which it has not seen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scscore._logging import logger
from scscore.core.combination import Pair, with_combinations
from scscore.io.params import jsonable
from scscore.model import ScoreModel
from scscore.tl._validate import check_model, check_name


def combine(model: ScoreModel, combinations: Sequence[str], *, control: str, separator: str = "+") -> ScoreModel:
    """Add combinations of two perturbations as classes, additive in what each of them changes.

    A cell with both perturbations is expected where the shifts of the two, from control, add up, in the closed-form reference and in the
    embedding of the network; see the *Perturbation* page of the documentation. Additivity is an assumption: cells of an interacting
    pair (synergy, epistasis) lie elsewhere, and fit none of the classes well.

    Parameters
    ----------
    model
        From :func:`scscore.tl.fit`; left unchanged.
    combinations
        Names such as ``"IFNGR1+JAK2"``, of two classes of the model that are not control.
    control
        The class of unperturbed cells.
    separator
        What stands between the names.

    Returns
    -------
    A :class:`~scscore.ScoreModel` with these classes after the others, to classify, sample and move cells. Its prior gives a combination the mean
    weight of its parts. It has no held-out cells of the new classes, and therefore neither prediction sets nor typicality, until
    :func:`scscore.tl.calibrate` is given labelled cells.

    Raises
    ------
    TypeError
        Not a ScoreModel, or names that are no strings.
    ValueError
        `control` or a part of a combination is no class of the model, a combination that is one already or does not have two parts, an exact model.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> scs.tl.combine(model, ["b+c"], control="a").classes.tolist()
    ['a', 'b', 'c', 'b+c']
    """
    check_model(model)
    classes = model.classes.tolist()
    for name, value in (("control", control), ("separator", separator)):
        check_name(value, name, optional=False)
    if isinstance(combinations, str) or not combinations:
        raise ValueError(f"combinations must be a list of names such as ['A{separator}B'], got {combinations!r}.")
    if control not in classes:
        raise ValueError(f"control must be a class of the model, got {control!r}; classes: {classes}.")
    pairs = []
    for name in combinations:
        check_name(name, "combinations", optional=False)
        parts = name.split(separator)
        if name in classes or len(parts) != 2 or not set(parts) <= set(classes) - {control} or parts[0] == parts[1]:
            raise ValueError(
                f"combinations: {name!r} must be two different classes of the model other than {control!r}, joined by {separator!r}, "
                f"and no class itself; classes: {classes}."
            )
        pairs.append(Pair(classes.index(parts[0]), classes.index(parts[1])))
    if len(set(combinations)) < len(combinations):
        raise ValueError(f"combinations must be unique, got {list(combinations)}.")
    try:
        diffusion = with_combinations(model.diffusion, pairs, classes.index(control))
    except TypeError as error:
        raise ValueError("model is exact: its classes have no embeddings that could be added.") from error
    prior = np.exp(model.log_prior())
    weights = np.concatenate([prior, [0.5 * (prior[a] + prior[b]) for a, b in pairs]])
    offsets = model.calibration.offsets
    found = copy.copy(model)
    found.classes = np.array([*classes, *combinations])
    found.class_counts = np.concatenate([model.class_counts, np.zeros(len(pairs), dtype=model.class_counts.dtype)])
    found.diffusion = diffusion
    found.calibration = replace(model.calibration, offsets=(*offsets, *[0.0] * len(pairs)) if offsets else ())
    found.held_out = None
    found.params = {**model.params, "prior": jsonable(weights / weights.sum()), "combinations": list(combinations)}
    logger.info("added %d combinations to %d classes, without held-out cells", len(pairs), len(classes))
    return found
