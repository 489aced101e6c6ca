import logging

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

import scscore as scs

CLASSES = ["B", "T/NK", "αβ"]


def cells(n=400, classes=CLASSES, seed=0, key="scscore"):
    """Random posteriors, labels drawn from a sharper version of them, so that the confidence is too low."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, len(classes)))
    posterior = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    sharper = posterior**2 / (posterior**2).sum(1, keepdims=True)
    y = (rng.random((n, 1)) > sharper.cumsum(1)).sum(1).clip(max=len(classes) - 1)
    adata = AnnData(np.zeros((n, 1), dtype=np.float32))
    adata.obs["truth"] = pd.Categorical.from_codes(y, categories=classes)
    store(adata, posterior, classes, key)
    return adata


def store(adata, posterior, classes, key):
    adata.obsm[f"{key}_posterior"] = posterior.astype(np.float32)
    adata.uns[key] = {"classes": np.array(classes, dtype=object)}


def expected(adata, n_bins, key="scscore"):
    """Points and scores by scikit-learn."""
    posterior = adata.obsm[f"{key}_posterior"].astype(np.float64)
    classes = list(adata.uns[key]["classes"])
    y = np.array([classes.index(name) for name in adata.obs["truth"]])
    correct, confidence = posterior.argmax(1) == y, posterior.max(1)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=n_bins)
    share = np.histogram(confidence, np.linspace(0, 1, n_bins + 1))[0] / len(y)
    ece = (share[share > 0] * np.abs(accuracy - mean)).sum()
    nll = log_loss(y, posterior / posterior.sum(1, keepdims=True), labels=range(len(classes)))
    brier = np.square(posterior - np.eye(len(classes))[y]).sum(1).mean()
    return mean, accuracy, share, f"ECE {ece:.3f}, NLL {nll:.3f}, Brier {brier:.3f}"


def points(ax, i=0):
    return ax.containers[i].lines[0].get_xydata().T


def shares(ax):
    return [patch.get_data().values for patch in ax.child_axes[0].patches]


@pytest.mark.parametrize("n_bins", [1, 7, 15])
def test_against_scikit_learn(n_bins):
    adata = cells()
    ax = scs.pl.reliability(adata, "truth", n_bins=n_bins, show=False)
    mean, accuracy, share, scores = expected(adata, n_bins)
    np.testing.assert_allclose(points(ax), [mean, accuracy], rtol=1e-6)
    np.testing.assert_allclose(shares(ax)[0], share)
    assert ax.get_title() == scores


def test_intervals_are_those_of_scipy():
    adata = cells(60)
    ax = scs.pl.reliability(adata, "truth", n_bins=5, show=False)
    _, accuracy, share, _ = expected(adata, 5)
    n = np.round(60 * share[share > 0]).astype(int)
    ends = np.array([segment[:, 1] for segment in ax.containers[0].lines[2][0].get_segments()])
    for k, (low, high) in enumerate(ends):
        interval = binomtest(round(accuracy[k] * n[k]), n[k]).proportion_ci(method="wilson")
        np.testing.assert_allclose([low, high], [interval.low, interval.high], atol=1e-6)
    assert len(ends) == len(n) > 2


def test_a_perfect_and_a_useless_classifier():
    adata = cells(3)
    adata.obs["truth"] = pd.Categorical(CLASSES)
    store(adata, np.eye(3), CLASSES, "scscore")
    ax = scs.pl.reliability(adata, "truth", show=False)
    np.testing.assert_allclose(points(ax), [[1], [1]])
    assert ax.get_title() == "ECE 0.000, NLL 0.000, Brier 0.000"
    store(adata, np.eye(3)[[1, 2, 0]], CLASSES, "scscore")
    ax = scs.pl.reliability(adata, "truth", show=False)
    np.testing.assert_allclose(points(ax), [[1], [0]])
    assert ax.get_title() == "ECE 1.000, NLL 20.723, Brier 2.000"


def test_the_label_column_does_not_matter(classified):
    adata = classified(3)
    before = scs.pl.reliability(adata, "class", show=False)
    adata.obs["scscore_label"] = pd.Categorical(["unknown"] * adata.n_obs)
    after = scs.pl.reliability(adata, "class", show=False)
    np.testing.assert_array_equal(points(before), points(after))
    assert before.get_title() == after.get_title()


def test_cells_without_a_known_class_are_left_out_and_counted(caplog):
    adata = cells()
    kept = adata[10:].copy()
    truth = adata.obs["truth"].astype(object)
    truth.iloc[:4], truth.iloc[4:10] = None, "plasma cell"
    adata.obs["truth"] = truth
    with caplog.at_level(logging.INFO, logger="scscore"):
        ax = scs.pl.reliability(adata, "truth", show=False)
    assert "10 of 400 cells left out: 4 without a label in obs['truth'], 6 with one" in caplog.text
    assert "(plasma cell)" in caplog.text
    assert ax.get_title() == expected(kept, 15)[3]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="scscore"):
        scs.pl.reliability(kept, "truth", show=False)
    assert not caplog.text


def test_a_class_without_labelled_cells():
    adata = cells()
    adata = adata[adata.obs["truth"] != "T/NK"].copy()
    ax = scs.pl.reliability(adata, "truth", show=False)
    mean, accuracy, _, scores = expected(adata, 15)
    np.testing.assert_allclose(points(ax), [mean, accuracy], rtol=1e-6)
    assert ax.get_title() == scores


def test_classifications_are_compared_on_the_cells_that_all_know():
    adata = cells()
    sharper = adata.obsm["scscore_posterior"][:, :2] ** 2
    store(adata, sharper / sharper.sum(1, keepdims=True), CLASSES[:2], "two")
    both = adata[adata.obs["truth"] != "αβ"].copy()
    scores = [expected(both, 15, key)[3] for key in ("scscore", "two")]
    named = {"as fitted": "scscore", "of two classes": "two"}
    for keys, names in ((named, list(named)), (["scscore", "two"], ["scscore", "two"])):
        ax = scs.pl.reliability(adata, "truth", key=keys, show=False)
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert texts == [f"{name}: {score}" for name, score in zip(names, scores, strict=True)]
        assert not ax.get_title()
        for i, key in enumerate(("scscore", "two")):
            np.testing.assert_allclose(points(ax, i), expected(both, 15, key)[:2], rtol=1e-6)
            np.testing.assert_allclose(shares(ax)[i], expected(both, 15, key)[2])


def test_bad_input(classified):
    adata = classified(3)
    with pytest.raises(KeyError, match=r"obsm\['mine_posterior'\] is missing \(key='mine'\): run scscore.tl.classify"):
        scs.pl.reliability(adata, "class", key="mine")
    with pytest.raises(KeyError, match=r"obsm\['mine_posterior'\] is missing"):
        scs.pl.reliability(adata, "class", key=["scscore", "mine"])
    with pytest.raises(KeyError, match="condition='type' is not a column"):
        scs.pl.reliability(adata, "type")
    with pytest.raises(ValueError, match="condition='scscore_entropy' is continuous"):
        scs.pl.reliability(adata, "scscore_entropy")
    adata.obs["other"] = pd.Categorical(["x"] * adata.n_obs)
    with pytest.raises(ValueError, match=r"no cell has a label in obs\['other'\] that the model knows.*\['x'\]"):
        scs.pl.reliability(adata, "other")
    for n_bins in (0, 1.5, True):
        with pytest.raises(ValueError, match="n_bins must be a positive integer"):
            scs.pl.reliability(adata, "class", n_bins=n_bins)
    with pytest.raises(ValueError, match="between 1 and 8 classifications, got 0"):
        scs.pl.reliability(adata, "class", key=[])
    with pytest.raises(ValueError, match="between 1 and 8 classifications, got 9"):
        scs.pl.reliability(adata, "class", key=dict.fromkeys("abcdefghi", "scscore"))
    with pytest.raises(TypeError, match="key must be a key_added"):
        scs.pl.reliability(adata, "class", key={"scscore": 1})


def test_nothing_is_cut_and_nothing_touches():
    adata = cells()
    figure = scs.pl.reliability(adata, "truth", key={f"a long name {i}": "scscore" for i in range(8)}, return_fig=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    inside, box = figure.bbox, ax.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
    boxes = [part.get_window_extent() for part in (ax, ax.child_axes[0], ax.get_legend())]
    assert not any(Bbox.intersection(a, b) for a, b in zip(boxes, boxes[1:], strict=False))
    figure = scs.pl.reliability(adata, "truth", return_fig=True)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    assert ax.title.get_window_extent().y0 >= ax.child_axes[0].get_window_extent().y1


def test_given_axes():
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    assert scs.pl.reliability(cells(), "truth", ax=axes[0]) is axes[0]
    assert figure.get_size_inches().tolist() == [9, 4]
    assert not axes[1].has_data()
