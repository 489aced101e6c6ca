"""Noising trajectories: shared by all classes, antithetic in pairs, a function of (seed, row) and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scscore.core.schedule import Jump, NoiseSchedule

_ROWS_PER_BLOCK = 64


class NoiseStream:
    """Standard normal noise addressed by (seed, row, path, step).

    A counter-based generator (Philox) is addressed by blocks of rows, so that the noise of a row does not depend on
    the batch size, the chunking or the device. Paths come in antithetic pairs: path ``2 j + 1`` is the mirror image of
    path ``2 j``.

    Parameters
    ----------
    seed
        Non-negative integer below 2**63.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**63:
            raise ValueError(f"The seed must be in [0, 2**63), got {seed}.")
        self.seed = seed

    def normal(self, rows: NDArray[np.int64], n_features: int, *, pair: int, step: int) -> Tensor:
        """Standard normal noise of some rows.

        Parameters
        ----------
        rows
            The rows, as increasing positions in the whole data set, shape ``(n,)``.
        n_features
            Width of the noise.
        pair, step
            Index of the antithetic pair and of the step in its trajectory.

        Returns
        -------
        float32 tensor of shape ``(n, n_features)`` on the CPU.
        """
        blocks, position = np.unique(rows // _ROWS_PER_BLOCK, return_inverse=True)
        out = np.empty((len(blocks), _ROWS_PER_BLOCK, n_features), dtype=np.float32)
        for block, noise in zip(blocks.tolist(), out, strict=True):
            bits = np.random.Philox(key=self.seed, counter=[0, step, pair, block])
            np.random.Generator(bits).standard_normal(out=noise, dtype=np.float32)
        return torch.from_numpy(out[position, rows % _ROWS_PER_BLOCK])

    def uniform(self, n: int, *, pair: int) -> Tensor:
        """`n` uniform numbers in [0, 1) that all rows share, float64: where an antithetic pair samples the noise levels."""
        bits = np.random.Philox(key=self.seed, counter=[0, 0, pair, 2**63])
        return torch.from_numpy(np.random.Generator(bits).random(n))


def noising_trajectory(z: Tensor, levels: Tensor, draw: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """Points of a noising trajectory, by exact jumps from level to level.

    Parameters
    ----------
    z
        Clean points, of a shape that broadcasts against the noise.
    levels
        Decreasing log SNRs; one entry per level, each a scalar or of a shape that broadcasts against `z`.
    draw
        Gives the standard normal noise of step 0 (from clean to the first level), 1, 2, ...

    Yields
    ------
    The points at every level.
    """
    point = NoiseSchedule.alpha(levels[0]).to(z.dtype) * z + NoiseSchedule.sigma(levels[0]).to(z.dtype) * draw(0)
    yield point
    for step, (lam, lam_next) in enumerate(pairwise(levels), start=1):
        jump = Jump.between(lam, lam_next)
        point = jump.ratio.to(z.dtype) * point + jump.spread.to(z.dtype) * draw(step)
        yield point
