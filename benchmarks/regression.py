"""Continuous targets with their whole distribution: stability and fitness of protein variants, age and pseudotime of cells."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _regression_tasks import LOADERS, MAX_TRAIN, RIVALS, RegressionTask, load_task
from accuracy import limit_threads
from anndata import AnnData
from scipy.stats import norm, pearsonr, spearmanr

OWN = {"scscore": "hybrid", "scscore_direct": "direct"}
METHODS = (*OWN, "ridge", "xgb", "mlp5", "qgb")
MIN_VARIANTS = 10
"""Proteins with fewer test variants do not count in the Spearman correlation per protein."""

DEFENCE = 0.001
"""Share of a wide Gaussian (mean of the training values, three times their sd) in the density of every method, so that one value cannot decide."""

HIGH, LOW = ("pearson", "spearman", "spearman_protein", "r2"), ("rmse", "nll", "fit_seconds", "predict_seconds")
NOMINAL = {"coverage50": 0.5, "coverage90": 0.9, "conformal90": 0.9}
METRICS = (*HIGH, "rmse", "nll", *NOMINAL, "width90", "conformal_width90", "fit_seconds", "predict_seconds")
KEY = ["task", "method", "seed"]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", choices=list(LOADERS), default=list(LOADERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument(
        "--max-train", type=int, default=MAX_TRAIN, help="use every k-th training row, to have at most so many; 0: all"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of every method")
    out = Path(__file__).resolve().parent / "results" / "regression.csv"
    parser.add_argument("--out", type=Path, default=out, help="table; rows of the same task, method, seed are replaced")
    parsed = parser.parse_args(arguments)
    if parsed.seeds < 1 or parsed.threads < 1:
        parser.error("--seeds and --threads must be at least 1")
    if parsed.max_train < 0:
        parser.error("--max-train must not be negative")
    return parsed


def predict_scscore(
    train: AnnData,
    test: AnnData,
    target: str,
    groups: str | None,
    seed: int,
    *,
    objective: str = "hybrid",
    kind: str = "values",
) -> Any:
    """Fit scscore at its defaults, predict the test rows, which do not carry the target.

    Parameters
    ----------
    train, test
        Rows with the same columns.
    target, groups
        Columns of ``train.obs``.
    seed
        Random seed.
    objective
        ``hybrid`` or ``direct``.
    kind
        ``values`` are declared as such; of ``counts`` nothing need be said.
    """
    from _regression_peers import Bins, Prediction

    import scscore as scs

    train, test = train.copy(), test.copy()
    train.obs = train.obs[[target, *([groups] if groups else [])]].copy()
    test.obs = test.obs[[]].copy()
    options = {"input": "values"} if kind == "values" else {}
    start = time.perf_counter()
    model = scs.tl.fit(
        train,
        target,
        continuous=True,
        split_key=groups,
        objective=objective,
        rng=seed,
        progress=False,
        **options,
    )
    fitted = time.perf_counter()
    scs.tl.regress(test, model, rng=seed, progress=False)
    done = time.perf_counter()
    predictive = Bins(
        np.asarray(test.uns["scscore"]["edges"], np.float64),
        np.asarray(test.obsm["scscore_density"], np.float64),
        test.obs["scscore_mean"].to_numpy(np.float64),
    )
    ends = [f"scscore_{end}" for end in ("lower", "upper")]
    interval = test.obs[ends].to_numpy(np.float64) if set(ends) <= set(test.obs) else None
    return Prediction(predictive, fitted - start, done - fitted, interval)


def per_protein(y: np.ndarray, predicted: np.ndarray, proteins: np.ndarray) -> float:
    """Mean Spearman correlation within proteins of at least ten variants; constant predictions have none, that is 0."""
    found = []
    for name in np.unique(proteins):
        rows = proteins == name
        if rows.sum() >= MIN_VARIANTS and np.ptp(y[rows]) > 0:
            found.append(spearmanr(y[rows], predicted[rows]).statistic if np.ptp(predicted[rows]) > 0 else 0.0)
    return float(np.mean(found)) if found else np.nan


def evaluate(y_train: np.ndarray, y: np.ndarray, proteins: np.ndarray | None, prediction: Any) -> dict[str, np.ndarray]:
    """What follows from a prediction for every test row: truth, mean, log density, quantiles, conformal interval."""
    predictive, wide = prediction.predictive, norm(y_train.mean(), 3 * y_train.std())
    log_density = np.logaddexp(np.log1p(-DEFENCE) + predictive.log_density(y), np.log(DEFENCE) + wide.logpdf(y))
    rows = {"y": y, "mean": predictive.mean, "log_density": log_density}
    rows["quantiles"] = predictive.quantile(np.array([0.05, 0.25, 0.75, 0.95]))
    if prediction.interval is not None:
        rows["interval"] = prediction.interval
    return rows | ({} if proteins is None else {"proteins": proteins})


def scores_of(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """All metrics of the rows of :func:`evaluate`, or of a part of them."""

    def covered(low: np.ndarray, high: np.ndarray) -> float:
        return float(((low <= y) & (y <= high)).mean())

    y, mean = rows["y"], rows["mean"]
    error, constant = y - mean, np.ptp(mean) == 0
    q05, q25, q75, q95 = rows["quantiles"].T
    scores = {
        "pearson": 0.0 if constant else float(pearsonr(y, mean).statistic),
        "spearman": 0.0 if constant else float(spearmanr(y, mean).statistic),
        "spearman_protein": per_protein(y, mean, rows["proteins"]) if "proteins" in rows else np.nan,
        "r2": float(1 - (error**2).sum() / ((y - y.mean()) ** 2).sum()),
        "rmse": float(np.sqrt((error**2).mean())),
        "nll": -float(rows["log_density"].mean()),
        "coverage50": covered(q25, q75),
        "coverage90": covered(q05, q95),
        "width90": float((q95 - q05).mean()),
    }
    if "interval" in rows:
        low, high = rows["interval"].T
        scores |= {"conformal90": covered(low, high), "conformal_width90": float((high - low).mean())}
    return scores


def run_task(task: RegressionTask, methods: list[str], *, seeds: int, threads: int) -> list[dict[str, Any]]:
    """Rows of all methods, seeds and parts; a method that fails gives a row with ``error``."""
    from _regression_peers import run_peer, run_rival

    y_train, y = task.y(task.train), task.y(task.test)
    proteins = None if task.proteins is None else task.test.obs[task.proteins].astype(str).to_numpy()
    parts = task.parts or {"": np.ones(len(y), dtype=bool)}
    base = {"n_train": len(y_train), "n_features": task.train.n_vars, "n_left_out": task.left_out}
    found: list[dict[str, Any]] = []

    def record(method: str, seed: int, call: Callable[[], Any]) -> None:
        rows, error, seconds = {}, None, {}
        try:
            prediction = call()
            rows = evaluate(y_train, y, proteins, prediction)
            seconds = {"fit_seconds": prediction.fit_seconds, "predict_seconds": prediction.predict_seconds}
        except Exception as problem:  # one failing method must not lose the other results
            traceback.print_exc()
            error = f"{type(problem).__name__}: {problem}"
        for part, mask in parts.items():
            name = f"{task.name}_{part}" if part else task.name
            row = {"task": name, "method": method, "seed": seed, **base, "n_test": int(mask.sum())}
            row |= {"error": error} if error else scores_of({k: v[mask] for k, v in rows.items()}) | seconds
            found.append(row)
            line = error or ", ".join(f"{m} {row[m]:.3f}" for m in ("spearman", "r2", "nll", "coverage90"))
            spent = f", fit {row['fit_seconds']:.1f} s" if not error else ""
            print(f"  {name} {method} seed {seed}: {line}{spent}", file=sys.stderr, flush=True)

    peers = [m for m in methods if m not in OWN]
    x, x_test = task.features() if peers else (None, None)
    for method in methods:
        for seed in range(seeds):

            def call(method: str = method, seed: int = seed) -> Any:
                if method in OWN:
                    objective = OWN[method]
                    return predict_scscore(
                        task.train, task.test, task.target, task.groups, seed, objective=objective, kind=task.kind
                    )
                return run_peer(method, x, y_train, x_test, groups=task.group_labels(), seed=seed, threads=threads)

            record(method, seed, call)
    for name in task.rivals if peers else ():
        column, column_test = (side.obs[name].to_numpy(np.float64) for side in (task.train, task.test))
        record(name, 0, lambda a=column, b=column_test: run_rival(a, y_train, b))
    return found


def merged(path: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The table at `path` with its rows replaced or extended by new ones, in the order of tasks and methods; written back."""
    new = pd.DataFrame(rows)
    if path.is_file():
        old = pd.read_csv(path)
        replaced = pd.MultiIndex.from_frame(old[KEY]).isin(pd.MultiIndex.from_frame(new[KEY]))
        new = pd.concat([old[~replaced], new], ignore_index=True) if (~replaced).any() else new
    first = [*KEY, "n_train", "n_test", "n_features", "n_left_out", *METRICS, "error"]
    new = new.reindex(columns=[*first, *(c for c in new.columns if c not in first)])
    methods, tasks = [*METHODS, *RIVALS], list(LOADERS)
    order = pd.DataFrame(
        {
            "task": [
                max(i for i, t in enumerate(tasks) if name == t or name.startswith(f"{t}_")) for name in new["task"]
            ],
            "name": new["task"],
            "method": [methods.index(name) for name in new["method"]],
            "seed": new["seed"],
        }
    )
    new = new.loc[order.sort_values(list(order.columns), kind="stable").index].reset_index(drop=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    new.to_csv(path, index=False, float_format="%.6g")
    return new


def _distance(metric: str, values: pd.Series) -> pd.Series:
    """How far values are from the best that there can be; of widths nothing is best on its own."""
    if metric in HIGH:
        return -values
    if metric in NOMINAL:
        return (values - NOMINAL[metric]).abs()
    return values if metric in LOW else values * np.nan


def table(rows: pd.DataFrame) -> str:
    """Markdown table of one task, mean over seeds, the best of every column in bold."""
    mean = rows.groupby("method", sort=False)[[m for m in METRICS if m in rows]].mean(numeric_only=True)
    shown = [m for m in mean.columns if mean[m].notna().any()]
    lines = ["| method | " + " | ".join(shown) + " |", "|" + "---|" * (len(shown) + 1)]
    cells = {}
    for metric in shown:
        digits = 1 if metric.endswith("seconds") else 3
        text = mean[metric].map(lambda v, digits=digits: "" if np.isnan(v) else f"{v:.{digits}f}")
        distance = _distance(metric, mean[metric])
        best = text.isin(text[distance == distance.min()]) if distance.notna().any() else text == "none"
        cells[metric] = text.where(~best, "**" + text + "**")
    for method in mean.index:
        values = [cells[m][method] for m in shown] or ["failed"]
        lines.append("| " + " | ".join([method, *values]) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status (1 if any method failed)."""
    options = parse_arguments(arguments)
    import _regression_peers  # noqa: F401  # now, because thread limits reach only libraries that are loaded

    if set(options.methods) & set(OWN):
        import logging

        import scscore.tl  # noqa: F401  # now, so that no method is charged for it

        logging.getLogger("scscore").setLevel("WARNING")
    limit_threads(options.threads)
    failed = False
    for name in options.tasks:
        start = time.perf_counter()
        task = load_task(name, options.data, max_train=options.max_train)
        print(f"\n### {task.describe()}\n", flush=True)
        print(f"  read and prepared in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        found = run_task(task, options.methods, seeds=options.seeds, threads=options.threads)
        failed |= any("error" in row for row in found)
        rows = merged(options.out, found)  # after every task, so that an interruption loses little
        for part in dict.fromkeys(row["task"] for row in found):
            print(f"{part}\n\n{table(rows[rows['task'] == part])}\n", flush=True)
    print(f"bold: best of the column, of coverages the nearest to the nominal one\nwritten: {options.out}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
