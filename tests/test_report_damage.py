"""clipguard.report: what is unfinished or damaged is one clear error and no page."""

import numpy as np
import pytest

from clipguard.errors import ClipguardError
from clipguard.report import write_report
from clipguard.store import read_json, read_table, write_json, write_table
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
