"""lab.benchmark.rows and the commands: resumed row by row, repeatable, failures shown."""

import json
import shutil
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipguard.cli import main
from clipguard.data.writer import write_parquet
from clipguard.defenses import Case, Repaired
from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.config import cells, read_config
from clipguard.lab.benchmark.data_sets import image_sets, sources
from clipguard.lab.benchmark.places import BenchmarkPaths
from clipguard.lab.benchmark.results import read_results
from clipguard.lab.benchmark.tasks import key_of
from clipguard.runs.locks import locked
from tiny_bench import TinyBench, tiny_bench
from tiny_data import CommandLine
from tiny_runs import poisoned_set

FIGURES = (
    "accuracy",
    "attack_success",
    "attack_successes",
    "robust_accuracy",
    "target_recall",
    "class_recalls",
)
SETTINGS = "rates = [0.15]\n"


def bench(tiny: TinyBench) -> int:
    return main([str(argument) for argument in tiny.arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TinyBench:
    tiny = tiny_bench(tmp_path_factory.mktemp("bench"), SETTINGS)
    assert bench(tiny) == 0
    return tiny


def rows(tiny: TinyBench) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in read_results(tiny.out)}


def files(tiny: TinyBench) -> dict[str, Path]:
    return {path.stem: path for path in (tiny.out / "cells").glob("*/*.json")}


def stable(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a second computation must repeat to the last digit."""
    varying = ("seconds", "finished", "peak_memory", "command", "commit")
    return {key: value for key, value in row.items() if not any(word in key for word in varying)}


def test_every_row_holds_its_rates_what_it_is_of_and_what_it_was_made_with(finished):
    by_label = rows(finished)
    assert list(by_label) == ["none", "reference", "clipguard", "retrain", "finetune"]
    for row in by_label.values():
        assert row["key"] == key_of(json.loads(row["settings"]))
        assert len(row["class_recalls"]) == 3
        assert np.isclose(np.mean(row["class_recalls"]), row["accuracy"])
        assert (row["n"], row["train_n"], row["poisoned"]) == (60, 96, 14)
        assert row["attack_succeeded"] is True
        assert row["peak_memory_mb"] > 10
        assert row["machine"]
        assert {"python", "torch", "clipguard"} <= json.loads(row["versions"]).keys()
        assert json.loads(row["settings"])["cell"]["recipe"]["epochs"] == 10
        assert row["command"].startswith("clipguard bench ")
    assert by_label["none"]["attack_success"] > 0.8
    assert by_label["reference"]["attack_success"] < 0.2
    assert by_label["reference"]["trainings"] == 3
    low, high = by_label["reference"]["attack_success_range"]
    assert low <= by_label["reference"]["attack_success"] <= high
    own = by_label["clipguard"]
    assert own["detection_poisoned"] == 14
    for row in (own, by_label["retrain"], by_label["finetune"]):
        change = (row["paired_gained"] - row["paired_lost"]) / row["paired_n"]
        assert np.isclose(change, row["accuracy"] - by_label["none"]["accuracy"])
        change = (row["paired_target_gained"] - row["paired_target_lost"]) / row["paired_target_n"]
        assert np.isclose(change, row["target_recall"] - by_label["none"]["target_recall"])
    assert own["guide_accuracy"] == by_label["retrain"]["guide_accuracy"] > 0
    assert own["seconds_embeddings"] > 0
    # It is finished when it is written, not when it began.
    since = files(finished)["clipguard"].stat().st_mtime - datetime.fromisoformat(own["finished"]).timestamp()
    assert since < own["wall_seconds"]
    assert by_label["finetune"]["detection_poisoned"] is None


def test_a_row_is_held_against_the_victim_and_the_set_that_it_was_computed_from(finished, capsys):
    before = {name: json.loads(path.read_text()) for name, path in files(finished).items()}
    assert before["none"]["victim"] == before["clipguard"]["victim"] == before["finetune"]["victim"]
    # As another machine would have left them, which rounds otherwise.
    for name, key in (("none", "victim"), ("reference", "fingerprint")):
        files(finished)[name].write_text(json.dumps({**before[name], key: "another"}))
    files(finished)["finetune"].unlink()
    assert bench(finished) == 0
    after = {name: json.loads(path.read_text()) for name, path in files(finished).items()}
    assert {name: stable(row) for name, row in after.items()} == {n: stable(row) for n, row in before.items()}
    assert "none: of another set or victim, computed again" in capsys.readouterr().err
    # One that has to wait for its turn says so until then.
    files(finished)["clipguard"].write_text(json.dumps({**before["clipguard"], "victim": "another"}))
    assert main([str(argument) for argument in (*finished.arguments, "--only", "none")]) == 0
    assert "clipguard (other model)" in rows(finished)
    assert bench(finished) == 0
    assert stable(json.loads(files(finished)["clipguard"].read_text())) == stable(before["clipguard"])


def test_a_row_that_cannot_be_computed_again_stays(finished, monkeypatch):
    before = json.loads(files(finished)["reference"].read_text())
    other = {**before, "fingerprint": "another"}
    files(finished)["reference"].write_text(json.dumps(other))
    files(finished)["finetune"].unlink()

    def failing(runner: CellRunner) -> dict[str, Any]:
        raise ClipguardError("no reference today")

    monkeypatch.setattr(CellRunner, "reference", failing)
    assert bench(finished) == 2
    assert json.loads(files(finished)["reference"].read_text()) == other
    monkeypatch.undo()
    assert bench(finished) == 0
    assert stable(json.loads(files(finished)["reference"].read_text())) == stable(before)


def test_a_report_lies_beside_the_rows(finished):
    assert "| badnets | clipguard |" in (finished.out / "results.md").read_text()
    assert (finished.out / "results.png").stat().st_size > 1000


def test_a_second_run_computes_nothing_and_a_killed_one_only_what_is_missing(finished, monkeypatch, capsys):
    lost = files(finished)["finetune"]
    before = {name: path.read_bytes() for name, path in files(finished).items()}
    lost.unlink()
    # What a kill leaves of a row that was being written.
    lost.with_name(lost.name + ".part").write_text('{"key": ')
    ran = CommandLine(capsys)(*finished.arguments, "--json")
    assert ran.code == 0
    assert {key: ran.json[key] for key in ("rows", "computed", "failed", "busy")} == {
        "rows": 5,
        "computed": 1,
        "failed": 0,
        "busy": 0,
    }
    after = {name: path.read_bytes() for name, path in files(finished).items()}
    assert stable(json.loads(after.pop("finetune"))) == stable(json.loads(before.pop("finetune")))
    assert after == before
    monkeypatch.setattr(
        CellRunner, "sets", property(lambda runner: pytest.fail("data were read for nothing"))
    )
    assert CommandLine(capsys)(*finished.arguments, "--json").json["computed"] == 0


def test_the_same_cell_in_another_folder_gives_the_same_figures_to_the_last_digit(finished, tmp_path):
    again = tiny_bench(tmp_path, SETTINGS)
    assert bench(again) == 0
    for name, row in rows(finished).items():
        assert stable(rows(again)[name]) == stable(row), name


def test_a_row_of_other_settings_is_shown_as_stale_and_computed_again(finished, capsys):
    file = files(finished)["reference"]
    kept = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(kept), "key": "another"}))
        assert CommandLine(capsys)(*finished.arguments, "--only", "none", "--json").json["rows"] == 4
        assert "reference" not in rows(finished)
        assert rows(finished)["reference (stale settings)"]["key"] == "another"
        assert CommandLine(capsys)(*finished.arguments, "--json").json["computed"] == 1
        assert stable(json.loads(file.read_text())) == stable(json.loads(kept))
    finally:
        file.write_text(kept)


def test_expensive_rows_can_wait_until_all_cells_have_the_rest(tmp_path, capsys):
    tiny = tiny_bench(tmp_path, SETTINGS)
    run = CommandLine(capsys)
    assert run(*tiny.arguments, "--only", "none", "--only", "reference", "--json").json["rows"] == 2
    assert set(files(tiny)) == {"none", "reference"}
    ran = run(*tiny.arguments, "--only", "retrian")
    assert ran.code == 2
    assert (
        "no row 'retrian' in this benchmark: it has none, reference, clipguard, retrain, finetune" in ran.err
    )
    assert run(*tiny.arguments, "--cells", "*-badnets-*-s0-*", "--json").json["rows"] == 5
    ran = run(*tiny.arguments, "--cells", "*-s7-*")
    assert ran.code == 2
    assert "no cell is named like '*-s7-*': the first one is tiny-badnets-" in ran.err


def test_a_cell_that_another_process_has_is_left_to_it(finished, capsys):
    folder = next((finished.out / "cells").iterdir())
    with locked(folder / ".lock"):
        ran = CommandLine(capsys)(*finished.arguments, "--json")
    assert (ran.code, ran.json["busy"]) == (0, 1)
    assert "1 cells are left to another process" in ran.err


def test_the_report_command_needs_the_results_only(finished, tmp_path, capsys):
    (tmp_path / "results.parquet").write_bytes((finished.out / "results.parquet").read_bytes())
    ran = CommandLine(capsys)("bench-report", tmp_path, "--json")
    assert ran.code == 0
    assert (tmp_path / "results.md").read_text() == (finished.out / "results.md").read_text()
    assert len(ran.json["pictures"]) == 1
    assert CommandLine(capsys)("bench-report", tmp_path / "nothing").code == 2


class Broken:
    """A user's defence that cannot be had, then can."""

    works = False

    def defend(self, case: Case) -> Repaired:
        """Return the victim, or refuse."""

        if not Broken.works:
            raise ClipguardError("the moon is in the wrong place: wait")
        return Repaired(model=case.victim, seconds={})


def test_a_row_that_fails_is_shown_and_tried_again_and_the_others_go_on(finished, tmp_path, capsys):
    text = 'rates = [0.15]\ndefenses = [{name = "test_benchmark_rows:Broken", label = "mine"}]\n'
    tiny = replace(tiny_bench(tmp_path, text), cache=finished.cache)
    ran = CommandLine(capsys)(*tiny.arguments, "--json")
    assert (ran.code, ran.json["rows"], ran.json["failed"]) == (2, 4, 1)
    assert "mine: failed: the moon is in the wrong place: wait" in ran.err
    assert "mine: the moon is in the wrong place: wait" in (tiny.out / "results.md").read_text()
    sys.modules[__name__].Broken.works = True  # type: ignore[attr-defined]  # a module by_label by name
    ran = CommandLine(capsys)(*tiny.arguments, "--json")
    assert (ran.code, ran.json["rows"], ran.json["computed"], ran.json["failed"]) == (0, 5, 1, 0)
    assert rows(tiny)["mine"]["accuracy"] == rows(tiny)["none"]["accuracy"]


class Foreign:
    """Defences as they come: one that spoils what it is given, one that falls over, one that forgets."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def defend(self, case: Case) -> Repaired:
        """Do one of these."""
        if self.kind == "falls over":
            raise ZeroDivisionError("no\nluck")
        if self.kind == "leaves":
            sys.exit("enough")
        if self.kind in ("boasts", "notes"):
            notes = {"score": float("nan") if self.kind == "boasts" else 0.5, "count": 3}
            return Repaired(model=case.victim, seconds={}, notes=notes)
        with torch.no_grad():
            for weight in case.victim.parameters():
                weight.zero_()
        victim = case.victim
        return Repaired(model=victim, seconds={}) if self.kind == "spoils" else victim  # type: ignore[return-value]  # the protocol is broken on purpose


def test_a_defence_costs_its_own_row_whatever_it_does(finished, tmp_path, capsys):
    kinds = ("spoils", "falls over", "forgets", "leaves", "boasts", "notes")
    foreign = ", ".join(
        f'{{name = "test_benchmark_rows:Foreign", label = "{kind}", options = {{kind = "{kind}"}}}}'
        for kind in kinds
    )
    tiny = replace(tiny_bench(tmp_path, f"rates = [0.15]\ndefenses = [{foreign}]\n"), cache=finished.cache)
    ran = CommandLine(capsys)(*tiny.arguments, "--json")
    assert (ran.code, ran.json["rows"], ran.json["failed"]) == (2, 6, 4)
    assert "falls over: failed: ZeroDivisionError: no" in ran.err
    assert "leaves: failed: SystemExit: enough" in ran.err
    assert "boasts: failed: the defence's notes 'score' is nan: give a finite number" in ran.err
    (trace,) = (tiny.out / "cells").glob("*/falls-over.failed.json")
    assert "in defend" in json.loads(trace.read_text())["trace"]
    assert "forgets: failed: the defence returned Normalized: return a Repaired" in ran.err
    by_label = rows(tiny)
    assert (by_label["notes"]["notes_score"], by_label["notes"]["notes_count"]) == (0.5, 3)
    # What it was given was a copy: neither the victim's row nor the next defence has seen it.
    assert (
        by_label["spoils"]["accuracy"] == by_label["none"]["accuracy"] == rows(finished)["none"]["accuracy"]
    )
    assert by_label["finetune"]["accuracy"] == rows(finished)["finetune"]["accuracy"]


def test_an_attack_that_cannot_be_made_costs_its_own_cell_only(tmp_path, capsys):
    tiny = tiny_bench(tmp_path, 'attacks = [{name = "sig", rate = 0.9}]\n')
    ran = CommandLine(capsys)(*tiny.arguments, "--json")
    assert (ran.code, ran.json["rows"], ran.json["failed"]) == (2, 0, 1)
    assert "asks for 86 of 96 samples" in (tiny.out / "results.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target = 7\n", "target 7 of badnets is no class of tiny: choose one of 0 to 2"),
        ('attacks = ["together:sig+lc"]\ntarget = 2\n', "target 3 of together:sig+lc is no class of tiny"),
        ('attacks = [{name = "badnets", options = {mapping = "x"}}]\n', "unknown mapping 'x'"),
        ('guides = ["no-such-guide"]\n', "no-such-guide"),
        ('nets = ["resnet99"]\n', "resnet99"),
    ],
)
def test_what_is_known_early_is_refused_before_anything_is_made(tmp_path, capsys, text, message):
    tiny = tiny_bench(tmp_path, text)
    if "nets" in text:
        tiny.file.write_text(tiny.file.read_text().replace('nets = ["shallow-8"]\n', "", 1))
    ran = CommandLine(capsys)(*tiny.arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert not tiny.out.exists()


def test_what_is_finished_needs_neither_data_nor_guide_again(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished.out, copy / "run")
    shutil.copy(finished.file, copy / "tiny.toml")
    ran = CommandLine(capsys)("bench", copy / "tiny.toml", "-o", copy / "run", "--json")
    assert (ran.code, ran.json["computed"], ran.json["rows"]) == (0, 0, 5), ran.err


def test_training_and_test_set_must_name_the_same_classes(tmp_path, capsys):
    tiny = tiny_bench(tmp_path)
    test = np.load(tmp_path / "test.npz")
    names = np.array([*test["class_names"][:2], "another"])
    np.savez(tmp_path / "test.npz", images=test["images"], labels=test["labels"], class_names=names)
    ran = CommandLine(capsys)(*tiny.arguments)
    assert ran.code == 2
    assert "data set tiny: " in ran.err
    assert "names other classes than" in ran.err
    assert not tiny.out.exists()


def test_names_may_be_given_and_images_that_cannot_be_read_are_counted(tmp_path, capsys):
    for part, count in (("train", 40), ("test", 20)):
        data, _ = poisoned_set(count, share=0)
        write_parquet(data, tmp_path / f"{part}.parquet")
    text = 'classes = ["red", "green", "blue"]'
    tiny = tiny_bench(tmp_path, "rates = [0.15]\n")
    file = tiny.file.read_text().replace("train.npz", "train.parquet").replace("test.npz", "test.parquet")
    tiny.file.write_text(file.replace('test = "test.parquet"', f'test = "test.parquet", {text}'))
    spoil(tmp_path / "train.parquet")
    ran = CommandLine(capsys)(*tiny.arguments, "--only", "none", "--json")
    assert ran.code == 0, ran.err
    row = rows(tiny)["none"]
    assert (row["train_n"], row["unreadable"]) == (39, 1)
    (cell,) = cells(read_config(tiny.file))
    paths = BenchmarkPaths(run=tiny.out, cache=tiny.cache, data=tmp_path, beside=tmp_path)
    assert image_sets(cell.data, paths)[0].class_names == ("red", "green", "blue")
    (tmp_path / "cifar10").mkdir()
    for part in ("train", "test"):
        shutil.copy(tmp_path / f"{part}.parquet", tmp_path / "cifar10")
    named = replace(cell.data, name="cifar10", train=None, test=None)
    assert [part.class_names for part in sources(named, paths)] == [("red", "green", "blue")] * 2
    with pytest.raises(ClipguardError, match="has 2 names but"):
        sources(replace(named, classes=("red", "green")), paths)


def spoil(path: Path) -> None:
    """Make the second image of a Parquet file unreadable."""
    table = pq.read_table(path)
    images = table.column("image").to_pylist()
    images[1]["bytes"] = b"no image"
    kind = table.schema.field("image").type
    pq.write_table(table.set_column(0, table.schema.field("image"), pa.array(images, kind)), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("sedes = [1]", "unknown key 'sedes'"), ("seeds = [", "cannot be read as TOML")],
)
def test_a_file_that_is_no_benchmark_ends_with_2_and_one_line(tmp_path, capsys, text, message):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    ran = CommandLine(capsys)("bench", file, "-o", tmp_path / "out")
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_data_are_refused_with_the_ways_out(tmp_path, capsys):
    file = tmp_path / "common.toml"
    file.write_text("")
    ran = CommandLine(capsys)("bench", file, "-o", tmp_path / "out", "--data", tmp_path, "--json")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "train.parquet" in ran.err
    assert "set download" in ran.err
