"""Thermodynamic score-based inference: diffusion models as calibrated, interpretable classifiers of single cells."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scscore._version import __version__

if TYPE_CHECKING:
    from scscore import datasets, get, images, pl, proteins, tl, units
    from scscore.io.model_files import ModelFileError
    from scscore.model import ScoreModel, load

__all__ = [
    "ModelFileError",
    "ScoreModel",
    "__version__",
    "datasets",
    "get",
    "images",
    "load",
    "pl",
    "proteins",
    "tl",
    "units",
]

# torch, scanpy and lightning take seconds to import: what needs them is imported when it is first used
_SUBMODULES = ("datasets", "get", "images", "pl", "proteins", "tl", "units")
_OBJECTS = {"ModelFileError": "scscore.io.model_files", "ScoreModel": "scscore.model", "load": "scscore.model"}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"scscore.{name}")
    if name in _OBJECTS:
        return getattr(import_module(_OBJECTS[name]), name)
    raise AttributeError(f"module 'scscore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
