"""``pl.mutation_map``: one value for every single substitution of a protein, position against amino acid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scscore.io.columns import numbers, obs_column
from scscore.pl import _base

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

_GROUPS = ("GP", "AVILMC", "FWY", "STNQ", "HKR", "DE")
_ORDER = "".join(_GROUPS)
_SPACE = 0.35  # between groups of amino acids, in cells
_BETWEEN = 4.2  # between rows of a wrapped sequence, in cells
_LONGEST = 80  # residues in a row
_EMPTY = "0.88"
_SMALLEST, _LARGEST = 0.3, 0.92  # sides of the squares, in cells
_CLIP = 0.995  # quantile of the colours


def mutation_map(
    adata: AnnData,
    *,
    protein: str | None = None,
    value: str = "scscore_mean",
    uncertainty: str | None = None,
    cmap: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Heatmap of the single substitutions of a protein: position and wild-type residue against the new amino acid.

    A dot marks the wild-type residue, grey is what was not measured or predicted. Amino acids stand in groups: G P, aliphatic and sulphur,
    aromatic, polar, positive, negative. Sequences of more than 80 residues are drawn in several rows.

    Parameters
    ----------
    adata
        Variants from :func:`scscore.proteins.variants`.
    protein
        Which one. ``None``: the only one there is.
    value
        Numeric column of ``obs``, such as a prediction, its standard deviation or the measured value. Mean over equal substitutions.
    uncertainty
        Numeric column of ``obs`` that is never negative, such as a standard deviation: the larger it is, the smaller is the square.
    cmap
        Matplotlib colour map. ``None``: ``"RdBu_r"``, with its centre at zero, if any variant of `adata` has a negative value, else
        ``"viridis"``, from zero.
    ax, show, return_fig
        See :mod:`scscore.pl`.

    Returns
    -------
    ``Axes``, ``Figure`` or ``None``; see :mod:`scscore.pl`. The colours end at the quantile .995 of the absolute value, so that one outlier does not
    take them all; larger values have the last colour. Variants with several substitutions are left out. Reads ``obs``, and the sequence
    from ``uns["proteins"]``. Writes nothing.

    Raises
    ------
    KeyError
        There are no columns of :func:`scscore.proteins.variants`, no such column, or no such protein.
    ValueError
        Several proteins and none named, a column that is not numeric, an uncertainty below zero, or no single substitution with a value.

    Examples
    --------
    >>> import pandas as pd
    >>> import scscore as scs
    >>> table = pd.DataFrame({"id": "toy", "change": ["A2G", "A2W", "W4F"], "ddG": [0.5, 2.0, 1.0]})
    >>> adata = scs.proteins.variants(
    ...     table,
    ...     protein="id",
    ...     mutation="change",
    ...     target="ddG",
    ...     positive="destabilising",
    ...     sequences={"toy": "MADWLK"},
    ... )
    >>> axes = scs.pl.mutation_map(adata, value="ddG", show=False)
    """
    name = _protein(adata, protein)
    cells = _cells(adata, name, value, uncertainty)
    sequence = _sequence(adata, name, cells)
    first, last = cells["position"].min(), cells["position"].max()
    n_rows = -(-(last - first + 1) // _LONGEST)
    width = -(-(last - first + 1) // n_rows)

    height = 20 + _SPACE * (len(_GROUPS) - 1)
    step, side = height + _BETWEEN, float(np.clip(9 / width, 0.13, 0.26))
    inches = side * max(width, 8), side * (n_rows * step - _BETWEEN)
    given, ax = ax, _base.axes_of_size(ax, inches)
    ax.set(xlim=(-0.6, max(width, 8) - 0.4), ylim=(n_rows * step - _BETWEEN - 0.4, -0.6))
    ax.set_aspect("equal", adjustable="box", anchor="NW")
    top = {
        letter: i + _SPACE * g for i, (g, letter) in enumerate((g, a) for g, group in enumerate(_GROUPS) for a in group)
    }

    places = np.arange(first, last + 1)
    block, column = np.divmod(places - first, width)
    x_of, y_of = dict(zip(places, column, strict=True)), dict(zip(places, block * step, strict=True))
    x = cells["position"].map(x_of).to_numpy(float)
    y = cells["position"].map(y_of).to_numpy(float) + cells["mutant"].map(top).to_numpy(float)
    rows = np.array([top[letter] for letter in _ORDER])
    every_x, every_y = np.repeat(column, 20).astype(float), np.add.outer(block * step, rows).ravel()
    _squares(ax, every_x, every_y, np.ones(len(every_x)), facecolor=_EMPTY)
    if uncertainty is None:
        image = _squares(ax, x, y, np.ones(len(cells)))
    else:
        _squares(ax, x, y, np.ones(len(cells)), facecolor="w")
        image = _squares(ax, x, y, _sizes(cells["uncertainty"].to_numpy()))
        image.set(edgecolor="0.55", linewidth=0.4, antialiased=True)  # a value near zero is as pale as the ground
    low, high, signed = _limits(adata.obs[value], cells["value"])
    image.set_array(cells["value"].to_numpy())
    image.set_cmap(cmap or ("RdBu_r" if signed else "viridis"))
    image.set_clim(low, high)
    known = [i for i, place in enumerate(places) if sequence.get(int(place)) in top]
    dots = [block[i] * step + top[sequence[int(places[i])]] for i in known]
    font = min(9.0, 0.8 * 72 * _unit(ax))
    ax.scatter(column[known], dots, s=(0.3 * 72 * _unit(ax)) ** 2, color="k", linewidths=0, zorder=4)
    _label(ax, places, column, block * step, sequence, top, height, font)
    _base.add_colorbar(ax, image, value)
    if uncertainty is not None:
        _size_key(ax, uncertainty, cells["uncertainty"].to_numpy())
    ax.set_title(name, fontsize=10, loc="left", pad=4 + 1.5 * font)
    return _base.finish(ax, given, show=show, return_fig=return_fig)


def _protein(adata: AnnData, protein: str | None) -> str:
    """Name of the protein to draw."""
    missing = [c for c in ("protein", "position", "wild_type", "mutant", "n_mutations") if c not in adata.obs]
    if missing:
        raise KeyError(f"adata.obs lacks {missing}: make the variants with scscore.proteins.variants.")
    names = adata.obs["protein"].astype(str).unique().tolist()
    if protein is None:
        if len(names) != 1:
            raise ValueError(f"protein= is missing: adata has {len(names):,} proteins, e.g. {names[:3]}; name one.")
        return str(names[0])
    if protein not in names:
        raise KeyError(f"protein={protein!r} is not in adata.obs['protein']; there are {names[:5]}.")
    return protein


def _cells(adata: AnnData, protein: str, value: str, uncertainty: str | None) -> pd.DataFrame:
    """Position, mutant, value and uncertainty of all single substitutions of a protein that have a value."""
    wanted = {"value": value} if uncertainty is None else {"value": value, "uncertainty": uncertainty}
    values = {
        argument: numbers(obs_column(adata, column, argument), f"{argument}={column!r} is not numeric", booleans=True)
        for argument, column in wanted.items()
    }
    single = ((adata.obs["protein"].astype(str) == protein) & (adata.obs["n_mutations"] == 1)).to_numpy()
    obs = adata.obs.loc[single]
    found = pd.DataFrame(
        {
            "position": obs["position"].to_numpy(int),
            "wild_type": obs["wild_type"].astype(str).to_numpy(),
            "mutant": obs["mutant"].astype(str).to_numpy(),
            **{argument: column[single] for argument, column in values.items()},
        }
    )
    found = found[np.isfinite(found[list(wanted)]).all(axis=1)]
    if not len(found):
        raise ValueError(
            f"no single substitution of protein {protein!r} has a finite value in {list(wanted.values())}."
        )
    if uncertainty is not None and (found["uncertainty"] < 0).any():
        raise ValueError(f"uncertainty={uncertainty!r} has negative values; it must be a standard deviation or alike.")
    return found.groupby(["position", "wild_type", "mutant"], as_index=False).mean()


def _sequence(adata: AnnData, protein: str, cells: pd.DataFrame) -> dict[int, str]:
    """Letter of every position that is known, from 1."""
    stored = adata.uns.get("proteins", {}).get("sequences", {}).get(protein)
    if stored is not None:
        return dict(enumerate(stored, start=1))
    return dict(zip(cells["position"], cells["wild_type"], strict=True))


def _limits(everything: pd.Series, values: pd.Series) -> tuple[float, float, bool]:
    """Ends of the colours, and whether there are negative values anywhere, so that all proteins of a set look alike."""
    signed = bool((everything < 0).any())
    end = float(np.quantile(values.abs(), _CLIP)) or 1.0
    return (-end if signed else 0.0), end, signed


def _sizes(uncertainty: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sides of the squares: from the largest at no uncertainty to the smallest at the largest."""
    return _LARGEST - (_LARGEST - _SMALLEST) * uncertainty / (uncertainty.max() or 1.0)


def _squares(
    ax: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    sides: NDArray[np.float64],
    *,
    facecolor: str | None = None,
) -> PolyCollection:
    from matplotlib.collections import PolyCollection

    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    vertices = np.column_stack([x, y])[:, None] + sides[:, None, None] * corners
    squares = PolyCollection(vertices, facecolor=facecolor, edgecolor="none", antialiased=False, zorder=2)
    ax.add_collection(squares, autolim=False)
    return squares


def _unit(ax: Axes) -> float:
    """Side of a cell, inches."""
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    width, height = _base.inches(ax)
    return min(width / abs(right - left), height / abs(top - bottom))


def _label(
    ax: Axes,
    places: NDArray[np.int64],
    column: NDArray[np.int64],
    offset: NDArray[np.float64],
    sequence: dict[int, str],
    top: dict[str, float],
    height: float,
    font: float,
) -> None:
    """Amino acids at the left, the sequence below and every tenth position above each row of the map."""
    starts = np.unique(offset)
    ticks = [(start + place, letter) for start in starts for letter, place in top.items()]
    ax.set_yticks([tick for tick, _ in ticks], [letter for _, letter in ticks], fontsize=font)
    ax.set_xticks([])
    ax.tick_params(length=0, pad=2)
    ax.grid(False)  # scanpy's figure parameters switch it on
    for spine in ax.spines.values():
        spine.set_visible(False)
    for place, x, y in zip(places.tolist(), column.tolist(), offset.tolist(), strict=True):
        ax.text(x, y + height - 0.35, sequence.get(place, ""), fontsize=font, ha="center", va="top")
        if place % 10 == 0 or place == places[0]:
            ax.text(x, y - 0.75, str(place), fontsize=font, ha="center", va="bottom", color="0.35")


def _size_key(ax: Axes, label: str, uncertainty: NDArray[np.float64]) -> None:
    """Three squares and their uncertainties, above the colour bar or, where the map is too low for that, beside it."""
    width, height = _base.inches(ax)
    unit = _unit(ax)
    tall = 3 * max(unit, 0.17)
    aside = 0.12 if height > 1.8 + tall + 0.5 else 0.9
    key = ax.inset_axes((1 + aside / width, 1 - (tall + 0.2) / height, 1.2 * unit / width, tall / height))
    step = tall / (3 * unit)
    shown = np.array([0.0, 0.5, 1.0]) * (uncertainty.max() or 1.0)
    _squares(key, np.zeros(3), (1 + step * np.array([-1.0, 0.0, 1.0])), _sizes(shown), facecolor="0.45")
    cells = 0.5 * tall / unit  # so that squares are as large as in the map
    key.set(xlim=(-0.6, 0.6), ylim=(1 + cells, 1 - cells), xticks=[])
    key.set_yticks(1 + step * np.array([-1.0, 0.0, 1.0]), [f"{number:.2g}" for number in shown], fontsize=8)
    key.yaxis.tick_right()
    key.tick_params(length=0, pad=1)
    key.set_title(label, fontsize=8, loc="left", pad=3)
    for spine in key.spines.values():
        spine.set_visible(False)
