"""Gene sets, given as a mapping or as a column of ``var``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray


class GeneSets(NamedTuple):
    """Names of the sets, and which genes are in them, float64 ``(n_vars, n_sets)``."""

    names: list[str]
    members: NDArray[np.float64]

    @classmethod
    def of(cls, gene_sets: str | Mapping[str, Sequence[str]], adata: AnnData) -> Self:
        """The sets of a mapping from names to genes, or the categories of a column of ``var``.

        Raises
        ------
        KeyError, TypeError, ValueError
            No such column; not a mapping; a set without a gene of `adata`; no set at all.
        """
        if isinstance(gene_sets, str):
            if gene_sets not in adata.var:
                raise KeyError(
                    f"gene_sets={gene_sets!r} is not a column of adata.var; available: {adata.var.columns.tolist()}."
                )
            column = adata.var[gene_sets]
            labels = column.astype(str).to_numpy()
            names = sorted(set(labels[column.notna()]))
            members = [labels == name for name in names]
        elif isinstance(gene_sets, Mapping):
            names = [str(name) for name in gene_sets]
            for name, genes in gene_sets.items():
                if isinstance(genes, str):
                    raise TypeError(f"gene_sets[{name!r}] must be a list of genes, got the string {genes!r}.")
            members = [adata.var_names.isin(list(genes)) for genes in gene_sets.values()]
        else:
            raise TypeError(
                f"gene_sets must be a mapping from names to genes or a column of adata.var, got {type(gene_sets).__name__}."
            )
        empty = [name for name, genes in zip(names, members, strict=True) if not genes.any()]
        if empty or not names:
            raise ValueError(
                f"gene_sets must hold genes of adata.var_names (e.g. {adata.var_names[:3].tolist()}); sets without one: {empty[:5]}."
            )
        return cls(names, np.column_stack(members).astype(np.float64))
