"""Random variations of training images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from scscore.images._conv import Augment

_SHIFT, _ZOOM, _TURN = 0.125, 0.1, 0.2  # of half the image, of its size, and radians


def varied(images: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Every image moved, turned, zoomed and mirrored at random, ``(n, n_channels, height, width)``."""
    if augment == "none":
        return images
    n, signs = len(images), torch.ones(len(images))

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(n, *shape, generator=generator) - 1

    angle, zoom, shift = _TURN * uniform(), 1 + _ZOOM * uniform(), _SHIFT * uniform(2)
    if augment != "shift":
        signs = torch.randint(2, (n,), generator=generator) * 2.0 - 1
    if augment == "orientation":
        angle = angle + 0.5 * math.pi * torch.randint(4, (n,), generator=generator)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos * signs, -sin, shift[:, 0]], 1), torch.stack([sin * signs, cos, shift[:, 1]], 1)
    grid = affine_grid(torch.stack(rows, 1).to(images), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)
