"""Evenly spread subsets of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly_spread(n: int, at_most: int) -> NDArray[np.int64]:
    """Sorted numbers of at most `at_most` of `n` rows, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64))
