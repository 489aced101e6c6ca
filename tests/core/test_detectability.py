"""Rank statistics against scikit-learn and permutations, and the tree of perturbations."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from sklearn.metrics import roc_auc_score

from scscore.core.detectability import merge_tree, pairwise_separation, separation


def test_separation_is_the_auroc_and_a_permutation_test():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.4, 1, 40).round(1), rng.normal(0, 1, 60).round(1)  # with ties
    area, p = separation(positive, negative)
    truth = np.repeat([1, 0], [40, 60])
    score = np.concatenate([positive, negative])
    assert area == pytest.approx(roc_auc_score(truth, score))
    permuted = [roc_auc_score(rng.permutation(truth), score) for _ in range(4000)]
    assert p == pytest.approx((np.array(permuted) >= area).mean(), abs=0.01)
    assert np.isnan(separation(positive, negative[:0])).all()


def test_pairs_and_tree():
    """Classes 0 and 1 are the same, 2 is another: they merge in this order."""
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2, -1], 200)
    means = np.array([0.0, 0.0, 3.0])
    x = means[np.maximum(y, 0)] + rng.normal(size=len(y))
    log_likelihood = -0.5 * (x[:, None] - means) ** 2 + 1e-6 * rng.normal(size=(len(y), 3))
    area, p = pairwise_separation(log_likelihood, y)
    np.testing.assert_array_equal(area, area.T)
    assert (np.diag(area) == 0.5).all()
    assert area[0, 2] == pytest.approx(0.983, abs=0.01)  # Phi(3 / sqrt 2)
    assert p[0, 1] > 0.01 > p[0, 2]
    groups = fcluster(merge_tree(area), 2, "maxclust")
    assert groups[0] == groups[1] != groups[2]
