"""The trained model as users hold it: encoder, whitening, conditional diffusion, calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scscore.core.calibration import Calibration, log_posterior
from scscore.core.covariates import CellCovariates, CovariateShift
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.direct import DirectPosterior
from scscore.core.held_out import HeldOut, HeldOutValues
from scscore.core.likelihood import Estimator, LogLikelihood, log_likelihood
from scscore.core.prior import Prior, resolve_prior
from scscore.core.reference_fit import Whitening
from scscore.core.stopping import Stopping
from scscore.core.target import TargetGrid
from scscore.core.trajectories import NoiseStream
from scscore.io.conv_network import ConvNetwork
from scscore.io.image_encoder import ImageEncoder
from scscore.io.model_files import Tensors, model_hash, read_model, write_model
from scscore.io.model_state import model_metadata, model_parts, model_tensors
from scscore.io.representation import Representation


class ScoreModel:
    """A trained conditional diffusion model: made by :func:`scscore.tl.fit`, used by every other ``tl`` function.

    Attributes
    ----------
    classes
        Names of the classes, ``(n_classes,)``; the order of all likelihood and posterior columns.
    class_counts
        Training cells of every class, ``(n_classes,)``; of a bin, the sum of its weights.
    representation
        Encoder from an AnnData to points.
    whitening
        From points to the pooled-whitened space of the engine.
    engine
        The conditional diffusion model, or its twin without a density.
    calibration
        Temperature of the posterior.
    held_out
        Log-likelihoods of labelled cells outside the training cells, for prediction sets and typicality; ``None`` where there are
        none (exact models before :func:`scscore.tl.calibrate`, densities without classes).
    held_out_values
        The same with a continuous target.
    covariates
        Shifts by batches, donors, doses or other covariates; ``None`` without.
    target
        Bins of a continuous target, which take the place of the classes; ``None`` for classes.
    params
        Arguments and choices of the fit, what JSON can hold.
    """

    def __init__(
        self,
        *,
        classes: NDArray[np.str_],
        class_counts: NDArray[Any],
        representation: Representation,
        whitening: Whitening,
        engine: ConditionalDiffusion | DirectPosterior,
        calibration: Calibration,
        params: dict[str, Any],
        held_out: HeldOut | None = None,
        held_out_values: HeldOutValues | None = None,
        covariates: CovariateShift | None = None,
        target: TargetGrid | None = None,
    ) -> None:
        self.classes = classes
        self.class_counts = class_counts
        self.representation = representation
        self.whitening = whitening
        self.engine = engine.eval()
        self.calibration = calibration
        self.held_out = held_out
        self.held_out_values = held_out_values
        self.covariates = covariates
        self.target = target
        self.params = params

    def __repr__(self) -> str:
        cells = f"{self.class_counts.sum()} cells"
        if self.params["condition"] is None:
            return f"ScoreModel of one density: {cells}"
        if self.target is not None:
            return f"ScoreModel of the continuous {self.params['condition']!r}: {self._range(self.target)}"
        return f"ScoreModel of {self.params['condition']!r}: {len(self.classes)} classes, {cells}"

    @property
    def diffusion(self) -> ConditionalDiffusion:
        """The conditional diffusion model.

        Raises
        ------
        ValueError
            The model was fitted with ``objective="direct"`` and holds no density.
        """
        if isinstance(self.engine, DirectPosterior):
            raise ValueError(
                "model holds no density of cells (fitted with objective='direct'); fit it with objective='hybrid'."
            )
        return self.engine

    @diffusion.setter
    def diffusion(self, diffusion: ConditionalDiffusion) -> None:
        self.engine = diffusion

    @property
    def genes(self) -> NDArray[np.str_] | None:
        """Names of the genes (or pixels) that the encoder reads, or ``None`` for a model of a stored representation."""
        return getattr(self.representation, "genes", None)

    @property
    def hash(self) -> str:
        """SHA-256 of tensors and metadata."""
        return model_hash(*self._state())

    def summary(self) -> str:
        """What the model is and what was chosen for it, as text of a few lines."""
        space = self.representation.summary()
        if "reference" not in self.params:
            return f"{self!r}\n  representation  {space}\n  exact: a Gaussian mixture per class, nothing was trained"
        choice = self.params["reference"]
        space += f"; {choice['n_features']} of {self.representation.n_features} features used"
        loss = "energy" if self.params["condition"] is None else "NLL"
        best = self.params.get("validation_nll_diffusion", self.params["validation_nll"])
        trained = (
            f"  residual        {self.params['n_steps_trained']} steps, validation {loss} {best:.3f} nats "
            f"({self.params['validation_nll_reference']:.3f} without it)"
        )
        if self.target is not None:
            held_out = 0 if self.held_out_values is None else len(self.held_out_values.y)
            reference = f"cross-validated R2 {choice['accuracy']:.3f}"
            classes = [f"  target          {self.params['condition']}, {self._range(self.target)}"]
            trained = (
                f"  network         {self.params['n_steps_trained']} steps, validation R2 {self.params['validation_accuracy']:.3f}, "
                f"negative log density {self.params['validation_nll']:.3f} nats"
            )
            if (readout := self.params.get("readout")) is not None:
                trained += (
                    f"\n  readout         pooled with networks of the target, weights {readout['of_diffusion']:.2f} and {readout['of_network']:.2f}, "
                    f"{readout['n_steps']} steps"
                )
            temperature = [
                f"  temperature     {self.calibration.temperature:.2f}",
                f"  held-out cells  {held_out}, for intervals and typicality",
            ]
        elif self.params["condition"] is None:
            classes = []
            reference = f"{choice['n_components']} Gaussians, cross-validated energy {choice['nll']:.3f} nats per cell"
            temperature = []
        else:
            order = np.argsort(-self.class_counts)
            shown = ", ".join(f"{self.classes[i]} ({self.class_counts[i]})" for i in order[:8])
            more = f", ... {len(order) - 8} more" if len(order) > 8 else ""
            classes = [f"  classes         {shown}{more}"]
            reference = (
                f"{choice['class_covariance']:.0%} class-specific covariance, "
                f"cross-validated NLL {choice['nll']:.3f} nats, accuracy {choice['accuracy']:.3f}"
            )
            temperature = [f"  temperature     {self.calibration.temperature:.2f}"]
            if (readout := self.params.get("readout")) is not None:
                of_genes = f", {weight:.2f} (genes)" if (weight := readout.get("of_scores")) else ""
                trained += (
                    f"\n  readout         pooled with {'linear classifiers' if of_genes else 'a linear classifier'}, "
                    f"weights {readout['of_diffusion']:.2f} (density), {readout['of_classifier']:.2f} (features){of_genes}, "
                    f"validation NLL {self.params['validation_nll']:.3f} nats"
                )
            if self.held_out is not None:
                temperature.append(f"  held-out cells  {len(self.held_out.y)}, for prediction sets and typicality")
        return "\n".join(
            [
                repr(self),
                *classes,
                f"  representation  {space}",
                f"  reference       {reference}",
                *self._covariates(),
                trained,
                *self._levels(),
                *temperature,
                *self._adapted(),
            ]
        )

    def _range(self, target: TargetGrid) -> str:
        n_cells = round(self.class_counts.sum())
        return f"{target.edges[0]:.3g} to {target.edges[-1]:.3g} in {target.n_bins} bins, {n_cells} cells"

    def _covariates(self) -> list[str]:
        if (found := self.covariates) is None or not found.names:
            return []
        names = [", ".join(found.columns) + f" ({len(found.levels)} levels)"] if found.columns else []
        return [f"  covariates      {', '.join([*names, *(f'{name} (slope)' for name in found.numeric)])}"]

    def _adapted(self) -> list[str]:
        if not (shifts := self.params.get("adapted", {}).get("shifts")):
            return []
        key, moved = self.params["adapted"]["batch_key"], f"{min(shifts.values()):.2f} to {max(shifts.values()):.2f}"
        batches = "one batch" if key is None else f"{len(shifts)} batches of {key!r}"
        return [f"  adapted         to {batches}, moved by {moved} standard deviations"]

    def _levels(self) -> list[str]:
        if isinstance(self.engine, DirectPosterior):
            return []
        schedule = self.engine.schedule
        return [
            f"  noise levels    {self.calibration.n_steps} jumps between log SNR {schedule.lam_max:.1f} and "
            f"{schedule.lam_min:.1f}"
        ]

    def log_prior(self, prior: Prior | None = None) -> NDArray[np.float64]:
        """Log class prior, nats, ``(n_classes,)``.

        Parameters
        ----------
        prior
            ``"train"`` (frequencies of the training cells), ``"uniform"``, a mapping (or Series) from class name to weight, or
            an array in the order of `classes`; normalised to sum to one. ``None``: the prior given to :func:`scscore.tl.fit`.

        Raises
        ------
        ValueError
            Unknown name, wrong shape, negative, NaN, or all-zero weights, unknown classes.
        """
        prior = self.params["prior"] if prior is None else prior
        if self.target is not None and isinstance(prior, str) and prior == "uniform":
            prior = self.target.widths  # every value alike, not every bin
        return resolve_prior(prior, self.classes, self.class_counts)

    def encode(self, adata: AnnData, *, layer: str | None = None) -> torch.Tensor:
        """Cells as points of the engine's whitened space, float32 ``(n_obs, n_features)``.

        The shift of a cell's covariates is taken out where it is known.
        """
        x = self.representation.transform(adata, layer=layer)
        return self.whitening(torch.from_numpy(self.without_covariates(x, self.covariates_of(adata))))

    def in_engine(self, x: NDArray[np.float64]) -> torch.Tensor:
        """Points of the representation in the engine's whitened space, float32, with class scores behind the features if it has any."""
        return self.whitening.with_scores(x, self.representation.n_scores)

    def covariates_of(self, adata: AnnData) -> CellCovariates:
        """Covariates of every cell; unknown where the model has none."""
        if self.covariates is None:
            return CellCovariates(np.full(adata.n_obs, -1), np.empty((adata.n_obs, 0)))
        return self.covariates.of_cells(adata.obs)

    def without_covariates(self, x: NDArray[np.float64], cells: CellCovariates) -> NDArray[np.float64]:
        """Points of the representation without what is known of the shift by their covariates."""
        return x if self.covariates is None else x - self.covariates.of(cells)

    def log_likelihood(self, adata: AnnData, **options: Any) -> Iterator[tuple[slice, LogLikelihood]]:
        """Log p(x given class) by the mean of all networks; arguments as in :meth:`log_likelihoods`.

        Yields
        ------
        Rows, and their estimates.
        """
        for rows, (found,) in self.log_likelihoods(adata, [self.engine], **options):
            yield rows, found

    def log_likelihoods(
        self,
        adata: AnnData,
        engines: Sequence[ConditionalDiffusion | DirectPosterior],
        *,
        layer: str | None,
        n_steps: int,
        n_paths: int,
        seed: int,
        batch_size: int,
        estimator: Estimator = "dissipation",
        stopping: Stopping | None = None,
        device: str = "cpu",
        progress: bool = False,
        description: str = "classify",
    ) -> Iterator[tuple[slice, list[LogLikelihood]]]:
        """Log p(x given class) in the model's representation, chunk by chunk: cells are read, encoded and let go.

        Parameters
        ----------
        adata, layer
            Cells, and the layer with their values (``None`` is ``X``).
        engines
            The engine of the model, or some of :meth:`members`.
        n_steps, n_paths, estimator, stopping
            See :func:`scscore.core.likelihood.log_likelihood`.
        seed
            Seed of the noise; every cell has its own noise, whatever the batch size.
        batch_size
            Cells per chunk.
        device
            Torch device.
        progress, description
            Show a progress bar, and its label.

        Yields
        ------
        Rows, and their estimates by every engine.
        """
        for engine in engines:
            engine.to(device)
        direct = isinstance(self.engine, DirectPosterior)
        noise, volume = NoiseStream(seed), 0.0 if direct else self.whitening.log_abs_det
        covariates = self.covariates_of(adata)
        effort: dict[str, Any] = {"estimator": estimator, "n_steps": n_steps, "n_paths": n_paths, "stopping": stopping}

        def estimate(engine: ConditionalDiffusion | DirectPosterior, z: torch.Tensor, rows: slice) -> LogLikelihood:
            def at(points: torch.Tensor) -> LogLikelihood:
                return log_likelihood(engine, points, noise=noise, start=rows.start, **effort)

            found = at(z)
            possible = [] if self.covariates is None else self.covariates.alternatives(covariates.rows(rows))
            for unknown, log_weights, shifts in possible:
                parts = [at(z - self._whitened_shift(shift).to(z)) for shift in shifts]
                found = found.replaced(LogLikelihood.mixture(parts, log_weights), unknown)
            found = found.shifted(volume)
            return found if self.target is None else found.mapped(self.target.to_bins)

        for rows, z in self.points(
            adata, layer=layer, batch_size=batch_size, device=device, progress=progress, description=description
        ):
            # the flow differentiates, which inference mode does not allow
            with torch.no_grad() if estimator == "flow" else torch.inference_mode():
                found = [estimate(engine, z, rows) for engine in engines]
            yield rows, found

    def log_posterior(
        self, z: torch.Tensor, noise: NoiseStream, *, start: int, n_steps: int | None = None
    ) -> NDArray[np.float64]:
        """Calibrated log posterior of points of the engine's space, under the prior of the model.

        Parameters
        ----------
        z
            Points, ``(n, n_features)``.
        noise, start
            Source of the noise, and position of the first point in the whole data set.
        n_steps
            Jumps per trajectory; ``None``: those of the calibration.

        Returns
        -------
        Nats, ``(n, n_classes)``.
        """
        calibration = self.calibration
        n_steps = n_steps or calibration.n_steps
        found = log_likelihood(
            self.diffusion, z, noise=noise, n_steps=n_steps, n_paths=calibration.n_paths, start=start
        )
        log_weights = calibration.log_weights(self.log_prior())
        return log_posterior(found.mean.cpu().numpy(), log_weights, calibration.temperature)

    def members(self) -> list[ConditionalDiffusion | DirectPosterior]:
        """Every network of the model in an engine of its own (``n_members`` of :func:`scscore.tl.fit`)."""
        return list(self.engine.members())

    def _whitened_shift(self, shift: NDArray[np.float64]) -> torch.Tensor:
        """A shift of the representation ``(n, ...)`` in the engine's space, ``(n, n_features + n_scores)``."""
        whole = torch.from_numpy(shift)
        used, scores = whole[:, : len(self.whitening.center)], whole[:, self.representation.n_features :]
        return torch.cat([used @ self.whitening.matrix, scores], dim=1)

    def points(
        self,
        adata: AnnData,
        *,
        layer: str | None,
        batch_size: int,
        device: str = "cpu",
        progress: bool = False,
        description: str = "encode",
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Cells as points of the engine's whitened space, chunk by chunk, on `device`, where the engine is put, too.

        The shift of a cell's covariates is taken out where it is known.

        Yields
        ------
        Rows, and their points, float32 ``(n, n_features)``, with class scores behind the features if the representation has any.
        """
        self.engine.to(device)
        covariates = self.covariates_of(adata)
        with tqdm(total=adata.n_obs, desc=description, unit="cell", disable=not progress) as bar:
            for start, x in self.representation.chunks(adata, layer=layer, size=batch_size):
                rows = slice(start, start + len(x))
                z = self.in_engine(self.without_covariates(x, covariates.rows(rows))).to(device)
                yield rows, z
                bar.update(len(z))

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to a directory: ``model.safetensors`` and ``model.json``, without training data.

        Raises
        ------
        FileExistsError
            A model is there already and `overwrite` is false.
        ValueError
            The encoder is a function or a network of the user, which a file without code cannot hold.
        """
        if isinstance(self.representation, ImageEncoder) and not isinstance(self.representation.network, ConvNetwork):
            raise ValueError(
                "a model with an encoder of the user cannot be saved: store what it makes of the images in obsm, and fit with use_rep=."
            )
        write_model(Path(directory), *self._state(), overwrite=overwrite)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read a model written by :meth:`save`; see :func:`scscore.load`."""
        return cls(**model_parts(*read_model(Path(directory))))

    def _state(self) -> tuple[Tensors, dict[str, Any]]:
        return model_tensors(self), model_metadata(self)


def load(directory: str | Path) -> ScoreModel:
    """Load a model written by :meth:`ScoreModel.save`.

    Parameters
    ----------
    directory
        The model directory.

    Raises
    ------
    scscore.ModelFileError
        A file is missing, damaged, edited or written by a newer version; names the file and the tensor.

    Examples
    --------
    >>> import scscore as scs
    >>> model = scs.load("pbmc.scscore")  # doctest: +SKIP
    """
    return ScoreModel.load(directory)
