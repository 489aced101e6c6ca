"""Cells per second and peak memory of ``tl.classify`` at default settings."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
from _memory import PeakMemory
from _tasks import load_task
from anndata import AnnData

import scscore as scs

SIZES = (50_000, 100_000, 200_000)


def synthetic(n_obs: int, *, n_features: int = 50, n_classes: int = 10, seed: int = 0) -> AnnData:
    """Cells of ten overlapping, curved classes in 50 components: no Gaussian fits them, so the residual has work to do."""
    shape, cells = np.random.default_rng(0), np.random.default_rng(seed + 1)
    n_latent, n_hidden = 6, 40
    inner = shape.standard_normal((n_latent, n_hidden)) + 0.25 * shape.standard_normal((n_classes, n_latent, n_hidden))
    offset = 0.4 * shape.standard_normal((n_classes, n_hidden))
    outer = shape.standard_normal((n_hidden, n_features)) / np.sqrt(1 + np.arange(n_features))
    y = cells.integers(n_classes, size=n_obs)
    latent = cells.standard_normal((n_obs, n_latent)).astype(np.float32)
    x = np.empty((n_obs, n_features), dtype=np.float32)
    for k in range(n_classes):
        x[y == k] = np.tanh(latent[y == k] @ inner[k] + offset[k]) @ outer
    x += 0.2 * cells.standard_normal(x.shape, dtype=np.float32)
    obs = pd.DataFrame({"cell_type": pd.Categorical.from_codes(y, [f"type {k}" for k in range(n_classes)])})
    obs.index = obs.index.astype(str)
    return AnnData(obs=obs, obsm={"X_pca": x})


def measure(adata: AnnData, model: scs.ScoreModel, name: str) -> dict[str, object]:
    """Time and memory of one call."""
    for key in [key for key in adata.obsm if key.startswith("scscore")]:
        del adata.obsm[key]
    with PeakMemory() as memory:
        start = time.perf_counter()
        scs.tl.classify(adata, model, progress=False)
        seconds = time.perf_counter() - start
    results = 2 * adata.n_obs * len(model.classes) * 4 / 2**20
    return {
        "data": name,
        "cells": adata.n_obs,
        "classes": len(model.classes),
        "features": model.diffusion.n_features,
        "covariance": model.params["reference"]["class_covariance"],
        "residual": model.diffusion.denoiser is not None,
        "seconds": seconds,
        "cells_per_second": adata.n_obs / seconds,
        "results_mb": results,
        "extra_memory_mb": memory.extra_mb,
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "speed.csv")
    options = parser.parse_args()
    logging.getLogger("scscore").setLevel("WARNING")
    rows = []

    train = synthetic(5_000)
    model = scs.tl.fit(train, "cell_type", use_rep="X_pca", progress=False)
    measure(synthetic(2_000, seed=1), model, "warm up")
    for size in SIZES:
        rows.append(measure(synthetic(size, seed=1), model, "synthetic, 50 PCs"))

    task = load_task("pbmc3k", options.data)
    pbmc = scs.tl.fit(task.cells(task.train), task.condition, progress=False)
    for repeats in (1, 10):
        cells = task.cells(np.ones(task.adata.n_obs, dtype=bool))
        index = np.tile(np.arange(cells.n_obs), repeats)
        many = AnnData(cells.X[index], var=cells.var[[]])
        rows.append(measure(many, pbmc, f"pbmc3k x {repeats}, from counts"))

    table = pd.DataFrame(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out, index=False)
    print(table.round(2).to_string(index=False))
    print(f"\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
