"""Images whose classes are decided by a few pixels."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scscore as scs

SIZE = 12
PATCH = np.zeros((3, SIZE, SIZE), dtype=bool)
PATCH[0, 3:6, 3:6] = PATCH[2, 6:9, 6:9] = True
"""Red and blue pixels that differ between the classes; all others are noise."""


def planted(n: int, seed: int) -> AnnData:
    """Noise; class ``red`` is brighter in one corner of the red channel, class ``blue`` in another one of the blue channel."""
    rng = np.random.default_rng(seed)
    images, y = rng.normal(0.4, 0.12, (n, 3, SIZE, SIZE)), np.arange(n) % 2
    images[y == 0, 0, 3:6, 3:6] += 0.15
    images[y == 1, 2, 6:9, 6:9] += 0.15
    obs = pd.DataFrame({"class": np.array(["red", "blue"])[y]}, index=[f"image{seed}_{i}" for i in range(n)])
    return scs.images.from_arrays((255 * images.clip(0, 1)).astype(np.uint8), obs=obs)


@pytest.fixture(scope="session")
def train() -> AnnData:
    return planted(400, seed=0)


@pytest.fixture
def query() -> AnnData:
    return planted(100, seed=1)


@pytest.fixture(scope="session")
def pca_model(train: AnnData) -> scs.ScoreModel:
    return scs.tl.fit(train.copy(), "class", n_comps=20, max_epochs=20, progress=False)


@pytest.fixture(scope="session")
def conv_model(train: AnnData) -> scs.ScoreModel:
    how = scs.images.Conv(augment="none", n_features=8, n_steps=250)
    return scs.tl.fit(train.copy(), "class", encoder=how, max_epochs=20, progress=False)


class Pooled(torch.nn.Module):
    """A backbone of somebody else: mean intensity of patches."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 3).flatten(1)


@pytest.fixture(scope="session")
def backbone_model(train: AnnData) -> scs.ScoreModel:
    return scs.tl.fit(train.copy(), "class", encoder=Pooled(), max_epochs=20, progress=False)


@pytest.fixture(params=["pca", "conv", "backbone"])
def model(request: pytest.FixtureRequest) -> scs.ScoreModel:
    return request.getfixturevalue(f"{request.param}_model")
