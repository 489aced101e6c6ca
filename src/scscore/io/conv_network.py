"""The convolutional network that turns images into points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_SMALLEST, _WIDTH = 8, 64


class ConvNetwork(nn.Module):
    """Convolutions and halvings until the image is about eight pixels wide, a residual block, and a linear map of the pooled channels.

    With batch normalisation and averages for pooling, all of it is smooth in evaluation mode, as integrated gradients want it.

    Parameters
    ----------
    shape
        Channels, height and width of the images.
    n_features
        Dimension of the points.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, int, int], n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape[0], 1, 1))
        self.register_buffer("scale", torch.ones(shape[0], 1, 1))
        halvings = max(0, round(math.log2(min(shape[1:]) / _SMALLEST)))
        layers = [_convolution(shape[0], _WIDTH // 2, stride=2 if halvings else 1), nn.SiLU()]
        layers += [_convolution(_WIDTH // 2, _WIDTH), nn.SiLU()]
        for _ in range(halvings - 1):
            layers += [nn.AvgPool2d(2), _convolution(_WIDTH, _WIDTH), nn.SiLU()]
        self.body = nn.Sequential(
            *layers, _Residual(_WIDTH), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * _WIDTH, n_features)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Points ``(n, n_features)`` of images ``(n, n_channels, height, width)``."""
        x = (images - self.mean) / self.scale
        return self.body(x.contiguous(memory_format=torch.channels_last))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), nn.SiLU(), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x + self.body(x))


def _convolution(n_in: int, n_out: int, *, stride: int = 1) -> nn.Module:
    """A convolution with batch normalisation."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(n_out))
