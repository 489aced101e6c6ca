"""Two languages for one thing: what machine learning calls it, what physics calls it, and its unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_ROWS = (
    ("-log p(x)", "reduced energy (U(x) - F) / kT", "1 (nats); + log c per axis that is stretched by c"),
    ("score, grad log p(x)", "reduced force, -grad U / kT", "1 / length"),
    ("squared noise rate g(t)^2", "twice the diffusion coefficient", "length^2 / time"),
    ("divergence of the score", "minus the Laplacian (curvature) of U / kT", "1 / length^2"),
    (
        "log ratio of a path's probability, forward over reverse kernel",
        "entropy produced on the path, dissipated work / kT",
        "1 (nats)",
    ),
    (
        "gap of the evidence lower bound",
        "mean dissipated work / kT = Kullback-Leibler divergence of forward from reverse paths",
        "1 (nats)",
    ),
    ("importance-weighted bound", "Jarzynski average of the work", "1 (nats)"),
    ("log-sum-exp over classes", "minus a free energy / kT", "1 (nats)"),
    ("difference of two class logits", "reduced energy difference less the free-energy difference", "1 (nats)"),
    ("guidance h added to the score; its cost", "external force / kT; excess work / kT", "1 / length; 1 (nats)"),
    ("condition (class, covariate)", "thermodynamic state, alchemical parameter lambda", "1"),
    ("noise level sigma", "length over which the landscape is smoothed; not a temperature", "length"),
)


def glossary() -> pd.DataFrame:
    """Words of machine learning and of physics for the same quantities.

    "Length" is the unit of the model's representation. Two rows ask for care. A density has a unit, so an energy
    -log p is known up to a constant that changes with the unit of the features: compare energies within one representation, never
    between two. And noise smooths the landscape of the clean data; it does not heat it: the density at a noise level is not
    ``p(x)**(1 / T)`` for any temperature T.

    Returns
    -------
    One row per quantity, with the columns ``ML``, ``physics`` and ``units``; 1 is a pure number, "nats" says that the logarithm is the
    natural one.

    Examples
    --------
    >>> import scscore as scs
    >>> scs.units.glossary().loc[0, "physics"]
    'reduced energy (U(x) - F) / kT'

    Notes
    -----
    For energies see Chen et al., bioRxiv 2025.11.28.690021; for dissipation as a likelihood Kuznets-Speck et al., bioRxiv
    2025.11.26.690838.
    """
    import pandas as pd

    return pd.DataFrame(list(_ROWS), columns=["ML", "physics", "units"])
