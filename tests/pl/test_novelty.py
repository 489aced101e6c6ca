import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

import scscore as scs

CLASSES = ["a", "b/β"]


def cells(typicality, confidence, best, groups, reject=0.01):
    """Two classes; `best` is the index of the most probable one."""
    confidence, best = np.asarray(confidence, dtype=np.float32), np.asarray(best)
    adata = AnnData(np.zeros((len(best), 1), dtype=np.float32))
    adata.obs["group"] = pd.Categorical(groups, categories=pd.unique(pd.Series(groups).dropna()))
    adata.obs["scscore_typicality"] = np.asarray(typicality, dtype=np.float32)
    labels = np.where(np.asarray(typicality) < reject, "unknown", np.array(CLASSES)[best])
    adata.obs["scscore_label"] = pd.Categorical(labels)
    adata.obsm["scscore_posterior"] = np.where(
        np.arange(2) == best[:, None], confidence[:, None], 1 - confidence[:, None]
    )
    adata.uns["scscore"] = {"classes": np.array(CLASSES, dtype=object), "params": json.dumps({"reject": reject})}
    return adata


@pytest.fixture
def some():
    """Group "known" holds clear cells, "novel" untypical ones, "between" ambiguous ones; one cell has no group."""
    rng = np.random.default_rng(0)
    typicality = np.concatenate(
        [np.linspace(0.02, 1, 50), np.geomspace(1e-3, 0.2, 40), rng.uniform(0.02, 1, 30), [1e-3]]
    )
    confidence = np.concatenate([np.full(50, 0.99), rng.uniform(0.6, 1, 40), rng.uniform(0.5, 0.89, 30), [0.7]])
    groups = ["known"] * 50 + ["novel"] * 40 + ["between"] * 30 + [None]
    return cells(typicality, confidence, rng.integers(0, 2, 121), groups)


def bars(ax):
    """Widths of the bars at the right, one row per name."""
    right = ax.child_axes[0]
    return {box.get_label(): np.array([bar.get_width() for bar in box]) for box in right.containers}


def texts(labels):
    return [label.get_text() for label in labels]


def test_shares(some):
    ax = scs.pl.novelty(some, "group", show=False)
    groups, typicality = some.obs["group"], some.obs["scscore_typicality"].astype(float)
    novel = typicality < 0.01
    ambiguous = ~novel & (some.obsm["scscore_posterior"].max(1) < 0.9)
    found = bars(ax)
    for name, flags in (("novel", novel), ("ambiguous", ambiguous), ("clear", ~novel & ~ambiguous)):
        wanted = flags.groupby(groups, observed=True).mean()[["known", "novel", "between"]]
        np.testing.assert_allclose(found[name], wanted, atol=1e-12)
    assert found["novel"].tolist() == [0, novel[50:90].mean(), 0] and 0.3 < found["novel"][1] < 0.6
    assert found["ambiguous"].tolist()[::2] == [0, 1]
    assert texts(ax.get_yticklabels()) == ["known (50)", "novel (40)", "between (30)"]
    assert texts(ax.child_axes[0].get_yticklabels()) == ["0.0 %", f"{100 * novel[50:90].mean():.1f} %", "0.0 %"]


def test_the_limit_of_ambiguity_is_an_argument(some):
    strict, loose = (bars(scs.pl.novelty(some, "group", confidence=c, show=False)) for c in (1.0, 0.0))
    np.testing.assert_allclose(strict["ambiguous"], 1 - strict["novel"])
    np.testing.assert_allclose(loose["clear"], 1 - loose["novel"])


def test_boxes_whiskers_and_single_cells(some):
    ax = scs.pl.novelty(some, "group", show=False)
    typicality = some.obs["scscore_typicality"].to_numpy().astype(float)
    parts = [typicality[:50], typicality[50:90], typicality[90:120]]
    for k, part in enumerate(parts):
        low, first, median, third, high = np.quantile(part, [0.05, 0.25, 0.5, 0.75, 0.95])
        box = ax.containers[0][k]
        np.testing.assert_allclose([box.get_x(), box.get_x() + box.get_width()], [first, third])
        np.testing.assert_allclose(ax.collections[0].get_segments()[k], [[low, k], [high, k]])
        np.testing.assert_allclose(ax.lines[0].get_xydata()[k], [median, k])
    rejected = ax.collections[1].get_offsets()
    np.testing.assert_allclose(np.sort(rejected[:, 0]), np.sort(parts[1][parts[1] < 0.01]))
    assert np.abs(rejected[:, 1] - 1).max() < 0.5
    left, right = ax.get_xlim()
    assert left < typicality.min() and right > 1


def test_threshold(some):
    ax = scs.pl.novelty(some, "group", show=False)
    assert ax.lines[1].get_xdata() == [0.01, 0.01] and texts(ax.texts) == ["unknown below 0.01"]
    some.uns["scscore"]["params"] = json.dumps({"reject": 0.0})
    ax = scs.pl.novelty(some, "group", show=False)
    assert len(ax.lines) == 1 and not ax.texts
    assert bars(ax)["novel"].tolist() == [0, 0, 0]


def test_a_cell_at_the_threshold_is_kept():
    adata = cells([0.03, 0.0299, 0.5, 1 / 301], [1, 1, 1, 1], [0, 0, 0, 0], ["x"] * 4, reject=0.03)
    assert bars(scs.pl.novelty(adata, "group", show=False))["novel"].tolist() == [0.5]


def test_the_shares_are_those_of_classify():
    toy = scs.datasets.toy_gaussians(n_obs=300)
    model = scs.tl.fit(toy[:200].copy(), "class", use_rep="X_toy", max_epochs=1, progress=False)
    query = toy[200:].copy()
    query.obsm["X_toy"][:20] += 6
    scs.tl.classify(query, model, n_steps=4, n_paths=2, reject=0.1, progress=False)
    unknown = (query.obs["scscore_label"] == "unknown").groupby(query.obs["class"], observed=True).mean()
    assert unknown.max() > 0.1
    np.testing.assert_allclose(bars(scs.pl.novelty(query, "class", show=False))["novel"], unknown)


def test_most_probable_class_of_unknown_cells_and_colors():
    adata = cells([1e-3, 0.5, 0.6, 2e-3], [0.95] * 4, [1, 0, 0, 1], ["x"] * 4)
    ax = scs.pl.novelty(adata, show=False)
    assert texts(ax.get_yticklabels()) == ["a (2)", "b/β (2)"]
    assert bars(ax)["novel"].tolist() == [0, 1]
    assert ax.get_ylabel() == "most probable class (cells)"
    # no cell is labelled b/β, so that the colours of the labels do not have one for it
    adata.uns["scscore_label_colors"] = ["#111111", "#222222"]
    assert len({to_hex(box.get_facecolor()) for box in scs.pl.novelty(adata, show=False).containers[0]}) == 2
    adata.uns["group_colors"] = ["#123456"]
    assert to_hex(scs.pl.novelty(adata, "group", show=False).containers[0][0].get_facecolor()) == "#123456"


def test_missing_slots_name_the_fix(some):
    with pytest.raises(KeyError, match=r"obsm\['mine_posterior'\] is missing \(key='mine'\): run scscore.tl.classify"):
        scs.pl.novelty(some, "group", key="mine")
    with pytest.raises(KeyError, match="groupby='type' is not a column"):
        scs.pl.novelty(some, "type")
    with pytest.raises(ValueError, match="groupby='scscore_typicality' is continuous"):
        scs.pl.novelty(some, "scscore_typicality")
    for confidence in (-0.1, 1.1):
        with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
            scs.pl.novelty(some, "group", confidence=confidence)
    without = some.copy()
    del without.obs["scscore_typicality"]
    with pytest.raises(KeyError, match=r"obs\['scscore_typicality'\] is missing.*run scscore.tl.calibrate before"):
        scs.pl.novelty(without, "group")
    some.uns["scscore"]["params"] = "{}"
    with pytest.raises(KeyError, match="names no threshold 'reject'.*run scscore.tl.classify again"):
        scs.pl.novelty(some, "group")


@pytest.mark.parametrize("n_groups", [1, 3, 60])
def test_nothing_is_cut_and_no_labels_touch(n_groups):
    rng = np.random.default_rng(0)
    n = 20 * n_groups
    groups = [f"cell type number {i % n_groups}" for i in range(n)]
    adata = cells(rng.uniform(0, 1, n), rng.uniform(0.5, 1, n), rng.integers(0, 2, n), groups)
    figure = scs.pl.novelty(adata, "group", return_fig=True)
    assert isinstance(figure, Figure) and max(figure.get_size_inches()) < 14
    figure.draw_without_rendering()
    ax = figure.axes[0]
    box = ax.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    right = ax.child_axes[0]
    for labels in (ax.get_yticklabels(), right.get_yticklabels(), [*ax.get_xticklabels(), *right.get_xticklabels()]):
        assert all(label.get_fontsize() >= 7 for label in labels)
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert not any(Bbox.intersection(a, b) for a, b in zip(boxes, boxes[1:], strict=False))
    last, first = ax.get_xticklabels()[-1], right.get_xticklabels()[0]
    assert not Bbox.intersection(last.get_window_extent(), first.get_window_extent())
    assert not Bbox.intersection(ax.texts[0].get_window_extent(), right.get_legend().get_window_extent())


def test_given_axes_and_the_data(some):
    before = some.copy()
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    assert scs.pl.novelty(some, "group", ax=axes[0]) is axes[0]
    assert figure.get_size_inches().tolist() == [9, 4]
    assert not axes[1].has_data()
    assert some.obs.equals(before.obs) and set(some.uns) == set(before.uns)
