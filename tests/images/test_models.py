"""Models of images: fit, classify, attribute, sample, save; nothing of it is special to images."""

import anndata as ad
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import scscore as scs
from scscore.cli import main
from scscore.core.reference_fit import Whitening
from scscore.images import _fit
from scscore.io.image_encoder import encoded
from scscore.io.pixels import IMAGES, PixelGrid

from .conftest import PATCH, Pooled


def test_classes_are_recognised(model, query, round_trip):
    scs.tl.classify(query, model, progress=False)
    posterior = query.obsm["scscore_posterior"]
    assert (model.classes[posterior.argmax(1)] == query.obs["class"]).mean() > 0.95
    np.testing.assert_allclose(posterior.sum(1), 1, atol=1e-5)
    round_trip(query)


def test_pixels_that_decide_are_found(model, query):
    scs.tl.attribute(query, model, per_cell=True, progress=False)
    assert query.uns["scscore_attribution"]["completeness"] < 1e-5
    size = abs(query.layers["scscore_attribution"]).mean(0)
    assert roc_auc_score(PATCH.ravel(), size) >= 0.99
    # bright red pixels speak for red, bright blue ones against it
    presence = scs.images.stack(query, query.varm["scscore_attribution"][:, list(model.classes).index("red")])
    rows = (query.obs["scscore_target"] == "red").to_numpy()
    assert presence[0, 3:6, 3:6].sum() > 0
    parts = scs.images.stack(query, query.layers["scscore_attribution"][rows]).mean(0)
    total = query.obs["scscore_evidence"] - query.obs["scscore_evidence_baseline"]
    np.testing.assert_allclose(query.layers["scscore_attribution"].sum(1), total, rtol=1e-3, atol=1e-3)
    assert parts[PATCH].mean() > 2 * parts[~PATCH].mean()
    if model.representation.summary().startswith("ConvNetwork"):
        return  # its baseline is a smooth image: that there is noise at all is evidence for one class, and spread over all pixels
    assert parts[PATCH].sum() > 0.8 * parts.sum() > 0


def test_attributions_do_not_depend_on_the_latent_basis(conv_model, query):
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    basis[:, 0] = -basis[:, 0]
    encoder, whitening = conv_model.representation, conv_model.whitening
    scs.tl.attribute(query, conv_model, per_cell=True, progress=False)
    expected = query.layers["scscore_attribution"].copy()

    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = encoder.network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images) @ basis.to(torch.float32)

    matrix = whitening.matrix
    whole = torch.eye(8, dtype=matrix.dtype)
    assert matrix.shape == whole.shape
    decoder = encoder.decoder._replace(
        center=encoder.decoder.center @ basis.numpy(), slopes=basis.numpy().T @ encoder.decoder.slopes
    )
    turned = scs.ScoreModel(
        **{
            **vars(conv_model),
            "representation": type(encoder)(Turned().eval(), encoder.grid, decoder),
            "whitening": Whitening(center=whitening.center @ basis, matrix=basis.T @ matrix),
        }
    )
    scs.tl.attribute(query, turned, per_cell=True, progress=False)
    np.testing.assert_allclose(query.layers["scscore_attribution"], expected, atol=2e-3 * abs(expected).max())


def test_batches_do_not_matter(conv_model, query):
    found = []
    for size in (1, 7, 256):
        scs.tl.classify(query, conv_model, batch_size=size, progress=False)
        found.append(query.obsm["scscore_log_likelihood"].copy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    np.testing.assert_allclose(found[0], found[2], atol=1e-4)


def test_samples_are_images(model):
    new = scs.tl.sample(model, condition={"red": 30, "blue": 20}, progress=False)
    images = scs.images.stack(new)
    assert images.shape == (50, 3, 12, 12)
    red = (new.obs["class"] == "red").to_numpy()
    assert images[red][:, 0, 3:6, 3:6].mean() > images[~red][:, 0, 3:6, 3:6].mean() + 0.05
    energies = scs.tl.energy(new, model, copy=True, progress=False) if model.params["condition"] is None else None
    assert energies is None


def test_files(pca_model, conv_model, query, tmp_path):
    for name, model in (("pca", pca_model), ("conv", conv_model)):
        model.save(tmp_path / name)
        again = scs.load(tmp_path / name)
        assert again.hash == model.hash and again.genes.tolist() == query.var_names.tolist()
        one, other = (scs.tl.classify(query, m, copy=True, progress=False) for m in (model, again))
        np.testing.assert_array_equal(one.obsm["scscore_posterior"], other.obsm["scscore_posterior"])


def test_only_encoders_that_saw_no_labels_have_a_readout(pca_model, backbone_model, conv_model):
    assert pca_model.diffusion.readout is not None and backbone_model.diffusion.readout is not None
    assert conv_model.diffusion.readout is None and conv_model.params["readout"] is None


def test_a_function_cannot_be_saved(backbone_model, tmp_path):
    with pytest.raises(ValueError, match="use_rep="):
        backbone_model.save(tmp_path / "model")
    assert "Pooled of images, 3 x 12 x 12" in backbone_model.summary()


def test_held_out_images_are_never_varied(train):
    """What validates the encoder are images as they are, from a network that has not seen them."""
    pixels = scs.images.stack(train).reshape(train.n_obs, -1)
    grid, y = PixelGrid.of_names(train.var_names), (train.obs["class"] == "red").to_numpy().astype(int)
    split = np.arange(0, 300), np.arange(300, 400)
    how = scs.images.Conv(augment="orientation", n_features=4, n_steps=5)
    more = {"seed": 0, "progress": False, "checkpoint_dir": None}
    _, x, points = _fit.fit_image_encoder(pixels, grid, y, [split], how, **more)
    changed = pixels.copy()
    changed[split[1]] = pixels[split[1]][:, ::-1]  # other held-out images
    _, _, after = _fit.fit_image_encoder(changed, grid, y, [split], how, **more)
    np.testing.assert_array_equal(points[0][0], after[0][0])  # neither the network nor its training points know them
    assert abs(points[0][1] - after[0][1]).max() > 1e-3
    # the same images, twice: a variation would differ
    doubled = np.concatenate([pixels, pixels[split[1]]])
    twice = split[0], np.concatenate([split[1], np.arange(400, 500)])
    _, _, found = _fit.fit_image_encoder(doubled, grid, np.concatenate([y, y[split[1]]]), [twice], how, **more)
    np.testing.assert_allclose(found[0][1][:100], found[0][1][100:], atol=1e-5)
    assert x.shape == (400, 4)


def test_interrupted_fits_resume(train, tmp_path):
    how = scs.images.Conv(n_features=4, n_steps=20)
    arguments = {"encoder": how, "max_epochs": 2, "progress": False}
    one = scs.tl.fit(train.copy(), "class", **arguments)
    scs.tl.fit(train.copy(), "class", checkpoint_dir=tmp_path, **arguments)
    files = sorted(tmp_path.glob("encoder_*.safetensors"))
    assert len(files) == 2
    times = [file.stat().st_mtime_ns for file in files]
    again = scs.tl.fit(train.copy(), "class", checkpoint_dir=tmp_path, **arguments)
    assert again.hash == one.hash
    assert [file.stat().st_mtime_ns for file in files] == times
    # networks of other images are not taken for those of these
    grid, split = PixelGrid.of_names(train.var_names), (np.arange(300), np.arange(300, 400))
    y, pixels = (train.obs["class"] == "red").to_numpy().astype(int), scs.images.stack(train).reshape(400, -1)
    more = {"seed": 0, "progress": False, "checkpoint_dir": tmp_path}
    _fit.fit_image_encoder(pixels, grid, y, [split], how, **more)
    assert len(list(tmp_path.glob("encoder_*.safetensors"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "cnn"}, "must be 'pca', 'conv'"),
        ({"encoder": "conv", "n_comps": 5}, "n_comps=5 is for encoder='pca'"),
        ({"encoder": "conv", "use_rep": "X"}, "leave one of them out"),
        ({"encoder": lambda images: images}, "must be a function from images"),
        ({"encoder": lambda images: images.mean((1, 2, 3), keepdim=True)[..., 0, 0] / 0}, "NaN or infinite"),
        ({"input": "counts"}, "leave input out"),
        ({"n_top_genes": 5}, "leave it out"),
    ],
)
def test_bad_encoders(train, arguments, message):
    with pytest.raises(ValueError, match=message):
        scs.tl.fit(train.copy(), "class", progress=False, **arguments)


def test_settings_of_the_network():
    with pytest.raises(ValueError, match="augment must be one of"):
        scs.images.Conv(augment="flip")
    with pytest.raises(ValueError, match="n_steps must be a positive integer"):
        scs.images.Conv(n_steps=0)


def test_genes_are_no_images(counts):
    with pytest.raises(ValueError, match="from_arrays"):
        scs.tl.fit(counts, "cell_type", encoder="conv", progress=False)


def test_images_of_another_size(model):
    other = scs.images.from_arrays(np.zeros((3, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="12 x 12 pixels"):
        scs.tl.classify(other, model, progress=False)


def test_damaged_stacks(pca_model, query):
    query.obsm[IMAGES] = query.obsm[IMAGES][:, :, 1:]
    with pytest.raises(ValueError, match="variable for every pixel"):
        scs.tl.classify(query, pca_model, progress=False)


def test_trajectories(model, query):
    steps = scs.tl.image_trajectory(query, model, query.obs_names[3], n_levels=4)
    assert steps.n_obs == 12 and steps.obs["image"].cat.categories[0] == "noised"
    images = scs.images.stack(steps).reshape(3, 4, 3, 12, 12)
    clean = scs.images.stack(query)[3]
    # hardly any noise: all three are the image, as far as the encoder keeps it
    assert abs(images[0, 0] - images[1, 0]).mean() < abs(images[0, -1] - images[1, -1]).mean()
    assert images[1, -1].std() < clean.std()  # all noise: what the class expects is its mean
    with pytest.raises(KeyError, match="is not one of adata"):
        scs.tl.image_trajectory(query, model, "nobody")
    with pytest.raises(KeyError, match="no classes of the model"):
        scs.tl.image_trajectory(query, model, query.obs_names[0], classes=["green"])


def test_encoders_get_images(train):
    shapes = []

    class Spy(Pooled):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(images.shape[1:]))
            return super().forward(images)

    points = encoded(Spy(), PixelGrid.of_names(train.var_names), scs.images.stack(train)[:5].reshape(5, -1))
    assert shapes == [(3, 12, 12)] and points.shape == (5, 48)


def test_modules_are_used_in_evaluation_mode(train, query):
    network = torch.nn.Sequential(Pooled(), torch.nn.BatchNorm1d(48), torch.nn.Dropout(0.5)).train()
    model = scs.tl.fit(train.copy(), "class", encoder=network, max_epochs=2, progress=False)
    assert not network.training and int(network[1].num_batches_tracked) == 0
    scs.tl.classify(query, model, progress=False)
    assert (model.classes[query.obsm["scscore_posterior"].argmax(1)] == query.obs["class"]).mean() > 0.95


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda images: images.flatten(1)[:, :4] + torch.rand(len(images), 4), "without randomness"),
        (lambda images: torch.zeros(len(images), 4), "same point for all"),
        (Pooled, "must be 'pca', 'conv'"),
    ],
)
def test_useless_encoders(train, encoder, message):
    with pytest.raises(ValueError, match=message):
        scs.tl.fit(train.copy(), "class", encoder=encoder, progress=False)


@pytest.mark.parametrize("wrap", [lambda x: x.detach(), torch.round])
def test_attributions_need_gradients(train, query, wrap):
    def encoder(images: torch.Tensor) -> torch.Tensor:
        return wrap(8 * torch.nn.functional.avg_pool2d(images, 4).flatten(1))

    model = scs.tl.fit(train.copy(), "class", encoder=encoder, max_epochs=2, progress=False)
    scs.tl.classify(query, model, progress=False)
    with pytest.raises(ValueError, match="which attributions need"):
        scs.tl.attribute(query, model, progress=False)


@pytest.mark.parametrize("option", [{"by_level": True}, {"method": "dissipation"}])
def test_what_needs_a_linear_encoder_says_so(conv_model, query, option):
    with pytest.raises(ValueError, match="encoder that is linear"):
        scs.tl.attribute(query, conv_model, progress=False, **option)


def test_missing_values_are_found(conv_model, query):
    query.obsm[IMAGES] = scs.images.stack(query)
    query.obsm[IMAGES][3, 0, 0, 0] = np.nan
    for function in (scs.tl.classify, scs.tl.attribute):
        with pytest.raises(ValueError, match="NaN"):
            function(query, conv_model, progress=False)


def test_backed_files_and_the_command_line(conv_model, query, tmp_path):
    query.write_h5ad(tmp_path / "query.h5ad")
    conv_model.save(tmp_path / "model")
    expected = scs.tl.classify(query, conv_model, copy=True, progress=False).obsm["scscore_posterior"]
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    scs.tl.classify(backed, conv_model, progress=False)
    np.testing.assert_array_equal(backed.obsm["scscore_posterior"], expected)
    backed.file.close()
    files = [str(tmp_path / name) for name in ("query.h5ad", "model", "out.h5ad")]
    assert main(["classify", files[0], "--model", files[1], "--out", files[2], "--device", "cpu"]) == 0
    np.testing.assert_allclose(ad.read_h5ad(files[2]).obsm["scscore_posterior"], expected, atol=1e-5)


def test_pixels_in_another_order_are_refused(pca_model, query):
    order = np.random.default_rng(0).permutation(query.n_vars)
    with pytest.raises(ValueError, match="12 x 12 pixels"):
        scs.tl.classify(query[:, order].copy(), pca_model, progress=False)
    query.obsm[IMAGES] = np.moveaxis(query.obsm[IMAGES], 1, -1)
    with pytest.raises(ValueError, match="in this order"):
        scs.tl.classify(query, pca_model, progress=False)


def test_signed_integers_are_refused(pca_model, query):
    query.obsm[IMAGES] = query.obsm[IMAGES].astype(np.int16)
    with pytest.raises(ValueError, match="unsigned integers or floats"):
        scs.tl.classify(query, pca_model, progress=False)


def test_a_channel_without_content_decides_nothing(train, query):
    def with_opacity(cells, value):
        images = np.concatenate([cells.obsm[IMAGES], np.full((cells.n_obs, 1, 12, 12), value, dtype=np.uint8)], axis=1)
        return scs.images.from_arrays(images, obs=cells.obs[["class"]], channel_axis=1)

    how = scs.images.Conv(augment="none", n_features=8, n_steps=250)
    model = scs.tl.fit(with_opacity(train, 255), "class", encoder=how, max_epochs=2, progress=False)
    found = [
        scs.tl.classify(with_opacity(query, value), model, copy=True, progress=False).obsm["scscore_posterior"]
        for value in (255, 254)
    ]
    assert (found[0].argmax(1) == found[1].argmax(1)).mean() > 0.97


def test_generated_pixels_know_their_place(pca_model):
    new = scs.tl.sample(pca_model, 4, progress=False)
    assert new.var["channel"].tolist()[:2] == ["red", "red"] and new.var["column"].tolist()[:2] == [0, 1]


def test_inflation_is_said_where_cells_are_generated(train, caplog):
    model = scs.tl.fit(train.copy(), "class", n_comps=5, max_epochs=1, progress=False)
    model.params["reference"]["inflation"] = 2.5
    scs.tl.sample(model, 2, progress=False)
    assert "inflated by 2.5" in caplog.text
