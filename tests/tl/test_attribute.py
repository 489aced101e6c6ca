"""``tl.attribute``: completeness in genes, invariance, planted genes, slots."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from sklearn.metrics import roc_auc_score

import scscore as scs
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
    with pytest.raises(ValueError, match="fit without use_rep="):
        scs.tl.attribute(cells, model, progress=False)
    density = scs.tl.fit(cells, None, use_rep="X_toy", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="no classes"):
        scs.tl.attribute(cells, density, progress=False)
