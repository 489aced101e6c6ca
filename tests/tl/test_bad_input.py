"""What bad input gets: an error that names the argument, what was found and the fix; before any compute; data untouched."""

import re
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from anndata.tests.helpers import assert_equal
from mudata import MuData

import scscore as scs
from scscore import model as score_model
from scscore.core import reference_fit, validation
from scscore.io.representation import PCAEncoder

Change = Callable[[AnnData], AnnData | None]

SYMBOLS = [f"gene{j}" for j in range(60)]
ENSEMBL = [f"ENSG{j:011d}" for j in range(60)]
REP = np.random.default_rng(0).normal(size=(240, 4)) + (np.arange(240) % 3)[:, None]


def fit(adata: AnnData, condition: Any = "cell_type", **kwargs: Any) -> scs.ScoreModel:
    own_encoder = {} if "use_rep" in kwargs else {"n_comps": 4}
    return scs.tl.fit(adata, condition, **{"max_epochs": 1, "progress": False, **own_encoder, **kwargs})


def classify(adata: AnnData, model: Any, **kwargs: Any) -> None:
    scs.tl.classify(adata, model, progress=False, **kwargs)


def normalised(adata: AnnData) -> AnnData:
    out = adata.copy()
    out.X = sp.csr_matrix(out.X.multiply(1e4 / out.X.sum(1))).log1p()
    return out


@pytest.fixture(scope="module")
def log_model(model: scs.ScoreModel) -> scs.ScoreModel:
    """A model of log-normalised values."""
    rng = np.random.default_rng(0)
    cells = AnnData(sp.csr_matrix(rng.poisson(1.0, (60, 60)).astype(np.float32)))
    cells.var_names = SYMBOLS
    cells.obs["cell_type"] = np.array(["a", "b"] * 30)
    return fit(normalised(cells), input="log")


@pytest.fixture(scope="module")
def rep_model() -> scs.ScoreModel:
    """A model of a stored representation."""
    cells = AnnData(obs=pd.DataFrame({"cell_type": ["a", "b", "c"] * 80}, index=[f"c{i}" for i in range(240)]))
    cells.obsm["X_rep"] = REP
    return fit(cells, use_rep="X_rep")


@pytest.fixture
def no_compute(model: scs.ScoreModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where an error comes after the expensive parts of a call have begun."""

    def begun(*args: Any, **kwargs: Any) -> None:
        pytest.fail("compute began before the arguments were checked")

    for module, name in (
        (reference_fit, "_held_out_densities"),
        (validation, "train"),
        (PCAEncoder, "fit"),
        (score_model, "log_likelihood"),
    ):
        monkeypatch.setattr(module, name, begun)


def refused(call: Callable[[AnnData], object], adata: Any, error: type[Exception], message: str) -> None:
    """The call raises exactly this error with this message and leaves the data as they were."""
    before = adata.copy() if isinstance(adata, AnnData) else None
    with pytest.raises(error) as caught:
        call(adata)
    assert caught.type is error
    assert re.search(message, str(caught.value)), str(caught.value)
    if before is not None:
        assert_equal(adata, before)


def at(row: int, column: int, value: float) -> Change:
    def change(adata: AnnData) -> None:
        adata.X = adata.X.toarray()
        adata.X[row, column] = value

    return change


def obs(**columns: Any) -> Change:
    def change(adata: AnnData) -> None:
        for name, value in columns.items():
            adata.obs[name] = value

    return change


def rep(value: Any) -> Change:
    def change(adata: AnnData) -> None:
        adata.obsm["X_rep"] = value

    return change


def names(values: list[str], **columns: list[str]) -> Change:
    def change(adata: AnnData) -> None:
        adata.var_names = values
        for name, value in columns.items():
            adata.var[name] = value

    return change


def x(value: Any) -> Change:
    return lambda adata: AnnData(value, obs=adata.obs, var=adata.var)


def genes(n: int) -> Change:
    return lambda adata: adata[:, :n].copy()


def cells(n: int) -> Change:
    return lambda adata: adata[:n].copy()


def late(value: float) -> Change:
    """More cells than are looked at to tell counts from logged values; the last one is odd."""

    def change(adata: AnnData) -> AnnData:
        many = ad.concat([adata] * 6, index_unique="-")
        many.X.data[-1] = value
        return many

    return change


def broken(changed: np.ndarray, value: float) -> np.ndarray:
    out = changed.copy()
    out[2, 1] = value
    return out


nothing: Change = lambda adata: None
y = np.arange(240) % 3
NOT_FINITE = "1 NaN or infinite value.*remove or impute"

# id: (change of the cells, arguments, error, message)
FIT: dict[str, tuple[Change, dict[str, Any], type[Exception], str]] = {
    "condition unknown": (nothing, {"condition": "nope"}, KeyError, r"condition='nope'.*available.*cell_type.*donor"),
    "condition list": (nothing, {"condition": ["cell_type"]}, TypeError, r"condition must be a name.*\['cell_type'\]"),
    "layer unknown": (nothing, {"layer": "nope"}, KeyError, "layer='nope' is not in adata.layers; available"),
    "layer list": (nothing, {"layer": ["nope"]}, TypeError, "layer must be a name"),
    "use_rep unknown": (nothing, {"use_rep": "nope"}, KeyError, "use_rep='nope' is not in adata.obsm; available"),
    "use_rep list": (nothing, {"use_rep": ["nope"]}, TypeError, "use_rep must be a name"),
    "use_rep and layer": (rep(REP), {"use_rep": "X_rep", "layer": "a"}, ValueError, "use_rep=.*leave out layer"),
    "split_key unknown": (nothing, {"split_key": "nope"}, KeyError, "split_key='nope'.*available"),
    "split_key list": (nothing, {"split_key": ["donor"]}, TypeError, "split_key must be a name"),
    "split_key NaN": (
        obs(donor=pd.Series(np.where(np.arange(240) < 3, None, "d"), dtype=object).to_numpy()),
        {"split_key": "donor"},
        ValueError,
        "split_key='donor': 3 labelled cells have no group; fill",
    ),
    "split_key one group": (obs(donor="d"), {"split_key": "donor"}, ValueError, r"at least two groups, found \['d'\]"),
    "X NaN": (at(3, 5, np.nan), {}, ValueError, NOT_FINITE),
    "X inf": (at(3, 5, np.inf), {}, ValueError, NOT_FINITE),
    "X NaN, declared counts": (at(3, 5, np.nan), {"input": "counts"}, ValueError, NOT_FINITE),
    "X NaN late": (late(np.nan), {}, ValueError, NOT_FINITE),
    "X negative": (at(3, 5, -1), {}, ValueError, "Counts must not be negative.*-1.*use_rep"),
    "X negative late": (late(-2), {}, ValueError, "Counts must not be negative.*-2"),
    "X scaled": (x(REP @ np.ones((4, 60))), {}, ValueError, "must not be negative.*scaled.*use_rep"),
    "X logged late": (late(0.5), {}, ValueError, "later cells.*not whole numbers.*one kind"),
    "X text": (x(np.full((240, 60), "a")), {}, ValueError, "must be real numbers, found <U1"),
    "X complex": (x(np.ones((240, 60), complex)), {}, ValueError, "must be real numbers, found complex128"),
    "logged as counts": (normalised, {"input": "counts"}, ValueError, "input='counts'.*not whole numbers.*layer"),
    "counts as log": (nothing, {"input": "log"}, ValueError, "input='log'.*whole numbers.*log1p"),
    "input typo": (
        nothing,
        {"input": "raw"},
        ValueError,
        "input must be 'auto', 'counts', 'log' or 'values', got 'raw'",
    ),
    "obsm NaN": (rep(broken(REP, np.nan)), {"use_rep": "X_rep"}, ValueError, r"obsm\['X_rep'\].*NaN.*1 of 240 cells"),
    "obsm inf": (rep(broken(REP, -np.inf)), {"use_rep": "X_rep"}, ValueError, "infinite.*1 of 240 cells.*impute"),
    "obsm no features": (rep(REP[:, :0]), {"use_rep": "X_rep"}, ValueError, r"X_rep.*shape.*\(240, 0\)"),
    "obsm 3-D": (rep(REP[:, :, None]), {"use_rep": "X_rep"}, ValueError, r"X_rep.*shape.*\(240, 4, 1\)"),
    "obsm text": (rep(np.full((240, 2), "a")), {"use_rep": "X_rep"}, ValueError, "X_rep.*real numbers, found <U1"),
    "obsm complex": (rep(REP + 0j), {"use_rep": "X_rep"}, ValueError, "X_rep.*real numbers, found complex128"),
    "rare class": (
        obs(cell_type=np.where(np.arange(240) == 7, "rare", "common")),
        {},
        ValueError,
        r"condition='cell_type'.*at least 2 cells, 1 of 2 classes have 1: \['rare'\]\. Merge",
    ),
    "every cell a class": (
        obs(cell_type=np.arange(240)),
        {},
        ValueError,
        "240 of 240 classes.* and 235 more.*continuous=True",
    ),
    "one class": (obs(cell_type="a"), {}, ValueError, r"condition='cell_type'.*at least two classes, found \['a'\]"),
    "labels NaN": (obs(cell_type=np.nan), {}, ValueError, "condition='cell_type' holds no label.*240"),
    "labels None": (
        obs(cell_type=pd.Categorical([None] * 240, categories=["a", "b"])),
        {},
        ValueError,
        "condition='cell_type' holds no label",
    ),
    "codes or values": (
        obs(cell_type=np.arange(240) % 3.0),
        {},
        ValueError,
        r"3 whole numbers as float64: \[0.0, 1.0, 2.0\].*continuous=True.*continuous=False",
    ),
    "codes or values, nullable": (
        obs(cell_type=pd.array(np.arange(240) % 3.0, dtype="Float64")),
        {},
        ValueError,
        "3 whole numbers as Float64",
    ),
    "text as values": (nothing, {"continuous": True}, ValueError, "must hold real numbers for a continuous target"),
    "constant target": (obs(cell_type=1.5), {}, ValueError, "is 1.5 in all cells"),
    "infinite target": (
        obs(cell_type=np.where(np.arange(240), REP[:, 0], np.inf)),
        {},
        ValueError,
        "1 infinite values",
    ),
    "few values": (
        obs(cell_type=np.where(np.arange(240) < 19, REP[:, 0], np.nan)),
        {},
        ValueError,
        "holds 19 values.*at least 20",
    ),
    "period too short": (
        obs(cell_type=np.linspace(0, 90, 240)),
        {"circular": True},
        ValueError,
        "spans 90, more than the period 6.28.*circular=360",
    ),
    "period typo": (obs(cell_type=REP[:, 0]), {"circular": -1.0}, ValueError, "circular must be.*got -1.0"),
    "circular classes": (nothing, {"circular": True, "continuous": False}, ValueError, "circular= is for continuous"),
    "direct classes": (nothing, {"objective": "direct"}, ValueError, "objective='direct' is for continuous targets"),
    "duplicated genes": (names([*SYMBOLS[:-1], "gene0"]), {}, ValueError, "1 duplicated.*gene0.*make_unique"),
    "0 cells": (cells(0), {}, ValueError, "adata holds no cells"),
    "0 cells, use_rep": (cells(0), {"use_rep": "X_rep"}, ValueError, "adata holds no cells"),
    "0 genes": (genes(0), {}, ValueError, "At least two genes.*adata has 0"),
    "1 gene": (genes(1), {}, ValueError, "At least two genes.*adata has 1"),
    "only zeros": (x(sp.csr_matrix((240, 60), dtype=np.float32)), {}, ValueError, "At least two genes.*adata has 0"),
    "X None": (x(None), {}, ValueError, r"adata.X is empty \(None\).*layer=.*use_rep="),
    "rng negative": (nothing, {"rng": -1}, ValueError, "rng must be a non-negative integer.*got -1"),
    "rng float": (nothing, {"rng": 1.5}, ValueError, "rng must be.*got 1.5"),
    "rng None": (nothing, {"rng": None}, ValueError, "rng must be.*got None"),
    "rng too large": (nothing, {"rng": 2**32}, ValueError, "rng must be.*4294967296"),
    "batch_size 0": (nothing, {"batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
    "batch_size None": (nothing, {"batch_size": None}, ValueError, "batch_size must be a positive integer, got None"),
    "max_epochs 0": (nothing, {"max_epochs": 0}, ValueError, "max_epochs must be a positive integer, got 0"),
    "n_comps float": (nothing, {"n_comps": 4.0}, ValueError, "n_comps must be a positive integer, got 4.0"),
    "n_top_genes 1": (nothing, {"n_top_genes": 1}, ValueError, "n_top_genes must be an integer of at least 2, got 1"),
    "objective typo": (nothing, {"objective": "hybird"}, ValueError, "objective must be 'hybrid'.*got 'hybird'"),
    "key_added slash": (nothing, {"key_added": "a/b"}, ValueError, "key_added.*without '/', got 'a/b'"),
    "checkpoint_dir number": (nothing, {"checkpoint_dir": 3}, TypeError, "int"),
}

PRIORS: dict[str, tuple[Any, str]] = {
    "name": ("flat", "prior must be 'train', 'uniform', a mapping or an array, got 'flat'"),
    "unknown class": ({"a": 1}, r"every class; unknown: \['a'\], missing: \['B/naïve', 'T cell', 'γδ'\]"),
    "other kinds of keys": ({1: 1, "a": 2}, r"unknown: \['1', 'a'\]"),
    "negative": ({"B/naïve": -1, "T cell": 1, "γδ": 1}, r"not negative.*\[-1.0, 1.0, 1.0\]"),
    "NaN": ([1, np.nan, 1], "prior weights must be finite.*nan"),
    "infinite": ([1, np.inf, 1], "prior weights must be finite.*inf"),
    "length": ([1, 1], r"prior must have shape \(3,\), one weight per class, got \(2,\)"),
    "number": (1.0, r"prior must have shape \(3,\)"),
    "zero": ([0, 0, 0], "prior weights.*not all zero"),
    "text": (["a", "b", "c"], r"prior weights must be numbers.*\['a', 'b', 'c'\]"),
}

CLASSIFY: dict[str, tuple[Change, dict[str, Any], type[Exception], str]] = {
    "layer unknown": (nothing, {"layer": "nope"}, KeyError, "layer='nope' is not in adata.layers; available"),
    "layer list": (nothing, {"layer": ["nope"]}, TypeError, "layer must be a name"),
    "X NaN": (at(3, 5, np.nan), {}, ValueError, NOT_FINITE),
    "X inf": (at(3, 5, np.inf), {}, ValueError, NOT_FINITE),
    "X NaN late": (late(np.nan), {}, ValueError, NOT_FINITE),
    "X negative": (at(3, 5, -1), {}, ValueError, "Counts must not be negative.*-1"),
    "X logged": (normalised, {}, ValueError, "counts are expected in the query.*not whole numbers.*layer"),
    "X logged late": (late(0.5), {}, ValueError, "later cells.*not whole numbers.*one kind"),
    "X None": (x(None), {}, ValueError, r"adata.X is empty \(None\)"),
    "X text": (x(np.full((240, 60), "a")), {}, ValueError, "must be real numbers, found <U1"),
    "0 cells": (cells(0), {}, ValueError, "adata holds no cells"),
    "0 genes": (genes(0), {}, ValueError, r"Too few shared genes: 0 of the model's 60 genes found \(0%\)"),
    "duplicated genes": (names([*SYMBOLS[:-1], "gene0"]), {}, ValueError, "1 duplicated.*gene0.*make_unique"),
    "Ensembl": (names(ENSEMBL), {}, ValueError, "model uses gene symbols.*query Ensembl IDs.*Convert query.var_names"),
    "Ensembl with symbols": (
        names(ENSEMBL, symbol=SYMBOLS, length=ENSEMBL),
        {},
        ValueError,
        r"gene symbols.*Ensembl IDs.*set query.var_names = query.var\['symbol'\]",
    ),
    "29 of 60 genes": (genes(29), {}, ValueError, r"29 of the model's 60.*48%.*at least 50% are needed.*lacks.*gene29"),
    "rng negative": (nothing, {"rng": -1}, ValueError, "rng must be a non-negative integer.*got -1"),
    "rng float": (nothing, {"rng": 1.5}, ValueError, "rng must be.*got 1.5"),
    "rng bool": (nothing, {"rng": True}, ValueError, "rng must be.*got True"),
    "rng too large": (nothing, {"rng": 2**70}, ValueError, "rng must be.*got 1180591620717411303424"),
    "n_paths odd": (nothing, {"n_paths": 3}, ValueError, "n_paths must be even.*got 3"),
    "n_paths 0": (nothing, {"n_paths": 0}, ValueError, "n_paths must be a positive integer, got 0"),
    "n_paths float": (nothing, {"n_paths": 2.0}, ValueError, "n_paths must be a positive integer, got 2.0"),
    "n_steps 0": (nothing, {"n_steps": 0}, ValueError, "n_steps must be a positive integer, got 0"),
    "n_steps text": (nothing, {"n_steps": "8"}, ValueError, "n_steps must be a positive integer, got '8'"),
    "batch_size 0": (nothing, {"batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
    "batch_size None": (nothing, {"batch_size": None}, ValueError, "batch_size must be a positive integer, got None"),
    "device unknown": (nothing, {"device": "gpu"}, ValueError, "device='gpu' cannot be used"),
    "device meta": (nothing, {"device": "meta"}, ValueError, "device='meta' cannot be used"),
    "device None": (nothing, {"device": None}, ValueError, "device=None cannot be used"),
    "device far away": (nothing, {"device": "cuda:99"}, ValueError, "device='cuda:99' cannot be used"),
    "key_added slash": (nothing, {"key_added": "a/b"}, ValueError, "key_added.*without '/', got 'a/b'"),
    "key_added empty": (nothing, {"key_added": ""}, ValueError, "key_added must be a non-empty string"),
    "key_added number": (nothing, {"key_added": 3}, ValueError, "key_added must be a non-empty string.*got 3"),
}


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("case", FIT)
def test_fit_refuses(counts: AnnData, case: str, no_compute: None):
    change, kwargs, error, message = FIT[case]
    changed = change(counts)
    refused(lambda cells: fit(cells, **kwargs), counts if changed is None else changed, error, message)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("case", CLASSIFY)
def test_classify_refuses(counts: AnnData, model: scs.ScoreModel, case: str, no_compute: None):
    change, kwargs, error, message = CLASSIFY[case]
    changed = change(counts)
    refused(lambda cells: classify(cells, model, **kwargs), counts if changed is None else changed, error, message)


@pytest.mark.parametrize("case", PRIORS)
def test_both_refuse_a_prior(counts: AnnData, model: scs.ScoreModel, case: str, no_compute: None):
    prior, message = PRIORS[case]
    refused(lambda cells: fit(cells, prior=prior), counts, ValueError, message)
    refused(lambda cells: classify(cells, model, prior=prior), counts, ValueError, message)


@pytest.mark.parametrize(
    "value", ["cells.h5ad", None, pd.DataFrame(), np.zeros((3, 3))], ids=lambda v: type(v).__name__
)
def test_only_anndata_is_taken(model: scs.ScoreModel, value: Any):
    message = f"adata must be an AnnData, got {type(value).__name__}"
    refused(fit, value, TypeError, message)
    refused(lambda cells: classify(cells, model), value, TypeError, message)


@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
def test_mudata(counts: AnnData, model: scs.ScoreModel):
    """Where no modality can be named, the message says what to pass; where one can, its name is checked."""
    both = MuData({"rna": counts, "gdo": counts[:, :3].copy()})
    refused(
        lambda cells: scs.tl.energy(cells, model),
        both,
        TypeError,
        r"adata is a MuData with .*; pass one modality: mdata\['rna'\]",
    )
    refused(lambda cells: fit(cells, modality="prot"), both, KeyError, "modality='prot' is not in the MuData")
    refused(lambda cells: classify(cells, model, modality="rna"), counts, ValueError, "modality='rna' is for MuData")
    two = MuData({"a": counts, "b": counts[:, :3].copy()})
    refused(lambda cells: classify(cells, model), two, ValueError, r"modality must name one of \['a', 'b'\]")


@pytest.mark.parametrize("value", ["pbmc.scscore", None, 3])
def test_only_a_model_is_taken(counts: AnnData, value: Any):
    refused(
        lambda cells: classify(cells, value), counts, TypeError, f"model must be a ScoreModel.*{type(value).__name__}"
    )


def test_a_refused_device_leaves_the_model_usable(counts: AnnData, model: scs.ScoreModel):
    with pytest.raises(ValueError, match="meta"):
        classify(counts, model, device="meta")
    classify(counts, model)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"use_rep='X_rep' is not in adata.obsm; available: \[\]"),
        (REP[:, :3], r"obsm\['X_rep'\] has 3 features, the model was fitted on 4.*same procedure"),
        (broken(REP, np.nan), "NaN or infinite values in 1 of 240"),
    ],
    ids=["missing", "width", "NaN"],
)
def test_classify_refuses_a_representation(counts: AnnData, rep_model: scs.ScoreModel, value: Any, message: str):
    if value is not None:
        counts.obsm["X_rep"] = value
    error = KeyError if value is None else ValueError
    refused(lambda cells: classify(cells, rep_model), counts, error, message)


def test_classify_refuses_a_layer_beside_a_representation(counts: AnnData, rep_model: scs.ScoreModel):
    counts.obsm["X_rep"], counts.layers["raw"] = REP, counts.X
    refused(lambda cells: classify(cells, rep_model, layer="raw"), counts, ValueError, "layer='raw' has no effect")


def test_a_log_model_refuses_counts_but_takes_cells_without_any_value(counts: AnnData, log_model: scs.ScoreModel):
    message = "input='log'.*expected in the query.*whole numbers.*log1p"
    refused(lambda cells: classify(cells, log_model), counts, ValueError, message)
    empty = x(sp.csr_matrix((240, 60), dtype=np.float32))(counts)
    assert empty is not None
    classify(empty, log_model)
    assert np.isfinite(empty.obsm["scscore_posterior"]).all()
    logged = normalised(counts)
    logged.X.data[7] = -0.5
    refused(lambda cells: classify(cells, log_model), logged, ValueError, "must not be negative.*-0.5.*scaled")


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (30, r"Many genes are missing.*30 of the model's 60 genes found \(50%\); 30 missing"),
        (
            47,
            r"Many genes are missing, expect a loss of accuracy: 47 of the model's 60 genes found \(78%\); 13 missing",
        ),
        (48, r"^48 of the model's 60 genes found \(80%\); 12 missing \(filled with the training mean\), 0 extra"),
    ],
)
def test_missing_genes_are_warned_about(counts: AnnData, model: scs.ScoreModel, n: int, message: str):
    with pytest.warns(UserWarning, match=message):
        classify(counts[:, :n].copy(), model)


def test_an_unwritable_checkpoint_dir_is_found_first(counts: AnnData, tmp_path: Any, no_compute: None):
    (tmp_path / "file").write_text("")
    refused(lambda cells: fit(cells, checkpoint_dir=tmp_path / "file"), counts, FileExistsError, "file")


# what looks odd and works -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (y > 0, ["False", "True"]),
        (y * 10, ["0", "10", "20"]),
        (pd.array(y > 0, dtype="boolean"), ["False", "True"]),
        (pd.Categorical.from_codes(y, ["lo", "mid", "hi"], ordered=True), ["hi", "lo", "mid"]),
        (pd.Categorical.from_codes(y, ["a", "b", "c", "unused"]), ["a", "b", "c"]),
        (pd.Categorical(y / 2), ["0.0", "0.5", "1.0"]),
    ],
    ids=["bool", "int", "nullable", "ordered", "unused", "categorical numbers"],
)
def test_names_of_classes_are_strings(counts: AnnData, values: Any, classes: list[str]):
    counts.obs["cell_type"] = values
    model = fit(counts)
    assert model.classes.tolist() == classes
    classify(counts, model, key_added="found", reject=0)
    assert counts.obs["found_label"].cat.categories.tolist() == classes


def test_missing_numbers_among_categorical_ones_are_no_class(counts: AnnData):
    """What the error about numbers that may be codes advises must not turn NaN into a class."""
    counts.obs["cell_type"] = np.where(np.arange(240) < 20, np.nan, y)
    refused(fit, counts, ValueError, "continuous=False")
    counts.obs["cell_type"] = counts.obs["cell_type"].astype("category")
    assert fit(counts).classes.tolist() == ["0.0", "1.0", "2.0"]


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_views_work_and_their_parent_stays(counts: AnnData, model: scs.ScoreModel):
    before = counts.copy()
    view = counts[50:150]
    fit(view)
    classify(view, model)
    assert view.obsm["scscore_posterior"].shape == (100, 3)
    assert_equal(counts, before)


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning", "ignore:Observation names are not unique")
@pytest.mark.parametrize("index", [pd.RangeIndex(240), ["same"] * 240], ids=["numbers", "duplicates"])
def test_any_names_of_cells_work(counts: AnnData, model: scs.ScoreModel, index: Any):
    expected = counts.copy()
    classify(expected, model)
    counts.obs.index = index
    classify(counts, model)
    labels = counts.obs["scscore_label"]
    assert labels.notna().all()
    assert labels.tolist() == expected.obs["scscore_label"].tolist()


def test_slots_that_are_taken_are_replaced(counts: AnnData, model: scs.ScoreModel):
    counts.obs["scscore"] = counts.obs["scscore_label"] = "mine"
    counts.obsm["scscore_posterior"] = np.zeros((240, 9))
    counts.uns["scscore"] = "mine"
    classify(counts, model)
    assert (counts.obs["scscore"] == "mine").all()
    assert counts.obsm["scscore_posterior"].shape == (240, 3)
    assert counts.uns["scscore"]["model_hash"] == model.hash


def test_constant_genes_and_cells_without_counts_work(counts: AnnData):
    dense = counts.X.toarray()
    dense[:, 40:] = 3
    dense[:, 39] = 0
    dense[:30] = 0
    counts.X = sp.csr_matrix(dense)
    model = fit(counts)
    assert "gene39" not in model.genes
    classify(counts, model)
    assert np.isfinite(counts.obsm["scscore_log_likelihood"]).all()


@pytest.mark.parametrize("extra", [np.full(240, 3.0), REP[:, 0], REP @ [1, 2, 0, 0]], ids=["constant", "copy", "sum"])
def test_a_singular_representation_gives_finite_results(counts: AnnData, extra: np.ndarray):
    counts.obsm["X_rep"] = np.c_[REP, extra]
    model = fit(counts, use_rep="X_rep")
    classify(counts, model)
    assert np.isfinite(counts.obsm["scscore_log_likelihood"]).all()


@pytest.mark.parametrize("case", ["representation", "counts"])
def test_identical_cells_are_refused(counts: AnnData, case: str):
    counts.X = sp.csr_matrix(np.full((240, 60), 3.0, dtype=np.float32))
    counts.obsm["X_rep"] = np.zeros((240, 4))
    kwargs = {"use_rep": "X_rep"} if case == "representation" else {}
    refused(lambda cells: fit(cells, **kwargs), counts, ValueError, "degenerate.*constant or duplicated.*too few")


def test_duplicated_cells_work(counts: AnnData):
    few = counts[np.tile(np.arange(6), 20)].copy()
    few.obs_names = [f"copy{i}" for i in range(120)]
    model = fit(few)
    classify(few, model)
    assert np.isfinite(few.obsm["scscore_log_likelihood"]).all()
    assert (few.obs["scscore_label"].astype(str) == few.obs["cell_type"].astype(str)).all()


def test_more_genes_or_components_than_there_are(counts: AnnData, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("WARNING", logger="scscore"):
        model = fit(counts, n_comps=1000, n_top_genes=2000)
    assert model.representation.n_features == len(model.genes) == 60
    assert "n_comps=1000, but the cells and genes allow 60" in caplog.text
    assert "n_top_genes=2000, but adata holds 60" in caplog.text


def test_n_top_genes_is_what_is_used(counts: AnnData):
    """Ties in the dispersion do not let more genes in; the threads of torch stay as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert len(fit(counts, n_top_genes=10).genes) == 10
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_a_series_as_prior_goes_by_its_names(counts: AnnData, model: scs.ScoreModel):
    weights = pd.Series([4.0, 2.0, 1.0], index=pd.CategoricalIndex(model.classes[::-1]))
    expected = np.log(np.array([1, 2, 4]) / 7)
    np.testing.assert_allclose(model.log_prior(weights), expected)
    np.testing.assert_allclose(model.log_prior(pd.Series([1.0, 2.0, 4.0])), expected)
    np.testing.assert_allclose(model.log_prior([1e308, 2e307 * 5, 1e308]), -np.log(3))
    fitted = fit(counts, prior=weights)
    np.testing.assert_allclose(fitted.log_prior(), expected)
    counts.obs["cell_type"] = y
    np.testing.assert_allclose(fit(counts, prior={0: 1, 1: 2, 2: 4}).log_prior(), expected)
