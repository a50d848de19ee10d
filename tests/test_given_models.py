"""The model that a user gives: preprocessing, names of weights and classes, and whether it fits the data."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipguard.cli.given_model import spec_of_model
from clipguard.cli.options import DefendOptions
from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.models.header import read_class_names
from clipguard.models.preprocessing import timm_preprocessing
from clipguard.models.spec import ModelSpec, build, load, read_spec, save
from clipguard.models.weights import PREFIXES, beside_a_model
from clipguard.pipeline.repair import for_model, spec_to_train
from clipguard.pipeline.victims import Victim, check_fit, given_victim
from clipguard.seeds import Seed
from clipguard.types import Preprocessing
from tiny_runs import CONFIG, NAMES, moved, poisoned_set, scanned

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save(build(SPEC, Seed(0)), SPEC, path, NAMES)
    return path


def renamed(path, change, metadata=None):
    """Write the weights again, without a header, their names changed."""
    state = {change(name): value for name, value in load_file(path).items()}
    save_file(state, path, metadata=metadata)


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("prefix", [*PREFIXES, "module.model.", "_orig_mod.module.backbone."])
def test_one_prefix_of_all_names_is_understood(saved, prefix):
    renamed(saved, lambda name: prefix + name)
    assert same(build(SPEC, Seed(0)), load(saved, SPEC))


def test_a_prefix_of_some_names_only_is_refused(saved):
    renamed(saved, lambda name: name if name.startswith("head") else f"module.{name}")
    with pytest.raises(ClipguardError, match="does not fit"):
        load(saved, SPEC)


def test_a_second_net_beside_the_model_is_told_and_not_guessed(saved):
    state = load_file(saved)
    save_file({**state, **{f"ema.{name}": value.clone() for name, value in state.items()}}, saved)
    with pytest.raises(ClipguardError, match=r"starts with 'ema\.' is no model, or a second one"):
        load(saved, SPEC)
    assert beside_a_model(state) is None


def test_the_counter_of_batchnorm_may_be_missing_and_nothing_else(saved):
    state = load_file(saved)
    without = {name: value for name, value in state.items() if "num_batches" not in name}
    assert 0 < len(without) < len(state)
    save_file(without, saved)
    assert same(build(SPEC, Seed(0)), load(saved, SPEC))
    del without["head.bias"]
    save_file(without, saved)
    with pytest.raises(ClipguardError, match=r"1 tensors missing.*'head.bias'"):
        load(saved, SPEC)


def test_the_header_holds_preprocessing_and_classes_and_the_older_form_is_read(saved):
    cropping = Preprocessing(size=(16, 16), resize="shortest", crop=0.875, interpolation="bilinear")
    spec = replace(SPEC, preprocessing=cropping)
    save(build(spec, Seed(0)), spec, saved, NAMES)
    assert read_spec(saved) == spec
    assert read_class_names(saved) == NAMES
    old = {
        **{key: value for key, value in asdict(SPEC).items() if key != "preprocessing"},
        **{"input_size": [16, 12], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    renamed(saved, str, {"clipguard": json.dumps(old)})
    squashed = Preprocessing(size=(16, 12), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert read_spec(saved) == replace(SPEC, preprocessing=squashed)
    assert read_class_names(saved) is None


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"crop": 0.0},
            {"crop": 1e-9},
            {"crop": 2.0},
            {"crop": float("nan")},
            {"resize": "cut"},
            {"fill": -1},
        ),
        *({"size": [8, 10**9]}, {"size": 8}, {"interpolation": ["bicubic"]}, {"std": [0, 1, 1]}),
    ],
)
def test_a_preprocessing_that_no_image_can_go_through_is_refused(saved, change):
    fields = asdict(SPEC)
    fields["preprocessing"] |= change
    renamed(saved, str, {"clipguard": json.dumps(fields)})
    with pytest.raises(ClipguardError, match="damaged clipguard header"):
        read_spec(saved)


@pytest.mark.parametrize("text", ["{", "3", '["cat", 3]', '{"cat": 0}'])
def test_damaged_class_names_are_refused(saved, text):
    renamed(saved, str, {"class_names": text})
    with pytest.raises(ClipguardError, match="damaged class names"):
        read_class_names(saved)


def test_the_same_classes_in_another_order_are_refused_and_others_are_told(saved):
    assert given_victim(saved, None, NAMES).notes == ()
    with pytest.raises(ClipguardError, match=r"class 0 is 'cat' .* but 'dog' in the data.*number the labels"):
        given_victim(saved, None, ("dog", "cat", "frog"))
    (note,) = given_victim(saved, None, ("cat", "hound", "frog")).notes
    assert "class 1 is 'dog'" in note
    renamed(saved, str, {"class_names": json.dumps(["frog", "dog", "cat"])})
    with pytest.raises(ClipguardError, match="class 0 is 'frog'"):
        given_victim(saved, SPEC, NAMES)


def test_timms_own_preprocessing_is_the_default_for_its_architectures():
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform
    from timm.models import create_model

    known = timm_preprocessing("test_resnet")
    config = resolve_data_config(model=create_model("test_resnet"))
    assert known is not None
    assert (known.size, known.crop) == (config["input_size"][1:], config["crop_pct"])
    assert (known.mean, known.std, known.interpolation) == (
        *(config["mean"], config["std"]),
        config["interpolation"],
    )
    assert (known.resize, config["crop_mode"]) == ("shortest", "center")
    assert create_transform(**config).transforms[0].size == 168
    assert timm_preprocessing("preactresnet18-4") is None
    assert timm_preprocessing("os:abort") is None


def arrays(*sizes):
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    return ImageSource.open((images, np.arange(len(sizes)) % 2), classes=("cat", "dog"))


def spec_from(path, source, **options):
    return spec_of_model(DefendOptions(out=path.parent / "run", model=path, **options), source)


def test_options_go_before_the_file_and_before_timm(saved):
    spec, words = spec_from(saved, arrays((16, 16), (16, 16)), crop="0.9")
    assert spec == replace(SPEC, preprocessing=replace(SPEC.preprocessing, crop=0.9))
    assert "the file's; given: crop" in words
    renamed(saved, str)
    source = arrays((300, 200), (64, 64))
    spec, words = spec_from(saved, source, architecture="test_resnet", mean="0,0,0")
    assert spec.preprocessing == replace(timm_preprocessing("test_resnet"), mean=(0.0, 0.0, 0.0))
    assert "timm's; given: mean" in words
    # Images of the net's own size are neither enlarged nor cut.
    spec, _ = spec_from(saved, arrays((32, 32), (32, 32)), architecture="test_resnet", input_size="32")
    assert (spec.preprocessing.resize, spec.preprocessing.crop) == ("squash", 1.0)
    spec, _ = spec_from(saved, source, architecture="test_resnet", input_size="32")
    assert (spec.preprocessing.resize, spec.preprocessing.crop) == ("shortest", 0.95)


def test_images_of_another_shape_are_never_squashed_in_silence_for_a_net_of_strangers(saved):
    renamed(saved, str)
    mine = {"architecture": "clipguard.models.nets:ShallowNet", "input_size": "16"}
    with pytest.raises(ClipguardError, match=r"32 x 48 pixels at 16 x 16 is not known: give --resize"):
        spec_from(saved, arrays((64, 64), (32, 48)), **mine)
    assert spec_from(saved, arrays((64, 64), (32, 32)), **mine)[0].preprocessing.resize == "squash"
    spec, _ = spec_from(saved, arrays((64, 64), (32, 48)), **mine, resize="longest")
    assert spec.preprocessing.resize == "longest"


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return scanned(tmp_path_factory.mktemp("scan") / "run", poisoned_set(600)[0])


@pytest.fixture(scope="module")
def learned(scan):
    model, data = build(SPEC, Seed(0)), scan.data
    recipe = Recipe(epochs=4, lr=0.05, batch_size=32, crop=0.0, flip=False)
    fit(model, data.images, np.arange(len(data)), cross_entropy(data.labels.copy()), recipe, Seed(0))
    return model


def victim(model):
    return Victim(model=model, spec=SPEC, origin="origin", name="mine.safetensors")


def test_a_model_that_has_learned_the_data_may_be_repaired(scan, learned):
    check_fit(victim(learned), scan)


def test_a_model_whose_classes_are_in_another_order_is_refused_with_what_to_check(scan, learned):
    turned = build(SPEC, Seed(0))
    turned.load_state_dict(learned.state_dict())
    with torch.no_grad():
        for value in (turned.network.head.weight, turned.network.head.bias):
            value.copy_(value.roll(1, 0))
    hint = r"chance is 33\.3% \(with its classes in another order it would be right on .*: check the order"
    with pytest.raises(ClipguardError, match=r"mine\.safetensors is right on .* trusted samples, " + hint):
        check_fit(victim(turned), scan)


def test_a_model_that_gives_everything_one_class_is_refused(scan):
    model = build(SPEC, Seed(0))
    with torch.no_grad():
        model.network.head.bias[1] += 1000
    with pytest.raises(ClipguardError, match=r"chance is 33\.3%: check"):
        check_fit(victim(model), scan)


def test_a_model_that_crops_is_given_other_images_of_the_same_size(scan, tmp_path):
    here = moved(scan, tmp_path / "run")
    made = for_model(here, replace(SPEC.preprocessing, resize="shortest", crop=0.5))
    assert made.images_key != here.images_key
    assert made.data.images.shape == here.data.images.shape
    whole = Image.fromarray(np.array(here.data.images[:1])[0])
    twice = np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(made.data.images[:1])[0], twice[8:24, 8:24])


def test_what_is_retrained_sees_images_as_the_given_model_does():
    prepared = Preprocessing(size=(16, 16), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    like = ModelSpec(architecture="shallow-4", num_classes=3, preprocessing=prepared)
    made = spec_to_train(CONFIG, 3, (16, 16), like)
    assert made == replace(like, architecture=CONFIG.architecture)
    assert spec_to_train(CONFIG, 3, (16, 16), None) == SPEC
