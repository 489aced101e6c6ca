"""Established classifiers on well-chosen representations: what the diffusion classifier is compared with."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scanpy as sc
from _metrics import nll
from _tasks import Task
from anndata import AnnData
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier

N_COMPS = 50
N_TOP_GENES = 2_000
TARGET_SUM = 1e4
CLIP = 10.0
LR_GRID = np.logspace(-3, 2, 11)
N_FOLDS = 5
CENTRED = "_centred"
MIN_GROUPS = 4
"""With at least this many donors / studies in training, folds keep a donor together; else they are stratified only."""

Folds = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Representation:
    """Features of both sides, fitted on the training cells only.

    ``train`` (n, D) and ``test`` (m, D) are centred on the training cells and divided by ONE number, so that the
    relative variance of the components is kept. ``seconds`` is what fitting and applying took.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    seconds: float


def _log_normalised(adata: AnnData, kind: str, *, target_sum: float = TARGET_SUM) -> sparse.csr_matrix:
    """Log1p of counts scaled to ``target_sum`` per cell, float32 CSR; log-normalised input comes back as it is."""
    x = sparse.csr_matrix(adata.X, dtype=np.float32)
    if kind == "log":
        return x
    total = np.asarray(x.sum(1)).ravel()
    x = sparse.diags((target_sum / np.maximum(total, 1.0)).astype(np.float32)).dot(x).tocsr()
    return x.log1p()


def _n_comps(x: Any) -> int:
    return min(N_COMPS, min(x.shape) - 1)


def all_genes(
    train: AnnData, test: AnnData, kind: str, *, median_over: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """PCA-50 of centred log1p-normalised values of ALL genes, without any scaling per gene.

    Cells are scaled to 10,000 counts, or with ``median_over`` to the median total of the training cells divided by
    it: the smaller the target, the closer log1p comes to proportions, and the less weight weakly expressed genes get.
    """
    target = TARGET_SUM
    if median_over is not None:
        target = float(np.median(np.asarray(train.X.sum(1)))) / median_over
    x, x_test = (_log_normalised(a, kind, target_sum=target) for a in (train, test))
    pca = PCA(_n_comps(x), svd_solver="arpack", random_state=0).fit(x)
    return pca.transform(x), pca.transform(x_test)


def variable_genes(train: AnnData, test: AnnData, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """PCA-50 of 2,000 highly variable genes, z-scored (clipped at 10) by the training cells."""
    x, x_test = _log_normalised(train, kind), _log_normalised(test, kind)
    if x.shape[1] > N_TOP_GENES:
        chosen = AnnData(x)
        sc.pp.highly_variable_genes(chosen, n_top_genes=N_TOP_GENES, flavor="seurat")
        keep = chosen.var["highly_variable"].to_numpy()
        x, x_test = x[:, keep], x_test[:, keep]
    x, x_test = x.toarray(), x_test.toarray()
    mean, sd = x.mean(0), x.std(0, ddof=1)
    sd[sd == 0] = 1.0
    x, x_test = (np.clip((v - mean) / sd, -CLIP, CLIP) for v in (x, x_test))
    pca = PCA(_n_comps(x), svd_solver="arpack", random_state=0).fit(x)
    return pca.transform(x), pca.transform(x_test)


def log1p(train: AnnData, test: AnnData, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Log1p of the counts of all features (antibodies)."""
    return tuple(np.log1p(sparse.csr_matrix(a.X).toarray().astype(np.float64)) for a in (train, test))


def clr(train: AnnData, test: AnnData, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Centred log-ratio within each cell: log1p minus its mean over the cell's features."""
    return tuple(x - x.mean(1, keepdims=True) for x in log1p(train, test, kind))


REPRESENTATIONS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "allgenes": all_genes,
    "allgenes_median": partial(all_genes, median_over=1),
    "allgenes_median/3": partial(all_genes, median_over=3),
    "allgenes_median/10": partial(all_genes, median_over=10),
    "hvg": variable_genes,
    "log1p": log1p,
    "clr": clr,
}


def representations_of(task: Task, *, extended: bool = False, centred: bool = False) -> tuple[str, ...]:
    """Names of the representations that suit the kind of data: two per task.

    ``centred`` adds the same two with every batch centred.

    ``extended`` adds, for counts, all-genes PCA with smaller normalisation targets: on some tasks
    they are worth more than the choice of classifier.
    """
    usual = ("log1p", "clr") if task.kind == "protein" else ("allgenes", "hvg")
    extra = tuple(name for name in REPRESENTATIONS if name.startswith("allgenes_"))
    return (
        *usual,
        *(extra if extended and task.kind == "counts" else ()),
        *(name + CENTRED for name in usual if centred),
    )


def _centred_by(x: np.ndarray, task: Task, cells: np.ndarray) -> np.ndarray:
    """Points less the mean of their batch; one batch where the task names none."""
    if task.group is None:
        return x - x.mean(0)
    groups, x = task.adata.obs[task.group][cells].astype(str).to_numpy(), x.copy()
    for group in np.unique(groups):
        x[groups == group] -= x[groups == group].mean(0)
    return x


def represent(task: Task, name: str) -> Representation:
    """Fit a representation on the training cells of a task and apply it to both sides.

    With the suffix ``_centred`` every batch is centred on its own, also those of the test cells, as users do who see the whole query.
    """
    train, test = task.adata[task.train], task.adata[task.test]
    start = time.perf_counter()
    x, x_test = REPRESENTATIONS[name.removesuffix(CENTRED)](train, test, task.kind)
    if name.endswith(CENTRED):
        x, x_test = (_centred_by(v, task, mask) for v, mask in ((x, task.train), (x_test, task.test)))
    mean = x.mean(0)
    x, x_test = (np.asarray(v - mean, dtype=np.float64) for v in (x, x_test))
    scale = x.std()
    return Representation(name, x / scale, x_test / scale, time.perf_counter() - start)


def folds_of(task: Task, *, seed: int) -> Folds:
    """Folds inside the training cells: stratified, and by donor / study where there are enough of them."""
    y = task.codes(task.train)
    empty = np.zeros((len(y), 1))
    if task.group is not None:
        groups = task.adata.obs[task.group][task.train].to_numpy()
        if len(np.unique(groups)) >= MIN_GROUPS:
            folds = list(StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed).split(empty, y, groups))
            if all(len(np.unique(y[fit])) == len(task.classes) and len(held) for fit, held in folds):
                return folds
    return list(StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed).split(empty, y))


class EarlyStoppedMLP:
    """One hidden layer (scikit-learn's defaults otherwise) that gives 10 % of its cells to early stopping by NLL.

    Scikit-learn's own early stopping watches the accuracy, which stops long before the probabilities are good.
    """

    max_epochs = 300
    patience = 20

    def __init__(self, *, n_classes: int, seed: int) -> None:
        self.n_classes, self.seed = n_classes, seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> EarlyStoppedMLP:
        """Train on 90 % of the cells, keep the weights of the epoch with the lowest NLL on the rest."""
        fit, held = train_test_split(np.arange(len(y)), test_size=0.1, stratify=y, random_state=self.seed)
        self.model = MLPClassifier((128,), batch_size=min(128, len(fit)), random_state=self.seed)
        best, best_epoch, weights = np.inf, 0, None
        for epoch in range(self.max_epochs):
            self.model.partial_fit(x[fit], y[fit], classes=np.arange(self.n_classes))
            value = nll(y[held], self.model.predict_proba(x[held]))
            if value < best:
                best, best_epoch = value, epoch
                weights = [w.copy() for w in self.model.coefs_], [b.copy() for b in self.model.intercepts_]
            elif epoch - best_epoch >= self.patience:
                break
        self.model.coefs_, self.model.intercepts_ = weights
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities, shape (n, K)."""
        return self.model.predict_proba(x)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Constructor arguments, for :func:`sklearn.base.clone`."""
        return {"n_classes": self.n_classes, "seed": self.seed}


class EarlyStoppedXGB:
    """XGBoost that gives 10 % of its cells to early stopping (on the multinomial log-loss)."""

    def __init__(self, *, n_classes: int, seed: int, threads: int) -> None:
        self.n_classes, self.seed, self.threads = n_classes, seed, threads

    def fit(self, x: np.ndarray, y: np.ndarray) -> EarlyStoppedXGB:
        """Train on 90 % of the cells, stop by the rest."""
        from xgboost import XGBClassifier

        fit, held = train_test_split(np.arange(len(y)), test_size=0.1, stratify=y, random_state=self.seed)
        self.model = XGBClassifier(
            n_estimators=1000,
            learning_rate=0.1,
            max_depth=4,
            subsample=0.8,
            colsample_bytree=0.8,
            tree_method="hist",
            eval_metric="mlogloss" if self.n_classes > 2 else "logloss",
            early_stopping_rounds=20,
            n_jobs=self.threads,
            random_state=self.seed,
        )
        self.model.fit(x[fit], y[fit], eval_set=[(x[held], y[held])], verbose=False)
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities, shape (n, K)."""
        return self.model.predict_proba(x)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Constructor arguments, for :func:`sklearn.base.clone`."""
        return {"n_classes": self.n_classes, "seed": self.seed, "threads": self.threads}


def _scorer(estimator: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Negative NLL; unlike scikit-learn's, it tolerates a held-out fold without some class."""
    return -nll(y, estimator.predict_proba(x))


def make_peer(name: str, task: Task, *, folds: Folds, seed: int, threads: int) -> Any:
    """An unfitted peer.

    Parameters
    ----------
    name
        ``lr`` (C by cross-validated NLL), ``lda`` (Ledoit-Wolf shrinkage), ``xgb`` or ``mlp`` (both stop early).
    task
        The task, for the number of classes.
    folds
        Folds in which ``lr`` chooses C.
    seed, threads
        Random seed and number of threads.

    Raises
    ------
    KeyError
        If the peer is unknown.
    """
    if name == "lr":
        return LogisticRegressionCV(Cs=LR_GRID, cv=folds, scoring=_scorer, max_iter=2000, tol=1e-4, random_state=seed)
    if name == "lda":
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    if name == "xgb":
        return EarlyStoppedXGB(n_classes=len(task.classes), seed=seed, threads=threads)
    if name == "mlp":
        return EarlyStoppedMLP(n_classes=len(task.classes), seed=seed)
    raise KeyError(f"unknown peer {name!r}; the peers are {', '.join(PEERS)}")


PEERS: tuple[str, ...] = ("lr", "lda", "xgb", "mlp")


def _cross_validated_nll(peer: Any, x: np.ndarray, y: np.ndarray, folds: Folds) -> float:
    """Mean NLL over held-out folds; the representation is unsupervised and shared by all folds."""
    scores = [_scorer(clone(peer, safe=False).fit(x[fit], y[fit]), x[held], y[held]) for fit, held in folds]
    return -float(np.mean(scores))


@dataclass(frozen=True)
class PeerResult:
    """Posterior (m, K) of the test cells, seconds, and the NLL cross-validated inside the training cells."""

    proba: np.ndarray
    fit_seconds: float
    predict_seconds: float
    cv_nll: float


def run_peer(name: str, task: Task, rep: Representation, *, seed: int, threads: int) -> PeerResult:
    """Fit a peer on one representation, predict the test cells.

    Fit seconds of ``lr`` include its search for C; for the others the cross-validation that later decides between
    representations is not counted. The features' own time is ``rep.seconds``.
    """
    y, folds = task.codes(task.train), folds_of(task, seed=seed)
    peer = make_peer(name, task, folds=folds, seed=seed, threads=threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # releases of scikit-learn differ in what they deprecate
        start = time.perf_counter()
        peer.fit(rep.train, y)
        fitted = time.perf_counter()
        proba = np.asarray(peer.predict_proba(rep.test), dtype=np.float64)
        done = time.perf_counter()
        if name == "lr":
            scores = peer.scores_  # a dict with one equal entry per class, or an array, by release
            scores = np.asarray(next(iter(scores.values())) if isinstance(scores, dict) else scores)
            cv = -float(scores.reshape(len(folds), -1).mean(0).max())
        else:
            cv = _cross_validated_nll(peer, rep.train, y, folds)
    return PeerResult(proba / proba.sum(1, keepdims=True), fitted - start, done - fitted, cv)
