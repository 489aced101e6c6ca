"""Mutations such as "A45G:V54L": parsed, checked against the sequences, written in one way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scscore.proteins._amino_acids import LETTERS, UNKNOWN, encode

_ONE = re.compile(r"([A-Z])(\d+)([A-Z])")
_BETWEEN = re.compile(r"\s*[:,;/_]\s*")
_WILD_TYPE = ("", "WT")


@dataclass(frozen=True)
class Substitutions:
    """All substitutions of all variants, in order of variant and position."""

    row: NDArray[np.int64]  # (n_substitutions,), the variant of each
    residue: NDArray[np.int64]  # place in the sequences joined end to end
    position: NDArray[np.int64]  # from 1, within the sequence
    wild_type: NDArray[np.int64]  # codes
    mutant: NDArray[np.int64]
    names: list[str]  # (n_variants,), "A45G:V54L", "" for the wild type


def parse(
    labels: Sequence[Any], proteins: Sequence[Any], mutations: Sequence[Any], sequences: Mapping[str, str]
) -> Substitutions:
    """Substitutions of every row, on `sequences` in their order.

    Raises
    ------
    ValueError
        Rows that cannot be read or that disagree with their sequence; the message counts them and explains the first three.
    """
    starts = dict(zip(sequences, np.cumsum([0, *map(len, sequences.values())]).tolist(), strict=False))
    found: list[tuple[int, int, int, str, str]] = []
    names, wrong = [], []
    for i, (label, protein, mutation) in enumerate(zip(labels, proteins, mutations, strict=True)):
        try:
            single = _read(protein, mutation, sequences)
        except ValueError as error:
            wrong.append(f"row {label!r} (protein {protein!r}, mutation {mutation!r}): {error}")
            continue
        start = starts[protein]
        found.extend((i, start + position - 1, position, old, new) for position, old, new in single)
        names.append(":".join(f"{old}{position}{new}" for position, old, new in single))
    if wrong:
        raise ValueError(
            f"{len(wrong):,} of {len(labels):,} rows of table cannot be used:\n  "
            + "\n  ".join(wrong[:3])
            + ("\n  ..." if len(wrong) > 3 else "")
            + "\nPositions count from 1 on the given sequence. Correct or leave out these rows."
        )
    columns = list(zip(*found, strict=True)) or [(), (), (), (), ()]
    row, residue, position = (np.array(column, np.int64) for column in columns[:3])
    old, new = (encode("".join(column)) for column in columns[3:])
    return Substitutions(row, residue, position, old, new, names)


def _read(protein: Any, mutation: Any, sequences: Mapping[str, str]) -> list[tuple[int, str, str]]:
    """Position, wild type and mutant of the substitutions of one variant, by position."""
    if pd.isna(protein):
        raise ValueError("the protein is missing")
    if protein not in sequences:
        raise ValueError(f"sequences= has no sequence of {protein!r}")
    if not isinstance(mutation, str):
        raise ValueError("the mutation is missing" if pd.isna(mutation) else "the mutation is not a string")
    text, sequence, found = mutation.strip(), sequences[protein], {}
    for part in [] if text in _WILD_TYPE else _BETWEEN.split(text):
        match = _ONE.fullmatch(part)
        if match is None:
            raise ValueError(f'{part!r} is no substitution such as "A45G"')
        old, position, new = match[1], int(match[2]), match[3]
        unknown = [letter for letter in (old, new) if letter not in LETTERS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no letter of the 20 amino acids")
        if not 1 <= position <= len(sequence):
            raise ValueError(f"position {position} is outside of the sequence of {len(sequence)} residues")
        if sequence[position - 1] != old:
            raise ValueError(f"the sequence has {sequence[position - 1]!r} at position {position}, not {old!r}")
        if old == new:
            raise ValueError(f"{part!r} changes nothing; the wild type is an empty string")
        if position in found:
            raise ValueError(f"position {position} is substituted twice")
        found[position] = (position, old, new)
    return [found[position] for position in sorted(found)]


def checked_sequences(table: pd.DataFrame, protein: str, sequences: Any) -> dict[str, str]:
    """Sequence of every protein of the table that has one, in order of name.

    Raises
    ------
    TypeError
        Neither a mapping nor the name of a column.
    KeyError
        No such column.
    ValueError
        A protein with two sequences, or letters that are none.
    """
    if isinstance(sequences, str):
        if sequences not in table:
            raise KeyError(f"sequences={sequences!r} is not a column of table; available: {table.columns.tolist()}.")
        pairs = table[[protein, sequences]].dropna().astype(str).drop_duplicates()
        twice = pairs.loc[pairs[protein].duplicated(), protein]
        if len(twice):
            raise ValueError(
                f"sequences={sequences!r}: {twice.nunique():,} proteins have more than one sequence, e.g. {twice.iloc[0]!r}; "
                f"a protein is one sequence, give each its own name in {protein!r}."
            )
        given = dict(zip(pairs[protein], pairs[sequences], strict=True))
    elif isinstance(sequences, Mapping | pd.Series):
        given = {str(name): sequence for name, sequence in sequences.items()}
    else:
        raise TypeError(f"sequences must be a mapping or the name of a column, got {type(sequences).__name__}.")
    names = sorted(set(table[protein].dropna().astype(str)) & given.keys())
    for name in names:
        sequence = given[name]
        if not isinstance(sequence, str) or not sequence:
            raise ValueError(f"the sequence of protein {name!r} must be a non-empty string, got {sequence!r}.")
        wrong = np.flatnonzero(encode(sequence) < 0)
        if len(wrong):
            raise ValueError(
                f"the sequence of protein {name!r} has {sequence[wrong[0]]!r} at position {wrong[0] + 1}: "
                f"letters must be of the 20 amino acids, or X for an unknown one."
            )
        if "/" in name:
            raise ValueError(f"protein {name!r}: names must not contain '/', which h5ad files cannot hold; replace it.")
    return {name: given[name] for name in names}


def codes_of(sequences: Mapping[str, str]) -> NDArray[np.int64]:
    """Codes of all sequences, end to end."""
    return encode("".join(sequences.values())) if sequences else np.full(0, UNKNOWN)
