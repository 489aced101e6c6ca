"""Real cells of a donor that the model has not seen, beside logistic regression on the same components."""

from pathlib import Path

import anndata as ad
import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import log_loss

import scscore as scs


def test_labels_and_probabilities_of_a_new_donor(shared_data: Path):
    cells = ad.read_h5ad(shared_data / "kang_ifnb_labelled" / "kang_ifnb_labelled.h5ad")
    train, test = (cells[cells.obs["split"] == part].copy() for part in ("train", "test"))
    model = scs.tl.fit(train, "cell_type", progress=False)
    scs.tl.classify(test, model, progress=False)

    truth = test.obs["cell_type"].astype(str).to_numpy()
    posterior = test.obsm["scscore_posterior"].astype(np.float64)
    x_train, x_test = (model.representation.transform(part) for part in (train, test))
    scale = x_train.std()
    regression = LogisticRegressionCV(
        Cs=np.logspace(-3, 1, 5), scoring="neg_log_loss", max_iter=2000, l1_ratios=(0,), use_legacy_attributes=False
    )
    regression.fit(x_train / scale, train.obs["cell_type"].astype(str))
    other = regression.predict_proba(x_test / scale)

    accuracy = (model.classes[posterior.argmax(1)] == truth).mean()
    assert accuracy > (regression.classes_[other.argmax(1)] == truth).mean() - 0.02  # 602 cells: s.e. about 0.011
    posterior /= posterior.sum(1, keepdims=True)
    assert log_loss(truth, posterior, labels=model.classes) < 1.25 * log_loss(truth, other, labels=regression.classes_)
