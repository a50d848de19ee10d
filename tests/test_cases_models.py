"""Weights as people have them: wrappers before their names, pickles, folders; names no guide can read."""

import pytest
import torch
from safetensors.torch import save_file

from clipguard.cli.given_model import spec_of_model
from clipguard.cli.options import DefendOptions
from clipguard.clip.zero_shot import ClipGuide
from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build, load, read_spec, save
from clipguard.seeds import Seed
from tiny_data import image_folder

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=2, input_size=(16, 16))


# 5 and 20: see tests/test_cases_other_models.py.


# 7: names that no guide can read


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("猫", "犬"), "not in Latin script"),
        (("class1", "class2"), "are codes"),
        (("A", "B"), "are codes"),
        (("cat", "Cat"), "read the same as another"),
        (("0", "1"), "bare numbers"),
    ],
)
def test_names_that_mean_nothing_to_a_guide_are_told_with_what_to_do(names, words):
    (warning,) = ClipGuide("mini").warnings_for(names)
    assert words in warning
    assert "give words as classes" in warning


# 11: prefixes


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module."])
def test_a_prefix_of_wrappers_is_understood_and_said(tmp_path, prefix):
    net = build(SPEC, Seed(0))
    state = {prefix + name: value.contiguous() for name, value in net.network.state_dict().items()}
    save_file(state, file := tmp_path / "model.safetensors")
    options = DefendOptions(out=tmp_path, model=file, architecture="preactresnet18-4", input_size="16")
    spec, words = spec_of_model(options, ImageSource.open(image_folder(tmp_path / "data", 8)))
    assert f"names of its weights start with '{prefix}'" in words
    assert torch.equal(load(file, spec).network.head.weight, net.network.head.weight)


def test_without_a_prefix_nothing_is_said(tmp_path):
    save(build(SPEC, Seed(0)), SPEC, file := tmp_path / "model.safetensors")
    options = DefendOptions(out=tmp_path, model=file)
    assert "start with" not in spec_of_model(options, ImageSource.open(image_folder(tmp_path / "data", 8)))[1]


# 12: other formats


@pytest.mark.parametrize(("name", "old"), [("model.pth", False), ("last.ckpt", False), ("old.pt", True)])
def test_a_pickle_is_named_and_its_conversion_works(tmp_path, name, old, monkeypatch):
    net, file = build(SPEC, Seed(0)), tmp_path / name
    torch.save({"state_dict": net.network.state_dict()}, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(
        ClipguardError, match=r"is a pickle, as torch\.save writes, and never loaded"
    ) as caught:
        read_spec(file)
    command = str(caught.value).partition('python -c "')[2].rpartition('"')[0]
    script = tmp_path / "convert.py"
    script.write_text(command)
    import runpy

    runpy.run_path(str(script))
    converted = load(file.with_suffix(".safetensors"), SPEC)
    assert torch.equal(converted.network.head.weight, net.network.head.weight)


def test_a_folder_of_save_pretrained_says_which_file_to_give(tmp_path):
    folder = tmp_path / "vit"
    folder.mkdir()
    with pytest.raises(ClipguardError, match=r"is a folder: give the \.safetensors file in it"):
        read_spec(folder)
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ClipguardError, match=r"as save_pretrained writes: give .*vit/model\.safetensors"):
        read_spec(folder)


def test_a_zip_archive_that_holds_no_pickle_is_not_called_one(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ClipguardError, match="cannot be read as safetensors"):
        read_spec(tmp_path / "x.zip")
