"""``tl.energy``: against exact densities, and what it writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.special import logsumexp
from torch import Tensor, nn

import scscore as scs


@pytest.fixture
def toy() -> tuple[AnnData, scs.ScoreModel]:
    """Cells of a mixture, and the model that knows it exactly."""
    return scs.datasets.toy_mixture(60, n_features=3)


def truth(cells: AnnData, weights: np.ndarray) -> np.ndarray:
    return -logsumexp(cells.obsm["log_likelihood"], axis=1, b=weights / weights.sum())


def energy(adata: AnnData, model: scs.ScoreModel, **kwargs: Any) -> AnnData:
    found = scs.tl.energy(adata, model, copy=True, progress=False, **kwargs)
    assert found is not None
    return found


@pytest.mark.parametrize("estimator", ["dissipation", "elbo"])
@pytest.mark.parametrize(("condition", "prior"), [(None, None), ("b", None), (None, np.array([1.0, 2.0, 3.0]))])
def test_energy_is_that_of_the_exact_density(
    toy: tuple[AnnData, scs.ScoreModel],
    estimator: str,
    condition: str | None,
    prior: np.ndarray | None,
):
    cells, exact = toy
    weights = np.array([0, 1, 0]) if condition == "b" else np.ones(3) if prior is None else prior
    found = energy(
        cells, exact, condition=condition, prior=prior, estimator=estimator, n_steps=64, n_paths=32, gap=False
    )
    error = found.obs["scscore_energy"].to_numpy() - truth(cells, weights)
    assert (np.abs(error) < 4 * found.obs["scscore_energy_se"] + 0.01).mean() > 0.97
    assert np.abs(error.mean()) < 0.02


def test_energy_of_the_flow_has_no_monte_carlo_error(toy: tuple[AnnData, scs.ScoreModel]):
    cells, exact = toy
    found = energy(cells, exact, estimator="flow", n_steps=64, gap=False)
    np.testing.assert_allclose(found.obs["scscore_energy"], truth(cells, np.ones(3)), atol=5e-3)  # single precision
    assert (found.obs["scscore_energy_se"] == 0).all()


class Rotating(nn.Module):
    """A residual plus a field that is no gradient of anything."""

    def __init__(self, residual: nn.Module) -> None:
        super().__init__()
        self.residual, self.shape = residual, {}

    def forward(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        turn = torch.tensor([[0.0, 0.4, 0.0], [-0.4, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=z.dtype)
        return self.residual(z, lam, classes) + (z @ turn)[..., None, :]


def test_paths_and_flow_agree_for_an_exact_score_and_not_for_a_corrupted_one(toy: tuple[AnnData, scs.ScoreModel]):
    cells, model = toy
    exact = energy(cells, model, n_steps=64, n_paths=64)
    intact = exact.obs["scscore_energy_gap"].abs()
    assert (intact < 4 * exact.obs["scscore_energy_se"] + 0.02).mean() > 0.97
    model.diffusion.denoiser = Rotating(model.diffusion.denoiser)
    flagged = energy(cells, model, n_steps=64, n_paths=64).obs["scscore_energy_gap"].abs()
    assert np.median(flagged) > 5 * np.median(intact)


def test_per_dof_divides_by_the_number_of_features(toy: tuple[AnnData, scs.ScoreModel]):
    cells, exact = toy
    whole, each = energy(cells, exact, n_steps=4), energy(cells, exact, n_steps=4, per_dof=True)
    for name in ("energy", "energy_se", "energy_gap"):
        np.testing.assert_allclose(each.obs[f"scscore_{name}"] * 3, whole.obs[f"scscore_{name}"], rtol=1e-5, atol=1e-6)


def test_stretching_the_space_shifts_all_energies_by_its_log_volume():
    rng = np.random.default_rng(0)
    small = AnnData(rng.normal(size=(200, 3)).astype(np.float32))
    small.obsm["X_toy"] = small.X.astype(np.float64)
    large = small.copy()
    large.obsm["X_toy"] = 10 * small.obsm["X_toy"]
    energies = []
    for adata in (small, large):
        model = scs.tl.fit(adata, None, use_rep="X_toy", max_epochs=20, progress=False)
        energies.append(energy(adata, model, n_steps=8, gap=False).obs["scscore_energy"].to_numpy())
    np.testing.assert_allclose(energies[1] - energies[0], 3 * np.log(10), atol=1e-4)


def test_a_density_without_classes_is_normalised_and_finds_the_modes(
    round_trip: Callable[[AnnData], None], tmp_path: Path
):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-3, 0.5, 300), rng.normal(2, 1, 300)])[:, None]
    cells = AnnData(x.astype(np.float32))
    cells.obsm["X_toy"] = x
    model = scs.tl.fit(cells, None, use_rep="X_toy", max_epochs=50, progress=False)
    assert model.params["reference"]["n_components"] >= 2
    assert "energy" in model.summary()
    model.save(tmp_path / "density")
    grid = np.linspace(-8, 8, 400)
    points = AnnData(np.zeros((400, 1), dtype=np.float32))
    points.obsm["X_toy"] = grid[:, None]
    found = energy(points, scs.load(tmp_path / "density"))
    round_trip(found)
    density = np.exp(-found.obs["scscore_energy"].to_numpy())
    expected = 0.5 * np.exp(-0.5 * ((grid + 3) / 0.5) ** 2) / 0.5 + 0.5 * np.exp(-0.5 * (grid - 2) ** 2)
    expected /= np.sqrt(2 * np.pi)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=0.02)
    assert np.abs(density - expected).max() < 0.06
    with pytest.raises(ValueError, match=r"tl\.energy"):
        scs.tl.classify(cells, model)


def test_batches_and_backed_files_change_nothing(counts: AnnData, model: scs.ScoreModel, tmp_path: Path):
    whole = energy(counts, model, n_steps=4, n_paths=4)
    columns = ["scscore_energy", "scscore_energy_se", "scscore_energy_gap"]
    small = energy(counts, model, n_steps=4, n_paths=4, batch_size=7)
    np.testing.assert_allclose(small.obs[columns], whole.obs[columns], atol=1e-4)
    counts.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    scs.tl.energy(backed, model, n_steps=4, n_paths=4, progress=False)
    np.testing.assert_allclose(backed.obs[columns], whole.obs[columns], atol=1e-4)


def test_classification_and_energy_live_side_by_side(
    counts: AnnData, model: scs.ScoreModel, round_trip: Callable[[AnnData], None]
):
    scs.tl.classify(counts, model, progress=False)
    classified = counts.copy()
    scs.tl.energy(counts, model, n_steps=2, n_paths=2, progress=False)
    assert set(counts.obs) - set(classified.obs) == {"scscore_energy", "scscore_energy_se", "scscore_energy_gap"}
    assert counts.uns["scscore"]["params"] == classified.uns["scscore"]["params"]
    assert counts.uns["scscore_energy"]["model_hash"] == model.hash
    round_trip(counts)


def test_a_gap_of_an_earlier_call_does_not_stay(counts: AnnData, model: scs.ScoreModel):
    scs.tl.energy(counts, model, n_steps=2, n_paths=2, progress=False)
    scs.tl.energy(counts, model, n_steps=2, n_paths=2, gap=False, progress=False)
    assert "scscore_energy_gap" not in counts.obs


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"condition": "D"}, "classes"),
        ({"condition": "T cell", "prior": "uniform"}, "prior"),
        ({"estimator": "guess"}, "dissipation"),
        ({"n_paths": 3}, "even"),
        ({"n_steps": 0}, "n_steps"),
        ({"device": "far away"}, "device"),
    ],
)
def test_bad_arguments_are_named(counts: AnnData, model: scs.ScoreModel, wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        scs.tl.energy(counts, model, **wrong)
    assert "scscore_energy" not in counts.obs


def test_a_density_needs_some_cells(few_counts: AnnData):
    with pytest.raises(ValueError, match="at least 20"):
        scs.tl.fit(few_counts, None, progress=False)


def test_counts_without_classes(counts: AnnData):
    model = scs.tl.fit(counts, None, n_comps=5, max_epochs=10, split_key="donor", progress=False)
    assert model.classes.tolist() == ["all"]
    assert np.isfinite(energy(counts, model, n_steps=2, n_paths=2).obs["scscore_energy"]).all()
