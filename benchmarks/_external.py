"""Peers that need an environment of their own: run as a script there, called as a function here.

    PYTHON benchmarks/_external.py celltypist TASK DATA SEED THREADS OUT.npz

The environment needs anndata, pandas and the peer: ``celltypist`` (with scikit-learn < 1.8), or ``scvi-tools`` for ``scanvi``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from _tasks import Task, load_task

METHODS = ("celltypist", "scanvi")


@dataclass(frozen=True)
class ExternalResult:
    """Posterior (m, K) of the test cells in the task's class order, and seconds without start-up and reading."""

    proba: np.ndarray
    fit_seconds: float
    predict_seconds: float


def run_external(method: str, interpreter: str, task: Task, *, data: str, seed: int, threads: int) -> ExternalResult:
    """Fit and predict in another environment."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.npz"
        command = [interpreter, __file__, method, task.name, str(data), str(seed), str(threads), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{method}: {done.stderr.strip().splitlines()[-1]}")
        found = np.load(out)
        proba = found["proba"] / found["proba"].sum(1, keepdims=True)
        return ExternalResult(proba, float(found["fit_seconds"]), float(found["predict_seconds"]))


def _celltypist(task: Task, seed: int, threads: int) -> tuple[np.ndarray, float, float]:
    """Logistic regression on all genes as CellTypist trains it; probabilities are normalised sigmoids."""
    import celltypist
    import scanpy as sc

    sides = [task.adata[mask].copy() for mask in (task.train, task.test)]
    for side in sides:
        side.X = sp.csr_matrix(side.X, dtype=np.float32)
        if task.kind != "log":
            sc.pp.normalize_total(side, target_sum=1e4)
            sc.pp.log1p(side)
    start = time.perf_counter()
    labels = sides[0].obs[task.condition].astype(str).to_numpy()
    model = celltypist.train(sides[0], labels=labels, n_jobs=threads, check_expression=False)
    fitted = time.perf_counter()
    found = celltypist.annotate(sides[1], model=model).probability_matrix
    return found[task.classes].to_numpy(), fitted - start, time.perf_counter() - fitted


def _scanvi(task: Task, seed: int, threads: int) -> tuple[np.ndarray, float, float]:
    """ScVI (60 epochs), then scANVI (20 epochs) on the training cells; the query is mapped without retraining."""
    import scvi
    import torch

    scvi.settings.seed, scvi.settings.verbosity = seed, 40
    torch.set_num_threads(threads)
    train, test = (task.adata[mask].copy() for mask in (task.train, task.test))
    for side in (train, test):
        side.X = sp.csr_matrix(side.X, dtype=np.float32)
        side.obs["label"] = side.obs[task.condition].astype(str)
    start = time.perf_counter()
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    scvi.model.SCVI.setup_anndata(train, labels_key="label")
    base = scvi.model.SCVI(train)
    base.train(max_epochs=60, **quiet)
    model = scvi.model.SCANVI.from_scvi_model(base, unlabeled_category="none", labels_key="label")
    model.train(max_epochs=20, **quiet)
    fitted = time.perf_counter()
    found = model.predict(test, soft=True)
    return found[task.classes].to_numpy(), fitted - start, time.perf_counter() - fitted


def main() -> None:
    """Fit one peer on one task and write its posterior."""
    method, name, data, seed, threads, out = sys.argv[1:]
    task = load_task(name, data)
    fit = {"celltypist": _celltypist, "scanvi": _scanvi}[method]
    proba, fit_seconds, predict_seconds = fit(task, int(seed), int(threads))
    np.savez(out, proba=proba, fit_seconds=fit_seconds, predict_seconds=predict_seconds)


if __name__ == "__main__":
    main()
