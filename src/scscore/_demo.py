"""The demo of the command line: real blood cells, labelled and compared with logistic regression."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scscore import datasets, pl, tl
from scscore.core.calibration import expected_calibration_error, negative_log_likelihood
from scscore.io.keys import UNKNOWN, Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

Matrix = NDArray[np.float64]


def run(directory: Path, *, say: Callable[[str], object]) -> None:
    """Fit on the training cells of :func:`scscore.datasets.pbmc`, classify the others, compare, and write what came out.

    Parameters
    ----------
    directory
        Where ``pbmc_classified.h5ad``, ``pbmc.scscore`` and six figures go.
    say
        Called with every line of text for the user.
    """
    from sklearn.metrics import f1_score

    directory.mkdir(parents=True, exist_ok=True)
    adata = datasets.pbmc()
    train, test = (adata[adata.obs["split"] == part].copy() for part in ("train", "test"))
    say(f"{train.n_obs} blood cells of {train.obs['cell_type'].nunique()} types to learn from, {test.n_obs} to label")
    model = tl.fit(train, "cell_type", progress=False)
    tl.classify(test, model, progress=False)

    y_train, y_test = (np.searchsorted(model.classes, part.obs["cell_type"].astype(str)) for part in (train, test))
    x_train, x_test = model.representation.transform(train), model.representation.transform(test)
    posteriors = {
        "scscore": test.obsm[Keys().posterior],
        "logistic regression": logistic_regression(x_train, y_train, x_test),
    }
    say(f"\nThe {test.n_obs} held-out cells (NLL in nats; ECE over 15 bins; both: lower is better)\n")
    say(f"{'':20s}{'accuracy':>10s}{'macro-F1':>10s}{'NLL':>10s}{'ECE':>10s}")
    for name, posterior in posteriors.items():
        label = posterior.argmax(1)
        row = (
            np.mean(label == y_test),
            f1_score(y_test, label, labels=np.unique(y_test), average="macro", zero_division=0),
            negative_log_likelihood(posterior, y_test),
            expected_calibration_error(posterior, y_test),
        )
        say(f"{name:20s}" + "".join(f"{value:10.3f}" for value in row))
    error = np.sqrt(0.25 / test.n_obs)
    say(
        f"\n(most probable class, for both; {int((test.obs[Keys().label] == UNKNOWN).sum())} cells are labelled {UNKNOWN!r})"
        f"\nWith {test.n_obs} cells an accuracy has a standard error of up to {error:.2f}: small differences mean nothing."
    )
    say(
        f"Logistic regression saw the same {x_train.shape[1]} principal components, its C chosen by cross-validation.\n"
    )

    written: dict[str, Any] = {
        "umap.png": _umap(test),  # first: it stores the colours that the others use
        "training.png": pl.training(train, show=False, return_fig=True),
        "confusion.png": pl.confusion(test, "cell_type", show=False, return_fig=True),
        "posterior.png": pl.posterior(test, groupby="cell_type", show=False, return_fig=True),
        "reliability.png": pl.reliability(test, "cell_type", show=False, return_fig=True),
        "novelty.png": pl.novelty(test, "cell_type", show=False, return_fig=True),
    }
    for name, figure in written.items():
        figure.savefig(directory / name, dpi=150, bbox_inches="tight")
    model.save(directory / "pbmc.scscore", overwrite=True)
    test.write_h5ad(directory / "pbmc_classified.h5ad")
    say("wrote " + ", ".join(str(directory / name) for name in ["pbmc_classified.h5ad", "pbmc.scscore", *written]))


def logistic_regression(x: Matrix, y: NDArray[np.int64], x_test: Matrix) -> Matrix:
    """Posterior of multinomial logistic regression, its penalty chosen by the log loss of 5-fold cross-validation.

    Parameters
    ----------
    x, y
        Training cells, ``(n, n_features)``, and their classes 0, 1, ... (each with at least five cells).
    x_test
        Cells to classify, ``(m, n_features)``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    scale = x.std()  # one number: the components keep their relative variance
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    def loss(penalty: float) -> float:
        estimator = LogisticRegression(C=penalty, max_iter=2000)
        return negative_log_likelihood(cross_val_predict(estimator, x / scale, y, cv=folds, method="predict_proba"), y)

    best = min(np.logspace(-3, 2, 11), key=loss)
    return np.asarray(LogisticRegression(C=best, max_iter=2000).fit(x / scale, y).predict_proba(x_test / scale))


def _umap(test: AnnData) -> Figure:
    """True label, predicted label and confidence on scanpy's UMAP."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    keys = Keys()
    figure, axes = plt.subplots(1, 3, figsize=(17, 4), layout="constrained")
    palette = dict(zip(test.obs["cell_type"].cat.categories, sc.pl.palettes.default_20, strict=False))
    palette |= {UNKNOWN: "lightgray"}
    options = {"size": 60, "frameon": False, "show": False}
    sc.pl.umap(test, color="cell_type", palette=palette, title="true label", ax=axes[0], legend_loc=None, **options)
    sc.pl.umap(test, color=keys.label, palette=palette, title="predicted label", ax=axes[1], **options)
    sc.pl.umap(test, color=keys.confidence, title="confidence", vmin=0, vmax=1, ax=axes[2], **options)
    return figure
