"""``units.glossary``, and what two of its rows claim."""

import numpy as np
from scipy import stats

import scscore as scs


def test_glossary():
    table = scs.units.glossary()
    assert table.columns.tolist() == ["ML", "physics", "units"]
    assert len(table) == 12
    assert all(isinstance(value, str) and value for value in table.to_numpy().ravel())
    assert table["ML"].is_unique
    table.loc[0, "ML"] = "changed"
    assert scs.units.glossary().loc[0, "ML"] != "changed"


def test_stretching_an_axis_adds_the_log_of_the_factor():
    x, c = np.linspace(-2, 2, 9), 3.0
    np.testing.assert_allclose(-stats.norm(0, c).logpdf(c * x), -stats.norm.logpdf(x) + np.log(c))


def test_noise_is_no_temperature():
    """Two wells: noise fills the valley between them, heat keeps its place in the ranking of the points."""
    x, wells = np.array([0.0, 2.0]), np.array([-2.0, 2.0])

    def density(sigma: float) -> np.ndarray:
        return stats.norm.pdf(x[:, None], wells, sigma).mean(1)

    clean, noised = density(0.5), density(3.0)
    assert clean[0] < clean[1] and noised[0] > noised[1]
    assert (clean ** (1 / 100))[0] < (clean ** (1 / 100))[1]
