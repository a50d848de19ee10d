"""`clipguard guide`: what it prints, its exit codes, what it refuses, and what it leaves out."""

import shlex

import numpy as np
import pytest

from clipguard.cli.guide import _without_untrusted
from clipguard.clip.loading import load_clip
from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.runs import read_json, read_table
from clipguard.runs.samples_table import SAMPLES
from tiny_data import image_folder
from tiny_guide import NAMES, TEMPLATES, coloured_file, tiny_guide

CHECK = ("--images", 60, "--steps", 1, "--quiet")


@pytest.fixture
def data(tmp_path):
    return coloured_file(tmp_path)


@pytest.fixture
def name(tmp_path):
    return tiny_guide(tmp_path / "guide").model


@pytest.mark.parametrize("command", ["check", "clean"])
def test_each_command_explains_itself_with_examples_and_its_exit_codes(clipguard, command):
    ran = clipguard("guide", command, "--help")
    assert ran.code == 0
    assert f"  clipguard guide {command}" in ran.out.partition("Examples:\n")[2]
    assert "Exit codes: 0 " in ran.out


def test_check_gives_3_and_says_why_where_the_guide_reads_nothing(clipguard, data, name):
    ran = clipguard("guide", "check", name, data, *CHECK, *TEMPLATES)
    assert (ran.code, len(ran.out.splitlines())) == (3, 1)
    assert "not assessable; the guide reads" in ran.out
    ran = clipguard("guide", "check", name, data, *CHECK[:-1], *TEMPLATES)
    words = " ".join(ran.out.split())
    assert "60 images read; patterns of 2.0% of the image for 6 of 6 classes, in 1 steps each" in words
    assert all(class_name in words for class_name in NAMES)


@pytest.mark.parametrize("asked_by", [("--json",), ("--format", "json")])
def test_check_gives_one_json_object_with_every_class(clipguard, data, name, asked_by):
    ran = clipguard("guide", "check", name, data, "--against", name, *CHECK, *asked_by)
    assert (ran.code, ran.json["answer"], ran.json["images"]) == (3, "not assessable", 60)
    assert [entry["class"] for entry in ran.json["classes"]] == list(NAMES)
    for entry in ran.json["classes"]:
        assert (entry["images"], entry["different"]["share"], entry["different"]["p_value"]) == (10, 0.0, 1.0)
        assert 0 <= entry["pattern"]["reached"] <= 1


def test_the_exit_code_of_a_class_that_stands_out_is_1(clipguard, data, name, monkeypatch):
    def stands_out(check):
        return "a class stands out"

    monkeypatch.setattr("clipguard.pipeline.guide_backdoor.GuideCheck.answer", property(stands_out))
    assert clipguard("guide", "check", name, data, *CHECK).code == 1


def test_clean_writes_a_guide_that_loads_and_says_what_was_done(clipguard, data, name, tmp_path):
    folder = tmp_path / "made"
    arguments = (name, data, "-o", folder, "--epochs", 1, "--rate", 0.001, *TEMPLATES)
    ran = clipguard("guide", "clean", *arguments, "--json")
    assert (ran.code, ran.json["learned"], ran.json["held_out"], ran.json["left_out"]) == (0, 54, 6, 0)
    about = read_json(folder / "cleaning.json")
    made = load_clip(f"local-dir:{folder}")
    assert (about["guide_sha256"], about["sha256"]) == (load_clip(name).fingerprint, made.fingerprint)
    assert about["sha256"] != about["guide_sha256"]
    assert (about["method"], about["seed"], len(about["losses"])) == ("abd", 0, 1)
    assert about["fine_tuning"]["epochs"] == 1
    assert clipguard("guide", "clean", *arguments).code == 2  # the folder is full


def test_clean_says_how_to_give_the_guide_it_has_made(clipguard, data, name, tmp_path):
    ran = clipguard("guide", "clean", name, data, "-o", tmp_path / "made", "--epochs", 1, *TEMPLATES)
    assert ran.code == 0
    given = shlex.split(ran.out.splitlines()[-1].partition("give it as ")[2].replace(", with", ""))
    assert clipguard("guide", "check", given[0], data, *CHECK, *given[1:]).code == 3


def test_bad_input_is_refused_in_one_line_and_leaves_nothing(refused, data, name, tmp_path):
    out = ("-o", tmp_path / "made")
    refused("guide", expected=["check or clean"])
    refused("guide", "check", name, tmp_path / "gone", *CHECK, expected=["gone", "does not exist"])
    refused("guide", "check", "no-such", data, *CHECK, expected=["guide 'no-such' is unknown"])
    refused("guide", "check", name, data, *CHECK, "--share", 2, expected=["--share 2", "up to 1"])
    refused("guide", "check", name, data, "--images", 0, expected=["--images 0"])
    refused("guide", "check", name, data, *CHECK, "--most-classes", 0, expected=["--most-classes 0"])
    refused("guide", "clean", name, data, *out, "--epochs", 0, expected=["--epochs 0"])
    refused("guide", "clean", name, data, *out, "--rate", "nan", expected=["--rate nan"])
    refused("guide", "clean", name, data, *out, "--leave-out", tmp_path / "no-run", expected=["no-run"])
    refused("guide", "clean", name, data, "-o", tmp_path / "guide", "--epochs", 1, expected=["not an empty"])


def test_clean_refuses_a_folder_inside_the_data(refused, name, tmp_path):
    folder = image_folder(tmp_path / "images", n=4)
    refused("guide", "clean", name, folder, "-o", folder / "made", expected=["inside the data"])


def test_what_a_scan_does_not_trust_is_left_out(poisoned_folder_and_run):
    folder, run = poisoned_folder_and_run
    source = ImageSource.open(folder)
    samples = read_table(run / SAMPLES)
    trusted = set(samples["id"][samples["status"] == "trusted"].tolist())
    kept, left_out = _without_untrusted(source, run)
    assert 0 < left_out == len(source) - len(trusted)
    assert set(kept.ids) == trusted
    some = source.take(np.arange(0, len(source), 3))
    assert set(_without_untrusted(some, run)[0].ids) == trusted & set(some.ids)


def test_a_run_of_other_data_is_refused(poisoned_folder_and_run, data):
    with pytest.raises(ClipguardError, match="is of other data: 60 of 60"):
        _without_untrusted(ImageSource.open(data), poisoned_folder_and_run[1])
