"""The plots of attributions: what they draw is what is stored."""

import json
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

import scscore as scs

PER_CLASS = 8  # genes that speak for it
LOG_SNR = np.array([-5.0, -2.5, 0.0, 2.5])


def _attributed(n_classes: int, n_genes: int | None = None) -> AnnData:
    """Slots as ``tl.attribute`` writes them, with two cells per class; neighbouring pairs of classes are alike."""
    rng = np.random.default_rng(n_classes)
    n_genes = n_genes or PER_CLASS * n_classes + 40
    classes = [f"Class {i} of cells" for i in range(n_classes)]
    parts = rng.normal(scale=0.02, size=(2 * n_classes, n_genes))
    for cell in range(2 * n_classes):
        own, pair = cell // 2, cell // 4 * 2  # classes 2 i and 2 i + 1 share half their genes
        parts[cell, PER_CLASS * own : PER_CLASS * (own + 1)] += 0.5
        parts[cell, PER_CLASS * pair : PER_CLASS * pair + PER_CLASS // 2] += 0.4
    parts = parts.astype(np.float32)
    labels = np.repeat(classes, 2)
    adata = AnnData(
        np.zeros_like(parts),
        obs=pd.DataFrame(
            {"type": pd.Categorical(labels, categories=classes)}, index=[f"cell_{i}" for i in range(len(labels))]
        ),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)]),
    )
    pairs = parts.reshape(n_classes, 2, n_genes)
    mean = pairs.mean(1).T
    adata.varm["scscore_attribution"] = mean
    adata.varm["scscore_attribution_se"] = abs(pairs[:, 0] - pairs[:, 1]).T / 2
    adata.varm["scscore_attribution_presence"] = (mean * rng.uniform(0.2, 1.5, size=mean.shape)).astype(np.float32)
    baseline = rng.normal(size=n_classes)
    adata.obs["scscore_evidence"] = (parts.sum(1) + np.repeat(baseline, 2)).astype(np.float32)
    adata.obs["scscore_evidence_baseline"] = np.repeat(baseline, 2).astype(np.float32)
    adata.obs["scscore_target"] = pd.Categorical(labels, categories=classes)
    adata.layers["scscore_attribution"] = parts
    shares = rng.dirichlet(np.ones(len(LOG_SNR) + 1), size=mean.shape)
    adata.varm["scscore_attribution_levels"] = (mean[..., None] * shares).astype(np.float32)
    adata.obsm["X_umap"] = rng.normal(size=(len(labels), 2))
    adata.uns["scscore_attribution"] = {
        "classes": np.array(classes, dtype=object),
        "log_snr": LOG_SNR,
        "n_cells": np.full(n_classes, 2),
        "baseline": baseline,
        "params": json.dumps({"condition": "type", "reference": "rest", "target": "type"}),
    }
    return adata


@pytest.fixture
def attributed() -> Callable[..., AnnData]:
    return _attributed


PLOTS = {
    "heatmap": scs.pl.attribution_heatmap,
    "ranking": scs.pl.attribution_ranking,
    "cell": lambda adata, **kwargs: scs.pl.attribution_cell(adata, "cell_3", **kwargs),
    "levels": lambda adata, **kwargs: scs.pl.attribution_levels(adata, "Class 1 of cells", **kwargs),
    "embedding": lambda adata, **kwargs: scs.pl.attribution_embedding(adata, ["GENE1", "GENE9", "GENE3"], **kwargs),
}
LISTS = ("ranking", "embedding")  # of axes
GENES = [name for name in PLOTS if name != "embedding"]  # those that choose genes themselves


def _names(ax: Axes, axis: str) -> list[str]:
    return [label.get_text() for label in (ax.get_xticklabels() if axis == "x" else ax.get_yticklabels())]


def _classes_of(ax: Axes) -> list[str]:
    return [name.removesuffix(" (2)") for name in _names(ax, "y")]


# conventions


@pytest.fixture
def shown(monkeypatch) -> list[int]:
    calls: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    return calls


@pytest.fixture
def autoshow():
    before = sc.settings.autoshow
    yield
    sc.settings.autoshow = before


@pytest.mark.parametrize("name", PLOTS)
def test_show_and_return(name, attributed, shown, autoshow):
    plot, adata = PLOTS[name], attributed(3)
    sc.settings.autoshow = True
    assert plot(adata) is None
    assert plot(adata, show=True) is None
    assert len(shown) == 2
    axes = plot(adata, show=False)
    assert isinstance(axes[0] if name in LISTS else axes, Axes)
    assert isinstance(plot(adata, return_fig=True), Figure)
    sc.settings.autoshow = False
    assert plot(adata) is not None
    assert len(shown) == 2


@pytest.mark.parametrize("name", ["heatmap", "cell", "levels"])
def test_a_given_figure_keeps_its_size(name, attributed):
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    assert PLOTS[name](attributed(3), ax=axes[0]) is axes[0]
    assert figure.get_size_inches().tolist() == [9, 4]
    assert not axes[1].has_data()


@pytest.mark.parametrize("name", PLOTS)
def test_the_data_are_left_alone(name, attributed):
    adata, before = attributed(3), attributed(3)
    PLOTS[name](adata, show=False)
    assert set(adata.uns) == set(before.uns) and adata.obs.equals(before.obs) and adata.var.equals(before.var)
    assert (adata.varm["scscore_attribution"] == before.varm["scscore_attribution"]).all()


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("n_classes", [3, 60])
def test_nothing_is_cut_and_no_labels_touch(name, attributed, n_classes):
    adata = attributed(n_classes)
    kwargs = {} if name in ("heatmap", "embedding") else {"n_genes": 6}
    figure = PLOTS[name](adata, return_fig=True, **kwargs)
    figure.draw_without_rendering()
    boxes = []
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        boxes.append(box)
        for labels in (ax.get_yticklabels(), ax.get_xticklabels()):
            drawn = [label for label in labels if label.get_text()]
            assert all(label.get_fontsize() >= 7 for label in drawn)
            around = [label.get_window_extent() for label in drawn]
            if drawn and drawn[0].get_rotation() in (0, 90):
                assert not any(Bbox.intersection(a, b) for a, b in zip(around, around[1:], strict=False))
    assert figure.get_size_inches()[0] < 14.5
    if name == "ranking":
        assert len(boxes) == n_classes
        assert not any(Bbox.intersection(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    else:
        assert figure.get_size_inches()[1] < 14


@pytest.mark.parametrize("name", PLOTS)
def test_without_attributions(name, attributed):
    adata = attributed(3)
    with pytest.raises(KeyError, match=r"run scscore\.tl\.attribute"):
        PLOTS[name](adata, key="other")


@pytest.mark.parametrize("name", GENES)
def test_number_of_genes_is_positive(name, attributed):
    with pytest.raises(ValueError, match="n_genes must be a positive integer, got 0"):
        PLOTS[name](attributed(3), n_genes=0)


# heatmap


@pytest.mark.parametrize("kind", ["presence", "total", "absence"])
@pytest.mark.parametrize("n_classes", [3, 60])
def test_heatmap_draws_the_stored_values(attributed, kind, n_classes):
    adata = attributed(n_classes)
    ax = scs.pl.attribution_heatmap(adata, kind=kind, show=False)
    found = scs.get.attribution(adata)[_classes_of(ax), _names(ax, "x")]
    image = ax.images[0]
    expected = found.X if kind == "total" else found.layers[kind]
    np.testing.assert_array_equal(np.asarray(image.get_array()), expected)
    assert found.n_obs == n_classes
    largest = abs(expected).max()
    np.testing.assert_allclose(image.norm([-largest, 0, largest]), [0, 0.5, 1], atol=1e-6)  # centred on zero
    assert "against the rest" in ax.get_title()


def test_heatmap_has_the_strongest_genes_once_each_under_their_class(attributed):
    adata = attributed(6)
    ax = scs.pl.attribution_heatmap(adata, kind="total", n_genes=4, show=False)
    columns, classes = _names(ax, "x"), _classes_of(ax)
    found = scs.get.attribution(adata)[classes]
    top = np.argsort(-found.X, axis=1)[:, :4]
    assert len(columns) == len(set(columns))
    assert set(columns) == set(found.var_names[top.ravel()])
    owners = []
    for gene in columns:
        j = found.var_names.get_loc(gene)
        choosing = [row for row in range(6) if j in top[row]]
        owners.append(max(choosing, key=lambda row: found.X[row, j]))
    assert owners == sorted(owners)  # in the order of the rows
    values = found[:, columns].X[owners, np.arange(len(columns))]
    assert all(a >= b for a, b, i, j in zip(values, values[1:], owners, owners[1:], strict=False) if i == j)


def test_heatmap_shows_a_gene_of_two_classes_once(attributed):
    adata = attributed(2, n_genes=3)
    adata.varm["scscore_attribution_presence"] = np.array([[1, 2], [3, -1], [-5, -1]], dtype=np.float32)
    ax = scs.pl.attribution_heatmap(adata, n_genes=2, dendrogram=False, show=False)
    assert _names(ax, "x") == ["GENE1", "GENE0"]  # GENE0 is of both and stronger in the second; GENE2 speaks for none
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array()), [[3, 1], [-1, 2]])


def test_heatmap_tree_brings_similar_classes_together(attributed):
    adata = attributed(6)
    shuffled = [f"Class {i} of cells" for i in (0, 2, 4, 1, 3, 5)]
    ax = scs.pl.attribution_heatmap(adata, kind="total", classes=shuffled, show=False)
    pairs = [int(name.split()[1]) // 2 for name in _classes_of(ax)]
    assert pairs[0::2] == pairs[1::2]
    tree = next(child for child in ax.child_axes if child.lines)
    assert len(tree.lines) == 5
    assert tree.get_ylim() == ax.get_ylim()
    leaves = sorted(y for line in tree.lines for x, y in zip(*line.get_data(), strict=True) if x == 0)
    np.testing.assert_allclose(sorted(set(leaves)), np.arange(6))  # at the middles of the rows
    ax = scs.pl.attribution_heatmap(adata, kind="total", classes=shuffled, dendrogram=False, show=False)
    assert _classes_of(ax) == shuffled
    assert not any(child.lines for child in ax.child_axes)


def test_heatmap_of_given_genes_keeps_their_order(attributed):
    genes = ["GENE9", "GENE30", "GENE0"]
    ax = scs.pl.attribution_heatmap(attributed(3), genes=genes, classes="Class 1 of cells", show=False)
    assert _names(ax, "x") == genes
    assert _classes_of(ax) == ["Class 1 of cells"]


def test_class_colors_are_those_of_the_data(attributed):
    adata = attributed(6)
    adata.uns["type_colors"] = ["#010101", "#020202", "#030303", "#040404", "#050505", "#060606"]
    ax = scs.pl.attribution_heatmap(adata, show=False)
    rows = next(child for child in ax.child_axes if len(child.patches) == 6)
    expected = [adata.uns["type_colors"][int(name.split()[1])] for name in _classes_of(ax)]
    assert [to_hex(patch.get_facecolor()) for patch in rows.patches] == expected


def test_palette_colors_do_not_depend_on_the_order_of_rows(attributed):
    adata, found = attributed(6), {}
    for dendrogram in (True, False):
        ax = scs.pl.attribution_heatmap(adata, kind="total", dendrogram=dendrogram, show=False)
        rows = next(child for child in ax.child_axes if len(child.patches) == 6)
        colors = [to_hex(patch.get_facecolor()) for patch in rows.patches]
        found[dendrogram] = dict(zip(_classes_of(ax), colors, strict=True))
    assert found[True] == found[False]


def test_heatmap_errors(attributed):
    adata = attributed(3)
    with pytest.raises(ValueError, match="kind must be"):
        scs.pl.attribution_heatmap(adata, kind="sum")
    with pytest.raises(KeyError, match=r"classes: \['Z'\].*Class 0"):
        scs.pl.attribution_heatmap(adata, classes=["Z"])
    with pytest.raises(ValueError, match="no class to draw"):
        scs.pl.attribution_heatmap(adata, classes=[])
    with pytest.raises(KeyError, match=r"genes: \['CD3'\]"):
        scs.pl.attribution_heatmap(adata, genes=["CD3", "GENE1"])
    with pytest.raises(ValueError, match="genes= is empty"):
        scs.pl.attribution_heatmap(adata, genes=[])
    adata.varm["scscore_attribution_presence"] = -abs(adata.varm["scscore_attribution"])
    with pytest.raises(ValueError, match="no gene speaks for a class by presence"):
        scs.pl.attribution_heatmap(adata)


# ranking


def test_ranking_draws_the_stored_values_in_order(attributed):
    adata = attributed(3)
    panels = scs.pl.attribution_ranking(adata, n_genes=10, classes=["Class 2 of cells", "Class 0 of cells"], show=False)
    found = scs.get.attribution(adata)
    assert len(panels) == 2
    for ax, row in zip(panels, (2, 0), strict=True):
        top = np.argsort(-found.X[row], kind="stable")[:10]
        assert _names(ax, "y") == found.var_names[top].tolist()
        presence, absence, intervals = ax.containers
        np.testing.assert_allclose([bar.get_width() for bar in presence], found.layers["presence"][row, top], atol=1e-6)
        np.testing.assert_allclose([bar.get_width() for bar in absence], found.layers["absence"][row, top], atol=1e-6)
        dots, _, (lines,) = intervals
        np.testing.assert_allclose(dots.get_xdata(), found.X[row, top])
        lengths = [np.ptp(segment[:, 0]) for segment in lines.get_segments()]
        np.testing.assert_allclose(lengths, 2 * 1.959964 * found.layers["se"][row, top], atol=1e-5)
        texts = [text.get_text() for text in ax.texts]
        assert f"Class {row} of cells (2)" in texts
        sign = "−" if found.X[row].sum() < 0 else "+"
        parts = f"baseline {found.obs['baseline'].iloc[row]:.1f} {sign} genes {abs(found.X[row].sum()):.1f}"
        assert ax.get_title(loc="left") == parts.replace("-", "−")


def test_ranking_stacks_parts_of_one_sign_and_opposes_others(attributed):
    adata = attributed(2, n_genes=2)
    adata.varm["scscore_attribution"] = np.array([[3, 1], [2, 1]], dtype=np.float32)
    adata.varm["scscore_attribution_presence"] = np.array([[1, 1], [5, 1]], dtype=np.float32)
    ax = scs.pl.attribution_ranking(adata, classes="Class 0 of cells", show=False)[0]
    presence, absence, _ = ax.containers
    assert [(bar.get_x(), bar.get_width()) for bar in presence] == [(0, 1), (0, 5)]
    assert [(bar.get_x(), bar.get_width()) for bar in absence] == [(1, 2), (0, -3)]


def test_ranking_of_a_class_with_one_cell_has_no_interval(attributed):
    adata = attributed(3)
    adata.varm["scscore_attribution_se"][:, 1] = np.nan
    ax = scs.pl.attribution_ranking(adata, classes="Class 1 of cells", n_genes=4, show=False)[0]
    dots, _, (lines,) = ax.containers[2]
    assert len(dots.get_xdata()) == 4
    assert all(np.ptp(segment[:, 0]) == 0 for segment in lines.get_segments())


@pytest.mark.parametrize("ncols", [1, 3, 99])
def test_ranking_columns(attributed, ncols):
    panels = scs.pl.attribution_ranking(attributed(5), n_genes=3, ncols=ncols, show=False)
    left = {round(ax.get_window_extent().x0) for ax in panels}
    assert len(left) == min(ncols, 5)
    sizes = np.array([ax.get_window_extent().size for ax in panels])
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[0], sizes.shape))


def test_ranking_errors(attributed):
    with pytest.raises(ValueError, match="ncols must be a positive integer"):
        scs.pl.attribution_ranking(attributed(3), ncols=0)
    with pytest.raises(KeyError, match=r"classes: \['Z'\]"):
        scs.pl.attribution_ranking(attributed(3), classes="Z")


# one cell


def _steps(ax: Axes) -> dict[str, tuple[float, float]]:
    """Start and length of every bar, by its label."""
    bars = [bar for container in ax.containers for bar in container]
    return {name: (bar.get_x(), bar.get_width()) for name, bar in zip(_names(ax, "y"), bars, strict=True)}


def test_cell_goes_from_its_baseline_to_its_evidence(attributed):
    adata = attributed(3)
    ax = scs.pl.attribution_cell(adata, "cell_3", n_genes=6, show=False)
    parts, evidence = adata.layers["scscore_attribution"][3], float(adata.obs["scscore_evidence"].iloc[3])
    order = np.argsort(-abs(parts), kind="stable")
    steps = _steps(ax)
    others = f"{adata.n_vars - 6} other genes"
    assert list(steps) == ["baseline", *adata.var_names[order[:6]], others, "evidence"]
    baseline = adata.uns["scscore_attribution"]["baseline"][1]
    np.testing.assert_allclose(steps["baseline"], (0, baseline), atol=1e-5)
    level = baseline
    for gene in order[:6]:
        np.testing.assert_allclose(steps[adata.var_names[gene]], (level, parts[gene]), atol=1e-5)
        level += parts[gene]
    np.testing.assert_allclose(steps[others], (level, parts[order[6:]].sum()), atol=1e-5)
    np.testing.assert_allclose(sum(steps[others]), evidence, atol=1e-5)
    np.testing.assert_allclose(steps["evidence"], (0, evidence), atol=1e-6)
    assert ax.get_title() == f"cell_3\nClass 1 of cells against the rest: {evidence:.1f} nats".replace("-", "−")


def test_cell_with_few_genes_has_no_bar_of_others(attributed):
    adata = attributed(2, n_genes=4)
    assert len(_steps(scs.pl.attribution_cell(adata, "cell_0", show=False))) == 6


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csr_array])
def test_cell_with_the_largest_genes_only(attributed, form):
    adata = attributed(3)
    parts = adata.layers["scscore_attribution"]
    kept = np.where(abs(parts) >= np.sort(abs(parts), axis=1)[:, -5:].min(1, keepdims=True), parts, 0)
    adata.layers["scscore_attribution"] = form(kept)
    steps = _steps(scs.pl.attribution_cell(adata, "cell_3", n_genes=3, show=False))
    order, evidence = np.argsort(-abs(parts[3]))[:3], float(adata.obs["scscore_evidence"].iloc[3])
    others, baseline = f"{adata.n_vars - 3} other genes", adata.uns["scscore_attribution"]["baseline"][1]
    assert list(steps) == ["baseline", *adata.var_names[order], others, "evidence"]
    np.testing.assert_allclose(steps[adata.var_names[order[0]]][0], baseline, atol=1e-5)
    np.testing.assert_allclose(steps[others][1], evidence - baseline - parts[3, order].sum(), atol=1e-5)


def test_cell_names_its_target_and_reference(attributed):
    adata = attributed(3)
    adata.obs["scscore_target"] = adata.obs["scscore_target"].to_numpy()[::-1]
    params = {"condition": "type", "reference": "runner-up", "target": None}
    adata.uns["scscore_attribution"]["params"] = json.dumps(params)
    title = scs.pl.attribution_cell(adata, "cell_5", show=False).get_title().splitlines()[1]
    assert title.startswith("Class 0 of cells against the runner-up")


def test_cell_errors(attributed):
    adata = attributed(3)
    with pytest.raises(KeyError, match=r"cell='x' is not in adata\.obs_names.*cell_0"):
        scs.pl.attribution_cell(adata, "x")
    del adata.layers["scscore_attribution"]
    with pytest.raises(KeyError, match=r"layers\['scscore_attribution'\].*per_cell=True"):
        scs.pl.attribution_cell(adata, "cell_3")


# by noise level


def test_levels_draw_the_stored_values(attributed):
    adata = attributed(3)
    ax = scs.pl.attribution_levels(adata, "Class 1 of cells", n_genes=7, show=False)
    mean = scs.get.attribution(adata)["Class 1 of cells"].X[0]
    top = np.argsort(-mean, kind="stable")[:7]
    assert _names(ax, "y") == adata.var_names[top].tolist()
    image, expected = ax.images[0], adata.varm["scscore_attribution_levels"][top, 1]
    np.testing.assert_array_equal(np.asarray(image.get_array()), expected)
    largest = abs(expected).max()
    np.testing.assert_allclose(image.norm([-largest, 0, largest]), [0, 0.5, 1], atol=1e-6)  # centred on zero
    assert _names(ax, "x") == ["−5", "−2.5", "0", "2.5", "clean\ncell"]
    texts = {
        tuple(text.xy): text.get_text()
        for text in ax.texts
        if isinstance(text, Annotation) and text.get_text() != "sum"
    }
    for row, gene in enumerate(top):
        assert texts[1, row] == f"{mean[gene]:.2f}".replace("-", "−")  # the sum over the levels
        np.testing.assert_allclose(expected[row].sum(), mean[gene], rtol=1e-5)
    assert "Class 1 of cells (2) against the rest" in [text.get_text() for text in ax.texts]


def test_levels_of_few_genes(attributed):
    ax = scs.pl.attribution_levels(attributed(2, n_genes=4), "Class 0 of cells", show=False)
    assert len(_names(ax, "y")) == 4


def test_levels_have_the_color_of_the_class(attributed):
    adata = attributed(3)
    adata.uns["type_colors"] = ["#010101", "#020202", "#030303"]
    ax = scs.pl.attribution_levels(adata, "Class 2 of cells", show=False)
    assert [to_hex(text.get_color()) for text in ax.texts if text.get_text() == "■"] == ["#030303"]


def test_levels_leave_out_classes_without_cells(attributed):
    adata = attributed(3)
    adata.uns["scscore_attribution"]["n_cells"] = np.array([0, 2, 2])
    adata.varm["scscore_attribution"][:, 0] = np.nan
    ax = scs.pl.attribution_levels(adata, "Class 2 of cells", n_genes=5, show=False)
    top = np.argsort(-adata.varm["scscore_attribution"][:, 2], kind="stable")[:5]
    expected = adata.varm["scscore_attribution_levels"][top, 2]
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array()), expected)
    with pytest.raises(KeyError, match="'Class 0 of cells' is no class with cells"):
        scs.pl.attribution_levels(adata, "Class 0 of cells")


def test_levels_errors(attributed):
    adata = attributed(3)
    with pytest.raises(KeyError, match=r"target='Z' is no class with cells; there are \['Class 0 of cells'"):
        scs.pl.attribution_levels(adata, "Z")
    del adata.varm["scscore_attribution_levels"]
    with pytest.raises(KeyError, match=r"varm\['scscore_attribution_levels'\].*by_level=True"):
        scs.pl.attribution_levels(adata, "Class 0 of cells")


# in an embedding


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csr_array])
def test_embedding_draws_the_stored_values(attributed, form):
    adata, genes = attributed(6), ["GENE9", "GENE30", "GENE0"]
    parts = adata[:, genes].layers["scscore_attribution"].copy()
    adata.layers["scscore_attribution"] = form(adata.layers["scscore_attribution"])
    panels = scs.pl.attribution_embedding(adata, genes, show=False)
    assert [ax.get_title(loc="left") for ax in panels] == genes
    for ax, values in zip(panels, parts.T, strict=True):
        (dots,) = ax.collections
        drawn = np.asarray(dots.get_array())
        order = np.argsort(abs(values), kind="stable")
        np.testing.assert_array_equal(drawn, values[order])  # the largest last, on top of the others
        np.testing.assert_array_equal(np.asarray(dots.get_offsets()), adata.obsm["X_umap"][order])
        low, high = dots.get_clim()
        assert low == -high
        np.testing.assert_allclose(high, np.quantile(abs(values), 0.99))
    assert panels[-1].get_xlabel() == "UMAP; nats against the rest"


def test_embedding_of_one_gene_and_another_basis(attributed):
    adata = attributed(3)
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(adata.n_obs, 5))
    (ax,) = scs.pl.attribution_embedding(adata, "GENE2", basis="X_pca", show=False)
    found = {tuple(xy) for xy in np.asarray(ax.collections[0].get_offsets())}
    assert found == {tuple(xy) for xy in adata.obsm["X_pca"][:, :2]}
    assert ax.get_xlabel().startswith("PCA;")


def test_embedding_of_a_gene_without_a_part(attributed):
    adata = attributed(3)
    adata.layers["scscore_attribution"][:, 5] = 0
    (ax,) = scs.pl.attribution_embedding(adata, "GENE5", show=False)
    low, high = ax.collections[0].get_clim()
    assert low == -high < 0


def test_embedding_errors(attributed):
    adata = attributed(3)
    with pytest.raises(ValueError, match="genes must name at least one gene"):
        scs.pl.attribution_embedding(adata, [])
    with pytest.raises(KeyError, match=r"genes: \['CD3'\] are not in adata\.var_names"):
        scs.pl.attribution_embedding(adata, ["CD3", "GENE1"])
    with pytest.raises(KeyError, match=r"basis='X_tsne'.*available: \['X_umap'\]"):
        scs.pl.attribution_embedding(adata, "GENE1", basis="X_tsne")
    del adata.layers["scscore_attribution"]
    with pytest.raises(KeyError, match=r"layers\['scscore_attribution'\].*per_cell=True"):
        scs.pl.attribution_embedding(adata, "GENE1")
