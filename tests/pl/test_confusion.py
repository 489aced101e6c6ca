import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

import scscore as scs

NAMES = ["T/NK", "αβ T", "B"]


def labelled(truth, guess, categories=None, classes=None):
    adata = AnnData(np.zeros((len(truth), 1)))
    adata.obs["truth"] = pd.Categorical(truth, categories=categories)
    adata.obs["scscore_label"] = pd.Categorical(guess)
    adata.uns["scscore"] = {"classes": np.array(sorted(set(guess)) if classes is None else classes, dtype=object)}
    return adata


def names_of(labels):
    return [label.get_text() for label in labels]


def bar_label(ax):
    return next(child.get_ylabel() for child in ax.child_axes if child.get_ylabel())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("n_classes", [3, 60])
def test_against_scikit_learn(classified, n_classes, normalize):
    adata = classified(n_classes)
    ax = scs.pl.confusion(adata, "class", normalize=normalize, show=False)
    names = adata.obs["class"].cat.categories.tolist()
    truth, guess = adata.obs["class"].astype(str), adata.obs["scscore_label"].astype(str)
    expected = confusion_matrix(truth, guess, labels=names, normalize="true" if normalize else None)
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    assert names_of(ax.get_xticklabels()) == names
    assert names_of(ax.get_yticklabels()) == [f"{name} (20)" for name in names]
    accuracy, macro_f1 = accuracy_score(truth, guess), f1_score(truth, guess, average="macro")
    assert ax.get_title() == f"accuracy {accuracy:.3f}, macro-F1 {macro_f1:.3f}"
    form = ".2f" if normalize else ".0f"
    texts = [format(value, form) if value else "" for value in expected.ravel()] if n_classes == 3 else []
    assert [text.get_text() for text in ax.texts] == texts
    assert bar_label(ax) == ("fraction of row" if normalize else "cells")


def test_order_and_unlabelled_cells():
    truth = ["B", "B", "αβ T", "T/NK", "T/NK", None, "B"]
    guess = ["B", "αβ T", "αβ T", "T/NK", "B", "B", "B"]
    ax = scs.pl.confusion(labelled(truth, guess, categories=["unused", *NAMES]), "truth", normalize=False, show=False)
    assert names_of(ax.get_xticklabels()) == NAMES  # the order of the categories, not of the model
    assert names_of(ax.get_yticklabels()) == ["T/NK (2)", "αβ T (1)", "B (3)"]
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 0, 1], [0, 1, 0], [0, 1, 2]])
    assert ax.get_title().startswith("accuracy 0.667")


def test_labels_of_one_side_come_last():
    truth = ["novel", "a", "b", "b", "never"]
    guess = ["unknown", "a", "b", "d", "b"]
    adata = labelled(truth, guess, categories=["novel", "b", "never", "a"], classes=["a", "b", "d", "never", "rest"])
    ax = scs.pl.confusion(adata, "truth", normalize=False, show=False)
    assert names_of(ax.get_yticklabels()) == ["b (2)", "never (1)", "a (1)", "novel (1)"]
    assert names_of(ax.get_xticklabels()) == ["b", "never", "a", "d", "unknown"]
    expected = [[1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(ax.images[0].get_array(), expected)
    macro_f1 = np.mean([0.5, 0, 1, 0])
    assert ax.get_title() == f"accuracy 0.400, macro-F1 {macro_f1:.3f}"


def test_duplicated_cell_names_and_whole_numbers():
    adata = labelled([10, 2, 2, 10], ["10", "2", "10", "10"])
    adata.obs_names = ["x", "x", "y", "y"]
    ax = scs.pl.confusion(adata, "truth", show=False)
    assert names_of(ax.get_xticklabels()) == ["2", "10"]
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0.5, 0.5], [0, 1]])


def test_bad_input(classified):
    adata = classified(3)
    with pytest.raises(KeyError, match=r"obs\['mine_label'\] is missing \(key='mine'\): run scscore.tl.classify first"):
        scs.pl.confusion(adata, "class", key="mine")
    with pytest.raises(KeyError, match="condition='type' is not a column of adata.obs; available"):
        scs.pl.confusion(adata, "type")
    with pytest.raises(ValueError, match="condition='scscore_entropy' is continuous"):
        scs.pl.confusion(adata, "scscore_entropy")
    with pytest.raises(ValueError, match="no cell has both a known label"):
        scs.pl.confusion(labelled(["a", None], [None, "a"], classes=["a"]), "truth")
