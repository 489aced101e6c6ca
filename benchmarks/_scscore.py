"""How the benchmarks call scscore: the only place that knows its arguments."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from _tasks import Task
from anndata import AnnData

if TYPE_CHECKING:
    from scscore import ScoreModel

KIND_ARGUMENTS: dict[str, dict[str, Any]] = {"counts": {}, "log": {"input": "log"}, "protein": {"use_rep": "X_clr"}}
"""What a user has to declare about the values; everything else is left at its default for every task."""


def add_clr(adata: AnnData) -> None:
    """Centred log-ratio of antibody counts into ``obsm["X_clr"]``, as users of CITE-seq data do."""
    x = adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)
    log = np.log1p(x)
    adata.obsm["X_clr"] = log - log.mean(axis=1, keepdims=True)


@dataclass(frozen=True)
class ScscoreResult:
    """Posterior (m, K) of the test cells in the task's class order, seconds, and what the sets and rejections are worth."""

    proba: np.ndarray
    fit_seconds: float
    predict_seconds: float
    sets: dict[str, float]


def fit_model(task: Task, train: AnnData, *, seed: int) -> ScoreModel:
    """A model of the training cells of a task, with default settings."""
    import scscore as scs

    return scs.tl.fit(
        train,
        task.condition,
        layer=task.layer,
        split_key=task.group,
        rng=seed,
        progress=False,
        **KIND_ARGUMENTS[task.kind],
    )


def run_scscore(task: Task, *, seed: int, adapt: bool = False) -> dict[str, ScscoreResult]:
    """Fit scscore on the training cells of a task and classify the test cells, with default settings.

    The result is called ``own``; with `adapt` another one, ``adapted``, is of the same model after :func:`scscore.tl.adapt` to the test cells, whose
    labels it does not see.
    """
    import scscore as scs

    train, test = task.cells(task.train), task.cells(task.test)
    test.obs = test.obs.drop(columns=task.condition)  # the label cannot leak
    if task.kind == "protein":
        add_clr(train)
        add_clr(test)
    start = time.perf_counter()
    model = fit_model(task, train, seed=seed)
    fit_seconds = time.perf_counter() - start
    found = {}
    for name in ("own", "adapted") if adapt else ("own",):
        start = time.perf_counter()
        if name == "adapted":
            model = scs.tl.adapt(test, model, batch_key=task.group, progress=False)
        scs.tl.classify(test, model, rng=seed, progress=False)
        found[name] = _result(task, model, test, fit_seconds, time.perf_counter() - start)
    return found


def _result(task: Task, model: ScoreModel, test: AnnData, fit_seconds: float, predict_seconds: float) -> ScscoreResult:
    order = [str(c) for c in model.classes]
    if sorted(order) != task.classes:
        raise ValueError(f"the model's classes {order} are not the task's {task.classes}")
    columns = [order.index(c) for c in task.classes]
    posterior = np.asarray(test.obsm["scscore_posterior"], dtype=np.float64)
    in_set = test.obsm["scscore_prediction_set"][:, columns]
    sets = {
        "coverage": float(in_set[np.arange(len(in_set)), task.codes(task.test)].mean()),
        "set_size": float(in_set.sum(1).mean()),
        "rejected": float((test.obs["scscore_label"] == "unknown").mean()),
    }
    return ScscoreResult(posterior[:, columns], fit_seconds, predict_seconds, sets)
