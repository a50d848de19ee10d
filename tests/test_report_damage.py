"""outputs.report: what is unfinished or damaged is one clear error and no page."""

import numpy as np
import pytest

from clipguard.errors import ClipguardError
from clipguard.outputs.report import summarize, write_report
from clipguard.runs import (
    RunFolder,
    SourceInfo,
    read_json,
    read_table,
    write_array,
    write_json,
    write_table,
)
from clipguard.triggers.affine import AffineTrigger, read_triggers, write_triggers
from tiny_report import make_run


@pytest.mark.parametrize("name", ["summary.json", "samples.parquet"])
def test_an_unfinished_run_is_one_clear_error_and_no_page(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(ClipguardError, match=f"has no {name}: the run is not finished"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_damaged_results_are_one_clear_error(tmp_path):
    run = make_run(tmp_path / "run")
    write_json(run / "summary.json", {"command": "scan"})
    with pytest.raises(ClipguardError, match=r"summary.json is damaged"):
        write_report(run)
    run = make_run(tmp_path / "other")
    write_table(run / "samples.parquet", {"id": ["a"]})
    with pytest.raises(ClipguardError, match="lacks the column label_name"):
        write_report(run)
    with pytest.raises(ClipguardError, match="no run folder"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verdict", []),
        ("verdict", {"verdict": []}),
        ("verdict", {"verdict": "clean", "reasons": 5}),
        ("verdict", {"verdict": "clean", "reasons": [{}]}),
        ("guide", "oops"),
        ("guide", {"agreement": "half"}),
        ("data", {"unreadable": "many"}),
        ("before", {"accuracy": "all"}),
        ("after", [1]),
        ("seconds", {"read": None}),
        ("curve", [7]),
        ("curve", [{}]),
        ("curve", [{"step": 1, "accuracy": "x"}]),
        ("split", {"starved": 3}),
        ("warnings", "none"),
    ],
)
def test_a_summary_with_values_of_another_kind_is_damaged(tmp_path, field, value):
    run = make_run(tmp_path / "run")
    write_json(run / "summary.json", read_json(run / "summary.json") | {field: value})
    with pytest.raises(ClipguardError, match=rf"summary.json is damaged \({field}|reasons"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("column", ["rank", "suspicion_score", "is_triggered", "label"])
def test_a_table_with_texts_for_numbers_is_damaged(tmp_path, column):
    run = make_run(tmp_path / "run")
    table = read_table(run / "samples.parquet")
    # What was not measured is null, and comes back as NaN, which no table is written with.
    whole = {name: np.nan_to_num(v) if v.dtype.kind == "f" else v for name, v in table.items()}
    write_table(run / "samples.parquet", whole | {column: ["x"] * len(table["id"])})
    with pytest.raises(ClipguardError, match=f"lacks the column {column}, or it is damaged"):
        write_report(run)


def evidence(run, triggers):
    stored = read_json(run / "manifest.json")["source"]
    info = SourceInfo(**{**stored, "class_names": tuple(stored["class_names"])})
    folder = RunFolder.open(run, info, {"epochs": 5}, seed=0)
    folder.stage("evidence", config={}, inputs=[], compute=lambda at: write_triggers(triggers, at))


def test_a_trigger_of_another_size_and_samples_without_an_image_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    small = np.zeros((4, 4, 3), np.float32)
    evidence(run, [AffineTrigger(scale=small, shift=small)])
    assert summarize(run)["shared"] == []
    run = make_run(tmp_path / "other")
    whole = np.zeros((8, 8, 3), np.float32)
    evidence(run, [AffineTrigger(scale=whole, shift=whole)])
    table = read_table(run / "samples.parquet")
    table["id"] = np.array([f"gone/{name}" for name in table["id"]], dtype=object)
    write_table(run / "samples.parquet", table, optional=["trigger_score"])
    assert summarize(run)["shared"] == []


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
