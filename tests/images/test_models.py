"""Models of images: fit, classify, attribute, sample, save; nothing of it is special to images."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import scscore as scs
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
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "encoder_all.safetensors",
        "encoder_validation.safetensors",
    ]
    again = scs.tl.fit(train.copy(), "class", checkpoint_dir=tmp_path, **arguments)
    assert again.hash == one.hash


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
    steps = scs.images.trajectory(query, model, query.obs_names[3], n_levels=4)
    assert steps.n_obs == 12 and steps.obs["image"].cat.categories[0] == "noised"
    images = scs.images.stack(steps).reshape(3, 4, 3, 12, 12)
    clean = scs.images.stack(query)[3]
    # hardly any noise: all three are the image, as far as the encoder keeps it
    assert abs(images[0, 0] - images[1, 0]).mean() < abs(images[0, -1] - images[1, -1]).mean()
    assert images[1, -1].std() < clean.std()  # all noise: what the class expects is its mean
    with pytest.raises(KeyError, match="is not in adata"):
        scs.images.trajectory(query, model, "nobody")
    with pytest.raises(KeyError, match="no classes of the model"):
        scs.images.trajectory(query, model, query.obs_names[0], classes=["green"])


def test_encoders_get_images(train):
    shapes = []

    class Spy(Pooled):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(images.shape[1:]))
            return super().forward(images)

    points = encoded(Spy(), PixelGrid.of_names(train.var_names), scs.images.stack(train)[:5].reshape(5, -1))
    assert shapes == [(3, 12, 12)] and points.shape == (5, 48)
