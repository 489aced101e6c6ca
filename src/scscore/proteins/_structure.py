"""Per-residue features of a protein structure, on the numbering of its sequence."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scscore.proteins._amino_acids import CHARGED, LETTERS, MAX_SURFACE, PROPERTIES, encode

if TYPE_CHECKING:
    from biotite.structure import AtomArray

# name: (unit, meaning)
COLUMNS = {
    "rsa": ("", "relative solvent accessibility, 0 buried to about 1 exposed (maxima of Tien et al. 2013)"),
    "contacts_8": ("", "residues with C-beta within 8 Angstrom, sequence neighbours included"),
    "contacts_12": ("", "residues with C-beta within 12 Angstrom, sequence neighbours included"),
    "contact_hydrophobicity": ("", "mean hydropathy of the contacts within 8 Angstrom"),
    "charged_contacts": ("", "contacts within 8 Angstrom with D, E, K or R"),
    "helix": ("", "in an alpha helix (P-SEA)"),
    "strand": ("", "in a beta strand (P-SEA)"),
    "coil": ("", "neither in a helix nor in a strand (P-SEA)"),
}
_LEAST_IDENTITY = 0.9


def structure_features(path: str | os.PathLike[str], sequence: str) -> pd.DataFrame:
    """Accessibility, contacts and secondary structure of every residue of a sequence, from a PDB file.

    The first model and, of several chains, the one that fits the sequence best, alone: without the other chains, ligands and water.

    Parameters
    ----------
    path
        PDB file.
    sequence
        One-letter sequence on whose numbering the features are wanted. The residues of the structure are aligned to it.

    Returns
    -------
    One row per residue of `sequence`, index 1 to its length, NaN where the structure does not resolve it. Columns:

    - ``rsa``: surface accessible to a probe of 1.4 Angstrom over the largest of the amino acid;
    - ``contacts_8``, ``contacts_12``: other residues whose C-beta (C-alpha of glycine) lies within 8 and 12 Angstrom;
    - ``contact_hydrophobicity``: mean hydropathy (Kyte and Doolittle) of the contacts within 8 Angstrom, 0 if there are none;
    - ``charged_contacts``: those among them that are D, E, K or R;
    - ``helix``, ``strand``, ``coil``: 0 or 1.

    Raises
    ------
    ImportError
        biotite is not installed.
    FileNotFoundError
        There is no such file.
    ValueError
        The file holds no protein, or its best chain agrees with less than 90 % of the sequence: identical residues over aligned ones, where at
        least half of the shorter of the two must be aligned.

    Notes
    -----
    Accessibility: Shrake and Rupley, J. Mol. Biol. 79:351 (1973), maxima: Tien et al., PLoS ONE 8:e80635 (2013). Secondary structure:
    P-SEA, Labesse et al., Bioinformatics 13:291 (1997), which sees C-alpha atoms only. All through biotite.

    Examples
    --------
    >>> import scscore as scs
    >>> features = scs.proteins.structure_features(
    ...     "1pga.pdb", "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
    ... )  # doctest: +SKIP
    """
    try:
        import biotite.structure as struc
        from biotite.structure.io.pdb import PDBFile
    except ImportError as error:
        raise ImportError('structures are read by biotite: pip install "scscore[proteins]"') from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no structure file {os.fspath(path)!r}.")
    atoms = PDBFile.read(path).get_structure(model=1)
    atoms = atoms[struc.filter_amino_acids(atoms) & ~np.isin(atoms.element, ("H", "D"))]
    chains = [atoms[atoms.chain_id == name] for name in dict.fromkeys(atoms.chain_id.tolist())]
    chains = [chain for chain in chains if (chain.atom_name == "CA").any()]
    if not chains:
        raise ValueError(f"structure file {os.fspath(path)!r} holds no residue with a C-alpha atom.")
    fits = [(*_align(_letters(chain), sequence), chain) for chain in chains]
    _, identity, positions, chain = max(fits, key=lambda fit: fit[0])
    if identity < _LEAST_IDENTITY:
        raise ValueError(
            f"structure file {os.fspath(path)!r} agrees with {identity:.0%} of the sequence, at least {_LEAST_IDENTITY:.0%} are "
            f"needed: the structure and the sequence must be of the same protein."
        )
    table = np.full((len(sequence), len(COLUMNS)), np.nan)
    aligned = positions >= 0
    table[positions[aligned]] = _features(chain)[aligned]
    return pd.DataFrame(table, index=pd.RangeIndex(1, len(sequence) + 1, name="position"), columns=list(COLUMNS))


def _letters(chain: AtomArray) -> str:
    """One letter per residue; X for what has none, the parent's for modified residues."""
    import biotite.structure as struc
    from biotite.structure.info import one_letter_code

    names = struc.get_residues(chain)[1].tolist()
    letters = [one_letter_code(name) or "X" for name in names]
    return "".join(letter if letter in LETTERS else "X" for letter in letters)


def _align(resolved: str, sequence: str) -> tuple[int, float, NDArray[np.int64]]:
    """Number and share of identical residues, and the place in `sequence` (from 0) of every resolved one, -1 for none."""
    offset = sequence.find(resolved)
    if offset >= 0:
        return len(resolved), 1.0, offset + np.arange(len(resolved))
    from biotite.sequence import ProteinSequence
    from biotite.sequence.align import SubstitutionMatrix, align_optimal

    matrix = SubstitutionMatrix.std_protein_matrix()
    pair = ProteinSequence(resolved), ProteinSequence(sequence)
    trace = align_optimal(*pair, matrix, gap_penalty=(-10, -1), terminal_penalty=False, max_number=1)[0].trace
    trace = trace[(trace >= 0).all(axis=1)]
    positions = np.full(len(resolved), -1, np.int64)
    positions[trace[:, 0]] = trace[:, 1]
    same = sum(resolved[i] == sequence[j] for i, j in trace)
    return same, same / max(len(trace), min(len(resolved), len(sequence)) / 2), positions


def _features(chain: AtomArray) -> NDArray[np.float64]:
    """The columns of every residue of a chain, ``(n_residues, 8)``."""
    import biotite.structure as struc

    codes = encode(_letters(chain))
    surface = struc.apply_residue_wise(chain, np.nan_to_num(struc.sasa(chain)), np.sum)
    starts = struc.get_residue_starts(chain, add_exclusive_stop=True)
    centre = np.full((len(codes), 3), np.nan)
    for name in ("CA", "CB"):  # C-beta where there is one
        atoms = np.flatnonzero(chain.atom_name == name)
        centre[np.searchsorted(starts, atoms, side="right") - 1] = chain.coord[atoms]
    distances = np.linalg.norm(centre[:, None] - centre, axis=-1)
    np.fill_diagonal(distances, np.inf)
    near = distances <= 8  # residues without a centre have no contacts
    n_near = near.sum(axis=1)
    states = struc.annotate_sse(chain)
    columns = {
        "rsa": surface / MAX_SURFACE[codes],
        "contacts_8": n_near,
        "contacts_12": (distances <= 12).sum(axis=1),
        "contact_hydrophobicity": near @ PROPERTIES["hydrophobicity"].values[codes] / np.maximum(n_near, 1),
        "charged_contacts": near @ CHARGED[codes].astype(float),
        "helix": states == "a",
        "strand": states == "b",
        "coil": (states != "a") & (states != "b"),
    }
    return np.column_stack([columns[name].astype(float) for name in COLUMNS])
