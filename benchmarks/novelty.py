"""Cells of a class that nobody has seen: every class left out of the training cells in turn."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _peers import folds_of, make_peer, represent
from _scscore import fit_model
from _tasks import SPECS, Task, load_task
from accuracy import limit_threads
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

TASKS = ("pbmc3k", "mca_bladder", "paul15")
MIN_CELLS = 30


def without(task: Task, name: str) -> tuple[Task, np.ndarray]:
    """The task without a class among its training cells, and which of its test cells are of that class."""
    label = task.adata.obs[task.condition].astype(str).to_numpy()
    keep = task.test | (label != name)
    left = replace(task, adata=task.adata[keep].copy(), train=task.train[keep], test=task.test[keep])
    return left, label[task.test] == name


def scscore_scores(task: Task, *, seed: int) -> dict[str, np.ndarray]:
    """Typicality of the test cells and, for comparison, other scores of the same model; high is novel."""
    import scscore as scs

    train, test = task.cells(task.train), task.cells(task.test)
    model = fit_model(task, train, seed=seed)
    scs.tl.classify(test, model, rng=seed, progress=False)
    likelihood = test.obsm["scscore_log_likelihood"].astype(np.float64)
    return {
        "scscore typicality": -test.obs["scscore_typicality"].to_numpy(np.float64),
        "scscore -log p(x)": -logsumexp(likelihood, axis=1),
        "scscore 1 - confidence": 1 - test.obs["scscore_confidence"].to_numpy(np.float64),
    }


def peer_scores(task: Task, *, seed: int) -> dict[str, np.ndarray]:
    """Usual scores on 50 principal components of all genes; high is novel."""
    rep, y = represent(task, "allgenes"), task.codes(task.train)
    lr = make_peer("lr", task, folds=folds_of(task, seed=seed), seed=seed, threads=1).fit(rep.train, y)
    mlp = make_peer("mlp", task, folds=[], seed=seed, threads=1).fit(rep.train, y).model
    hidden = np.maximum(rep.test @ mlp.coefs_[0] + mlp.intercepts_[0], 0)
    means = np.stack([rep.train[y == k].mean(0) for k in range(len(task.classes))])
    precision = LedoitWolf(assume_centered=True).fit(rep.train - means[y]).precision_
    offsets = rep.test[:, None] - means
    return {
        "LR 1 - max probability": 1 - lr.predict_proba(rep.test).max(1),
        "MLP energy": -logsumexp(hidden @ mlp.coefs_[1] + mlp.intercepts_[1], axis=1),
        "Mahalanobis to the nearest class": np.einsum("nkd,de,nke->nk", offsets, precision, offsets).min(1),
        "distance to the 15 nearest cells": NearestNeighbors(n_neighbors=15)
        .fit(rep.train)
        .kneighbors(rep.test)[0]
        .mean(1),
    }


def run(name: str, data: str | None, *, seed: int) -> list[dict[str, Any]]:
    """One row per class that is left out and score."""
    whole, rows = load_task(name, data), []
    label = whole.adata.obs[whole.condition].astype(str)
    sizes = label.value_counts()
    for novel in sorted(sizes.index[sizes >= MIN_CELLS]):
        task, is_novel = without(whole, novel)
        if not is_novel.any():
            continue
        start = time.perf_counter()
        scores = scscore_scores(task, seed=seed)
        seconds = time.perf_counter() - start
        rejected = -scores["scscore typicality"] < 0.01
        for score, value in (scores | peer_scores(task, seed=seed)).items():
            rows.append({"task": name, "left_out": novel, "n_novel": int(is_novel.sum()), "seed": seed, "score": score})
            rows[-1]["auroc"] = roc_auc_score(is_novel, value)
            if score == "scscore typicality":
                shares = {"false_rejections": rejected[~is_novel].mean(), "found": rejected[is_novel].mean()}
                rows[-1] |= shares | {"n_known": int((~is_novel).sum())}
        aurocs = ", ".join(f"{row['score']} {row['auroc']:.3f}" for row in rows if row["left_out"] == novel)
        print(f"  without {novel} ({seconds:.0f} s): {aurocs}", file=sys.stderr, flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--only", nargs="+", metavar="TASK", choices=list(SPECS), default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "novelty.csv")
    options = parser.parse_args(arguments)
    import scscore.tl  # noqa: F401  # before the thread limits

    logging.getLogger("scscore").setLevel("WARNING")
    limit_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in options.only:
        print(f"\n### {name}\n", flush=True)
        found = run(name, options.data, seed=options.seed)
        rows += found
        pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.5g")
        table = pd.DataFrame(found)
        print(table.pivot_table(index="left_out", columns="score", values="auroc", sort=False).round(3).to_string())
        print("\nmean over classes\n" + table.groupby("score", sort=False)["auroc"].mean().round(3).to_string())
        own = table[table["score"] == "scscore typicality"]
        known = np.average(own["false_rejections"], weights=own["n_known"])
        print(
            f"\nknown cells rejected: {known:.2%}; novel cells rejected: {own['found'].mean():.0%} (mean)", flush=True
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
