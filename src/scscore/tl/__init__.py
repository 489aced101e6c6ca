"""Tools: fit a model, classify cells, see where they were decided."""

from scscore.tl._classify import classify
from scscore.tl._dissipation import dissipation
from scscore.tl._energy import energy
from scscore.tl._fit import fit

__all__ = ["classify", "dissipation", "energy", "fit"]
