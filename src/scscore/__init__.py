"""Thermodynamic score-based inference: diffusion models as calibrated, interpretable classifiers of single cells."""

from scscore import datasets, get, pl, tl
from scscore._version import __version__
from scscore.io.model_files import ModelFileError
from scscore.model import ScoreModel, load

__all__ = ["ModelFileError", "ScoreModel", "__version__", "datasets", "get", "load", "pl", "tl"]
