"""Matches the genes of a query to the genes of a model."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{11}(\.\d+)?$")
_VERSION = re.compile(r"(?<=\d{11})\.\d+$")
_WARN_BELOW, _REFUSE_BELOW = 0.8, 0.5


@dataclass(frozen=True)
class GeneAlignment:
    """Where the genes of a model are in a query.

    Attributes
    ----------
    position
        For every gene of the model its column in the query, or -1 where it is missing.
    n_extra
        Number of genes of the query that the model does not know (ignored).
    """

    position: NDArray[np.int64]
    n_extra: int

    @property
    def n_missing(self) -> int:
        """Number of genes of the model that the query lacks."""
        return int((self.position < 0).sum())

    @property
    def overlap(self) -> float:
        """Fraction of the genes of the model that the query has."""
        return 1 - self.n_missing / len(self.position)

    def report(self) -> str:
        """One sentence for logs and warnings."""
        n = len(self.position)
        return (
            f"{n - self.n_missing} of the model's {n} genes found ({int(100 * self.overlap)}%); "
            f"{self.n_missing} missing (filled with the training mean), {self.n_extra} extra (ignored)"
        )


def check_unique(adata: AnnData) -> None:
    """Raise ValueError when variable names are duplicated."""
    duplicated = adata.var_names[adata.var_names.duplicated()].unique()
    if len(duplicated):
        raise ValueError(
            f"adata.var_names holds {len(duplicated)} duplicated name(s), e.g. {list(duplicated[:3])}. "
            "Call adata.var_names_make_unique() or aggregate the duplicates first."
        )


def align_genes(genes: NDArray[np.str_], query: AnnData) -> GeneAlignment:
    """Find the genes of a model in a query.

    Raises
    ------
    ValueError
        Duplicated names, less than half of the genes found, or gene symbols on one side and Ensembl IDs on the other.

    Warns
    -----
    UserWarning
        Some genes of the model are missing in the query.
    """
    check_unique(query)
    position = query.var_names.get_indexer(pd.Index(genes))
    alignment = GeneAlignment(position.astype(np.int64), int(query.n_vars - (position >= 0).sum()))
    if alignment.overlap < _REFUSE_BELOW:
        raise ValueError(
            f"Too few shared genes: {alignment.report()}; at least {_REFUSE_BELOW:.0%} are needed.{_naming_hint(genes, query)}"
        )
    if alignment.n_missing:
        strength = "Many genes are missing, expect a loss of accuracy: " if alignment.overlap < _WARN_BELOW else ""
        warnings.warn(f"{strength}{alignment.report()}.", UserWarning, stacklevel=6)
    return alignment


def _naming_hint(genes: NDArray[np.str_], query: AnnData) -> str:
    model_kind, query_kind = _kind(genes), _kind(query.var_names.to_numpy(dtype=str))
    hint = ""
    if model_kind != query_kind:
        hint = f" The model uses {model_kind} (e.g. {genes[0]}), the query {query_kind} (e.g. {query.var_names[0]})."
    known = set(genes.tolist())
    shares = {name: len(known & set(column.astype(str))) / len(genes) for name, column in query.var.items()}
    best = max(shares, key=lambda name: shares[name], default=None)
    if best is not None and shares[best] >= _REFUSE_BELOW:
        return f"{hint} The column query.var[{best!r}] matches: set query.var_names = query.var[{best!r}]."
    if hint:
        return f"{hint} Convert query.var_names to {model_kind}."
    missing = [name for name in genes.tolist() if name not in query.var_names][:3]
    hint = f" The query lacks genes such as {missing}, it has {query.var_names[:3].tolist()}."
    unversioned = {_VERSION.sub("", name) for name in known} & {_VERSION.sub("", name) for name in query.var_names}
    if len(unversioned) / len(genes) >= _REFUSE_BELOW:
        hint += " The names differ by Ensembl version suffixes (.1): use the same ones as the model."
    return hint


def _kind(names: NDArray[np.str_]) -> str:
    sample = names[:200]
    return "Ensembl IDs" if sum(bool(_ENSEMBL.match(name)) for name in sample) > len(sample) / 2 else "gene symbols"
