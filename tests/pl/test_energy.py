"""``pl.energy``: what is drawn is what was computed."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.tests.helpers import assert_equal
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import scscore as scs


def wells(n: int, centres: list[list[float]]) -> AnnData:
    """Cells in Gaussian wells, the first one deepest, with a UMAP that shows them."""
    rng = np.random.default_rng(0)
    means = np.array(centres, dtype=float)
    weight = np.arange(len(means), 0, -1) / np.arange(len(means) + 1).sum()
    x = means[rng.choice(len(means), size=n, p=weight)] + rng.normal(size=(n, means.shape[1]))
    density = (weight * np.exp(-0.5 * ((x[:, None] - means) ** 2).sum(2))).sum(1)
    cells = AnnData(np.zeros((n, 1), dtype=np.float32), obs=pd.DataFrame(index=[f"cell_{i}" for i in range(n)]))
    cells.obs["scscore_energy"] = -np.log(density).astype(np.float32)
    cells.obs["scscore_energy_gap"] = rng.normal(size=n).astype(np.float32) - 3
    cells.obsm["X_space"], cells.obsm["X_umap"] = x, 2 * x[:, :2] + 1
    return cells


@pytest.fixture
def three() -> AnnData:
    cells = wells(900, [[0, 0], [4.5, 0], [9, 0]])
    scs.tl.energy_landscape(cells, use_rep="X_space", min_barrier=0.5)
    return cells


def drawn(ax: Axes) -> pd.DataFrame:
    """Position and value of every cell in the picture."""
    (points,) = ax.collections
    return pd.DataFrame(np.column_stack([points.get_offsets(), points.get_array()])).sort_values(
        [0, 1], ignore_index=True
    )


def expected(cells: AnnData, column: str, slot: str = "X_umap") -> pd.DataFrame:
    frame = pd.DataFrame(np.column_stack([cells.obsm[slot][:, :2], cells.obs[column]]))
    return frame.sort_values([0, 1], ignore_index=True)


def label_of(ax: Axes) -> str:
    return next(child.get_ylabel() for child in ax.child_axes if child.get_ylabel())


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(
    ("kind", "column", "label"),
    [
        (None, "scscore_energy_smoothed", "smoothed energy (nats)"),
        ("smoothed", "scscore_energy_smoothed", "smoothed energy (nats)"),
        ("raw", "scscore_energy", "energy (nats)"),
        ("gap", "scscore_energy_gap", "path less flow energy (nats)"),
    ],
)
def test_every_cell_has_its_value(three: AnnData, kind: str | None, column: str, label: str):
    ax = scs.pl.energy(three, kind=kind, show=False)
    pd.testing.assert_frame_equal(drawn(ax), expected(three, column))
    assert label_of(ax) == label
    low, high = np.quantile(three.obs[column], [0.01, 0.99])
    if kind == "gap":  # zero is in the middle of the colours
        low, high = low, -low
    np.testing.assert_allclose(ax.collections[0].get_clim(), (low, high))


def test_energies_without_a_landscape(three: AnnData):
    cells = wells(200, [[0, 0], [4, 0]])
    ax = scs.pl.energy(cells, show=False)
    pd.testing.assert_frame_equal(drawn(ax), expected(cells, "scscore_energy"))
    assert label_of(ax) == "energy (nats)"
    assert texts(ax) == ["energies of the model's space, displayed on UMAP"] and not ax.lines
    without = scs.pl.energy(three, basins=False, show=False)
    assert texts(without) == texts(ax) and not without.lines


def test_one_outlier_does_not_take_the_colours():
    cells = wells(500, [[0, 0]])
    before = scs.pl.energy(cells, show=False).collections[0].get_clim()
    cells.obs.iloc[3, cells.obs.columns.get_loc("scscore_energy")] = 1e6
    points = scs.pl.energy(cells, show=False).collections[0]
    np.testing.assert_allclose(points.get_clim(), before, atol=0.3)
    assert points.colorbar.extend == "both"


def test_low_energy_is_dark(three: AnnData):
    cmap = scs.pl.energy(three, show=False).collections[0].cmap
    assert sum(cmap(0.0)[:3]) < 0.6 * sum(cmap(1.0)[:3])


def test_minima_and_barriers(three: AnnData):
    ax = scs.pl.energy(three, show=False)
    stored = three.uns["scscore_energy_landscape"]
    at = three[stored["minima"].tolist()].obsm["X_umap"]
    circles = np.array([line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"])
    np.testing.assert_allclose(circles[::-1], at)
    numbers = {text.get_text(): text.xy for text in ax.texts if text.get_text() in ("0", "1", "2")}
    for i in range(3):
        np.testing.assert_allclose(numbers[str(i)], at[i])
    # basin 2 is beyond basin 1, so that its lowest barrier is shared and the nearer of the two is joined
    b = stored["barriers"]
    listed = [
        "barrier (back), nats",
        f"1 → 0:  {b[1, 0]:.1f} ({b[0, 1]:.1f})",
        f"2 → 1:  {b[2, 1]:.1f} ({b[1, 2]:.1f})",
    ]
    assert next(text for text in texts(ax) if "barrier" in text).split("\n") == listed
    lines = [line.get_xydata() for line in ax.lines if line.get_color() == "k" and len(line.get_xydata()) == 2]
    np.testing.assert_allclose(lines, [at[[1, 0]], at[[2, 1]]])


def test_the_lowest_barrier_is_drawn_not_the_shortest_line(three: AnnData):
    three.uns["scscore_energy_landscape"]["barriers"] = np.array([[0.0, 5, 7], [4, 0, 4], [5, 3, 0]])
    three.obsm["X_umap"][three.obs["scscore_basin"] == "1"] += [0.0, 500.0]  # far away from the others
    listed = next(text for text in texts(scs.pl.energy(three, show=False)) if "barrier" in text)
    assert listed.split("\n")[1:] == ["1 → 0:  4.0 (5.0)", "2 → 1:  3.0 (4.0)"]


def test_many_basins():
    cells = wells(4000, [[8.0 * (k % 6), 8.0 * (k // 6)] for k in range(36)])
    scs.tl.energy_landscape(cells, use_rep="X_space", n_neighbors=30, min_barrier=0.2)
    assert len(cells.obs["scscore_basin"].cat.categories) > 30
    ax = scs.pl.energy(cells, show=False)
    assert [text for text in texts(ax) if text.isdigit()] == [str(i) for i in reversed(range(30))]
    b = cells.uns["scscore_energy_landscape"]["barriers"][:30, :30]
    n_joined = sum(np.isfinite(b[i, :i]).any() for i in range(1, 30))
    listed = [text for text in texts(ax) if "barrier" in text]
    n_lines = len(listed[0].split("\n")) - 1 if listed else 0
    assert n_lines == (min(n_joined, 12) + (n_joined > 12))


def test_parts_without_a_path_are_not_joined():
    cells = wells(300, [[0, 0], [100, 0]])
    scs.tl.energy_landscape(cells, use_rep="X_space")
    ax = scs.pl.energy(cells, show=False)
    assert [text for text in texts(ax) if text.isdigit()] == ["1", "0"]
    assert not any("barrier" in text for text in texts(ax))
    assert not [line for line in ax.lines if len(line.get_xydata()) == 2]


def test_a_subset_of_the_cells(three: AnnData):
    part = three[three.obs["scscore_basin"] != "0"]
    ax = scs.pl.energy(part, show=False)
    assert [text for text in texts(ax) if text.isdigit()] == ["2", "1"]
    assert "2 → 1" in next(text for text in texts(ax) if "barrier" in text)


def test_basis(three: AnnData):
    three.obsm["spatial"] = np.c_[three.obsm["X_space"], np.zeros(900)] * [1, 5, 1]
    ax = scs.pl.energy(three, basis="spatial", show=False)
    pd.testing.assert_frame_equal(drawn(ax), expected(three, "scscore_energy_smoothed", "spatial"))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("spatial1", "spatial2")
    assert "displayed on spatial" in texts(ax)[0]
    ax = scs.pl.energy(three, basis="X_space", show=False)
    assert ax.get_xlabel() == "space1"


def test_unit_per_feature(three: AnnData):
    three.uns["scscore_energy"] = {"params": '{"per_dof": true}'}
    assert label_of(scs.pl.energy(three, show=False)) == "smoothed energy (nats per feature)"


def test_key_and_equal_energies():
    cells = wells(50, [[0, 0]])
    cells.obs["mine_energy"] = 2.0
    low, high = scs.pl.energy(cells, key="mine", show=False).collections[0].get_clim()
    assert low < 2 < high


def test_show_return_and_nothing_written(three: AnnData, monkeypatch: pytest.MonkeyPatch):
    before, calls = three.copy(), []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    assert scs.pl.energy(three, show=True) is None and calls == [1]
    assert isinstance(scs.pl.energy(three, return_fig=True), Figure)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    assert scs.pl.energy(three, ax=axes[0]) is axes[0]
    assert figure.get_size_inches().tolist() == [9, 4] and not axes[1].has_data()
    assert_equal(three, before)


@pytest.mark.parametrize("n", [60, 6000])
def test_nothing_is_cut(n: int):
    cells = wells(n, [[0, 0], [4.5, 0], [0, 4.5]])
    cells.obsm["X_an embedding of a very long name"] = cells.obsm["X_umap"]
    scs.tl.energy_landscape(cells, use_rep="X_space", min_barrier=0.2)
    figure = scs.pl.energy(cells, basis="an embedding of a very long name", return_fig=True)
    figure.draw_without_rendering()
    box = figure.axes[0].get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_bad_input(three: AnnData):
    with pytest.raises(KeyError, match="basis='tsne': neither X_tsne nor tsne is in adata.obsm; available: "):
        scs.pl.energy(three, basis="tsne")
    three.obsm["X_line"] = np.zeros((900, 1))
    with pytest.raises(ValueError, match=r"basis='line': .* at least two columns, got \(900, 1\)"):
        scs.pl.energy(three, basis="line")
    with pytest.raises(ValueError, match="kind must be 'smoothed', 'raw', 'gap' or None, got 'se'"):
        scs.pl.energy(three, kind="se")
    with pytest.raises(KeyError, match=r"obs\['mine_energy'\] is missing \(key='mine'\): run scscore.tl.energy first"):
        scs.pl.energy(three, key="mine")
    three.obs["scscore_basin"] = three.obs["scscore_basin"].cat.rename_categories({"1": "stem"})
    with pytest.raises(ValueError, match=r"names that scscore.tl.energy_landscape did not give: \['stem'\]"):
        scs.pl.energy(three)
    cells = wells(20, [[0, 0]])
    del cells.obs["scscore_energy_gap"]
    with pytest.raises(
        KeyError, match=r"obs\['scscore_energy_gap'\] is missing .*: run scscore.tl.energy with gap=True"
    ):
        scs.pl.energy(cells, kind="gap")
    with pytest.raises(
        KeyError, match=r"obs\['scscore_energy_smoothed'\] is missing .*: run scscore.tl.energy_landscape"
    ):
        scs.pl.energy(cells, kind="smoothed")
