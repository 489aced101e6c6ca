"""Training of the residual denoiser on Lightning: hybrid objective, moving-average weights, early stopping, resume."""

from __future__ import annotations

import copy
import json
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.direct import DirectPosterior
from scscore.core.dissipation import dissipation_increment
from scscore.core.likelihood import log_likelihood
from scscore.core.trajectories import NoiseStream, noising_trajectory

_FINISHED = "finished.json"


@dataclass(frozen=True)
class TrainingConfig:
    """How the residual is trained.

    Attributes
    ----------
    discriminative_weight
        Weight of the cross-entropy of the class posterior beside the dissipation of the true class. Zero is purely
        generative training.
    n_jumps
        Jumps of a training trajectory.
    batch_size
        Cells per step.
    learning_rate, weight_decay
        Of AdamW.
    average_decay
        Decay of the moving average of the weights; the average is the model that is used.
    max_steps
        Upper bound on the number of steps.
    check_every
        Steps between two checks.
    patience
        Checks without improvement before a run with validation cells stops.
    """

    discriminative_weight: float = 1.0
    n_jumps: int = 4
    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    average_decay: float = 0.99
    max_steps: int = 3000
    check_every: int = 25
    patience: int = 5


@dataclass
class TrainingResult:
    """Course of one training run.

    Attributes
    ----------
    steps
        Steps made at every check; the first check is before training, where the model is the reference.
    training_loss
        Mean loss between the checks; NaN for the first.
    validation_loss
        Negative log posterior (nats per cell) of the validation cells at every check, with a single class their negative
        log density; empty without them.
    log_likelihood
        Log-likelihoods of the validation cells at every check, each ``(n, n_classes)``, nats.
    """

    steps: list[int] = field(default_factory=list)
    training_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    log_likelihood: list[Tensor] = field(default_factory=list)


def train(
    model: ConditionalDiffusion | DirectPosterior,
    z: Tensor,
    y: Tensor,
    log_prior: Tensor,
    config: TrainingConfig,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    to_bins: Tensor | None = None,
    n_steps: int = 4,
    n_paths: int = 8,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: str = "auto",
    checkpoint_dir: Path | None = None,
    progress: bool = True,
    description: str = "fit",
) -> TrainingResult:
    """Train the denoiser of `model` in place; it ends with the moving-average weights, in evaluation mode.

    Every random number is a function of `seed` and the step, so that a run resumed from its checkpoint ends with the
    same weights as one that was never interrupted.

    Parameters
    ----------
    model
        Model with a denoiser.
    z, y
        Whitened points, float32 ``(n, n_features)``, and class indices ``(n,)`` or weights of the classes ``(n, n_classes)``.
    log_prior
        Log class prior of the training cells, nats, ``(n_classes,)``.
    config
        Hyper-parameters.
    validation
        Points and labels of cells to watch, for early stopping. Without them all ``config.max_steps`` are made.
    to_bins
        Linear map ``(n_classes, n_bins)`` of log-likelihoods, where the labels and the prior are over bins; ``None``: they are over classes.
    n_steps, n_paths
        Sampling effort for the log-likelihoods of the validation cells.
    seed
        Seed of batches and noise.
    accelerator, devices, strategy
        Passed to :class:`lightning.pytorch.Trainer`.
    checkpoint_dir
        Where to write a checkpoint at every check; an existing one is resumed.
    progress
        Show a progress bar.
    description
        Label of the progress bar.
    """
    if checkpoint_dir is not None and (checkpoint_dir / _FINISHED).exists():
        return _read_finished(checkpoint_dir, model)
    task = _DenoiserTask(
        model, z, y, log_prior, config, validation=validation, to_bins=to_bins, effort=(n_steps, n_paths), seed=seed
    )
    callbacks: list[Callback] = [_Checks(config, progress=progress, description=description)]
    if checkpoint_dir is not None:
        callbacks.append(
            ModelCheckpoint(
                dirpath=checkpoint_dir,
                filename="last",
                every_n_train_steps=config.check_every,
                enable_version_counter=False,
            )
        )
    run(
        task,
        config.max_steps,
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
    )
    model.denoiser.load_state_dict(task.average.state_dict())  # type: ignore[union-attr]
    model.cpu().eval()
    if checkpoint_dir is not None:
        _write_finished(checkpoint_dir, model, task.result)
    return task.result


def run(
    task: pl.LightningModule,
    n_steps: int,
    *,
    callbacks: list[Callback],
    checkpoint_dir: Path | None = None,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: str = "auto",
) -> None:
    """Make the training steps of a task that draws its own batches; resumed where the directory holds its checkpoint.

    Parameters
    ----------
    task
        The task; every step gets its number.
    n_steps
        Upper bound on the number of steps.
    callbacks
        Called as Lightning does.
    checkpoint_dir
        Where ``last.ckpt`` may be.
    accelerator, devices, strategy
        Passed to :class:`lightning.pytorch.Trainer`.
    """
    last = None if checkpoint_dir is None else checkpoint_dir / "last.ckpt"
    with _quiet_lightning():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            max_steps=n_steps,
            max_epochs=-1,
            callbacks=callbacks,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=checkpoint_dir is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        steps = torch.utils.data.DataLoader(range(n_steps))  # type: ignore[arg-type,var-annotated]
        try:
            trainer.fit(task, steps, ckpt_path=last if last is not None and last.exists() else None, weights_only=True)
        except SystemExit:  # how Lightning ends on Ctrl-C
            if not trainer.interrupted:
                raise
            raise KeyboardInterrupt from None


def _write_finished(directory: Path, model: ConditionalDiffusion | DirectPosterior, result: TrainingResult) -> None:
    tensors = {f"denoiser.{name}": value for name, value in model.denoiser.state_dict().items()}  # type: ignore[union-attr]
    if result.log_likelihood:
        tensors["log_likelihood"] = torch.stack(result.log_likelihood)
    directory.mkdir(parents=True, exist_ok=True)  # a run that is shorter than the first check has written nothing yet
    save_file(tensors, directory / "finished.safetensors")
    curves = {"steps": result.steps, "training_loss": result.training_loss, "validation_loss": result.validation_loss}
    (directory / _FINISHED).write_text(json.dumps(curves))


def _read_finished(directory: Path, model: ConditionalDiffusion | DirectPosterior) -> TrainingResult:
    """The result of a run that a checkpoint directory holds complete."""
    tensors = load_file(directory / "finished.safetensors")
    log_likelihood = list(tensors.pop("log_likelihood", torch.empty(0)))
    model.denoiser.load_state_dict({k.removeprefix("denoiser."): v for k, v in tensors.items()})  # type: ignore[union-attr]
    model.eval()
    return TrainingResult(**json.loads((directory / _FINISHED).read_text()), log_likelihood=log_likelihood)


def check_trainer(accelerator: str, devices: int | str | list[int], strategy: str) -> None:
    """Raise ValueError unless Lightning can train with these settings on this machine."""
    try:
        with _quiet_lightning():
            pl.Trainer(
                accelerator=accelerator,
                devices=devices,
                strategy=strategy,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Training is not possible with accelerator={accelerator!r}, devices={devices!r}, strategy={strategy!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error


class _DenoiserTask(pl.LightningModule):
    """Loss, optimiser, moving average and checks of one run."""

    z: Tensor
    y: Tensor
    prior: Tensor
    reference: Tensor
    to_bins: Tensor | None

    def __init__(
        self,
        model: ConditionalDiffusion | DirectPosterior,
        z: Tensor,
        y: Tensor,
        log_prior: Tensor,
        config: TrainingConfig,
        *,
        validation: tuple[Tensor, Tensor] | None,
        to_bins: Tensor | None,
        effort: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__()
        if model.denoiser is None:
            raise ValueError("The model has no denoiser to train.")
        self.model = model
        self.average = copy.deepcopy(model.denoiser).requires_grad_(False).eval()
        self.config = config
        self.seed = seed
        self.validation, self.effort = validation, effort
        self.result = TrainingResult()
        self.running: list[Tensor] = []
        reference = (
            z.new_zeros(len(z), model.n_classes)
            if isinstance(model, DirectPosterior)
            else model.reference.log_prob(z).to(z.dtype)
        )
        data = {"z": z, "y": y, "prior": log_prior, "reference": reference, "to_bins": to_bins}
        for name, value in data.items():
            self.register_buffer(name, value, persistent=False)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        seed = self._seed_of_step()
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(self.z), (self.config.batch_size,), generator=generator).to(self.device)
        cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            (torch.cuda.manual_seed if cuda else torch.default_generator.manual_seed)(seed)  # for dropout
            ratio = self._log_ratio(self.z[rows], generator)
        y, ratio = self.y[rows], self._at_bins(ratio)
        loss = cross_entropy(self._at_bins(self.reference[rows]) + ratio + self.prior, y)
        if isinstance(self.model, ConditionalDiffusion):
            own = (ratio * y).sum(1) if y.ndim == 2 else ratio.gather(1, y[:, None])
            loss = -own.mean() / self.model.n_features + self.config.discriminative_weight * loss
        self.running.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.model.denoiser.parameters(),  # type: ignore[union-attr]
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average of the weights towards the weights."""
        decay = min(self.config.average_decay, (1 + self.global_step) / (10 + self.global_step))
        current = self.model.denoiser.parameters()  # type: ignore[union-attr]
        for average, value in zip(self.average.parameters(), current, strict=True):
            average.lerp_(value, 1 - decay)

    def check(self) -> bool:
        """Record the losses; True when training should stop."""
        result = self.result
        result.steps.append(self.global_step)
        result.training_loss.append(float(torch.stack(self.running).mean()) if self.running else float("nan"))
        self.running.clear()
        if self.validation is None:
            return False
        z, y = (value.to(self.device) for value in self.validation)
        found = self._validation_log_likelihood(z)
        result.log_likelihood.append(found.cpu())
        # a single class has no posterior to judge: its density itself is the criterion
        loss = cross_entropy(self._at_bins(found) + self.prior, y) if self.model.n_classes > 1 else -found.mean()
        result.validation_loss.append(float(loss))
        best = min(range(len(result.steps)), key=result.validation_loss.__getitem__)
        return len(result.steps) - 1 - best >= self.config.patience

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["result"] = vars(self.result)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.result = TrainingResult(**checkpoint["result"])

    def _at_bins(self, log_likelihood: Tensor) -> Tensor:
        return log_likelihood if self.to_bins is None else log_likelihood @ self.to_bins.to(log_likelihood)

    def _log_ratio(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Path log-ratio of model and reference, nats ``(n, n_classes)``: all jumps of all cells in one network pass."""
        if isinstance(self.model, DirectPosterior):
            return self.model.log_ratio(z)
        jumps, schedule = self.config.n_jumps, self.model.schedule
        width = (schedule.lam_max - schedule.lam_min) / jumps
        shift = torch.rand(1, generator=generator) - 0.5
        lam = (schedule.lam_max - width * (torch.arange(jumps + 1) + shift)).to(z)[:, None, None]
        eta = torch.randn(jumps + 1, *z.shape, generator=generator).to(z)
        path = torch.stack(list(noising_trajectory(z, lam, eta.__getitem__)))
        return dissipation_increment(self.model, path[:-1], path[1:], lam[:-1], lam[1:]).sum(0)

    @torch.inference_mode()
    def _validation_log_likelihood(self, z: Tensor) -> Tensor:
        model: ConditionalDiffusion | DirectPosterior = DirectPosterior(self.average)
        if isinstance(self.model, ConditionalDiffusion):
            model = ConditionalDiffusion(self.model.schedule, self.model.reference, self.average)
        n_steps, n_paths = self.effort
        noise, size = NoiseStream(self.seed), 1024
        parts = [
            log_likelihood(model, z[i : i + size], noise=noise, n_steps=n_steps, n_paths=n_paths, start=i).mean
            for i in range(0, len(z), size)
        ]
        return torch.cat(parts)

    def _seed_of_step(self) -> int:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self._trainer is not None else (0, 1)
        return (self.seed * 1_000_003 + self.global_step * world + rank) % 2**63


class _Checks(Callback):  # Lightning's types know nothing of the module's own methods: pl_module is Any
    """Validation checks, early stopping and the progress bar."""

    def __init__(self, config: TrainingConfig, *, progress: bool, description: str) -> None:
        self.config = config
        self.bar = tqdm(total=config.max_steps, desc=description, unit="step", disable=not progress, leave=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.bar.update(trainer.global_step - self.bar.n)
        if trainer.global_step == 0:
            pl_module.check()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        pl_module.update_average()  # here, because checkpoints are written before the hook of the module
        self.bar.update(1)
        if trainer.global_step % self.config.check_every and trainer.global_step < self.config.max_steps:
            return
        if pl_module.check():
            trainer.should_stop = True
        result = pl_module.result
        if result.validation_loss:
            self.bar.set_postfix_str(f"validation NLL {result.validation_loss[-1]:.3f}")

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.bar.close()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's start-up chatter off for the duration of a fit; signals and global random state as before after it."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("ignore", module=r"lightning(\..*)?")
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Lightning leaves it ignored after Ctrl-C
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
