"""What all plots have in common."""

import ast
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

import scscore as scs

PLOTS = {
    "novelty": lambda adata, **kwargs: scs.pl.novelty(adata, "class", **kwargs),
    "reliability": lambda adata, **kwargs: scs.pl.reliability(adata, "class", **kwargs),
    "posterior": scs.pl.posterior,
    "confusion": lambda adata, **kwargs: scs.pl.confusion(adata, "class", **kwargs),
    "training": scs.pl.training,
}


@pytest.fixture(params=PLOTS)
def plot(request):
    return PLOTS[request.param]


@pytest.fixture
def shown(monkeypatch):
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    return calls


@pytest.fixture
def autoshow():
    before = sc.settings.autoshow
    yield
    sc.settings.autoshow = before


def test_show_and_return(plot, classified, shown, autoshow):
    adata = classified(3)
    sc.settings.autoshow = True
    assert plot(adata) is None
    assert plot(adata, show=True) is None
    assert len(shown) == 2
    assert isinstance(plot(adata, show=False), Axes)
    assert isinstance(plot(adata, return_fig=True), Figure)
    _, ax = plt.subplots()
    assert plot(adata, ax=ax) is ax
    assert plot(adata, ax=ax, return_fig=True) is ax.figure
    sc.settings.autoshow = False
    assert isinstance(plot(adata), Axes)
    assert len(shown) == 2


def test_a_given_figure_keeps_its_size(plot, classified):
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    plot(classified(3), ax=axes[0])
    assert figure.get_size_inches().tolist() == [9, 4]
    assert not axes[1].has_data()


@pytest.mark.parametrize("n_classes", [3, 60])
def test_nothing_is_cut_and_no_labels_touch(plot, classified, n_classes):
    figure = plot(classified(n_classes), return_fig=True)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    inside, box = figure.bbox, ax.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
    assert max(figure.get_size_inches()) < 14
    for labels in (ax.get_yticklabels(), ax.get_xticklabels()):
        assert all(label.get_fontsize() >= 7 for label in labels)
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        if labels and labels[0].get_rotation() in (0, 90):
            assert not any(Bbox.intersection(a, b) for a, b in zip(boxes, boxes[1:], strict=False))


def test_heatmap_cells_are_square(classified):
    for plot in (PLOTS["posterior"], PLOTS["confusion"]):
        box = plot(classified(60), show=False).get_window_extent()
        np.testing.assert_allclose(box.width, box.height, rtol=0.01)


def test_the_data_are_left_alone(plot, classified):
    adata = classified(3)
    before = adata.copy()
    plot(adata, show=False)
    assert set(adata.uns) == set(before.uns) and set(adata.obsm) == set(before.obsm)
    assert adata.obs.equals(before.obs)


def test_import_is_lazy():
    for path in Path(scs.pl.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not any(name.startswith("matplotlib") for name in names), (path, names)
