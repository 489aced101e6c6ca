"""Log-likelihoods and posteriors: against exact densities, and against the published inference procedure.

``truth``: error and cost of every estimator on mixtures with known densities. ``published``: the procedure of the notebooks
of "Keeping SCORE" (bioRxiv 2025.11.26.690838), with the same network. ``collapse``: what its missing 1 / sigma does to a
perfect network.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _comparison import collapse_rows, cost_rows, head_to_head, many_classes_rows
from _exact import adaptive_rows, overlapping_classes, truth_rows
from _tasks import load_task
from anndata import AnnData

import scscore as scs
import scscore.tl  # now, because the package sets up its logger when its functions are loaded

PARTS = ("truth", "published", "collapse")
DIGITS_SPLITS = (0, 1, 2, 3, 4)
"""Seeds of the random splits of the digits: one test set is too small to tell a difference of .01 nats from luck."""


def digits(seed: int = 0) -> tuple[AnnData, AnnData]:
    """Handwritten digits of scikit-learn, 8 x 8 pixels: three quarters to train, one quarter to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    obs = pd.DataFrame({"digit": pd.Categorical(data.target.astype(str))}, index=[str(i) for i in range(len(order))])
    adata = AnnData(obs=obs, obsm={"X_pixels": data.data.astype(np.float32)})
    n_train = len(order) * 3 // 4
    return adata[order[:n_train]].copy(), adata[order[n_train:]].copy()


def run_truth(quick: bool) -> dict[str, pd.DataFrame]:
    """Part one."""
    rows: list[dict[str, Any]] = []
    for n_features in (2, 10) if quick else (2, 10, 30, 50):
        settings = {"n_cells": 24, "most_calls": 512} if quick else {"n_cells": 96, "most_calls": 1024}
        rows += truth_rows(
            n_features,
            steps=(8, 32, 128) if quick else (8, 16, 32, 64, 128, 256),
            paths=(2, 8, 32),
            flow_cells=4 if quick else 8,
            **settings,
        )
    table = pd.DataFrame(rows)
    adaptive = pd.DataFrame(
        adaptive_rows(
            overlapping_classes(10 if quick else 30),
            n_cells=64 if quick else 512,
            n_steps=16,
            fixed=(8, 16, 64) if quick else (4, 8, 16, 32, 64),
            precisions=(0.05, 0.02),
        )
    )
    chosen = [pair in [(8, 8), (32, 8), (8, 32), (256, 2)] for pair in zip(table["steps"], table["paths"], strict=True)]
    some = table[np.array(chosen) | (table["estimator"] == "flow")]
    show("Errors against exact densities, 8 classes", some.drop(columns=["cells"]))
    if not quick:
        show_grid(table)
    show("Adaptive effort, dissipation", adaptive)
    return {"truth": table, "adaptive": adaptive}


def run_published(quick: bool, data: str | None) -> dict[str, pd.DataFrame]:
    """Part two."""
    effort = {"paths": 2, "few": 1, "timed_steps": 4} if quick else {"paths": 4, "few": 6, "timed_steps": 20}
    rows: list[dict[str, Any]] = []
    for split in DIGITS_SPLITS[:1] if quick else DIGITS_SPLITS:
        train, test = digits(split)
        model = scs.tl.fit(train, "digit", use_rep="X_pixels", max_epochs=5 if quick else None, progress=False)
        if quick:
            test = test[:64].copy()
        name = f"digits, split {split}"
        rows += head_to_head(name, model, test, test.obs["digit"].astype(str).to_numpy(), **effort)
    if not quick:
        task = load_task("pbmc3k", data)
        train, test = task.cells(task.train), task.cells(task.test)
        model = scs.tl.fit(train, task.condition, progress=False)
        rows += head_to_head("pbmc3k", model, test, test.obs[task.condition].astype(str).to_numpy(), **effort)
    table = pd.DataFrame(rows)
    all_cells = table["cells"] > effort["few"]
    over_splits = table[all_cells].assign(data=table["data"].str.split(",").str[0])
    over_splits = over_splits.groupby(["data", "method"], sort=False)[["accuracy", "nll", "ece", "calls"]].mean()
    n_classes = 30 if quick else 164
    many = pd.DataFrame(many_classes_rows(n_classes, n_cells=n_classes, paths=2 if quick else 8, few=1 if quick else 4))
    cost = pd.DataFrame(cost_rows(n_classes, n_cells=64 if quick else 128, timed_steps=2 if quick else 5))
    show("Same trained network, two procedures", table.drop(columns=["macro_f1", "brier", "features", "classes"]))
    show("The same, mean over splits", over_splits.reset_index())
    show("Many classes, perfect network", many.drop(columns=["macro_f1", "brier", "features"]))
    show("Cost with a network of the default size", cost)
    return {"published": table, "many_classes": many, "cost": cost}


def run_collapse(quick: bool) -> dict[str, pd.DataFrame]:
    """Part three."""
    table = pd.DataFrame(collapse_rows(n_cells=80 if quick else 800, n_paths=2 if quick else 4))
    show("A perfect network without 1 / sigma", table)
    return {"collapse": table}


def show_grid(table: pd.DataFrame) -> None:
    """Total-variation error over jumps and paths, dissipation with the reference."""
    part = table[(table["estimator"] == "dissipation") & (table["control"] == "reference")]
    grid = part.pivot_table(index=["n_features", "steps"], columns="paths", values="tv")
    print("\n### Total-variation error of the posterior: dissipation with the reference, jumps x paths\n")
    print(grid.to_string(float_format=lambda value: f"{value:.4f}", na_rep=""), flush=True)


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table with four significant digits."""
    print(f"\n### {title}\n")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep=""), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--quick", action="store_true", help="a minute instead of a quarter of an hour; figures mean little"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent / "results", help="folder of the csv files"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("scscore").setLevel("WARNING")
    torch.set_num_threads(1)  # seconds are those of one processor
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        start = time.process_time()
        if part == "truth":
            found = run_truth(options.quick)
        elif part == "published":
            found = run_published(options.quick, options.data)
        else:
            found = run_collapse(options.quick)
        for name, table in found.items():
            path = options.out / f"likelihood_{name}.csv"
            table.to_csv(path, index=False)
            print(f"written: {path}", flush=True)
        print(f"{part}: {time.process_time() - start:.0f} processor seconds", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
