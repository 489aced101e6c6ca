"""``images.Conv``: settings of the convolutional encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Augment = Literal["none", "shift", "mirror", "orientation"]


@dataclass(frozen=True)
class Conv:
    """Settings of the convolutional encoder of :func:`scscore.tl.fit`, ``encoder=scs.images.Conv(augment="mirror")``.

    Attributes
    ----------
    augment
        How images are varied in training, and only there: ``"shift"`` moves, turns and zooms them a little; ``"mirror"`` also mirrors them,
        left to right, which photos allow; ``"orientation"`` also turns them by quarters, which cells on a slide allow; ``"none"``.
    n_features
        Dimension of the space of the encoder.
    n_steps
        Training steps of 128 images. ``None``: sixty passes over the images, within 300 and 2,000 steps.

    Raises
    ------
    ValueError
        Unknown `augment`, numbers that are not positive.
    """

    augment: Augment = "shift"
    n_features: int = 32
    n_steps: int | None = None

    def __post_init__(self) -> None:
        if self.augment not in get_args(Augment):
            raise ValueError(f"augment must be one of {list(get_args(Augment))}, got {self.augment!r}.")
        for name, value in (("n_features", self.n_features), ("n_steps", 1 if self.n_steps is None else self.n_steps)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
