"""Saving and loading models: the same model in a new process, and damaged files that say what is wrong."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from safetensors.numpy import load_file, save_file

import scscore as scs
from scscore.io.model_files import FORMAT_VERSION


@pytest.fixture(scope="module")
def saved(model: scs.ScoreModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that tests must not change."""
    directory = tmp_path_factory.mktemp("saved") / "cells.scscore"
    model.save(directory)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A model directory to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy.scscore"))


def layout(file: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file, and where its data begin."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), 8 + size


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = directory / "model.json"
    body = json.loads(file.read_text(encoding="utf-8"))
    change(body)
    file.write_text(json.dumps(body), encoding="utf-8")


def test_a_directory_holds_two_files_and_no_training_data(model: scs.ScoreModel, saved: Path):
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]
    tensors = load_file(saved / "model.safetensors")
    for name, tensor in tensors.items():
        assert 240 not in tensor.shape, name
    assert tensors["class_counts"].tolist() == [80, 80, 80]
    text = (saved / "model.json").read_text(encoding="utf-8")
    assert "cell0" not in text  # names of cells
    assert str(Path.home()) not in text


def test_what_is_loaded_is_the_same_model(model: scs.ScoreModel, saved: Path, counts: AnnData):
    found = scs.load(saved)
    assert found.hash == model.hash
    assert found.classes.tolist() == model.classes.tolist() == ["B/naïve", "T cell", "γδ"]
    assert found.genes.tolist() == model.genes.tolist() == counts.var_names.tolist()
    assert found.class_counts.tolist() == model.class_counts.tolist()
    assert found.params == model.params
    assert found.calibration == model.calibration
    assert found.summary() == model.summary()
    assert scs.load(str(saved)).hash == model.hash


def test_a_new_process_gives_the_same_posteriors_bit_for_bit(
    model: scs.ScoreModel, saved: Path, counts: AnnData, tmp_path: Path
):
    few = counts[:30].copy()
    few.write_h5ad(tmp_path / "cells.h5ad")
    script = (
        "import sys, anndata, numpy, scscore\n"
        "cells = anndata.read_h5ad(sys.argv[1])\n"
        "scscore.tl.classify(cells, scscore.load(sys.argv[2]), progress=False)\n"
        "numpy.savez(sys.argv[3], **{k: cells.obsm['scscore_' + k] for k in ('posterior', 'log_likelihood')})\n"
    )
    out = tmp_path / "found.npz"
    subprocess.run([sys.executable, "-c", script, tmp_path / "cells.h5ad", saved, out], check=True, capture_output=True)
    scs.tl.classify(few, model, progress=False)
    found = np.load(out)
    np.testing.assert_array_equal(found["posterior"], few.obsm["scscore_posterior"])
    np.testing.assert_array_equal(found["log_likelihood"], few.obsm["scscore_log_likelihood"])


@pytest.mark.parametrize("kind", ["representation", "without residual"])
def test_other_kinds_of_models_survive(model: scs.ScoreModel, counts: AnnData, tmp_path: Path, kind: str):
    if kind == "representation":
        rng = np.random.default_rng(0)
        counts.obsm["X_rep"] = rng.normal(size=(240, 3)) + counts.obs["cell_type"].cat.codes.to_numpy()[:, None]
        other = scs.tl.fit(counts, "cell_type", use_rep="X_rep", max_epochs=1, prior="uniform", progress=False)
    else:
        bare = scs.core.diffusion.ConditionalDiffusion(model.diffusion.schedule, model.diffusion.reference)
        parts = {name: getattr(model, name) for name in ("classes", "class_counts", "representation", "whitening")}
        other = scs.ScoreModel(**parts, engine=bare, calibration=model.calibration, params=model.params)
    other.save(tmp_path / "other")
    found = scs.load(tmp_path / "other")
    assert found.hash == other.hash != model.hash
    assert (found.diffusion.denoiser is None) == (other.diffusion.denoiser is None)
    results = []
    for each in (other, found):
        scs.tl.classify(counts, each, progress=False)
        results.append(counts.obsm["scscore_posterior"])
    np.testing.assert_array_equal(*results)


def test_overwriting_is_refused_unless_asked(model: scs.ScoreModel, copy: Path):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(FileExistsError, match=r"copy\.scscore already holds a model; pass overwrite=True"):
        model.save(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    (copy / "model.safetensors").write_bytes(b"")
    model.save(copy, overwrite=True)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_file_is_not_overwritten(model: scs.ScoreModel, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="file is a file; give the name of a directory"):
            model.save(tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_in_a_directory_is_made(model: scs.ScoreModel, tmp_path: Path):
    model.save(tmp_path / "a" / "b ü")
    assert scs.load(tmp_path / "a" / "b ü").hash == model.hash


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors", "everything"])
def test_a_missing_file_is_named(copy: Path, missing: str):
    if missing == "everything":
        shutil.rmtree(copy)
    else:
        (copy / missing).unlink()
    named = "model.json" if missing == "everything" else missing
    with pytest.raises(scs.ModelFileError, match=rf"copy\.scscore is not a scscore model: {named} is missing"):
        scs.load(copy)


def test_truncated_tensors_are_named(copy: Path):
    file = copy / "model.safetensors"
    raw = file.read_bytes()
    header, start = layout(file)
    for length in (0, 4, 8, 9, start // 2, start - 1):
        file.write_bytes(raw[:length])
        with pytest.raises(scs.ModelFileError, match=r"model\.safetensors is damaged or truncated in its header"):
            scs.load(copy)
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        for length in {start + first, start + end - 1}:
            file.write_bytes(raw[:length])
            with pytest.raises(scs.ModelFileError, match="it ends inside tensor") as caught:
                scs.load(copy)
            assert f"{file}" in str(caught.value)
            assert f"tensor {name!r}" in str(caught.value)


def test_a_flipped_byte_in_any_tensor_is_named(copy: Path):
    file = copy / "model.safetensors"
    raw = file.read_bytes()
    header, start = layout(file)
    assert len(header) > 10
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        for position in {start + first, start + (first + end) // 2, start + end - 1}:
            damaged = bytearray(raw)
            damaged[position] ^= 1
            file.write_bytes(damaged)
            with pytest.raises(scs.ModelFileError, match="does not match its SHA-256") as caught:
                scs.load(copy)
            assert f"{file}: tensor {name!r}" in str(caught.value)


def test_no_flipped_byte_of_the_header_goes_unnoticed(model: scs.ScoreModel, copy: Path):
    file = copy / "model.safetensors"
    raw = file.read_bytes()
    _, start = layout(file)
    for position in range(0, start, 7):
        damaged = bytearray(raw)
        damaged[position] ^= 4
        file.write_bytes(damaged)
        try:
            assert scs.load(copy).hash == model.hash  # white space
        except scs.ModelFileError as error:
            assert "model.safetensors" in str(error)


def test_truncated_json_is_named(copy: Path):
    file = copy / "model.json"
    raw = file.read_bytes()
    for length in (0, 1, 30, len(raw) // 2, len(raw) - 1):
        file.write_bytes(raw[:length])
        with pytest.raises(scs.ModelFileError, match=r"model\.json is damaged or truncated"):
            scs.load(copy)


@pytest.mark.parametrize("text", ["null", "[]", "3", '"text"', "{}", '{"sha256": 3}', "\udcff"])
def test_json_of_something_else_is_named(copy: Path, text: str):
    (copy / "model.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(scs.ModelFileError, match=r"model\.json is damaged or truncated"):
        scs.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["metadata"]["calibration"].update(temperature=9.0),
        lambda body: body["metadata"]["classes"].reverse(),
        lambda body: body["metadata"]["representation"]["genes"].__setitem__(0, "other"),
        lambda body: body["tensors"].popitem(),
        lambda body: body.pop("sha256"),
        lambda body: body.update(sha256="0" * 64),
        lambda body: body.update(more=1),
    ],
    ids=["temperature", "classes", "genes", "tensor", "no hash", "hash", "more"],
)
def test_edited_json_is_named(copy: Path, change: Callable[[dict[str, Any]], None]):
    edit(copy, change)
    with pytest.raises(scs.ModelFileError, match=r"model\.json was edited or damaged.*SHA-256"):
        scs.load(copy)


@pytest.mark.parametrize("with_hash", [True, False])
def test_a_newer_format_asks_for_an_upgrade(copy: Path, with_hash: bool):
    """Whatever else a newer version may have changed."""
    edit(copy, lambda body: body.update(format_version=FORMAT_VERSION + 1))
    if not with_hash:
        edit(copy, lambda body: body.pop("sha256"))
    with pytest.raises(scs.ModelFileError, match=rf"model\.json has format version {FORMAT_VERSION + 1}.*upgrade"):
        scs.load(copy)


def test_a_missing_or_foreign_tensor_is_named(copy: Path):
    file = copy / "model.safetensors"
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if name != "reference.means"}, file)
    with pytest.raises(scs.ModelFileError, match=r"model\.safetensors: tensor 'reference\.means' is missing"):
        scs.load(copy)
    save_file({**tensors, "reference.more": np.zeros(3)}, file)
    with pytest.raises(scs.ModelFileError, match=r"tensor 'reference\.more' does not belong to the model"):
        scs.load(copy)
    save_file({**tensors, "whitening.center": tensors["whitening.center"].astype(np.float32)}, file)
    with pytest.raises(scs.ModelFileError, match=r"tensor 'whitening\.center' was edited or damaged"):
        scs.load(copy)
    save_file(tensors, file)
    scs.load(copy)


def test_model_file_errors_are_value_errors():
    assert issubclass(scs.ModelFileError, ValueError)
