"""outputs.report: what is unfinished or damaged is one clear error and no page."""

import json

import numpy as np
import pytest

from clipguard.errors import ClipguardError
from clipguard.outputs.report import summarize, write_report
from clipguard.runs import read_json, read_table, write_array, write_json, write_table
from clipguard.triggers.affine import AffineTrigger, read_triggers, write_triggers
from tiny_data import CommandLine, tree
from tiny_report import FULL, SCAN, add_triggers, make_run


@pytest.mark.parametrize("name", ["summary.json", "samples.parquet"])
def test_an_unfinished_run_is_one_clear_error_and_no_page(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(ClipguardError, match=f"has no {name}: the run is not finished"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_damaged_results_are_one_clear_error(tmp_path):
    run = make_run(tmp_path / "run")
    write_json(run / "summary.json", SCAN | {"curve": []})
    with pytest.raises(ClipguardError, match=r"summary.json is damaged"):
        write_report(run)
    run = make_run(tmp_path / "other")
    write_table(run / "samples.parquet", {"id": ["a"]})
    with pytest.raises(ClipguardError, match="lacks the column status"):
        write_report(run)
    with pytest.raises(ClipguardError, match="no run folder"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verdict", []),
        ("verdict", {"answer": []}),
        ("verdict", {"answer": "clean", "reasons": 5}),
        ("verdict", {"answer": "clean", "reasons": [{}]}),
        ("verdict", {"answer": "harmless", "reasons": []}),
        ("guide", "oops"),
        ("guide", FULL["guide"] | {"agreement": "half"}),
        ("guide", FULL["guide"] | {"agreement": float("nan")}),
        ("data", FULL["data"] | {"unreadable": "many"}),
        ("before", {"accuracy": "all", "measured_on": "test set"}),
        ("before", {"accuracy": 0.5}),
        ("after", [1]),
        ("stages", {"read": None}),
        ("stages", {"read": {"title": "read", "seconds": float("inf")}}),
        ("stages", {"read": {"title": "read", "seconds": 10**400}}),
        ("few_clean", 3),
        ("warnings", "none"),
        ("seconds", {}),
    ],
)
def test_a_summary_with_values_of_another_kind_is_damaged(tmp_path, field, value):
    run = make_run(tmp_path / "run")
    damaged = read_json(run / "summary.json") | {field: value}
    (run / "summary.json").write_text(json.dumps(damaged))
    with pytest.raises(ClipguardError, match=r"summary.json is damaged \("):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("field", ["version", "partition", "stages", "files"])
def test_a_summary_without_a_field_is_damaged(tmp_path, field):
    run = make_run(tmp_path / "run")
    summary = read_json(run / "summary.json")
    del summary[field]
    write_json(run / "summary.json", summary)
    with pytest.raises(ClipguardError, match=field):
        write_report(run)


def change_table(run, **columns):
    """Write the samples of a run again with other columns; None drops one."""
    table = read_table(run / "samples.parquet") | columns
    kept = {name: values for name, values in table.items() if values is not None}
    write_table(run / "samples.parquet", kept, optional=["trigger_score", "guide_rank"])


@pytest.mark.parametrize("column", ["rank", "poison_score", "trigger", "label"])
def test_a_table_with_texts_for_numbers_is_damaged(tmp_path, column):
    run = make_run(tmp_path / "run")
    change_table(run, **{column: ["x"] * 150})
    with pytest.raises(ClipguardError, match=f"lacks the column {column}, or it is damaged"):
        write_report(run)


@pytest.mark.parametrize("column", ["id", "guide_rank", "status", "reason", "trigger"])
def test_a_table_without_a_column_is_damaged(tmp_path, column):
    run = make_run(tmp_path / "run")
    change_table(run, **{column: None})
    with pytest.raises(ClipguardError, match=f"lacks the column {column}, or it is damaged"):
        write_report(run)


@pytest.mark.parametrize(
    ("column", "value"),
    [("status", "poisoned"), ("status", "trusted"), ("reason", "guess"), ("status", ["flagged"])],
)
def test_a_sample_of_an_unknown_status_is_refused(tmp_path, column, value):
    run = make_run(tmp_path / "run")
    values = list(read_table(run / "samples.parquet")[column])
    if isinstance(value, list):
        values = [[text] for text in values]
    else:
        values[0] = value  # flagged for a trigger: trusted for a trigger is no state either
    change_table(run, **{column: values})
    with pytest.raises(ClipguardError, match=r"unknown status .*, reason") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)


def test_a_sample_without_a_rank_on_the_map_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    ranks = read_table(run / "samples.parquet")["guide_rank"].copy()
    ranks[3] = np.nan
    change_table(run, guide_rank=ranks)
    with pytest.raises(ClipguardError, match="samples without a rank"):
        write_report(run)


@pytest.mark.parametrize("version", [0, 10**6, "1", None])
def test_a_run_folder_of_another_version_is_refused_in_one_line(tmp_path, capsys, version):
    run = make_run(tmp_path / "run")
    write_json(run / "manifest.json", read_json(run / "manifest.json") | {"format": version})
    before = tree(tmp_path)
    for command in ("report", "verify"):
        ran = CommandLine(capsys)(command, run)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert "was written by another version of clipguard" in ran.err
    assert tree(tmp_path) == before


def test_a_trigger_of_another_size_and_samples_without_an_image_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    small = np.zeros((4, 4, 3), np.float32)
    add_triggers(run, [AffineTrigger(scale=small, shift=small)])
    assert summarize(run)["triggers"] == []
    run = make_run(tmp_path / "other")
    whole = np.zeros((8, 8, 3), np.float32)
    add_triggers(run, [AffineTrigger(scale=whole, shift=whole)])
    assert len(summarize(run)["triggers"]) == 1
    change_table(run, id=[f"gone/{number}" for number in range(150)])
    assert summarize(run)["triggers"] == []


@pytest.mark.parametrize(
    ("labels", "pairs"),
    [
        (np.zeros(2, np.int64), np.zeros((1, 2, 4, 4, 3), np.float32)),
        (np.zeros(1, np.int64), np.zeros((1, 3, 4, 4, 3), np.float32)),
        (np.zeros((), np.int64), np.zeros((1, 2, 4, 4, 3), np.float32)),
        (np.zeros(1), np.zeros((1, 2, 4, 4, 3), np.float32)),
    ],
)
def test_triggers_of_another_shape_are_damaged(tmp_path, labels, pairs):
    write_array(tmp_path / "labels.npy", labels)
    write_array(tmp_path / "triggers.npy", pairs)
    with pytest.raises(ClipguardError, match="holds no triggers"):
        read_triggers(tmp_path)


def test_no_trigger_is_told_from_a_missing_file(tmp_path):
    with pytest.raises(ClipguardError, match=r"labels.npy is missing"):
        read_triggers(tmp_path)
    write_triggers([], tmp_path)
    assert read_triggers(tmp_path) == ()
