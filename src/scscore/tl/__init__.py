"""Tools: fit a model, classify cells."""

from scscore.tl._classify import classify
from scscore.tl._fit import fit

__all__ = ["classify", "fit"]
