"""Energies -log p against what is known: basin free energies, docking poses, an exact mixture, corrupted networks."""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from _tasks import data_folder
from accuracy import limit_threads
from anndata import AnnData
from scipy.special import logsumexp
from scipy.stats import binomtest, norm, pearsonr, spearmanr
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from speed import synthetic
from torch import Tensor, nn

import scscore as scs
from scscore.core import density_fit
from scscore.core.analytic import ExactResidual, MixtureDiffusion
from scscore.core.calibration import standard_error
from scscore.core.denoiser import ResidualDenoiser
from scscore.core.diffusion import ConditionalDiffusion
from scscore.core.likelihood import flow_log_likelihood, log_likelihood
from scscore.core.reference import GaussianReference
from scscore.core.reference_fit import ReferenceShape
from scscore.core.schedule import NoiseSchedule, broadcastable_level
from scscore.core.training import TrainingConfig, train
from scscore.core.trajectories import NoiseStream

Tables = dict[str, pd.DataFrame]
WIDE = NoiseSchedule(7.0, -5.0)
"""A window with a lower noise floor than the default one, log SNR 5 to -5."""


def points(x: np.ndarray, **obs: object) -> AnnData:
    """Points as a representation ``X``, with columns of ``obs``."""
    x = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    return AnnData(obs=pd.DataFrame(obs, index=[str(i) for i in range(len(x))]), obsm={"X": x})


def energies(x: np.ndarray, model: scs.ScoreModel, **options: object) -> np.ndarray:
    """``tl.energy`` of points, float64."""
    adata = points(x)
    scs.tl.energy(adata, model, **{"gap": False, "progress": False, **options})
    return adata.obs["scscore_energy"].to_numpy(np.float64)


@contextmanager
def network_alone(schedule: NoiseSchedule) -> Iterator[None]:
    """Within, ``tl.fit`` has a single Gaussian as reference, so that the network has to learn the shape of the density."""
    with patch.object(density_fit, "N_COMPONENTS", (1,)), patch("scscore.tl._fit.NoiseSchedule", lambda: schedule):
        yield


def rms(x: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(x))))


# ---------------------------------------------------------------------------------------------------------- alanine

BASINS = ("alphaR", "PII", "C5")
_CUT = 2.2  # psi is cut at -2.2, phi at 0: nothing is visited there
_BINS, _PER_BIN = 36, 3  # bins of the reference surface, and grid points per bin along either angle


class Torus:
    """Grid over both angles, nested in the bins of the reference surface; energies become basin free energies."""

    def __init__(self, kt: float) -> None:
        n = _BINS * _PER_BIN
        edges = np.linspace(-np.pi, np.pi, n + 1)
        self.kt = kt
        angle = (edges[1:] + edges[:-1]) / 2
        self.phi, self.psi = (grid.ravel() for grid in np.meshgrid(angle, angle, indexing="ij"))
        self.cell = (2 * np.pi / n) ** 2

        def above(bound: float) -> np.ndarray:  # fraction of every grid cell above a bound
            return np.clip((edges[1:] - bound) / (edges[1] - edges[0]), 0, 1)

        helix = above(-_CUT) - above(0.9)
        right = above(-1.9)
        shares = [np.outer(np.ones(n), helix), np.outer(right, 1 - helix), np.outer(1 - right, 1 - helix)]
        self.shares = np.stack([share.ravel() for share in shares])

    @staticmethod
    def unwrapped(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
        """Angles as coordinates without a seam in visited regions."""
        return np.c_[np.mod(phi, 2 * np.pi), np.mod(psi + _CUT, 2 * np.pi)]

    def density(self, model: scs.ScoreModel, **options: object) -> np.ndarray:
        """Probability of every grid cell."""
        return np.exp(-energies(self.unwrapped(self.phi, self.psi), model, **options)) * self.cell

    def free_energies(self, density: np.ndarray) -> np.ndarray:
        """Of the basins relative to PII, kJ/mol."""
        weight = self.shares @ density
        return -self.kt * np.log(weight / weight[1])

    def surface(self, density: np.ndarray) -> np.ndarray:
        """Free-energy surface on the bins of the reference, kJ/mol, minimum 0."""
        p = density.reshape(_BINS, _PER_BIN, _BINS, _PER_BIN).sum((1, 3))
        with np.errstate(divide="ignore"):
            return -self.kt * np.log(p / p.max())

    def basin_of_bins(self) -> np.ndarray:
        """Basin with the largest share of every bin."""
        shares = self.shares.reshape(3, _BINS, _PER_BIN, _BINS, _PER_BIN).sum((2, 4))
        return shares.argmax(0)


def alanine(data: Path, seed: int, *, n_refits: int = 5) -> Tables:
    """Basin free energies of alanine dipeptide from learned densities of (phi, psi), beside counting."""
    file = np.load(data / "alanine_dipeptide" / "alanine_dipeptide.npz")
    phi, psi, basin, traj = (file[name].astype(np.float64) for name in ("phi", "psi", "basin", "traj"))
    basin, traj, kt = basin.astype(int), traj.astype(int), float(file["kT_kj"])
    x, torus = Torus.unwrapped(phi, psi), Torus(kt)
    by_trajectory = np.stack([np.bincount(basin[traj == t], minlength=3) for t in range(10)])

    def counted(trajectories: np.ndarray) -> np.ndarray:
        n = by_trajectory[trajectories].sum(0)
        return -kt * np.log(n / n[1])

    def histogram(trajectories: np.ndarray) -> np.ndarray:
        use = np.isin(traj, trajectories)
        return np.histogram2d(phi[use], psi[use], bins=_BINS, range=[[-np.pi, np.pi]] * 2)[0]

    def surface_of(counts: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return -kt * np.log(counts / counts.max())

    assert (
        np.nanmax(
            np.abs(
                np.where(np.isfinite(file["F_phi_psi_kj"]), surface_of(histogram(np.arange(10))), np.nan)
                - file["F_phi_psi_kj"]
            )
        )
        < 1e-3
    )  # orientation [phi, psi], and minimum 0

    def fit(trajectories: np.ndarray, stride: int) -> tuple[scs.ScoreModel, float]:
        rows = np.concatenate([np.flatnonzero(traj == t)[::stride] for t in trajectories])
        adata = points(x[rows], traj=[f"t{t}" for t in traj[rows]])
        start = time.process_time()
        model = scs.tl.fit(adata, None, use_rep="X", split_key="traj", rng=seed, progress=False)
        return model, time.process_time() - start

    everything, first = np.arange(10), np.arange(8)
    effort = {"n_steps": 32, "n_paths": 4}
    rng = np.random.default_rng(seed)
    resamples = rng.integers(0, 10, (1000, 10))
    counted_se = np.std([counted(resample) for resample in resamples], axis=0)
    print(
        f"counting s.e., bootstrap over trajectories: {counted_se.round(3)}; of the file: {file['ref_dG_se'].round(3)}"
    )

    refits = []
    for b in range(n_refits):
        model, _ = fit(resamples[b], stride=20)
        dg = torus.free_energies(torus.density(model, estimator="flow", n_steps=8))
        refits.append({"resample": b, **_named("learned", dg), **_named("counted", counted(resamples[b]))})
        print(f"  refit {b}: learned {dg.round(3)}, counted {counted(resamples[b]).round(3)}", flush=True)
    refits = pd.DataFrame(refits)
    learned_se = np.array([refits[f"learned_{name}"].std() for name in BASINS])
    paired = np.array([rms(refits[f"learned_{name}"] - refits[f"counted_{name}"]) for name in BASINS])

    rows, surfaces = [], []
    held_out = np.isin(traj, [8, 9])
    bins = histogram(first) + 0.5
    cell = (2 * np.pi / _BINS) ** 2
    index = tuple(np.clip(((a[held_out] + np.pi) / (2 * np.pi) * _BINS).astype(int), 0, _BINS - 1) for a in (phi, psi))
    nll_histogram = -np.log(bins / bins.sum() / cell)[index].mean()
    some = np.flatnonzero(held_out)[::10]

    runs = [
        ("default", everything, None),
        ("default", first, None),
        ("network alone", first, NoiseSchedule()),
        ("network alone, floor 7", first, WIDE),
    ]
    for name, trajectories, schedule in runs:
        if schedule is None:
            model, seconds = fit(trajectories, 5)
        else:
            with network_alone(schedule):
                model, seconds = fit(trajectories, 5)
        of_all = len(trajectories) == 10
        truth = counted(everything) if of_all else counted(np.array([8, 9]))
        truth_se = counted_se * (1.0 if of_all else np.sqrt(10 / 2))
        own_se = learned_se * (1.0 if of_all else np.sqrt(10 / 8))
        for estimator in ("dissipation", "flow"):
            options = effort if estimator == "dissipation" else {"n_steps": 8}
            density = torus.density(model, estimator=estimator, **options)
            dg = torus.free_energies(density)
            row = {
                "model": name,
                "trained on": "0-9" if of_all else "0-7",
                "estimator": estimator,
                "Gaussians": model.params["reference"]["n_components"],
                "steps": model.params["n_steps_trained"],
                "fit_seconds": seconds,
                "integral": density.sum(),
                "held_out_nats": np.nan if of_all else energies(x[some], model, estimator=estimator, **options).mean(),
                "held_out_nats_histogram": np.nan if of_all else nll_histogram,
                "counted on": "0-9" if of_all else "8-9",
            }
            for k, basin_name in ((0, "alphaR"), (2, "C5")):
                z = (dg[k] - truth[k]) / np.hypot(own_se[k], truth_se[k])
                row |= {
                    f"dG_{basin_name}": dg[k],
                    f"se_{basin_name}": own_se[k],
                    f"counted_{basin_name}": truth[k],
                    f"counted_se_{basin_name}": truth_se[k],
                    f"z_{basin_name}": z,
                    f"own_counted_{basin_name}": counted(trajectories)[k],
                }
            rows.append(row)
            # against the counts of the same trajectories: smoothing by the model, not luck of the sampling
            reference = surface_of(histogram(trajectories))
            surfaces.append(
                {
                    "surface": f"{name}, trained on {row['trained on']}, {estimator}",
                    "against": f"counts {row['trained on']}",
                }
                | _surface_rms(torus.surface(density), reference, torus.basin_of_bins())
            )
            print(f"  {name} {row['trained on']} {estimator}: dG {dg.round(3)} ({seconds:.0f} s)", flush=True)
    halves = [surface_of(histogram(half)) for half in (everything[::2], everything[1::2])]
    surfaces.append(
        {"surface": "counts, even trajectories", "against": "counts, odd"}
        | _surface_rms(*halves, torus.basin_of_bins())
    )
    summary = pd.DataFrame(rows)
    print(
        f"\ns.e. of the learned free energies by {n_refits} refits: {learned_se.round(3)}; "
        f"rms of learned - counted on the same resample: {paired.round(3)} ({', '.join(BASINS)})"
    )
    return {"alanine": summary, "alanine_refits": refits, "alanine_surface": pd.DataFrame(surfaces)}


def _named(prefix: str, values: np.ndarray) -> dict[str, float]:
    return {f"{prefix}_{name}": float(value) for name, value in zip(BASINS, values, strict=True)}


def _surface_rms(
    surface: np.ndarray, reference: np.ndarray, basin: np.ndarray, below: float = 15.0
) -> dict[str, float]:
    """Root-mean-square difference of two surfaces with minimum 0, kJ/mol, where the reference is below 15 kJ/mol."""
    use = np.isfinite(surface) & (reference < below)
    difference = surface - reference
    out = {"all": rms(difference[use]), "bins": int(use.sum())}
    return out | {name: rms(difference[use & (basin == k)]) for k, name in enumerate(BASINS)}


# ---------------------------------------------------------------------------------------------------------- docking

FEATURES = ("rank", "score", "swarm_mean", "swarm_best", "swarm_spread", "neighbours")
SWARM_VARIANTS = ("fixed", "all", "thinned")
"""Which other poses of a swarm make its features: 4 random ones (the same number for every pose, so that the number kept of a
swarm has no influence); all that are in the file; 4 random ones among those that are not acceptable, which undoes that
acceptable poses were all kept (at a few percent of the others, hardly any acceptable pose would have stayed)."""
_N_OTHERS, _N_NEIGHBOURS, _REACH = 4, 12, 3


def pose_features(poses: pd.DataFrame, variant: str, *, seed: int, permute: bool = False) -> np.ndarray:
    """Features of the poses of one complex that do not use the native structure.

    Normal score of the rank of the docking score; robustly standardised score; mean, best and spread of the normal scores of
    other poses of the same swarm; mean normal score of poses of swarms whose number differs by at most 3 (swarm numbers are
    ordered in space). The score of a pose relative to its swarm is a linear combination of these.

    Parameters
    ----------
    poses
        Poses of one complex.
    variant
        One of :data:`SWARM_VARIANTS`.
    seed
        Seed of the choice of other poses.
    permute
        Shuffle the scores among the poses of the complex first: what is left is what the numbers of poses tell.
    """
    rng = np.random.default_rng(seed)
    score, swarm = poses["score"].to_numpy(), poses["swarm"].to_numpy()
    if permute:
        score = rng.permutation(score)
    q = norm.ppf((pd.Series(score).rank().to_numpy() - 0.5) / len(score))
    middle = np.median(score)
    z = np.clip((score - middle) / (1.4826 * np.median(np.abs(score - middle)) + 1e-9), -4, 8)
    usable = (poses["capri"] == 0).to_numpy() if variant == "thinned" else np.ones(len(q), dtype=bool)

    def some(pool: np.ndarray, n: int) -> np.ndarray:
        return pool if variant == "all" or not len(pool) else rng.choice(pool, n, replace=len(pool) < n)

    of_swarm = {s: np.flatnonzero((swarm == s) & usable) for s in np.unique(swarm)}
    around = {
        s: np.concatenate([of_swarm.get(s + k, np.empty(0, int)) for k in range(-_REACH, _REACH + 1) if k])
        for s in of_swarm
    }
    context = np.full((len(q), 4), np.nan)
    for i, s in enumerate(swarm):
        others, neighbours = some(of_swarm[s][of_swarm[s] != i], _N_OTHERS), some(around[s], _N_NEIGHBOURS)
        if len(others):
            context[i, :3] = q[others].mean(), q[others].max(), q[others].std()
        if len(neighbours):
            context[i, 3] = q[neighbours].mean()
    filled = np.where(np.isnan(context), np.nan_to_num(np.nanmean(context, axis=0)), context)
    return np.c_[q, z, filled]


def docking(data: Path, seed: int) -> Tables:
    """Learned energies of pose features against the docking score, per complex."""
    table = pd.read_csv(data / "lightdock_bm5" / "lightdock_bm5.csv.gz")
    table["swarm"] = table["pose"].str.extract(r"swarm_(\d+)_")[0].astype(int)
    summary, per_complex, leaks = [], [], []
    for scenario, n_folds in (("BLIND", 5), ("TI", 3)):
        poses = table[table["scenario"] == scenario].sort_values("complex", kind="stable").reset_index(drop=True)
        complexes = np.unique(poses["complex"])
        order = np.random.default_rng(seed).permutation(len(complexes))
        fold = (
            poses["complex"].map(dict(zip(complexes[order], np.arange(len(order)) % n_folds, strict=True))).to_numpy()
        )
        for variant in SWARM_VARIANTS if scenario == "BLIND" else ("fixed",):
            f = _features(poses, variant, seed=seed)
            leaks.append({"scenario": scenario, "swarm poses": variant, **_single_feature_auc(poses, f, fold)})
            if variant != "thinned":
                g = _features(poses, variant, seed=seed, permute=True)
                leaks.append(
                    {
                        "scenario": scenario,
                        "swarm poses": f"{variant}, scores shuffled",
                        **_single_feature_auc(poses, g, fold),
                    }
                )
            if variant != "fixed":
                continue
            runs = [("cross-validation", [(fold != k, fold == k) for k in range(n_folds)])]
            if scenario == "BLIND":
                training = (poses["split"] == "train").to_numpy()
                runs.append(("split", [(training, ~training)]))
            for validation, folds in runs:
                found = _ranked(poses, f, folds, seed=seed)
                for method, energy in found.items():
                    rows = _by_complex(poses, energy)
                    rows.insert(0, "method", method)
                    rows.insert(0, "validation", validation)
                    rows.insert(0, "swarm poses", variant)
                    rows.insert(0, "scenario", scenario)
                    per_complex.append(rows)
                    summary.append(_compared(rows))
                print(pd.DataFrame(summary[-len(found) :]).round(3).to_string(index=False), flush=True)
    size = table[table["scenario"] == "BLIND"].groupby(["complex", "swarm"])["score"].transform("size")
    blind = table[table["scenario"] == "BLIND"]
    print(f"AUC of the number of poses of the swarm: {_mean_auc(blind, size.to_numpy()):.3f}")
    return {
        "docking": pd.DataFrame(summary),
        "docking_complexes": pd.concat(per_complex),
        "docking_leaks": pd.DataFrame(leaks),
    }


def _features(poses: pd.DataFrame, variant: str, *, seed: int, permute: bool = False) -> np.ndarray:
    parts = [
        pose_features(part, variant, seed=seed, permute=permute) for _, part in poses.groupby("complex", sort=False)
    ]
    return np.concatenate(parts)


def _ranked(
    poses: pd.DataFrame, f: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]], *, seed: int, n_negatives: int = 50
) -> dict[str, np.ndarray]:
    """Energy of every tested pose by every method; NaN where no fold tests it. Low is good."""
    methods = ("docking score", "energy difference", "energy of acceptable", "logistic regression")
    out = {name: np.full(len(poses), np.nan) for name in methods}
    good, complexes = (poses["capri"] > 0).to_numpy(), poses["complex"].to_numpy()
    rng = np.random.default_rng(seed)
    for training, test in folds:
        use = training & good
        for name in np.unique(complexes[training]):
            negatives = np.flatnonzero((complexes == name) & ~good)
            use[rng.permutation(negatives)[:n_negatives]] = True
        label = np.where(good[use], "acceptable", "not")
        adata = points(f[use], label=label, complex=complexes[use])
        model = scs.tl.fit(adata, "label", use_rep="X", split_key="complex", rng=seed, progress=False)
        effort = {"n_steps": 8, "n_paths": 4}
        good_energy, bad_energy = (energies(f[test], model, condition=c, **effort) for c in ("acceptable", "not"))
        alone = scs.tl.fit(adata[good[use]].copy(), None, use_rep="X", split_key="complex", rng=seed, progress=False)
        peer = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(f[use], good[use])
        out["docking score"][test] = -poses["score"].to_numpy()[test]
        out["energy difference"][test] = good_energy - bad_energy
        out["energy of acceptable"][test] = energies(f[test], alone, **effort)
        out["logistic regression"][test] = -peer.decision_function(f[test])
    return out


def _by_complex(poses: pd.DataFrame, energy: np.ndarray) -> pd.DataFrame:
    """AUC of the acceptable poses and funnel of every tested complex, beside those of the docking score."""
    rows = []
    for name, part in poses.assign(energy=energy).dropna(subset="energy").groupby("complex"):
        good = part["capri"] > 0
        row = {"complex": name, "poses": len(part), "acceptable": int(good.sum())}
        if 0 < good.sum() < len(part):
            row |= {"auc": roc_auc_score(good, -part["energy"]), "auc_score": roc_auc_score(good, part["score"])}
        row["funnel"] = spearmanr(part["energy"], part["lrmsd"])[0]
        row["funnel_score"] = spearmanr(-part["score"], part["lrmsd"])[0]
        rows.append(row)
    return pd.DataFrame(rows)


def _compared(rows: pd.DataFrame) -> dict[str, object]:
    """Summary over complexes: mean AUC, comparison with the docking score, sign test, funnels."""
    ranked = rows.dropna(subset="auc")
    gain, funnel = ranked["auc"] - ranked["auc_score"], rows["funnel"] - rows["funnel_score"]

    def sign_test(difference: pd.Series) -> float:
        changed = int((difference != 0).sum())
        return float(binomtest(int((difference > 0).sum()), changed).pvalue) if changed else 1.0

    return {
        **rows.iloc[0][["scenario", "swarm poses", "validation", "method"]].to_dict(),
        "complexes": len(ranked),
        "mean_auc": ranked["auc"].mean(),
        "se_gain": gain.std() / np.sqrt(len(gain)),
        "equal_or_better": int((gain >= -0.01).sum()),
        "better": int((gain > 0.01).sum()),
        "worse": int((gain < -0.01).sum()),
        "sign_test_p": sign_test(gain),
        "mean_funnel": rows["funnel"].mean(),
        "mean_funnel_score": rows["funnel_score"].mean(),
        "funnel_better": int((funnel > 0).sum()),
        "funnel_of": len(rows),
        "funnel_sign_test_p": sign_test(funnel),
    }


def _mean_auc(poses: pd.DataFrame, value: np.ndarray) -> float:
    """AUC of acceptable poses, mean over the complexes that have any."""
    parts = poses.assign(value=value).groupby("complex")
    found = [roc_auc_score(p["capri"] > 0, p["value"]) for _, p in parts if 0 < (p["capri"] > 0).sum() < len(p)]
    return float(np.mean(found))


def _single_feature_auc(poses: pd.DataFrame, f: np.ndarray, fold: np.ndarray) -> dict[str, float]:
    """AUC of every feature alone, and of a logistic regression on all, cross-validated by complex."""
    good, out = (poses["capri"] > 0).to_numpy(), np.zeros(len(poses))
    for k in np.unique(fold):
        peer = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        out[fold == k] = peer.fit(f[fold != k], good[fold != k]).decision_function(f[fold == k])
    single = {name: _mean_auc(poses, f[:, i]) for i, name in enumerate(FEATURES)}
    return single | {"logistic regression": _mean_auc(poses, out)}


# ---------------------------------------------------------------------------------------------------------- mixture

MEANS, SDS, WEIGHTS = np.array([-30.0, 0.0, 40.0]), np.array([8.0, 5.0, 10.0]), np.array([0.4, 0.3, 0.3])


def mixture(data: Path, seed: int) -> Tables:
    """A mixture in one dimension: learned energies against the exact ones of 1,000 new points, and on a grid."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> np.ndarray:
        k = rng.choice(3, n, p=WEIGHTS)
        return MEANS[k] + SDS[k] * rng.standard_normal(n)

    def exact(x: np.ndarray) -> np.ndarray:
        return -logsumexp(norm.logpdf(x[:, None], MEANS, SDS) + np.log(WEIGHTS), axis=1)

    x, new, grid = draw(5000), draw(1000), np.linspace(-70, 90, 161)
    one = ReferenceShape(1, class_covariance=1.0, n_components=1)
    whitening, reference = density_fit.build_density(x[:, None], one, seed=seed)
    z = whitening(torch.from_numpy(x[:, None]))
    scale = float(whitening.matrix[0, 0])
    means = torch.from_numpy((MEANS - float(whitening.center[0])) * scale)
    truth = GaussianReference(
        means[:, None], torch.from_numpy(WEIGHTS)[None], torch.from_numpy((SDS * scale) ** 2)[:, None]
    )

    def trained(schedule: NoiseSchedule) -> ConditionalDiffusion:
        torch.manual_seed(seed)
        model = ConditionalDiffusion(schedule, reference, ResidualDenoiser(reference.class_means, z.std(0)))
        y = torch.zeros(len(z), dtype=torch.int64)
        train(model, z, y, torch.zeros(1), TrainingConfig(max_steps=1500), seed=seed, progress=False)
        return model

    def default() -> tuple[ConditionalDiffusion, str, float, object]:
        model = scs.tl.fit(points(x), None, use_rep="X", rng=seed, progress=False)
        name = f"tl.fit: {model.params['reference']['n_components']} Gaussians, {model.params['n_steps_trained']} steps"
        return model.diffusion, name, model.whitening.log_abs_det, model.whitening

    rows = []
    candidates: list[tuple[str, Callable[[], ConditionalDiffusion]]] = [
        ("network on 1 Gaussian", lambda: trained(NoiseSchedule())),
        ("network on 1 Gaussian", lambda: trained(WIDE)),
        (
            "exact score on 1 Gaussian",
            lambda: ConditionalDiffusion(NoiseSchedule(), reference, ExactResidual(truth, reference)),
        ),
        ("exact score on 1 Gaussian", lambda: ConditionalDiffusion(WIDE, reference, ExactResidual(truth, reference))),
        ("default", None),
    ]
    for name, make in candidates:
        start, to_model, volume = time.process_time(), whitening, whitening.log_abs_det
        if make is None:
            model, name, volume, to_model = default()
        else:
            model = make()
        seconds = time.process_time() - start
        for estimator, n_steps, n_paths in (("dissipation", 32, 16), ("elbo", 32, 16), ("flow", 16, 2)):
            found = []
            for at in (new, grid):
                inputs = to_model(torch.from_numpy(at[:, None]))
                inputs = inputs.double() if name.startswith("exact") else inputs
                with torch.no_grad():
                    found.append(
                        log_likelihood(
                            model,
                            inputs,
                            noise=NoiseStream(seed),
                            estimator=estimator,
                            n_steps=n_steps,
                            n_paths=n_paths,
                        )
                        .mean[:, 0]
                        .numpy()
                    )
            energy, on_grid = (-values - volume for values in found)
            error = energy - exact(new)
            p = np.exp(-exact(grid))
            rows.append(
                {
                    "model": name,
                    "noise floor": model.schedule.lam_max,
                    "fit_seconds": seconds,
                    "estimator": estimator,
                    "n_steps": n_steps,
                    "n_paths": n_paths,
                    "pearson_r": pearsonr(energy, exact(new))[0],
                    "rms": rms(error),
                    "bias": error.mean(),
                    "integral": np.trapezoid(np.exp(-on_grid), grid),
                    "kl": np.trapezoid(p * (on_grid - exact(grid)), grid),
                }
            )
        print(pd.DataFrame(rows[-3:]).round(3).to_string(index=False), flush=True)
    return {"mixture": pd.DataFrame(rows)}


# -------------------------------------------------------------------------------------------------------- corrupted


class Corrupted(nn.Module):
    """A denoiser with a deliberate fault.

    Parameters
    ----------
    denoiser
        The intact one.
    scale
        Factor on the residual.
    rotation
        Strength of an added field ``2 alpha sigma A z`` with an antisymmetric matrix of that spectral norm: no density has it
        as a score.
    shift
        The network is told a log SNR that is wrong by so much.
    weight_noise
        Gaussian noise on the weights of the output layer, relative to their root mean square.
    ripple
        Strength of an added field ``2 alpha sigma sin(B z)`` with a random matrix ``B``.
    seed
        Of the random matrices.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        n_features: int,
        *,
        scale: float = 1.0,
        rotation: float = 0.0,
        shift: float = 0.0,
        weight_noise: float = 0.0,
        ripple: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.denoiser = copy.deepcopy(denoiser)
        self.scale, self.shift, self.ripple = scale, shift, ripple
        self.shape = getattr(denoiser, "shape", None)
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(n_features, n_features, generator=generator)
        skew = matrix - matrix.T
        self.register_buffer("skew", rotation * skew / torch.linalg.matrix_norm(skew, 2))
        self.register_buffer("mixing", torch.randn(n_features, n_features, generator=generator) / n_features**0.5)
        if weight_noise:
            with torch.no_grad():
                weight = self.denoiser.output.weight
                spread = weight_noise * weight.square().mean().sqrt()
                weight += spread * torch.randn(weight.shape, generator=generator)

    def forward(self, z: Tensor, lam: Tensor, classes: Tensor | None = None) -> Tensor:
        """Residual noise prediction, see :meth:`scscore.core.diffusion.ConditionalDiffusion.eps_and_residual`."""
        lam = broadcastable_level(lam, z)
        extra = z @ self.skew.to(z).T + self.ripple * torch.sin(z @ self.mixing.to(z).T)
        size = 2 * NoiseSchedule.alpha(lam) * NoiseSchedule.sigma(lam)
        return self.scale * self.denoiser(z, lam + self.shift, classes) + (size * extra)[..., None, :]


FAULTS: dict[str, dict[str, float]] = {
    "intact": {},
    "residual x 0.5": {"scale": 0.5},
    "residual x 1.3": {"scale": 1.3},
    "residual x 2": {"scale": 2.0},
    "output weights + 50 % noise": {"weight_noise": 0.5},
    "output weights + 100 % noise": {"weight_noise": 1.0},
    "rotation 0.1": {"rotation": 0.1},
    "rotation 0.3": {"rotation": 0.3},
    "log SNR + 0.5": {"shift": 0.5},
    "log SNR + 1.5": {"shift": 1.5},
}
EXACT_FAULTS: dict[str, dict[str, float]] = {
    **{name: fault for name, fault in FAULTS.items() if "weights" not in name},
    "ripple 0.1": {"ripple": 0.1},
    "ripple 0.3": {"ripple": 0.3},
}


def corrupted(data: Path, seed: int) -> Tables:
    """How well the path-flow gap tells corrupted networks from intact ones."""
    x, label = load_digits(return_X_y=True)
    x = PCA(20, random_state=seed).fit_transform(x)
    train_part = np.arange(len(x)) < 1200
    digits = points(x[train_part], label=[f"digit {k}" for k in label[train_part]])
    curved, curved_new = synthetic(1500, n_features=6, n_classes=3), synthetic(250, n_features=6, n_classes=3, seed=1)
    cases = [
        ("digits, 20 PCs", digits, x[~train_part][:250]),
        (
            "curved classes, 6 dimensions",
            points(curved.obsm["X_pca"], label=curved.obs["cell_type"].to_numpy()),
            curved_new.obsm["X_pca"],
        ),
    ]
    rows = []
    for name, adata, new in cases:
        model = scs.tl.fit(adata, "label", use_rep="X", rng=seed, progress=False)
        steps = model.params["n_steps_trained"]
        found = {}
        for fault, options in FAULTS.items():
            broken = copy.copy(model)
            denoiser = Corrupted(model.diffusion.denoiser, model.diffusion.n_features, seed=seed, **options).eval()
            broken.diffusion = ConditionalDiffusion(model.diffusion.schedule, model.diffusion.reference, denoiser)
            cells = points(new)
            scs.tl.energy(cells, broken, progress=False, rng=seed)
            found[fault] = cells.obs[[f"scscore_energy{end}" for end in ("", "_se", "_gap")]].to_numpy(np.float64)
        rows += _gap_rows(f"{name} (residual of {steps} steps)", found)
        print(pd.DataFrame(rows[-len(found) :]).round(3).to_string(index=False), flush=True)

    # an exact score: with a wide window and short jumps nothing but Monte-Carlo error is left of its gap; then with the
    # window and the effort that a learned model gets
    for schedule, steps, paths, flow_steps in ((NoiseSchedule(10.0, -10.0), 128, 16, 32), (NoiseSchedule(), 32, 16, 8)):
        generator = torch.Generator().manual_seed(seed)
        means = 2 * torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
        variances = 0.3 + torch.rand(1, 3, 4, generator=generator, dtype=torch.float64)
        exact = MixtureDiffusion.from_components(means, variances, schedule=schedule)
        z = exact.sample(torch.zeros(300, dtype=torch.int64), generator)
        found = {}
        for fault, options in EXACT_FAULTS.items():
            denoiser = Corrupted(exact.denoiser, 4, seed=seed, **options)
            broken = ConditionalDiffusion(schedule, exact.reference, denoiser)
            with torch.no_grad():
                path = log_likelihood(broken, z, noise=NoiseStream(seed), n_steps=steps, n_paths=paths)
                flow = flow_log_likelihood(broken, z, noise=NoiseStream(seed), n_steps=flow_steps)
            energy = -path.mean[:, 0].numpy()
            error = standard_error(path.draws[..., 0].numpy())
            found[fault] = np.c_[energy, error, energy + flow.mean[:, 0].numpy()]
        rows += _gap_rows(f"exact mixture, window {schedule.lam_max:g} to {schedule.lam_min:g}, {steps} jumps", found)
        print(pd.DataFrame(rows[-len(found) :]).round(3).to_string(index=False), flush=True)
    return {"corrupted": pd.DataFrame(rows)}


def _gap_rows(name: str, found: dict[str, np.ndarray]) -> list[dict[str, object]]:
    """Distribution of the gap of every fault, and how well it tells the fault from the intact network."""
    intact, rows = found["intact"], []
    for fault, values in found.items():
        gap, intact_gap = np.abs(values[:, 2]), np.abs(intact[:, 2])
        change = values[:, 0] - intact[:, 0]
        label = np.repeat([0, 1], len(gap))
        relative = np.concatenate([intact_gap / intact[:, 1], gap / values[:, 1]])
        same = fault == "intact"
        rows.append(
            {
                "model": name,
                "fault": fault,
                "rms_energy_change": rms(change),
                "gap_mean": values[:, 2].mean(),
                "gap_median_abs": np.median(gap),
                "gap_90_percent": np.quantile(gap, 0.9),
                "se_median": np.median(values[:, 1]),
                "share_beyond_3_se": (gap > 3 * values[:, 1]).mean(),
                "auroc_gap": np.nan if same else roc_auc_score(label, np.concatenate([intact_gap, gap])),
                "auroc_gap_over_se": np.nan if same else roc_auc_score(label, relative),
                "spearman_gap_energy_change": np.nan if same else spearmanr(gap, np.abs(change))[0],
            }
        )
    return rows


PARTS: dict[str, Callable[[Path, int], Tables]] = {
    "alanine": alanine,
    "docking": docking,
    "mixture": mixture,
    "corrupted": corrupted,
}
NEED_DATA = ("alanine", "docking")
_MOST_ROWS_SHOWN = 60


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results", help="folder")
    options = parser.parse_args(arguments)
    import scscore.tl  # noqa: F401  # now: it sets up the logger

    logging.getLogger("scscore").setLevel("WARNING")
    limit_threads(options.threads)
    data = data_folder(options.data) if set(options.parts) & set(NEED_DATA) else Path()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        start, cpu = time.perf_counter(), time.process_time()
        print(f"\n### {part}\n", flush=True)
        for name, table in PARTS[part](data, options.seed).items():
            table.to_csv(options.out / f"energy_{name}.csv", index=False, float_format="%.5g")
            shown = table.round(3).to_string(index=False) if len(table) <= _MOST_ROWS_SHOWN else f"{len(table)} rows"
            print(f"\nenergy_{name}.csv\n{shown}", flush=True)
        print(
            f"\n{part}: {time.perf_counter() - start:.0f} s, {time.process_time() - cpu:.0f} s on the processor",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
