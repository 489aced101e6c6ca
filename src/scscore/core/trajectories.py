"""Noising trajectories: shared by all classes, antithetic in pairs, a function of (seed, row) and of nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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

    def normal(self, start: int, stop: int, n_features: int, *, pair: int, step: int) -> Tensor:
        """Noise of the rows ``start <= row < stop``.

        Parameters
        ----------
        start, stop
            The rows, as positions in the whole data set.
        n_features
            Width of the noise.
        pair, step
            Index of the antithetic pair and of the step in its trajectory.

        Returns
        -------
        float32 tensor of shape ``(stop - start, n_features)`` on the CPU.
        """
        first, last = start // _ROWS_PER_BLOCK, -(-stop // _ROWS_PER_BLOCK)
        out = np.empty(((last - first) * _ROWS_PER_BLOCK, n_features), dtype=np.float32)
        for i, block in enumerate(range(first, last)):
            bits = np.random.Philox(key=self.seed, counter=[0, step, pair, block])
            rows = out[i * _ROWS_PER_BLOCK : (i + 1) * _ROWS_PER_BLOCK]
            np.random.Generator(bits).standard_normal(out=rows, dtype=np.float32)
        offset = start - first * _ROWS_PER_BLOCK
        return torch.from_numpy(out[offset : offset + stop - start])
