import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

import scscore as scs

TOY = {"toy": "MADWLK", "other": "GAVL"}


def variants(rows, value="ddG", **columns) -> AnnData:
    """Variants from (protein, mutation, value)."""
    table = pd.DataFrame(rows, columns=["id", "change", value]).assign(**columns)
    return scs.proteins.variants(table, protein="id", mutation="change", sequences=TOY)


@pytest.fixture
def scanned() -> AnnData:
    """All single substitutions of the toy protein but those of residue 3, with values of both signs."""
    letters = "ACDEFGHIKLMNPQRSTVWY"
    rows = [
        ("toy", f"{old}{i}{new}") for i, old in enumerate(TOY["toy"], 1) for new in letters if new != old and i != 3
    ]
    values = np.linspace(-1, 2, len(rows))
    adata = variants([(*row, v) for row, v in zip(rows, values, strict=True)])
    adata.obs["sd"] = np.linspace(0, 1, len(rows))
    return adata


def squares(ax: Axes) -> list[PolyCollection]:
    return [c for c in ax.collections if isinstance(c, PolyCollection)]


def sides(collection: PolyCollection) -> np.ndarray:
    return np.array([np.ptp(path.vertices[:, 0]) for path in collection.get_paths()])


def centres(collection: PolyCollection) -> list[tuple[float, float]]:
    return [tuple(np.round((path.vertices.min(0) + path.vertices.max(0)) / 2, 3)) for path in collection.get_paths()]


def test_every_substitution_has_its_cell(scanned):
    ax = scs.pl.mutation_map(scanned, value="ddG", show=False)
    ground, cells = squares(ax)
    assert len(ground.get_paths()) == 6 * 20 and len(cells.get_paths()) == scanned.n_obs == 5 * 19
    row_of = {tick.get_text(): y for tick, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    assert "".join(row_of) == "GPAVILMCFWYSTNQHKRDE"
    drawn = dict(zip(centres(cells), cells.get_array(), strict=True))
    for position, mutant, value in zip(*(scanned.obs[c] for c in ("position", "mutant", "ddG")), strict=True):
        assert drawn[position - 1, round(row_of[mutant], 3)] == pytest.approx(value)
    dots = next(c for c in ax.collections if c not in (ground, cells)).get_offsets()
    np.testing.assert_allclose(dots, [(i, row_of[letter]) for i, letter in enumerate(TOY["toy"])])
    assert [text.get_text() for text in ax.texts if text.get_text().isalpha()] == list(TOY["toy"])
    assert ax.get_title(loc="left") == "toy"


def test_colours_of_signed_and_positive_values(scanned):
    cells = squares(scs.pl.mutation_map(scanned, value="ddG", show=False))[-1]
    low, high = cells.get_clim()
    assert low == -high and 1.9 < high <= 2 and cells.get_cmap().name == "RdBu_r"
    cells = squares(scs.pl.mutation_map(scanned, value="sd", show=False))[-1]
    assert cells.get_clim()[0] == 0 and cells.get_cmap().name == "viridis"
    cells = squares(scs.pl.mutation_map(scanned, value="sd", cmap="Greys", show=False))[-1]
    assert cells.get_cmap().name == "Greys"


def test_squares_shrink_with_the_uncertainty(scanned):
    cells = squares(scs.pl.mutation_map(scanned, value="ddG", uncertainty="sd", show=False))[-1]
    by_cell = scanned.obs.sort_values(["position", "mutant"], key=lambda c: c.astype(str))["sd"].to_numpy()
    assert np.corrcoef(sides(cells), by_cell)[0, 1] < -0.999
    assert 0.2 < sides(cells).min() < sides(cells).max() < 1


def test_equal_substitutions_are_averaged_and_others_left_out():
    rows = [("toy", "A2G", 1.0), ("toy", "A2G", 3.0), ("toy", "A2G:W4F", 9.0), ("toy", "", 0.0), ("other", "A2G", 7.0)]
    adata = variants([*rows, ("toy", "W4F", np.nan)])
    cells = squares(scs.pl.mutation_map(adata, protein="toy", value="ddG", show=False))[-1]
    assert cells.get_array().tolist() == [2.0]


def test_long_sequences_are_wrapped():
    sequence = "MADWLKGRTS" * 20
    table = pd.DataFrame({"id": "long", "change": [f"{a}{i}{'P'}" for i, a in enumerate(sequence, 1)], "ddG": 1.0})
    adata = scs.proteins.variants(table, protein="id", mutation="change", sequences={"long": sequence})
    figure = scs.pl.mutation_map(adata, value="ddG", return_fig=True)
    ax = figure.axes[0]
    assert len(ax.get_yticks()) == 3 * 20 and max(figure.get_size_inches()) < 14
    numbers = [int(text.get_text()) for text in ax.texts if text.get_text().isdigit()]
    assert numbers == [1, *range(10, 201, 10)]
    figure.draw_without_rendering()
    box, inside = ax.get_tightbbox(), figure.bbox
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= inside.x1 and box.y1 <= inside.y1


def test_without_the_stored_sequence(scanned):
    del scanned.uns["proteins"]
    ax = scs.pl.mutation_map(scanned, value="ddG", show=False)
    assert "".join(text.get_text() for text in ax.texts if not text.get_text().isdigit()) == "MAWLK"


def test_show_and_return(scanned):
    before = scanned.copy()
    assert isinstance(scs.pl.mutation_map(scanned, value="ddG", show=False), Axes)
    assert isinstance(scs.pl.mutation_map(scanned, value="ddG", return_fig=True), Figure)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4))
    assert scs.pl.mutation_map(scanned, value="ddG", uncertainty="sd", ax=axes[0]) is axes[0]
    assert figure.get_size_inches().tolist() == [9, 4] and not axes[1].has_data()
    assert scanned.obs.equals(before.obs) and set(scanned.uns) == set(before.uns)


def test_bad_input(scanned):
    with pytest.raises(KeyError, match="value='scscore_mean' is not a column of adata.obs; available"):
        scs.pl.mutation_map(scanned)
    with pytest.raises(KeyError, match="uncertainty='x' is not a column"):
        scs.pl.mutation_map(scanned, value="ddG", uncertainty="x")
    with pytest.raises(ValueError, match="value='mutation' is not numeric"):
        scs.pl.mutation_map(scanned, value="mutation")
    with pytest.raises(ValueError, match="uncertainty='ddG' has negative values"):
        scs.pl.mutation_map(scanned, value="sd", uncertainty="ddG")
    with pytest.raises(KeyError, match=r"protein='x' is not in adata.obs\['protein'\]; there are \['toy'\]"):
        scs.pl.mutation_map(scanned, value="ddG", protein="x")
    with pytest.raises(
        KeyError, match=r"adata.obs lacks \['protein', .*make the variants with scscore.proteins.variants"
    ):
        scs.pl.mutation_map(AnnData(np.zeros((2, 1))), value="ddG")
    two = variants([("toy", "A2G", 1.0), ("other", "A2G", 1.0)])
    with pytest.raises(ValueError, match="protein= is missing: adata has 2 proteins"):
        scs.pl.mutation_map(two, value="ddG")
    none = variants([("toy", "A2G:W4F", 1.0), ("toy", "A2G", np.nan)])
    with pytest.raises(ValueError, match="no single substitution of protein 'toy' has a finite value"):
        scs.pl.mutation_map(none, value="ddG")
