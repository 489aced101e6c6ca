import numpy as np
import pytest
from anndata import AnnData

import scscore as scs


def curves(steps, training, validation):
    adata = AnnData(np.zeros((1, 1)))
    named = {"training_steps": steps, "training_loss": training, "validation_loss": validation}
    adata.uns["scscore"] = {name: np.array(value) for name, value in named.items()}
    return adata


def lines_of(ax):
    return {line.get_label().split(":")[0].split(",")[0]: line for line in ax.lines}


def test_curves_of_a_fit(classified):
    adata = classified(3)
    stored = adata.uns["scscore"]
    n = len(stored["training_steps"]) - 1
    lines = lines_of(scs.pl.training(adata, show=False))
    np.testing.assert_array_equal(
        lines["validation loss"].get_xydata().T, [stored["training_steps"], stored["validation_loss"]]
    )
    np.testing.assert_array_equal(
        lines["training objective"].get_xydata().T, [stored["training_steps"][1:], stored["training_loss"][-n:]]
    )
    np.testing.assert_array_equal(lines["reference alone"].get_ydata(), stored["validation_loss"][0])


def test_reference_and_chosen_step():
    ax = scs.pl.training(curves([0, 25, 50, 75], [0.9, 0.8, 0.7], [1.0, 0.8, 0.7, 0.9]), show=False)
    lines = lines_of(ax)
    assert lines["chosen"].get_xydata().tolist() == [[50, 0.7]]
    assert lines["chosen"].get_label() == "chosen, step 50: 0.700"
    assert lines["reference alone"].get_label() == "reference alone: 1.000"
    assert ax.get_xlabel() == "training step"
    assert ax.get_ylabel() == "loss (nats per cell)"
    ax = scs.pl.training(curves([0, 25], [0.9], [1.0, 1.1]), show=False)
    assert lines_of(ax)["chosen"].get_label() == "chosen: the reference alone"


@pytest.mark.parametrize("first", [[], [np.nan]])
def test_training_loss_starts_after_the_first_check(first):
    ax = scs.pl.training(curves([0, 25, 50], [*first, 0.8, 0.7], [1.0, 0.8, 0.7]), show=False)
    assert lines_of(ax)["training objective"].get_xydata().tolist() == [[25, 0.8], [50, 0.7]]


def test_chosen_step_is_that_of_the_model():
    rng = np.random.default_rng(0)
    angle, y = rng.uniform(0, 2 * np.pi, 300), np.arange(300) % 2
    ring = (1 + 2 * y)[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]) + 0.2 * rng.normal(size=(300, 2))
    adata = AnnData(ring, obs={"class": np.where(y, "outer", "inner")}, obsm={"X_ring": ring})
    model = scs.tl.fit(adata, "class", use_rep="X_ring", max_epochs=22, progress=False)
    (chosen,) = lines_of(scs.pl.training(adata, show=False))["chosen"].get_xdata()
    assert 0 < chosen <= model.params["n_steps_trained"] <= 1.6 * chosen  # as many epochs, on more cells


def test_bad_input(classified):
    with pytest.raises(KeyError, match=r"uns\['scscore'\] has no \['training_steps'.*run scscore.tl.fit first"):
        scs.pl.training(AnnData(np.zeros((1, 1))))
    with pytest.raises(KeyError, match=r"uns\['mine'\] has no"):
        scs.pl.training(classified(3), key="mine")
    with pytest.raises(TypeError, match="adata must be the AnnData that the model was fitted on, got str"):
        scs.pl.training("model")
