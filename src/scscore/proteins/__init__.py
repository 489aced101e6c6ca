"""Protein variants as AnnData: one row per variant, named features of sequence and structure."""

from scscore.proteins._structure import structure_features
from scscore.proteins._variants import variants

__all__ = ["structure_features", "variants"]
