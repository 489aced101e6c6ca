"""``pl.regression``: what is drawn, and what is refused."""

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import scscore as scs


@cache
def _predicted(circular: bool) -> AnnData:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    cells = AnnData(x.astype(np.float32))
    cells.obs["y"] = x[:, 0] + 0.5 * rng.normal(size=300)
    cells.obs["hour"] = np.mod(np.arctan2(x[:, 0], x[:, 1]) * 12 / np.pi + 2 * rng.normal(size=300), 24)
    model = scs.tl.fit(
        cells,
        "hour" if circular else "y",
        input="values",
        circular=24.0 if circular else False,
        n_members=1,
        max_epochs=10,
        progress=False,
    )
    scs.tl.regress(cells, model, progress=False)
    return cells


@pytest.fixture(params=[False, True], ids=["line", "circle"])
def predicted(request) -> tuple[AnnData, str]:
    return _predicted(request.param).copy(), "hour" if request.param else "y"


def test_panels_and_figures(predicted: tuple[AnnData, str]):
    cells, target = predicted
    ax = scs.pl.regression(cells, target, show=False)
    assert isinstance(ax, Axes) and len(ax.child_axes) == 2
    y, mean = cells.obs[target].to_numpy(), cells.obs["scscore_mean"].to_numpy()
    assert np.allclose(ax.collections[0].get_offsets(), np.stack([y, mean], axis=1))
    period = 24 if target == "hour" else None
    residual = (y - mean + 12) % 24 - 12 if period else y - mean
    around = np.angle(np.exp(2j * np.pi * y / 24).mean()) * 12 / np.pi if period else y.mean()
    spread = (y - around + 12) % 24 - 12 if period else y - around
    assert f"R² {1 - np.mean(residual**2) / np.mean(spread**2):.3f}" in ax.get_title()
    curve = ax.child_axes[0].lines[1]
    assert (np.diff(curve.get_xdata()) >= 0).all() and curve.get_ydata()[-1] == 1
    assert np.abs(curve.get_xdata() - curve.get_ydata()).max() < 0.15  # these are the training cells: about calibrated
    figure = scs.pl.regression(cells, target, return_fig=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    box, inside = figure.axes[0].get_tightbbox(), figure.bbox
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
    _, given = plt.subplots()
    assert scs.pl.regression(cells, target, ax=given) is given


def test_orange_intervals_are_those_that_miss(predicted: tuple[AnnData, str]):
    cells, target = predicted
    cells.obs["scscore_lower"], cells.obs["scscore_upper"] = (
        cells.obs["scscore_mean"] - 0.1,
        cells.obs["scscore_mean"] + 0.1,
    )
    ax = scs.pl.regression(cells, target, show=False)
    near = np.abs((cells.obs[target] - cells.obs["scscore_mean"] + 12) % 24 - 12) <= 0.1
    assert f"{near.mean():.0%} in 90% intervals" in ax.get_title()


def test_cells_without_value_are_left_out(predicted: tuple[AnnData, str]):
    cells, target = predicted
    cells.obs.loc[cells.obs_names[:100], target] = np.nan
    ax = scs.pl.regression(cells, target, show=False)
    assert len(ax.collections[0].get_offsets()) == 200


def test_bad_input_is_named(predicted: tuple[AnnData, str]):
    cells, target = predicted
    with pytest.raises(KeyError, match="target='age' is not a column"):
        scs.pl.regression(cells, "age")
    with pytest.raises(KeyError, match="tl.regress first"):
        scs.pl.regression(cells, target, key="other")
    cells.obs["text"] = "a"
    with pytest.raises(ValueError, match="must hold real numbers"):
        scs.pl.regression(cells, "text")
    cells.obs[target] = np.nan
    with pytest.raises(ValueError, match="holds 0 known values"):
        scs.pl.regression(cells, target)
