"""The tables of docs/results.md are those of the committed rows, and say what is missing."""

import importlib
import shutil
from pathlib import Path

import pytest

from clipguard.lab.benchmark.results import write_results
from test_benchmark_results import cell, row


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def tool(scripts):
    return scripts("results_page")


@pytest.mark.parametrize("name", ["results_page", "comparison_page"])
def test_a_page_has_the_tables_of_the_committed_rows(scripts, name):
    tool = scripts(name)
    page = tool.PAGE.read_text()
    assert tool.written(page, tool.BEGIN, tool.section(tool.RESULTS)) == page, f"run benchmarks/{name}.py"


def test_the_tables_count_goals_and_leave_a_dash_where_nothing_is_computed(tool, tmp_path):
    found = {"detection_flagged_recall": 0.9, "detection_false_positive_rate": 0.001}
    found |= {"detection_auroc_suspicion": 0.98, "notes_flagged": 5.0}
    rows = cell(row("clipguard", 0.76, [0.01], **found))
    rows += [{**one, "seed": 1} for one in cell(row("clipguard", 0.76, [0.3], **found))]
    rows += [{**row("none", 0.7, [0.9]), "attack": "sig"}]
    (tmp_path / "gtsrb").mkdir()
    write_results(rows, tmp_path / "gtsrb" / "results.parquet")
    lines = tool.section(tmp_path).splitlines()
    numbers = "2 | 1 | 1 | +0.00, 0 below | 2 of 2 | 0.9000 | 0.0010 | 0.9800 |"
    assert "![" not in "".join(lines)
    assert lines[2] == f"| cifar10 | preactresnet18-16 | clipguard | {numbers}"
    badnets, sig = lines[-2:]
    assert "| 76.00 ± 0.00 / 15.50 ± 20.51 |" in badnets
    assert "missed by 1 of 2: seed 1: ASR 30.00 > 2.50" in badnets
    assert sig.startswith("| sig, 5 % | 70.00 / 90.00 | – | – |")
    (tmp_path / "gtsrb" / "results.png").touch()
    words = "![Attack success and clean accuracy on GTSRB]"
    *_, last = tool.section(tmp_path).splitlines()
    assert last.startswith(words)
    assert (tool.DOCS / last.removeprefix(f"{words}(").removesuffix(")")).resolve().is_file()
    shutil.rmtree(tmp_path / "gtsrb")
    assert tool.section(tmp_path) == "No row is computed yet."


def test_a_repair_is_held_against_further_training_on_the_same_seeds(tool, tmp_path):
    rows = cell(row("clipguard", 0.76, [0.01], notes_flagged=5.0))
    rows += [{**one, "seed": 1} for one in cell(row("clipguard", 0.70, [0.03], notes_flagged=5.0))]
    rows += [row("retrain", 0.72, [0.02]), {**row("none", 0.7, [0.9]), "attack": "sig"}]
    (tmp_path / "tiny").mkdir()
    write_results(rows, tmp_path / "tiny" / "results.parquet")
    lines = tool.section(tmp_path).splitlines()
    controls = "retrained without the flagged | fine-tuned with them"
    assert lines[lines.index("### Beside further training") + 2 :] == [
        f"| data | attack | victim: CA / ASR | clipguard | {controls} |",
        "|---|---|---|---|---|---|",
        "| Tiny-ImageNet | badnets, 5 % | 75.00 / 95.00 | 76.00 / 1.00 | 72.00 / 2.00 | – |",
    ]
    write_results(rows[:-2], tmp_path / "tiny" / "results.parquet")
    assert "Beside" not in tool.section(tmp_path)


def test_only_what_stands_between_the_marks_is_replaced(tool):
    page = f"a\n{tool.BEGIN}\nold\n<!-- End of the tables. -->\nb\n"
    new = f"a\n{tool.BEGIN}\n\nnew\n\n<!-- End of the tables. -->\nb\n"
    assert tool.written(page, tool.BEGIN, "new") == new
    with pytest.raises(ValueError, match="lacks"):
        tool.written(f"a {tool.BEGIN} b", tool.BEGIN, "new")


def with_settings(label, accuracy, success, attack, **settings):
    more = {"attack": attack, "settings": {"row": {"settings": settings}}, "peak_memory_mb": 800.0}
    return row(label, accuracy, [success], **more, seconds={"unlearning": 60.0})


def test_detectors_are_ordered_by_their_mean_over_the_attacks_that_took(scripts, tmp_path):
    rows = [
        {**with_settings(label, 0.7, 0.9, attack), "accuracy": None, "detection_auroc_suspicion": area}
        | {"detection_found_at_1_percent": found, "attack_succeeded": attack != "weak"}
        | ({"detection_flagged_recall": found, "detection_false_positive_rate": 0.002} if area < 0.9 else {})
        for label, attack, area, found in [
            ("worse", "badnets", 0.8, 0.5),
            ("worse", "sig", 0.7, 0.4),
            ("worse", "weak", 0.1, 0.0),
            ("better", "badnets", 0.9, 0.6),
            ("better", "sig", 0.98, 0.8),
            ("started", "sig", 0.99, 0.9),
        ]
    ]
    (tmp_path / "detectors").mkdir()
    write_results(rows, tmp_path / "detectors" / "results.parquet")
    lines = scripts("comparison_page").section(tmp_path).splitlines()
    assert lines[2] == "| detector | mean AUROC | mean TPR at 1 % FPR, % | badnets | sig |"
    assert lines[4:7] == [
        "| better | 0.940 | 70.0 | 0.900 | 0.980 |",
        "| worse | 0.750 | 45.0 | 0.800 | 0.700 |",
        "| started | – | – | – | 0.990 |",
    ]
    place = lines.index("### Detectors by their own decision")
    assert lines[place + 2] == "| detector: TPR / FPR, % | mean | badnets | sig |"
    assert lines[place + 4 : place + 6] == ["| worse | 45.0 / 0.20 | 50.0 / 0.20 | 40.0 / 0.20 |", ""]


def test_each_budget_has_its_own_table_and_no_mean_over_fewer_attacks(scripts, tmp_path):
    whole = {"notes": {"schedule_share": 1}}
    rows = [
        with_settings("none", 0.75, 0.95, "badnets") | {"peak_memory_mb": None},
        with_settings("none", 0.75, 0.9, "sig") | {"peak_memory_mb": None},
        # No defence has met it yet: it has no column, and takes no mean away.
        with_settings("none", 0.75, 0.9, "wanet") | {"peak_memory_mb": None},
        with_settings("clipguard", 0.76, 0.01, "badnets"),
        with_settings("clipguard", 0.74, 0.03, "sig"),
        with_settings("abl 1x", 0.6, 0.5, "badnets", budget=1.0) | {"notes": {"schedule_share": 0.3}},
        with_settings("ft 1x", 0.8, 0.9, "badnets", budget=1.0) | whole,
        with_settings("ft 1x", 0.7, 0.8, "sig", budget=1.0) | whole,
        with_settings("abl 3x", 0.7, 0.4, "badnets", budget=3.0) | {"notes": {"schedule_share": 0.9}},
        with_settings("abl 3x", 0.5, 0.2, "sig", budget=3.0) | whole,
    ]
    (tmp_path / "rivals").mkdir()
    write_results(rows, tmp_path / "rivals" / "results.parquet")
    text = scripts("comparison_page").section(tmp_path)
    assert "| no defence | 75.0 | 92.5 | 50.0 | 80.0 | – | – | 75.0 / 95.0 | 75.0 / 90.0 |" in text
    once, more = text.split("**3 times clipguard's own seconds**")
    three, ten = more.split("**10 times clipguard's own seconds**")
    own = "| clipguard | 75.0 | 2.0 | 50.0 | 80.0 | 60 | 800 | 76.0 / 1.0 | 74.0 / 3.0 |"
    tuned = "| ft | 75.0 | 85.0 | 50.0 | 80.0 | 60 | 800 | 80.0 / 90.0 | 70.0 / 80.0 |"
    for table in (once, three, ten):
        assert own in table
        assert tuned in table
    assert "| abl | – | – | – | – | – | 800 | 60.0 / 50.0 | – |" in once
    assert "| abl | 60.0 | 30.0 | 50.0 | 80.0 | 60 | 800 | 70.0 / 40.0 | 50.0 / 20.0 |" in three
    assert "| abl | – | – | – | – | – | 800 | – | 50.0 / 20.0 |" in ten


def test_clean_samples_of_both_origins_stand_side_by_side(scripts, tmp_path):
    rows = [
        with_settings("clipguard", 0.76, 0.01, "badnets"),
        with_settings("ft split", 0.71, 0.2, "badnets", origin="split"),
        with_settings("ft given", 0.72, 0.1, "badnets", origin="given"),
    ]
    (tmp_path / "split-clean").mkdir()
    write_results(rows, tmp_path / "split-clean" / "results.parquet")
    *_, head, _, line = scripts("comparison_page").section(tmp_path).splitlines()
    assert head == "| defence: CA / ASR | badnets, clipguard's clean part | badnets, clean slice |"
    assert line == "| ft | 71.0 / 20.0 | 72.0 / 10.0 |"


def test_two_rows_for_one_place_of_a_table_are_refused(scripts, tmp_path):
    rows = [{**with_settings("psbd", 0.7, 0.9, "sig"), "seed": seed} for seed in (0, 1)]
    (tmp_path / "detectors").mkdir()
    write_results(rows, tmp_path / "detectors" / "results.parquet")
    with pytest.raises(ValueError, match="detectors has several rows of psbd, sig"):
        scripts("comparison_page").section(tmp_path)
