"""``tl.combine``: pairs that were never seen are recognised where effects add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scscore as scs
from scscore.core.combination import Pair, with_combinations
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.reference import GaussianReference
from scscore.core.schedule import NoiseSchedule

NAMES = ("a", "b", "c", "control")
PAIRS = ("a+b", "a+c", "b+c")


def screen(n: int, seed: int, *, pairs: bool) -> AnnData:
    """Points in 12 dimensions; three perturbations shift four of them each, by 2 standard deviations, in 9 of 10 cells."""
    rng = np.random.default_rng(seed)
    names = rng.choice([*NAMES, *(PAIRS if pairs else ())], size=n)
    x = rng.normal(size=(n, 12))
    for i, name in enumerate("abc"):
        hit = np.array([name in label.split("+") for label in names]) & (rng.random(n) < 0.9)
        x[np.ix_(hit, np.arange(4 * i, 4 * i + 4))] += 2
    cells = AnnData(obs=pd.DataFrame({"target": pd.Categorical(names)}, index=[f"c{i}" for i in range(n)]))
    cells.obsm["X_points"] = x
    return cells


@pytest.fixture(scope="module")
def model() -> scs.ScoreModel:
    return scs.tl.fit(screen(1500, 1, pairs=False), "target", use_rep="X_points", max_epochs=20, progress=False)


def accuracy(model: scs.ScoreModel, cells: AnnData) -> float:
    scs.tl.classify(cells, model, prior="uniform", progress=False)
    return float((cells.obs["scscore_label"].astype(str) == cells.obs["target"].astype(str)).mean())


def test_unseen_pairs_are_recognised_as_well_as_seen_ones(model: scs.ScoreModel, tmp_path: Path):
    combined, test = scs.tl.combine(model, PAIRS, control="control"), screen(2000, 2, pairs=True)
    assert combined.classes.tolist() == [*NAMES, *PAIRS]
    seen = scs.tl.fit(screen(1500, 3, pairs=True), "target", use_rep="X_points", max_epochs=20, progress=False)
    unseen, ceiling = accuracy(combined, test), accuracy(seen, test)
    assert unseen > ceiling - 0.03
    assert unseen > 0.7
    combined.save(tmp_path / "model")
    again = scs.load(tmp_path / "model")
    assert accuracy(again, test) == unseen
    cells = scs.tl.sample(combined, condition=dict.fromkeys(("a", "b", "control", "a+b"), 1000), progress=False)
    mean = {
        name: cells.obsm["X_points"][rows].mean(0)
        for name, rows in cells.obs.groupby("target", observed=True).indices.items()
    }
    np.testing.assert_allclose(mean["a+b"], mean["a"] + mean["b"] - mean["control"], atol=0.35)
    assert (mean["a+b"][:8] > 1.3).all()


def test_other_classes_stay_as_they_are(model: scs.ScoreModel):
    cells = screen(50, 4, pairs=False)
    combined = scs.tl.combine(model, ["c+a"], control="control")
    scs.tl.classify(cells, model, progress=False)
    before = cells.obsm["scscore_log_likelihood"]
    scs.tl.classify(cells, combined, progress=False)
    np.testing.assert_allclose(cells.obsm["scscore_log_likelihood"][:, :4], before, atol=1e-4)
    assert "scscore_typicality" not in cells.obs


def test_the_reference_of_a_pair_is_the_sum_of_shifts_and_escapes():
    """Weights by independent escapes: .9 x .8 have both, .9 x .2 the first alone, .1 x .8 the second, .02 none."""
    means = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    weights = torch.tensor([[1.0, 0, 0], [0.1, 0.9, 0], [0.2, 0, 0.8]])
    axes = torch.eye(2).repeat(3, 1, 1)
    reference = GaussianReference(means, weights, torch.tensor([[1.0, 1], [2, 1], [1, 4]]), axes)
    found = with_combinations(ConditionalDiffusion(NoiseSchedule(), reference), [Pair(1, 2)], 0).reference
    np.testing.assert_allclose(found.means[3], [3, 4])
    np.testing.assert_allclose(found.weights[3], [0.02, 0.18, 0.08, 0.72])
    np.testing.assert_allclose((found.axes[3] * found.variances[3]) @ found.axes[3].T, [[1.5, 0], [0, 2.5]])
    z = torch.randn(5, 2)
    np.testing.assert_allclose(found.log_prob(z)[:, :3], reference.log_prob(z))


@pytest.mark.parametrize(
    ("combinations", "options", "says"),
    [
        ("a+b", {}, "must be a list"),
        ([], {}, "must be a list"),
        (["a+nothing"], {}, "two different classes"),
        (["a+a"], {}, "two different classes"),
        (["a+control"], {}, "two different classes"),
        (["a+b+c"], {}, "two different classes"),
        (["a+b", "a+b"], {}, "must be unique"),
        (["a+b"], {"control": "ctrl"}, "control must be a class"),
        (["a+b"], {"separator": "_"}, "joined by '_'"),
    ],
)
def test_bad_input_is_named(model: scs.ScoreModel, combinations: Any, options: dict[str, str], says: str):
    with pytest.raises(ValueError, match=says):
        scs.tl.combine(model, combinations, **{"control": "control", **options})


def test_exact_models_are_refused():
    _, exact = scs.datasets.toy_mixture(n_obs=10)
    with pytest.raises(ValueError, match="exact"):
        scs.tl.combine(exact, [f"{exact.classes[1]}+{exact.classes[2]}"], control=str(exact.classes[0]))
