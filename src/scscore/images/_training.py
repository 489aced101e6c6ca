r"""A small convolutional encoder, trained so that the classes are Gaussian in its space.

The closed-form reference of the engine is a mixture of Gaussians. The encoder :math:`h` is trained with the posterior that the simplest such
reference gives, one Gaussian of unit variance around a learned mean per class, and with its likelihood,

.. math:: -\log \frac{\pi_y e^{-|h - \mu_y|^2 / 2}}{\sum_c \pi_c e^{-|h - \mu_c|^2 / 2}} + \frac{w}{2} |h - \mu_y|^2

(Wan et al., CVPR 2018), so that reference and denoiser have little left to correct.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from scscore.core.training import run
from scscore.images._conv import Conv
from scscore.images._varied import varied
from scscore.io.conv_network import ConvNetwork

_LIKELIHOOD_WEIGHT = 0.1
_BATCH, _LEARNING_RATE, _WEIGHT_DECAY = 128, 3e-3, 5e-2
_PASSES, _STEPS = 60, (300, 2000)
_WARM_UP = 0.2
_REFIT = 0.25  # of the steps, and of the learning rate, when training goes on with all images
_FOR_MEANS = 256
_LEAST_SCALE = 0.02


def fit_network(
    images: NDArray[np.float32],
    y: NDArray[np.integer],
    settings: Conv,
    *,
    start: ConvNetwork | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
    description: str = "fit: encoder",
    **trainer: Any,
) -> ConvNetwork:
    """Train the encoder on labelled images.

    Parameters
    ----------
    images
        Intensities, ``(n, n_channels, height, width)``.
    y
        Class indices, ``(n,)``.
    settings
        How.
    start
        A trained network with which to go on, for a quarter of the steps.
    seed
        Of weights, batches and variations.
    checkpoint
        File for the result; if it exists, it is read instead.
    progress, description
        Show a progress bar, and its label.
    **trainer
        `accelerator`, `devices` and `strategy` of :class:`lightning.pytorch.Trainer`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConvNetwork(images.shape[1:], settings.n_features)
        task = _EncoderTask(network, images, y, settings, refit=start is not None, seed=seed)
    if start is not None:
        network.load_state_dict(start.state_dict())
        task.means.data = _class_means(start, images, y)
    if checkpoint is not None and checkpoint.exists():
        network.load_state_dict(load_file(checkpoint))
        return network.eval()
    run(task, task.n_steps, callbacks=[_Progress(task.n_steps, progress=progress, description=description)], **trainer)
    if checkpoint is not None:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, checkpoint)
    return network.cpu().eval()


class _EncoderTask(pl.LightningModule):
    """Loss, optimiser and variations of the images."""

    log_prior: Tensor

    def __init__(
        self,
        network: ConvNetwork,
        images: NDArray[np.float32],
        y: NDArray[np.integer],
        settings: Conv,
        *,
        refit: bool,
        seed: int,
    ) -> None:
        super().__init__()
        share = _REFIT if refit else 1.0
        n_steps = settings.n_steps or int(np.clip(_PASSES * len(images) / _BATCH, *_STEPS))
        self.n_steps, self.learning_rate = math.ceil(share * n_steps), share * _LEARNING_RATE
        self.network, self.augment, self.seed = network, settings.augment, seed
        self.images, self.y = torch.from_numpy(images), torch.from_numpy(np.asarray(y, dtype=np.int64))
        counts = np.bincount(y)
        self.register_buffer("log_prior", torch.from_numpy(np.log(counts / counts.sum())).float(), persistent=False)
        self.means = torch.nn.Parameter(0.5 * torch.randn(len(counts), settings.n_features))
        network.mean.copy_(self.images.mean((0, 2, 3))[:, None, None])
        scale = self.images.std((0, 2, 3))  # a channel without content, such as opacity, must not outweigh the others
        scale = torch.where(scale < _LEAST_SCALE * scale.max(), scale.max(), scale).clamp_min(1e-6)
        network.scale.copy_(scale[:, None, None])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        step = self.global_step * self.trainer.world_size + self.trainer.global_rank
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = torch.randint(len(self.images), (_BATCH,), generator=generator)
        images, y = self.images[rows].to(self.device), self.y[rows].to(self.device)
        points = self.network(varied(images, self.augment, generator))
        square = 0.5 * torch.cdist(points, self.means).square()
        own = square.gather(1, y[:, None]).mean()
        return cross_entropy(self.log_prior - square, y) + _LIKELIHOOD_WEIGHT * own

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True)
        warm_up = _WARM_UP * self.n_steps

        def share(step: int) -> float:
            return min((step + 1) / max(warm_up, 1), 0.5 * (1 + math.cos(math.pi * step / self.n_steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _class_means(network: ConvNetwork, images: NDArray[np.float32], y: NDArray[np.integer]) -> Tensor:
    """Mean point of every class over a part of its images, ``(n_classes, n_features)``."""
    rows = [np.flatnonzero(y == label)[:_FOR_MEANS] for label in range(int(y.max()) + 1)]
    with torch.no_grad():
        return torch.stack([network(torch.from_numpy(images[some])).mean(0) for some in rows])


class _Progress(Callback):
    """A progress bar of training steps."""

    def __init__(self, n_steps: int, *, progress: bool, description: str) -> None:
        self.bar = tqdm(total=n_steps, desc=description, unit="step", disable=not progress, leave=True)

    def on_train_batch_end(self, *args: Any) -> None:
        self.bar.update(1)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.bar.close()
