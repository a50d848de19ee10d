"""outputs.report: flagged samples by cause, what to do next, and what fits on the page."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.outputs.findings import detection_words, strength_words
from clipguard.outputs.next_steps import next_steps
from clipguard.outputs.report import render, summarize
from clipguard.outputs.report.causes import OPEN_LABEL, OPEN_TRIGGER, causes_of
from clipguard.outputs.report.pictures import thumbnails
from clipguard.runs import read_rows
from clipguard.runs.summary import Finding, RunSummary
from clipguard.types import State, partition_of
from tiny_report import FULL, SCAN, VERDICT, make_run

PATH = {"from_path": True}
TRIGGER, LABEL, CLEAN = int(State.TRIGGER), int(State.LABEL), int(State.CLEAN)


def partition(states, triggers):
    whole = partition_of(np.array(states, np.uint8), np.linspace(1, 0, len(states)), 0)
    return replace(whole, trigger=np.array(triggers, np.int64) - 1)


def finding(kind, label, **known):
    return Finding(class_name=f"class {label}", label=label, kind=kind, flagged=1, **known)


def test_a_finding_takes_its_class_and_those_of_other_classes_that_share_its_trigger():
    states = [TRIGGER, TRIGGER, TRIGGER, TRIGGER, LABEL, CLEAN]
    whole = partition(states, [1, 1, 1, 2, 0, 0])
    labels = np.array([0, 0, 1, 2, 3, 0])
    rank = np.array([3, 1, 2, 4, 5, 6])
    causes = causes_of([finding("trigger", 0)], whole, labels, rank)
    assert [(one.kind, one.finding, one.trigger, one.rows.tolist()) for one in causes] == [
        ("trigger", 0, 1, [1, 2, 0]),
        (OPEN_TRIGGER, None, 2, [3]),
        (OPEN_LABEL, None, 0, [4]),
    ]


def test_two_findings_of_one_class_share_its_samples_by_their_reason():
    whole = partition([TRIGGER, LABEL, TRIGGER], [1, 0, 1])
    both = [finding("label-only poison", 0), finding("shortcut", 0)]
    causes = causes_of(both, whole, np.zeros(3, np.int64), np.array([1, 2, 3]))
    assert [one.rows.tolist() for one in causes] == [[1], [0, 2]]


@given(st.lists(st.tuples(st.sampled_from([TRIGGER, LABEL, CLEAN]), st.integers(0, 3), st.integers(0, 4))))
def test_every_flagged_sample_has_exactly_one_cause(rows):
    states, triggers, labels = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    whole = partition(states, np.where(states == TRIGGER, triggers, 0))
    found = [finding("trigger", 0), finding("label-only poison", 1), finding("shortcut", 1)]
    causes = causes_of(found, whole, labels, np.arange(len(rows)) + 1)
    listed = np.concatenate([one.rows for one in causes])
    assert sorted(listed.tolist()) == np.flatnonzero(whole.flagged).tolist()
    assert all((np.diff(one.rows) > 0).all() for one in causes)


def test_a_card_says_how_many_share_the_pattern_and_what_speaks_for_it(tmp_path):
    summary = summarize(make_run(tmp_path / "run", run=SCAN | {"verdict": VERDICT}))
    first, second, third = summary["causes"]
    assert [one["kind"] for one in (first, second, third)] == ["trigger", "label-only poison", "shortcut"]
    assert first["classes"] == [["dog", 5]]
    assert sum(one["count"] for one in summary["causes"]) == 15
    assert all(len(one["examples"]) == min(12, one["count"]) for one in summary["causes"])
    html = render(summary)
    assert "5 of 150 samples share one pattern; all of them are labelled <bdi>dog</bdi>" in html
    assert "are labelled <bdi>ship</bdi> and show something else, mostly <bdi>cat</bdi>" in html
    assert "At least 180 are poisoned, with 95 % confidence." in html
    assert "odds of being flagged 12.3-fold" in html


def step_commands(run, flagged=3, source=PATH, options=None, **changes):
    summary = msgspec.convert(run | changes, RunSummary)
    manifest = {"source": source, "options": options}
    return [step.command for step in next_steps(summary, manifest, flagged) if step.command]


def test_the_next_commands_hold_the_names_of_the_run():
    assert step_commands(SCAN, run_dir="runs/a b") == [
        "clipguard apply 'runs/a b' ./data --out CLEAN",
        "clipguard export 'runs/a b' --to csv",
        "clipguard defend ./data --model MODEL.safetensors -o 'runs/a b'",
    ]
    assert step_commands(FULL) == step_commands(SCAN)[:2]  # a defend has repaired a model already
    assert step_commands(SCAN, source={})[0] == "clipguard apply runs/tiny SOURCE --out CLEAN"
    assert step_commands(SCAN, flagged=0) == [
        "clipguard export runs/tiny --to csv",
        "clipguard verify runs/tiny --data ./data",
    ]


def test_a_repair_is_told_to_scan_as_before_and_limits_are_given_to_all():
    options = {
        "guide": "local-dir:my guide",
        "template": ["{}", "a photo of a {}"],
        "logit_scale": False,
        "rows": "0:100",
        "limits": {"links": True, "members": 30, "isolated": False},
        "seed": 0,
    }
    limits = "--limits.links --limits.members 30"
    assert step_commands(SCAN, options=options) == [
        f"clipguard apply runs/tiny ./data --out CLEAN {limits}",
        "clipguard export runs/tiny --to csv",
        "clipguard defend ./data --model MODEL.safetensors -o runs/tiny --guide 'local-dir:my guide' "
        f"--template '{{}}' --template 'a photo of a {{}}' --no-logit-scale --rows 0:100 {limits} --seed 0",
    ]
    assert step_commands(SCAN, flagged=0, options=options)[1].endswith(f" --data ./data {limits}")
    given = step_commands(SCAN, options={"classes": ["cat", "dog"]})[-1]
    assert given.endswith("--classes NAMES.txt")


@pytest.mark.parametrize(
    "options",
    [
        "--architecture evil",
        ["--architecture", "evil"],
        {"architecture": "evil.module:factory", "model": "x", "-x; rm": "y"},
        {"early_model": "evil.module:factory"},
        {"limits": {"a b; rm": 1, "x": {}}},
        {"guide": {"a": 1}, "template": [1, {}], "limits": 3, "seed": None},
    ],
)
def test_a_manifest_adds_nothing_but_options_of_a_scan(options):
    assert step_commands(SCAN, options=options) == step_commands(SCAN)


def test_names_of_classes_are_read_once_however_many_causes_there_are(tmp_path, monkeypatch):
    reads = []

    def counted(path, rows, only):
        reads.append(tuple(only))
        return read_rows(path, rows, only)

    for module in ("samples", "report.columns"):
        monkeypatch.setattr(f"clipguard.outputs.{module}.read_rows", counted)
    counts = []
    for number, findings in enumerate((VERDICT["findings"][:1], VERDICT["findings"])):
        del reads[:]
        run = make_run(tmp_path / str(number), run=SCAN | {"verdict": VERDICT | {"findings": findings}})
        assert len(summarize(run)["causes"]) >= len(findings)
        counts.append(len(reads))
    assert counts[0] == counts[1]


def test_figures_are_said_in_words_and_what_is_no_number_is_left_out():
    known = {"poisoned": 10, "flagged": 9, "flagged_recall": 0.9, "poison_in_clean": "many", "auroc": None}
    assert detection_words(known) == [
        "10 samples are poisoned, 9 are flagged, and 90.0 % of the poisoned ones are among those."
    ]
    assert detection_words(None) == []
    assert strength_words(finding("trigger", 0)) == ""
    assert strength_words(finding("label-only poison", 0, deep_share=0.27)) == (
        "Deep inside the class they come from, 27.0 % carry this label."
    )


@pytest.mark.parametrize("limit", [200_000, 60_000, 20_000, 100])
def test_thumbnails_stay_within_their_bytes_whatever_the_images(limit):
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    uris = thumbnails([*noise, None], limit)
    assert len(uris) == 61
    assert uris[-1] is None
    assert sum(len(uri) for uri in uris if uri) <= limit * 4 / 3 + 61 * 30
    assert any(uris) == (limit > 100)


def test_names_as_long_as_they_like_leave_a_bounded_page(tmp_path):
    ids = [f"{'<' * 4000}{number}" for number in range(3000)]
    run = make_run(tmp_path / "run", n=3000, ids=ids)
    summary = summarize(run)
    assert 0 < len(summary["samples"]) < 300
    html = render(summary)
    assert len(html.encode()) < 3_000_000
    assert "most suspicious of 300 flagged samples" in html
