"""The tables of docs/results.md are those of the committed rows, and say what is missing."""

import importlib
import shutil
from pathlib import Path

import pytest

from clipguard.lab.benchmark.results import write_results
from test_benchmark_results import cell, row


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("results_page")


def test_the_page_has_the_tables_of_the_committed_rows(tool):
    page = tool.PAGE.read_text()
    assert tool.written(page, tool.section(tool.RESULTS)) == page, "run benchmarks/results_page.py"


def test_the_tables_count_goals_and_leave_a_dash_where_nothing_is_computed(tool, tmp_path):
    found = {"detection_flagged_recall": 0.9, "detection_false_positive_rate": 0.001}
    found |= {"detection_auroc_suspicion": 0.98, "notes_flagged": 5.0}
    rows = cell(row("clipguard", 0.76, [0.01], **found))
    rows += [{**one, "seed": 1} for one in cell(row("clipguard", 0.76, [0.3], **found))]
    rows += [{**row("none", 0.7, [0.9]), "attack": "sig"}]
    (tmp_path / "gtsrb").mkdir()
    write_results(rows, tmp_path / "gtsrb" / "results.parquet")
    lines = tool.section(tmp_path).splitlines()
    numbers = "2 | 1 | 1 | +0.00, 0 below | 2 | 0.9000 | 0.0010 | 0.9800 |"
    assert lines[2] == f"| cifar10 | preactresnet18-16 | clipguard | {numbers}"
    badnets, sig = lines[-2:]
    assert "| 76.00 ± 0.00 / 15.50 ± 20.51 |" in badnets
    assert "missed by 1 of 2: seed 1: ASR 30.00 > 2.50" in badnets
    assert sig.startswith("| sig, 5 % | 70.00 / 90.00 | – | – |")
    shutil.rmtree(tmp_path / "gtsrb")
    assert tool.section(tmp_path) == "No row is computed yet."


def test_only_what_stands_between_the_marks_is_replaced(tool):
    page = f"a\n{tool.BEGIN}\nold\n{tool.END}\nb\n"
    assert tool.written(page, "new") == f"a\n{tool.BEGIN}\n\nnew\n\n{tool.END}\nb\n"
    with pytest.raises(ValueError, match="lacks"):
        tool.written(f"a {tool.BEGIN} b", "new")
