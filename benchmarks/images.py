"""Digits, photos and blood cells: accuracy, calibration, novelty, robustness and attributions beside a small CNN and classifiers on PCA."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _metrics
import numpy as np
import pandas as pd
import torch
from _image_peers import Images, Network, fit_cnn, fit_on_components
from _memory import PeakMemory
from accuracy import limit_threads
from scipy.ndimage import gaussian_filter, shift
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

TASKS = {"mnist": "shift", "digits": "shift", "bccd_cells": "orientation", "cifar10_subset": "mirror"}
"""How images of a task may be varied in training, for scscore and the CNN alike."""
METHODS = ("scscore", "cnn", "scscore_pca", "svm", "knn", "lr")
PARTS = ("accuracy", "robustness", "novelty", "attribution", "features")
FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Task:
    """Images ``(n, n_channels, height, width)`` in [0, 1] and class codes of both sides, and the names of the classes."""

    name: str
    train: Images
    y_train: np.ndarray
    test: Images
    y_test: np.ndarray
    classes: tuple[str, ...]

    @property
    def augment(self) -> str:
        """How images may be varied."""
        return TASKS[self.name]


def load_task(name: str, data: str | os.PathLike[str] | None, *, at_most: int = 0) -> Task:
    """Load one task; with `at_most`, so many training images, drawn at random."""
    if name == "digits":
        from sklearn.datasets import load_digits

        source = load_digits()
        images, y = source.images[..., None] * (255 / 16), source.target
        x_train, y_train, x_test, y_test = images[:1300], y[:1300], images[1300:], y[1300:]
        classes = tuple(map(str, range(10)))
    else:
        from _tasks import data_folder

        file = np.load(Path(data_folder(data)) / name / f"{name}.npz", allow_pickle=False)
        if name == "bccd_cells":
            test = file["split"] == "test"
            x_train, y_train, x_test, y_test = file["x"][~test], file["y"][~test], file["x"][test], file["y"][test]
        else:
            x_train, y_train, x_test, y_test = (file[key] for key in ("x_train", "y_train", "x_test", "y_test"))
        classes = tuple(map(str, file["classes"])) if "classes" in file else tuple(map(str, range(10)))
    order = np.random.default_rng(0).permutation(len(x_train))[: at_most or None]

    def channels_first(images: np.ndarray) -> Images:
        images = images[..., None] if images.ndim == 3 else images
        return np.ascontiguousarray(np.moveaxis(images, -1, 1).astype(np.float32) / 255)

    codes = [np.asarray(y).ravel().astype(int) for y in (y_train[order], y_test)]
    return Task(name, channels_first(x_train[order]), codes[0], channels_first(x_test), codes[1], classes)


def as_adata(images: Images, y: np.ndarray | None, classes: tuple[str, ...]):
    """Images for scscore, as 8 bits."""
    import scscore as scs

    obs = pd.DataFrame(index=[f"image{i}" for i in range(len(images))])
    if y is not None:
        obs["label"] = [classes[k] for k in y]
    return scs.images.from_arrays((255 * images).round().astype(np.uint8), obs=obs, channel_axis=1)


def fit_scscore(task: Task, *, encoder: str, seed: int):
    """The model at its defaults, but for the variations of the images."""
    import scscore as scs

    how = scs.images.Conv(augment=task.augment) if encoder == "conv" else "pca"
    return scs.tl.fit(as_adata(task.train, task.y_train, task.classes), "label", encoder=how, rng=seed, progress=False)


def classified(model, images: Images, classes: tuple[str, ...]):
    """The images after ``tl.classify``, and probabilities in the order of `classes` (zero for those the model does not know)."""
    import scscore as scs

    cells = as_adata(images, None, classes)
    scs.tl.classify(cells, model, progress=False)
    proba = np.zeros((len(images), len(classes)))
    proba[:, [classes.index(name) for name in model.classes]] = cells.obsm["scscore_posterior"]
    return cells, proba


def accuracy(task: Task, options: argparse.Namespace, seed: int) -> pd.DataFrame:
    """All methods; the CNN gets the time that scscore took."""
    path, rows = options.out / "images.csv", []
    done = (
        pd.read_csv(path) if path.exists() and not options.again else pd.DataFrame(columns=["task", "method", "seed"])
    )
    seconds = options.cnn_seconds
    for method in [m for m in METHODS if m in options.methods]:
        known = done[(done["task"] == task.name) & (done["method"] == method) & (done["seed"] == seed)]
        if len(known):
            rows.append(known.iloc[0].to_dict())
            seconds = known["fit_seconds"].iloc[0] if method == "scscore" and not options.cnn_seconds else seconds
            continue
        row = {"task": task.name, "method": method, "seed": seed, "n_train": len(task.train), "n_test": len(task.test)}
        try:
            with PeakMemory() as memory:
                start = time.perf_counter()
                if method.startswith("scscore"):
                    model = fit_scscore(task, encoder="pca" if method == "scscore_pca" else "conv", seed=seed)
                elif method == "cnn":
                    network = fit_cnn(task.train, task.y_train, augment=task.augment, seconds=seconds or 200, seed=seed)
                else:
                    predict = fit_on_components(method, task.train, task.y_train, seed=seed)
                row["fit_seconds"] = time.perf_counter() - start
                start = time.perf_counter()
                if method.startswith("scscore"):
                    cells, proba = classified(model, task.test, task.classes)
                    truth = np.array([list(model.classes).index(task.classes[k]) for k in task.y_test])
                    sets = cells.obsm["scscore_prediction_set"]
                    row |= {
                        "coverage": sets[np.arange(len(truth)), truth].mean(),
                        "set_size": sets.sum(1).mean(),
                        "rejected": (cells.obs["scscore_label"] == "unknown").mean(),
                    }
                else:
                    proba = network.predict_proba(task.test) if method == "cnn" else predict(task.test)
                row["predict_seconds"] = time.perf_counter() - start
            if method == "scscore" and not options.cnn_seconds:
                seconds = row["fit_seconds"]
            y = task.y_test
            row |= {name: getattr(_metrics, name)(y, proba) for name in ("accuracy", "macro_f1", "nll", "ece", "brier")}
            row |= {"balanced": balanced_accuracy_score(y, proba.argmax(1)), "peak_memory_mb": memory.peak_mb}
        except Exception as error:
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
        print(pd.Series(row).to_frame().T.to_string(index=False), flush=True)
        done = pd.concat(
            [
                done[~((done["task"] == task.name) & (done["method"] == method) & (done["seed"] == seed))],
                pd.DataFrame([row]),
            ]
        )
        done.to_csv(path, index=False, float_format="%.5g")
    return pd.DataFrame(rows)


_PAIRS: dict[tuple[str, int], Any] = {}


def fit_pair(task: Task, options: argparse.Namespace, seed: int) -> tuple[Any, Network]:
    """Scscore with the convolutional encoder, and the CNN trained for the same time; once for all parts."""
    if (key := (task.name, seed)) not in _PAIRS:
        start = time.perf_counter()
        model = fit_scscore(task, encoder="conv", seed=seed)
        seconds = options.cnn_seconds or time.perf_counter() - start
        _PAIRS[key] = (
            model,
            fit_cnn(task.train, task.y_train, augment=task.augment, seconds=seconds, seed=seed),
        )
    return _PAIRS[key]


def corruptions(seed: int) -> dict[str, Callable[[Images], Images]]:
    """Noise, blur and small translations of growing strength."""
    rng = np.random.default_rng(seed)
    noisy = lambda sd: lambda x: np.clip(x + rng.normal(0, sd, x.shape), 0, 1).astype(np.float32)
    blurred = lambda sd: lambda x: gaussian_filter(x, (0, 0, sd, sd)).astype(np.float32)
    moved = lambda by: lambda x: shift(x, (0, 0, by, -by), order=1, mode="nearest").astype(np.float32)
    return {
        "none": lambda x: x,
        **{f"noise {sd}": noisy(sd) for sd in (0.05, 0.1, 0.2)},
        **{f"blur {sd}": blurred(sd) for sd in (0.5, 1.0, 1.5)},
        **{f"shift {by}": moved(by) for by in (1, 2, 3)},
    }


def robustness(task: Task, options: argparse.Namespace, seed: int) -> pd.DataFrame:
    """Accuracy, NLL and ECE on corrupted test images; nothing is fitted to them."""
    model, network = fit_pair(task, options, seed)
    rows = []
    for name, corrupt in corruptions(seed).items():
        images = corrupt(task.test)
        cells, proba = classified(model, images, task.classes)
        for method, found in (("scscore", proba), ("cnn", network.predict_proba(images))):
            row = {"task": task.name, "corruption": name, "method": method}
            row |= {metric: getattr(_metrics, metric)(task.y_test, found) for metric in ("accuracy", "nll", "ece")}
            if method == "scscore":
                row["rejected"] = (cells.obs["scscore_label"] == "unknown").mean()
            rows.append(row)
    return pd.DataFrame(rows)


def novelty_scores(task: Task, options: argparse.Namespace, seed: int) -> dict[str, np.ndarray]:
    """Scores of the test images, high for novel ones."""
    start, found = time.perf_counter(), {}
    for encoder in ("conv", "pca"):
        model = fit_scscore(task, encoder=encoder, seed=seed)
        cells, _ = classified(model, task.test, task.classes)
        found[f"scscore typicality, {encoder}"] = -cells.obs["scscore_typicality"].to_numpy()
        if encoder == "conv":
            seconds = options.cnn_seconds or time.perf_counter() - start
    network = fit_cnn(task.train, task.y_train, augment=task.augment, seconds=seconds, seed=seed)
    logits = network.logits(task.test)
    found["cnn 1 - max probability"] = -network.predict_proba(task.test).max(1)
    found["cnn energy"] = -np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) - logits.max(1)
    pca = PCA(50, random_state=0).fit(task.train.reshape(len(task.train), -1))
    for name, (x, new) in {
        "cnn features": (network.features(task.train), network.features(task.test)),
        "pca": tuple(pca.transform(part.reshape(len(part), -1)) for part in (task.train, task.test)),
    }.items():
        means = np.stack([x[task.y_train == k].mean(0) for k in np.unique(task.y_train)])
        position = np.searchsorted(np.unique(task.y_train), task.y_train)
        precision = LedoitWolf().fit(x - means[position]).precision_
        offsets = new[:, None] - means
        found[f"Mahalanobis, {name}"] = np.einsum("nki,ij,nkj->nk", offsets, precision, offsets).min(1)
        neighbours = NearestNeighbors(n_neighbors=10).fit(x[:: max(1, len(x) // 20000)])
        found[f"kNN distance, {name}"] = neighbours.kneighbors(new)[0].mean(1)
    return found


def novelty(task: Task, options: argparse.Namespace, seed: int) -> pd.DataFrame:
    """Every class left out of training in turn: area under the ROC curve of its test images against those of known classes."""
    rows = []
    for k, name in enumerate(task.classes):
        keep = task.y_train != k
        codes = np.searchsorted(np.flatnonzero(np.arange(len(task.classes)) != k), task.y_train[keep])
        classes = tuple(c for c in task.classes if c != name)
        left = Task(task.name, task.train[keep], codes, task.test, task.y_test, classes)
        for score, values in novelty_scores(left, options, seed).items():
            rows.append(
                {"task": task.name, "left_out": name, "score": score, "auroc": roc_auc_score(task.y_test == k, values)}
            )
        print(pd.DataFrame(rows).query("left_out == @name").round(3).to_string(index=False), flush=True)
    return pd.DataFrame(rows)


def integrated_gradients(
    network: Network, images: Images, y: np.ndarray, other: np.ndarray, baseline: Images, n: int = 32
) -> np.ndarray:
    """Of the difference of two logits of the CNN, from a baseline, ``(n, n_channels, height, width)``."""
    total = np.zeros_like(images)
    for i in range(n):
        x = torch.from_numpy(baseline + (i + 0.5) / n * (images - baseline)).requires_grad_()
        logits, rows = network.head(network.body(x)), torch.arange(len(x))
        (gradient,) = torch.autograd.grad((logits[rows, y] - logits[rows, other]).sum(), x)
        total += gradient.numpy() / n
    return total * (images - baseline)


def curve(
    judge: Callable[[Images], np.ndarray],
    images: Images,
    y: np.ndarray,
    order: np.ndarray,
    baseline: Images,
    *,
    insert: bool,
) -> float:
    """Mean probability of `y` while pixels are deleted, or inserted, in order, over 21 shares of them."""
    n, pixels = len(images), images.shape[2] * images.shape[3]
    values = []
    for share in np.linspace(0, 1, 21):
        chosen = np.zeros((n, pixels), dtype=bool)
        np.put_along_axis(chosen, order[:, : round(share * pixels)], True, axis=1)
        mask = chosen.reshape(n, 1, *images.shape[2:])
        shown = np.where(mask == insert, images, baseline).astype(np.float32)
        values.append(judge(shown)[np.arange(n), y].mean())
    return float(np.mean(values))


def attribution(task: Task, options: argparse.Namespace, seed: int) -> pd.DataFrame:
    """Completeness, and deletion and insertion curves of scscore's attributions and of integrated gradients on the CNN.

    Images are those that both get right, the baseline is blurred, and each method is judged by both models.
    """
    import scscore as scs

    model, network = fit_pair(task, options, seed)
    judges = {
        "scscore": lambda images: classified(model, images, task.classes)[1],
        "cnn": network.predict_proba,
    }
    right = (judges["scscore"](task.test).argmax(1) == task.y_test) & (
        network.predict_proba(task.test).argmax(1) == task.y_test
    )
    some = np.random.default_rng(seed).permutation(np.flatnonzero(right))[:200]
    images, y = task.test[some], task.y_test[some]
    baseline = gaussian_filter(images, (0, 0, 4, 4)).astype(np.float32)
    cells = as_adata(images, y, task.classes)
    scs.tl.attribute(cells, model, target="label", reference="runner-up", per_cell=True, progress=False)
    other = np.array([task.classes.index(name) for name in cells.obs["scscore_runner_up"].astype(str)])
    maps = {
        "scscore": scs.images.stack(cells, cells.layers["scscore_attribution"]),
        "integrated gradients on the CNN": integrated_gradients(network, images, y, other, baseline),
        "random": np.random.default_rng(seed).random(images.shape),
    }
    print(f"{task.name}: completeness {cells.uns['scscore_attribution']['completeness']:.1g}")
    rows = []
    for name, values in maps.items():
        order = np.argsort(-values.sum(1).reshape(len(images), -1), axis=1)
        for judge, function in judges.items():
            row = {"task": task.name, "map": name, "judge": judge}
            row |= {
                kind: curve(function, images, y, order, baseline, insert=kind == "insertion")
                for kind in ("deletion", "insertion")
            }
            rows.append(row)
    return pd.DataFrame(rows)


class PatchFeatures(torch.nn.Module):
    """A backbone that nobody has to download: responses to patches found by k-means, averaged over quarters (Coates et al. 2011)."""

    def __init__(self, images: Images, n_filters: int = 96, size: int = 6) -> None:
        super().__init__()
        from sklearn.cluster import MiniBatchKMeans

        rng, channels = np.random.default_rng(0), images.shape[1]
        rows = rng.integers(len(images), size=30_000)
        top, left = (rng.integers(images.shape[axis] - size + 1, size=len(rows)) for axis in (2, 3))
        patches = np.stack(
            [images[r, :, i : i + size, j : j + size].ravel() for r, i, j in zip(rows, top, left, strict=True)]
        )
        self.center = torch.from_numpy(patches.mean(0))
        covariance = np.cov((patches - patches.mean(1, keepdims=True)).T)
        values, vectors = np.linalg.eigh(covariance)
        whiten = vectors / np.sqrt(values + 0.01) @ vectors.T
        white = (patches - patches.mean(1, keepdims=True)) @ whiten
        filters = MiniBatchKMeans(n_filters, random_state=0, n_init=3).fit(white).cluster_centers_
        filters /= np.linalg.norm(filters, axis=1, keepdims=True)
        kernel = filters @ whiten  # of the patch less its mean
        kernel -= kernel.mean(1, keepdims=True)
        self.kernel = torch.from_numpy(kernel.reshape(n_filters, channels, size, size).astype(np.float32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Responses, averaged over quarters, ``(n, 4 * n_filters)``."""
        found = torch.nn.functional.softplus(torch.nn.functional.conv2d(images, self.kernel) - 0.5, beta=5)
        return torch.nn.functional.adaptive_avg_pool2d(found, 2).flatten(1)


def features(task: Task, options: argparse.Namespace, seed: int) -> pd.DataFrame:
    """Features of somebody else: scscore, discriminant analysis and logistic regression on one fixed backbone."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    import scscore as scs

    backbone = PatchFeatures(task.train)
    start = time.perf_counter()
    model = scs.tl.fit(
        as_adata(task.train, task.y_train, task.classes), "label", encoder=backbone, rng=seed, progress=False
    )
    seconds = {"scscore": time.perf_counter() - start}
    found = {"scscore": classified(model, task.test, task.classes)[1]}
    with torch.inference_mode():
        x, new = (
            torch.cat([backbone(torch.from_numpy(part[i : i + 500])) for i in range(0, len(part), 500)]).numpy()
            for part in (task.train, task.test)
        )
    peers = {
        "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        "lr": make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=[0.003, 0.03, 0.3], cv=3, max_iter=300)),
    }
    for name, peer in peers.items():
        start = time.perf_counter()
        found[name] = peer.fit(x, task.y_train).predict_proba(new)
        seconds[name] = time.perf_counter() - start
    return pd.DataFrame(
        [
            {
                "task": task.name,
                "method": name,
                **{metric: getattr(_metrics, metric)(task.y_test, proba) for metric in ("accuracy", "nll", "ece")},
                "fit_seconds": seconds[name],
            }
            for name, proba in found.items()
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the parts and write one table each; rows of other tasks are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="data folder; default $SCSCORE_DATA, else ../shared/data beside the repository")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["accuracy"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="of the part 'accuracy'")
    parser.add_argument("--max-train", type=int, default=0, help="at most so many training images; 0: all")
    parser.add_argument("--cnn-seconds", type=float, default=0, help="training time of the CNN; 0: that of scscore")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="measure anew what the table holds already")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the tables")
    options = parser.parse_args(arguments)
    logging.getLogger("scscore").setLevel("WARNING")
    limit_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        tables = []
        for name in options.tasks:
            task = load_task(name, options.data, at_most=options.max_train)
            tables += [globals()[part](task, options, seed) for seed in range(options.seeds)]
        frame = pd.concat(tables)
        if part != "accuracy":  # which writes as it goes
            path = options.out / f"images_{part}.csv"
            if path.exists():
                kept = pd.read_csv(path)
                frame = pd.concat([kept[~kept["task"].isin(options.tasks)], frame])
            frame.to_csv(path, index=False, float_format="%.4g")
        print(f"\n{part}\n{frame.round(4).to_string(index=False)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
