"""The perturbation tasks: which perturbation a cell had, from its expression alone."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import anndata as ad
import pandas as pd
from _tasks import MIN_TRAIN_CELLS, Task, data_folder

CONTROL = "control"


@dataclass(frozen=True)
class _Spec:
    """Where a task comes from; nothing here tunes a method.

    ``group`` is what the test cells are new in (replicates, guides, patients), ``None`` where they are not.
    """

    file: str
    condition: str = "perturbation"
    split: str = "split"
    group: str | None = None
    only: tuple[str, ...] | None = None


SPECS: dict[str, _Spec] = {
    "papalexi": _Spec("papalexi_thp1/papalexi_thp1.h5mu", group="bio_rep"),
    "papalexi_5way": _Spec(
        "papalexi_thp1/papalexi_thp1.h5mu", group="bio_rep", only=(CONTROL, "IFNGR1", "IFNGR2", "JAK2", "STAT1")
    ),
    "tapseq": _Spec("schraivogel_tapseq/schraivogel_tapseq_lane1.h5mu"),
    "tapseq_guides": _Spec("schraivogel_tapseq/schraivogel_tapseq_lane1.h5mu", split="guide_split", group="guide"),
    "panobinostat": _Spec(
        "glioblastoma_panobinostat/glioblastoma_panobinostat.h5ad", condition="condition", group="patient_id"
    ),
}


def _read(path: str | os.PathLike) -> ad.AnnData:
    if not str(path).endswith(".h5mu"):
        return ad.read_h5ad(path)
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pulling columns will do in the next release
        return mudata.read_h5mu(path)["rna"]


def load_task(name: str, data: str | os.PathLike | None = None) -> Task:
    """Load one task: cells with an ambiguous guide or without one are left out, and classes with fewer than 8 training cells.

    Parameters
    ----------
    name
        A key of :data:`SPECS`.
    data
        Data folder, see :func:`_tasks.data_folder`.
    """
    spec = SPECS[name]
    adata = _read(data_folder(data) / spec.file)
    label, split = adata.obs[spec.condition].astype(str), adata.obs[spec.split].astype(str)
    keep = (label != "unassigned").to_numpy()
    if "ambiguous_guide" in adata.obs:
        keep &= ~adata.obs["ambiguous_guide"].to_numpy(dtype=bool)
    if spec.only is not None:
        keep &= label.isin(spec.only).to_numpy()
    size: pd.Series = label[keep & (split != "test").to_numpy()].value_counts()
    keep &= label.isin(size.index[size >= MIN_TRAIN_CELLS]).to_numpy()
    test = (split == "test").to_numpy()[keep]
    return Task(name, adata[keep].copy(), spec.condition, ~test, test, group=spec.group)
