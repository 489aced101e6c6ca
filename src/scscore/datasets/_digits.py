"""Real images that ship inside scikit-learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

_N_TRAIN = 1300


def digits() -> AnnData:
    """1,797 handwritten digits of 8 x 8 pixels, as images.

    The test part of the set of Alpaydin and Kaynak (UCI Machine Learning Repository, doi:10.24432/C50P49) that scikit-learn ships.
    Nothing is downloaded.

    Returns
    -------
    AnnData of :func:`scscore.images.from_arrays`, intensities in 16 steps, with the digit in ``obs["digit"]`` (10 classes) and, in
    ``obs["split"]``, train for the first 1,300 and test for the rest, in the order of the file, where the images of a writer follow each other.

    Examples
    --------
    >>> import scscore as scs
    >>> scs.datasets.digits().obsm["single_cell_images"].shape
    (1797, 1, 8, 8)
    """
    from sklearn.datasets import load_digits

    from scscore.images import from_arrays

    source = load_digits()
    obs = pd.DataFrame({"digit": pd.Categorical(source.target.astype(str))})
    obs["split"] = pd.Categorical(np.where(np.arange(len(obs)) < _N_TRAIN, "train", "test"))
    obs.index = [f"digit_{i}" for i in range(len(obs))]
    return from_arrays((source.images * 255 / 16).round().astype(np.uint8), obs=obs)
