"""Features of variants: computed once per substitution, then summed or averaged over those of a variant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scscore.proteins._amino_acids import BLOSUM62, CHARGED, LETTERS, PROPERTIES, UNKNOWN
from scscore.proteins._mutations import Substitutions, codes_of
from scscore.proteins._structure import COLUMNS

_WINDOW = ("hydrophobicity", "volume", "charge")
_PROLINE, _GLYCINE = LETTERS.index("P"), LETTERS.index("G")
Array = NDArray[np.float64]


class Features(NamedTuple):
    """Columns of ``X`` with what ``var`` says about them."""

    values: Array  # (n, n_features)
    names: list[str]
    groups: list[str]
    units: list[str]
    descriptions: list[str]

    @classmethod
    def of(cls, group: str, columns: Iterable[tuple[str, Array, str, str]], n: int) -> Features:
        """One group, from (name, values, unit, description) of its columns."""
        listed = list(columns)
        stacked = (
            np.column_stack([values for _, values, _, _ in listed]).astype(np.float64) if listed else np.zeros((n, 0))
        )
        names, units, descriptions = [c[0] for c in listed], [c[2] for c in listed], [c[3] for c in listed]
        return cls(stacked, names, [group] * len(names), units, descriptions)

    @classmethod
    def join(cls, parts: Sequence[Features]) -> Features:
        """Groups side by side."""
        values = np.hstack([part.values for part in parts])
        return cls(values, *([item for part in parts for item in part[i]] for i in range(1, 5)))

    def var(self) -> pd.DataFrame:
        """Frame with one row per feature."""
        groups = pd.Categorical(self.groups, categories=list(dict.fromkeys(self.groups)))
        columns = {"group": groups, "description": self.descriptions, "unit": self.units}
        return pd.DataFrame(columns, index=pd.Index(self.names))


def of_substitutions(
    found: Substitutions,
    sequences: Mapping[str, str],
    proteins: Sequence[str],
    residues: pd.DataFrame | None,
    window: int,
) -> list[Features]:
    """All groups that follow from the substitutions, one row per variant.

    `residues` are structure features of all residues of the `sequences` end to end, without missing values.
    """
    codes, n = codes_of(sequences), len(found.names)
    at_residue = [_window(codes, sequences, window), _position(sequences)]
    if residues is not None:
        at_residue.append(_structure(residues))
    counts = np.bincount(found.row, minlength=n)
    total = sp.csr_array((np.ones(len(found.row)), (found.row, np.arange(len(found.row)))), (n, len(found.row)))
    mean = _residue_weights(found, counts, sequences, proteins)
    physics = _physics(found)
    parts = [_sum(_substitution(found), total), _sum(physics, total)]
    parts += [part._replace(values=mean @ part.values) for part in at_residue]
    if residues is not None:
        parts.append(_sum(_interaction(physics, residues.iloc[found.residue]), total))
    if (counts != 1).any():
        number = ("n_mutations", counts.astype(float), "", "number of substitutions")
        parts.append(Features.of("count", [number], n))
    return parts


def of_table(table: pd.DataFrame, columns: Sequence[str]) -> tuple[Features, dict[str, float]]:
    """The extra columns as features, missing values replaced, and the means that replaced them."""
    features, means = [], {}
    for column in columns:
        values = table[column].to_numpy(np.float64, na_value=np.nan)
        missing, name = np.isnan(values), f"extra_{str(column).replace('/', '_')}"
        if missing.all():
            raise ValueError(f"extra={column!r} has no value in any row; leave it out.")
        if missing.any():
            means[name] = float(values[~missing].mean())
        features.append((name, np.where(missing, means.get(name, 0.0), values), "", f"column {column} of the table"))
        if missing.any():
            features.append((f"{name}_missing", missing, "", f"column {column} of the table has no value"))
    return Features.of("extra", features, len(table)), means


def _sum(part: Features, total: sp.csr_array) -> Features:
    return part._replace(values=total @ part.values)


def _residue_weights(
    found: Substitutions, counts: NDArray[np.int64], sequences: Mapping[str, str], proteins: Sequence[str]
) -> sp.csr_array:
    """Weights that average residues over the substitutions of a variant, over the whole protein for the wild type."""
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    starts = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
    rows, columns, weights = [found.row], [found.residue], [1 / counts[found.row]]
    for row in np.flatnonzero(counts == 0).tolist():
        length = lengths[proteins[row]]
        rows.append(np.full(length, row))
        columns.append(starts[proteins[row]] + np.arange(length))
        weights.append(np.full(length, 1 / length))
    coordinates = (np.concatenate(rows), np.concatenate(columns))
    return sp.csr_array((np.concatenate(weights), coordinates), (len(counts), sum(lengths.values())))


def _substitution(found: Substitutions) -> Features:
    columns = [
        (f"{short}_{letter}", codes == code, "", f"{long} is {letter}")
        for short, long, codes in (("wt", "wild type", found.wild_type), ("mut", "mutant", found.mutant))
        for code, letter in enumerate(LETTERS)
    ]
    return Features.of("substitution", columns, len(found.row))


def _physics(found: Substitutions) -> Features:
    old, new = found.wild_type, found.mutant
    columns = [
        (f"{name}_change", p.values[new] - p.values[old], p.unit, f"mutant minus wild type: {p.meaning}")
        for name, p in PROPERTIES.items()
    ]
    columns.append(("blosum62", BLOSUM62[old, new], "", "score of the substitution (Henikoff & Henikoff 1992)"))
    for way, long, codes in (("to", "mutant", new), ("from", "wild type", old)):
        for name, code in (("proline", _PROLINE), ("glycine", _GLYCINE)):
            columns.append((f"{way}_{name}", codes == code, "", f"the {long} is {name}"))
    charged = CHARGED[new].astype(float) - CHARGED[old]
    columns.append(("charged_change", charged, "", "mutant minus wild type: has a charge of either sign"))
    return Features.of("physics", columns, len(found.row))


def _window(codes: NDArray[np.int64], sequences: Mapping[str, str], window: int) -> Features:
    """Properties of the neighbours of every residue of the joined sequences."""
    gap = np.full(window, UNKNOWN)  # keeps a sequence from seeing the next one
    ends = np.cumsum([len(sequence) for sequence in sequences.values()])
    pieces = [piece for sequence in np.split(codes, ends[:-1]) for piece in (sequence, gap)]
    padded = np.concatenate([gap, *pieces])
    places = np.arange(len(codes)) + window * np.repeat(np.arange(1, len(ends) + 1), np.diff(ends, prepend=0))
    columns = [
        (
            f"{name}_{k:+d}",
            PROPERTIES[name].values[padded[places + k]],
            PROPERTIES[name].unit,
            f"{name} {k:+d} residues on",
        )
        for name in _WINDOW
        for k in (*range(-window, 0), *range(1, window + 1))
    ]
    return Features.of("window", columns, len(codes))


def _position(sequences: Mapping[str, str]) -> Features:
    lengths = np.array([len(sequence) for sequence in sequences.values()])
    length = np.repeat(lengths, lengths)
    before = np.concatenate([np.arange(n) for n in lengths])
    columns = [
        ("relative_position", before / np.maximum(length - 1, 1), "", "0 at the N-terminus, 1 at the C-terminus"),
        ("terminus_distance", np.minimum(before, length - 1 - before), "residues", "distance to the nearer terminus"),
        ("log_length", np.log(length), "", "natural logarithm of the length of the sequence"),
    ]
    return Features.of("position", columns, len(length))


def _structure(residues: pd.DataFrame) -> Features:
    said = {**COLUMNS, "unresolved": ("", "not in the structure, so that the other features of structure are means")}
    columns = [(name, residues[name].to_numpy(), *said[name]) for name in said]
    return Features.of("structure", columns, len(residues))


def _interaction(physics: Features, residues: pd.DataFrame) -> Features:
    """Products of where a substitution is with what it changes, one row per substitution."""
    where = {
        "burial": 1 - residues["rsa"].to_numpy().clip(0, 1),
        "helix": residues["helix"].to_numpy(),
        "strand": residues["strand"].to_numpy(),
    }
    of = dict(zip(physics.names, physics.values.T, strict=True))
    change = {
        **of,
        "volume_loss": np.maximum(-of["volume_change"], 0),
        "volume_gain": np.maximum(of["volume_change"], 0),
        "charged_gain": np.maximum(of["charged_change"], 0),
    }
    pairs = {
        "burial": (
            ("hydrophobicity_change", ""), ("polarity_change", ""), ("volume_loss", "A^3"), ("volume_gain", "A^3"), ("charged_gain", ""),
            ("aromatic_change", ""), ("blosum62", ""), ("to_proline", ""), ("to_glycine", ""), ("from_glycine", ""),
        ),
        "helix": (("helix_propensity_change", "kcal/mol"), ("to_proline", ""), ("to_glycine", "")),
        "strand": (("beta_propensity_change", ""), ("to_proline", ""), ("to_glycine", "")),
    }  # fmt: skip
    columns = [
        (f"{place}_x_{name}", where[place] * change[name], unit, f"{place} times {name.replace('_', ' ')}")
        for place, names in pairs.items()
        for name, unit in names
    ]
    return Features.of("interaction", columns, len(residues))
