"""Splits the evidence of cells into genes: what ``tl.attribute`` and ``tl.attribution_test`` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scscore.core.attribution import Contrast, Encoded, ValueContrast, dissipation_parts
from scscore.core.attribution import attribute as attribute_points
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.trajectories import NoiseStream
from scscore.io.gene_space import EncodedGenes, GeneChunk, Genes, LinearGenes, Map
from scscore.io.image_encoder import ImageEncoder
from scscore.io.representation import PCAEncoder
from scscore.model import ScoreModel

Method = Literal["integrated_gradients", "dissipation"]


class GeneEvidence(NamedTuple):
    """Attributions of a chunk: nats per gene, expression above the baseline ``(n, n_vars)``, evidence, its change from the baseline ``(n,)``."""

    parts: NDArray[np.float64]
    above: NDArray[np.float64]
    evidence: NDArray[np.float64]
    change: NDArray[np.float64]

    @property
    def completeness(self) -> float:
        """Largest difference of the sum over genes from the change of the evidence, relative to the larger of one nat and this."""
        return float((abs(self.parts.sum(1) - self.change) / np.maximum(abs(self.change), 1)).max())


class EvidenceSplit:
    """Splits the evidence of cells into genes, chunk by chunk."""

    def __init__(self, model: ScoreModel, genes: Genes, method: Method, *, device: str, **effort: int) -> None:
        diffusion = model.diffusion.to(device)
        if model.target is not None:
            # the networks of its readout never saw a point between the training points: they split evidence by chance
            diffusion = diffusion.density
        self.model, self.genes, self.diffusion, self.device = model, genes, diffusion, device
        self.native, self.n_segments = method == "dissipation", effort.pop("n_segments")
        self.effort: dict[str, Any] = effort
        # what is integrated: the whole evidence, or the part of the closed-form reference and the readout
        self.integrated = diffusion
        if self.native:
            self.integrated = ConditionalDiffusion(diffusion.schedule, diffusion.reference, readout=diffusion.readout)
        if self.native and not isinstance(genes, LinearGenes):
            raise ValueError("method='dissipation' needs an encoder that is linear; use 'integrated_gradients'.")
        self.maps: list[torch.Tensor] = []
        if isinstance(genes, LinearGenes):  # loadings and dual of the engine's space
            matrix = model.whitening.matrix.numpy()
            loadings, dual = (value[:, : len(matrix)] for value in (genes.loadings, genes.dual))
            maps = loadings @ matrix, np.linalg.solve(matrix, dual.T).T
            self.maps = [torch.from_numpy(value).to(device) for value in maps]
            self.slopes = np.hstack([maps[0], genes.scores])  # of points and class scores, per unit of expression

    def __call__(
        self,
        chunk: GeneChunk,
        z: torch.Tensor,
        points: NDArray[np.float64],
        contrast: Contrast | ValueContrast,
        noise: NoiseStream,
        *,
        level: int | None = None,
    ) -> GeneEvidence:
        """Attributions of the cells of a chunk, with their points ``z`` of the engine and `points` of the representation; at a noise level."""
        d, whitening = self.diffusion.n_features, self.model.whitening
        effort: dict[str, Any] = {**self.effort, "noise": noise, "start": chunk.start}
        # of the covariates: the baseline shares it with its cell
        shift = torch.from_numpy(chunk.points - points)[:, :d]

        def expression(baseline: torch.Tensor) -> NDArray[np.float64]:
            return self.genes.expression((whitening.inverse(self.diffusion.own(baseline).cpu()) + shift).numpy())

        if not isinstance(self.genes, LinearGenes):
            return self._encoded(chunk, z, contrast, expression, shift, effort)

        def above_of(baseline: torch.Tensor) -> NDArray[np.float64]:
            above = chunk.expression - expression(baseline)
            above[:, ~linear.known] = 0
            return above

        def scores_from(baseline: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(above_of(baseline) @ linear.scores).to(z)

        z, linear = z[:, : d + self.diffusion.n_scores], self.genes
        found = attribute_points(
            self.integrated, z, contrast, n_segments=self.n_segments, level=level, scores_from=scores_from, **effort
        )
        gradient = found.gradient.mean(0).cpu().numpy()
        change, whole = (found.evidence - found.baseline).mean(0).cpu().numpy(), found.evidence.mean(0).cpu().numpy()
        above = above_of(z - found.displacement)
        parts = above * (gradient @ self.slopes[:, : z.shape[1]].T)
        if self.native:
            with torch.inference_mode():
                native = dissipation_parts(self.diffusion, z, contrast, *self.maps, **effort)
            of_genes, of_residual, whole = (value.cpu().numpy() for value in native)
            parts, change = parts + of_genes, change + of_residual
        return GeneEvidence(parts, above, whole, change)

    def _encoded(
        self,
        chunk: GeneChunk,
        z: torch.Tensor,
        contrast: Contrast | ValueContrast,
        expression: Callable[[torch.Tensor], NDArray[np.float64]],
        shift: torch.Tensor,
        effort: dict[str, Any],
    ) -> GeneEvidence:
        """Through a non-linear encoder: the line from baseline to cell runs in genes."""
        encode, d, whitening = self.genes.encode, z.shape[1], self.model.whitening  # type: ignore[union-attr]

        def to_points(x: torch.Tensor) -> torch.Tensor:
            return whitening(encode(x.cpu())[:, :d] - shift).to(z)

        cells = Encoded(
            torch.from_numpy(chunk.expression), to_points, lambda points: torch.from_numpy(expression(points))
        )
        found = attribute_points(self.integrated, z, contrast, n_segments=self.n_segments, encoded=cells, **effort)
        above = found.displacement.numpy()
        change = (found.evidence - found.baseline).mean(0).cpu().numpy()
        return GeneEvidence(above * found.gradient.mean(0).numpy(), above, found.evidence.mean(0).cpu().numpy(), change)


def genes_of(
    adata: AnnData, model: ScoreModel, encoder: str | Map | None, decoder: Map | None, *, layer: str | None
) -> Genes:
    """What leads from genes to the model's representation."""
    own = model.representation
    if decoder is not None and (encoder is None or isinstance(encoder, str)):
        raise ValueError("decoder= is of use only together with a function as encoder=.")
    if isinstance(own, (PCAEncoder, ImageEncoder)):
        if encoder is not None:
            raise ValueError(
                "encoder= is for models that were fitted with use_rep=; this one has an encoder of its own."
            )
        if isinstance(own, ImageEncoder):
            return EncodedGenes.of_images(own, adata, layer=layer)
        return LinearGenes.of_encoder(own, adata, layer=layer)
    key = own.key  # type: ignore[attr-defined]
    if encoder is None or isinstance(encoder, str):
        return LinearGenes.of_loadings(adata, key, encoder or "PCs", layer=layer)
    return EncodedGenes.of(adata, key, encoder, decoder, layer=layer)
