"""The regression tasks: stability of protein variants, fitness, and two continuous targets of cells."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _peers import CLIP, represent
from _tasks import Task, data_folder
from anndata import AnnData

MAX_TRAIN = 30_000
EVOLUTION = ("LOR", "GEMME_epi", "EVCouplings_epi", "ArDCA")
RIVALS = ("PoPMuSiC", "GEMME_epi", "ArDCA")
"""Columns of the file of :data:`EVOLUTION` that are predictors of their own."""

SITES = ("V39", "D40", "G41", "V54")
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@dataclass(frozen=True)
class RegressionTask:
    """Training and test rows with the same columns.

    Parameters
    ----------
    name
        Name of the task.
    train, test
        The rows of both sides, with the target and the columns below in ``obs``.
    target
        ``obs`` column with the values.
    groups
        ``obs`` column whose levels stay together in cross-validation; ``None``: rows are drawn alone.
    proteins
        ``obs`` column within whose levels ranks are compared; ``None``: there are none.
    kind
        ``values`` (named features) or ``counts`` (cells, UMI counts).
    parts
        Masks over the test rows that are reported apart, by the ending of the name; empty: all together.
    rivals
        ``obs`` columns that are reported as predictors.
    left_out
        Rows of the files that are not used.
    note
        What a reader of the numbers must know.
    """

    name: str
    train: AnnData
    test: AnnData
    target: str
    groups: str | None = None
    proteins: str | None = None
    kind: Literal["values", "counts"] = "values"
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()
    left_out: int = 0
    note: str = ""

    def y(self, side: AnnData) -> np.ndarray:
        """Values of the target on one side, ``(n,)``."""
        return side.obs[self.target].to_numpy(np.float64)

    def group_labels(self) -> np.ndarray | None:
        """Groups of the training rows."""
        return None if self.groups is None else self.train.obs[self.groups].astype(str).to_numpy()

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """What the peers see: standardised by the training rows; of cells, PCA-50 of all genes fitted on the training cells."""
        if self.kind == "counts":
            both = ad.concat([self.train, self.test])
            train = np.arange(both.n_obs) < self.train.n_obs
            found = represent(Task(self.name, both, self.target, train, ~train), "allgenes")
            return found.train, found.test
        x, x_test = (np.asarray(side.X, dtype=np.float64) for side in (self.train, self.test))
        mean, sd = x.mean(0), x.std(0)
        sd[sd == 0] = 1.0
        return tuple(np.clip((v - mean) / sd, -CLIP, CLIP) for v in (x, x_test))

    def describe(self) -> str:
        """One line: sizes, target, groups, rows left out."""
        groups = f", groups: {self.groups}" if self.groups else ""
        left_out = f", {self.left_out} rows left out" if self.left_out else ""
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.name}: {self.train.n_obs} training / {self.test.n_obs} test rows, {self.train.n_vars} features "
            f"({self.kind}), target {self.target}{groups}{left_out}{note}"
        )


def _table(folder: Path, name: str) -> pd.DataFrame:
    path = folder / name / f"{name}.csv.gz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return pd.read_csv(path, low_memory=False)


def _every(table: pd.DataFrame, max_train: int) -> pd.DataFrame:
    """Every k-th row, so that at most `max_train` are left; 0: all. Rows come by protein and position: each keeps its share."""
    return table if not max_train else table.iloc[:: -(-len(table) // max_train)]


def _agrees(mutation: str, sequence: str) -> bool:
    """Whether a substitution has the letter of the sequence as its wild type."""
    found = re.fullmatch(r"([A-Z])(\d+)([A-Z])", mutation)
    if found is None or not 1 <= int(found[2]) <= len(sequence):
        return False
    return sequence[int(found[2]) - 1] == found[1] != found[3]


def _split(adata: AnnData) -> tuple[AnnData, AnnData]:
    """Training and test rows by ``obs["side"]``."""
    side = adata.obs["side"].astype(str).to_numpy()
    return adata[side == "train"].copy(), adata[side == "test"].copy()


def _megascale(folder: Path, max_train: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """Training rows, thinned, and all test rows; sequences by name."""
    table = _table(folder, "megascale_ddg").assign(side=lambda t: t["split"])
    table = table[
        ["protein_id", "family", "mutation_fasta", "DDG", "RSA", *dict.fromkeys((*EVOLUTION, *RIVALS)), "side"]
    ]
    train = _every(table[table["side"] == "train"], max_train)
    sequences = pd.read_csv(folder / "megascale_ddg" / "proteins.csv").set_index("protein_id")["sequence"]
    return pd.concat([train, table[table["side"] == "test"]], ignore_index=True), sequences.to_dict()


def _variants(table: pd.DataFrame, sequences: Mapping[str, str], **options: object) -> AnnData:
    """Features of variants whose ddG is positive for destabilising substitutions."""
    import scscore as scs

    names = {"protein": "protein_id", "mutation": "mutation_fasta", "target": "DDG"}
    return scs.proteins.variants(table, **names, positive="destabilising", sequences=sequences, **options)


def megascale(folder: Path, max_train: int, *, evolution: bool = False) -> RegressionTask:
    """Stability of domains of unseen families, from sequence and structure; with `evolution` also from alignments."""
    table, sequences = _megascale(folder, max_train)
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(folder / "megascale_ddg" / "structures.tar.gz") as archive:
            archive.extractall(unpacked, filter="data")
        structures = {path.stem: path for path in Path(unpacked).rglob("*.pdb")}
        adata = _variants(table, sequences, structures=structures, extra=EVOLUTION if evolution else ())
    name, rivals = ("megascale_evolution", RIVALS) if evolution else ("megascale", ())
    return RegressionTask(name, *_split(adata), "DDG", "family", "protein", rivals=rivals)


def s4038(folder: Path, max_train: int) -> RegressionTask:
    """Classical measurements on seven other proteins, from models of megascale: sequence and accessibility, no structures."""
    table, sequences = _megascale(folder, max_train)
    other = _table(folder, "s4038_ddg").assign(side="test")
    both = pd.concat([table[table["side"] == "train"], other[[c for c in table.columns if c in other]]])
    sequences |= dict(zip(other["protein_id"], other["sequence"], strict=True))
    kept = [_agrees(m, sequences[p]) for m, p in zip(both["mutation_fasta"], both["protein_id"], strict=True)]
    both = both[kept].reset_index(drop=True)
    adata = _variants(both, sequences, extra=("RSA",))
    note = "2src and 1nmv contain domains that are among the training proteins"
    left_out = len(kept) - sum(kept)
    return RegressionTask("s4038", *_split(adata), "DDG", "family", "protein", left_out=left_out, note=note)


def ssym(folder: Path, max_train: int) -> RegressionTask:
    """Direct and inverse substitutions, whose ddG is each other's opposite, from models of megascale: sequence only."""
    table, sequences = _megascale(folder, max_train)
    other = _table(folder, "ssym_ddg")
    agrees = pd.Series([_agrees(m, s) for m, s in zip(other["MUT"], other["SEQ"], strict=True)], index=other.index)
    most = agrees.groupby([other["CLUID"], other["direction"]]).transform("mean") >= 0.5
    kept = (
        agrees & most
    ).to_numpy()  # where most rows of a protein disagree, its numbering is another one, and the rest agree by chance
    other = other[kept]
    sequences |= dict(zip(other["PDB"], other["SEQ"], strict=True))
    other = pd.DataFrame(
        {
            "protein_id": other["PDB"],
            "family": other["CLUID"],  # of the inverse substitutions, every protein is another mutant
            "mutation_fasta": other["MUT"],
            "DDG": -other["DDG"],  # negative values are destabilising in this file
            "direction": other["direction"],
            "side": "test",
        }
    )
    both = pd.concat([table.loc[table["side"] == "train", list(other.columns[:4]) + ["side"]], other])
    train, test = _split(_variants(both.assign(direction=both["direction"].fillna("")), sequences))
    direction = test.obs["direction"].astype(str).to_numpy()
    parts = {"direct": direction == "dir", "inverse": direction == "inv"}
    left_out = int((~kept).sum())
    return RegressionTask("ssym", train, test, "DDG", "family", "family", parts=parts, left_out=left_out)


def fireprot(folder: Path, max_train: int, *, at_random: bool = False) -> RegressionTask:
    """Curated measurements: unseen homologues, or random rows, where the same proteins are on both sides, as published."""
    table = _table(folder, "fireprot_ddg")
    table["mutation_fasta"] = table["wild_type"] + table["position"].astype(str) + table["mutation"]
    table = table.rename(columns={"uniprot_id": "protein_id", "ddG": "DDG"})
    if at_random:
        test = np.random.default_rng(0).permutation(len(table)) < round(0.2 * len(table))
    else:
        test = (table["split"] == "test").to_numpy()
    table["side"] = np.where(test, "test", "train")
    kept = [_agrees(m, s) for m, s in zip(table["mutation_fasta"], table["sequence"], strict=True)]
    sequences = dict(zip(table["protein_id"], table["sequence"], strict=True))
    table = table.loc[kept, ["protein_id", "mutation_fasta", "DDG", "pH", "asa", "conservation", "side"]]
    table = pd.concat([_every(table[table["side"] == "train"], max_train), table[table["side"] == "test"]])
    adata = _variants(table.reset_index(drop=True), sequences, extra=("pH", "asa", "conservation"))
    name, groups = ("fireprot_random", None) if at_random else ("fireprot", "protein")
    note = "the same proteins on both sides" if at_random else ""
    left_out = len(kept) - sum(kept)
    return RegressionTask(name, *_split(adata), "DDG", groups, "protein", left_out=left_out, note=note)


def gb1(folder: Path, max_train: int, *, split: str) -> RegressionTask:
    """Fitness of variants at four sites: one-hot letters, and hydropathy, volume and charge of every site."""
    from scscore.proteins._amino_acids import PROPERTIES

    table = _table(folder, "gb1_landscape")
    table = table[table["keep"].astype(str) == "True"]
    table = pd.concat([_every(table[table[split] == "train"], max_train), table[table[split] == "test"]])
    codes = np.array([[LETTERS.index(letter) for letter in word] for word in table["Variants"]])
    columns = {
        f"{site}_{letter}": codes[:, i] == k for i, site in enumerate(SITES) for k, letter in enumerate(LETTERS)
    } | {
        f"{site}_{name}": PROPERTIES[name].values[codes[:, i]]
        for i, site in enumerate(SITES)
        for name in ("hydrophobicity", "volume", "charge")
    }
    obs = table[["Variants", "Fitness"]].assign(side=table[split]).set_index("Variants")
    values = np.column_stack(list(columns.values())).astype(np.float32)
    adata = AnnData(values, obs=obs, var=pd.DataFrame(index=list(columns)))
    return RegressionTask(f"gb1_{split}", *_split(adata), "Fitness")


def _cells(folder: Path, name: str) -> AnnData:
    adata = ad.read_h5ad(folder / name / f"{name}.h5ad")
    adata.obs["side"] = np.where(adata.obs["split"] == "test", "test", "train")
    return adata


def onek1k_age(folder: Path, max_train: int) -> RegressionTask:
    """Age of the donor of a blood cell, donors unseen."""
    train, test = _split(_cells(folder, "onek1k_subset"))
    train = train[_every(pd.DataFrame({"row": np.arange(train.n_obs)}), max_train)["row"]].copy()
    donors = [side.obs["donor"].nunique() for side in (train, test)]
    note = f"{donors[0]} donors for training, {donors[1]} for test, one age each"
    return RegressionTask("onek1k_age", train, test, "age", "donor", kind="counts", note=note)


def paul15_pseudotime(folder: Path, max_train: int) -> RegressionTask:
    """Diffusion pseudotime from the middle of the MEP cluster, of all cells, test cells included; expression tells it."""
    adata = _cells(folder, "paul15")
    cells = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
        sc.pp.highly_variable_genes(cells, n_top_genes=2000)
        sc.pp.pca(cells, n_comps=50, svd_solver="arpack", random_state=0)
        sc.pp.neighbors(cells, n_neighbors=15, random_state=0)
        sc.tl.diffmap(cells)
        early = np.flatnonzero(cells.obs["cluster"] == "7MEP")
        x = cells.obsm["X_pca"][early]
        cells.uns["iroot"] = int(early[np.linalg.norm(x - x.mean(0), axis=1).argmin()])
        sc.tl.dpt(cells, n_dcs=10)
    adata.obs["dpt_pseudotime"] = cells.obs["dpt_pseudotime"].to_numpy(np.float64)
    train, test = _split(adata)
    train = train[_every(pd.DataFrame({"row": np.arange(train.n_obs)}), max_train)["row"]].copy()
    note = "pseudotime of all cells, test cells included"
    return RegressionTask("paul15_pseudotime", train, test, "dpt_pseudotime", kind="counts", note=note)


LOADERS: dict[str, Callable[[Path, int], RegressionTask]] = {
    "megascale": megascale,
    "megascale_evolution": lambda folder, max_train: megascale(folder, max_train, evolution=True),
    "s4038": s4038,
    "ssym": ssym,
    "fireprot": fireprot,
    "fireprot_random": lambda folder, max_train: fireprot(folder, max_train, at_random=True),
    "gb1_two_vs_rest": lambda folder, max_train: gb1(folder, max_train, split="two_vs_rest"),
    "gb1_three_vs_rest": lambda folder, max_train: gb1(folder, max_train, split="three_vs_rest"),
    "gb1_sampled": lambda folder, max_train: gb1(folder, max_train, split="sampled"),
    "onek1k_age": onek1k_age,
    "paul15_pseudotime": paul15_pseudotime,
}


def load_task(name: str, data: str | os.PathLike[str] | None = None, *, max_train: int = MAX_TRAIN) -> RegressionTask:
    """Load one task.

    Parameters
    ----------
    name
        A key of :data:`LOADERS`.
    data
        Data folder, see :func:`_tasks.data_folder`.
    max_train
        Use every k-th training row, so that at most this many are left; 0: all. Test rows are never left out.

    Raises
    ------
    KeyError
        If the task is unknown.
    """
    if name not in LOADERS:
        raise KeyError(f"unknown task {name!r}; the tasks are {', '.join(LOADERS)}")
    return LOADERS[name](data_folder(data), max_train)
