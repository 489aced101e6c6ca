"""``tl.counterfactual``: closed forms, genes and points that belong together, sources, slots."""

from __future__ import annotations

import json
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

import scscore as scs
from scscore.core.analytic import MixtureDiffusion
from scscore.core.calibration import Calibration
from scscore.core.reference_fit import Whitening
from scscore.core.sampling import flow_map
from scscore.core.schedule import NoiseSchedule
from scscore.io.representation import PCAEncoder
from scscore.tl._counterfactual import counterfactual

MARKERS = {"B/naïve": slice(0, 10), "T cell": slice(10, 20), "γδ": slice(20, 30)}


def moved(cells: AnnData, model: Any, to: Any, **options: Any) -> AnnData:
    return counterfactual(cells, model, to=to, **{"progress": False, **options})


def gaussian_model(means: torch.Tensor, covariances: torch.Tensor) -> tuple[AnnData, scs.ScoreModel]:
    """Cells of Gaussian classes a, b, c, and the exact model of them behind a whitening that is not trivial."""
    cells, model = scs.datasets.toy_mixture(n_obs=60, n_components=1, n_features=means.shape[1])
    n_classes, matrix = len(means), torch.tensor([[2.0, 0.5], [0.0, 0.8]], dtype=torch.float64)
    whitening = Whitening(torch.tensor([1.0, -2.0]), matrix)
    in_space = matrix.T @ covariances @ matrix
    model.diffusion = MixtureDiffusion.from_components(
        ((means - whitening.center) @ matrix)[:, None], in_space[:, None], schedule=NoiseSchedule(12.0, -12.0)
    )
    model.whitening = whitening
    y = np.arange(60) % n_classes
    noise = np.random.default_rng(0).normal(size=(60, 2, 1))
    roots = torch.linalg.cholesky(covariances).numpy()
    cells.obsm["X_toy"] = means.numpy()[y] + (roots[y] @ noise)[..., 0]
    return cells, model


@pytest.mark.parametrize("batch_size", [7, 1024])
def test_gaussians_of_equal_covariance_are_shifted(batch_size: int):
    """The optimal transport map: every cell moves by the difference of the means, each from its own class."""
    means = torch.tensor([[0.0, 0.0], [3.0, -1.0], [-2.0, 2.0]], dtype=torch.float64)
    cells, model = gaussian_model(means, torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64).expand(3, 2, 2))
    found = moved(cells, model, "b", n_steps=48, batch_size=batch_size)
    y = cells.obs["class"].cat.codes.to_numpy()
    expected = (means[1] - means).numpy()[y]
    np.testing.assert_allclose(found.obsm["X_toy"] - cells.obsm["X_toy"], expected, atol=2e-3)
    assert found.obs["scscore_source"].tolist() == cells.obs["class"].tolist()
    assert (found.obs["scscore_to"] == "b").all()


def test_gaussians_of_the_same_shape_are_shifted_and_scaled():
    """z -> mu_to + (s_to / s_source) (z - mu_source), in any linear coordinates."""
    means = torch.tensor([[0.0, 0.0], [3.0, -1.0], [-2.0, 2.0]], dtype=torch.float64)
    scales = torch.tensor([1.0, 0.25, 2.25], dtype=torch.float64)
    matrix = torch.tensor([[2.0, 0.5], [0.0, 0.8]], dtype=torch.float64)
    cells, model = gaussian_model(means, scales[:, None, None] * torch.linalg.inv(matrix @ matrix.T))
    found = moved(cells, model, "b", n_steps=48)
    y = cells.obs["class"].cat.codes.to_numpy()
    gain, centre = (0.25 / scales.numpy()[y]) ** 0.5, means.numpy()
    expected = centre[1] + gain[:, None] * (cells.obsm["X_toy"] - centre[y])
    np.testing.assert_allclose(found.obsm["X_toy"], expected, atol=3e-3)


def test_there_and_back_is_the_identity(model: scs.ScoreModel, counts: AnnData):
    found = moved(counts, model, "cell_type")
    assert abs(found.layers["delta"]).max() < 1e-3
    assert (found.obs["scscore_source"] == found.obs["scscore_to"]).all()


def test_encoding_the_expression_gives_the_points(model: scs.ScoreModel, counts: AnnData):
    encoder = model.representation
    assert isinstance(encoder, PCAEncoder)
    found = moved(counts, model, "T cell", source="B/naïve")
    points = (found.X - encoder.mean) @ encoder.components
    np.testing.assert_allclose(points, found.obsm["X_scscore"], atol=1e-4)
    own = np.log1p(counts.X.toarray() * encoder.target_sum / counts.X.sum(1).A)
    np.testing.assert_allclose(found.X - found.layers["delta"], own, atol=1e-4)
    before, d = model.representation.transform(counts), model.diffusion.n_features
    np.testing.assert_allclose(found.obsm["X_scscore"][:, d:], before[:, d : encoder.n_features], atol=1e-4)


def test_cells_become_what_was_asked_for(model: scs.ScoreModel, counts: AnnData):
    """Markers of the new class rise, those of the old one fall, and the points are those of the new class."""
    cells = counts[counts.obs["cell_type"] == "B/naïve"].copy()
    found = moved(cells, model, "T cell")
    delta, error = found.var["scscore_delta"], found.var["scscore_delta_se"]
    assert (delta[MARKERS["T cell"]] > 10 * error[MARKERS["T cell"]]).all()
    assert (delta[MARKERS["B/naïve"]] < -10 * error[MARKERS["B/naïve"]]).all()
    assert abs(delta[MARKERS["γδ"]]).mean() < 0.25 * delta[MARKERS["T cell"]].mean()
    z = model.whitening(torch.from_numpy(found.obsm["X_scscore"]))
    likely = model.diffusion.reference.log_prob(z).argmax(1).numpy()
    assert (model.classes[likely] == "T cell").mean() > 0.95


def test_summary_of_genes(model: scs.ScoreModel, counts: AnnData):
    found = moved(counts, model, "T cell", batch_size=50)
    delta = found.layers["delta"].astype(np.float64)
    np.testing.assert_allclose(found.var["scscore_delta"], delta.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.var["scscore_delta_se"], delta.std(0, ddof=1) / 240**0.5, rtol=1e-3)
    assert found.var["scscore_delta"].dtype == found.var["scscore_delta_se"].dtype == np.float32
    single = moved(counts[:1].copy(), model, "T cell")
    assert single.var["scscore_delta_se"].isna().all() and single.var["scscore_delta"].notna().all()


def test_genes_that_the_model_does_not_know_stay(model: scs.ScoreModel, counts: AnnData):
    extra = AnnData(sp.csr_matrix(np.full((240, 1), 3.0, dtype=np.float32)), obs=counts.obs[[]])
    extra.var_names = ["unheard_of"]
    cells = ad.concat([extra, counts[:, ::-1]], axis=1, merge="first")
    cells.obs["cell_type"] = counts.obs["cell_type"]
    found, plain = moved(cells, model, "T cell"), moved(counts, model, "T cell")
    assert not found[:, "unheard_of"].layers["delta"].any()
    assert (found[:, "unheard_of"].X > 0).all()
    np.testing.assert_allclose(found[:, counts.var_names].layers["delta"], plain.layers["delta"], atol=1e-4)


def test_missing_genes_are_reported(model: scs.ScoreModel, counts: AnnData):
    with pytest.warns(UserWarning, match="54 of the model's 60 genes found"):
        found = moved(counts[:, 6:].copy(), model, "T cell")
    assert found.shape == (240, 54)


def test_batch_size_and_array_type_do_not_matter(model: scs.ScoreModel, counts: AnnData, tmp_path: Any):
    expected = moved(counts, model, "T cell")
    dense = counts.copy()
    dense.X = dense.X.toarray()
    counts.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    layered = AnnData(obs=counts.obs, var=counts.var, layers={"counts": sp.csc_matrix(counts.X)})
    for cells, options in ((counts, {"batch_size": 37}), (dense, {}), (backed, {}), (layered, {"layer": "counts"})):
        found = moved(cells, model, "T cell", **options)
        np.testing.assert_allclose(found.X, expected.X, atol=1e-4)
        np.testing.assert_allclose(found.var["scscore_delta"], expected.var["scscore_delta"], atol=1e-5)
    backed.file.close()


def test_where_cells_come_from(model: scs.ScoreModel, counts: AnnData):
    cells = counts.copy()
    cells.obs["swapped"] = np.roll(cells.obs["cell_type"].astype(str), 1)
    by_default = moved(cells, model, "T cell", n_steps=4)
    by_column = moved(cells, model, "T cell", source="swapped", n_steps=4)
    by_name = moved(cells, model, "swapped", source="γδ", n_steps=4)
    del cells.obs["cell_type"]
    by_likelihood = moved(cells, model, "T cell", n_steps=4)
    source = "scscore_source"
    assert by_default.obs[source].tolist() == counts.obs["cell_type"].tolist()
    assert by_column.obs[source].tolist() == by_column.obs["swapped"].tolist() == by_name.obs["scscore_to"].tolist()
    assert (by_name.obs[source] == "γδ").all()
    assert (by_likelihood.obs[source].to_numpy() == counts.obs["cell_type"].to_numpy()).mean() > 0.95
    sources = [json.loads(f.uns["scscore_counterfactual"]["params"])["source"] for f in (by_default, by_likelihood)]
    assert sources == ["cell_type", None]
    several = moved(cells, model, "T cell", n_steps=4, batch_size=37)
    assert several.obs[source].tolist() == by_likelihood.obs[source].tolist()


def test_the_most_probable_class_is_that_of_classify():
    """The same trajectories, also where few of them decide, and whatever the batches."""
    cells, model = scs.datasets.toy_mixture(n_obs=150, separation=0.7)
    model.calibration = Calibration(n_steps=2, n_paths=2)
    scs.tl.classify(cells, model, rng=5, progress=False)
    del cells.obs["class"]
    found = moved(cells, model, "b", rng=5, n_steps=1, batch_size=37)
    assert found.obs["scscore_source"].tolist() == cells.obs["scscore_label"].tolist()


def test_cells_stay_in_their_batch(counts: AnnData):
    """The shift of a covariate is taken out for the flow, and is still there in the result."""
    batch = np.arange(240) // 3 % 2
    shifted = counts.copy()
    values = counts.X.toarray()
    values[batch == 1, 30:45] *= 4
    shifted.X = sp.csr_matrix(values)
    shifted.obs["batch"] = np.array(["one", "two"])[batch]
    model = scs.tl.fit(shifted, "cell_type", covariates="batch", n_comps=8, max_epochs=1, progress=False)
    encoder = model.representation
    assert isinstance(encoder, PCAEncoder)
    found = moved(shifted, model, "T cell", source="B/naïve")
    np.testing.assert_allclose((found.X - encoder.mean) @ encoder.components, found.obsm["X_scscore"], atol=1e-4)
    z, levels = model.encode(shifted), model.diffusion.schedule.levels(32)
    first, second = (torch.full((240,), k) for k in (0, 1))
    with torch.no_grad():
        to = flow_map(model.diffusion, flow_map(model.diffusion, z, first, levels), second, levels, "to_clean")
    change = (model.whitening.inverse(to) - model.whitening.inverse(z)).numpy()
    points = encoder.transform(shifted)[:, : change.shape[1]] + change
    np.testing.assert_allclose(found.obsm["X_scscore"][:, : change.shape[1]], points, atol=1e-4)
    gap = found.X[batch == 1, 30:45].mean() - found.X[batch == 0, 30:45].mean()
    before = np.log1p(values * encoder.target_sum / values.sum(1, keepdims=True))[:, 30:45]
    assert gap == pytest.approx(before[batch == 1].mean() - before[batch == 0].mean(), rel=0.1)


def test_cells_are_not_changed_and_slots_survive_files(
    model: scs.ScoreModel,
    counts: AnnData,
    round_trip: Callable[[AnnData], None],
    caplog: pytest.LogCaptureFixture,
):
    before = counts.copy()
    with caplog.at_level("INFO", logger="scscore"):
        found = moved(counts, model, "γδ", key_added="mine", n_steps=4)
    assert_equal(counts, before)
    assert (
        "wrote obs['mine_source', 'mine_to'], obsm['X_mine'], uns['mine_counterfactual'], X, layers['delta']"
        in caplog.text
    )
    assert [*found.obs] == [*counts.obs, "mine_source", "mine_to"]
    assert [*found.var] == ["mine_delta", "mine_delta_se"]
    assert [*found.obsm] == ["X_mine"] and [*found.layers] == ["delta"] and [*found.uns] == ["mine_counterfactual"]
    assert found.X.dtype == found.layers["delta"].dtype == found.obsm["X_mine"].dtype == np.float32
    assert found.obs["mine_to"].cat.categories.tolist() == model.classes.tolist()
    round_trip(found)


def test_points_of_a_stored_representation_survive_files(round_trip: Callable[[AnnData], None]):
    cells, model = scs.datasets.toy_mixture(n_obs=30)
    found = moved(cells, model, "b", n_steps=4)
    assert found.X is None and found.shape == (30, 0) and [*found.obsm] == ["X_toy"]
    round_trip(found)


def test_one_density_has_nowhere_to_go():
    cells = scs.datasets.toy_gaussians(60)
    density = scs.tl.fit(cells, None, use_rep="X_toy", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="model holds one density and no classes .* no other condition"):
        moved(cells, density, "a")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"to": "d"}, KeyError, "to='d' is neither a class of the model (['B/naïve', 'T cell', 'γδ']) nor a column"),
        ({"to": 3}, TypeError, "to must be a name (a string), got 3"),
        ({"to": None}, TypeError, "to must be a name (a string), got None"),
        ({"source": "d"}, KeyError, "source='d' is neither a class of the model"),
        ({"source": ["T cell"]}, TypeError, "source must be a name (a string), got ['T cell']"),
        ({"source": "donor"}, ValueError, "source: 240 of 240 cells have no class of the model in adata.obs['donor']"),
        (
            {"source": "partly"},
            ValueError,
            "source: 10 of 240 cells have no class of the model in adata.obs['partly'], ",
        ),
        ({"layer": "spliced"}, KeyError, "layer='spliced' is not in adata.layers"),
        ({"n_steps": 0}, ValueError, "n_steps must be a positive integer, got 0"),
        ({"batch_size": 1.5}, ValueError, "batch_size must be a positive integer, got 1.5"),
        ({"device": "abacus"}, ValueError, "device='abacus' cannot be used"),
        ({"key_added": ""}, ValueError, "key_added must be a non-empty string"),
        ({"rng": "seed"}, ValueError, "rng must be a non-negative integer"),
    ],
)
def test_errors_say_what_to_do(
    model: scs.ScoreModel, counts: AnnData, arguments: dict[str, Any], error: type[Exception], message: str
):
    counts.obs["partly"] = pd.Series([None] * 10 + ["γδ"] * 230, index=counts.obs_names, dtype=object)
    before = counts.copy()
    with pytest.raises(error) as caught:
        moved(counts, model, **{"to": "T cell", **arguments})
    assert message in caught.value.args[0]
    assert_equal(counts, before)


@pytest.mark.parametrize(("cells", "of"), [("cells", "str"), (None, "NoneType")])
def test_not_an_anndata(model: scs.ScoreModel, cells: Any, of: str):
    with pytest.raises(TypeError, match=f"adata must be an AnnData, got {of}"):
        moved(cells, model, "T cell")
