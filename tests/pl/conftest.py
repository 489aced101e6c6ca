"""Classified toy cells, fitted once per session; every test gets its own copy."""

from collections.abc import Callable, Iterator
from functools import cache

import matplotlib.pyplot as plt
import pytest
from anndata import AnnData

import scscore as scs


@cache
def _classified(n_classes: int) -> AnnData:
    cells = scs.datasets.toy_gaussians(n_obs=20 * n_classes, n_classes=n_classes, n_features=2 if n_classes < 10 else 8)
    max_epochs = 2 if n_classes < 10 else 1
    model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=max_epochs, progress=False)
    # keeps the loss curves; nothing is rejected, so that labels and classes are the same set
    scs.tl.classify(cells, model, n_steps=4, n_paths=2, reject=0, progress=False)
    return cells


@pytest.fixture(scope="session")
def classified() -> Callable[[int], AnnData]:
    """Function from a number of classes to cells after fit and classify."""
    return lambda n_classes: _classified(n_classes).copy()


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")
