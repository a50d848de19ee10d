"""results.parquet, goals, table and pictures: figures recomputed by hand from few rows."""

import sys
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.goals import (
    ATTACK_FAILED,
    OTHER_MODEL,
    STALE_SETTINGS,
    chance_of_loss,
    goal,
    groups,
    least_loss,
)
from clipguard.lab.benchmark.report import markdown, spread, verdicts, write_bench_report
from clipguard.lab.benchmark.results import Row, read_results, total_seconds, write_results


def pairs(lost: int, gained: int, target_n: int = 100, target_lost: int = 0) -> Row:
    """How many of 1,000 test images a repaired model no longer gets right, or newly so."""
    return {
        "paired_n": 1000,
        "paired_lost": lost,
        "paired_gained": gained,
        "paired_target_n": target_n,
        "paired_target_lost": target_lost,
        "paired_target_gained": 0,
    }


def row(label: str, accuracy: float, successes: list[float], seed: int = 0, **more: Any) -> Row:
    return {
        "data": "cifar10",
        "attack": "badnets",
        "rate": 0.05,
        "target": 0,
        "guide": "mini",
        "degrade": 0.0,
        "net": "preactresnet18-16",
        "epochs": 25,
        "variant": "",
        "seed": seed,
        "row": label,
        "defense": label,
        "attack_succeeded": True,
        "accuracy": accuracy,
        "attack_success": max(successes, default=None),
        "attack_successes": successes,
        "robust_accuracy": 0.5,
        "target_recall": 0.8,
        "n": 1000,
        **pairs(0, 0),
        **more,
    }


def cell(clipguard: Row, reference: float = 0.02, victim: float = 0.95, seed: int = 0) -> list[Row]:
    return [row("none", 0.75, [victim], seed), row("reference", 0.75, [reference], seed), clipguard]


def read_back(rows: list[Row], tmp_path) -> list[Row]:
    write_results(rows, tmp_path / "results.parquet")
    return read_results(tmp_path)


@pytest.mark.parametrize(
    ("accuracy", "success", "reference", "expected"),
    [
        (0.75, 0.025, 0.02, "met"),
        (0.80, 0.0, 0.0, "met"),
        (0.75, 0.027, 0.02, "ASR 2.70 > 2.50 (+0.20)"),
        (0.75, 0.012, 0.0, "ASR 1.20 > 1.00 (+0.20)"),
        (0.70, 0.9, 0.0, "ASR 90.00 > 1.00 (+89.00)"),
    ],
)
def test_a_goal_is_met_or_missed_by_so_much(accuracy, success, reference, expected):
    none, clean, own = cell(row("clipguard", accuracy, [success]), reference)
    assert goal(own, {"none": none, "reference": clean}) == expected


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    # One-sided: of 5 images none is gained by chance in 1 of 32 cases; of 4, in 1 of 16.
    [(5, 0, "CA −0.50 (p = 0.031)"), (4, 0, "met"), (0, 5, "met"), (60, 40, "CA −2.00 (p = 0.028)")],
)
def test_a_loss_of_accuracy_is_a_miss_where_chance_does_not_explain_it(lost, gained, expected):
    none, clean, own = cell(row("clipguard", 0.75, [0.0], **pairs(lost, gained)))
    assert goal(own, {"none": none, "reference": clean}) == expected


@pytest.mark.parametrize(("n", "missed"), [(100, True), (99, False)])
def test_a_loss_of_target_recall_is_a_miss_in_a_class_of_a_hundred_images(n, missed):
    none, clean, own = cell(row("clipguard", 0.75, [0.0], **pairs(0, 0, target_n=n, target_lost=10)))
    assert ("target recall −10.00 (at least −" in goal(own, {"none": none, "reference": clean})) == missed


def test_the_least_loss_of_recall_holds_for_nineteen_of_twenty_redraws():
    generator, n, losing, gaining = np.random.default_rng(0), 400, 0.06, 0.02
    draws = generator.multinomial(n, [losing, gaining, 1 - losing - gaining], size=4000)
    holds = np.mean([least_loss(int(lost), int(gained), n) <= losing - gaining for lost, gained, _ in draws])
    assert 0.93 <= holds <= 0.97


def test_the_chance_of_a_loss_is_that_of_scipys_binomial_test():
    for lost, gained in [(0, 0), (3, 9), (12, 4), (400, 350)]:
        expected = 1.0
        if lost + gained:
            expected = binomtest(lost, lost + gained, alternative="greater").pvalue
        assert chance_of_loss(lost, gained) == pytest.approx(expected)


def test_a_row_of_an_older_version_has_no_goal_but_says_so():
    none, clean, own = cell(row("clipguard", 0.75, [0.0], paired_n=None))
    assert "run the benchmark again" in goal(own, {"none": none, "reference": clean})


def test_every_trigger_of_several_is_held_against_its_own_reference():
    none = row("none", 0.75, [0.9, 0.9])
    clean = row("reference", 0.75, [0.05, 0.0])
    own = row("clipguard", 0.75, [0.055, 0.02])
    assert goal(own, {"none": none, "reference": clean}) == "ASR 2.00 > 1.00 (+1.00)"


def test_an_attack_that_did_not_succeed_is_not_scored():
    none, clean, own = cell(row("clipguard", 0.75, [0.0], attack_succeeded=False), victim=0.5)
    assert goal(own, {"none": none, "reference": clean}) == ATTACK_FAILED


def test_without_a_trigger_only_accuracy_counts():
    rows = [row(label, 0.75, [], attack_succeeded=None) for label in ("none", "reference", "clipguard")]
    assert goal(rows[2], {"none": rows[0], "reference": rows[1]}) == "met"
    lost = {**rows[2], **pairs(50, 0)}
    assert goal(lost, {"none": rows[0], "reference": rows[1]}).startswith("CA −5.00 (p = ")


@pytest.mark.parametrize("missing", ["none", "reference"])
def test_nothing_is_scored_before_its_controls_are_there(missing):
    none, clean, own = cell(row("clipguard", 0.75, [0.0]))
    there = {"none": none, "reference": clean}
    del there[missing]
    assert goal(own, there) == "undefended model or reference missing: not scored"


@pytest.mark.parametrize("label", ["none", "reference", "finetune"])
def test_controls_have_no_goal(label):
    assert goal(row(label, 0.1, [1.0]), {}) == ""


def test_mean_and_deviation_over_seeds_are_those_of_the_rows(tmp_path):
    worse = row("clipguard", 0.74, [0.05], 1, **pairs(10, 0))
    rows = cell(row("clipguard", 0.76, [0.01])) + cell(worse, seed=1)
    text = markdown(read_back(rows, tmp_path))
    # Mean of 76 and 74; deviation of two values with n - 1: their distance over the root of two.
    line = next(line for line in text.splitlines() if line.startswith("| badnets | clipguard"))
    assert "| 75.00 ± 1.41 | 3.00 ± 2.83 |" in line
    assert "| 2 | 1,000 |" in line
    assert "missed by 1 of 2: seed 1: ASR 5.00 > 2.50 (+2.50); CA −1.00 (p = 0.00098)" in line


def test_one_view_counts_the_cells_that_meet_each_goal(tmp_path):
    worse = row("clipguard", 0.74, [0.05], 1, **pairs(10, 0), detection_flagged_recall=0.8)
    better = row("clipguard", 0.76, [0.01], detection_flagged_recall=0.9)
    lines = markdown(read_back(cell(better) + cell(worse, seed=1), tmp_path)).splitlines()
    # The second misses ASR by 2.5 points and loses a point: half a point in the mean.
    counts = "| 2 | 1 | 1 | -0.50, 1 below | 2 of 2 | 0.8500 | – | – |"
    assert f"| cifar10 | preactresnet18-16 | clipguard {counts}" in lines
    small = row("clipguard", 0.76, [0.01], 1, **pairs(0, 0, target_n=99, target_lost=50))
    # A class of 99 images has no goal of recall.
    counted = markdown(read_back(cell(better) + cell(small, seed=1), tmp_path))
    assert "| 2 | 2 | 2 | +0.00, 0 below | 1 of 1 |" in counted
    assert "+0.00, 0 below | – |" in markdown(read_back(cell(small, seed=1), tmp_path))
    assert "In one view" not in markdown(read_back([row("none", 0.75, [0.95])], tmp_path))


def test_a_group_of_failed_attacks_says_so_once(tmp_path):
    rows = []
    for seed in (0, 1):
        own = row("clipguard", 0.75, [0.0], seed)
        rows += [{**entry, "attack_succeeded": False} for entry in cell(own, victim=0.5, seed=seed)]
    (group,) = (group for group in groups(read_back(rows, tmp_path)) if group.label == "clipguard")
    assert verdicts(group) == ATTACK_FAILED


def test_what_is_not_scored_counts_neither_as_met_nor_as_missed(tmp_path):
    took = cell(row("clipguard", 0.75, [0.0])) + cell(row("clipguard", 0.75, [0.5], 1), seed=1)
    failed = cell(row("clipguard", 0.75, [0.0], 2, attack_succeeded=False), victim=0.5, seed=2)
    older = cell(row("clipguard", 0.75, [0.0], 3, paired_n=None), seed=3)
    alone = [row("none", 0.75, [0.95], 4), row("clipguard", 0.75, [0.0], 4)]
    rows = read_back(took + failed + older + alone, tmp_path)
    (group,) = (group for group in groups(rows) if group.label == "clipguard")
    assert verdicts(group).startswith("missed by 1 of 2: seed 1: ASR")
    assert "seed 2: attack did not succeed: not scored / seed 3: of an older version" in verdicts(group)
    assert "| clipguard | 2 | 1 | 1 | +0.00, 0 below | 2 of 2 |" in markdown(rows)

    (group,) = (
        group for group in groups(read_back(took[:3] + failed, tmp_path)) if group.label == "clipguard"
    )
    assert verdicts(group) == "met (1 of 1): seed 2: attack did not succeed: not scored"


def test_data_that_nobody_has_poisoned_have_no_rate(tmp_path):
    rows = [
        row("none", 0.75, [0.95]),
        row("none", 0.75, [0.95], rate=0.01),
        row("none", 0.76, [], attack="none"),
    ]
    text = markdown(read_back(rows, tmp_path))
    assert "| badnets, 5 % | none" in text
    assert "| badnets, 1 % | none" in text
    assert "| none | none" in text


def test_cells_that_differ_in_how_long_the_victim_was_trained_are_told_apart(tmp_path):
    rows = [row("none", 0.75, [0.2]), row("none", 0.75, [0.9], epochs=50)]
    text = markdown(read_back(rows, tmp_path))
    assert "| badnets, 25 epochs | none | 75.00 | 20.00 |" in text
    assert "| badnets, 50 epochs | none | 75.00 | 90.00 |" in text
    assert "preactresnet18-16, 25 epochs." in markdown(read_back(rows[:1], tmp_path))


def test_cells_that_differ_in_something_else_are_told_apart(tmp_path):
    rows = [row("none", 0.75, [0.2], variant="alpha 0.2"), row("none", 0.75, [0.9], variant="alpha 0.9")]
    text = markdown(read_back(rows, tmp_path))
    assert "| badnets, alpha 0.2 | none | 75.00 | 20.00 |" in text
    assert "| badnets, alpha 0.9 | none | 75.00 | 90.00 |" in text


def test_a_row_of_another_model_has_no_goal_and_no_part_in_the_spread(tmp_path):
    rows = cell(row("clipguard", 0.75, [0.02]))
    label = f"clipguard{STALE_SETTINGS}{OTHER_MODEL}"
    rows.append(rows[2] | {"row": label, "accuracy": 0.5})
    by_label = {group.label: group for group in groups(read_back(rows, tmp_path))}
    assert by_label["clipguard"].goals == ["met"]
    assert by_label[label].goals == [""]
    assert "| clipguard (stale settings) (other model) | 50.00 |" in markdown(read_back(rows, tmp_path))
    write_bench_report(tmp_path)


def test_the_table_tells_how_many_images_were_attacked_where_the_row_knows(tmp_path):
    text = markdown(
        read_back([row("none", 0.7, [0.9], attack_n=900), row("reference", 0.7, [0.02])], tmp_path)
    )
    assert "| 1 | 1,000; 900 |" in text
    assert "| 1 | 1,000 |" in text


def test_results_of_another_version_are_refused_and_not_misread(tmp_path):
    write_results(cell(row("clipguard", 0.7, [0.1])), tmp_path / "results.parquet")
    table = pq.read_table(tmp_path / "results.parquet")
    pq.write_table(table.drop_columns(["attack_succeeded"]), tmp_path / "results.parquet")
    with pytest.raises(ClipguardError, match="lacks the column 'attack_succeeded'"):
        read_results(tmp_path)


def test_a_class_that_is_flagged_as_a_whole_is_seen(tmp_path):
    counts = {"class_sizes": [10, 40], "class_flagged": [9, 20], "class_wrongly_flagged": [9, 4]}
    new_row = row("clipguard", 0.75, [0.02], detection={"poisoned": 20, **counts})
    older = row("retrain", 0.75, [0.02], detection={"poisoned": 20})
    text = markdown(read_back([new_row, older], tmp_path))
    assert "| 90.00 % | – of 20.00 |" in text
    assert "| – | – of 20.00 |" in text


def test_spread_of_one_value_has_no_deviation_and_of_none_no_number():
    assert spread([0.123456]) == "12.35"
    assert spread([]) == "–"
    assert spread([1.0, 3.0], "{:.2f}".format) == "2.00 ± 1.41"


def test_what_failed_is_told_and_not_counted(tmp_path):
    broken = {**row("clipguard", 0.0, []), "error": "no | such\nthing"}
    text = markdown(read_back([*cell(row("retrain", 0.75, [0.0])), broken], tmp_path))
    assert "* cifar10, badnets, seed 0, clipguard: no \\| such thing" in text
    assert "| badnets | clipguard" not in text


def test_results_come_back_as_they_were_written_with_nested_figures_as_columns(tmp_path):
    figures = {"detection": {"poisoned": 6, "auroc_guide": None}, "class_recalls": [0.5, None]}
    (back,) = read_back([row("none", 0.75, [0.95], settings={"a": [1]}, **figures)], tmp_path)
    assert back["accuracy"] == 0.75
    assert back["detection_poisoned"] == 6.0
    assert back["detection_auroc_guide"] is None
    assert back["class_recalls"] == [0.5, None]
    assert back["settings"] == '{"a": [1]}'
    assert back["error"] is None


def test_a_report_is_made_from_the_parquet_file_alone_with_a_picture_of_what_varies(tmp_path):
    rows = cell(row("clipguard", 0.76, [0.01]))
    for rate, degrade in ((0.1, 0.0), (0.05, 0.5)):
        more = {"rate": rate, "degrade": degrade, "guide_accuracy": 0.57 - degrade / 2}
        rows += [{**entry, **more} for entry in cell(row("clipguard", 0.75, [0.02]))]
    write_results(rows, tmp_path / "results.parquet")
    written, _ = write_bench_report(tmp_path)
    assert [path.name for path in written] == [
        "results.md",
        "results.png",
        "results-rate.png",
        "results-guide.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    assert "10 %" in written[0].read_text()
    one = tmp_path / "one"
    one.mkdir()
    # A published rate of its own is no curve: each attack has one point.
    other = [{**entry, "attack": "gcb", "rate": 0.01} for entry in cell(row("clipguard", 0.75, [0.02]))]
    write_results(cell(row("clipguard", 0.76, [0.01])) + other, one / "results.parquet")
    assert [path.name for path in write_bench_report(one)[0]] == ["results.md", "results.png"]


def test_a_defence_takes_its_stages_and_with_a_scan_the_guides_pass():
    own = row("clipguard", 0.75, [0.01], seconds_embeddings=2.0, seconds_unlearning=5.0)
    assert total_seconds({**own, "guide_pass_seconds": 30.0}) == 37.0
    assert total_seconds(row("abl", 0.75, [0.01], seconds_isolation=4.0, guide_pass_seconds=30.0)) == 4.0
    assert total_seconds(row("none", 0.75, [0.95])) is None


def test_time_is_drawn_where_defences_are_compared(tmp_path):
    def rows(*names: str) -> list[Row]:
        own = [row(name, 0.7, [0.1], seconds_all=float(n)) for n, name in enumerate(names, start=1)]
        return [*cell(own[0]), *own[1:]]

    def drawn(*names: str) -> list[str]:
        write_results(rows(*names), tmp_path / "results.parquet")
        return [path.name for path in write_bench_report(tmp_path)[0]]

    assert drawn("clipguard", "abl", "ep", "ft") == ["results.md", "results.png", "results-time.png"]
    assert drawn("clipguard", "abl", "ep") == ["results.md", "results.png"]


def test_without_matplotlib_the_table_is_written_and_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_results(cell(row("clipguard", 0.76, [0.01])), tmp_path / "results.parquet")
    monkeypatch.delitem(sys.modules, "clipguard.lab.benchmark.pictures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    written, missing = write_bench_report(tmp_path)
    assert missing is not None
    assert 'pip install "clipguard[bench]"' in missing
    assert written == [tmp_path / "results.md"]
    assert written[0].exists()


def test_a_folder_without_results_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(ClipguardError, match=r"has no results\.parquet"):
        read_results(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ClipguardError, match="cannot be read"):
        read_results(tmp_path)


def test_no_rows_make_a_table_without_lines(tmp_path):
    assert "## Rates" in markdown(read_back([], tmp_path))
