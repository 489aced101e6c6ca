"""Which perturbation did a cell have: accuracy, calibration and detectability beside established classifiers."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _metrics import evaluate
from _peers import (
    LR_GRID,
    MIN_GROUPS,
    N_FOLDS,
    REPRESENTATIONS,
    Folds,
    Representation,
    _log_normalised,
    _scorer,
    make_peer,
    represent,
)
from _perturbation_tasks import CONTROL, SPECS, load_task
from _tasks import Task
from accuracy import limit_threads
from anndata import AnnData
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

PARTS = ("classify", "detect")
METHODS = ("scscore", "lr", "lda", "xgb", "mlp")
METRICS = ("accuracy", "top5", "macro_f1", "nll", "ece")
NAMED_TARGETS = ("JAK2", "IFNGR1", "IFNGR2", "STAT1")
DETECTION_TASK = "papalexi"
MANY_CELLS = 5000
"""From so many training cells on, two of the folds are enough to choose C of the logistic regression."""


def genes(train: AnnData, test: AnnData, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Log1p-normalised values of all genes of the panel, without principal components."""
    return tuple(_log_normalised(a, kind).toarray() for a in (train, test))


REPRESENTATIONS["genes"] = genes
PANEL = ("genes", "allgenes", "hvg")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", metavar="TASK", choices=list(SPECS), default=list(SPECS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds of scscore, from 0; the peers have one")
    parser.add_argument("--threads", type=int, default=1, help="threads of every method")
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--out", type=Path, default=results / "perturbation.csv")
    parser.add_argument("--out-detect", type=Path, default=results / "perturbation_detect.csv")
    parsed = parser.parse_args(arguments)
    if parsed.seeds < 1 or parsed.threads < 1:
        parser.error("--seeds and --threads must be at least 1")
    return parsed


def scores_of(truth: np.ndarray, proba: np.ndarray) -> dict[str, float]:
    """The metrics of all benchmarks, and how often the true class is among the five most probable ones."""
    top = np.argsort(-proba, axis=1, kind="stable")[:, :5]
    return evaluate(truth, proba) | {"top5": float((top == truth[:, None]).any(1).mean())}


def folds_of(task: Task, *, seed: int) -> Folds:
    """Folds in which C is chosen: whole replicates, guides or patients where there are four of them."""
    y, empty = task.codes(task.train), np.zeros((int(task.train.sum()), 1))
    groups = None if task.group is None else task.adata.obs[task.group][task.train].astype(str).to_numpy()
    n_groups, folds = 0 if groups is None else len(np.unique(groups)), []
    if n_groups >= MIN_GROUPS:
        splitter = StratifiedGroupKFold(min(N_FOLDS, n_groups), shuffle=True, random_state=seed)
        folds = [(a, b) for a, b in splitter.split(empty, y, groups) if len(np.unique(y[a])) == len(task.classes)]
    if not folds:
        folds = list(StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed).split(empty, y))
    return folds[:2] if len(y) >= MANY_CELLS else folds


def peer_posterior(
    name: str, task: Task, rep: Representation, *, seed: int, threads: int
) -> tuple[np.ndarray, float, float]:
    """Posterior of the test cells, seconds to fit (with the search for C) and to predict."""
    folds = folds_of(task, seed=seed)
    peer = make_peer(name, task, folds=folds, seed=seed, threads=threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # releases of scikit-learn differ in what they deprecate
        start = time.perf_counter()
        peer.fit(rep.train, task.codes(task.train))
        fitted = time.perf_counter()
        proba = np.asarray(peer.predict_proba(rep.test), dtype=np.float64)
    return proba / proba.sum(1, keepdims=True), fitted - start, time.perf_counter() - fitted


def scscore_posterior(task: Task, *, seed: int) -> tuple[dict[str, np.ndarray], float, float]:
    """Posterior and log-likelihoods of the test cells in the task's class order, at default settings, and seconds."""
    from _scscore import fit_model

    import scscore as scs

    train, test = task.cells(task.train), task.cells(task.test)
    test.obs = test.obs.drop(columns=task.condition)  # the label cannot leak
    start = time.perf_counter()
    model = fit_model(task, train, seed=seed)
    fitted = time.perf_counter()
    scs.tl.classify(test, model, rng=seed, progress=False)
    done = time.perf_counter()
    columns = [[str(c) for c in model.classes].index(c) for c in task.classes]
    found = {
        key: np.asarray(test.obsm[f"scscore_{key}"], np.float64)[:, columns] for key in ("posterior", "log_likelihood")
    }
    return found, fitted - start, done - fitted


def classify(
    task: Task, methods: list[str], *, seeds: int, threads: int, keep: dict[int, np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """Rows of all methods and representations on one task; log-likelihoods of scscore go to ``keep``, by seed."""
    truth, rows = task.codes(task.test), []
    base = {"task": task.name, "n_train": int(task.train.sum()), "n_test": len(truth), "n_classes": len(task.classes)}

    def record(method: str, representation: str, seed: int, call: Any) -> None:
        row = {**base, "method": method, "representation": representation, "seed": seed}
        try:
            proba, fit_seconds, predict_seconds = call()
            row |= scores_of(truth, proba) | {"fit_seconds": fit_seconds, "predict_seconds": predict_seconds}
        except Exception as error:  # one failing method must not lose the other results
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
        figures = ", ".join(f"{key} {row.get(key, np.nan):.3f}" for key in (*METRICS, "fit_seconds"))
        print(f"  {method}[{representation}] seed {seed}: {figures}", file=sys.stderr, flush=True)

    def own(seed: int) -> tuple[np.ndarray, float, float]:
        found, *seconds = scscore_posterior(task, seed=seed)
        if keep is not None:
            keep[seed] = found["log_likelihood"]
        return found["posterior"], *seconds

    if "scscore" in methods:
        for seed in range(seeds):
            record("scscore", "own", seed, lambda seed=seed: own(seed))
    for name in PANEL if set(methods) != {"scscore"} else ():
        rep = represent(task, name)
        for peer in (m for m in METHODS if m in methods and m != "scscore"):
            record(peer, name, 0, lambda peer=peer, rep=rep: peer_posterior(peer, task, rep, seed=0, threads=threads))
    return rows


def lr_detection(task: Task, target: str) -> np.ndarray:
    """Log-odds of target against control of all test cells: logistic regression on genes, C by cross-validation."""
    rep = represent(task, "genes")
    y, wanted = task.codes(task.train), [task.classes.index(CONTROL), task.classes.index(target)]
    rows = np.isin(y, wanted)
    x, label = rep.train[rows], (y[rows] == wanted[1]).astype(int)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(x, label))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegressionCV(Cs=LR_GRID, cv=folds, scoring=_scorer, max_iter=2000, random_state=0)
        return model.fit(x, label).decision_function(rep.test)


def detect(task: Task, log_likelihoods: dict[int, np.ndarray]) -> pd.DataFrame:
    """Per target AUROC against control on held-out cells: mean of scscore's seeds, and logistic regression of the pair."""
    truth, control, rows = task.codes(task.test), task.classes.index(CONTROL), []
    for target in (c for c in task.classes if c != CONTROL):
        code = task.classes.index(target)
        pair = np.isin(truth, [control, code])
        hit = truth[pair] == code
        own = [roc_auc_score(hit, (ll[:, code] - ll[:, control])[pair]) for ll in log_likelihoods.values()]
        lr = roc_auc_score(hit, lr_detection(task, target)[pair])
        rows.append({"target": target, "n_target": int(hit.sum()), "scscore": float(np.mean(own)), "lr": float(lr)})
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> str:
    """Markdown table of one task, mean over seeds with the range of accuracy and NLL where seeds differ."""
    lines = ["| method | " + " | ".join(METRICS) + " | fit s | predict s |", "|" + "---|" * (len(METRICS) + 3)]
    for (method, representation), part in rows.groupby(["method", "representation"], sort=False):
        cells = [f"{method}[{representation}]"]
        if "accuracy" not in part or part["accuracy"].isna().all():
            lines.append("| " + " | ".join([*cells, "failed", *[""] * (len(METRICS) + 1)]) + " |")
            continue
        for metric in METRICS:
            low, high = part[metric].min(), part[metric].max()
            span = f" ({low:.3f}-{high:.3f})" if f"{low:.3f}" != f"{high:.3f}" else ""
            cells.append(f"{part[metric].mean():.3f}{span}")
        cells += [f"{part[name].mean():.1f}" for name in ("fit_seconds", "predict_seconds")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def detection_table(found: pd.DataFrame) -> str:
    """Markdown table: mean over targets, the targets of the interferon pathway, then all by the LR."""
    lines = ["| target | test cells | scscore | LR |", "|---|---|---|---|"]
    lines.append(f"| mean of {len(found)} | | {found['scscore'].mean():.3f} | {found['lr'].mean():.3f} |")
    named = found["target"].isin(NAMED_TARGETS)
    for row in pd.concat([found[named], found[~named]]).sort_values("lr", ascending=False).itertuples():
        lines.append(f"| {row.target} | {row.n_target} | {row.scscore:.3f} | {row.lr:.3f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status (1 if any method failed)."""
    options = parse_arguments(arguments)
    if "scscore" in options.methods or "detect" in options.parts:
        import logging

        import scscore.tl  # noqa: F401  # now, so that no method is charged for it

        logging.getLogger("scscore").setLevel("WARNING")
    limit_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    log_likelihoods: dict[int, np.ndarray] = {}
    if "classify" in options.parts:
        for name in options.only:
            task = load_task(name, options.data)
            print(f"\n### {task.describe()}\n", flush=True)
            keep = log_likelihoods if name == DETECTION_TASK else None
            found = classify(task, options.methods, seeds=options.seeds, threads=options.threads, keep=keep)
            print(table(pd.DataFrame(found)), flush=True)
            rows += found
            pd.DataFrame(rows).to_csv(
                options.out, index=False
            )  # after every task, so that an interruption loses little
    if "detect" in options.parts:
        task = load_task(DETECTION_TASK, options.data)
        if not log_likelihoods:
            for seed in range(options.seeds):
                log_likelihoods[seed] = scscore_posterior(task, seed=seed)[0]["log_likelihood"]
        detected = detect(task, log_likelihoods)
        print(f"\n### detection, {task.describe()}: AUROC against control\n\n{detection_table(detected)}", flush=True)
        detected.to_csv(options.out_detect, index=False)
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
