"""examples/own_defense.py, run as its text says; and the benchmark of the detectors."""

from pathlib import Path

from clipguard.cli import main
from clipguard.lab.benchmark.config import cells, read_config
from clipguard.lab.benchmark.results import read_results
from tiny_bench import tiny_bench

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_defense.py"


def test_a_defence_in_one_file_takes_part_in_a_benchmark(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    _, _, rest = EXAMPLE.read_text().partition("    defenses = [")
    defenses = "defenses = [" + rest.partition("\n    ]")[0] + "]\n"
    tiny = tiny_bench(tmp_path, "rates = [0.15]\n" + defenses)
    rows = ("own_defense:ImprobableLabels", "drop a fifth")
    only = [word for row in ("none", *rows) for word in ("--only", row)]
    assert main([*map(str, tiny.arguments), *only]) == 0
    detector, defence = (row for name in rows for row in read_results(tiny.out) if row["row"] == name)
    assert detector["detection_poisoned"] == 14
    assert 0 < detector["detection_auroc_suspicion"] < 1
    assert detector["accuracy"] is None
    assert (defence["notes_dropped"], defence["seconds_training"] > 0) == (20, True)
    assert 0 < defence["accuracy"] <= 1


def test_the_detectors_meet_victims_of_the_table_of_eleven_attacks():
    detectors, table = (
        read_config(ROOT / "benchmarks" / f"{name}.toml") for name in ("detectors", "table-cifar10")
    )
    ours = list(cells(detectors))
    assert len(ours) == 11
    assert all(cell in list(cells(table)) for cell in ours)
