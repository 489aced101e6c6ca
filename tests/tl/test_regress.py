"""``tl.fit`` and ``tl.regress`` on continuous targets with known posteriors."""

from copy import copy
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPRegressor

import scscore as scs

SLOTS = ("mean", "sd", "lower", "upper", "aleatoric_entropy", "mcse", "typicality")


def noisy(n: int, seed: int, *, noise: bool = True) -> AnnData:
    """A curved mean and a noise of known, varying size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    f, sd = np.sin(1.5 * x[:, 0]) + x[:, 1], np.exp(0.6 * x[:, 2] - 1)
    adata = AnnData(x.astype(np.float32))
    adata.obs["y"], adata.obs["sd"] = f + noise * sd * rng.normal(size=n), sd
    adata.obs["group"] = [f"g{i % 6}" for i in range(n)]
    return adata


def linear(n: int, seed: int) -> AnnData:
    """Features of very different units and a linear target: the posterior is normal with standard deviation .5."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) * [1, 50, 0.02, 1, 1, 1] + 3
    adata = AnnData(x.astype(np.float32))
    adata.var_names = [f"feature{j}" for j in range(6)]
    adata.obs["y"] = 2 * (x[:, 0] - 3) - 0.02 * (x[:, 1] - 3) + 0.5 * rng.normal(size=n)
    return adata


@pytest.fixture(scope="module")
def ensemble() -> scs.ScoreModel:
    return scs.tl.fit(noisy(1600, 0), "y", input="values", n_members=2, max_epochs=45, progress=False)


@pytest.fixture(scope="module")
def model() -> scs.ScoreModel:
    return scs.tl.fit(linear(800, 0), "y", input="values", n_members=1, max_epochs=5, progress=False)


@pytest.fixture(scope="module")
def predicted(model: scs.ScoreModel) -> AnnData:
    cells = linear(1500, 1)
    scs.tl.regress(cells, model, progress=False)
    return cells


def test_known_truths_of_a_noisy_target(ensemble: scs.ScoreModel):
    """No worse than a squared-error network; intervals cover; noise is found; only strange cells make the networks disagree."""
    cells, strange = noisy(1000, 1), noisy(1000, 2)
    strange.X = strange.X + 5 * np.random.default_rng(3).choice([-1, 1], strange.shape).astype(np.float32)
    both = ad.concat([cells, strange], index_unique="-")
    scs.tl.regress(both, ensemble, n_steps=8, progress=False)
    found = both.obs.iloc[:1000]
    train = noisy(1600, 0)
    peer = MLPRegressor(hidden_layer_sizes=(128, 128), early_stopping=True, max_iter=1000, random_state=0)
    expected = peer.fit(train.X, train.obs["y"]).predict(cells.X)
    error = np.abs(found["scscore_mean"] - found["y"]).mean()
    assert error <= 1.06 * np.abs(expected - found["y"]).mean()
    assert spearmanr(found["scscore_aleatoric_entropy"], found["sd"])[0] >= 0.85
    inside = (found["y"] > found["scscore_lower"]) & (found["y"] < found["scscore_upper"])
    assert abs(inside.mean() - 0.9) <= 0.05
    is_strange = np.repeat([0, 1], 1000)
    found_by = {
        k: roc_auc_score(is_strange, both.obs[f"scscore_{k}"]) for k in ("mutual_information", "aleatoric_entropy")
    }
    assert found_by["mutual_information"] >= 0.9
    assert found_by["aleatoric_entropy"] < found_by["mutual_information"] - 0.15  # noise is not strangeness
    assert roc_auc_score(is_strange, -both.obs["scscore_typicality"]) >= 0.9


def test_posterior_of_a_linear_target(predicted: AnnData):
    obs = predicted.obs
    truth = 2 * (predicted.X[:, 0] - 3) - 0.02 * (predicted.X[:, 1] - 3)
    assert np.sqrt(np.mean((obs["scscore_mean"] - truth) ** 2)) < 0.2
    assert abs(obs["scscore_sd"].median() - 0.5) < 0.08
    assert abs(obs["scscore_aleatoric_entropy"].median() - 0.5 * np.log(2 * np.pi * np.e * 0.25)) < 0.25
    inside = (obs["y"] > obs["scscore_lower"]) & (obs["y"] < obs["scscore_upper"])
    assert 0.86 < inside.mean() < 0.94
    density = scs.get.density(predicted)
    mass = density.to_numpy() * density.columns.length.to_numpy()
    rank = np.array([np.interp(y, density.columns.right, row.cumsum()) for y, row in zip(obs["y"], mass, strict=True)])
    for coverage in (0.5, 0.9):
        assert abs((np.abs(2 * rank - 1) < coverage).mean() - coverage) <= 0.05


def test_slots_and_round_trip(predicted: AnnData, model: scs.ScoreModel, round_trip):
    for name in SLOTS:
        assert predicted.obs[f"scscore_{name}"].dtype == np.float32
    assert "scscore_mutual_information" not in predicted.obs  # one network alone cannot disagree
    assert predicted.obsm["scscore_density"].dtype == np.float32
    assert (predicted.obs["scscore_lower"] < predicted.obs["scscore_upper"]).all()
    density = scs.get.density(predicted)
    assert np.allclose(density @ density.columns.length, 1, atol=1e-4)
    assert np.allclose(density.columns.mid, model.target.centers)
    round_trip(predicted)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_batches_and_neighbours_change_nothing(predicted: AnnData, model: scs.ScoreModel, batch_size: int):
    few = predicted[:20].copy()
    scs.tl.regress(few, model, batch_size=batch_size, progress=False)
    for name in SLOTS:
        assert np.allclose(few.obs[f"scscore_{name}"], predicted.obs[f"scscore_{name}"][:20], rtol=1e-4, atol=1e-5), (
            name
        )


def test_saved_model_predicts_the_same(predicted: AnnData, model: scs.ScoreModel, tmp_path: Path):
    model.save(tmp_path / "model")
    loaded = scs.load(tmp_path / "model")
    assert loaded.hash == model.hash and repr(loaded) == repr(model) and loaded.summary() == model.summary()
    again = predicted.copy()
    scs.tl.regress(again, loaded, progress=False)
    assert again.obs.equals(predicted.obs)


def test_summary_of_a_name_with_a_colon(model: scs.ScoreModel):
    renamed = copy(model)
    renamed.params = {**model.params, "condition": "ddG: folding"}
    edges = model.target.edges
    expected = f"  target          ddG: folding, {edges[0]:.3g} to {edges[-1]:.3g} in 64 bins, 800 cells"
    assert expected in renamed.summary().splitlines()


def test_direct_twin(tmp_path: Path):
    direct = scs.tl.fit(
        linear(800, 0), "y", input="values", objective="direct", n_members=2, max_epochs=40, progress=False
    )
    direct.save(tmp_path / "direct")
    direct, cells = scs.load(tmp_path / "direct"), linear(500, 1)
    cells.obs["scscore_typicality"] = 0.5  # of another model
    scs.tl.regress(cells, direct, progress=False)
    truth = 2 * (cells.X[:, 0] - 3) - 0.02 * (cells.X[:, 1] - 3)
    assert np.sqrt(np.mean((cells.obs["scscore_mean"] - truth) ** 2)) < 0.35
    assert (cells.obs["scscore_mcse"] == 0).all() and "scscore_mutual_information" in cells.obs
    assert "scscore_typicality" not in cells.obs
    with pytest.raises(ValueError, match="objective='direct'"):
        scs.tl.attribute(cells, direct, progress=False)
    with pytest.raises(ValueError, match="prior= needs a likelihood"):
        scs.tl.regress(cells, direct, prior="uniform", progress=False)


def test_phase_on_a_circle():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 3))
    cells = AnnData(x.astype(np.float32))
    cells.obs["hour"] = np.mod(np.arctan2(x[:, 0], x[:, 1]) * 12 / np.pi + rng.normal(0, 0.5, 900), 24)
    train, test = cells[:600].copy(), cells[600:].copy()
    phase = scs.tl.fit(train, "hour", input="values", circular=24.0, n_members=1, max_epochs=30, progress=False)
    scs.tl.regress(test, phase, progress=False)
    error = phase.target.difference(test.obs["hour"], test.obs["scscore_mean"])
    assert np.sqrt(np.mean(error**2)) < 1.3
    assert test.obs["scscore_mean"].between(0, 24).all()
    inside = np.mod(test.obs["hour"] - test.obs["scscore_lower"], 24) <= np.mod(
        test.obs["scscore_upper"] - test.obs["scscore_lower"], 24
    )
    assert 0.85 < inside.mean() < 0.96


def test_prior_moves_the_posterior(predicted: AnnData, model: scs.ScoreModel):
    high = np.where(model.target.centers > 0, 1.0, 1e-6)
    cells = predicted.copy()
    scs.tl.regress(cells, model, prior=high, progress=False)
    near = predicted.obs["scscore_mean"].abs() < 0.3
    assert (cells.obs["scscore_mean"] > predicted.obs["scscore_mean"])[near].all()


def test_attribution_of_values_is_complete_and_signed(predicted: AnnData, model: scs.ScoreModel):
    for method in ("integrated_gradients", "dissipation"):
        cells = predicted.copy()
        scs.tl.attribute(cells, model, method=method, per_cell=True, progress=False)
        assert cells.uns["scscore_attribution"]["completeness"] < 1e-4
        parts, total = (
            cells.layers["scscore_attribution"],
            cells.obs["scscore_evidence"] - cells.obs["scscore_evidence_baseline"],
        )
        assert np.abs(parts.sum(1) - total).max() < 1e-2
        assert spearmanr(parts[:, 0], cells.X[:, 0])[0] > 0.8  # the target rises with the first feature
        assert spearmanr(parts[:, 1], cells.X[:, 1])[0] < -0.8  # and falls with the second
        assert np.abs(parts[:, 2:]).mean() < 0.1 * np.abs(parts[:, :2]).mean()


def test_attribution_takes_values_and_columns(predicted: AnnData, model: scs.ScoreModel):
    cells = predicted[:50].copy()
    scs.tl.attribute(cells, model, target=2.0, reference=-1.0, progress=False)
    assert scs.get.attribution(cells).obs_names.tolist() == ["2 against -1"]
    forward = cells.obs["scscore_evidence"].to_numpy()
    scs.tl.attribute(cells, model, target=-1.0, reference=2.0, progress=False)
    assert np.allclose(forward, -cells.obs["scscore_evidence"], atol=1e-3)
    scs.tl.attribute(cells, model, target="scscore_mean", progress=False)
    assert scs.get.attribution(cells).obs_names.tolist() == ["scscore_mean against marginal"]
    assert (cells.obs["scscore_evidence"] > 0).mean() > 0.9
    for options, words in (
        ({"target": 1e9}, "must lie between"),
        ({"target": 1.0, "reference": 1.0}, "same value"),
        ({"reference": 1.0}, "target= is missing"),
        ({"target": "high"}, "high"),
        ({"target": np.nan}, "value"),
    ):
        with pytest.raises((ValueError, KeyError), match=words):
            scs.tl.attribute(cells, model, progress=False, **options)


def test_models_are_not_mixed_up(predicted: AnnData, model: scs.ScoreModel):
    classes = scs.datasets.toy_gaussians(n_obs=90)
    of_classes = scs.tl.fit(classes, "class", use_rep="X_toy", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="classes of 'class'; use scscore.tl.classify"):
        scs.tl.regress(classes, of_classes, progress=False)
    with pytest.raises(ValueError, match="continuous target 'y'.*scscore.tl.regress"):
        scs.tl.classify(predicted, model, progress=False)
    with pytest.raises(ValueError, match="continuous target"):
        scs.tl.sample(model, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coverage": 1.0}, "coverage must be between 0 and 1"),
        ({"prior": [1.0, 2.0]}, r"prior must have shape \(64,\)"),
        ({"n_paths": 3}, "n_paths must be even"),
        ({"n_steps": 0}, "n_steps"),
    ],
)
def test_bad_input_is_named(predicted: AnnData, model: scs.ScoreModel, options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        scs.tl.regress(predicted, model, progress=False, **options)


def test_whole_groups_are_held_out_and_missing_values_left_out():
    cells = noisy(300, 0)
    cells.obs.loc[cells.obs_names[:30], "y"] = np.nan
    fitted = scs.tl.fit(cells, "y", input="values", split_key="group", n_members=1, max_epochs=2, progress=False)
    assert fitted.class_counts.sum() == pytest.approx(270)
    assert len(fitted.held_out_values.y) < 270


def test_integers_are_classes_unless_said_otherwise():
    cells = noisy(200, 0)
    cells.obs["count"] = np.clip(np.round(cells.obs["y"]).astype(int), -2, 2)
    assert scs.tl.fit(cells, "count", input="values", max_epochs=1, progress=False).target is None
    assert (
        scs.tl.fit(cells, "count", input="values", continuous=True, n_members=1, max_epochs=1, progress=False).target
        is not None
    )
    cells.obs["y"] = cells.obs["y"].round(1).astype(str)
    with pytest.raises(ValueError, match="must hold real numbers"):
        scs.tl.fit(cells, "y", input="values", continuous=True, progress=False)


def test_features_that_follow_from_others_do_no_harm():
    """Indicators of every letter, of which the last one says nothing new."""
    rng = np.random.default_rng(0)
    letter = rng.integers(0, 5, 600)
    cells = AnnData(np.eye(5, dtype=np.float32)[letter])
    cells.obs["y"] = letter + 0.3 * rng.normal(size=600)
    fitted = scs.tl.fit(cells, "y", input="values", n_members=1, max_epochs=4, progress=False)
    scs.tl.regress(cells, fitted, progress=False)
    assert fitted.diffusion.n_features == 4
    assert np.corrcoef(cells.obs["scscore_mean"], cells.obs["y"])[0, 1] > 0.95


def test_target_from_another_modality():
    from mudata import MuData

    rna, rng = linear(200, 0), np.random.default_rng(1)
    protein = AnnData(rng.normal(size=(150, 2)).astype(np.float32))
    protein.obs_names, protein.var_names = rna.obs_names[:150], ["CD3", "CD4"]
    protein.X[:, 1] = rna.obs["y"][:150]
    data = MuData({"rna": rna, "prot": protein})
    fitted = scs.tl.fit(data, "prot:CD4", modality="rna", input="values", n_members=1, max_epochs=10, progress=False)
    assert fitted.class_counts.sum() == pytest.approx(150)  # the others have no protein
    assert np.allclose(data["rna"].obs["prot:CD4"].to_numpy()[:150], rna.obs["y"][:150], atol=1e-5)
    scs.tl.regress(data, fitted, progress=False)
    assert data["rna"].obs[["scscore_mean", "y"]].corr().iloc[0, 1] > 0.9
    protein.X[:, 1] += 1000  # what is stored from an earlier fit must not be taken again
    again = scs.tl.fit(data, "prot:CD4", modality="rna", input="values", n_members=1, max_epochs=1, progress=False)
    assert again.target.mean > 900
    with pytest.raises(KeyError, match="'CD5' is not among the 2 features"):
        scs.tl.fit(data, "prot:CD5", modality="rna", progress=False)


def test_uniform_prior_is_uniform_over_values(model: scs.ScoreModel):
    density = np.exp(model.log_prior("uniform")) / model.target.widths
    assert np.allclose(density, density[0])


def test_too_few_held_out_cells_give_the_whole_range(predicted: AnnData, model: scs.ScoreModel):
    cells = predicted[:10].copy()
    scs.tl.regress(cells, model, coverage=0.9999, progress=False)
    assert np.allclose(cells.obs["scscore_lower"], model.target.edges[0])
    assert np.allclose(cells.obs["scscore_upper"], model.target.edges[-1])


def test_an_offset_beyond_single_precision_is_refused():
    cells = noisy(100, 0)
    cells.obs["y"] += 1e9
    with pytest.raises(ValueError, match="subtract an offset"):
        scs.tl.fit(cells, "y", input="values", progress=False)


def test_direct_models_have_no_other_prior():
    with pytest.raises(ValueError, match="prior= needs a likelihood"):
        scs.tl.fit(noisy(100, 0), "y", input="values", objective="direct", prior="uniform", progress=False)
