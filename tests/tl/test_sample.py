"""``tl.sample``: true moments, classes that were asked for, expression and points that belong together, slots."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.stats import chisquare

import scscore as scs
from scscore.io.representation import PCAEncoder
from scscore.tl._sample import sample as sample_cells


def sample(model: Any, *args: Any, **options: Any) -> AnnData:
    return sample_cells(model, *args, **{"progress": False, **options})


@pytest.fixture(scope="module")
def toy() -> tuple[AnnData, scs.ScoreModel]:
    """9,000 cells of three classes, and the model whose score is exact."""
    return scs.datasets.toy_mixture(n_obs=9000)


@pytest.fixture(scope="module")
def density() -> scs.ScoreModel:
    """A model of one density, without classes."""
    return scs.tl.fit(scs.datasets.toy_gaussians(300), None, use_rep="X_toy", max_epochs=1, progress=False)


@pytest.mark.parametrize("method", ["sde", "flow"])
def test_moments_of_every_class_are_true(toy: tuple[AnnData, scs.ScoreModel], method: str):
    cells, model = toy
    found = sample(model, 6000, condition=["a", "b", "c"], method=method)
    for name in "abc":
        a, b = (adata.obsm["X_toy"][(adata.obs["class"] == name).to_numpy()] for adata in (found, cells))
        error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert (abs(a.mean(0) - b.mean(0)) < 4 * error + 0.02).all()
        np.testing.assert_allclose(np.cov(a.T), np.cov(b.T), rtol=0.1, atol=0.1)


def test_new_cells_are_recognised(toy: tuple[AnnData, scs.ScoreModel]):
    """As often as the true cells, by the same model."""
    cells, model = toy
    found = sample(model, 600, condition=["a", "b", "c"])
    scs.tl.classify(found, model, n_steps=8, n_paths=4, progress=False)
    expected = (cells.obsm["log_likelihood"].argmax(1) == cells.obs["class"].cat.codes).mean()
    assert (found.obs["scscore_label"] == found.obs["class"]).mean() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("n", "condition", "expected"),
    [
        (4, "b", ["b"] * 4),
        (5, ["c", "a"], ["c"] * 3 + ["a"] * 2),
        (None, {"b": 2, "a": 1}, ["b", "b", "a"]),
        (3, {"b": 2, "a": 1, "c": 0}, ["b", "b", "a"]),
        (None, pd.Series(["c", "c", "a"]).value_counts(), ["c", "c", "a"]),
    ],
)
def test_classes_that_were_asked_for(
    toy: tuple[AnnData, scs.ScoreModel], n: int | None, condition: Any, expected: list[str]
):
    found = sample(toy[1], n, condition=condition, n_steps=2)
    assert found.obs["class"].tolist() == expected
    assert found.obs["class"].cat.categories.tolist() == ["a", "b", "c"]
    stored = found.uns["scscore_sample"]
    assert stored["n_cells"].tolist() == [expected.count(name) for name in "abc"]
    assert json.loads(stored["params"])["n"] == len(expected)


def test_classes_follow_the_prior(model: scs.ScoreModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(model.params, "prior", [0.6, 0.1, 0.3])
    found = sample(model, 1000, n_steps=1)
    counts = found.obs["cell_type"].value_counts()[list(model.classes)]
    assert chisquare(counts, [600, 100, 300]).pvalue > 1e-3


def test_one_density(density: scs.ScoreModel):
    found = sample(density, 2000)
    cells = scs.datasets.toy_gaussians(300)
    assert found.obs.columns.tolist() == []
    np.testing.assert_allclose(found.obsm["X_toy"].mean(0), cells.obsm["X_toy"].mean(0), atol=0.6)
    with pytest.raises(ValueError, match="holds one density and no classes .* leave condition out"):
        sample(density, 5, condition="a")


def test_expression_and_points_belong_together(model: scs.ScoreModel):
    """Encoding the expression gives the points; the mean of a class is that of its cells."""
    encoder = model.representation
    assert isinstance(encoder, PCAEncoder)
    found = sample(model, condition={"T cell": 300, "B/naïve": 300})
    assert found.var_names.tolist() == model.genes.tolist()
    assert found.X.dtype == np.float32
    points, d = (found.X - encoder.mean) @ encoder.components, model.diffusion.n_features
    np.testing.assert_allclose(points[:, :d], found.obsm["X_scscore"], atol=1e-4)
    np.testing.assert_allclose(points[:, d:], 0, atol=1e-4)
    markers = {"T cell": slice(10, 20), "B/naïve": slice(0, 10)}
    for name, own in markers.items():
        of_class = (found.obs["cell_type"] == name).to_numpy()
        assert (found.X[of_class, own].mean(0) > found.X[~of_class, own].mean(0)).all()


def test_points_are_the_whitened_ones_taken_back(toy: tuple[AnnData, scs.ScoreModel], model: scs.ScoreModel):
    found = sample(model, 200)
    z = model.whitening(torch.from_numpy(found.obsm["X_scscore"])).double()
    truth = model.diffusion.reference
    y = torch.tensor(found.obs["cell_type"].cat.codes.tolist())
    energy = truth.log_prob(z)[torch.arange(200), y]
    typical = -0.5 * z.shape[1] * (1 + np.log(2 * np.pi))
    assert float(energy.mean()) == pytest.approx(typical, abs=0.4 * z.shape[1])


@pytest.mark.parametrize("method", ["sde", "flow"])
def test_batches_and_numbers_do_not_matter(model: scs.ScoreModel, method: str):
    whole = sample(model, 150, method=method, n_steps=8)
    parts = sample(model, 150, method=method, n_steps=8, batch_size=37)
    few = sample(model, 40, method=method, n_steps=8)
    assert (whole.obs == parts.obs).all(axis=None)
    assert (whole.obs[:40] == few.obs).all(axis=None)
    np.testing.assert_allclose(parts.X, whole.X, atol=1e-4)
    np.testing.assert_allclose(few.X, whole.X[:40], atol=1e-4)
    assert not np.allclose(sample(model, 150, method=method, n_steps=8, rng=1).X, whole.X)


def test_a_saved_model_gives_the_same_cells(model: scs.ScoreModel, tmp_path: Path):
    model.save(tmp_path / "model")
    one, other = (sample(m, 20, n_steps=4) for m in (model, scs.load(tmp_path / "model")))
    np.testing.assert_array_equal(one.X, other.X)
    assert one.uns["scscore_sample"]["model_hash"] == other.uns["scscore_sample"]["model_hash"]


def test_features_that_the_model_does_not_use_are_zero():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    wide = np.c_[rng.normal(size=(300, 3)) + 4 * np.eye(3)[y], rng.normal(size=(300, 40))]
    cells = AnnData(obs=pd.DataFrame({"class": np.array(["a", "b", "c"])[y]}, index=[f"c{i}" for i in range(300)]))
    cells.obsm["X_wide"] = wide
    model = scs.tl.fit(cells, "class", use_rep="X_wide", max_epochs=1, progress=False)
    found = sample(model, 50).obsm["X_wide"]
    d = model.diffusion.n_features
    assert found.shape == (50, 43)
    assert found[:, :d].any(0).all() and not found[:, d:].any()


@pytest.mark.parametrize("name", ["scscore", "mine"])
def test_slots_survive_files(
    model: scs.ScoreModel, name: str, round_trip: Callable[[AnnData], None], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("INFO", logger="scscore"):
        found = sample(model, 12, key_added=name, n_steps=2)
    assert [*found.obs] == ["cell_type"] and [*found.obsm] == [f"X_{name}"] and [*found.uns] == [f"{name}_sample"]
    assert f"wrote X, obs['cell_type'], obsm['X_{name}'], uns['{name}_sample']" in caplog.text
    params = json.loads(found.uns[f"{name}_sample"]["params"])
    assert params["method"] == "sde" and params["n_steps"] == 2 and params["input"] == "counts"
    round_trip(found)


def test_points_of_a_stored_representation_survive_files(
    toy: tuple[AnnData, scs.ScoreModel], round_trip: Callable[[AnnData], None]
):
    found = sample(toy[1], 12, condition="a", n_steps=2)
    assert found.X is None and found.shape == (12, 0) and [*found.obsm] == ["X_toy"]
    round_trip(found)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": None}, ValueError, "n=None: say how many cells, or give condition= as a mapping"),
        ({"n": 0}, ValueError, "n must be a positive integer, got 0"),
        ({"n": 2.5}, ValueError, "n must be a positive integer, got 2.5"),
        ({"n": 5, "condition": "d"}, KeyError, "condition='d' is no class of the model; classes: ['a', 'b', 'c']"),
        ({"n": 5, "condition": ["a", "a"]}, ValueError, "every class once, got ['a', 'a']; for numbers of cells"),
        ({"n": 5, "condition": []}, ValueError, "condition must name at least one class"),
        ({"n": 5, "condition": 3}, TypeError, "condition must be None, a class, a list of classes or a mapping"),
        ({"n": 5, "condition": [3]}, TypeError, "condition must name classes (strings), got 3"),
        ({"n": 5, "condition": {"a": 2}}, ValueError, "condition= asks for 2 cells in all, n=5: leave n out"),
        ({"n": None, "condition": {"a": 0}}, ValueError, "condition= asks for 0 cells in all"),
        ({"n": None, "condition": {"a": -1}}, ValueError, "condition['a'] must be an integer of at least 0, got -1"),
        ({"n": None, "condition": {"a": 1.5}}, ValueError, "condition['a'] must be an integer of at least 0, got 1.5"),
        ({"n": None, "condition": {"d": 1}}, KeyError, "condition='d' is no class of the model"),
        ({"n": 5, "method": "ode"}, ValueError, "method must be one of ['sde', 'flow'], got 'ode'"),
        ({"n": 5, "n_steps": 0}, ValueError, "n_steps must be a positive integer, got 0"),
        ({"n": 5, "batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
        ({"n": 5, "device": "abacus"}, ValueError, "device='abacus' cannot be used"),
        ({"n": 5, "key_added": "a/b"}, ValueError, "key_added must be a non-empty string without '/', got 'a/b'"),
        ({"n": 5, "rng": -1}, ValueError, "rng must be a non-negative integer"),
    ],
)
def test_errors_say_what_to_do(
    toy: tuple[AnnData, scs.ScoreModel], arguments: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error) as caught:
        sample(toy[1], **arguments)
    assert message in caught.value.args[0]


def test_not_a_model():
    with pytest.raises(TypeError, match="model must be a ScoreModel .*, got str"):
        sample("pbmc", 5)
