"""The command line: what it writes is what the Python calls give, and errors are one line with exit status 2."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scscore as scs
from scscore.cli import main

CLASSES = ["CD4/CD8 α", 'Ärzte, "b"', "c"]


def toy(**changes: object) -> ad.AnnData:
    """Counts with known classes, a layer, a representation and class names that break careless writers."""
    cells = scs.datasets.toy_gaussians(n_obs=90, n_features=5)
    counts = np.random.default_rng(0).poisson(np.exp(cells.X.clip(-3, 4)) + 1.0)
    adata = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=cells.obs, var=cells.var, obsm=dict(cells.obsm))
    adata.obs["class"] = adata.obs["class"].cat.rename_categories(CLASSES)
    adata.obs["score"] = np.linspace(0, 1, 90)
    adata.layers["logged"] = sp.csr_matrix(np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float32))
    for name, value in changes.items():
        setattr(adata, name, value)
    return adata


def write(adata: ad.AnnData, path: Path) -> Path:
    adata.write_zarr(path) if path.suffix == ".zarr" else adata.write_h5ad(path)
    return path


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy data in both formats and a model of it."""
    folder = tmp_path_factory.mktemp("cli")
    for suffix in (".h5ad", ".zarr"):
        write(toy(), folder / f"toy{suffix}")
    status = main(
        ["fit", f"{folder}/toy.zarr", "--condition", "class", "--model", f"{folder}/toy.scscore", "--max-epochs", "1"]
        + ["--accelerator", "cpu", "--n-comps", "3", "--seed", "1", "--quiet"]
    )
    assert status == 0
    return folder


def test_fit_is_the_fit_of_python(files: Path) -> None:
    model = scs.load(files / "toy.scscore")
    expected = scs.tl.fit(toy(), "class", n_comps=3, max_epochs=1, accelerator="cpu", rng=1, progress=False)
    assert model.hash == expected.hash
    assert model.classes.tolist() == sorted(CLASSES)


def test_fit_takes_covariates_and_members(files: Path, tmp_path: Path) -> None:
    arguments = ["fit", f"{files}/toy.h5ad", "--condition", "class", "--model", f"{tmp_path}/m", "--n-comps", "3"]
    options = ["--covariates", "score", "--n-members", "2", "--max-epochs", "1", "--accelerator", "cpu", "--quiet"]
    assert main([*arguments, *options]) == 0
    more = {"covariates": ["score"], "n_members": 2, "max_epochs": 1, "accelerator": "cpu", "progress": False}
    assert scs.load(tmp_path / "m").hash == scs.tl.fit(toy(), "class", n_comps=3, **more).hash


@pytest.mark.parametrize("source", [".h5ad", ".zarr"])
@pytest.mark.parametrize("target", [".h5ad", ".zarr"])
def test_classify_writes_what_python_writes(files: Path, tmp_path: Path, source: str, target: str) -> None:
    out, csv = tmp_path / "new" / f"out{target}", tmp_path / "new" / "labels.csv"
    arguments = ["classify", f"{files}/toy{source}", "--model", f"{files}/toy.scscore", "--out", str(out)]
    options = ["--csv", str(csv), "--key-added", "mine", "--prior", "uniform", "--seed", "4", "--batch-size", "40"]
    options += ["--reject", "0.2", "--coverage", "0.7"]
    assert main([*arguments, *options, "--n-steps", "3", "--n-paths", "2", "--device", "cpu", "--quiet"]) == 0

    expected, model = toy(), scs.load(files / "toy.scscore")
    settings = {"prior": "uniform", "n_steps": 3, "n_paths": 2, "key_added": "mine", "rng": 4, "device": "cpu"}
    scs.tl.classify(expected, model, **settings, reject=0.2, coverage=0.7, progress=False)
    found = read(out)
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_exact=False, rtol=1e-5)
    assert set(found.obs["mine_label"].cat.categories) == {*CLASSES, "unknown"}
    assert "mine_prediction_set" in expected.obsm
    for key in expected.obsm:
        np.testing.assert_allclose(found.obsm[key], expected.obsm[key], rtol=1e-4, atol=1e-5)
    assert (found.X != expected.X).nnz == 0 and "logged" in found.layers
    assert found.uns["mine"]["model_hash"] == model.hash and found.uns["mine"]["classes"].tolist() == sorted(CLASSES)

    table = pd.read_csv(csv, index_col="cell")
    assert table.columns.tolist() == ["label", "confidence", "entropy", "mcse", "typicality", "set_size"]
    assert table["label"].tolist() == found.obs["mine_label"].tolist()
    for name in ("confidence", "typicality", "set_size"):
        np.testing.assert_allclose(table[name], found.obs[f"mine_{name}"], rtol=1e-5)
    assert sorted(p.name for p in out.parent.iterdir()) == ["labels.csv", out.name]  # no partial file stays


def test_classify_replaces_an_older_result(files: Path, tmp_path: Path) -> None:
    arguments = ["classify", f"{files}/toy.h5ad", "--model", f"{files}/toy.scscore", "--quiet"]
    for suffix in (".h5ad", ".zarr"):
        out = tmp_path / f"out{suffix}"
        assert main([*arguments, "--out", str(out), "--key-added", "first"]) == 0
        assert main([*arguments, "--out", str(out), "--key-added", "second"]) == 0
        assert "second_label" in read(out).obs and "first_label" not in read(out).obs


def test_classify_by_a_model_without_held_out_cells(files: Path, tmp_path: Path) -> None:
    model = scs.load(files / "toy.scscore")
    model.held_out = None
    model.save(tmp_path / "bare.scscore")
    out, csv = tmp_path / "out.h5ad", tmp_path / "out.csv"
    arguments = ["classify", f"{files}/toy.h5ad", "--model", f"{tmp_path}/bare.scscore", "--out", str(out), "--quiet"]
    assert main([*arguments, "--csv", str(csv)]) == 0
    assert pd.read_csv(csv, index_col="cell").columns.tolist() == ["label", "confidence", "entropy", "mcse"]
    assert "scscore_prediction_set" not in read(out).obsm and "scscore_posterior" in read(out).obsm


def test_the_prior_may_be_estimated(files: Path, tmp_path: Path) -> None:
    rare = toy()
    rare = write(rare[(rare.obs["class"] != "c") | (np.arange(90) < 12)].copy(), tmp_path / "rare.h5ad")
    common = ["--model", f"{files}/toy.scscore", "--quiet", "--prior", "estimate", "--out", str(tmp_path / "out.h5ad")]
    assert main(["classify", str(rare), *common]) == 0
    params = json.loads(read(tmp_path / "out.h5ad").uns["scscore"]["params"])
    assert params["prior_estimated"] is True
    expected = ad.read_h5ad(rare)
    scs.tl.classify(expected, scs.load(files / "toy.scscore"), prior="estimate", progress=False)
    np.testing.assert_allclose(params["prior"], json.loads(expected.uns["scscore"]["params"])["prior"], rtol=1e-4)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_calibrate_is_that_of_python(files: Path, tmp_path: Path, suffix: str) -> None:
    some = toy()[:60].copy()
    some.obs["class"] = some.obs["class"].astype(object)
    some.obs.iloc[:5, some.obs.columns.get_loc("class")] = np.nan
    source, out = write(some, tmp_path / f"some{suffix}"), tmp_path / "new" / "new.scscore"
    arguments = ["calibrate", str(source), "--model", f"{files}/toy.scscore", "--condition", "class", "--out", str(out)]
    assert main([*arguments, "--seed", "3", "--quiet"]) == 0
    old, new = scs.load(files / "toy.scscore"), scs.load(out)
    expected = scs.tl.calibrate(some, old, "class", rng=3, progress=False)
    assert new.calibration.temperature == pytest.approx(expected.calibration.temperature, rel=1e-4)
    assert new.calibration.temperature != old.calibration.temperature
    assert len(new.held_out.y) == 55
    np.testing.assert_allclose(new.held_out.log_likelihood, expected.held_out.log_likelihood, rtol=1e-4, atol=1e-4)
    assert main([*arguments, "--quiet"]) == 2
    assert main([*arguments, "--quiet", "--overwrite"]) == 0


def test_adapt_is_that_of_python(files: Path, tmp_path: Path) -> None:
    moved = toy()
    moved.obsm["X_toy"] = moved.obsm["X_toy"] + 1.0
    moved.obs["lab"] = np.where(np.arange(90) < 50, "one", "two")
    source, out = write(moved, tmp_path / "moved.h5ad"), tmp_path / "adapted.scscore"
    arguments = ["adapt", str(source), "--model", f"{files}/toy.scscore", "--out", str(out), "--quiet"]
    assert main([*arguments, "--batch-key", "lab"]) == 0
    expected = scs.tl.adapt(moved, scs.load(files / "toy.scscore"), batch_key="lab", progress=False)
    assert scs.load(out).covariates.levels == expected.covariates.levels == ("one", "two")
    np.testing.assert_allclose(scs.load(out).covariates.shifts, expected.covariates.shifts, rtol=1e-4)
    assert main(arguments) == 2
    assert main([*arguments, "--overwrite"]) == 0
    assert scs.load(out).covariates.columns == ()


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", ".h5mu"])
def test_attribute_and_perturbation_are_those_of_python(files: Path, tmp_path: Path, suffix: str) -> None:
    """From a file of every format; of a MuData file one modality is read and written."""
    source, model = files / f"toy{suffix}", scs.load(files / "toy.scscore")
    if suffix == ".h5mu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = ad.AnnData(np.ones((90, 1), dtype=np.float32), obs=pd.DataFrame(index=toy().obs_names))
            mudata.MuData({"rna": toy(), "gdo": other}).write_h5mu(source)
    common = [str(source), "--model", f"{files}/toy.scscore", "--quiet"]
    assert (
        main(["attribute", *common, "--out", f"{tmp_path}/a.h5ad", "--csv", f"{tmp_path}/a.csv", "--target", "class"])
        == 0
    )
    expected = toy()
    scs.tl.attribute(expected, model, target="class", progress=False)
    np.testing.assert_array_equal(
        read(tmp_path / "a.h5ad").varm["scscore_attribution"], expected.varm["scscore_attribution"]
    )
    table = pd.read_csv(tmp_path / "a.csv", index_col="gene")
    np.testing.assert_allclose(
        table[model.classes.tolist()], expected.varm["scscore_attribution"], rtol=1e-4, atol=1e-6
    )
    options = ["--control", "c", "--out", f"{tmp_path}/p.zarr", "--csv", f"{tmp_path}/p.csv"]
    assert main(["perturbation", *common, *options]) == 0
    scs.tl.predict_perturbation(expected, model, control="c", progress=False)
    found = read(tmp_path / "p.zarr")
    np.testing.assert_array_equal(found.obs["scscore_response"], expected.obs["scscore_response"])
    table = pd.read_csv(tmp_path / "p.csv", index_col="class")
    np.testing.assert_allclose(table["auroc"], scs.get.perturbation(expected)["auroc"])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_report(files: Path, tmp_path: Path, suffix: str) -> None:
    done, page = tmp_path / f"done{suffix}", tmp_path / "new" / "page.html"
    arguments = ["classify", f"{files}/toy{suffix}", "--model", f"{files}/toy.scscore", "--out", str(done), "--quiet"]
    assert main([*arguments, "--key-added", "mine"]) == 0
    assert (
        main(["report", str(done), "--out", str(page), "--key-added", "mine", "--condition", "class", "--quiet"]) == 0
    )
    from scscore._report import report

    assert page.read_text("utf-8") == report(read(done), condition="class", key="mine", source=done.name)
    assert "confusion" in page.read_text("utf-8").lower()
    assert main(["report", str(done), "--out", str(page), "--key-added", "mine", "--quiet"]) == 0
    assert "confusion" not in page.read_text("utf-8").lower()


def test_csc_values_and_layers_are_read(files: Path, tmp_path: Path) -> None:
    columns = write(toy(X=sp.csc_matrix(toy().X)), tmp_path / "csc.h5ad")
    layer = toy()
    layer.layers["counts"], layer.X = layer.X, layer.layers["logged"]
    write(layer, tmp_path / "layer.h5ad")
    common = ["--model", f"{files}/toy.scscore", "--quiet", "--out"]
    outs = [tmp_path / f"{name}.h5ad" for name in ("a", "b", "c")]
    assert main(["classify", f"{files}/toy.h5ad", *common, str(outs[0])]) == 0
    assert main(["classify", str(columns), *common, str(outs[1])]) == 0
    assert main(["classify", f"{tmp_path}/layer.h5ad", "--layer", "counts", *common, str(outs[2])]) == 0
    first, *others = [read(out).obsm["scscore_posterior"] for out in outs]
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-6)


def test_log_goes_to_stderr_unless_quiet(files: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scscore.cli", "classify", f"{files}/toy.h5ad", "--model", f"{files}/toy.scscore"]
    loud = subprocess.run([*command, "--out", f"{tmp_path}/a.h5ad"], capture_output=True, text=True, check=True)
    assert "classified 90 cells" in loud.stderr and f"wrote {tmp_path}/a.h5ad" in loud.stderr and not loud.stdout


FIT = ["fit", "{files}/toy.h5ad", "--condition", "class", "--model", "{tmp}/new.scscore"]
CLASSIFY = ["classify", "{files}/toy.h5ad", "--model", "{files}/toy.scscore", "--out", "{tmp}/out.h5ad"]

CALIBRATE = [
    "calibrate",
    "{files}/toy.h5ad",
    "--condition",
    "class",
    "--model",
    "{files}/toy.scscore",
    "--out",
    "{tmp}/new",
]
REPORT = ["report", "{files}/toy.h5ad", "--out", "{tmp}/page.html"]


def changed(arguments: list[str], **options: str) -> list[str]:
    """Arguments with the first (``source=``) or an option replaced or added."""
    new = [arguments[0], options.pop("source", arguments[1]), *arguments[2:]]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if flag in new:
            new[new.index(flag) + 1] = value
        else:
            new += [flag, value]
    return new


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (changed(FIT, source="{tmp}/absent.h5ad"), ["absent.h5ad", "does not exist"]),
        (changed(FIT, source="{tmp}/absent.zarr"), ["absent.zarr", "does not exist"]),
        (changed(FIT, source="{tmp}/table.csv"), ["table.csv", ".h5ad or .zarr"]),
        (changed(FIT, source="{tmp}/broken.h5ad"), ["broken.h5ad", "cannot be read"]),
        (changed(FIT, source="{tmp}/broken.zarr"), ["broken.zarr", "cannot be read"]),
        (changed(FIT, condition="type"), ["condition='type'", "class"]),
        (changed(FIT, condition="score", circular="0.5"), ["condition='score'", "more than the period"]),
        (changed(FIT, layer="nolayer"), ["layer='nolayer'", "logged"]),
        (changed(FIT, use_rep="X_none"), ["use_rep='X_none'", "X_toy"]),
        (changed(FIT, use_rep="X_toy", n_comps="2"), ["use_rep="]),
        (changed(FIT, split_key="donor"), ["split_key='donor'"]),
        (changed(FIT, encoder="conv"), ["encoder=", "scscore.images.from_arrays"]),
        (changed(FIT, input="log"), ["input='log'", "whole numbers"]),
        (changed(FIT, n_comps="0"), ["n_comps", "positive"]),
        (changed(FIT, seed="-1"), ["non-negative"]),
        (changed(FIT, model="{files}/toy.scscore"), ["toy.scscore", "--overwrite"]),
        (changed(FIT, model="{files}/toy.h5ad"), ["toy.h5ad", "is a file"]),
        (changed(CLASSIFY, source="{tmp}/absent.h5ad"), ["absent.h5ad", "does not exist"]),
        (changed(CLASSIFY, out="{tmp}/out.csv"), ["out.csv", ".h5ad or .zarr"]),
        (changed(CLASSIFY, out="{files}/toy.h5ad"), ["the query itself"]),
        (changed(CLASSIFY, model="{tmp}/absent"), ["absent", "model.json is missing"]),
        (changed(CLASSIFY, model="{tmp}/broken.scscore"), ["model.json", "damaged"]),
        (changed(CLASSIFY, layer="nolayer"), ["layer='nolayer'"]),
        (changed(CLASSIFY, layer="logged"), ["raw counts are expected"]),
        (changed(CLASSIFY, n_paths="3"), ["n_paths", "even"]),
        (changed(CLASSIFY, key_added="a/b"), ["key_added", "a/b"]),
        (changed(CLASSIFY, device="abacus"), ["--device abacus"]),
        (changed(CLASSIFY, reject="1"), ["reject must be in [0, 1)"]),
        (changed(CLASSIFY, coverage="1"), ["coverage between 0 and 1"]),
        (changed(CALIBRATE, source="{tmp}/absent.h5ad"), ["absent.h5ad", "does not exist"]),
        (changed(CALIBRATE, condition="type"), ["condition='type'", "class"]),
        (changed(CALIBRATE, model="{tmp}/absent"), ["absent", "model.json is missing"]),
        (changed(CALIBRATE, layer="nolayer"), ["layer='nolayer'"]),
        (changed(CALIBRATE, out="{files}/toy.scscore"), ["toy.scscore", "--overwrite"]),
        (changed(CALIBRATE, out="{files}/toy.h5ad"), ["toy.h5ad", "is a file; give --out"]),
        (changed(REPORT, source="{tmp}/absent.zarr"), ["absent.zarr", "does not exist"]),
        (REPORT, ["obsm['scscore_posterior'] is missing", "run scscore.tl.classify first"]),
        (changed(REPORT, out="{tmp}/page.pdf"), ["page.pdf", "must end in .html"]),
    ],
    ids=lambda value: None if not value or value[0] not in ("fit", "classify", "calibrate", "report") else value[0],
)
def test_errors_are_one_line(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "table.csv").touch()
    (tmp_path / "broken.h5ad").write_text("not an HDF5 file")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.scscore").mkdir()
    for name in ("model.json", "model.safetensors"):
        whole = (files / "toy.scscore" / name).read_bytes()
        (tmp_path / "broken.scscore" / name).write_bytes(whole[: len(whole) // 2])
    before = sorted(tmp_path.rglob("*"))
    assert main([argument.format(files=files, tmp=tmp_path) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("scscore: error: ") and err.count("\n") == 1 and not out
    assert all(word in err for word in words), err
    assert "Traceback" not in err and not err.startswith('scscore: error: "')
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


def test_error_of_the_process() -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "scscore.cli",
        "fit",
        "absent.h5ad",
        "--condition",
        "c",
        "--model",
        "m",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "scscore: error: absent.h5ad does not exist.\n" and not done.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["fit", "--help"], ["classify", "--help"], ["calibrate", "--help"], ["--version"]]
)
def test_help_and_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    expected = {"--help": ["fit", "classify", "calibrate", "report", "demo"], "--version": [scs.__version__]}.get(
        arguments[0], ["--model DIR"]
    )
    assert all(word in text for word in expected)


def test_unknown_commands_and_options_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["train"], ["fit"], ["fit", "a.h5ad", "--condition", "c", "--model", "m", "--prior", "flat"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "error" in capsys.readouterr().err


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:20].strip(): line[20:].split() for line in lines if line.startswith(("scscore", "logistic"))}
    assert set(rows) == {"scscore", "logistic regression"}
    cells = ad.read_h5ad(tmp_path / "pbmc_classified.h5ad")
    accuracy = (scs.get.posterior(cells).idxmax(axis=1) == cells.obs["cell_type"].astype(str)).mean()
    assert float(rows["scscore"][0]) == pytest.approx(accuracy, abs=1e-3)
    assert all(0.6 < float(row[0]) <= 1 for row in rows.values())
    figures = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert set(figures) == {
        f"{name}.png" for name in ("training", "confusion", "posterior", "umap", "reliability", "novelty")
    }
    assert min(figures.values()) > 5000
    assert scs.load(tmp_path / "pbmc.scscore").hash == cells.uns["scscore"]["model_hash"]


def test_regress_is_the_call_in_python(files: Path, tmp_path: Path):
    assert (
        main(["fit", f"{files}/toy.h5ad", "--condition", "score", "--model", f"{tmp_path}/m", "--max-epochs", "1"]) == 0
    )
    out, table = tmp_path / "out.h5ad", tmp_path / "out.csv"
    arguments = ["regress", f"{files}/toy.h5ad", "--model", f"{tmp_path}/m", "--out", str(out), "--csv", str(table)]
    assert main([*arguments, "--coverage", "0.5"]) == 0
    expected = toy()
    scs.tl.regress(expected, scs.load(tmp_path / "m"), coverage=0.5, progress=False)
    found = ad.read_h5ad(out)
    assert np.allclose(found.obsm["scscore_density"], expected.obsm["scscore_density"])
    columns = pd.read_csv(table, index_col=0)
    assert np.allclose(columns["upper"], expected.obs["scscore_upper"], atol=1e-5)
    assert {"mean", "sd", "lower", "upper", "aleatoric_entropy", "typicality"} <= set(columns)
