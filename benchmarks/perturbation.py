"""Which perturbation did a cell have, did it respond, by which genes, and what would it have done to others: beside simple peers."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scanpy as sc
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
from _perturbation_tasks import (
    CONTROL,
    PROGRAMME,
    SPECS,
    STIMULATED,
    load_task,
    own_gene,
    read_screen,
    shuffled,
    stimulated_types,
)
from _scscore import fit_model
from _tasks import Task, data_folder
from accuracy import limit_threads
from anndata import AnnData
from scipy.stats import false_discovery_control, mannwhitneyu, spearmanr
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

if TYPE_CHECKING:
    from scscore import ScoreModel

PARTS = ("classify", "detect", "genes", "response", "counterfactual", "recognise", "speed")
METHODS = ("scscore", "lr", "lda", "xgb", "mlp")
METRICS = ("accuracy", "top5", "macro_f1", "nll", "ece")
NAMED_TARGETS = ("JAK2", "IFNGR1", "IFNGR2", "STAT1")
KNOCK_OUT, KNOCK_DOWN, STIMULATION = "papalexi", "tapseq", "kang"
CLASSIFIED = tuple(name for name in SPECS if name != STIMULATION)
FDR = 0.05
N_PERMUTATIONS = 200
N_TOP = 100
MAX_TOP_GENES = 20
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
    parser.add_argument("--only", nargs="+", metavar="TASK", choices=CLASSIFIED, default=list(CLASSIFIED))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds of scscore, from 0; the peers have one")
    parser.add_argument("--threads", type=int, default=1, help="threads of every method")
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--out", type=Path, default=results / "perturbation.csv")
    parser.add_argument("--results", type=Path, default=results, help="folder for the tables of the other parts")
    parser.add_argument(
        "--mixscape",
        metavar="PYTHON",
        help="interpreter of an environment with pertpy: part 'response' compares with its mixscape",
    )
    parser.add_argument("--models", type=Path, help="keep fitted models in this folder, and take those that are there")
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


def scscore_posterior(task: Task, *, seed: int) -> tuple[np.ndarray, float, float]:
    """Posterior of the test cells in the task's class order, at default settings, and seconds to fit and to classify."""
    import scscore as scs

    train, test = task.cells(task.train), task.cells(task.test)
    test.obs = test.obs.drop(columns=task.condition)  # the label cannot leak
    start = time.perf_counter()
    model = fit_model(task, train, seed=seed)
    fitted = time.perf_counter()
    scs.tl.classify(test, model, rng=seed, progress=False)
    done = time.perf_counter()
    columns = [[str(c) for c in model.classes].index(c) for c in task.classes]
    return np.asarray(test.obsm["scscore_posterior"], np.float64)[:, columns], fitted - start, done - fitted


def classify(
    task: Task, methods: Iterable[str], *, seeds: int, threads: int, representations: tuple[str, ...] = PANEL
) -> list[dict[str, Any]]:
    """Rows of all methods and representations on one task."""
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
        return scscore_posterior(task, seed=seed)

    if "scscore" in methods:
        for seed in range(seeds):
            record("scscore", "own", seed, lambda seed=seed: own(seed))
    for name in representations if set(methods) != {"scscore"} else ():
        rep = represent(task, name)
        for peer in (m for m in METHODS if m in methods and m != "scscore"):
            record(peer, name, 0, lambda peer=peer, rep=rep: peer_posterior(peer, task, rep, seed=0, threads=threads))
    return rows


@dataclass(frozen=True)
class Pair:
    """Logistic regression of one target against control, on the genes of the training cells, C by cross-validation.

    ``log_odds`` of all test cells, and ``weights``: coefficients times the standard deviation of the gene, ``(n_vars,)``.
    """

    log_odds: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, task: Task, rep: Representation, target: str) -> Pair:
        """Fit to the training cells of a task."""
        y, wanted = task.codes(task.train), [task.classes.index(CONTROL), task.classes.index(target)]
        rows = np.isin(y, wanted)
        x, label = rep.train[rows], (y[rows] == wanted[1]).astype(int)
        folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(x, label))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegressionCV(Cs=LR_GRID, cv=folds, scoring=_scorer, max_iter=2000, random_state=0)
            model.fit(x, label)
        return cls(model.decision_function(rep.test), model.coef_.ravel() * x.std(0))


@dataclass
class Bench:
    """Tasks, fitted models and what follows from them, made once for all parts."""

    data: str | None
    threads: int
    models: Path | None = None
    mixscape: str | None = None
    _tasks: dict[str, Task] = field(default_factory=dict)
    _screens: dict[tuple[str, int], AnnData] = field(default_factory=dict)
    _pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    _genes: dict[str, Representation] = field(default_factory=dict)

    def task(self, name: str) -> Task:
        """A task of :data:`SPECS`."""
        if name not in self._tasks:
            self._tasks[name] = load_task(name, self.data)
        return self._tasks[name]

    def model(self, task: Task, *, seed: int, covariates: str | None = None) -> ScoreModel:
        """A model of the training cells at default settings, fitted or from the folder; with covariates where they are named."""
        import scscore as scs

        name = "_".join([task.name, *([covariates] if covariates else []), str(seed)]).replace(" ", "_")
        folder = None if self.models is None else self.models / name
        if folder is not None and folder.is_dir():
            return scs.load(folder)
        cells = task.cells(task.train)
        if covariates is None:
            model = fit_model(task, cells, seed=seed)
        else:
            model = scs.tl.fit(cells, task.condition, covariates=covariates, rng=seed, progress=False)
        if folder is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            model.save(folder)
        return model

    def screen(self, task: Task, *, seed: int, **options: Any) -> AnnData:
        """The test cells after ``tl.predict_perturbation`` with the perturbation that they were assigned to."""
        import scscore as scs

        if (task.name, seed) not in self._screens:
            cells = task.cells(task.test)
            model = self.model(task, seed=seed)
            scs.tl.predict_perturbation(cells, model, control=CONTROL, rng=seed, progress=False, **options)
            self._screens[task.name, seed] = cells
        return self._screens[task.name, seed]

    def pair(self, task: Task, target: str) -> Pair:
        """The peer of one target."""
        if task.name not in self._genes:
            self._genes[task.name] = represent(task, "genes")
        if (task.name, target) not in self._pairs:
            self._pairs[task.name, target] = Pair.fit(task, self._genes[task.name], target)
        return self._pairs[task.name, target]


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a markdown table, numbers with three digits."""

    def text(value: Any) -> str:
        if isinstance(value, float | np.floating):
            return "" if np.isnan(value) else f"{value:.3f}"
        return str(value)

    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * frame.shape[1]]
    lines += ["| " + " | ".join(map(text, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines)


def targets_of(task: Task) -> list[str]:
    """The perturbations of a screen."""
    return [c for c in task.classes if c != CONTROL]


def false_positives(bench: Bench, task: Task, *, seed: int) -> tuple[int, float]:
    """Targets detected after a fit to permuted labels, and the mean share that is when those of the test cells are permuted anew."""
    import scscore as scs

    null = shuffled(task, seed=seed)
    cells = bench.screen(null, seed=seed, max_cells=1)
    detected = int((scs.get.perturbation(cells)["fdr"] < FDR).sum())
    classes = [str(c) for c in bench.model(null, seed=seed).classes]
    ll, y = np.asarray(cells.obsm["scscore_log_likelihood"], np.float64), null.codes(null.test)
    control, rng, shares = classes.index(CONTROL), np.random.default_rng(seed), []
    for _ in range(N_PERMUTATIONS):
        rng.shuffle(y)
        p = [rank_sum(ll[:, k] - ll[:, control], y, k, control)[1] for k in range(len(classes)) if k != control]
        shares.append((false_discovery_control(p) < FDR).mean())
    return detected, float(np.mean(shares))


def rank_sum(score: np.ndarray, y: np.ndarray, target: int, control: int) -> tuple[float, float]:
    """AUROC of a score, target against control, and its one-sided p-value."""
    hit, other = score[y == target], score[y == control]
    found = mannwhitneyu(hit, other, alternative="greater")
    return float(found.statistic) / (len(hit) * len(other)), float(found.pvalue)


def detect(bench: Bench, seeds: int) -> tuple[pd.DataFrame, str]:
    """Which targets can be told from control on held-out cells, and how many are found where there is nothing."""
    import scscore as scs

    task = bench.task(KNOCK_OUT)
    y, control, found = task.codes(task.test), task.classes.index(CONTROL), []
    own = [scs.get.perturbation(bench.screen(task, seed=seed)) for seed in range(seeds)]
    for target in targets_of(task):
        auroc, p = rank_sum(bench.pair(task, target).log_odds, y, task.classes.index(target), control)
        rows = [table.loc[target] for table in own]
        found.append(
            {"target": target, "n_target": int(rows[0]["n_cells"])}
            | {
                "scscore": np.mean([row["auroc"] for row in rows]),
                "scscore_fdr": np.median([row["fdr"] for row in rows]),
            }
            | {"lr": auroc, "lr_p": p, "effect": rows[0]["effect"], "escape": rows[0]["escape"]}
        )
    table = pd.DataFrame(found)
    table["lr_fdr"] = false_discovery_control(table.pop("lr_p"))
    table["labels"] = "real"
    detected, share = false_positives(bench, task, seed=0)
    counts = [int((table[f"{name}_fdr"] < FDR).sum()) for name in ("scscore", "lr")]
    n = len(table)
    text = [
        detection_table(table),
        "",
        f"detected at FDR {FDR:.0%}: scscore {counts[0]} of {n}, LR {counts[1]} of {n}; by scscore: "
        + ", ".join(table["target"][table["scscore_fdr"] < FDR]),
        f"shuffled labels, refitted: {detected} of {n} detected; mean share detected over {N_PERMUTATIONS} permutations of "
        f"the test labels {share:.4f}",
    ]
    null = pd.DataFrame(
        [{"target": f"{n} shuffled", "labels": "shuffled", "detected": detected, "share_detected": share}]
    )
    return pd.concat([table, null]), "\n".join(text)


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of every value, 1 for the largest."""
    order = np.argsort(-values, kind="stable")
    place = np.empty(len(values), dtype=int)
    place[order] = np.arange(1, len(values) + 1)
    return place


def gene_ranks(bench: Bench, task: Task, targets: list[str]) -> dict[str, pd.DataFrame]:
    """Ranks of all genes (rows) for targets (columns) against control, by method.

    scscore: mean attribution over held-out cells; rank-sum test on training and on held-out cells, logistic regression, both
    by size, whatever the sign.
    """
    import scscore as scs

    own = scs.get.attribution(bench.screen(task, seed=0))
    names = task.adata.var_names
    found = {
        "scscore": {t: ranks(np.nan_to_num(own[t].X.ravel(), nan=-np.inf)) for t in targets},
        "lr": {t: ranks(abs(bench.pair(task, t).weights)) for t in targets},
    }
    for side, mask in (("train", task.train), ("test", task.test)):
        cells = task.adata[mask]
        x = _log_normalised(cells, task.kind)
        found[f"rank_sum[{side}]"] = {t: ranks(rank_sum_sizes(x, cells, task.condition, t, CONTROL)) for t in targets}
    return {method: pd.DataFrame(value, index=names) for method, value in found.items()}


def recall(table: pd.DataFrame, wanted: dict[str, tuple[str, ...]], k: int) -> float:
    """Share of the wanted genes of all targets that are among the first `k`."""
    return float(np.mean([table.at[gene, target] <= k for target, genes in wanted.items() for gene in genes]))


def genes_found(bench: Bench, seeds: int) -> tuple[pd.DataFrame, str]:
    """Ranks of the genes that a perturbation is known to change."""
    rows, text = [], []
    task = bench.task(KNOCK_OUT)
    by_method = gene_ranks(bench, task, list(PROGRAMME))
    for target, genes in PROGRAMME.items():
        for gene in genes:
            rows.append({"task": task.name, "target": target, "gene": gene, "kind": "programme"})
            rows[-1] |= {method: int(table.at[gene, target]) for method, table in by_method.items()}
    text += [f"#### {task.name}: ranks among {task.adata.n_vars} genes", "", markdown(pd.DataFrame(rows)), ""]
    summary = [
        {"method": method, **{f"recall@{k}": recall(table, PROGRAMME, k) for k in (5, 10, 20)}}
        for method, table in by_method.items()
    ]
    text += [markdown(pd.DataFrame(summary)), ""]
    task, n = bench.task(KNOCK_DOWN), len(rows)
    targets = [t for t in targets_of(task) if own_gene(t) in task.adata.var_names]
    by_method = gene_ranks(bench, task, targets)
    for target in targets:
        kind = "enhancer" if "-" in target else "promoter"
        rows.append({"task": task.name, "target": target, "gene": own_gene(target), "kind": kind})
        rows[-1] |= {method: int(table.at[own_gene(target), target]) for method, table in by_method.items()}
    found = pd.DataFrame(rows[n:]).sort_values(["kind", "target"], ascending=[False, True])
    text += [f"#### {task.name}: rank of the target's own gene among {task.adata.n_vars}", "", markdown(found), ""]
    summary = [
        {"method": method, "kind": kind, "n": len(part), "median rank": float(part[method].median())}
        | {"at rank 1": float((part[method] == 1).mean()), "at rank <= 3": float((part[method] <= 3).mean())}
        for kind, part in found.groupby("kind", sort=False)
        for method in by_method
    ]
    return pd.DataFrame(rows), "\n".join([*text, markdown(pd.DataFrame(summary))])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman, NaN where one of the two is constant."""
    return float(spearmanr(a, b).statistic) if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


def response(bench: Bench, seeds: int) -> tuple[pd.DataFrame, str]:
    """Does a cell that responds less hold more of the target's own gene, and fewer guides?"""
    import scscore as scs

    rows = []
    for name in (KNOCK_DOWN, KNOCK_OUT):
        task = bench.task(name)
        cells = bench.screen(task, seed=0)
        figures, label = scs.get.perturbation(cells), cells.obs[task.condition].astype(str).to_numpy()
        expression = pd.DataFrame(_log_normalised(cells, task.kind).toarray(), columns=cells.var_names)
        for target in targets_of(task):
            own, gene = label == target, own_gene(target)
            row = {"task": name, "target": target, "gene": gene, "n_cells": int(own.sum())}
            row |= {key: float(figures.at[target, key]) for key in ("auroc", "fdr", "escape")}
            responses = cells.obs["scscore_response"].to_numpy()[own]
            row["spearman_guide_umi"] = correlation(responses, cells.obs["guide_umi"].to_numpy()[own])
            if gene in expression:
                values = expression[gene].to_numpy()
                row["knock_down"] = float(np.expm1(values[own]).mean() / np.expm1(values[label == CONTROL]).mean())
                row["spearman_own_gene"] = correlation(responses, values[own])
                if name == KNOCK_DOWN:
                    row["spearman_own_gene_lr"] = correlation(bench.pair(task, target).log_odds[own], values[own])
            rows.append(row)
    table, text = pd.DataFrame(rows), []
    for name, part in table.groupby("task", sort=False):
        part = part.dropna(axis=1, how="all").drop(columns="task").sort_values("auroc", ascending=False)
        text += [
            f"#### {name}: response of held-out cells (knock_down: mean of the own gene over that in control)",
            "",
            markdown(part),
            "",
        ]
        medians = part.select_dtypes("number").drop(columns="n_cells")
        detected = part["fdr"] < FDR
        text += [
            f"median over {title}: "
            + ", ".join(f"{key} {value:.3f}" for key, value in medians[chosen].median().items())
            for title, chosen in (("all", detected | True), (f"the {int(detected.sum())} detected", detected))
        ]
        text += [f"Spearman of escape with AUROC over targets: {correlation(part['escape'], part['auroc']):.3f}", ""]
    if bench.mixscape is not None:
        calls = mixscape_calls(bench, bench.mixscape)
        table = table.merge(calls.assign(task=KNOCK_OUT), on=["task", "target"], how="left")
        text += [f"#### {KNOCK_OUT}: beside mixscape, on the same cells", "", markdown(calls), ""]
    return table, "\n".join(text)


def mixscape_calls(bench: Bench, interpreter: str) -> pd.DataFrame:
    """Share of responding cells by mixscape (KO) and by scscore, their agreement, and how scscore's evidence ranks mixscape's KO above its NP cells."""
    from _mixscape import run_mixscape

    task = bench.task(KNOCK_OUT)
    cells = bench.screen(task, seed=0)
    calls = run_mixscape(interpreter, str(data_folder(bench.data))).loc[cells.obs_names]
    label, rows = cells.obs[task.condition].astype(str).to_numpy(), []
    evidence = cells.obs["scscore_perturbation_evidence"].to_numpy()
    responds = cells.obs["scscore_response"].to_numpy() >= 0.5
    for target in targets_of(task):
        own = label == target
        ko = (calls["call"] == "KO").to_numpy()[own]
        row = {
            "target": target,
            "ko": ko.mean(),
            "responding": responds[own].mean(),
            "agree": (ko == responds[own]).mean(),
        }
        if ko.any() and not ko.all():
            row["auroc_of_ko"] = rank_sum(evidence[own], ko.astype(int), 1, 0)[0]
            row["spearman_p_ko"] = correlation(evidence[own], calls["p_ko"].to_numpy()[own])
        rows.append(row)
    return pd.DataFrame(rows).sort_values("ko", ascending=False)


def mean_profile(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean over some cells, ``(n_vars,)``."""
    return x[rows].mean(0)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation, NaN where one of the two is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else np.nan


def moved(cells: AnnData, model: ScoreModel, *, source: str, to: str) -> np.ndarray:
    """Mean change of cells that are carried from a class to another, ``(n_vars,)``."""
    import scscore as scs

    found = scs.tl.counterfactual(cells, model, source=source, to=to, progress=False)
    return found.var["scscore_delta"].to_numpy(dtype=np.float64)


def expression_of(adata: AnnData, model: ScoreModel) -> np.ndarray:
    """Log expression as the encoder of the model sees it."""
    return _log_normalised(adata, "counts", target_sum=model.representation.target_sum).toarray().astype(np.float64)


def knock_outs(bench: Bench) -> pd.DataFrame:
    """Mean delta of held-out cells of a knock-out, predicted from the held-out control cells, beside trivial predictions."""
    task = bench.task(KNOCK_OUT)
    model = bench.model(task, seed=0)
    x, label = expression_of(task.adata, model), task.adata.obs[task.condition].astype(str).to_numpy()
    control = task.cells(task.test & (label == CONTROL))
    base = {
        side: mean_profile(x, mask & (label == CONTROL)) for side, mask in (("train", task.train), ("test", task.test))
    }
    shifts = {t: mean_profile(x, task.train & (label == t)) - base["train"] for t in targets_of(task)}
    rows = []
    for target in PROGRAMME:
        observed = task.test & (label == target)
        truth = mean_profile(x, observed) - base["test"]
        noise = (
            x[observed].var(0, ddof=1) / observed.sum()
            + x[task.test & (label == CONTROL)].var(0, ddof=1) / control.n_obs
        )
        predicted = {
            "scscore": moved(control, model, source=CONTROL, to=target),
            "no change": np.zeros_like(truth),
            "mean of all": np.mean(list(shifts.values()), axis=0),
            "linear shift": shifts[target],
        }
        for method, delta in predicted.items():
            row = {"task": task.name, "to": target, "method": method, "n_observed": int(observed.sum())}
            row |= {"pearson": pearson(delta, truth), "rmse": float(np.sqrt(((delta - truth) ** 2).mean()))}
            slope = float(delta @ truth / (delta @ delta)) if delta.any() else np.nan
            rows.append(row | {"slope": slope, "rmse_noise": float(np.sqrt(noise.mean()))})
    return pd.DataFrame(rows)


def left_out_types(bench: Bench) -> pd.DataFrame:
    """Control cells of a type carried to interferon, by models that saw no stimulated cell of this type.

    The second model has the cell type as covariate, that is, as a shift that cells of both conditions share. Everything is
    compared in the expression space of the model, of which ``target_sum`` is the count total; the trivial predictions in that of the first.
    """
    rows = []
    for task in stimulated_types(bench.data):
        kind = task.adata.obs["cell_type"].astype(str).to_numpy()
        stimulated, own = (task.adata.obs["condition"] == "stim").to_numpy(), kind == task.name
        cells = task.cells(own & ~stimulated)
        for name, covariates in (("scscore", None), ("scscore, type as covariate", "cell_type")):
            model = bench.model(task, seed=0, covariates=covariates)
            x = expression_of(task.adata, model)
            predicted = {name: moved(cells, model, source="ctrl", to="stim")}
            if covariates is None:
                top = ranks(rank_sum_sizes(x[own], task.adata[own], "condition", "stim", "ctrl")) <= N_TOP
                of_types = [
                    mean_profile(x, stimulated & (kind == k)) - mean_profile(x, ~stimulated & (kind == k))
                    for k in sorted(set(kind) - {task.name})
                ]
                predicted |= {
                    "no change": np.zeros(x.shape[1]),
                    "linear shift": mean_profile(x, stimulated & ~own) - mean_profile(x, ~stimulated & ~own),
                    "mean shift of types": np.mean(of_types, axis=0),
                }
            base, truth = mean_profile(x, own & ~stimulated), mean_profile(x, own & stimulated)
            rows += [
                {
                    "task": "kang_ifnb_labelled",
                    "to": task.name,
                    "method": method,
                    "n_observed": int((own & stimulated).sum()),
                }
                | {"target_sum": float(model.representation.target_sum)}
                | agreement(base, delta, truth, "all")
                | agreement(base[top], delta[top], truth[top], "top")
                for method, delta in predicted.items()
            ]
    return pd.DataFrame(rows)


def agreement(base: np.ndarray, delta: np.ndarray, truth: np.ndarray, title: str) -> dict[str, float]:
    """Squared correlation of the mean profiles (the R2 of scGen), their explained variance, correlation of the changes."""
    predicted = base + delta
    explained = 1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    return {
        f"r2_{title}": pearson(predicted, truth) ** 2,
        f"explained_{title}": float(explained),
        f"delta_pearson_{title}": pearson(delta, truth - base),
    }


def rank_sum_sizes(x: Any, adata: AnnData, column: str, target: str, reference: str) -> np.ndarray:
    """Size of the rank-sum score of every gene, a class against another, ``(n_vars,)``."""
    cells = AnnData(x, obs=adata.obs[[column]].astype("category"), var=adata.var[[]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(cells, column, groups=[target], reference=reference, method="wilcoxon")
    found = sc.get.rank_genes_groups_df(cells, target).set_index("names")["scores"]
    return abs(found.loc[cells.var_names].to_numpy())


def counterfactual(bench: Bench, seeds: int) -> tuple[pd.DataFrame, str]:
    """Cells under another condition, beside trivial predictions."""
    of_targets, of_types = knock_outs(bench), left_out_types(bench)
    text = []
    for title, found in (
        (f"{KNOCK_OUT}: mean delta of held-out cells, from the control cells of their replicate", of_targets),
        (
            f"kang_ifnb_labelled: control -> interferon, the type left out of the stimulated cells; top {N_TOP} genes of the type",
            of_types,
        ),
    ):
        mean = found.groupby("method", sort=False).mean(numeric_only=True).reset_index().assign(to="mean")
        shown = pd.concat([found, mean])[found.columns].drop(columns=["task", "n_observed"])
        text += [f"#### {title}", "", markdown(shown), ""]
    return pd.concat([of_targets, of_types]), "\n".join(text)


def recognise(bench: Bench, seeds: int) -> tuple[pd.DataFrame, str]:
    """Interferon: the condition of a cell, and the genes by which it is recognised."""
    import scscore as scs

    task = bench.task(STIMULATION)
    found = classify(
        task, ("scscore", "lr", "mlp"), seeds=seeds, threads=bench.threads, representations=("allgenes", "hvg", "genes")
    )
    rows = pd.DataFrame(found)
    cells = task.cells(task.test)
    stimulated = cells[(cells.obs["condition"] == "stim").to_numpy()].copy()
    scs.tl.attribute(stimulated, bench.model(task, seed=0), target="stim", reference="ctrl", progress=False)
    own = scs.get.attribution(stimulated)["stim"].X.ravel()
    train = task.cells(task.train)
    sizes = rank_sum_sizes(_log_normalised(train, task.kind), train, "condition", "stim", "ctrl")
    text, genes = [table(rows), ""], []
    for method, values in (("scscore", own), ("rank_sum", sizes)):
        place = pd.Series(ranks(values), index=task.adata.var_names)
        top = place.index[np.argsort(place.to_numpy())][:MAX_TOP_GENES]
        genes.append(
            {"task": task.name, "method": method, "top_genes": ";".join(top)}
            | {gene: int(place[gene]) for gene in STIMULATED}
        )
        text.append(
            f"{method}: {sum(gene in top for gene in STIMULATED)} of {len(STIMULATED)} in the first {MAX_TOP_GENES}: "
            + ", ".join(top)
        )
    return pd.concat([rows, pd.DataFrame(genes)]), "\n".join(text)


def speed(bench: Bench, seeds: int) -> tuple[pd.DataFrame, str]:
    """The whole knock-out screen as a MuData: fit, predict and attribute."""
    import scscore as scs

    cells = read_screen(KNOCK_OUT, bench.data)
    load, start = os.getloadavg()[0], time.perf_counter()
    cpu = time.process_time()
    model = scs.tl.fit(cells, "perturbation", progress=False)
    fitted = time.perf_counter()
    scs.tl.predict_perturbation(cells, model, control=CONTROL, exclude="ambiguous_guide", progress=False)
    done = time.perf_counter()
    row = {"task": KNOCK_OUT, "n_cells": cells["rna"].n_obs, "n_genes": cells["rna"].n_vars, "threads": bench.threads}
    row |= {"fit_seconds": fitted - start, "predict_seconds": done - fitted, "total_seconds": done - start}
    row |= {
        "cpu_seconds": time.process_time() - cpu,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }
    table = pd.DataFrame([row])
    return table, markdown(table)


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
    if "scscore" in options.methods or options.parts != ["classify"]:
        import logging

        import scscore.tl  # noqa: F401  # now, so that no method is charged for it

        logging.getLogger("scscore").setLevel("WARNING")
    limit_threads(options.threads)
    for folder in (options.out.parent, options.results):
        folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    bench = Bench(options.data, options.threads, options.models, options.mixscape)
    if "classify" in options.parts:
        for name in options.only:
            task = load_task(name, options.data)
            print(f"\n### {task.describe()}\n", flush=True)
            found = classify(task, options.methods, seeds=options.seeds, threads=options.threads)
            print(table(pd.DataFrame(found)), flush=True)
            rows += found
            pd.DataFrame(rows).to_csv(
                options.out, index=False
            )  # after every task, so that an interruption loses little
    failed = any("error" in row for row in rows)
    for part in (p for p in PARTS if p in options.parts and p in REPORTS):
        call, name = REPORTS[part]
        try:
            found, text = call(bench, options.seeds)
        except Exception:  # one failing part must not lose the other results
            traceback.print_exc()
            failed = True
            continue
        print(f"\n### {part}\n\n{text}", flush=True)
        found.to_csv(options.results / f"perturbation_{name}.csv", index=False)
    return int(failed)


REPORTS: dict[str, tuple[Callable[[Bench, int], tuple[pd.DataFrame, str]], str]] = {
    "detect": (detect, "detectability"),
    "genes": (genes_found, "genes"),
    "response": (response, "response"),
    "counterfactual": (counterfactual, "counterfactual"),
    "recognise": (recognise, "recognise"),
    "speed": (speed, "speed"),
}
"""What a part calls, and the name of its table."""


if __name__ == "__main__":
    raise SystemExit(main())
