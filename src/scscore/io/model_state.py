"""A model taken apart into named arrays and JSON, and put together again: what :mod:`scscore.io.model_files` writes and reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from scscore.core.analytic import ExactResidual
from scscore.core.calibration import Calibration
from scscore.core.covariates import CovariateShift
from scscore.core.denoiser import Ensemble, ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.direct import DirectNetwork, DirectPosterior
from scscore.core.held_out import HeldOut, HeldOutValues
from scscore.core.readout import LinearReadout, Readout
from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import Whitening
from scscore.core.schedule import NoiseSchedule
from scscore.core.target import TargetGrid
from scscore.core.value_readout import NetworkReadout
from scscore.io.conv_network import ConvNetwork
from scscore.io.gene_space import RidgeDecoder
from scscore.io.image_encoder import ImageEncoder
from scscore.io.model_files import Tensors
from scscore.io.pixels import PixelGrid
from scscore.io.representation import GeneClassifier, ObsmRepresentation, PCAEncoder, Representation

if TYPE_CHECKING:
    from scscore.model import ScoreModel


def model_tensors(model: ScoreModel) -> Tensors:
    """All arrays of a model, by name."""
    parts = {
        "whitening": model.whitening,
        "reference": getattr(model.engine, "reference", None),
        "denoiser": model.engine.denoiser,
        "readout": getattr(model.engine, "readout", None),
    }
    tensors = {
        f"{prefix}.{name}": value.detach().cpu().numpy()
        for prefix, module in parts.items()
        if module is not None
        for name, value in module.state_dict().items()
        if value.numel()  # a readout without class scores has empty ones
    }
    if isinstance(model.representation, PCAEncoder):
        for name in ("mean", "share", "components", "weights"):
            if (value := getattr(model.representation, name)) is not None:
                tensors[f"encoder.{name}"] = value
        if model.representation.classifier is not None:
            tensors |= {f"classifier.{k}": v for k, v in model.representation.classifier._asdict().items()}
    if isinstance(model.representation, ImageEncoder):
        tensors |= {f"decoder.{name}": value for name, value in model.representation.decoder._asdict().items()}
        if isinstance(network := model.representation.network, torch.nn.Module):
            weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
            tensors |= {  # numpy knows no half precision of this kind
                f"encoder.{name}": (value.float() if value.dtype == torch.bfloat16 else value).numpy()
                for name, value in weights.items()
            }
    for prefix in ("held_out", "held_out_values"):
        if (cells := getattr(model, prefix)) is not None:
            tensors |= {f"{prefix}.{k}": v for k, v in vars(cells).items() if v is not None}
    if model.covariates is not None:
        tensors |= {f"covariates.{k}": v for k, v in vars(model.covariates).items() if isinstance(v, np.ndarray)}
    return {**tensors, "class_counts": model.class_counts}


def model_metadata(model: ScoreModel) -> dict[str, Any]:
    """What JSON holds of a model."""
    encoder = model.representation
    if isinstance(encoder, PCAEncoder):
        stored = {
            "type": "pca",
            "genes": encoder.genes.tolist(),
            "target_sum": encoder.target_sum,
            "kind": encoder.kind,
        }
    elif isinstance(encoder, ImageEncoder):
        stored = {"type": "images", **asdict(encoder.grid)}
    else:
        stored = {"type": "obsm", "key": encoder.key, "n_features": encoder.n_features}  # type: ignore[attr-defined]
    denoiser, readout = model.engine.denoiser, getattr(model.engine, "readout", None)
    return {
        "scscore_version": model.params["version"],
        "classes": model.classes.tolist(),
        "representation": stored,
        "schedule": None if isinstance(model.engine, DirectPosterior) else vars(model.engine.schedule),
        "denoiser": None if denoiser is None else denoiser.shape,
        **({"readout": readout.network.shape} if isinstance(readout, NetworkReadout) else {}),
        "calibration": vars(model.calibration),
        "covariates": None if model.covariates is None else _names(model.covariates),
        "target": None if model.target is None else asdict(model.target),
        "params": model.params,
    }


def model_parts(tensors: Tensors, metadata: dict[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`~scscore.ScoreModel`, from what :func:`model_tensors` and :func:`model_metadata` gave."""
    torch_tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in torch_tensors.items() if k.startswith(prefix)}

    def part_arrays(prefix: str) -> dict[str, NDArray[Any]]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    encoder = metadata["representation"]
    representation: Representation
    if encoder["type"] == "pca":
        representation = PCAEncoder(
            np.array(encoder["genes"]),
            tensors["encoder.mean"],
            tensors["encoder.share"],
            tensors["encoder.components"],
            target_sum=encoder["target_sum"],
            kind=encoder["kind"],
            weights=tensors.get("encoder.weights"),
            classifier=GeneClassifier(**found) if (found := part_arrays("classifier.")) else None,
        )
    elif encoder["type"] == "images":
        grid = PixelGrid(tuple(encoder["channels"]), encoder["height"], encoder["width"])
        decoder = RidgeDecoder(**part_arrays("decoder."))
        network = ConvNetwork(grid.shape, len(decoder.center))
        network.load_state_dict(part("encoder."))
        representation = ImageEncoder(network, grid, decoder)
    else:
        representation = ObsmRepresentation(encoder["key"], encoder["n_features"])
    target = metadata.get("target")
    return {
        "classes": np.array(metadata["classes"]),
        "class_counts": tensors["class_counts"],
        "representation": representation,
        "whitening": Whitening(**part("whitening.")),
        "engine": _engine(metadata, part),
        "calibration": Calibration(**metadata["calibration"]),
        "params": metadata["params"],
        "held_out": HeldOut(**part_arrays("held_out.")) if "held_out.y" in tensors else None,
        "held_out_values": HeldOutValues(**part_arrays("held_out_values.")) if "held_out_values.y" in tensors else None,
        "covariates": _covariates(metadata.get("covariates"), part_arrays("covariates.")),
        "target": None if target is None else TargetGrid(**target),
    }


def _engine(
    metadata: dict[str, Any], part: Callable[[str], dict[str, torch.Tensor]]
) -> ConditionalDiffusion | DirectPosterior:
    """The engine of a model file."""
    shape, weights = metadata["denoiser"], part("denoiser.")
    if metadata["schedule"] is None:
        return DirectPosterior(_network(shape, weights, _direct))
    reference = GaussianReference(**part("reference."))
    denoiser: torch.nn.Module | None = None
    if shape == {"exact": True}:
        denoiser = ExactResidual(GaussianReference(**part("denoiser.truth.")), reference)
    elif shape is not None:
        means = reference.class_means
        denoiser = _network(shape, weights, lambda part, one: ResidualDenoiser(means, part["scale"], **one))
    readout: Readout | None = None
    if (shape := metadata.get("readout")) is not None:
        stored = {k: v for k, v in part("readout.").items() if not k.startswith("network.")}
        readout = NetworkReadout(_network(shape, part("readout.network."), _direct), **stored)
    elif stored := part("readout."):
        readout = LinearReadout(**stored)
    return ConditionalDiffusion(NoiseSchedule(**metadata["schedule"]), reference, denoiser, readout)


def _direct(part: dict[str, torch.Tensor], shape: dict[str, Any]) -> DirectNetwork:
    return DirectNetwork(part["scale"], len(part["output.bias"]), **shape)


def _network(
    shape: dict[str, Any],
    weights: dict[str, torch.Tensor],
    make: Callable[[dict[str, torch.Tensor], dict[str, Any]], torch.nn.Module],
) -> torch.nn.Module:
    """A trained network, or an ensemble of them, from its tensors."""
    n_members = shape.get("n_members", 1)
    one = {name: value for name, value in shape.items() if name != "n_members"}
    first = weights if n_members == 1 else {k.removeprefix("members.0."): v for k, v in weights.items()}
    members = [make(first, one) for _ in range(n_members)]
    network = members[0] if n_members == 1 else Ensemble(members)
    network.load_state_dict(weights)
    return network


def _names(covariates: CovariateShift) -> dict[str, list[str]]:
    """What JSON holds of the covariates."""
    return {name: list(values) for name, values in vars(covariates).items() if isinstance(values, tuple)}


def _covariates(names: dict[str, list[str]] | None, tensors: dict[str, NDArray[Any]]) -> CovariateShift | None:
    """The covariates of a model file."""
    if names is None:
        return None
    return CovariateShift(
        columns=tuple(names["columns"]),
        levels=tuple(names["levels"]),
        numeric=tuple(names.get("numeric", ())),
        **tensors,
    )
