"""Matching the genes of a query to those of a model."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scscore.io.genes import GeneAlignment, align_genes, check_unique

SYMBOLS = np.array([f"Gene-{j}" for j in range(10)])
ENSEMBL = np.array([f"ENSG{j:011d}" for j in range(10)])


def query(names: list[str], /, **columns: list[str]) -> AnnData:
    return AnnData(np.zeros((1, len(names))), var=pd.DataFrame(columns, index=names))


def test_every_gene_finds_its_column():
    order = np.random.default_rng(0).permutation(10)
    adata = query(["new", *SYMBOLS[order], "newer"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alignment = align_genes(SYMBOLS, adata)
    assert adata.var_names[alignment.position].tolist() == SYMBOLS.tolist()
    assert (alignment.n_missing, alignment.n_extra, alignment.overlap) == (0, 2, 1.0)


def test_missing_genes_are_marked_and_counted():
    with pytest.warns(
        UserWarning, match=r"^9 of the model's 10 genes found \(90%\); 1 missing .*, 1 extra \(ignored\)"
    ):
        alignment = align_genes(SYMBOLS, query([*SYMBOLS[1:], "new"]))
    assert alignment.position.tolist() == [-1, *range(9)]
    assert (alignment.n_missing, alignment.n_extra, alignment.overlap) == (1, 1, 0.9)


@pytest.mark.parametrize(("n", "strong"), [(8, False), (7, True), (5, True)])
def test_the_warning_is_stronger_below_four_in_five(n: int, strong: bool):
    with pytest.warns(UserWarning) as caught:
        align_genes(SYMBOLS, query(SYMBOLS[:n].tolist()))
    assert len(caught) == 1
    assert str(caught[0].message).startswith("Many genes are missing") == strong


@pytest.mark.parametrize("n", [0, 1, 4])
def test_less_than_half_is_refused(n: int):
    with pytest.raises(ValueError, match=rf"{n} of the model's 10 genes found .*at least 50%.*lacks.*Gene-{n}"):
        align_genes(SYMBOLS, query([*SYMBOLS[:n], *(f"new{j}" for j in range(10))]))


@pytest.mark.parametrize(
    ("model", "other", "said"),
    [
        (SYMBOLS, ENSEMBL, "The model uses gene symbols .*Gene-0.*, the query Ensembl IDs .*ENSG00000000000"),
        (ENSEMBL, SYMBOLS, "The model uses Ensembl IDs .*ENSG00000000000.*, the query gene symbols .*Gene-0"),
        (SYMBOLS, np.array([f"ENSMUSG{j:011d}.4" for j in range(10)]), "the query Ensembl IDs"),
    ],
)
def test_symbols_against_ensembl_names_both_kinds_and_the_column(model: np.ndarray, other: np.ndarray, said: str):
    with pytest.raises(ValueError, match=f"{said}.*Convert query.var_names to"):
        align_genes(model, query(other.tolist(), other=["x"] * 10))
    with pytest.raises(ValueError, match=rf"{said}.*set query.var_names = query.var\['names'\]"):
        align_genes(model, query(other.tolist(), other=["x"] * 10, names=model.tolist()))
    categorical = query(other.tolist(), names=model.tolist())
    categorical.var["names"] = categorical.var["names"].astype("category")
    with pytest.raises(ValueError, match=r"query.var\['names'\]"):
        align_genes(model, categorical)


def test_a_column_that_repeats_one_gene_is_no_match():
    with pytest.raises(ValueError, match="Too few shared genes") as caught:
        align_genes(SYMBOLS, query(ENSEMBL.tolist(), repeated=["Gene-0"] * 10))
    assert "repeated" not in str(caught.value)


def test_the_advice_works():
    adata = query(ENSEMBL.tolist(), names=SYMBOLS[::-1].tolist())
    with pytest.raises(ValueError, match="set query.var_names"):
        align_genes(SYMBOLS, adata)
    adata.var_names = adata.var["names"]
    assert align_genes(SYMBOLS, adata).position.tolist() == list(range(10))[::-1]


def test_version_suffixes_are_recognised():
    versioned = [f"{name}.{j + 1}" for j, name in enumerate(ENSEMBL)]
    for model, other in ((ENSEMBL, versioned), (np.array(versioned), ENSEMBL.tolist())):
        with pytest.raises(ValueError, match="differ by Ensembl version suffixes"):
            align_genes(model, query(other))
    with pytest.raises(ValueError, match="Too few shared genes") as caught:
        align_genes(SYMBOLS, query(SYMBOLS[:3].tolist()))
    assert "suffix" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_duplicated_names_are_refused():
    adata = query(["a", "b", "a", "c", "c", "c"])
    for call in (check_unique, lambda adata: align_genes(np.array(["a"]), adata)):
        with pytest.raises(ValueError, match=r"2 duplicated name\(s\), e.g. \['a', 'c'\].*var_names_make_unique"):
            call(adata)


def test_report_adds_up():
    report = GeneAlignment(np.array([0, -1, 3, -1]), n_extra=5).report()
    assert report.startswith("2 of the model's 4 genes found (50%); 2 missing")
    assert "5 extra" in report
