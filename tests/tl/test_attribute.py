"""``tl.attribute``: completeness in genes, invariance, planted genes, slots."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData
from sklearn.metrics import roc_auc_score

import scscore as scs
from scscore.core.attribution import Contrast
from scscore.core.attribution import attribute as attribute_points
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.reference_fit import Whitening
from scscore.core.trajectories import NoiseStream

N_GENES, N_MARKERS = 300, 12
METHODS = ("integrated_gradients", "dissipation")


def planted(n: int, seed: int) -> tuple[AnnData, np.ndarray]:
    """Sparse counts of three classes; markers of a class are expressed more (the first half) or less (the second) than elsewhere."""
    rates = np.random.default_rng(0).gamma(0.7, 0.8, N_GENES) * np.ones((3, 1))
    drivers = np.zeros((3, N_GENES), dtype=bool)
    for k in range(3):
        rows = slice(N_MARKERS * k, N_MARKERS * (k + 1))
        drivers[k, rows] = True
        rates[:, rows] = 0.6
        rates[k, rows] = np.repeat([2.4, 0.1], N_MARKERS // 2)
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    counts = rng.poisson(rates[y] * rng.gamma(5, 0.2, (n, 1)))
    obs = pd.DataFrame({"type": pd.Categorical(np.array(["a", "b", "c"])[y])}, index=[f"c{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"g{j}" for j in range(N_GENES)])
    return AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var), drivers


@pytest.fixture(scope="module")
def trained() -> tuple[AnnData, np.ndarray, scs.ScoreModel]:
    """New cells, the planted genes, and a model with a residual that is not zero."""
    train, drivers = planted(900, 1)
    model = scs.tl.fit(train, "type", max_epochs=3, progress=False)
    if model.diffusion.denoiser is None:
        reference = model.diffusion.reference
        denoiser = ResidualDenoiser(reference.class_means, torch.ones(reference.n_features))
        torch.nn.init.normal_(denoiser.output.weight, std=0.05, generator=torch.Generator().manual_seed(0))
        model.diffusion = ConditionalDiffusion(model.diffusion.schedule, reference, denoiser.eval())
    return planted(400, 2)[0], drivers, model


def attributed(cells: AnnData, model: scs.ScoreModel, **options: Any) -> AnnData:
    found = scs.tl.attribute(cells, model, copy=True, progress=False, **options)
    assert found is not None
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reference", ["rest", "runner-up", "marginal", "b"])
def test_genes_add_up_to_the_evidence(trained: tuple[AnnData, np.ndarray, scs.ScoreModel], reference: str, method: str):
    cells, _, model = trained
    found = attributed(cells, model, reference=reference, target="a", method=method, per_cell=True)
    stored = found.uns["scscore_attribution"]
    assert stored["completeness"] < 1e-4
    sums = found.layers["scscore_attribution"].sum(1, dtype=np.float64)
    base = found.obs["scscore_evidence"] - sums
    np.testing.assert_allclose(found.obs["scscore_evidence_baseline"], base, atol=2e-3)
    assert (found.obs["scscore_target"] == "a").all()
    np.testing.assert_allclose(base.mean(), stored["baseline"][0], atol=1e-3)
    np.testing.assert_allclose(found.varm["scscore_attribution"][:, 0].sum(), sums.mean(), rtol=1e-4)
    if reference == "b":
        scs.tl.classify(cells, model, progress=False, n_paths=2)
        ratio = cells.obsm["scscore_log_likelihood"] @ [1, -1, 0]
        np.testing.assert_allclose(found.obs["scscore_evidence"], ratio, atol=1e-2)


def test_two_classes_alone_give_what_all_classes_give(trained: tuple[AnnData, np.ndarray, scs.ScoreModel]):
    """Against one class only two log-likelihoods are computed; the evidence and its gradient are those of all of them."""
    cells, _, model = trained
    z = model.encode(cells[:20])
    versus = torch.full((20, 3), -torch.inf, dtype=torch.float64)
    versus[:, 1] = 0
    one = Contrast(torch.tensor([0, 2] * 10), versus)
    softened = versus.clone()
    softened[:, 0], softened[:, 2] = -1e3, -1e3  # all classes, two of them of no weight
    options = {"noise": NoiseStream(0), "n_steps": 4, "n_paths": 2}
    found, expected = (
        attribute_points(model.diffusion, z, c, **options) for c in (one, Contrast(one.target, softened))
    )
    np.testing.assert_allclose(found.evidence, expected.evidence, atol=1e-4)
    np.testing.assert_allclose(found.gradient, expected.gradient, atol=1e-4 * expected.gradient.abs().max())


@pytest.mark.parametrize("method", METHODS)
def test_planted_genes_are_found(trained: tuple[AnnData, np.ndarray, scs.ScoreModel], method: str):
    cells, drivers, model = trained
    found = attributed(cells, model, method=method)
    for k in range(3):
        total, presence = found.varm["scscore_attribution"][:, k], found.varm["scscore_attribution_presence"][:, k]
        assert roc_auc_score(drivers[k], total) > 0.95
        up = np.zeros(N_GENES, dtype=bool)
        up[N_MARKERS * k : N_MARKERS * k + N_MARKERS // 2] = True
        assert set(np.argsort(-presence)[: N_MARKERS // 2]) == set(np.flatnonzero(up))


def test_absence_is_the_rest(trained: tuple[AnnData, np.ndarray, scs.ScoreModel]):
    cells, _, model = trained
    found = attributed(cells, model)
    down = slice(N_MARKERS // 2, N_MARKERS)  # genes that class a lacks
    total, presence = found.varm["scscore_attribution"][:, 0], found.varm["scscore_attribution_presence"][:, 0]
    assert (total[down] > 0).all()
    assert (presence[down] < 0.2 * total[down]).all()


class Turned(torch.nn.Module):
    """A residual in turned axes."""

    def __init__(self, residual: torch.nn.Module, turn: torch.Tensor) -> None:
        super().__init__()
        self.residual, self.turn, self.shape = residual, turn.float(), {}

    def forward(self, z: torch.Tensor, lam: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        return self.residual(z @ self.turn.T, lam, classes) @ self.turn


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", ["turn", "flip", "permute"])
def test_the_latent_axes_do_not_matter(
    trained: tuple[AnnData, np.ndarray, scs.ScoreModel], change: str, method: str, monkeypatch: pytest.MonkeyPatch
):
    """The same model, with the same noise, in other coordinates of the same space."""
    cells, _, model = trained
    d = model.diffusion.n_features
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    turn = {"turn": turn, "flip": -torch.eye(d), "permute": torch.eye(d)[torch.arange(d - 1, -1, -1)]}[change].double()
    reference = copy.deepcopy(model.diffusion.reference)
    reference.means = reference.means @ turn
    if reference.axes is None:
        assert torch.equal(reference.variances, torch.ones_like(reference.variances))
    else:
        reference.axes = turn.T @ reference.axes
    turned = copy.copy(model)
    turned.whitening = Whitening(model.whitening.center, model.whitening.matrix @ turn)
    residual = Turned(model.diffusion.denoiser, turn)
    turned.diffusion = ConditionalDiffusion(model.diffusion.schedule, reference, residual)
    monkeypatch.setattr(scs.ScoreModel, "hash", "not of interest")
    one = attributed(cells, model, method=method)
    plain = NoiseStream.normal
    monkeypatch.setattr(NoiseStream, "normal", lambda *args, **kwargs: plain(*args, **kwargs) @ turn.float())
    other = attributed(cells, turned, method=method)
    for slot in ("attribution", "attribution_presence", "attribution_se"):
        a, b = one.varm[f"scscore_{slot}"], other.varm[f"scscore_{slot}"]
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


def test_standard_error_is_the_spread_of_repetitions(trained: tuple[AnnData, np.ndarray, scs.ScoreModel]):
    """New cells (about 100 per class) and new noise, 40 times: intervals of two standard errors hold the mean of all in 90 to 99 % of genes."""
    _, _, model = trained
    means, errors = [], []
    for seed in range(40):
        found = attributed(planted(300, 100 + seed)[0], model, target="type", rng=seed, n_segments=2)
        means.append(found.varm["scscore_attribution"][:, 0])
        errors.append(found.varm["scscore_attribution_se"][:, 0])
    means, errors = np.array(means), np.array(errors)
    expressed = errors.mean(0) > 0
    covered = np.abs(means - means.mean(0)) < 1.96 * errors
    assert 0.9 <= covered[:, expressed].mean() <= 0.99


def test_slots_and_round_trip(
    trained: tuple[AnnData, np.ndarray, scs.ScoreModel], round_trip: Callable[[AnnData], None]
):
    cells, _, model = trained
    cells = cells[:50].copy()
    assert scs.tl.attribute(cells, model, per_cell=5, rng=3, progress=False) is None
    for slot in ("attribution", "attribution_se", "attribution_presence"):
        value = cells.varm[f"scscore_{slot}"]
        assert value.dtype == np.float32
        assert value.shape == (N_GENES, 3)
    layer = cells.layers["scscore_attribution"]
    assert sp.issparse(layer)
    assert (np.diff(layer.indptr) == 5).all()
    assert cells.uns["scscore_attribution"]["n_cells"].sum() == 50
    assert json.loads(cells.uns["scscore_attribution"]["params"])["reference"] == "rest"
    round_trip(cells)
    dense = attributed(cells, model, per_cell=True, rng=3).layers["scscore_attribution"]
    kept = layer.toarray()
    np.testing.assert_allclose(kept[kept != 0], dense[kept != 0], rtol=1e-6)
    smallest_kept = np.where(kept != 0, np.abs(kept), np.inf).min(1)
    assert (np.where(kept == 0, np.abs(dense), 0).max(1) <= smallest_kept + 1e-6).all()
    scs.tl.attribute(cells, model, progress=False)
    assert "scscore_attribution" not in cells.layers


def test_input_format_and_batches_change_nothing(trained: tuple[AnnData, np.ndarray, scs.ScoreModel]):
    cells, _, model = trained
    cells = cells[:60].copy()
    whole = attributed(cells, model).varm["scscore_attribution"]
    dense = cells.copy()
    dense.X = cells.X.toarray()
    shuffled = cells[:, ::-1].copy()
    np.testing.assert_allclose(attributed(cells, model, batch_size=7).varm["scscore_attribution"], whole, atol=1e-4)
    np.testing.assert_allclose(attributed(dense, model).varm["scscore_attribution"], whole, atol=1e-5)
    np.testing.assert_allclose(attributed(shuffled, model).varm["scscore_attribution"][::-1], whole, atol=1e-4)


def test_loadings_in_varm_are_as_good_as_an_encoder(trained: tuple[AnnData, np.ndarray, scs.ScoreModel]):
    """A model of ``X_pca``: complete, and the planted genes are found; other values than those of the components are refused."""
    cells, drivers = planted(700, 1)
    cells.layers["counts"] = cells.X.copy()
    sc.pp.normalize_total(cells, target_sum=200)
    sc.pp.log1p(cells)
    cells.layers["log"] = cells.X.copy()
    sc.pp.pca(cells, n_comps=20)
    model = scs.tl.fit(cells, "type", use_rep="X_pca", max_epochs=2, progress=False)
    for method in METHODS:
        found = attributed(cells, model, method=method)
        assert found.uns["scscore_attribution"]["completeness"] < 1e-4
        for k in range(3):
            assert roc_auc_score(drivers[k], found.varm["scscore_attribution"][:, k]) > 0.9
    by_layer = attributed(cells, model, method=method, layer="log")
    np.testing.assert_array_equal(by_layer.varm["scscore_attribution"], found.varm["scscore_attribution"])
    with pytest.raises(ValueError, match=r"obsm\['X_pca'\] is not adata.layers\['counts'\] times"):
        scs.tl.attribute(cells, model, layer="counts", progress=False)


def test_through_an_encoder_of_the_user():
    """A linear encoder, given as a function, agrees with its loadings; a curved one is complete and finds the genes that it reads."""
    cells, _ = planted(500, 1)
    x = np.log1p(cells.X.toarray())
    weights = np.zeros((N_GENES, 3), dtype=np.float32)
    for k in range(3):
        weights[N_MARKERS * k : N_MARKERS * (k + 1), k] = np.repeat([1, -1], N_MARKERS // 2)
    cells.X, cells.obsm["X_own"], cells.varm["own"] = x, x @ weights, weights
    model = scs.tl.fit(cells, "type", use_rep="X_own", max_epochs=2, progress=False)
    loadings = torch.from_numpy(weights)
    options = {"target": "a", "reference": "b", "n_segments": 16}
    one = attributed(cells, model, encoder="own", **options)
    other = attributed(
        cells,
        model,
        encoder=lambda x: x @ loadings,
        decoder=lambda p: (
            torch.from_numpy(x.mean(0)) + (p - torch.from_numpy(x.mean(0) @ weights)) @ loadings.T / N_MARKERS
        ),
        **options,
    )
    assert other.uns["scscore_attribution"]["completeness"] < 1e-4
    np.testing.assert_allclose(other.obs["scscore_evidence"], one.obs["scscore_evidence"], atol=1e-3)
    a, b = (found.varm["scscore_attribution"][:, 0] for found in (one, other))
    # the correction of the quadrature runs along the line in genes there, in the latent space here
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())

    def curved(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.2 * x @ loadings)

    cells.obsm["X_curved"] = curved(torch.from_numpy(x)).numpy()
    model = scs.tl.fit(cells, "type", use_rep="X_curved", max_epochs=2, progress=False)
    found = attributed(cells, model, encoder=curved, per_cell=True)
    assert found.uns["scscore_attribution"]["completeness"] < 1e-4
    drop = found.obs["scscore_evidence"] - found.obs["scscore_evidence_baseline"]
    np.testing.assert_allclose(found.layers["scscore_attribution"].sum(1), drop, atol=1e-2)
    for k in range(3):
        own = found.varm["scscore_attribution"][N_MARKERS * k : N_MARKERS * (k + 1), k]
        assert (own > 0).all()
    unread = np.abs(found.varm["scscore_attribution"][3 * N_MARKERS :])
    assert unread.max() < 1e-3 * np.abs(found.varm["scscore_attribution"]).max()
    for wrong, says in (
        (lambda x: x[:, :3], "differ by up to"),
        (lambda x: x, "returned shape"),
        (lambda x: x[:, :3].detach(), "without a gradient"),
    ):
        with pytest.raises(ValueError, match=says):
            scs.tl.attribute(cells, model, encoder=wrong, progress=False)
    with pytest.raises(ValueError, match="function as encoder="):
        scs.tl.attribute(cells, model, decoder=curved, progress=False)


def test_covariates_leave_attributions_complete():
    """The baseline of a cell has the shift of the cell's own batch."""
    cells, _ = planted(600, 1)
    batch = np.arange(600) % 2
    counts = cells.X.toarray()
    counts[batch == 1, 100:140] += 2
    cells.X = sp.csr_matrix(counts)
    cells.obs["batch"] = pd.Categorical(batch.astype(str))
    model = scs.tl.fit(cells, "type", covariates="batch", max_epochs=2, progress=False)
    assert attributed(cells, model).uns["scscore_attribution"]["completeness"] < 1e-4


def test_noise_levels_add_up(
    trained: tuple[AnnData, np.ndarray, scs.ScoreModel], round_trip: Callable[[AnnData], None]
):
    """What the levels add sums to the attribution; nothing is known at the prior end."""
    cells, _, model = trained
    cells = cells[:60].copy()
    found = attributed(cells, model, by_level=True, n_segments=4)
    levels, whole = found.varm["scscore_attribution_levels"], found.varm["scscore_attribution"]
    assert levels.shape == (N_GENES, 3, model.calibration.n_steps + 2)
    np.testing.assert_allclose(levels.sum(2), whole, atol=2e-3 * np.abs(whole).max())
    nats = levels.sum(0)
    assert np.abs(nats[:, 0]).max() < 0.1 * nats.sum(1).min()
    assert len(found.uns["scscore_attribution"]["log_snr"]) == model.calibration.n_steps + 1
    round_trip(found)
    with pytest.raises(ValueError, match="by_level"):
        scs.tl.attribute(cells, model, by_level=True, method="dissipation", progress=False)


def test_gene_sets_are_sums_of_genes(
    trained: tuple[AnnData, np.ndarray, scs.ScoreModel], round_trip: Callable[[AnnData], None]
):
    cells, drivers, model = trained
    cells = cells[:80].copy()
    cells.var["kind"] = np.where(np.arange(N_GENES) < 100, "first", "other")
    found = attributed(cells, model, per_cell=True, gene_sets="kind")
    assert found.uns["scscore_attribution"]["gene_sets"].tolist() == ["first", "other"]
    layer, sums = found.layers["scscore_attribution"], found.obsm["scscore_attribution_sets"]
    np.testing.assert_allclose(sums[:, 0], layer[:, :100].sum(1), atol=1e-4)
    np.testing.assert_allclose(sums.sum(1), layer.sum(1), atol=1e-4)
    round_trip(found)
    named = {name: cells.var_names[rows].tolist() for name, rows in zip("abc", drivers, strict=True)}
    found = attributed(cells, model, gene_sets={**named, "elsewhere": ["g299", "unheard of"]})
    of_sets = scs.get.attribution(found, gene_sets=True)
    assert of_sets.var_names.tolist() == ["a", "b", "c", "elsewhere"]
    assert (of_sets.X.argmax(1) == [0, 1, 2]).all()
    np.testing.assert_allclose(of_sets.X[0, 0], found.varm["scscore_attribution"][drivers[0], 0].sum(), rtol=1e-3)
    rows = (found.obs["scscore_target"] == "a").to_numpy()
    own = found.obsm["scscore_attribution_sets"][rows, 0]
    np.testing.assert_allclose(of_sets.layers["se"][0, 0], own.std(ddof=1) / np.sqrt(rows.sum()), rtol=1e-4)
    scs.tl.attribute(found, model, progress=False)
    assert "scscore_attribution_sets" not in found.obsm
    with pytest.raises(KeyError, match="gene_sets="):
        scs.get.attribution(found, gene_sets=True)


def test_missing_and_extra_genes(trained: tuple[AnnData, np.ndarray, scs.ScoreModel]):
    cells, _, model = trained
    few = cells[:60, N_MARKERS // 2 :].copy()
    few.var_names = [*few.var_names[:-1], "new"]
    with pytest.warns(UserWarning, match="missing"):
        found = attributed(few, model)
    lost = found.uns["scscore_attribution"]["completeness"]  # what the missing genes would have said
    assert lost > 0.01
    assert (np.nan_to_num(found.varm["scscore_attribution"][-1]) == 0).all()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"target": "nothing"}, KeyError, "target='nothing'"),
        ({"target": 3}, TypeError, "target"),
        ({"target": "batch"}, ValueError, "no classes of the model"),
        ({"reference": "best"}, ValueError, "reference must be one of"),
        ({"target": "a", "reference": "a"}, ValueError, "same class"),
        ({"method": "guess"}, ValueError, "method must be one of"),
        ({"n_paths": 3}, ValueError, "n_paths must be even"),
        ({"n_segments": 0}, ValueError, "n_segments"),
        ({"per_cell": 0}, ValueError, "per_cell"),
        ({"layer": "counts"}, KeyError, "counts"),
        ({"encoder": "PCs"}, ValueError, "encoder of its own"),
        ({"gene_sets": "pathway"}, KeyError, "gene_sets='pathway'"),
        ({"gene_sets": {"one": ["nowhere"]}}, ValueError, r"without one: \['one'\]"),
        ({"gene_sets": {"one": "g1"}}, TypeError, "must be a list of genes"),
        ({"gene_sets": 3}, TypeError, "gene_sets must be"),
    ],
)
def test_bad_input_is_named(
    trained: tuple[AnnData, np.ndarray, scs.ScoreModel], options: dict[str, Any], error: type, says: str
):
    cells = trained[0][:10].copy()
    cells.obs["batch"] = "one"
    with pytest.raises(error, match=says):
        scs.tl.attribute(cells, trained[2], progress=False, **options)
    assert not cells.varm.keys()


def test_models_without_genes_or_classes_are_refused():
    cells = scs.datasets.toy_gaussians(n_obs=60)
    model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=1, progress=False)
    cells.X = cells.obsm["X_toy"].astype(np.float32)  # some values
    with pytest.raises(KeyError, match=r"varm\['PCs'\] is missing.*without use_rep="):
        scs.tl.attribute(cells, model, progress=False)
    density = scs.tl.fit(cells, None, use_rep="X_toy", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="no classes"):
        scs.tl.attribute(cells, density, progress=False)


def test_significant_genes_are_the_planted_ones(
    trained: tuple[AnnData, np.ndarray, scs.ScoreModel], round_trip: Callable[[AnnData], None]
):
    """At 5 %, most planted genes are called, and hardly one that drives no class; with labels at random, none."""
    cells, drivers, model = trained
    tested = scs.tl.attribution_test(cells, model, "type", n_permutations=999, copy=True, progress=False)
    called = tested.varm["scscore_attribution_fdr"] < 0.05
    for k in range(3):
        assert called[drivers[k], k].mean() > 0.8
    assert called[~drivers.any(0)].mean() < 0.01
    round_trip(tested)
    both = attributed(tested, model, reference="runner-up")
    assert {"pvalue", "fdr"} <= set(scs.get.attribution(both).layers)
    assert (both.obs["scscore_runner_up"] != both.obs["scscore_target"]).all()
    both.uns["scscore_attribution_test"]["model_hash"] = "another"
    assert "fdr" not in scs.get.attribution(both).layers
    cells = cells.copy()
    cells.obs["chance"] = np.random.default_rng(0).permutation(cells.obs["type"])
    scs.tl.attribution_test(cells, model, "chance", n_permutations=999, progress=False)
    p = cells.varm["scscore_attribution_pvalue"]
    assert 0.02 < np.nanmean(p < 0.05) < 0.07
    assert (cells.varm["scscore_attribution_fdr"] < 0.05).sum() <= 2


def test_labels_of_the_model_are_refused(trained: tuple[AnnData, np.ndarray, scs.ScoreModel]):
    cells, _, model = trained
    cells = cells[:60].copy()
    scs.tl.classify(cells, model, progress=False)
    scs.tl.attribute(cells, model, progress=False)
    for column in ("scscore_label", "scscore_target"):
        with pytest.raises(ValueError, match="given by a model"):
            scs.tl.attribution_test(cells, model, column, progress=False)
    cells.obs["other"] = "nothing of the kind"
    with pytest.raises(ValueError, match="must hold classes of the model"):
        scs.tl.attribution_test(cells, model, "other", progress=False)
    with pytest.raises(KeyError, match="labels='nowhere'"):
        scs.tl.attribution_test(cells, model, "nowhere", progress=False)
