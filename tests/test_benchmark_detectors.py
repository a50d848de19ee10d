"""Detectors in a benchmark: they find samples and repair nothing."""

from clipguard.cli import main
from clipguard.lab.benchmark.results import read_results
from tiny_bench import tiny_bench


def test_a_detector_has_detection_figures_and_neither_rates_nor_a_goal(tmp_path):
    tiny = tiny_bench(tmp_path, 'rates = [0.15]\ndefenses = ["tiny_detector:make"]\n')
    assert main([*map(str, tiny.arguments), "--only", "none", "--only", "tiny_detector:make"]) == 0
    (own,) = (row for row in read_results(tiny.out) if row["row"] == "tiny_detector:make")
    assert own["detection_poisoned"] == 14
    assert own["detection_auroc_suspicion"] == 1.0
    assert own["detection_found_at_1_percent"] == 1.0
    assert own["detection_false_positive_rate"] == 0.0
    assert (own["accuracy"], own["attack_success"], own["paired_n"]) == (None, None, None)
    assert "| badnets | tiny_detector:make | – | – |" in (tiny.out / "results.md").read_text()
