"""``pl.funnel``: panels, points, the reference and what is written."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.tests.helpers import assert_equal
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

import scscore as scs

LONG = "complex of an enzyme with a name / that goes on and on until nobody reads it any more"


def poses(n_groups: int, n: int = 60) -> AnnData:
    """Poses with a funnel; the later the group, the shallower."""
    rng = np.random.default_rng(0)
    names = [LONG, *(f"group/{i}" for i in range(1, n_groups))]
    y = np.repeat(np.arange(n_groups), n)
    distance = 20 * rng.random(len(y)) ** (1 / 3)
    obs = pd.DataFrame(
        {"complex": pd.Categorical.from_codes(y, names), "rmsd": distance}, index=map(str, range(len(y)))
    )
    obs["scscore_energy"] = 10 * y + distance / (1 + y) + 0.2 * rng.normal(size=len(y))
    obs["quality"] = pd.cut(distance, [0, 8, 14, 20], labels=["high", "medium", "bad"])
    adata = AnnData(np.zeros((len(y), 1), dtype=np.float32), obs=obs)
    scs.tl.funnel(adata, distance="rmsd", groupby="complex" if n_groups > 1 else None)
    return adata


def points_of(ax: Axes) -> np.ndarray:
    return np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets())])


def star_of(ax: Axes) -> list[float]:
    (star,) = [line for line in ax.lines if line.get_marker() == "*"]
    return star.get_xydata()[0].tolist()


@pytest.mark.parametrize("n_groups", [1, 3, 4, 12])
def test_points_reference_and_measures(n_groups: int):
    adata = poses(n_groups)
    frame = scs.get.funnel(adata)
    found = scs.pl.funnel(adata, show=False)
    axes = [found] if n_groups == 1 else found
    assert len(axes) == n_groups
    for i, ax in enumerate(axes):
        part = adata.obs.iloc[60 * i : 60 * (i + 1)]
        height = part["scscore_energy"] - part["scscore_energy"].min()
        expected = np.column_stack([part["rmsd"], height])
        drawn = points_of(ax)
        np.testing.assert_allclose(drawn[np.argsort(drawn[:, 0])], expected[np.argsort(expected[:, 0])])
        nearest = part["rmsd"].argmin()
        np.testing.assert_allclose(star_of(ax), expected[nearest])
        row = frame.iloc[i]
        (text,) = ax.texts
        first, second, third = text.get_text().split("\n")
        assert first == f"Spearman {row['spearman']:.2f}"
        for number, value in zip(
            second.removesuffix(")").split(" ")[1::2], row[["p_near", "p_near_flat"]], strict=True
        ):
            digit = 0.01 if value >= 0.01 else 10.0 ** np.floor(np.log10(value))
            assert float(number) == pytest.approx(value, abs=0.501 * digit)
        assert third == f"rank {row['reference_rank']} of 60"
        (band,) = ax.patches
        assert band.get_width() == pytest.approx(0.2 * np.median(adata.obs["rmsd"]))
        assert (ax.get_xlim(), ax.get_ylim()) == (axes[0].get_xlim(), axes[0].get_ylim())
    titles = [ax.get_title() for ax in axes]
    assert titles[1:] == frame.index[1:].tolist()
    if n_groups == 1:
        assert titles == [""]
    else:
        assert (
            titles[0].startswith("complex of an enzyme") and titles[0].endswith(" ...") and titles[0].count("\n") == 1
        )
    assert axes[-1].get_xlabel() == "rmsd" and axes[0].get_ylabel() == "energy above lowest (nats)"


def test_groups_are_chosen_by_name():
    adata = poses(14)
    with pytest.raises(
        ValueError, match="14 groups are too many for one figure, 12 at most: name some, for instance groups="
    ):
        scs.pl.funnel(adata)
    axes = scs.pl.funnel(adata, groups=["group/13", "group/2"], show=False)
    assert [ax.get_title() for ax in axes] == ["group/13", "group/2"]
    assert scs.pl.funnel(adata, groups="group/5", show=False).get_title() == "group/5"
    with pytest.raises(KeyError, match=r"no funnel of \['none'\]; there are .* and 9 more"):
        scs.pl.funnel(adata, groups=["group/1", "none"])
    with pytest.raises(ValueError, match="groups must name between 1 and 12 groups, got 0"):
        scs.pl.funnel(adata, groups=[])
    with pytest.raises(TypeError, match="groups must be a name of a group or a list of names, got 3"):
        scs.pl.funnel(adata, groups=3)
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="ax takes one group, but 2 are to be drawn"):
        scs.pl.funnel(adata, groups=["group/1", "group/2"], ax=ax)


def test_reference_cell():
    adata = poses(1)
    adata.obsm["X_rep"] = adata.obs[["rmsd"]].to_numpy()
    scs.tl.funnel(adata, reference="7", use_rep="X_rep")
    ax = scs.pl.funnel(adata, show=False)
    assert ax.get_xlabel() == "distance to 7"
    energy = adata.obs["scscore_energy"]
    np.testing.assert_allclose(star_of(ax), [0, energy.iloc[7] - energy.min()])


def test_colours_of_classes():
    adata = poses(2)
    adata.uns["quality_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    adata.obs.loc["0", "quality"] = np.nan
    ax = scs.pl.funnel(adata, groups="group/1", color="quality", show=False)
    points = max(ax.collections, key=lambda c: len(c.get_offsets()))
    part = adata.obs.iloc[60:].set_index("rmsd")["quality"]
    shade = {"high": (1, 0, 0), "medium": (0, 1, 0), "bad": (0, 0, 1)}
    for (distance, _), color in zip(points.get_offsets(), points.get_facecolors(), strict=True):
        assert tuple(color[:3]) == shade[part[distance]]
    drawn = [part[distance] for distance, _ in points.get_offsets()]
    counts = adata.obs["quality"].value_counts()
    assert list(dict.fromkeys(drawn)) == counts.index.tolist()  # rare classes come last, on top
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["high", "medium", "bad"]
    axes = scs.pl.funnel(adata, color="quality", show=False)
    grey = max(axes[0].collections, key=lambda c: len(c.get_offsets())).get_facecolors()
    assert (np.ptp(grey[:, :3], axis=1) == 0).sum() == 1  # the one without a class


def test_few_high_energies_do_not_flatten_the_funnel():
    adata = poses(1, n=1000)
    adata.obs.loc["5", "scscore_energy"] = 1e5
    ax = scs.pl.funnel(adata, show=False)
    assert ax.get_ylim()[1] < 30
    above = [c for c in ax.collections if len(c.get_offsets()) < 10]
    (triangles,) = above
    assert adata.obs.loc["5", "rmsd"] in triangles.get_offsets()[:, 0]
    assert (triangles.get_offsets()[:, 1] < ax.get_ylim()[1]).all()
    assert len(points_of(ax)) == 1000


def test_show_return_and_nothing_written(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    for n_groups in (1, 3):
        adata = poses(n_groups)
        before = adata.copy()
        assert scs.pl.funnel(adata, show=True) is None
        assert isinstance(scs.pl.funnel(adata, return_fig=True), Figure)
        found = scs.pl.funnel(adata, show=False)
        assert isinstance(found, Axes) if n_groups == 1 else [isinstance(ax, Axes) for ax in found] == [True] * 3
        assert_equal(adata, before)
    assert calls == [1, 1]
    _, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    assert scs.pl.funnel(adata, groups="group/1", ax=axes[0]) is axes[0]
    assert not axes[1].has_data()


@pytest.mark.parametrize("n_groups", [1, 2, 5, 12])
def test_nothing_is_cut_and_no_panels_touch(n_groups: int):
    figure = scs.pl.funnel(poses(n_groups), color="quality", return_fig=True)
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    for i, a in enumerate(boxes):
        assert not any(Bbox.intersection(a, b) for b in boxes[i + 1 :])
    assert max(figure.get_size_inches()) < 14


def test_bad_input():
    adata = poses(2)
    with pytest.raises(KeyError, match=r"uns\['mine_funnel'\] is missing \(key='mine'\): run scscore.tl.funnel first"):
        scs.pl.funnel(adata, key="mine")
    with pytest.raises(KeyError, match="color='type' is not a column of adata.obs"):
        scs.pl.funnel(adata, color="type")
    with pytest.raises(ValueError, match="color='rmsd' is continuous"):
        scs.pl.funnel(adata, color="rmsd")
    with pytest.raises(
        ValueError, match="group 'group/1' has 10 points, its funnel was computed from 60: run scscore.tl.funnel"
    ):
        scs.pl.funnel(adata[:70], groups="group/1")
    del adata.obs["rmsd"]
    with pytest.raises(
        KeyError, match=r"obs\['rmsd'\], the distances of the funnels, is missing: run scscore.tl.funnel"
    ):
        scs.pl.funnel(adata)
