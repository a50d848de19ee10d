"""A metric takes a field of `Rates` and a line of `METRICS`: page, command line and benchmark follow."""

import io

import msgspec
import numpy as np
import pytest
from rich.console import Console

from clipguard.cli.tables import show_run
from clipguard.lab.attacks import attack_named
from clipguard.lab.benchmark.rates import rates_of, triggered_tests
from clipguard.lab.benchmark.report import markdown
from clipguard.lab.benchmark.results import read_results, write_results
from clipguard.lab.evaluation import evaluate
from clipguard.models.spec import ModelSpec, build
from clipguard.outputs.rates import rate_rows
from clipguard.runs import read_table
from clipguard.runs.summary import METRICS, Metric, Rates, read_summary
from clipguard.seeds import Seed
from clipguard.types import image_set
from tiny_report import make_run

DRAWN = Metric("drawn_to_target", "Drawn to the target", "ordinary images sent to it", -1, "drawn")
USERS = ("outputs.rates", "lab.benchmark.rates", "lab.benchmark.report")


class MoreRates(Rates, frozen=True, kw_only=True, forbid_unknown_fields=True):
    drawn_to_target: float | None = None


@pytest.fixture(autouse=True)
def one_more_metric(monkeypatch):
    for module in USERS:
        monkeypatch.setattr(f"clipguard.{module}.METRICS", (*METRICS, DRAWN))


def with_metric(rates, value):
    return MoreRates(**msgspec.structs.asdict(rates), drawn_to_target=value)


def test_every_metric_is_a_rate():
    assert {metric.name for metric in METRICS} <= {field.name for field in msgspec.structs.fields(Rates)}


def test_it_is_a_row_of_the_page_and_of_the_command_lines_table(tmp_path):
    run = make_run(tmp_path / "run")
    summary = read_summary(run)
    assert summary.before is not None
    assert summary.after is not None
    before, after = with_metric(summary.before, 0.4), with_metric(summary.after, 0.125)
    row = rate_rows(before, after)[-1]
    assert (row.metric, row.before, row.after, row.change, row.tone) == (DRAWN, 0.4, 0.125, "−27.5", "good")
    console = Console(file=io.StringIO(), width=200)
    summary = msgspec.structs.replace(summary, before=before, after=after)
    show_run(summary, read_table(run / "samples.parquet"), console)
    line = next(text for text in console.file.getvalue().splitlines() if DRAWN.title in text)
    assert [word for word in line.split() if word[0] in "0123456789−"] == ["40.0", "12.5", "−27.5"]


def test_it_is_a_column_of_the_benchmarks_table_the_worst_of_several_triggers(tmp_path, monkeypatch):
    values = iter((0.25, 0.75))
    monkeypatch.setattr(
        "clipguard.lab.benchmark.rates.evaluate", lambda *inputs: with_metric(evaluate(*inputs), next(values))
    )
    test = image_set(np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 3, ("a", "b", "c"))
    model = build(ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(8, 8)), Seed(0))
    attack = attack_named("together:badnets+blended", rate=0.1)
    rates = rates_of(model, test, triggered_tests(attack, test))
    assert rates["drawn_to_target"] == 0.75
    axes = {"data": "cifar10", "attack": "two", "rate": 0.1, "guide": "mini", "degrade": 0.0, "net": "small"}
    row = {**axes, "epochs": 1, "variant": "", "seed": 0, "target": 0, "row": "none", "defense": "none"}
    write_results([{**row, **rates, "attack_succeeded": True}], tmp_path / "results.parquet")
    head, _, line, *_ = (text for text in markdown(read_results(tmp_path)).splitlines() if text[:1] == "|")
    cells = dict(zip(head.split("|"), line.split("|"), strict=True))
    assert float(cells[" drawn % "]) == 75
