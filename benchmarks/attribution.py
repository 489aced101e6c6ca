"""Attributions: planted driver genes, known markers, faithfulness by deletion, stability between seeds, cost."""

from __future__ import annotations

import argparse
import copy
import logging
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["NUMBA_NUM_THREADS"] = "1"  # before scanpy starts threads of its own

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from _tasks import load_task
from accuracy import limit_threads
from anndata import AnnData
from captum.attr import IntegratedGradients
from scipy.special import log_softmax
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

import scscore as scs
from scscore.core.attribution import Contrast, baseline_of
from scscore.core.likelihood import log_likelihood
from scscore.core.trajectories import NoiseStream
from scscore.io.gene_space import LinearGenes

Tables = dict[str, pd.DataFrame]
METHODS = ("integrated_gradients", "dissipation")

MARKERS: dict[str, dict[str, list[str]]] = {
    "pbmc3k": {
        "B": ["MS4A1", "CD79A", "CD79B"],
        "NK": ["GNLY", "NKG7", "GZMB"],
        "CD14+ Mono": ["LYZ", "S100A8", "S100A9", "CD14"],
        "FCGR3A+ Mono": ["FCGR3A", "MS4A7"],
        "CD8 T": ["CD8A", "CD8B", "CCL5", "GZMK"],
        "DC": ["FCER1A", "CST3"],
        "Platelet": ["PPBP", "PF4"],
        "Naive CD4 T": ["CCR7"],
    },
    "pbmc_zheng_sorted": {
        "CD19+ B": ["MS4A1", "CD79A", "CD79B"],
        "CD56+ NK": ["GNLY", "NKG7", "GZMB"],
        "CD14+ monocyte": ["LYZ", "S100A8", "S100A9", "CD14"],
        "CD8+ cytotoxic T": ["CD8A", "CD8B", "CCL5", "GZMK"],
        "CD4+/CD45RA+/CD25- naive T": ["CCR7"],
    },
    "paul15": {
        "1Ery": ["Hba-a2", "Car2"],
        "2Ery": ["Hba-a2", "Car2"],
        "3Ery": ["Hba-a2", "Car2"],
        "4Ery": ["Car2"],
        "8Mk": ["Pf4"],
        "9GMP": ["Mpo"],
        "10GMP": ["Mpo", "Elane"],
        "12Baso": ["Prss34"],
        "13Baso": ["Prss34"],
        "14Mo": ["Mpo"],
        "16Neu": ["Elane"],
    },
}
"""Canonical markers, written down before looking at any attribution."""


def mlp(x: np.ndarray, y: np.ndarray, n_classes: int, *, seed: int) -> torch.nn.Module:
    """A plain network on genes, for captum: one hidden layer, early stopping on a tenth of the cells."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 128), torch.nn.ReLU(), torch.nn.Linear(128, n_classes))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    held, fit = order[: len(y) // 10], order[len(y) // 10 :]
    data, target = torch.from_numpy(x), torch.from_numpy(y)
    best, weights, wait = np.inf, None, 0
    while wait < 10:
        for rows in fit[torch.randperm(len(fit))].split(128):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(data[rows]), target[rows]).backward()
            optimiser.step()
        loss = float(torch.nn.functional.cross_entropy(net(data[held]), target[held]))
        best, weights, wait = (
            (loss, {k: v.clone() for k, v in net.state_dict().items()}, 0) if loss < best else (best, weights, wait + 1)
        )
    net.load_state_dict(weights)
    return net.eval()


def log1p(adata: AnnData) -> np.ndarray:
    """Log expression of all genes, 10,000 counts per cell, dense float32."""
    x = sp.csr_matrix(adata.X, dtype=np.float32)
    total = np.maximum(np.asarray(x.sum(1)).ravel(), 1)
    return np.log1p((sp.diags((1e4 / total).astype(np.float32)) @ x).toarray())


def planted(
    n: int, seed: int, *, n_genes: int = 2000, n_classes: int = 6, n_drivers: int = 30
) -> tuple[AnnData, np.ndarray]:
    """Negative binomial counts, nine of ten zero, whose classes differ in 30 driver genes each by factors 1.5 to 5."""
    fixed, rng = np.random.default_rng(1), np.random.default_rng([2, seed])
    rates = fixed.gamma(0.35, 1.0, n_genes) * np.ones((n_classes, 1))
    drivers = np.zeros((n_classes, n_genes), dtype=bool)
    candidates = np.flatnonzero(rates[0] > np.quantile(rates[0], 0.4))
    for k, genes in enumerate(fixed.permutation(candidates)[: n_classes * n_drivers].reshape(n_classes, -1)):
        drivers[k, genes] = True
        rates[k, genes] *= fixed.uniform(1.5, 5, n_drivers)
    y = rng.integers(n_classes, size=n)
    depth = rng.lognormal(0, 0.4, (n, 1))
    counts = rng.poisson(rates[y] * depth * rng.gamma(2, 0.5, (n, n_genes)))
    obs = pd.DataFrame({"type": pd.Categorical([f"type {k}" for k in y])}, index=[f"c{i}" for i in range(n)])
    return AnnData(
        sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(n_genes)])
    ), drivers


def run_planted(data: str | None, seed: int) -> Tables:
    """Recovery of driver genes: AUROC over genes, mean over classes."""
    train, drivers = planted(2000, seed)
    test, _ = planted(1000, seed + 100)
    model = scs.tl.fit(train, "type", rng=seed, progress=False)
    y_train, y = (np.searchsorted(model.classes, a.obs["type"].astype(str)) for a in (train, test))
    scores: dict[str, np.ndarray] = {}
    for method in METHODS:
        scs.tl.attribute(test, model, target="type", method=method, rng=seed, progress=False)
        scores[f"scscore {method}"] = test.varm["scscore_attribution"].T
        scores[f"scscore {method}, presence"] = test.varm["scscore_attribution_presence"].T
    x_train, x = log1p(train), log1p(test)
    scores["LR coefficients"] = LogisticRegression(C=0.01, max_iter=1000).fit(x_train, y_train).coef_
    net = mlp(x_train, y_train, len(model.classes), seed=seed)
    inputs = torch.from_numpy(x)
    peers: dict[str, Callable[[Tensor, int], Tensor]] = {
        "MLP gradient x input": lambda part, k: part * torch.autograd.grad(net(part)[:, k].sum(), part)[0],
        "MLP captum integrated gradients": lambda part, k: IntegratedGradients(net).attribute(
            part, target=k, n_steps=20
        ),
    }
    for name, of in peers.items():
        found = [
            of(inputs[y == k].clone().requires_grad_(), k).detach().mean(0).numpy() for k in range(len(model.classes))
        ]
        scores[name] = np.stack(found)
    rows = [
        {"method": name, "auroc": np.mean([roc_auc_score(drivers[k], value[k]) for k in range(len(drivers))])}
        | {
            "drivers among the top 30": np.mean(
                [drivers[k][np.argsort(-value[k])[:30]].mean() for k in range(len(drivers))]
            )
        }
        for name, value in scores.items()
    ]
    share = float((train.X.toarray() == 0).mean())
    print(f"zeros {share:.2f}, accuracy of scscore {model.params['validation_accuracy']:.3f}")
    return {"planted": pd.DataFrame(rows)}


def run_markers(data: str | None, seed: int) -> Tables:
    """Canonical markers among the 20 highest genes per class."""
    rows = []
    for name, markers in MARKERS.items():
        task = load_task(name, data)
        train, test = task.cells(task.train), task.cells(task.test)
        model = scs.tl.fit(train, task.condition, rng=seed, progress=False)
        rankings: dict[str, np.ndarray] = {}
        for method in METHODS:
            for reference in ("rest", "runner-up"):
                scs.tl.attribute(test, model, reference=reference, method=method, rng=seed, progress=False)
                rankings[f"{method}, {reference}"] = np.nan_to_num(test.varm["scscore_attribution_presence"].T)
        x = log1p(train)
        y = np.searchsorted(model.classes, train.obs[task.condition].astype(str))
        rankings["LR coefficients (genes)"] = (
            LogisticRegression(C=0.1, max_iter=300).fit(x / np.maximum(x.std(0), 1e-3), y).coef_
        )
        groups = AnnData(x, obs=train.obs[[task.condition]].copy(), var=train.var[[]].copy())
        sc.tl.rank_genes_groups(groups, task.condition, method="wilcoxon", use_raw=False)
        names = groups.uns["rank_genes_groups"]["names"]
        for method, ranking in rankings.items():
            for label, wanted in markers.items():
                k = model.classes.tolist().index(label)
                top = set(test.var_names[np.argsort(-ranking[k])[:20]])
                rows.append(
                    {"task": name, "method": method, "class": label, "found": len(top & set(wanted)), "of": len(wanted)}
                )
        for label, wanted in markers.items():
            found = len(set(names[label][:20]) & set(wanted))
            rows.append(
                {
                    "task": name,
                    "method": "rank_genes_groups, wilcoxon",
                    "class": label,
                    "found": found,
                    "of": len(wanted),
                }
            )
    table = pd.DataFrame(rows)
    recall = table.groupby(["task", "method"], sort=False)[["found", "of"]].sum()
    recall["recall"] = recall["found"] / recall["of"]
    print(recall.round(3).to_string())
    best = table[table["method"] == "integrated_gradients, rest"]
    print(
        "missed by integrated_gradients, rest:",
        best[best["found"] < best["of"]][["task", "class", "found", "of"]].to_string(index=False),
    )
    return {"markers": table}


def run_faithfulness(data: str | None, seed: int) -> Tables:
    """Genes are set to the baseline between class and runner-up, the highest first: how far do log-ratio and posterior fall?"""
    rows = []
    for name in ("pbmc3k", "pbmc_zheng_sorted", "paul15", "mca_bladder"):
        rows += faithfulness_of(name, data, seed)
        print(pd.DataFrame([row for row in rows if row["task"] == name]).round(3).to_string(index=False), flush=True)
    return {"faithfulness": pd.DataFrame(rows)}


def faithfulness_of(name: str, data: str | None, seed: int) -> list[dict[str, object]]:
    """Rows of one task, one per way to rank the genes."""
    rows: list[dict[str, object]] = []
    task = load_task(name, data)
    train, test = task.cells(task.train), task.cells(task.test)
    test = test[:200].copy()
    model = scs.tl.fit(train, task.condition, rng=seed, progress=False)
    scs.tl.classify(test, model, progress=False, rng=seed)
    posterior = test.obsm["scscore_posterior"]
    order = np.argsort(-posterior, axis=1)
    target, other, cells = order[:, 0], order[:, 1], np.arange(len(test))
    encoder, whitening = model.representation, model.whitening
    genes, d = LinearGenes.of_encoder(encoder, test, layer=None), len(whitening.center)
    ((_, x, _),) = genes.chunks(len(test))
    center, loadings = whitening.center.numpy(), genes.loadings[:, :d] @ whitening.matrix.numpy()
    slopes = np.hstack([loadings, genes.scores])  # of features and class scores
    z = model.in_engine(model.representation.transform(test)).numpy().astype(np.float64)
    reference = model.diffusion.reference
    versus = torch.nn.functional.one_hot(torch.from_numpy(other), len(model.classes)).double().log()
    baseline = baseline_of(model.diffusion, Contrast(torch.from_numpy(target), versus))
    above = x - genes.expression(whitening.inverse(baseline).numpy())
    above[:, ~genes.known] = 0

    def likelihoods(points: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return log_likelihood(
                model.diffusion, torch.from_numpy(points).float(), noise=NoiseStream(seed), n_steps=4, n_paths=8
            ).mean.numpy()

    def evidence(inputs: Tensor) -> Tensor:
        """Of the closed-form reference alone, which captum can differentiate, on log expression."""
        origin = torch.from_numpy((genes.origin[:d] - center) @ whitening.matrix.numpy())
        latent = origin + (inputs.double() - torch.from_numpy(genes.mean)) @ torch.from_numpy(loadings)
        found = reference.log_prob(latent)
        chosen = len(found) // len(cells)
        return (
            found.gather(1, torch.from_numpy(target).repeat(chosen)[:, None])[:, 0]
            - found.gather(1, torch.from_numpy(other).repeat(chosen)[:, None])[:, 0]
        )

    scores: dict[str, np.ndarray] = {"random": np.random.default_rng(seed).normal(size=x.shape)}
    for method in METHODS:
        scs.tl.attribute(test, model, reference="runner-up", method=method, per_cell=True, rng=seed, progress=False)
        scores[method] = test.layers["scscore_attribution"]
    inputs = torch.from_numpy(np.ascontiguousarray(x)).requires_grad_()
    scores["gradient x input"] = (inputs * torch.autograd.grad(evidence(inputs).sum(), inputs)[0]).detach().numpy()
    captum = IntegratedGradients(evidence).attribute(
        torch.from_numpy(x), n_steps=16, internal_batch_size=len(cells) * 2
    )
    scores["captum integrated gradients, baseline zero"] = captum.numpy()
    start = likelihoods(z)
    weights = model.calibration.log_weights(model.log_prior())
    for method, score in scores.items():
        ranked, row = np.argsort(-score, axis=1), {"task": name, "method": method}
        drops, falls = [], []
        for k in (5, 10, 20, 50, 100):
            gone = np.zeros_like(above)
            np.put_along_axis(gone, ranked[:, :k], np.take_along_axis(above, ranked[:, :k], axis=1), axis=1)
            now = likelihoods(z - gone @ slopes)
            drop = (start[cells, target] - start[cells, other]) - (now[cells, target] - now[cells, other])
            tempered = np.exp(log_softmax(model.calibration.temperature * now + weights, axis=1))
            drops.append(drop.mean())
            falls.append((posterior[cells, target] - tempered[cells, target]).mean())
            row |= {f"nats, top {k}": drops[-1]}
        rows.append(row | {"mean fall of the posterior": np.mean(falls)})
    return rows


def run_sanity(data: str | None, seed: int) -> Tables:
    """Attributions must decay when the labels of training or the parameters of the model are randomised (Adebayo et al. 2018)."""
    rows = []
    for name in ("pbmc3k", "paul15"):
        task = load_task(name, data)
        train, test = task.cells(task.train), task.cells(task.test)
        rng = np.random.default_rng(seed)
        shuffled = train.copy()
        shuffled.obs[task.condition] = rng.permutation(train.obs[task.condition].to_numpy())
        models = {
            what: scs.tl.fit(cells, task.condition, rng=s, progress=False)
            for what, cells, s in (
                ("as it is", train, seed),
                ("another seed", train, seed + 1),
                ("labels shuffled", shuffled, seed),
            )
        }
        model = copy.deepcopy(models["as it is"])
        if model.diffusion.denoiser is not None:
            with torch.no_grad():
                for weights in model.diffusion.denoiser.parameters():
                    weights.copy_(weights.flatten()[torch.randperm(weights.numel())].view_as(weights))
        models["network weights shuffled"] = model
        model = copy.deepcopy(model)
        model.diffusion.reference.means = model.diffusion.reference.means[
            torch.randperm(len(model.diffusion.reference.means), generator=torch.Generator().manual_seed(seed))
        ]
        models["the same, and class means shuffled"] = model
        found = {}
        for what, model in models.items():
            scs.tl.attribute(test, model, target=task.condition, rng=seed, progress=False)
            found[what] = np.nan_to_num(test.varm["scscore_attribution"])
        for what, value in found.items():
            pairs = [
                (spearmanr(a, b).statistic, len(set(np.argsort(-a)[:20]) & set(np.argsort(-b)[:20])) / 20)
                for a, b in zip(found["as it is"].T, value.T, strict=True)
                if a.any()
            ]
            correlation, overlap = np.nanmean(pairs, axis=0)
            rows.append(
                {
                    "task": name,
                    "model": what,
                    "rank correlation": correlation,
                    "top-20 overlap": overlap,
                    "nats": value.sum(0).mean(),
                }
            )
    return {"sanity": pd.DataFrame(rows)}


def run_donors(data: str | None, seed: int) -> Tables:
    """Overlap of the top 20 genes per class between halves of the donors of onek1k, beside halves of the cells."""
    task = load_task("onek1k_subset", data)
    cells = task.adata[task.train | task.test]
    model = scs.tl.fit(task.cells(task.train), task.condition, split_key=task.group, rng=seed, progress=False)
    test = cells[cells.obs[task.condition].isin(model.classes)].copy()
    scs.tl.attribute(test, model, target=task.condition, per_cell=True, rng=seed, progress=False)
    layer, y = test.layers["scscore_attribution"], test.obs[task.condition].astype(str).to_numpy()
    donors = test.obs[task.group].astype(str).to_numpy()
    names = np.unique(donors)
    rng, rows = np.random.default_rng(seed), []
    for what in ("donors", "cells"):
        for _ in range(10):
            half = np.isin(donors, rng.permutation(names)[: len(names) // 2])
            half = rng.permutation(half) if what == "cells" else half
            overlaps = []
            for name in model.classes:
                tops = [set(np.argsort(-layer[(y == name) & side].mean(0))[:20]) for side in (half, ~half)]
                overlaps.append(len(tops[0] & tops[1]) / 20)
            rows.append({"halves of": what, "overlap": np.mean(overlaps), "lowest class": np.min(overlaps)})
    return {"donors": pd.DataFrame(rows).groupby("halves of").mean().reset_index()}


def run_null(data: str | None, seed: int) -> Tables:
    """False discoveries of `tl.attribution_test` among genes that drive no class, and on labels that were shuffled."""
    rows = []
    train, drivers = planted(2000, seed)
    test, _ = planted(1000, seed + 100)
    model = scs.tl.fit(train, "type", rng=seed, progress=False)
    for what in ("true labels", "labels shuffled"):
        if what == "labels shuffled":
            test.obs["type"] = np.random.default_rng(seed).permutation(test.obs["type"].to_numpy())
        scs.tl.attribution_test(test, model, "type", rng=seed, progress=False)
        p, called = test.varm["scscore_attribution_pvalue"], test.varm["scscore_attribution_fdr"] < 0.05
        null = ~drivers.any(0) if what == "true labels" else np.ones(len(p), dtype=bool)
        rows.append(
            {
                "labels": what,
                "genes called per class": called.sum(0).mean(),
                "of 30 own drivers": (called & drivers.T).sum(0).mean(),
                "drivers of no class among the called": (called & null[:, None]).sum() / max(called.sum(), 1),
                "null p < .05": np.nanmean(p[null] < 0.05),
                "null p < .01": np.nanmean(p[null] < 0.01),
            }
        )
    return {"null": pd.DataFrame(rows)}


def run_stability(data: str | None, seed: int) -> Tables:
    """Overlap of the top 20 genes per class between seeds of fit and noise, and the cost on 10,000 cells x 2,000 genes."""
    rows = []
    task = load_task("pbmc3k", data)
    train, test = task.cells(task.train), task.cells(task.test)
    tops = []
    for s in range(3):
        model = scs.tl.fit(train, task.condition, rng=s, progress=False)
        scs.tl.attribute(test, model, target=task.condition, rng=s, progress=False)
        tops.append(np.argsort(-np.nan_to_num(test.varm["scscore_attribution_presence"]), axis=0)[:20])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        overlap = [len(set(tops[a][:, k]) & set(tops[b][:, k])) / 20 for k in range(len(model.classes))]
        rows.append(
            {"what": f"top-20 overlap, seeds {a} and {b}", "value": np.mean(overlap), "lowest class": np.min(overlap)}
        )
    train, _ = planted(1500, seed, n_classes=10, n_drivers=20)
    many, _ = planted(10_000, seed + 1, n_classes=10, n_drivers=20)
    model = scs.tl.fit(train, "type", rng=seed, progress=False)
    start = time.perf_counter()
    scs.tl.attribute(many, model, progress=False)
    rows.append({"what": "seconds, 10,000 cells x 2,000 genes x 10 classes", "value": time.perf_counter() - start})
    return {"stability": pd.DataFrame(rows)}


PARTS: dict[str, Callable[[str | None, int], Tables]] = {
    "planted": run_planted,
    "markers": run_markers,
    "faithfulness": run_faithfulness,
    "stability": run_stability,
    "donors": run_donors,
    "sanity": run_sanity,
    "null": run_null,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results", help="folder")
    options = parser.parse_args(arguments)
    import scscore.tl  # noqa: F401  # before the thread limits

    logging.getLogger("scscore").setLevel("WARNING")
    warnings.filterwarnings("ignore")
    limit_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        start = time.perf_counter()
        print(f"\n### {part}\n", flush=True)
        for name, table in PARTS[part](options.data, options.seed).items():
            table.to_csv(options.out / f"attribution_{name}.csv", index=False, float_format="%.5g")
            if len(table) <= 30:
                print(table.round(3).to_string(index=False), flush=True)
        print(f"\n{part}: {time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
