"""``tl.dissipation``: known truths, independence of the request, slots, bad input."""

import json
import re
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from anndata.tests.helpers import assert_equal
from scipy.special import logsumexp

import scscore as scs
from scscore.core.analytic import MixtureDiffusion
from scscore.core.calibration import Calibration
from scscore.core.dissipation import evidence_by_level
from scscore.core.reference_fit import Whitening
from scscore.core.schedule import NoiseSchedule
from scscore.core.trajectories import NoiseStream, noising_trajectory
from scscore.io.representation import ObsmRepresentation
from scscore.tl import _dissipation

RoundTrip = Callable[[AnnData], None]

FEW = ["cell70", "cell3", "cell200"]


def followed(adata: AnnData, model: scs.ScoreModel, cells: Any = FEW, **kwargs: Any) -> dict[str, Any]:
    out = scs.tl.dissipation(adata, model, cells, copy=True, progress=False, **{"n_steps": 6, "n_paths": 4, **kwargs})
    assert out is not None
    return out.uns["scscore_dissipation"]


def centred(log_likelihood: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
    return log_likelihood - logsumexp(log_likelihood + log_prior, axis=-1, keepdims=True)


def exact_model(n_features: int, n_classes: int = 3, lam: float = 8.0) -> tuple[AnnData, scs.ScoreModel]:
    """Cells, and a model whose score is that of their mixture, while its reference is a single Gaussian per class."""
    generator = torch.Generator().manual_seed(n_features)
    means = 1.5 * torch.randn(n_classes, 2, n_features, generator=generator, dtype=torch.float64)
    variances = 0.3 + torch.rand(n_classes, 2, n_features, generator=generator, dtype=torch.float64)
    diffusion = MixtureDiffusion.from_components(means, variances, schedule=NoiseSchedule(lam, -lam))
    diffusion.denoiser.shape = {}  # the model file of a denoiser that is no network, for the hash
    model = scs.ScoreModel(
        classes=np.array([f"class {k}" for k in range(n_classes)]),
        class_counts=np.arange(1, n_classes + 1) * 10,
        representation=ObsmRepresentation("X_exact", n_features),
        whitening=Whitening(torch.zeros(n_features), torch.eye(n_features)),
        engine=diffusion,
        calibration=Calibration(),
        params={"condition": "class", "prior": "train", "version": scs.__version__},
    )
    z = diffusion.sample(torch.arange(30) % n_classes, generator).to(torch.float32)
    cells = AnnData(obs=pd.DataFrame(index=[f"cell{i}" for i in range(30)]), obsm={"X_exact": z.numpy()})
    return cells, model


# known truths -----------------------------------------------------------------------------------------------------


def test_the_clean_end_is_the_log_posterior_of_classify_less_the_prior(counts: AnnData, model: scs.ScoreModel):
    """As `log_likelihood` with the same jumps, paths and seed has it: the mean is taken before centring."""
    found = followed(counts, model, counts.obs_names[100:140], n_steps=8, n_paths=6, rng=5)
    settings: dict[str, Any] = {"layer": None, "n_steps": 8, "n_paths": 6, "seed": 5, "batch_size": 1000}
    ((_, estimate),) = model.log_likelihood(counts, **settings)
    log_prior = model.log_prior()
    expected = centred(estimate.mean.numpy(), log_prior)[100:140]
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(found["evidence"][:, -1], expected, atol=1e-4)
    np.testing.assert_allclose(np.exp(found["evidence"][:, -1] + log_prior).sum(-1), 1, rtol=1e-5)
    spread = centred(estimate.paths.flatten(0, 1).numpy(), log_prior).std(0, ddof=1)[100:140]
    np.testing.assert_allclose(found["evidence_sd"][:, -1], spread, atol=1e-4)
    classified = scs.tl.classify(counts, model, n_steps=8, n_paths=6, rng=5, copy=True, progress=False)
    assert classified is not None
    tempered = model.calibration.temperature * found["evidence"][:, -1] + log_prior
    posterior = np.exp(tempered - logsumexp(tempered, axis=1, keepdims=True))
    np.testing.assert_allclose(posterior, classified.obsm["scscore_posterior"][100:140], atol=1e-5)


def exact_paths(cells: AnnData, model: scs.ScoreModel, n_steps: int, *, n_paths: int, seed: int) -> np.ndarray:
    """Exact log densities of the same noised points, ``(n_paths, n_levels, n_cells, n_classes)``."""
    truth, levels, z = model.diffusion.truth, model.diffusion.schedule.levels(n_steps), model.encode(cells)
    noise, rows, out = NoiseStream(seed), np.arange(cells.n_obs), []
    for pair in range(n_paths // 2):
        for sign in (1, -1):
            draw = lambda step, pair=pair, sign=sign: sign * noise.normal(rows, z.shape[1], pair=pair, step=step)
            path = reversed([*noising_trajectory(z, levels, draw)])
            noised = [truth.log_prob(point, lam) for point, lam in zip(path, levels.flip(0), strict=True)]
            out.append(torch.stack([*noised, truth.log_prob(z)]).numpy())
    return np.stack(out)


@pytest.mark.parametrize("n_features", [1, 2, 5])
def test_with_the_exact_score_every_level_is_exact(n_features: int):
    """The evidence is that of the exact noised densities at the same noised points; the error shrinks with the jumps."""
    cells, model = exact_model(n_features)
    errors, spread_errors = [], []
    for n_steps in (64, 256):
        exact = exact_paths(cells, model, n_steps, n_paths=8, seed=2)
        expected = centred(exact.mean(0), model.log_prior()).swapaxes(0, 1)
        found = followed(cells, model, cells.obs_names, n_steps=n_steps, n_paths=8, rng=2)
        error = found["evidence"] - expected
        errors.append(np.sqrt((error**2).mean()))
        spread = centred(exact, model.log_prior()).std(0, ddof=1).swapaxes(0, 1)
        spread_errors.append(np.sqrt(((found["evidence_sd"] - spread) ** 2).mean()))
    assert expected.min() < -4
    assert spread.max() > 0.5  # paths see different noised cells
    assert errors[1] < min(0.1, 0.65 * errors[0])
    assert spread_errors[1] < min(0.1, 0.65 * spread_errors[0])
    assert np.abs(error.mean((0, 1))).max() < 0.03
    assert (found["evidence"] * expected).sum() / (expected**2).sum() == pytest.approx(1, abs=0.01)


def test_where_all_is_noise_there_is_no_evidence():
    cells, model = exact_model(3, lam=14.0)
    evidence = followed(cells, model, cells.obs_names)["evidence"]
    assert np.abs(evidence[:, 0]).max() < 0.02
    assert np.abs(evidence[:, -1]).max() > 2


def test_mean_spread_and_lead_of_single_paths(counts: AnnData, model: scs.ScoreModel):
    rows, log_prior = np.array([3, 70, 200]), model.log_prior("uniform")
    found = followed(counts, model, counts.obs_names[rows], prior="uniform")
    noise, levels = NoiseStream(0), model.diffusion.schedule.levels(6)
    z = model.in_engine(model.representation.transform(counts[rows]))
    with torch.no_grad():
        pairs = [
            evidence_by_level(
                model.diffusion,
                z,
                levels,
                lambda step, pair=pair: noise.normal(rows, model.diffusion.n_features, pair=pair, step=step),
            )
            for pair in range(2)
        ]
    paths = torch.cat(pairs, 1).transpose(0, 2).numpy()  # cells, paths, levels, classes
    single = centred(paths, log_prior)
    np.testing.assert_allclose(found["evidence"], centred(paths.mean(1), log_prior), atol=1e-5)
    np.testing.assert_allclose(found["evidence_sd"], single.std(1, ddof=1), atol=1e-5)
    leads = (single == single.max(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(found["lead"], leads, atol=1e-6)
    np.testing.assert_allclose(found["lead"].sum(-1), 1, atol=1e-6)


def test_the_prior_shifts_all_classes_alike(counts: AnnData, model: scs.ScoreModel):
    uniform, skewed = followed(counts, model), followed(counts, model, prior=[0.0, 9.0, 1.0])
    np.testing.assert_allclose(skewed["prior"], [0, 0.9, 0.1])
    shift = skewed["evidence"] - uniform["evidence"]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[..., :1], shift.shape), atol=1e-4)
    posterior = np.exp(skewed["evidence"]) * skewed["prior"]
    np.testing.assert_allclose(posterior.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(skewed["lead"], uniform["lead"])


# independence of the request --------------------------------------------------------------------------------------


def test_a_cell_does_not_depend_on_the_others(counts: AnnData, model: scs.ScoreModel):
    together = followed(counts, model)
    assert together["cells"].tolist() == FEW
    for i, name in enumerate(FEW):
        alone = followed(counts, model, name)
        assert alone["cells"].tolist() == [name]
        for slot in ("evidence", "evidence_sd", "lead"):
            np.testing.assert_allclose(alone[slot][0], together[slot][i], atol=1e-4)
    assert np.abs(together["evidence"][0] - together["evidence"][1]).max() > 0.1


@pytest.mark.parametrize("kind", ["array", "series", "list", "index", "names as array", "tuple", "nullable"])
def test_names_and_masks_ask_for_the_same(counts: AnnData, model: scs.ScoreModel, kind: str):
    mask = counts.obs_names.isin(FEW)
    names = counts.obs_names[mask]
    cells = {
        "array": mask,
        "series": pd.Series(mask, index=counts.obs_names),
        "list": mask.tolist(),
        "nullable": pd.Series(pd.array(mask, dtype="boolean"), index=counts.obs_names),
        "index": names,
        "names as array": names.to_numpy(),
        "tuple": tuple(names),
    }[kind]
    found, expected = followed(counts, model, cells), followed(counts, model, FEW)
    assert found["cells"].tolist() == ["cell3", "cell70", "cell200"]
    np.testing.assert_allclose(found["evidence"], expected["evidence"][[1, 0, 2]], atol=1e-6)


def test_seed_and_layer(counts: AnnData, model: scs.ScoreModel):
    base = followed(counts, model)
    np.testing.assert_array_equal(followed(counts, model)["evidence"], base["evidence"])
    other = followed(counts, model, rng=np.random.default_rng(3))
    assert np.abs(other["evidence"] - base["evidence"]).max() > 1e-3
    counts.layers["raw"], counts.X = counts.X, counts.X.log1p()
    np.testing.assert_allclose(followed(counts, model, layer="raw")["evidence"], base["evidence"], atol=1e-5)


def test_backed_files_are_read_in_place(counts: AnnData, model: scs.ScoreModel, tmp_path: Any):
    counts.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    scs.tl.dissipation(backed, model, FEW, n_steps=6, n_paths=4, progress=False)
    found = backed.uns["scscore_dissipation"]["evidence"]
    np.testing.assert_allclose(found, followed(counts, model)["evidence"], atol=1e-5)
    backed.file.close()


# slots ------------------------------------------------------------------------------------------------------------


def test_every_slot_is_what_it_says(
    counts: AnnData, model: scs.ScoreModel, round_trip: RoundTrip, caplog: pytest.LogCaptureFixture
):
    scs.tl.classify(counts, model, progress=False)
    before = counts.copy()
    with caplog.at_level("INFO", logger="scscore"):
        assert scs.tl.dissipation(counts, model, FEW, n_steps=6, n_paths=4, rng=7, progress=False) is None
    assert "wrote uns['scscore_dissipation']" in caplog.text
    found = counts.uns["scscore_dissipation"]
    shapes = {name: value.shape for name, value in found.items() if isinstance(value, np.ndarray)}
    curves = dict.fromkeys(("evidence", "evidence_sd", "lead"), (3, 8, 3))
    assert shapes == {"cells": (3,), "classes": (3,), "prior": (3,), "log_snr": (8,), **curves}
    assert all(found[name].dtype == np.float32 and np.isfinite(found[name]).all() for name in curves)
    assert found["classes"].tolist() == model.classes.tolist()
    np.testing.assert_allclose(found["log_snr"][:-1], model.diffusion.schedule.levels(6).numpy()[::-1])
    assert found["log_snr"][-1] == np.inf
    np.testing.assert_allclose(found["prior"], np.exp(model.log_prior()))
    assert (found["evidence_sd"] >= 0).all()
    assert found["evidence"].max() <= -model.log_prior().min() + 1e-4
    assert found["model_hash"] == model.hash
    assert found["version"] == scs.__version__
    assert json.loads(found["params"]) == {
        "condition": "cell_type",
        "layer": None,
        "n_steps": 6,
        "n_paths": 4,
        "seed": 7,
        "temperature": model.calibration.temperature,
        "offsets": list(model.calibration.offsets),
    }
    rest = counts.copy()
    del rest.uns["scscore_dissipation"]
    assert_equal(rest, before)
    round_trip(counts)


def test_copy_and_key(counts: AnnData, model: scs.ScoreModel):
    before = counts.copy()
    found = scs.tl.dissipation(counts, model, "cell0", n_steps=2, n_paths=2, key_added="k", copy=True, progress=False)
    assert found is not None
    assert set(found.uns) == {"k_dissipation"}
    assert_equal(counts, before)


# bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "error", "message"),
    [
        ("cell999", KeyError, r"cells: \['cell999'\] not in adata.obs_names, which starts with \['cell0', 'cell1'"),
        ([f"no{i}" for i in range(9)], KeyError, "'no4'] and 4 more not in adata.obs_names"),
        ([], ValueError, "cells is empty: name at least one"),
        (np.zeros(240, dtype=bool), ValueError, "cells is empty: the mask selects no cell"),
        (np.ones(240, dtype=bool), ValueError, "cells selects 240 cells, at most 100"),
        ([f"cell{i}" for i in range(101)], ValueError, "cells selects 101 cells, at most 100"),
        (np.ones(7, dtype=bool), ValueError, "mask of 7 cells, adata has 240"),
        (pd.Series([True] + [False] * 239), ValueError, "mask whose index differs from adata.obs_names"),
        (["cell1", "cell2", "cell1"], ValueError, r"names \['cell1'\] more than once"),
        ([3, 4], TypeError, "int 3; for positions pass adata.obs_names"),
        (["cell1", 4], TypeError, "int 4"),
        (np.array([3, 4]), TypeError, "int64 .*3.*; for positions"),
        ([None], TypeError, "NoneType"),
        (3, TypeError, "cells must be a name of adata.obs_names, several names or a boolean mask, got int"),
        (None, TypeError, "got NoneType"),
        ({"cell1"}, TypeError, "got set"),
        (np.ones((240, 1), dtype=bool), ValueError, r"one-dimensional, got shape \(240, 1\)"),
    ],
)
def test_cells_that_are_refused(
    counts: AnnData, model: scs.ScoreModel, cells: Any, error: type[Exception], message: str
):
    refused(counts, model, error, message, cells=cells)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n_paths": 3}, ValueError, "n_paths must be even.*got 3"),
        ({"n_paths": 0}, ValueError, "n_paths must be a positive integer, got 0"),
        ({"n_steps": 0}, ValueError, "n_steps must be a positive integer, got 0"),
        ({"n_steps": None}, ValueError, "n_steps must be a positive integer, got None"),
        ({"prior": "flat"}, ValueError, "prior must be 'train', 'uniform'"),
        ({"layer": "raw"}, KeyError, "layer='raw' is not in adata.layers"),
        ({"layer": 3}, TypeError, "layer must be a name"),
        ({"device": "abacus"}, ValueError, "device='abacus' cannot be used"),
        ({"key_added": "a/b"}, ValueError, "key_added must be a non-empty string without '/'"),
        ({"rng": -1}, ValueError, "rng must be a non-negative integer"),
        ({"model": "pbmc.scscore"}, TypeError, "model must be a ScoreModel.*got str"),
    ],
)
def test_arguments_that_are_refused(
    counts: AnnData, model: scs.ScoreModel, kwargs: dict[str, Any], error: type[Exception], message: str
):
    refused(counts, kwargs.pop("model", model), error, message, **kwargs)


def test_values_that_are_refused(counts: AnnData, model: scs.ScoreModel):
    """Only those of the wanted cells are looked at."""
    counts.X = counts.X.toarray()
    counts.X[3, 0] = np.nan
    assert np.isfinite(followed(counts, model, "cell70")["evidence"]).all()
    refused(counts, model, ValueError, "1 NaN or infinite value")
    refused("cells.h5ad", model, TypeError, "adata must be an AnnData, got str")
    refused(counts[:0].copy(), model, ValueError, "adata holds no cells")


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_a_name_of_several_cells_is_refused(counts: AnnData, model: scs.ScoreModel):
    counts.obs_names = ["cell3", *counts.obs_names[1:]]
    refused(counts, model, ValueError, r"cells: \['cell3'\] each name several cells; call adata.obs_names_make_unique")
    by_mask = followed(counts, model, np.arange(240) == 3)
    assert by_mask["cells"].tolist() == ["cell3"]


def test_a_model_without_classes_is_refused():
    cells, model = exact_model(2, n_classes=1)
    refused(cells, model, ValueError, "model holds one density and no classes")


def refused(adata: Any, model: Any, error: type[Exception], message: str, *, cells: Any = FEW, **kwargs: Any) -> None:
    """Exactly this error, before any trajectory, and the data as they were."""
    before = adata.copy() if isinstance(adata, AnnData) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dissipation, "_evidence", lambda *_, **__: pytest.fail("compute began"))
        with pytest.raises(error) as caught:
            scs.tl.dissipation(adata, model, cells, progress=False, **kwargs)
    assert caught.type is error
    assert re.search(message, str(caught.value)), str(caught.value)
    if before is not None:
        assert_equal(adata, before)
