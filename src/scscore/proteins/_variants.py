"""``proteins.variants``: a table of protein variants as AnnData with named features."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from numpy.typing import NDArray

from scscore._logging import logger
from scscore._version import __version__
from scscore.io.columns import numbers
from scscore.proteins._amino_acids import LETTERS
from scscore.proteins._features import Features, of_substitutions, of_table
from scscore.proteins._mutations import Substitutions, checked_sequences, parse
from scscore.proteins._structure import COLUMNS, structure_features

_OWN = ("protein", "mutation", "position", "wild_type", "mutant", "n_mutations")
_SIGNS = ("destabilising", "stabilising")


def variants(
    table: pd.DataFrame,
    *,
    protein: str,
    mutation: str,
    target: str | None = None,
    positive: Literal["destabilising", "stabilising"] | None = None,
    sequences: Mapping[str, str] | pd.Series | str,
    structures: Mapping[str, str | os.PathLike[str]] | None = None,
    extra: Sequence[str] = (),
    window: int = 5,
) -> AnnData:
    """Protein variants as AnnData: one row per variant, one column per feature of sequence and structure.

    Parameters
    ----------
    table
        One variant per row.
    protein
        Column with the names of the proteins.
    mutation
        Column with the substitutions: ``"A45G"``, wild type, position from 1 on the given sequence, mutant. Several are separated by
        ``: , ; /`` or ``_``. An empty string or ``"WT"`` is the wild type.
    target
        Column with the measured value, such as a ddG; a missing value is an unlabelled variant.
    positive
        What positive values of `target` mean in `table`. Data sets differ, and nothing in the numbers tells, so it must be said. Stored
        values are always positive for destabilising substitutions: the sign is changed if they are ``"stabilising"`` in `table`.
    sequences
        Sequence of every protein, one letter per residue, X for an unknown one; or the column of `table` that holds it.
    structures
        PDB file of every protein. ``None``: no features of structure, and biotite is not needed.
    extra
        Numeric columns of `table` to use as features as well: pH, conservation ...
    window
        Neighbours on each side whose properties are features.

    Returns
    -------
    AnnData with features in ``X``, float32, and

    - ``obs``: ``protein``, ``mutation`` (``"A45G:V54L"``, by position), ``position`` (of the first substitution, -1 for the wild
      type), ``wild_type`` and ``mutant`` (letters of single substitutions, else missing), ``n_mutations``, the target under its own name, and
      all other columns of `table` but that of `sequences`. A column with one of these names is kept as ``table_<name>``, and ``/`` in names
      becomes ``_``;
    - ``var``: ``group``, ``description``, ``unit``;
    - ``uns["proteins"]``: ``sequences``, ``version``, means that replaced missing values in ``imputed``; with a target its name in ``target``,
      ``positive`` (always ``"destabilising"``) and ``positive_in_table``.

    The groups of features, differences being mutant minus wild type:

    =============  =======================================================================================================
    substitution   one-hot wild type ``wt_A`` ... and mutant ``mut_A`` ...
    physics        ``<property>_change`` of eight properties, ``blosum62``, ``to_proline``, ``from_glycine`` and alike
    window         hydropathy, volume and charge of the neighbours, e.g. ``volume_-1``; 0 beyond the ends
    position       ``relative_position``, ``terminus_distance``, ``log_length``
    structure      the columns of :func:`scscore.proteins.structure_features`, and ``unresolved``
    interaction    products of burial (1 - RSA, within 0 and 1) or secondary structure with differences; needs structures
    extra          ``extra_<column>``, and ``extra_<column>_missing`` if any value is missing
    count          ``n_mutations``, if any variant does not have exactly one
    =============  =======================================================================================================

    Over the substitutions of a variant, those of ``substitution``, ``physics`` and ``interaction`` are summed, those of ``window``, ``position``
    and ``structure`` averaged; for the wild type they are 0, and the mean over all of its residues.

    Residues that a structure does not resolve, and proteins without one, get the mean over all resolved residues of the proteins of
    `table`; missing values of `extra` get the mean of the column.

    Raises
    ------
    ImportError
        Structures without biotite.
    TypeError
        `table` is no DataFrame, or `sequences` neither a mapping nor a name.
    KeyError
        A column is not in `table`.
    ValueError
        `table` is empty; rows whose mutation cannot be read, lies outside of the sequence, disagrees with it or changes nothing, or whose protein has
        no sequence: the message counts them and explains the first three; a protein with two sequences, or with letters that are none; a structure
        that disagrees with its sequence; `target` without `positive`; a target or an extra column that is not numeric; a negative `window`.

    Warns
    -----
    UserWarning
        Proteins that are not in `structures`.

    Notes
    -----
    Two tables give the same features for the same variant, but for imputed means and for features that only one of them needs
    (``extra_<column>_missing``, ``n_mutations``): to train on one and predict the other, join them first and split the AnnData. A fitness without a
    sign convention can stay an ordinary column.

    Examples
    --------
    >>> import pandas as pd
    >>> import scscore as scs
    >>> table = pd.DataFrame({"id": "toy", "change": ["A2G", "W4F:K6E"], "ddG": [-0.5, -2.0]})
    >>> adata = scs.proteins.variants(
    ...     table, protein="id", mutation="change", target="ddG", positive="stabilising", sequences={"toy": "MADWLK"}
    ... )
    >>> adata.obs_names.tolist(), adata.obs["ddG"].tolist()
    (['toy_A2G', 'toy_W4F:K6E'], [0.5, 2.0])
    >>> adata.to_df()[["charge_change", "blosum62"]].to_numpy().tolist()
    [[0.0, 0.0], [-2.0, 2.0]]
    """
    _check(table, protein, mutation, target, positive, extra, structures, window)
    known = checked_sequences(table, protein, sequences)
    proteins = [name if pd.isna(name) else str(name) for name in table[protein]]
    substitutions = parse(table.index.tolist(), proteins, table[mutation].tolist(), known)
    residues: pd.DataFrame | None = None
    imputed: dict[str, float] = {}
    if structures is not None:
        residues, imputed = _resolved(known, {str(name): path for name, path in structures.items()})
    own, means = of_table(table, list(extra))
    features = Features.join([*of_substitutions(substitutions, known, proteins, residues, window), own])

    obs = _obs(
        table, proteins, substitutions, {protein, mutation, sequences if isinstance(sequences, str) else protein}
    )
    info: dict[str, Any] = {"sequences": known, "imputed": {**imputed, **means}, "version": __version__}
    if target is not None:
        obs[target] = table[target].to_numpy(np.float64, na_value=np.nan) * (1 if positive == "destabilising" else -1)
        info |= {"target": target, "positive": "destabilising", "positive_in_table": positive}
    logger.info("%d variants of %d proteins, %d features", len(obs), len(known), len(features.names))
    return AnnData(features.values.astype(np.float32), obs=obs, var=features.var(), uns={"proteins": info})


def _check(
    table: pd.DataFrame,
    protein: str,
    mutation: str,
    target: str | None,
    positive: str | None,
    extra: Sequence[str],
    structures: object,
    window: int,
) -> None:
    """Raise for arguments that do not fit together; see :func:`variants`."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a pandas DataFrame, got {type(table).__name__}.")
    if not table.columns.is_unique:
        raise ValueError(
            f"table has duplicated columns: {table.columns[table.columns.duplicated()].unique().tolist()}."
        )
    if isinstance(extra, str):
        raise TypeError(f"extra must be a list of columns, got the string {extra!r}.")
    named = {"protein": protein, "mutation": mutation, **({} if target is None else {"target": target})}
    for argument, column in [*named.items(), *(("extra", column) for column in extra)]:
        if column not in table:
            raise KeyError(f"{argument}={column!r} is not a column of table; available: {table.columns.tolist()}.")
        if argument not in ("target", "extra"):
            continue
        infinite = np.isinf(numbers(table[column], f"{argument}={column!r} is not numeric", booleans=True))
        if infinite.any():
            raise ValueError(f"{argument}={column!r} is infinite in row {table.index[infinite.argmax()]!r}.")
    if len(table) == 0:
        raise ValueError("table has no rows.")
    if target is not None and positive is None:
        raise ValueError(
            f"positive= is missing: say whether positive values of target={target!r} are 'destabilising' or 'stabilising'. Data sets "
            f"of stabilities have either sign, and with the wrong one every prediction would point the wrong way."
        )
    if positive is not None and positive not in _SIGNS:
        raise ValueError(f"positive must be one of {list(_SIGNS)}, got {positive!r}.")
    if len(set(extra)) < len(extra) or target in extra:
        raise ValueError(
            f"extra must name every column once, and not the target, got {list(extra)} with target={target!r}."
        )
    if target is not None and "/" in target:
        raise ValueError(f"target={target!r} holds a '/', which .h5ad files do not allow in names; rename the column.")
    if structures is not None and not isinstance(structures, Mapping):
        raise TypeError(f"structures must map proteins to PDB files, got {type(structures).__name__}.")
    if target in _OWN:
        raise ValueError(f"target={target!r} is the name of a column that obs gets anyway; rename it.")
    if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 0:
        raise ValueError(f"window must be an integer of at least 0, got {window!r}.")


def _resolved(
    sequences: Mapping[str, str], structures: Mapping[str, str | os.PathLike[str]]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Structure features of all residues of all sequences, end to end, missing ones filled, and the means that fill."""
    tables = []
    for name, sequence in sequences.items():
        if name not in structures:
            tables.append(pd.DataFrame(np.nan, index=range(len(sequence)), columns=list(COLUMNS)))
            continue
        try:
            tables.append(structure_features(structures[name], sequence))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"structures[{name!r}]: {error}") from error
    without = [name for name in sequences if name not in structures]
    if len(without) == len(sequences):
        raise ValueError(f"structures= has none of the proteins of table, e.g. {without[:3]}.")
    if without:
        warnings.warn(
            f"{len(without):,} of {len(sequences):,} proteins have no structure, e.g. {without[:3]}: they get mean values.",
            UserWarning,
            stacklevel=3,
        )
    joined = pd.concat(tables, ignore_index=True)
    means = joined.mean()
    missing = joined["rsa"].isna()
    return joined.fillna(means).assign(unresolved=missing.astype(float)), {str(k): float(v) for k, v in means.items()}


def _obs(table: pd.DataFrame, proteins: list[str], found: Substitutions, used: set[str]) -> pd.DataFrame:
    """What identifies a variant, then the other columns of the table."""
    n = len(proteins)
    counts = np.bincount(found.row, minlength=n)
    first = np.searchsorted(found.row, np.arange(n))
    position = np.full(n, -1)
    position[counts > 0] = found.position[first[counts > 0]]
    single = counts == 1

    def letters(codes: NDArray[np.int64]) -> pd.Categorical:
        of_row = np.full(n, -1)
        of_row[single] = codes[first[single]]
        return pd.Categorical.from_codes(of_row, list(LETTERS))

    named = [f"{name}_{mutation or 'WT'}" for name, mutation in zip(proteins, found.names, strict=True)]
    obs = {
        "protein": pd.Categorical(proteins),
        "mutation": np.array(found.names, dtype=object),
        "position": position,
        "wild_type": letters(found.wild_type),
        "mutant": letters(found.mutant),
        "n_mutations": counts,
    }
    for column in table.columns:
        if column not in used:
            name = str(column).replace("/", "_")
            obs[f"table_{name}" if name in _OWN else name] = table[column].array
    return pd.DataFrame(obs, index=make_index_unique(pd.Index(named)))
