"""``pl.dissipation``: what is drawn, where the cell was decided, layout, colours, bad input."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from anndata.tests.helpers import assert_equal
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

import scscore as scs

LONG = "Lymphoid/T cell, alpha-beta CD{}+ central memory-like, subtype {}"


@cache
def _followed() -> AnnData:
    cells = scs.datasets.toy_gaussians(n_obs=60)
    model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=1, progress=False)
    scs.tl.dissipation(cells, model, cells.obs_names[:13], n_steps=12, n_paths=4, progress=False)
    return cells


def followed() -> AnnData:
    """Toy cells, 13 of which were followed."""
    return _followed().copy()


def many(n_classes: int, n_cells: int = 12) -> AnnData:
    """Curves as of `n_cells` cells, a third of them hard to tell; many classes have long names."""
    rng = np.random.default_rng(n_classes)
    depth = rng.gamma(1.0, 4.0, (n_cells, n_classes))
    depth[np.arange(n_cells), np.arange(n_cells) % n_classes] = 0
    depth[::3] /= 20
    rise = 1 / (1 + np.exp(-np.linspace(-4, 4, 14) - rng.normal(0, 2, (n_cells, 1))))
    raw = -depth[:, None, :] * rise[..., None]
    evidence = raw - np.log(np.exp(raw).mean(-1, keepdims=True))
    classes = [LONG.format(k % 9, k) for k in range(n_classes)] if n_classes > 26 else None
    adata = stored(evidence[0], classes=classes)
    slot = adata.uns["scscore_dissipation"]
    names = [f"AAACATACAACCAC-1-donor_17_batch_B_replicate_{i}" if classes else f"cell_{i}" for i in range(n_cells)]
    lead = evidence == evidence.max(-1, keepdims=True)
    slot |= {"cells": np.array(names, dtype=object), "log_snr": np.append(np.linspace(-5, 5, 13), np.inf)}
    slot |= {"evidence": evidence, "evidence_sd": np.full_like(evidence, 0.2), "lead": lead.astype(np.float32)}
    return adata


def stored(
    evidence: Any,
    *,
    lead: Any = None,
    prior: Any = None,
    sd: float = 0.1,
    classes: Any = None,
    temperature: float = 1.0,
) -> AnnData:
    """An AnnData with given curves of one cell: evidence ``(n_levels, n_classes)``, levels at 1, 2, ..., clean."""
    evidence = np.asarray(evidence, dtype=np.float32)
    n_levels, n_classes = evidence.shape
    shares = np.zeros_like(evidence)
    shares[:, evidence[-1].argmax()] = np.ones(n_levels) if lead is None else lead
    names = [chr(ord("A") + k) for k in range(n_classes)] if classes is None else classes
    adata = AnnData(np.zeros((1, 1)))
    adata.uns["scscore_dissipation"] = {
        "cells": np.array(["cell"], dtype=object),
        "classes": np.array(names, dtype=object),
        "log_snr": np.append(np.arange(1.0, n_levels), np.inf),
        "evidence": evidence[None],
        "evidence_sd": np.full_like(evidence, sd)[None],
        "lead": shares[None],
        "prior": np.full(n_classes, 1 / n_classes) if prior is None else np.asarray(prior),
        "params": json.dumps({"condition": "class", "temperature": temperature}),
    }
    return adata


def line_of(ax: Axes, name: str) -> Any:
    (line,) = (line for line in ax.lines if line.get_label() == name)
    return line


def texts_of(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def decision_of(ax: Axes) -> tuple[float | None, str]:
    """Where the vertical line stands, and what is written above it."""
    upright = [line.get_xdata()[0] for line in ax.lines if list(line.get_ydata()) == [0, 1]]
    return (upright[0] if upright else None), ax.texts[0].get_text()


def drawn(adata: AnnData, *args: Any, **kwargs: Any) -> Any:
    return scs.pl.dissipation(adata, *args, show=False, **kwargs)


RISE = [[0, 0, 0], [0.5, -1, -2], [1, -2, -4], [1, -3, -6]]


# what is drawn ----------------------------------------------------------------------------------------------------


def test_lines_hold_the_stored_evidence():
    adata = followed()
    slot = adata.uns["scscore_dissipation"]
    ax = drawn(adata, "cell_4")
    i = slot["cells"].tolist().index("cell_4")
    for k, name in enumerate(slot["classes"]):
        x, y = line_of(ax, name).get_xydata().T
        np.testing.assert_array_equal(x, slot["log_snr"][:-1])
        np.testing.assert_allclose(y, slot["evidence"][i, :-1, k])
    ends = [line.get_xydata() for line in ax.lines if line.get_linestyle() == ":"]
    assert len(ends) == 6
    starts, stops = ends[::2], ends[1::2]
    assert all(start[0].tolist() == [ax.get_xlim()[0], 0] for start in starts)  # all noise: no evidence
    np.testing.assert_allclose(sorted(stop[1, 1] for stop in stops), np.sort(slot["evidence"][i, -1]))
    assert all(stop[1, 0] == ax.get_xlim()[1] for stop in stops)
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert (names[0], names[-1]) == ("all\nnoise", "clean\ncell")
    assert ax.get_xlabel() == "noise level (log SNR)"
    assert ax.get_ylabel() == "evidence over prior (nats)"


def test_bands_are_one_standard_deviation_and_stay_below_the_bound():
    ax = drawn(stored(RISE, sd=0.4))
    assert len(ax.collections) == 3
    by_depth = sorted(ax.collections, key=lambda band: band.get_paths()[0].get_extents().ymin)
    assert by_depth[0].get_paths()[0].get_extents().ymin == pytest.approx(-6.4)
    assert by_depth[-1].get_paths()[0].get_extents().ymax == pytest.approx(np.log(3))  # not 1.4


def test_title_has_the_predicted_class_and_its_tempered_posterior():
    adata = stored([[0, 0], [0.3, -0.6]], prior=[0.5, 0.5], temperature=2.0)
    expected = 1 / (1 + np.exp(-1.8))
    assert drawn(adata).get_title(loc="left") == f"cell\nA, posterior {expected:.2f}"
    assert drawn(stored(RISE, temperature=9.0)).get_title(loc="left") == "cell\nA, posterior >0.99"


@pytest.mark.parametrize(
    ("lead", "place", "text"),
    [
        ([0.3, 0.5, 0.9, 1.0], 3, "decided at log SNR 3.0"),
        ([1.0, 0.8, 0.95, 1.0], 3, "decided at log SNR 3.0"),
        ([0.9, 0.9, 0.9, 0.9], 1, "decided before log SNR 1.0"),
        ([0.3, 0.5, 0.7, 1.0], "clean", "decided at the clean cell"),
        ([1.0, 1.0, 1.0, 0.5], None, "not decided: leads on 50% of the trajectories"),
    ],
)
def test_the_decision_is_where_the_lead_stays(lead: Any, place: Any, text: str):
    ax = drawn(stored(RISE, lead=lead))
    x, written = decision_of(ax)
    assert written == text
    assert x == (ax.get_xlim()[1] if place == "clean" else place)


def test_a_prior_that_overrules_the_evidence_is_named():
    ax = drawn(stored([[0, 0], [0.2, -0.1]], prior=[0.1, 0.9]))
    assert decision_of(ax) == (None, "decided by the prior")
    assert ax.get_title(loc="left").split("\n")[1].startswith("B, posterior")


def test_the_vertical_axis_is_that_of_the_strongest_classes():
    far = np.array([[0, 0, 0, 0], [1, -1, -3, -50], [1.3, -2, -4, -300]])
    ax = drawn(stored(far))
    bottom, top = ax.get_ylim()
    assert -5.5 < bottom < -4 and 1.3 < top < 2.5
    assert {"A", "B", "C", "D (−300 ↓)"} <= set(texts_of(ax))
    ax = drawn(stored(far * [1, 40, 40, 1]))
    assert -13.5 < ax.get_ylim()[0] < -12
    assert {"A", "B (−80 ↓)", "C (−160 ↓)"} <= set(texts_of(ax))
    ax = drawn(stored([[0, 0], [0.02, -0.03]], sd=0.001))
    assert ax.get_ylim()[1] - ax.get_ylim()[0] < 0.5  # weak evidence fills the panel
    ax = drawn(stored([[0, 0], [90, -1]], prior=[0, 1]))  # an excluded class has no bound
    assert ax.get_ylim()[1] < 15 and "A (90 ↑)" in texts_of(ax)


def test_the_strongest_classes_and_the_predicted_one_are_in_colour():
    evidence = np.array([np.zeros(6), [0.3, 0.2, 0.1, -1, -2, -3]])
    ax = drawn(stored(evidence), n_classes=2)
    assert [line_of(ax, name).get_color() == "0.75" for name in "ABCDEF"] == [False] * 2 + [True] * 4
    assert texts_of(ax)[1:] == ["A", "B", "4 other classes"]
    assert len(ax.collections) == 2
    ax = drawn(stored(evidence, prior=[0.01, 0.01, 0.01, 0.01, 0.95, 0.01]), n_classes=2)
    assert set(texts_of(ax)[1:]) == {"A", "E", "4 other classes"}
    assert line_of(ax, "E").get_linewidth() > line_of(ax, "A").get_linewidth()
    ax = drawn(stored(evidence), n_classes=5)
    assert texts_of(ax)[-1] == "1 other class"
    assert "other" not in " ".join(texts_of(drawn(stored(evidence), n_classes=60)))


# colours ----------------------------------------------------------------------------------------------------------


def colors_of(ax: Axes, names: str = "abc") -> list[str]:
    return [to_hex(line_of(ax, name).get_color()) for name in names]


def test_colours_of_the_condition_or_a_palette():
    adata = followed()
    default = colors_of(drawn(adata, "cell_0"))
    assert len(set(default)) == 3
    wanted = ["#111111", "#222222", "#333333"]
    assert colors_of(drawn(adata, "cell_0", palette=wanted)) == wanted
    mapping = dict(zip("abc", wanted, strict=True))
    assert colors_of(drawn(adata, "cell_0", palette={**mapping, "d": "red"})) == wanted
    adata.obs["class"] = adata.obs["class"].cat.reorder_categories(["c", "b", "a"])
    adata.uns["class_colors"] = wanted
    assert colors_of(drawn(adata, "cell_0")) == wanted[::-1]
    adata.uns["class_colors"] = wanted[:2]  # too few
    assert colors_of(drawn(adata, "cell_0")) == default
    del adata.obs["class"]
    adata.uns["class_colors"] = wanted
    assert colors_of(drawn(adata, "cell_0")) == default


def test_without_stored_colours_no_class_is_grey():
    axes = drawn(many(60))
    colors = {line.get_label(): line.get_color() for ax in axes for line in ax.lines if line.get_linewidth() > 1}
    colors = {name: color for name, color in colors.items() if not name.startswith("_")}
    assert len(colors) > 20
    assert len(set(colors.values())) == len(colors)  # a class has one colour in all panels, and no other class has it
    assert all(max(rgb) - min(rgb) >= 0.1 for rgb in map(plt.matplotlib.colors.to_rgb, colors.values()))


# layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 9, 60])
@pytest.mark.parametrize("n_cells", [1, 2, 4, 12])
def test_nothing_is_cut_and_nothing_touches(n_classes: int, n_cells: int):
    figure = drawn(many(n_classes, n_cells), return_fig=True)
    figure.draw_without_rendering()
    assert len(figure.axes) == n_cells
    assert max(figure.get_size_inches()) < 14
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    for i, box in enumerate(boxes):
        assert not any(Bbox.intersection(box, other) for other in boxes[i + 1 :])
    for ax in figure.axes:
        assert all(text.get_fontsize() >= 7 for text in ax.texts)
        ticks = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert not any(Bbox.intersection(a, b) for a, b in zip(ticks, ticks[1:], strict=False))
        heights = sorted(text.xyann[1] for text in ax.texts[1:])
        lines = np.diff(heights) * ax.get_window_extent().height / figure.dpi * 72
        assert (lines > 8).all()  # points, the size of the font
    assert len({(*ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes}) == 1


def test_many_classes_in_colour_make_the_panel_higher():
    ax = drawn(many(60, 1), n_classes=40)
    assert all(text.get_fontsize() >= 7 for text in ax.texts)


def test_long_names_are_cut_in_the_middle():
    cell, predicted = drawn(many(60, 1)).get_title(loc="left").split("\n")
    assert cell == "AAACATACAACCAC-1…tch_B_replicate_0"
    assert predicted.startswith("Lymphoid/T …e, subtype 0, posterior")


def test_all_stored_cells_are_drawn_up_to_twelve(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="scscore"):
        axes = drawn(followed())
    assert len(axes) == 12
    assert "drew the first 12 of 13 cells; name others with cells=" in caplog.text
    assert [ax.get_title(loc="left").split("\n")[0] for ax in axes] == [f"cell_{i}" for i in range(12)]
    assert drawn(followed(), ["cell_12", "cell_3"])[0].get_title(loc="left").startswith("cell_12\n")


# convention -------------------------------------------------------------------------------------------------------


@pytest.fixture
def autoshow() -> Iterator[None]:
    before = sc.settings.autoshow
    yield
    sc.settings.autoshow = before


def test_show_and_return(monkeypatch: pytest.MonkeyPatch, autoshow: None):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    sc.settings.autoshow = True
    adata, one, two = followed(), "cell_1", ["cell_1", "cell_2"]
    for cells in (one, two):
        assert scs.pl.dissipation(adata, cells) is None
        assert scs.pl.dissipation(adata, cells, show=True) is None
    assert len(shown) == 4
    assert isinstance(drawn(adata, one), Axes)
    assert isinstance(drawn(adata, [one]), Axes)
    assert all(isinstance(ax, Axes) for ax in drawn(adata, two))
    assert isinstance(scs.pl.dissipation(adata, one, return_fig=True), Figure)
    assert isinstance(scs.pl.dissipation(adata, two, return_fig=True), Figure)
    sc.settings.autoshow = False
    assert isinstance(scs.pl.dissipation(adata, one), Axes)
    assert len(scs.pl.dissipation(adata, two)) == 2
    assert len(shown) == 4


def test_a_given_figure_keeps_its_size():
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    assert scs.pl.dissipation(followed(), "cell_1", ax=axes[0]) is axes[0]
    assert figure.get_size_inches().tolist() == [9, 4]
    assert not axes[1].has_data()


def test_the_data_are_left_alone_and_files_draw_the_same(tmp_path: Any):
    adata = followed()
    before = adata.copy()
    lines = [line.get_ydata() for line in drawn(adata, "cell_4").lines]
    assert_equal(adata, before)
    adata.write_zarr(tmp_path / "cells.zarr")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for again in (ad.read_zarr(tmp_path / "cells.zarr"), ad.read_h5ad(tmp_path / "cells.h5ad")):
        for line, expected in zip(drawn(again, "cell_4").lines, lines, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), expected)


# bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"key": "mine"}, KeyError, r"uns\['mine_dissipation'\] is missing \(key='mine'\): run scscore.tl.dissipation"),
        ({"cells": "cell_99"}, KeyError, r"\['cell_99'\] were not followed; stored: \['cell_0'.*\.\.\.\. Run"),
        ({"cells": 3}, TypeError, "cells must be a name of a cell or a list of names, got 3"),
        ({"cells": [True, False]}, TypeError, "cells must be a name of a cell or a list of names"),
        ({"cells": []}, ValueError, "cells must name between 1 and 12 cells, got 0"),
        ({"cells": [f"cell_{i}" for i in range(13)]}, ValueError, "between 1 and 12 cells, got 13"),
        ({"n_classes": 0}, ValueError, "n_classes must be a positive integer, got 0"),
        ({"n_classes": 2.5}, ValueError, "n_classes must be a positive integer, got 2.5"),
        ({"palette": {"a": "red"}}, KeyError, r"palette has no colour for \['b', 'c'\]"),
        ({"palette": ["red"]}, ValueError, "list at least 3 colours"),
        ({"palette": "tab10"}, ValueError, "palette must map classes to colours or list"),
        ({"palette": ["red", "blue", "mud"]}, ValueError, r"palette: \['mud'\] are no colours"),
    ],
)
def test_bad_input(kwargs: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        scs.pl.dissipation(followed(), **kwargs)
    assert not plt.get_fignums()


def test_one_axes_is_for_one_cell():
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="ax takes one cell, but 12 are to be drawn: name one in cells="):
        scs.pl.dissipation(followed(), ax=ax)
