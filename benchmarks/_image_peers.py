"""Peers on images: a small convolutional network, and classifiers on principal components."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

Images = np.ndarray
"""Intensities, float32 ``(n, n_channels, height, width)``."""

N_COMPONENTS = 50
BATCH = 128
_VALIDATION = 0.1


@dataclass
class Network:
    """A trained network: logits, features before them, and the temperature that its validation images gave."""

    body: nn.Module
    head: nn.Module
    temperature: float

    def features(self, images: Images) -> np.ndarray:
        """Penultimate activations, ``(n, n_features)``."""
        self.body.eval()
        with torch.inference_mode():
            return np.concatenate([self.body(torch.from_numpy(part)).numpy() for part in parts(images)])

    def logits(self, images: Images) -> np.ndarray:
        """Tempered logits, ``(n, n_classes)``."""
        with torch.inference_mode():
            return self.temperature * self.head(torch.from_numpy(self.features(images))).numpy()

    def predict_proba(self, images: Images) -> np.ndarray:
        """Probabilities, ``(n, n_classes)``."""
        return np.exp(log_softmax(self.logits(images).astype(np.float64), axis=1))


def parts(images: Images, size: int = 500) -> list[Images]:
    """The images in handy pieces."""
    return [images[i : i + size] for i in range(0, len(images), size)]


def varied(images: torch.Tensor, augment: str, generator: torch.Generator) -> torch.Tensor:
    """The same kinds of random shifts, turns, zooms and mirrorings that scscore's encoder is trained with."""
    n = len(images)
    uniform = lambda *shape: 2 * torch.rand(n, *shape, generator=generator) - 1
    angle, zoom, shift, sign = 0.2 * uniform(), 1 + 0.1 * uniform(), 0.125 * uniform(2), torch.ones(n)
    if augment in ("mirror", "orientation"):
        sign = torch.randint(2, (n,), generator=generator) * 2.0 - 1
    if augment == "orientation":
        angle = angle + 0.5 * math.pi * torch.randint(4, (n,), generator=generator)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cos * sign, -sin, shift[:, 0]], 1), torch.stack([sin * sign, cos, shift[:, 1]], 1)
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


def fit_cnn(images: Images, y: np.ndarray, *, augment: str, seconds: float, seed: int) -> Network:
    """The usual small network (two pairs of 3 x 3 convolutions, pooling, 128 units, dropout) for a given time, then temperature scaling.

    The number of steps is the one that fits into the time, found from the first fifty; learning rate by the one-cycle rule.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    n_classes, (channels, height, width) = int(y.max()) + 1, images.shape[1:]
    train, held_out = train_test_split(np.arange(len(y)), test_size=_VALIDATION, stratify=y, random_state=seed)
    x, target = torch.from_numpy(images[train]), torch.from_numpy(y[train]).long()
    mean, scale = x.mean((0, 2, 3))[:, None, None], x.std((0, 2, 3))[:, None, None]
    conv = lambda n_in, n_out: (nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU())
    flat = 64 * (height // 4) * (width // 4)
    body = nn.Sequential(
        _Scaled(mean, scale),
        *(*conv(channels, 32), *conv(32, 32), nn.MaxPool2d(2), *conv(32, 64), *conv(64, 64), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(flat, 128), nn.ReLU()),
    )
    head = nn.Linear(128, n_classes)
    model = nn.Sequential(body, nn.Dropout(0.5), head).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)

    def step() -> None:
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        batch = varied(x[rows], augment, generator).contiguous(memory_format=torch.channels_last)
        loss = cross_entropy(model(batch), target[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    start = time.perf_counter()
    for _ in range(50):
        step()
    n_steps = max(50, int(0.97 * seconds / ((time.perf_counter() - start) / 50)) - 50)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, n_steps)
    for _ in range(n_steps):
        step()
        schedule.step()
    model.eval()
    network = Network(body, head, 1.0)
    logits = network.logits(images[held_out]).astype(np.float64)
    loss = lambda t: -log_softmax(np.exp(t) * logits, axis=1)[np.arange(len(held_out)), y[held_out]].mean()
    network.temperature = float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
    return network


class _Scaled(nn.Module):
    def __init__(self, mean: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale.clamp_min(1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.scale


def on_components(name: str, seed: int) -> Pipeline:
    """Logistic regression, nearest neighbours or a support vector machine on principal components of the pixels."""
    made: dict[str, Callable[[], Any]] = {
        "lr": lambda: LogisticRegression(max_iter=500),
        "knn": lambda: KNeighborsClassifier(5),
        "svm": lambda: SVC(C=10, gamma="scale", probability=False),
    }
    return make_pipeline(PCA(N_COMPONENTS, random_state=seed, svd_solver="randomized"), made[name]())


def fit_on_components(name: str, images: Images, y: np.ndarray, *, seed: int) -> Callable[[Images], np.ndarray]:
    """A fitted pipeline as a function from images to probabilities; the machine's margins are calibrated on held-out images."""
    flat = lambda part: part.reshape(len(part), -1)
    if name != "svm":
        model = on_components(name, seed).fit(flat(images), y)
        return lambda part: model.predict_proba(flat(part))
    train, held_out = train_test_split(np.arange(len(y)), test_size=_VALIDATION, stratify=y, random_state=seed)
    model = on_components(name, seed).fit(flat(images[train]), y[train])
    margins = lambda part: model.decision_function(flat(part)).reshape(len(part), -1)
    calibrated = LogisticRegression(max_iter=1000).fit(margins(images[held_out]), y[held_out])
    return lambda part: calibrated.predict_proba(margins(part))
