"""Plots of stored results.

Every function draws into `ax`, or into a figure of its own whose size follows from the number of classes. With
``show=None`` a figure of its own is shown if ``scanpy.settings.autoshow`` is on, and a given `ax` is not. What is shown
returns ``None``, what is not returns the ``Axes``; ``return_fig=True`` returns the ``Figure`` and shows nothing.
"""

from scscore.pl._attribution_cell import attribution_cell
from scscore.pl._attribution_embedding import attribution_embedding
from scscore.pl._attribution_heatmap import attribution_heatmap
from scscore.pl._attribution_levels import attribution_levels
from scscore.pl._attribution_ranking import attribution_ranking
from scscore.pl._confusion import confusion
from scscore.pl._counterfactual import counterfactual
from scscore.pl._detectability import detectability
from scscore.pl._dissipation import dissipation
from scscore.pl._energy import energy
from scscore.pl._funnel import funnel
from scscore.pl._image_attribution import image_attribution
from scscore.pl._image_grid import image_grid
from scscore.pl._image_trajectory import image_trajectory
from scscore.pl._mutation_map import mutation_map
from scscore.pl._novelty import novelty
from scscore.pl._perturbation_response import perturbation_response
from scscore.pl._posterior import posterior
from scscore.pl._regression import regression
from scscore.pl._reliability import reliability
from scscore.pl._training import training

__all__ = [
    "attribution_cell",
    "attribution_embedding",
    "attribution_heatmap",
    "attribution_levels",
    "attribution_ranking",
    "confusion",
    "counterfactual",
    "detectability",
    "dissipation",
    "energy",
    "funnel",
    "image_attribution",
    "image_grid",
    "image_trajectory",
    "mutation_map",
    "novelty",
    "perturbation_response",
    "posterior",
    "regression",
    "reliability",
    "training",
]
