"""Class priors: named, by class or as an array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Prior = str | Mapping[str, float] | ArrayLike


def resolve_prior(prior: Prior, classes: NDArray[np.str_], counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Log prior of the classes; see :meth:`ScoreModel.log_prior`."""
    if isinstance(prior, str):
        if prior not in ("train", "uniform"):
            raise ValueError(f"prior must be 'train', 'uniform', a mapping or an array, got {prior!r}.")
        weights = counts.astype(np.float64) if prior == "train" else np.ones(len(classes))
    elif isinstance(prior, Mapping) or _is_named(prior):
        prior = {str(name): weight for name, weight in prior.items()}  # type: ignore[union-attr]
        unknown, missing = set(prior) - set(classes.tolist()), set(classes.tolist()) - set(prior)
        if unknown or missing:
            raise ValueError(
                f"prior must give one weight for every class; unknown: {sorted(unknown)}, missing: {sorted(missing)}."
            )
        weights = _weights([prior[name] for name in classes.tolist()])
    else:
        weights = _weights(prior)
        if weights.shape != (len(classes),):
            raise ValueError(f"prior must have shape ({len(classes)},), one weight per class, got {weights.shape}.")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(f"prior weights must be finite, not negative and not all zero, got {weights.tolist()}.")
    weights = weights / weights.max()
    with np.errstate(divide="ignore"):
        return np.log(weights / weights.sum())


def _is_named(prior: Any) -> bool:
    """Whether this is a pandas Series that names the classes, such as ``obs[condition].value_counts()``."""
    return isinstance(prior, pd.Series) and not isinstance(prior.index, pd.RangeIndex)


def _weights(prior: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(prior, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"prior weights must be numbers, one per class, got {prior!r}.") from error
