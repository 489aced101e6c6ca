"""How many labelled cells it takes: 5 to 100 training cells per class, scscore beside LDA and logistic regression."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _metrics import evaluate
from _peers import represent, run_peer
from _scscore import run_scscore
from _tasks import SPECS, Task, load_task
from accuracy import limit_threads

TASKS = ("pbmc_zheng_sorted", "onek1k_subset")
SIZES = (5, 10, 20, 50, 100)
PEERS = ("lda", "lr")


def with_few(task: Task, n: int, *, seed: int) -> Task:
    """The task with at most `n` training cells per class; without groups, which so few cells cannot fill."""
    label, rng = task.adata.obs[task.condition].astype(str).to_numpy(), np.random.default_rng(seed)
    train = np.zeros(len(label), dtype=bool)
    for name in task.classes:
        rows = np.flatnonzero((label == name) & task.train)
        train[rng.permutation(rows)[:n]] = True
    keep = train | task.test
    return replace(task, adata=task.adata[keep].copy(), train=train[keep], test=task.test[keep], group=None)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--only", nargs="+", metavar="TASK", choices=list(SPECS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "learning_curves.csv")
    options = parser.parse_args(arguments)
    import scscore.tl  # noqa: F401  # before the thread limits

    logging.getLogger("scscore").setLevel("WARNING")
    warnings.filterwarnings("ignore", category=FutureWarning)
    limit_threads(1)
    rows: list[dict[str, Any]] = []
    for name in options.only:
        whole = load_task(name, options.data)
        truth = whole.codes(whole.test)
        for n in SIZES:
            for seed in range(options.seeds):
                task = with_few(whole, n, seed=seed)
                rep = represent(task, "allgenes")
                found = {peer: run_peer(peer, task, rep, seed=seed, threads=1).proba for peer in PEERS}
                found["scscore"] = run_scscore(task, seed=seed)["own"].proba
                rows += [
                    {"task": name, "cells_per_class": n, "seed": seed, "method": method, **evaluate(truth, proba)}
                    for method, proba in found.items()
                ]
                line = ", ".join(f"{row['method']} {row['accuracy']:.3f}" for row in rows[-len(found) :])
                print(f"  {name}, {n} per class, seed {seed}: {line}", file=sys.stderr, flush=True)
        table = pd.DataFrame(rows)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out, index=False, float_format="%.5g")
        for metric in ("accuracy", "nll"):
            part = table[table["task"] == name]
            mean = part.pivot_table(index="cells_per_class", columns="method", values=metric, sort=False)
            print(f"\n### {name}: {metric}, mean over {options.seeds} seeds\n\n{mean.round(3).to_string()}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
