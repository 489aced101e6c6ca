"""``pl.training``: loss curves of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from scscore.io.keys import Keys
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def training(
    adata: AnnData,
    *,
    key: str = "scscore",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Training and validation loss against the training step.

    The validation loss is the negative log posterior of the true class of held-out cells, averaged over the validation
    runs of the fit. At step 0 it is that of the closed-form reference alone (dashed), so what lies below the dashed line
    is what training added; the circle marks the lowest check. The final model, on all cells, is trained for as many epochs.
    The training loss is the objective itself, which has a generative part beside the log posterior: compare its course
    with the validation loss, not its level.

    Parameters
    ----------
    adata
        The training cells, after :func:`scscore.tl.fit`.
    key
        The `key_added` of the fit.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. Reads ``training_steps``, ``training_loss`` and ``validation_loss`` (nats per
    cell) of ``uns[key]``. Writes nothing.

    Raises
    ------
    KeyError
        There are no loss curves under `key`.
    TypeError
        `adata` is something else, such as a model, which has no curves.

    Examples
    --------
    >>> import scscore as scs
    >>> cells = scs.datasets.toy_gaussians(n_obs=300)
    >>> model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    >>> axes = scs.pl.training(cells, show=False)
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be the AnnData that the model was fitted on, got {type(adata).__name__}.")
    stored = adata.uns.get(Keys(key).uns, {})
    slots = ("training_steps", "training_loss", "validation_loss")
    missing = [name for name in slots if name not in stored]
    if missing:
        raise KeyError(
            f"adata.uns[{key!r}] has no {missing}: run scscore.tl.fit first. The curves are stored with the training "
            f"cells; the cells of a query do not have them."
        )
    steps, train, validation = (np.asarray(stored[name]) for name in slots)
    chosen = int(validation.argmin())

    given, ax = ax, _base.axes_of_size(ax, (4.0, 3.0))
    marker = "." if len(steps) <= 60 else ""
    # no training loss belongs to the first check, whether it is left out or NaN
    train = train[-(len(steps) - 1) :]
    ax.plot(steps[len(steps) - len(train) :], train, color="0.6", marker=marker, label="training objective")
    ax.plot(steps, validation, color="#0072B2", marker=marker, label="validation loss")
    ax.axhline(validation[0], color="k", linestyle="--", linewidth=0.8, label=f"reference alone: {validation[0]:.3f}")
    ax.plot(
        steps[chosen],
        validation[chosen],
        linestyle="none",
        marker="o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor="#D55E00",
        markeredgewidth=1.8,
        zorder=5,
        label=f"chosen, step {steps[chosen]}: {validation[chosen]:.3f}" if chosen else "chosen: the reference alone",
    )
    ax.set(xlabel="training step", ylabel="loss (nats per cell)")
    ax.margins(x=0.03, y=0.08)
    ax.locator_params(axis="x", integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, borderaxespad=0, fontsize=9)
    return _base.finish(ax, given, show=show, return_fig=return_fig)
