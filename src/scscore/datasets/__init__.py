"""Small data sets that need no download."""

from scscore.datasets._digits import digits
from scscore.datasets._pbmc import pbmc
from scscore.datasets._toy import toy_gaussians, toy_mixture

__all__ = ["digits", "pbmc", "toy_gaussians", "toy_mixture"]
