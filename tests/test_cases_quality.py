"""Copies under two labels, and sets that are too small to be assessed, through the command line."""

import shutil

import numpy as np
import pytest

from clipguard.outputs.quality import read_quality
from clipguard.runs.summary import read_summary
from tiny_data import image_folder
from tiny_quality import photographs, write_folder

# 18: byte-identical files under two labels


def test_a_copy_under_another_label_is_said_with_both_paths_and_is_no_attack(clipguard, tmp_path):
    data, run = image_folder(tmp_path / "data", 60), tmp_path / "run"
    shutil.copy(data / "cat/0000.png", data / "dog/copy.png")
    ran = clipguard("scan", data, "--out", run, "--guide", "mini", "--power", "0", "--fail-on", "never")
    assert ran.code == 0, ran.err
    said = "dog/copy.png (dog) has the same bytes as cat/0000.png (cat)"
    assert said in " ".join(ran.out.split())
    assert "0 of 61 images (0.0 %) are flagged" in ran.out
    ((issue,),) = read_quality(run).values()
    assert (issue.kind, issue.id, issue.other_id) == (
        *("exact_duplicate_other_label", "dog/copy.png", "cat/0000.png"),
    )
    page = (run / "report.html").read_text()
    assert "dog/copy.png" in page
    assert "cat/0000.png" in page


# 19: small clean sets


def small(root, per_class, classes=2):
    """Write a folder of photographs as they are."""
    data = photographs(per_class)
    return write_folder(root, data.take(np.flatnonzero(data.labels < classes)))


@pytest.mark.parametrize("per_class", [40, 99])
def test_photographs_below_the_least_number_are_not_assessed_and_none_is_flagged(
    clipguard, tmp_path, per_class
):
    data, run = small(tmp_path / "data", per_class), tmp_path / "run"
    ran = clipguard("scan", data, "--out", run, "--guide", "mini")
    assert ran.code == 3
    n = 2 * per_class
    assert f"0 of {n} images (0.0 %) are flagged" in ran.out
    assert f"too few samples: {n}, and 200 are needed" in ran.out
    assert read_summary(run).verdict.answer == "undecided"
    assert (run / "flagged.txt").read_text() == ""


def test_retraining_on_a_few_clean_photographs_drops_nothing(clipguard, tmp_path):
    data, run = small(tmp_path / "data", 60), tmp_path / "run"
    options = ("--by", "retrain", "--epochs", "1", "--power", "0", "--fail-on", "never", "--json")
    ran = clipguard("defend", data, "--out", run, "--guide", "mini", *options)
    assert ran.code == 0, ran.err
    counts = ran.json["partition"]
    assert counts["flagged_for_a_trigger"] + counts["flagged_for_its_label"] + counts["excluded"] == 0


@pytest.mark.slow
def test_clean_photographs_that_are_enough_have_no_flag_by_the_full_training(tmp_path, capsys):
    from tiny_data import CommandLine

    data, run = small(tmp_path / "data", 100, classes=3), tmp_path / "run"
    scan = ("scan", data, "--out", run, "--guide", "mini", "--power", "0", "--fail-on", "never")
    ran = CommandLine(capsys)(*scan)
    assert ran.code == 0, ran.err
    assert "0 of 300 images (0.0 %) are flagged" in ran.out
