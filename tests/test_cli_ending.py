"""What stands at the end of a run: flagged samples by class, what is new, times, and the next commands."""

import io
import shlex

import msgspec
import pytest
from rich.console import Console

from clipguard.cli.tables import Detail, next_commands, show_run
from clipguard.outputs.formats import FlaggedSample
from clipguard.runs.summary import RunSummary
from tiny_report import FULL, SCAN

TOP = {"id": [], "given_label": [], "predicted_label": [], "poison_score": [], "rank": []}
MANIFEST = {"source": {"from_path": True}}
COMPETENCE = {"agreement": 0.5, "low": 0.4, "high": 0.6, "elsewhere": 0.1, "assessable": True}
GUIDE = SCAN["guide"] | {"competence": [{"class_name": "cat", "n": 50, **COMPETENCE}]}
BASELINE = {
    **{"run_dir": "runs/old", "new": 30, "known": 120, "flagged_new": 1},
    "verdict": {"answer": "suspicious", "reasons": ["1 of 3 flagged samples of class cat are new"]},
}


def flagged(*names, new=None):
    return [
        FlaggedSample(
            str(row), "", "", name, "dog", "trigger", 0.9, row + 1, 1, None if new is None else row in new
        )
        for row, name in enumerate(names)
    ]


def printed(samples, detail: Detail = "normal", terminal=False, **changes):
    stream, run = io.StringIO(), msgspec.convert(SCAN | {"guide": GUIDE} | changes, RunSummary)
    show_run(run, TOP, Console(file=stream, width=100, force_terminal=terminal), samples, detail)
    return stream.getvalue()


def rows(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_flagged_samples_are_counted_by_class_with_their_share_as_on_the_page():
    lines = rows(printed(flagged("cat", "ship", "cat", "cat")))
    assert "4 of 150 images (2.7 %) are flagged." in lines
    assert lines.index("cat 3 6.0 %") < lines.index("ship 1 –")


def test_many_classes_are_cut_and_the_others_counted():
    lines = rows(printed(flagged(*(f"class {number}" for number in range(14)))))
    assert "... and 4 more classes" in lines


def test_with_a_baseline_new_samples_are_told_apart():
    lines = rows(printed(flagged("cat", "cat", "cat", new={1}), baseline=BASELINE))
    assert "New since runs/old: 30 images, 1 of them flagged: suspicious" in lines
    assert "cat 3 6.0 % 1" in lines
    assert "· 1 of 3 flagged samples of class cat are new" in lines


def test_quiet_is_one_line_and_verbose_has_the_time_of_each_stage():
    quiet = printed(flagged("cat"), "quiet")
    assert quiet == "Suspicious: 1 of 150 images (0.7 %) are flagged; runs/tiny/report.html\n"
    normal, verbose = printed(flagged("cat")), printed(flagged("cat"), "verbose")
    assert "53.1 s  read and embed the images" in verbose
    assert "53.1 s" not in normal


def test_a_terminal_gets_a_link_to_the_page_and_a_file_none(tmp_path):
    files = {"report": str(tmp_path / "report.html")}
    assert "\x1b]8;id=" in printed([], terminal=True, files=files)
    assert (tmp_path / "report.html").as_uri() in printed([], terminal=True, files=files)
    assert "\x1b" not in printed([], files=files)


@pytest.mark.parametrize(
    ("run", "count", "commands"),
    [
        (SCAN, 3, ["apply", "export", "defend"]),
        (FULL, 3, ["apply", "export"]),
        (SCAN, 0, ["export", "verify"]),
        (SCAN | {"command": "demo"}, 3, ["scan"]),
    ],
)
def test_the_next_commands_are_those_that_make_sense(run, count, commands):
    lines = next_commands(msgspec.convert(run, RunSummary), MANIFEST, count)
    assert [line.split()[1] for line in lines] == commands


def test_the_next_commands_can_be_typed_whatever_the_paths():
    location, run_dir = "my images; rm -rf ~", "runs/a b"
    data = SCAN["data"] | {"location": location}
    run = msgspec.convert(SCAN | {"data": data, "run_dir": run_dir}, RunSummary)
    for line in next_commands(run, MANIFEST, 3):
        assert {location, run_dir} & set(shlex.split(line))
