"""Fixtures every test may use."""

import os
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from anndata.tests.helpers import assert_equal

import scscore as scs

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets: ``$SCSCORE_DATA``, else ``../shared/data`` beside the repository.

    Without the folder the test is skipped; with ``SCSCORE_REQUIRE_DATA=1`` it fails instead.
    """
    given = os.environ.get("SCSCORE_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if folder.is_dir():
        return folder
    reason = f"no data sets at {folder}: set SCSCORE_DATA to the folder that holds them"
    if os.environ.get("SCSCORE_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def round_trip(tmp_path: Path) -> Callable[[AnnData], None]:
    """Writes an AnnData to h5ad and to zarr and compares what is read back."""

    def check(adata: AnnData) -> None:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        assert_equal(ad.read_h5ad(tmp_path / "cells.h5ad"), adata)
        adata.write_zarr(tmp_path / "cells.zarr")
        assert_equal(ad.read_zarr(tmp_path / "cells.zarr"), adata)

    return check


def make_counts(
    n_obs: int = 240, n_vars: int = 60, names: tuple[str, ...] = ("B/naïve", "T cell", "γδ"), seed: int = 0
) -> AnnData:
    """Poisson counts with ten marker genes per class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_obs) % len(names)
    rates = rng.gamma(2.0, 0.5, n_vars) * np.ones((len(names), 1))
    for k in range(len(names)):
        rates[k, 10 * k : 10 * k + 10] *= 5
    counts = rng.poisson(rates[y] * rng.gamma(8.0, 1 / 8, (n_obs, 1))).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(y, names), "donor": [f"d{i % 5}" for i in range(n_obs)]},
        index=[f"cell{i}" for i in range(n_obs)],
    )
    return AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"gene{j}" for j in range(n_vars)]))


@pytest.fixture
def counts() -> AnnData:
    """240 cells of three classes (with awkward names) and 60 genes, CSR counts."""
    return make_counts()


@pytest.fixture
def few_counts() -> AnnData:
    """12 cells of three classes."""
    return make_counts(n_obs=12)


@pytest.fixture(scope="session")
def model() -> scs.ScoreModel:
    """A small model of the cells of `counts`, with a trained residual."""
    trained = scs.tl.fit(make_counts(), "cell_type", n_comps=8, max_epochs=60, progress=False)
    return trained
