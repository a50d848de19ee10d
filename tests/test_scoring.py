"""compute.inference: every image once, in order; what the last layer is given."""

import numpy as np
import pytest
import torch

from clipguard.compute.inference import classifier_logits, features, planes
from clipguard.errors import ClipguardError
from clipguard.models.features import head_of
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed

N = 24
SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(8, 8))


def pictures(n=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def test_logits_are_those_of_the_model_one_image_at_a_time():
    model, images = build(SPEC, Seed(0)), pictures()
    found = classifier_logits(model, images, batch_size=7)
    assert found.shape == (30, 3)
    assert found.dtype == np.float32
    with torch.inference_mode():
        for row, image in enumerate(images):
            alone = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
            np.testing.assert_allclose(found[row], alone.numpy(), atol=1e-5)


def test_scoring_puts_a_model_in_evaluation_mode_and_changes_no_weight_or_statistic():
    model = build(SPEC, Seed(0)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classifier_logits(model, pictures())
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_images_in_a_read_only_memory_map_are_scored_without_a_warning(tmp_path, recwarn):
    np.save(tmp_path / "images.npy", pictures())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    model = build(SPEC, Seed(0))
    assert np.array_equal(classifier_logits(model, mapped), classifier_logits(model, pictures()))
    assert [str(warning.message) for warning in recwarn] == []


def test_features_are_what_the_last_layer_is_given_of_the_given_rows():
    model = build(SPEC, Seed(0))
    images = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    rows = np.array([3, 20, 5])
    values = features(model, images, rows, batch_size=2)
    (head,) = [m for m in model.network.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        logits = head(torch.from_numpy(values)).numpy()
    assert np.allclose(logits, classifier_logits(model, images)[rows], atol=1e-5)
    assert head_of(model, planes(images[:1])) is head
    # The hooks are gone.
    assert not head._forward_pre_hooks


class Convolutional(torch.nn.Module):
    """Ends in a convolution and has a linear layer, of as many outputs, that it never calls."""

    def __init__(self):
        super().__init__()
        self.last, self.unused = torch.nn.Conv2d(3, 3, 8), torch.nn.Linear(7, 3)

    def forward(self, x):
        return self.last(x).flatten(1)


class Twice(torch.nn.Module):
    """Asks its last layer twice an image, with the input by name the second time."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(192, 3)

    def forward(self, x):
        return self.head(x.flatten(1)) * 0 + self.head(input=x.flatten(1))


@pytest.mark.parametrize("network", [Convolutional, Twice])
def test_models_that_do_not_end_in_a_linear_layer_give_their_logits(network):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    model = Normalized(network(), SPEC)
    assert head_of(model, planes(images[:1])) is None
    assert np.array_equal(features(model, images, np.arange(5)), classifier_logits(model, images))


def test_features_that_are_no_numbers_are_refused_in_one_line():
    model = build(SPEC, Seed(0))
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    (head,) = [m for m in model.network.modules() if isinstance(m, torch.nn.Linear)]
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0] / 0,))
    with pytest.raises(ClipguardError, match="NaN or Inf for some images: give another model"):
        features(model, images, np.arange(2))
