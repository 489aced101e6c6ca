"""Stored results as data frames."""

from scscore.get._aggregate import aggregate
from scscore.get._attribution import attribution
from scscore.get._density import density
from scscore.get._funnel import funnel
from scscore.get._likelihood import likelihood
from scscore.get._perturbation import perturbation
from scscore.get._posterior import posterior
from scscore.get._prediction_sets import prediction_sets

__all__ = [
    "aggregate",
    "attribution",
    "density",
    "funnel",
    "likelihood",
    "perturbation",
    "posterior",
    "prediction_sets",
]
