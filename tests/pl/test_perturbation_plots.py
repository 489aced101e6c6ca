"""The three plots of perturbations: what they draw is what is stored."""

import json
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from scipy.special import expit
from sklearn.metrics import roc_auc_score

import scscore as scs
from scscore.core.detectability import merge_tree, pairwise_separation, separation
from scscore.core.permutation import benjamini_hochberg
from scscore.pl._detectability import auroc_error

TEMPERATURE = 0.8


def screened(n: int, seed: int = 0, n_cells: int = 40) -> AnnData:
    """Slots as ``tl.predict_perturbation`` writes them: the last of `n` perturbations do nothing; two cells took no part."""
    rng = np.random.default_rng(seed)
    names = [f"Target{i}" for i in range(n)]
    classes = ["control", *names]
    y = np.repeat(np.arange(n + 1), n_cells)
    strength = np.linspace(3, 0, n)
    log_likelihood = rng.normal(size=(len(y), n + 1))
    log_likelihood[np.arange(len(y)), y] += np.append(0, strength)[y]
    log_likelihood = log_likelihood.astype(np.float32)
    obs = pd.DataFrame(
        {"target": pd.Categorical(np.array(classes)[y], categories=classes), "two": False},
        index=[f"cell_{i}" for i in range(len(y))],
    )
    obs.loc[obs.index[[0, -1]], "two"] = True
    y[[0, -1]] = -1
    offsets = np.append(0.3, np.linspace(-0.2, 0.2, n))
    adata = AnnData(np.zeros((len(y), 1), dtype=np.float32), obs=obs)
    exact = log_likelihood.astype(np.float64)
    perturbed = y > 0
    evidence = np.where(perturbed, exact[np.arange(len(y)), y] - exact[:, 0], np.nan)
    response = expit(TEMPERATURE * evidence + np.where(perturbed, offsets[y] - offsets[0], 0))
    adata.obs["scscore_perturbation_evidence"] = evidence.astype(np.float32)
    adata.obs["scscore_response"] = response.astype(np.float32)
    adata.obs["scscore_escape"] = response < 0.5
    adata.obsm["scscore_log_likelihood"] = log_likelihood
    adata.uns["scscore"] = {
        "classes": np.array(classes, dtype=object),
        "params": json.dumps({"temperature": TEMPERATURE, "offsets": offsets.tolist()}),
    }
    own = [evidence[y == k] for k in range(1, n + 1)]
    tests = [separation(own[k - 1], (exact[:, k] - exact[:, 0])[y == 0]) for k in range(1, n + 1)]
    area, p = pairwise_separation(exact[:, [*range(1, n + 1), 0]], np.where(y == 0, n, y - 1 + (y < 0)))
    adata.uns["scscore_perturbation"] = {
        "names": np.array(names, dtype=object),
        "n_cells": np.array([len(values) for values in own]),
        "auroc": np.array([a for a, _ in tests]),
        "pvalue": np.array([p for _, p in tests]),
        "fdr": benjamini_hochberg(np.array([p for _, p in tests])),
        "effect": np.array([values.mean() for values in own]),
        "effect_se": np.array([values.std(ddof=1) / np.sqrt(len(values)) for values in own]),
        "escape": np.array([(response[y == k] < 0.5).mean() for k in range(1, n + 1)]),
        "control_response": np.full(n, 0.1),
        "pairwise": area,
        "pairwise_fdr": p,
        "tree": merge_tree(area),
        "control": "control",
        "params": json.dumps({"condition": "target", "control": "control", "exclude": "two"}),
    }
    return adata


def moved(n_genes: int = 40, seed: int = 0) -> AnnData:
    """What ``tl.counterfactual`` returns, as far as the plot reads it."""
    rng = np.random.default_rng(seed)
    adata = AnnData(np.zeros((5, n_genes), dtype=np.float32))
    adata.var_names = [f"GENE{i}" for i in range(n_genes)]
    adata.var["scscore_delta"] = rng.normal(scale=0.3, size=n_genes).astype(np.float32)
    adata.var["scscore_delta_se"] = np.full(n_genes, 0.02, dtype=np.float32)
    adata.obs["scscore_source"] = pd.Categorical(["control"] * 5)
    adata.obs["scscore_to"] = pd.Categorical(["IFNGR1"] * 5)
    return adata


def texts(labels) -> list[str]:
    return [label.get_text() for label in labels]


# -- detectability ---------------------------------------------------------------------------------


def test_areas_effects_and_numbers():
    adata = screened(8)
    ax = scs.pl.detectability(adata, show=False)
    table = scs.get.perturbation(adata)
    assert texts(ax.get_yticklabels()) == table.index.tolist()
    found = table["fdr"].to_numpy() < 0.05
    assert 0 < found.sum() < len(found)
    lines = {line.get_label().split(" (")[0]: line for line in ax.lines}
    for name, rows in (("detected", found), ("not detected", ~found)):
        xy = lines[name].get_xydata()
        np.testing.assert_allclose(xy, np.column_stack([table["auroc"][rows], np.flatnonzero(rows)]))
    assert texts(ax.get_legend().get_texts()) == [f"detected ({found.sum()})", f"not detected ({(~found).sum()})"]
    chance = [line for line in ax.lines if list(line.get_xdata()) == [0.5, 0.5]]
    assert len(chance) == 1
    right = ax.child_axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in right.containers[0]], table["effect"])
    reach = [segment[:, 0] for segment in right.collections[0].get_segments()]
    half = 1.959964 * table["effect_se"].to_numpy()
    np.testing.assert_allclose(reach, np.column_stack([table["effect"] - half, table["effect"] + half]))
    assert texts(right.get_yticklabels()) == [str(n) for n in table["n_cells"]]


def test_interval_is_that_of_hanley_and_mcneil():
    adata = screened(5)
    ax = scs.pl.detectability(adata, show=False)
    segments = sorted((tuple(s[:, 0]) for c in ax.collections for s in c.get_segments()), reverse=True)
    table = scs.get.perturbation(adata)
    n_control = 39  # one control cell takes no part
    error = auroc_error(table["auroc"].to_numpy(), table["n_cells"].to_numpy(), n_control)
    wanted = np.column_stack([table["auroc"] - 1.959964 * error, table["auroc"] + 1.959964 * error]).clip(0, 1)
    np.testing.assert_allclose(np.array(segments), np.array(sorted(map(tuple, wanted), reverse=True)))


def test_standard_error_of_the_area():
    """By hand, and the spread of areas over samples of two normal distributions."""
    area, m, n = 0.8, 4, 5
    q_1, q_2 = 0.8 / 1.2, 2 * 0.64 / 1.8
    by_hand = np.sqrt((0.16 + 3 * (q_1 - 0.64) + 4 * (q_2 - 0.64)) / 20)
    np.testing.assert_allclose(auroc_error(np.array([area]), np.array([m]), n), by_hand)
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.7, 1.5):
        y = np.repeat([1, 0], [60, 90])
        areas = [roc_auc_score(y, rng.normal(size=150) + shift * y) for _ in range(400)]
        estimate = auroc_error(np.array([np.mean(areas)]), np.array([60]), 90)[0]
        assert np.std(areas) == pytest.approx(estimate, rel=0.2)  # it errs on the safe side where the area is large
    assert np.isnan(auroc_error(np.array([np.nan]), np.array([3]), 3)).all()
    assert auroc_error(np.array([1.0]), np.array([3]), 3) == 0


def test_the_rate_is_an_argument():
    adata = screened(8)
    for rate in (1e-12, 0.999):
        n = int((scs.get.perturbation(adata)["fdr"] < rate).sum())
        legend = scs.pl.detectability(adata, fdr=rate, show=False).get_legend()
        assert texts(legend.get_texts())[0] == f"detected ({n})"
    assert legend.get_title().get_text() == "at a false discovery rate of 99.9 %"


def test_tree_keeps_branches_together_and_has_control():
    from scipy.cluster.hierarchy import cut_tree

    adata = screened(8)
    ax = scs.pl.detectability(adata, tree=True, show=False)
    names = texts(ax.get_yticklabels())
    table = scs.get.perturbation(adata)
    assert sorted(names) == sorted([*table.index, "control"])
    assert names[0] == table.index[0]  # the best is first
    stored = adata.uns["scscore_perturbation"]
    order = [*stored["names"], "control"]
    for n_branches in range(1, 10):
        branch = cut_tree(stored["tree"], n_branches).ravel()
        in_rows = [branch[order.index(name)] for name in names]
        assert 1 + np.count_nonzero(np.diff(in_rows)) == n_branches
    drawn = ax.child_axes[0].child_axes[0]
    heights = sorted(max(line.get_xdata()) for line in drawn.lines)
    np.testing.assert_allclose(heights, np.sort(stored["tree"][:, 2]))
    row = names.index("control")
    assert texts(ax.child_axes[0].get_yticklabels())[row] == "39"
    assert not any(row in line.get_ydata() for line in ax.lines if line.get_marker() == "o")


def test_one_perturbation():
    for tree in (False, True):
        assert isinstance(scs.pl.detectability(screened(1), tree=tree, show=False), Axes)


def test_detectability_messages():
    adata = screened(3)
    with pytest.raises(KeyError, match=r"uns\['mine_perturbation'\] is missing \(key='mine'\): run scscore.tl.predict"):
        scs.pl.detectability(adata, key="mine")
    for rate in (0, 1, 5):
        with pytest.raises(ValueError, match="fdr must be between 0 and 1"):
            scs.pl.detectability(adata, fdr=rate)
    with pytest.raises(ValueError, match=r"no cell of control \('control'\) is left"):
        scs.pl.detectability(adata[adata.obs["target"] != "control"].copy())
    del adata.obs["target"]
    with pytest.raises(KeyError, match=r"obs\['target'\] is gone.*run scscore.tl.predict_perturbation again"):
        scs.pl.detectability(adata)


# -- response --------------------------------------------------------------------------------------


def curves(ax: Axes, row: int) -> dict[str, np.ndarray]:
    """Densities of one row, grey and own: points of the line above the row."""
    lines = [line.get_xydata() for line in ax.lines]
    grey, own = lines[2 * row], lines[2 * row + 1]
    return {
        "control": np.column_stack([grey[:, 0], row - grey[:, 1]]),
        "own": np.column_stack([own[:, 0], row - own[:, 1]]),
    }


def test_densities_are_those_of_the_evidence_and_of_control():
    from scipy.stats import gaussian_kde

    adata = screened(4, n_cells=200)
    ax = scs.pl.perturbation_response(adata, show=False)
    table = scs.get.perturbation(adata)
    assert texts(ax.get_yticklabels()) == [f"{name} ({n})" for name, n in table["n_cells"].items()]
    likelihood = scs.get.likelihood(adata)
    took_part = ~adata.obs["two"]
    for row, name in enumerate(table.index):
        control = likelihood[(adata.obs["target"] == "control") & took_part].astype(float)
        parts = {
            "own": adata.obs["scscore_perturbation_evidence"][(adata.obs["target"] == name) & took_part].astype(float),
            "control": control[name] - control["control"],
        }
        drawn = curves(ax, row)
        wanted = {what: gaussian_kde(values)(drawn[what][:, 0]) for what, values in parts.items()}
        for what in wanted:
            np.testing.assert_allclose(drawn[what][:, 1], 0.92 * wanted[what] / wanted[what].max(), atol=1e-6)


def test_mark_and_share_are_those_of_the_stored_response():
    adata = screened(5)
    ax = scs.pl.perturbation_response(adata, show=False)
    table = scs.get.perturbation(adata)
    marks = {}
    for collection in ax.collections:
        if to_hex(collection.get_edgecolor()[0] if len(collection.get_edgecolor()) else "w") == "#d55e00":
            (segment,) = collection.get_segments()
            marks[round(float(segment[:, 1].mean()) + 0.2)] = segment[0, 0]
    assert sorted(marks) == list(range(5))
    for row, name in enumerate(table.index):
        own = adata.obs[(adata.obs["target"] == name) & ~adata.obs["two"]]
        np.testing.assert_array_equal(own["scscore_escape"], own["scscore_perturbation_evidence"] < marks[row])
        slope = TEMPERATURE * (own["scscore_perturbation_evidence"].astype(float) - marks[row])
        np.testing.assert_allclose(own["scscore_response"], expit(slope), atol=1e-5)
    (right,) = ax.child_axes
    assert texts(right.get_yticklabels()) == [f"{100 * share:.0f} %" for share in table["escape"]]


def test_chosen_perturbations_and_colors():
    adata = screened(4)
    ax = scs.pl.perturbation_response(adata, perturbations=["Target3", "Target0"], show=False)
    assert [text.split(" ")[0] for text in texts(ax.get_yticklabels())] == ["Target3", "Target0"]
    adata.uns["target_colors"] = ["#111111", "#222222", "#333333", "#444444", "#555555"]
    ax = scs.pl.perturbation_response(adata, perturbations="Target2", show=False)
    assert to_hex(ax.lines[1].get_color()) == "#444444"


def test_few_and_equal_cells_are_drawn_one_by_one():
    adata = screened(3)
    few = adata[(adata.obs["target"] != "Target1") | (np.arange(adata.n_obs) % 40 < 2)].copy()
    ax = scs.pl.perturbation_response(few, perturbations=["Target1"], show=False)
    own = few.obs.loc[few.obs["target"] == "Target1", "scscore_perturbation_evidence"]
    strokes = [c.get_segments() for c in ax.collections if len(getattr(c, "get_segments", list)()) == 2]
    assert len(own) == 2
    np.testing.assert_allclose(sorted(segment[0, 0] for segment in strokes[0]), sorted(own), rtol=1e-6)


def test_response_messages():
    adata = screened(3)
    with pytest.raises(KeyError, match=r"uns\['mine_perturbation'\] is missing \(key='mine'\)"):
        scs.pl.perturbation_response(adata, key="mine")
    with pytest.raises(KeyError, match=r"perturbations: \['control'\] are not among"):
        scs.pl.perturbation_response(adata, perturbations=["control"])
    with pytest.raises(ValueError, match="perturbations is empty"):
        scs.pl.perturbation_response(adata, perturbations=[])
    with pytest.raises(ValueError, match="no cell of 'Target1' is left"):
        scs.pl.perturbation_response(adata[adata.obs["target"] != "Target1"].copy())
    other = adata.copy()
    other.obs["scscore_perturbation_evidence"] = np.float32(1)
    with pytest.raises(
        ValueError, match=r"has values for control cells: another call, such as tl.attribute, overwrote"
    ):
        scs.pl.perturbation_response(other)
    del other.obs["scscore_perturbation_evidence"]
    with pytest.raises(
        KeyError, match=r"obs\['scscore_perturbation_evidence'\] is missing.*predict_perturbation again"
    ):
        scs.pl.perturbation_response(other)
    del adata.obsm["scscore_log_likelihood"]
    with pytest.raises(KeyError, match=r"obsm\['scscore_log_likelihood'\] is missing"):
        scs.pl.perturbation_response(adata)


def test_both_draw_what_predict_perturbation_writes():
    cells = scs.datasets.toy_gaussians(n_obs=300)
    model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=2, progress=False)
    cells.obs["doubtful"] = np.arange(300) % 10 == 0
    scs.tl.predict_perturbation(cells, model, control="a", exclude="doubtful", key_added="mine", progress=False)
    ax = scs.pl.perturbation_response(cells, key="mine", show=False)
    assert texts(ax.child_axes[0].get_yticklabels()) == [
        f"{100 * share:.0f} %" for share in scs.get.perturbation(cells, key="mine")["escape"]
    ]
    ax = scs.pl.detectability(cells, key="mine", tree=True, show=False)
    assert set(texts(ax.get_yticklabels())) == {"a", "b", "c"}


# -- counterfactual --------------------------------------------------------------------------------


def test_ranking():
    cells = moved()
    ax = scs.pl.counterfactual(cells, n_genes=10, show=False)
    wanted = cells.var["scscore_delta"].iloc[np.argsort(-cells.var["scscore_delta"].abs())][:10]
    assert texts(ax.get_yticklabels()) == wanted.index.tolist()
    np.testing.assert_allclose([bar.get_width() for bar in ax.containers[0]], wanted, rtol=1e-6)
    colors = [to_hex(bar.get_facecolor()) for bar in ax.containers[0]]
    assert colors == ["#d55e00" if value > 0 else "#0072b2" for value in wanted]
    reach = np.array([segment[:, 0] for segment in ax.collections[0].get_segments()])
    np.testing.assert_allclose(np.diff(reach).ravel(), 2 * 1.959964 * 0.02, rtol=1e-5)
    assert ax.get_title() == "control → IFNGR1 (5 cells)"


def test_predicted_against_observed():
    cells = moved()
    change = cells.var["scscore_delta"].astype(float)
    observed = change * 0.5 + np.random.default_rng(1).normal(scale=0.1, size=len(change))
    ax = scs.pl.counterfactual(cells, observed=observed, n_genes=6, show=False)
    dots = ax.collections[-1].get_offsets()
    np.testing.assert_allclose(dots, np.column_stack([observed, change]), rtol=1e-6)
    r, rmse = np.corrcoef(observed, change)[0, 1], np.sqrt(((observed - change) ** 2).mean())
    assert ax.get_title() == f"Pearson r {r:.3f}, RMSE {rmse:.3f}, 40 genes"
    np.testing.assert_allclose(ax.lines[0].get_xdata(), ax.lines[0].get_ydata())
    assert ax.get_xlim() == ax.get_ylim()
    largest = np.maximum(observed.abs(), change.abs()).nlargest(6).index
    assert set(texts(ax.texts)) == {*largest, "control → IFNGR1 (5 cells)"}
    by_position = scs.pl.counterfactual(cells, observed=observed.to_numpy(), show=False)
    assert by_position.get_title() == ax.get_title()


def test_observed_goes_by_name_and_missing_genes_are_left_out():
    cells = moved()
    observed = cells.var["scscore_delta"].astype(float).sample(frac=1, random_state=0)
    observed = pd.concat([observed.iloc[:30], pd.Series({"OTHER": 5.0})])
    observed.iloc[0] = np.nan
    ax = scs.pl.counterfactual(cells, observed=observed, show=False)
    assert ax.get_title() == "Pearson r 1.000, RMSE 0.000, 29 genes"


def test_names_hide_neither_each_other_nor_dots():
    rng = np.random.default_rng(0)
    cells = moved(300)
    values = np.append(rng.normal(scale=0.03, size=290), rng.normal(-0.6, 0.06, size=10))
    cells.var["scscore_delta"] = values.astype(np.float32)
    figure = scs.pl.counterfactual(cells, observed=values + rng.normal(scale=0.05, size=300), return_fig=True)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    boxes = [Bbox.from_bounds(*_text_box(text, figure)) for text in ax.texts]
    assert len(boxes) > 10
    assert not any(Bbox.intersection(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def _text_box(text, figure) -> tuple[float, float, float, float]:
    """Of the letters alone, without the line."""
    box = super(type(text), text).get_window_extent(figure.canvas.get_renderer())
    return box.bounds


def test_a_single_cell_and_several_sources():
    cells = moved()[:1].copy()
    cells.var["scscore_delta_se"] = np.float32(np.nan)
    scs.pl.counterfactual(cells, show=False)
    cells = moved()
    cells.obs["scscore_source"] = pd.Categorical(list("aabbc"))
    assert scs.pl.counterfactual(cells, show=False).get_title() == "3 classes → IFNGR1 (5 cells)"


def test_counterfactual_messages():
    cells = moved()
    with pytest.raises(KeyError, match=r"var\['mine_delta'\] is missing \(key='mine'\).*tl.counterfactual returned"):
        scs.pl.counterfactual(cells, key="mine")
    for n_genes in (0, 1.5, True):
        with pytest.raises(ValueError, match="n_genes must be a positive integer"):
            scs.pl.counterfactual(cells, n_genes=n_genes)
    with pytest.raises(ValueError, match=r"one value for each of the 40 genes of adata, got shape \(3,\)"):
        scs.pl.counterfactual(cells, observed=[1, 2, 3])
    with pytest.raises(ValueError, match="has numbers for 0 genes of adata.*GENE0"):
        scs.pl.counterfactual(cells, observed=pd.Series({"OTHER": 1.0}))
    with pytest.raises(ValueError, match="more than once: \\['GENE0'\\]"):
        scs.pl.counterfactual(cells, observed=pd.Series([1.0, 2.0], index=["GENE0", "GENE0"]))
    with pytest.raises(ValueError, match="observed must hold one number per gene"):
        scs.pl.counterfactual(cells, observed=["a"] * 40)


# -- conventions -----------------------------------------------------------------------------------

PLOTS: dict[str, tuple[Callable[[int], AnnData], Callable]] = {
    "detectability": (screened, scs.pl.detectability),
    "tree": (screened, lambda adata, **kwargs: scs.pl.detectability(adata, tree=True, **kwargs)),
    "response": (screened, scs.pl.perturbation_response),
    "ranking": (moved, lambda adata, **kwargs: scs.pl.counterfactual(adata, n_genes=60, **kwargs)),
    "scatter": (
        moved,
        lambda adata, **kwargs: scs.pl.counterfactual(
            adata, observed=adata.var["scscore_delta"] + np.linspace(-0.1, 0.1, adata.n_vars), **kwargs
        ),
    ),
}


@pytest.fixture(params=PLOTS)
def case(request):
    return PLOTS[request.param]


@pytest.fixture
def autoshow():
    before = sc.settings.autoshow
    sc.settings.autoshow = True
    yield
    sc.settings.autoshow = before


def test_show_and_return(case, monkeypatch, autoshow):
    make, plot = case
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    assert plot(make(3)) is None and plot(make(3), show=True) is None
    assert len(calls) == 2
    assert isinstance(plot(make(3), show=False), Axes)
    assert isinstance(plot(make(3), return_fig=True), Figure)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    assert plot(make(3), ax=axes[0]) is axes[0]
    assert figure.get_size_inches().tolist() == [9, 4] and not axes[1].has_data()


@pytest.mark.parametrize("n", [1, 3, 60])
def test_nothing_is_cut_and_no_labels_touch(case, n):
    make, plot = case
    figure = plot(make(max(n, 2) if make is moved else n), return_fig=True)
    assert max(figure.get_size_inches()) < 14
    figure.draw_without_rendering()
    ax = figure.axes[0]
    box = ax.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    panels = [ax, *ax.child_axes, *(grandchild for child in ax.child_axes for grandchild in child.child_axes)]
    for panel in panels:
        for labels in (panel.get_yticklabels(), panel.get_xticklabels()):
            assert all(label.get_fontsize() >= 7 for label in labels)
            boxes = [label.get_window_extent() for label in labels if label.get_text()]
            assert not any(Bbox.intersection(a, b) for a, b in zip(boxes, boxes[1:], strict=False))
    corners = [panel.xaxis.label.get_window_extent() for panel in panels if panel.get_xlabel()]
    assert not any(Bbox.intersection(a, b) for a, b in zip(corners, corners[1:], strict=False))
    heads = [*ax.texts, *(text for child in ax.child_axes for text in child.texts)]
    if ax.get_legend() is not None:
        legend = ax.get_legend().get_window_extent()
        assert not any(Bbox.intersection(legend, text.get_window_extent()) for text in heads)
        assert legend.y0 >= ax.get_window_extent().y1


def test_no_grid_after_set_figure_params(case):
    make, plot = case
    with plt.rc_context({"axes.grid": True}):
        ax = plot(make(4), show=False)
    panels = [ax, *ax.child_axes, *(grandchild for child in ax.child_axes for grandchild in child.child_axes)]
    lines = [line for panel in panels for line in (*panel.get_xgridlines(), *panel.get_ygridlines())]
    assert lines and not any(line.get_visible() for line in lines)


def test_the_data_are_left_alone(case):
    make, plot = case
    adata = make(4)
    before = adata.copy()
    plot(adata, show=False)
    assert adata.obs.equals(before.obs) and adata.var.equals(before.var)
    assert set(adata.uns) == set(before.uns) and set(adata.obsm) == set(before.obsm)
    if "scscore_perturbation" in adata.uns:
        np.testing.assert_array_equal(
            adata.uns["scscore_perturbation"]["tree"], before.uns["scscore_perturbation"]["tree"]
        )
