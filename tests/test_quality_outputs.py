"""outputs.quality and the terminal: what a run folder says of data quality, which may be anybody's."""

import io
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from clipguard.cli.tables import show_run
from clipguard.errors import ClipguardError
from clipguard.outputs.quality import quality_words, read_quality
from clipguard.runs import read_table, write_table
from clipguard.runs.summary import QualitySummary, read_summary
from tiny_report import SCAN, make_run

COLUMNS = {
    "issue": ["exact_duplicate_other_label", "label_error", "label_error"],
    "row": np.array([4, 9, 2]),
    "id": ["a/4.png", "b/9.png", "b/2.png"],
    "given_label": ["a", "b", "b"],
    "other_row": np.array([1, -1, -1]),
    "other_id": ["b/1.png", "", ""],
    "other_label": ["b", "a", "a"],
    "score": np.array([1.0, 0.9, 0.6]),
    "words": ["the same bytes", "wrong", "wrong"],
}


def written(run, **changes):
    columns = {**COLUMNS, **changes}
    kept = {name: values for name, values in columns.items() if values is not None}
    write_table(run / "quality.parquet", kept)
    return run


def test_the_clearest_samples_of_each_issue_are_read(tmp_path):
    issues = read_quality(written(tmp_path), listed=1)
    assert list(issues) == ["exact_duplicate_other_label", "label_error"]
    (duplicate,) = issues["exact_duplicate_other_label"]
    assert (duplicate.row, duplicate.other_row) == (4, 1)
    assert (duplicate.id, duplicate.other_id) == ("a/4.png", "b/1.png")
    (wrong,) = issues["label_error"]
    assert (wrong.row, wrong.other_row, wrong.other_label, wrong.score) == (9, None, "a", 0.9)
    assert len(read_quality(tmp_path)["label_error"]) == 2


def test_a_run_without_issues_is_read_as_such(tmp_path):
    nothing = {name: np.asarray(values)[:0] for name, values in COLUMNS.items()}
    assert read_quality(written(tmp_path, **nothing)) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"issue": ["exact_duplicate", "backdoor", "blank"]},
        {"issue": None},
        {"issue": np.array([1, 2, 3])},
        {"row": None},
        {"row": np.array([-7, 9, 2])},
        {"row": ["4", "9", "2"]},
        {"other_row": np.array([0.5, 1.0, 1.0])},
        {"score": np.array([1.0, 7.0, 0.5])},
        {"score": [1.0, None, 0.5]},
        {"id": ["a", None, "b"]},
        {"words": np.array([1, 2, 3])},
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, changes):
    with pytest.raises(ClipguardError, match="delete the file and run again") as error:
        read_quality(written(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(ClipguardError, match="scan again with data quality"):
        read_quality(tmp_path)
    (tmp_path / "quality.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ClipguardError, match="delete it and run again"):
        read_quality(tmp_path)


def test_counts_read_as_words():
    some = QualitySummary(counts={"near_duplicate": 1234, "label_error": 2}, samples=1236, limits=["a limit"])
    assert quality_words(some) == ["near duplicates: 1,234", "label errors: 2", "a limit"]
    assert quality_words(QualitySummary(counts={}, samples=0)) == ["no issue"]
    # Of another version of clipguard.
    assert quality_words(QualitySummary(counts={"unheard of": 3}, samples=3)) == ["no issue"]


def test_the_reader_needs_no_torch():
    code = "import sys, clipguard.outputs.quality; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def printed(run):
    stream = io.StringIO()
    show_run(read_summary(run), read_table(run / "samples.parquet"), Console(file=stream, width=120))
    return stream.getvalue()


def test_the_terminal_shows_the_counts_apart_from_the_verdict(tmp_path):
    counts = {"exact_duplicate_other_label": 3, "blank": 1}
    quality = {"counts": counts, "samples": 4, "limits": ["label errors were not looked for: \x1b[2J"]}
    text = printed(make_run(tmp_path / "run", run=SCAN | {"quality": quality}))
    section = text[text.index("Data quality, apart from security:") :]
    lines = [line.strip() for line in section.splitlines()[1:4]]
    assert lines[:2] == ["· exact duplicates under another label: 3", "· blank images: 1"]
    assert lines[2].startswith("· label errors were not looked for")
    assert "\x1b" not in text
    assert "Data quality" not in printed(make_run(tmp_path / "without", run=SCAN))


def test_counts_that_are_no_numbers_are_refused(tmp_path):
    run = make_run(tmp_path / "run", run=SCAN | {"quality": {"counts": {"blank": "many"}, "samples": 1}})
    with pytest.raises(ClipguardError, match="damaged"):
        read_summary(run)
