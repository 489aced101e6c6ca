import numpy as np
import pytest
import torch
from scipy.stats import kstest

from scscore.core.trajectories import NoiseStream


def test_noise_is_standard_normal_and_uncorrelated():
    x = NoiseStream(0).normal(np.arange(4000), 8, pair=0, step=0).numpy()
    assert kstest(x.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(x.T) - np.eye(8)).max() < 0.06


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (63, 65), (64, 128), (100, 300), (1000, 1001)])
def test_noise_of_a_row_does_not_depend_on_the_chunk(start: int, stop: int):
    stream = NoiseStream(7)
    whole = stream.normal(np.arange(1100), 5, pair=2, step=3)
    assert torch.equal(stream.normal(np.arange(start, stop), 5, pair=2, step=3), whole[start:stop])


def test_noise_of_scattered_rows_is_their_own():
    stream, rows = NoiseStream(7), np.array([0, 3, 63, 64, 200, 1099])
    whole = stream.normal(np.arange(1100), 5, pair=2, step=3)
    assert torch.equal(stream.normal(rows, 5, pair=2, step=3), whole[rows])


def test_every_address_has_its_own_noise():
    def draw(seed: int, pair: int, step: int) -> torch.Tensor:
        return NoiseStream(seed).normal(np.arange(64), 50, pair=pair, step=step).ravel()

    draws = torch.stack([draw(s, p, t) for s in (0, 1) for p in (0, 1) for t in (0, 1)])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.08
    assert torch.equal(draw(0, 0, 0), draws[0])


def test_negative_seeds_are_refused():
    with pytest.raises(ValueError, match="seed"):
        NoiseStream(-1)
