"""The cell-type tasks of the accuracy benchmark: one recipe turns every data file into train and test cells."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd

MIN_TRAIN_CELLS = 8
"""Classes with fewer training cells are dropped, from both sides."""

Kind = Literal["counts", "log", "protein"]


@dataclass(frozen=True)
class Task:
    """Cells, labels and split of one classification task.

    Parameters
    ----------
    name
        Name of the task.
    adata
        The cells of both sides that take part; ``X`` as shipped (raw counts, or log-normalised where ``kind`` says so).
    condition
        ``obs`` column with the label.
    train, test
        Boolean masks over ``adata``, disjoint, together all cells.
    group
        ``obs`` column with donor / batch / study; ``None`` if the training cells belong to one group only.
    kind
        ``counts`` (UMI counts of RNA), ``log`` (log-normalised RNA) or ``protein`` (antibody counts).
    layer
        Layer that holds the values; ``None`` for ``X``.
    """

    name: str
    adata: ad.AnnData
    condition: str
    train: np.ndarray
    test: np.ndarray
    group: str | None = None
    kind: Kind = "counts"
    layer: str | None = None

    @property
    def classes(self) -> list[str]:
        """Classes of the training cells, sorted."""
        return sorted(self.adata.obs[self.condition].astype(str)[self.train].unique())

    def codes(self, mask: np.ndarray) -> np.ndarray:
        """Class codes, shape (n,), of the cells under ``mask``."""
        return pd.Categorical(self.adata.obs[self.condition].astype(str)[mask], categories=self.classes).codes.astype(
            int
        )

    def cells(self, mask: np.ndarray) -> ad.AnnData:
        """A copy of the cells under ``mask``, as a user would pass them: without unused categories."""
        out = self.adata[mask].copy()
        for name in out.obs.columns:
            if isinstance(out.obs[name].dtype, pd.CategoricalDtype):
                out.obs[name] = out.obs[name].cat.remove_unused_categories()
        return out

    def describe(self) -> str:
        """One line: sizes and kind."""
        group = f", groups: {self.group}" if self.group else ""
        return (
            f"{self.name}: {int(self.train.sum())} training / {int(self.test.sum())} test cells, "
            f"{len(self.classes)} classes, {self.adata.n_vars} features ({self.kind}{group})"
        )


@dataclass(frozen=True)
class _Spec:
    """Where a task comes from and which column says what; nothing here tunes a method."""

    file: str
    condition: str
    group: str | None = None
    kind: Kind = "counts"
    test_file: str | None = None
    test_split: tuple[str, ...] = ("test",)


SPECS: dict[str, _Spec] = {
    "pbmc3k": _Spec("pbmc3k", "cell_type_fine"),
    "pbmc_zheng_sorted": _Spec("pbmc_zheng_sorted", "cell_type_fine"),
    "paul15": _Spec("paul15", "cluster"),
    "mca_bladder": _Spec("mca_bladder", "cell_type"),
    "onek1k_subset": _Spec("onek1k_subset", "cell_type", group="donor"),
    "kang_ifnb_labelled": _Spec("kang_ifnb_labelled", "cell_type", group="donor"),
    "pbmc_symphony": _Spec("pbmc_symphony", "cell_type", group="batch", kind="log"),
    "minimars_adt": _Spec("minimars_adt", "cell_type", kind="protein"),
    "pancreas_wang_xin": _Spec("pancreas_wang_xin", "cell_type", group="study", kind="log"),
    "cross_zheng_pbmc3k": _Spec("pbmc_zheng_sorted", "cell_type", test_file="pbmc3k"),
    "adt_multistudy": _Spec("adt_multistudy", "cell_type", group="study", kind="protein"),
    "adt_multistudy_fine": _Spec("adt_multistudy", "cell_type_fine", group="study", kind="protein"),
    "sc_mixology": _Spec("sc_mixology", "cell_line", group="batch"),
}

DEFAULT_TASKS: tuple[str, ...] = tuple(name for name in SPECS if name != "sc_mixology")
"""All tasks but the saturated one."""


def data_folder(path: str | os.PathLike | None = None) -> Path:
    """The data folder: ``path``, else ``$SCSCORE_DATA``, else ``../shared/data`` relative to the repository root.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(path or os.environ.get("SCSCORE_DATA") or default)
    if not folder.is_dir():
        raise FileNotFoundError(f"no data folder at {folder}: give it by --data or the variable SCSCORE_DATA")
    return folder


def _read(folder: Path, name: str) -> ad.AnnData:
    path = folder / name / f"{name}.h5ad"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return ad.read_h5ad(path)


def load_task(name: str, data: str | os.PathLike | None = None) -> Task:
    """Load one task.

    The ``split`` column decides (train + val against test); in a cross-study task the first file is the training side
    as a whole and the second one the test side, on the genes they share. Cells without a label, classes with fewer than
    8 training cells and test cells of classes unseen in training are dropped.

    Parameters
    ----------
    name
        A key of :data:`SPECS`.
    data
        Data folder, see :func:`data_folder`.

    Raises
    ------
    KeyError
        If the task is unknown.
    """
    if name not in SPECS:
        raise KeyError(f"unknown task {name!r}; the tasks are {', '.join(SPECS)}")
    spec, folder = SPECS[name], data_folder(data)
    adata = _read(folder, spec.file)
    if spec.test_file is None:
        split = adata.obs["split"].astype(str)
        train, test = split.isin(["train", "val"]).to_numpy(), split.isin(spec.test_split).to_numpy()
    else:
        other = _read(folder, spec.test_file)
        train = np.arange(adata.n_obs + other.n_obs) < adata.n_obs
        test = ~train
        adata = ad.concat([adata, other], join="inner", index_unique="-", keys=[spec.file, spec.test_file])
    label = adata.obs[spec.condition]
    size = label[train].value_counts()
    keep = (label.notna() & label.isin(size.index[size >= MIN_TRAIN_CELLS])).to_numpy()
    use = keep & (train | test)
    adata, train, test = adata[use].copy(), train[use], test[use]
    group = spec.group
    if group is not None and adata.obs[group][train].nunique() < 2:
        group = None
    return Task(name, adata, spec.condition, train, test, group=group, kind=spec.kind)
