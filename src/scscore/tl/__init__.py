"""Tools: fit a model, classify cells, see which genes and which noise levels decided, map the energies, generate cells."""

from scscore.tl._adapt import adapt
from scscore.tl._attribute import attribute
from scscore.tl._attribution_test import attribution_test
from scscore.tl._calibrate import calibrate
from scscore.tl._classify import classify
from scscore.tl._combine import combine
from scscore.tl._counterfactual import counterfactual
from scscore.tl._dissipation import dissipation
from scscore.tl._energy import energy
from scscore.tl._energy_landscape import energy_landscape
from scscore.tl._fit import fit
from scscore.tl._funnel import funnel
from scscore.tl._image_trajectory import image_trajectory
from scscore.tl._predict_perturbation import predict_perturbation
from scscore.tl._regress import regress
from scscore.tl._sample import sample

__all__ = [
    "adapt",
    "attribute",
    "attribution_test",
    "calibrate",
    "classify",
    "combine",
    "counterfactual",
    "dissipation",
    "energy",
    "energy_landscape",
    "fit",
    "funnel",
    "image_trajectory",
    "predict_perturbation",
    "regress",
    "sample",
]
