import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scscore as scs
from scscore.io.keys import Keys

NAMES = ["CD4+/CD25 T Reg", "Hämatopoietic 造血", "naïve B"]


def stored(n_classes: int, names: list[str], key: str = "scscore") -> AnnData:
    """An AnnData with what classify writes, of known content."""
    keys, rng = Keys(key), np.random.default_rng(0)
    log_likelihood = rng.normal(size=(7, n_classes)).astype(np.float32)
    posterior = np.exp(log_likelihood) / np.exp(log_likelihood).sum(1, keepdims=True)
    adata = AnnData(np.zeros((7, 2)), obs=pd.DataFrame(index=[f"cell_{i}" for i in range(7)]))
    adata.obsm[keys.log_likelihood], adata.obsm[keys.posterior] = log_likelihood, posterior
    adata.obs[keys.label] = pd.Categorical.from_codes(posterior.argmax(1), names)
    adata.uns[keys.uns] = {"classes": np.array(names, dtype=object)}
    return adata


CALLS = [(scs.get.posterior, "posterior"), (scs.get.likelihood, "log_likelihood")]


@pytest.mark.parametrize(("call", "slot"), CALLS)
@pytest.mark.parametrize("names", [NAMES, [f"class_{k}" for k in range(60)]], ids=["3", "60"])
@pytest.mark.parametrize("key", ["scscore", "other"])
def test_frame_is_the_stored_array_with_names(call, slot, names, key, tmp_path):
    adata = stored(len(names), names, key)
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for cells in (adata, ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        frame = call(cells, key=key)
        np.testing.assert_array_equal(frame.to_numpy(), adata.obsm[getattr(Keys(key), slot)])
        assert frame.columns.tolist() == names
        assert frame.index.tolist() == adata.obs_names.tolist()
        assert (frame.dtypes == np.float32).all()


@pytest.mark.parametrize(("call", "slot"), CALLS)
def test_views_and_copies(call, slot):
    adata = stored(3, NAMES)
    view = call(adata[[4, 1]])
    pd.testing.assert_frame_equal(view, call(adata).iloc[[4, 1]])
    frame = call(adata)
    frame.iloc[0, 0] = -9.0
    assert adata.obsm[getattr(Keys(), slot)][0, 0] != -9.0


@pytest.mark.parametrize(("call", "slot"), CALLS)
def test_missing_slots(call, slot):
    with pytest.raises(KeyError, match=r"scscore_.*key='scscore'.*run scscore.tl.classify first"):
        call(AnnData(np.zeros((2, 2))))
    adata = stored(3, NAMES)
    with pytest.raises(KeyError, match=r"'mine_.*key='mine'.*run scscore.tl.classify first"):
        call(adata, key="mine")
    del adata.uns["scscore"]["classes"]
    with pytest.raises(KeyError, match=r"uns\['scscore'\]\['classes'\] is missing.*run scscore.tl.classify first"):
        call(adata)


@pytest.mark.parametrize(("call", "slot"), CALLS)
def test_names_of_another_model_are_refused(call, slot):
    adata = stored(3, NAMES)
    adata.uns["scscore"]["classes"] = np.array(["a", "b"], dtype=object)
    with pytest.raises(ValueError, match="different models; run scscore.tl.classify again"):
        call(adata)
    adata.uns["scscore"]["classes"] = np.array(["a", "b", "c"], dtype=object)  # as many, but not those of the labels
    with pytest.raises(ValueError, match="without .*naïve B.*run scscore.tl.classify again"):
        call(adata)


def test_rejected_cells_keep_their_posterior():
    adata = stored(3, NAMES)
    adata.obs["scscore_label"] = adata.obs["scscore_label"].cat.add_categories("unknown")
    adata.obs.loc["cell_0", "scscore_label"] = "unknown"
    assert scs.get.posterior(adata).shape == (7, 3)


def test_classify_then_get():
    cells = scs.datasets.toy_gaussians(n_obs=300)
    model = scs.tl.fit(cells, "class", use_rep="X_toy", max_epochs=1, progress=False)
    scs.tl.classify(cells, model, progress=False)
    frame = scs.get.posterior(cells)
    assert (frame.idxmax(axis=1) == cells.obs["scscore_label"].astype(str)).all()
    np.testing.assert_allclose(frame.max(axis=1), cells.obs["scscore_confidence"], rtol=1e-5)
    np.testing.assert_allclose(frame.sum(axis=1), 1.0, rtol=1e-5)
    # the toy densities are known
    truth = cells.obsm["log_likelihood"]
    assert np.corrcoef(scs.get.likelihood(cells).to_numpy().ravel(), truth.ravel())[0, 1] > 0.95
    scs.tl.fit(cells, "scscore_label", use_rep="X_toy", max_epochs=1, progress=False)
    assert scs.get.posterior(cells).columns.tolist() == ["a", "b", "c"]  # same names: nothing to refuse
