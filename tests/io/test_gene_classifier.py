"""The classifier of single genes: against scikit-learn, in the encoder, and with genes that are missing."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from sklearn.linear_model import LogisticRegression

from scscore.io.gene_classifier import add_classifiers, fit_gene_classifier, most_variable
from scscore.io.representation import GeneClassifier, PCAEncoder


def expression(n: int = 600, n_genes: int = 40, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    """Log expression of three classes; gene 0, which varies little, tells the last two apart, the others the first."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    x = np.maximum(rng.normal(size=(n, n_genes)) * rng.uniform(0.5, 2, n_genes) + (y == 0)[:, None], 0)
    x[:, 0] = 0.02 * np.maximum(rng.normal(size=n) + 3 * (y == 2), 0)
    return sp.csr_matrix(x), y


def test_it_is_the_logistic_regression_of_scaled_genes():
    x, y = expression()
    found = fit_gene_classifier(x, y, 3)
    dense = x.toarray()
    scaled = (dense - dense.mean(0)) / (dense.std(0) + np.median(dense.std(0)))
    scaled /= np.sqrt(scaled.var(0).mean())
    truth = LogisticRegression(C=1 / (0.1 * len(y)), tol=1e-8, max_iter=5000).fit(scaled, y)
    expected = truth.decision_function(scaled) - np.log(np.bincount(y) / len(y))
    scores = found.scores(x)
    assert np.abs((scores - scores[:, :1]) - (expected - expected[:, :1])).max() < 0.02


def test_no_more_than_the_most_variable_genes_have_a_weight():
    rng = np.random.default_rng(1)
    y = rng.integers(2, size=200)
    x = sp.csr_matrix(np.log1p(rng.poisson(rng.gamma(0.3, 1, 2500), size=(200, 2500)).astype(np.float32)))
    found = fit_gene_classifier(x, y, 2)
    np.testing.assert_array_equal(found.genes, most_variable(x, 2000))
    np.testing.assert_allclose(found.scores(x), x @ found.dense(2500) + found.bias)
    np.testing.assert_allclose(found.weights.sum(1), 0, atol=1e-12)  # two classes: one log-ratio


def encoder_with_classifier() -> tuple[PCAEncoder, sp.csr_matrix, np.ndarray]:
    x, y = expression()
    names = np.array([f"g{i}" for i in range(x.shape[1])])
    encoder = PCAEncoder.fit(x, names, n_features=5, kind="log")
    return encoder.with_classifier(fit_gene_classifier(x, y, 3)), x, y


def test_scores_stand_behind_the_components():
    encoder, x, _ = encoder_with_classifier()
    plain = PCAEncoder(encoder.genes, encoder.mean, encoder.share, encoder.components, target_sum=1e4, kind="log")
    points = encoder.encode(x)
    np.testing.assert_allclose(points[:, :5], plain.encode(x), atol=1e-9)
    np.testing.assert_allclose(points[:, 5:], encoder.classifier.scores(x), atol=1e-6)  # expression is float32


@pytest.mark.parametrize("unit_variance", [False, True])
def test_scores_of_components_are_those_of_the_reconstruction(unit_variance: bool):
    x, y = expression()
    encoder = PCAEncoder.fit(
        x, np.arange(x.shape[1]).astype(str), n_features=5, kind="log", unit_variance=unit_variance
    )
    encoder = encoder.with_classifier(fit_gene_classifier(x, y, 3))
    points, found = encoder.encode(x)[:, :5], encoder.score_map
    expected = encoder.classifier.scores(encoder.decode(points))
    np.testing.assert_allclose(points @ found.slopes + found.bias, expected, atol=1e-9)


def test_a_gene_that_is_missing_counts_as_average():
    encoder, x, _ = encoder_with_classifier()
    kept = np.delete(np.arange(x.shape[1]), [0, 7])
    query = AnnData(x[:, kept], var={"name": [0] * len(kept)})
    query.var_names = encoder.genes[kept]
    filled = x.toarray()
    filled[:, [0, 7]] = encoder.mean[[0, 7]]
    with pytest.warns(UserWarning, match="missing"):
        points = encoder.transform(query)
    np.testing.assert_allclose(points[:, 5:], encoder.classifier.scores(filled), atol=1e-6)


def test_the_classifier_of_a_split_has_not_seen_the_held_out_cells():
    """Labels without any relation to the genes: scores tell those of training cells, and nothing of new ones."""
    rng = np.random.default_rng(2)
    x, y = sp.csr_matrix(rng.normal(size=(300, 150)).clip(0)), rng.integers(2, size=300)
    encoder = PCAEncoder.fit(x, np.arange(150).astype(str), n_features=5, kind="log")
    points, rows = encoder.encode(x), np.arange(300)
    splits = [(rows[:200], rows[200:])]
    of_splits = [(points[:200], points[200:])] * 2
    whole, all_points, found = add_classifiers(encoder, points, of_splits, x, y, splits)
    correct = [(part[:, 5:].argmax(1) == y[own]).mean() for part, own in zip(found[0], splits[0], strict=True)]
    assert correct[0] > 0.8 and abs(correct[1] - 0.5) < 0.15
    assert all_points.shape == (300, 7) and isinstance(whole.classifier, GeneClassifier)
    assert found[1][0].shape == (200, 5)  # a split that is not watched


def test_values_that_are_no_logarithms_are_ranked_by_variance():
    """Counts per million: their exponential is infinite."""
    rng = np.random.default_rng(3)
    x = sp.csr_matrix((1e4 * rng.gamma(0.3, 1, (150, 2300)) * rng.uniform(0, 1, 2300)).astype(np.float32))
    kept = most_variable(x, 2000)
    variance = x.toarray().astype(np.float64).var(0)
    assert variance[kept].min() >= np.delete(variance, kept).max()
    assert np.isfinite(fit_gene_classifier(x, rng.integers(2, size=150), 2).weights).all()
