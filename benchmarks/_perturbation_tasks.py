"""The perturbation tasks: which perturbation a cell had, from its expression alone."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np
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
    "kang": _Spec("kang_ifnb_2000/kang_ifnb_2000.h5ad", condition="condition"),
}

INTERFERON = ("PSMB9", "STAT1", "JAK2", "UBE2L6", "TNFRSF14")
PROGRAMME: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("IFNGR1", "IFNGR2", "JAK2", "STAT1"), INTERFERON),
    "IRF1": ("JAK2", "TNFRSF14"),
    "SMAD4": ("FN1", "CLDN23"),
}
"""Genes of the papalexi panel that a knock-out is known to change; the rank-sum test against control found them."""

STIMULATED = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "ISG20")
"""Genes that interferon beta switches on in every blood cell."""


def own_gene(target: str) -> str:
    """The gene whose promoter or enhancer a target of the TAP-seq screen is: ``GATA1-C`` is an element of GATA1."""
    gene = target.split("-")[0]
    return "HBE1" if gene == "HS2" else gene


def read_screen(name: str, data: str | os.PathLike | None = None) -> Any:
    """A whole data file as its source ships it, a MuData where it is one."""
    path = data_folder(data) / SPECS[name].file
    if not str(path).endswith(".h5mu"):
        return ad.read_h5ad(path)
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pulling columns will do in the next release
        return mudata.read_h5mu(path)


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
    adata = read_screen(name, data)
    if not isinstance(adata, ad.AnnData):
        adata = adata["rna"]
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


def shuffled(task: Task, *, seed: int) -> Task:
    """The task with the labels of its cells permuted, among the training and among the test cells."""
    rng, adata = np.random.default_rng(seed), task.adata.copy()
    labels = adata.obs[task.condition].astype(str).to_numpy().copy()
    for side in (task.train, task.test):
        labels[side] = rng.permutation(labels[side])
    adata.obs[task.condition] = labels
    return replace(task, name=f"{task.name}_shuffled", adata=adata)


def stimulated_types(data: str | os.PathLike | None = None) -> list[Task]:
    """For every cell type of kang_ifnb_labelled a task whose test cells are its stimulated cells; all others are for training.

    The condition is the class, so that a model knows the left-out type in the control cells only.
    """
    adata = ad.read_h5ad(data_folder(data) / "kang_ifnb_labelled/kang_ifnb_labelled.h5ad")
    kind, stimulated = adata.obs["cell_type"].astype(str), (adata.obs["condition"] == "stim").to_numpy()
    tests = {name: (kind == name).to_numpy() & stimulated for name in sorted(kind.unique())}
    return [Task(name, adata, "condition", ~test, test) for name, test in tests.items()]
