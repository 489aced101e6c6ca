"""Published properties of the twenty amino acids, as arrays in alphabetical order of their letters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
UNKNOWN = 20  # code of X, and of what lies beyond the ends of a sequence
_CODES = np.full(256, -1, np.int64)
_CODES[list(LETTERS.encode())] = np.arange(20)
_CODES[ord("X")] = UNKNOWN


class Property(NamedTuple):
    """One number per amino acid; zero for an unknown one."""

    values: NDArray[np.float64]  # (21,)
    unit: str
    meaning: str


def encode(letters: str) -> NDArray[np.int64]:
    """Code of every letter: 0 to 19, 20 for X, -1 for any other character."""
    return _CODES[np.frombuffer(letters.encode("latin-1", "replace"), np.uint8)]


def _table(text: str) -> NDArray[np.float64]:
    return np.array([float(number) for number in text.split()] + [0.0])


def _flags(letters: str, value: float = 1.0) -> NDArray[np.float64]:
    return value * np.array([letter in letters for letter in LETTERS] + [False])


CHARGED = _flags("DEKR") > 0

PROPERTIES = {
    "hydrophobicity": Property(  # A C D E F G H I K L M N P Q R S T V W Y, as in all tables
        _table("1.8 2.5 -3.5 -3.5 2.8 -0.4 -3.2 4.5 -3.9 3.8 1.9 -3.5 -1.6 -3.5 -4.5 -0.8 -0.7 4.2 -0.9 -1.3"),
        "",
        "hydropathy (Kyte & Doolittle 1982)",
    ),
    "volume": Property(
        _table(
            "88.6 108.5 111.1 138.4 189.9 60.1 153.2 166.7 168.6 166.7 162.9 114.1 112.7 143.8 173.4 89 116.1 140 227.8 193.6"
        ),
        "A^3",
        "volume of the residue (Zamyatnin 1972)",
    ),
    "charge": Property(_flags("KR") - _flags("DE"), "e", "charge at pH 7, histidine neutral"),
    "polarity": Property(
        _table("8.1 5.5 13 12.3 5.2 9 10.4 5.2 11.3 4.9 5.7 11.6 8 10.5 10.5 9.2 8.6 5.9 5.4 6.2"),
        "",
        "polarity (Grantham 1974)",
    ),
    "helix_propensity": Property(
        _table("0 .68 .69 .40 .54 1 .61 .41 .26 .21 .24 .65 3.16 .39 .21 .50 .66 .61 .49 .53"),
        "kcal/mol",
        "free energy in a helix above that of alanine (Pace & Scholtz 1998)",
    ),
    "beta_propensity": Property(
        _table(".83 1.19 .54 .37 1.38 .75 .87 1.60 .74 1.30 1.05 .89 .55 1.10 .93 .75 1.19 1.70 1.37 1.47"),
        "",
        "propensity for strands (Chou & Fasman 1978)",
    ),
    "aromatic": Property(_flags("FHWY"), "", "aromatic ring: F, H, W or Y"),
    "flexibility": Property(
        _table(".357 .346 .511 .497 .314 .544 .323 .462 .466 .365 .295 .463 .509 .493 .529 .507 .444 .386 .305 .420"),
        "",
        "average flexibility (Bhaskaran & Ponnuswamy 1988)",
    ),
}

# largest accessible surface in Gly-X-Gly, theoretical values of Tien et al., PLoS ONE 8:e80635 (2013), square Angstrom
MAX_SURFACE = _table("129 167 193 223 240 104 224 197 236 201 224 195 159 225 274 155 172 174 285 263")
MAX_SURFACE[UNKNOWN] = np.nan

# Henikoff & Henikoff, PNAS 89:10915 (1992); rows and columns as in LETTERS, then zeros for X
_BLOSUM62 = """
 4  0 -2 -1 -2  0 -2 -1 -1 -1 -1 -2 -1 -1 -1  1  0  0 -3 -2
 0  9 -3 -4 -2 -3 -3 -1 -3 -1 -1 -3 -3 -3 -3 -1 -1 -1 -2 -2
-2 -3  6  2 -3 -1 -1 -3 -1 -4 -3  1 -1  0 -2  0 -1 -3 -4 -3
-1 -4  2  5 -3 -2  0 -3  1 -3 -2  0 -1  2  0  0 -1 -2 -3 -2
-2 -2 -3 -3  6 -3 -1  0 -3  0  0 -3 -4 -3 -3 -2 -2 -1  1  3
 0 -3 -1 -2 -3  6 -2 -4 -2 -4 -3  0 -2 -2 -2  0 -2 -3 -2 -3
-2 -3 -1  0 -1 -2  8 -3 -1 -3 -2  1 -2  0  0 -1 -2 -3 -2  2
-1 -1 -3 -3  0 -4 -3  4 -3  2  1 -3 -3 -3 -3 -2 -1  3 -3 -1
-1 -3 -1  1 -3 -2 -1 -3  5 -2 -1  0 -1  1  2  0 -1 -2 -3 -2
-1 -1 -4 -3  0 -4 -3  2 -2  4  2 -3 -3 -2 -2 -2 -1  1 -2 -1
-1 -1 -3 -2  0 -3 -2  1 -1  2  5 -2 -2  0 -1 -1 -1  1 -1 -1
-2 -3  1  0 -3  0  1 -3  0 -3 -2  6 -2  0  0  1  0 -3 -4 -2
-1 -3 -1 -1 -4 -2 -2 -3 -1 -3 -2 -2  7 -1 -2 -1 -1 -2 -4 -3
-1 -3  0  2 -3 -2  0 -3  1 -2  0  0 -1  5  1  0 -1 -2 -2 -1
-1 -3 -2  0 -3 -2  0 -3  2 -2 -1  0 -2  1  5 -1 -1 -3 -3 -2
 1 -1  0  0 -2  0 -1 -2  0 -2 -1  1 -1  0 -1  4  1 -2 -3 -2
 0 -1 -1 -1 -2 -2 -2 -1 -1 -1 -1  0 -1 -1 -1  1  5  0 -2 -2
 0 -1 -3 -2 -1 -3 -3  3 -2  1  1 -3 -2 -2 -3 -2  0  4 -3 -1
-3 -2 -4 -3  1 -2 -2 -3 -3 -2 -1 -4 -4 -2 -3 -3 -2 -3 11  2
-2 -2 -3 -2  3 -3  2 -1 -2 -1 -1 -2 -3 -1 -2 -2 -2 -1  2  7
"""
BLOSUM62 = np.zeros((21, 21))
BLOSUM62[:20, :20] = [[float(score) for score in row.split()] for row in _BLOSUM62.strip().splitlines()]
