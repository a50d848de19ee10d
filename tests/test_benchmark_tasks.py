"""lab.benchmark.tasks: a row's key changes with all that its figures depend on, and with nothing else."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from clipguard.errors import ClipguardError
from clipguard.lab.attacks import attack_named
from clipguard.lab.benchmark.config import cells, read_config
from clipguard.lab.benchmark.tasks import json_of, key_of, row_settings, tasks_of
from tiny_bench import TinyBench, tiny_bench


def keys(tiny: TinyBench) -> dict[str, str]:
    config = read_config(tiny.file)
    (cell,) = cells(config)
    return {task.label: key_of(row_settings(cell, task)) for task in tasks_of(config)}


def test_a_key_changes_with_code_threads_attack_and_defence_and_with_nothing_else(tmp_path, monkeypatch):
    tiny = tiny_bench(tmp_path, "rates = [0.15]\n")
    before = keys(tiny)
    assert before == keys(tiny)
    assert len(set(before.values())) == 5

    def changed() -> set[str]:
        after = keys(tiny)
        monkeypatch.undo()
        return {name for name in before if after[name] != before[name]}

    defended = {"clipguard", "retrain", "finetune"}
    monkeypatch.setattr("clipguard.pipeline.stages.versions", lambda: {"read": 99})
    assert changed() == defended
    for module in ("lab.attacks.cache", "compute.classifiers", "lab.benchmark.tasks"):
        monkeypatch.setattr(f"clipguard.{module}.VERSION", 99)
        assert changed() == set(before)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert changed() == set(before)
    # A default of the attack that no file names.
    monkeypatch.setattr(
        "clipguard.lab.benchmark.tasks.attack_of", lambda cell: attack_named("badnets", rate=0.15, size=2)
    )
    assert changed() == set(before)
    text = tiny.file.read_text()
    try:
        tiny.file.write_text(
            text.replace("[defense_config]", "[defense_config]\nlabel_flow = {flag_loss = 6.0}")
        )
        assert changed() == defended
    finally:
        tiny.file.write_text(text)


@pytest.mark.parametrize("flip", [True, False])
def test_rows_of_victims_without_mirrored_images_know_the_rule_of_mirroring(tmp_path, flip):
    file = tmp_path / "bench.toml"
    file.write_text(f"victim = {{flip = {str(flip).lower()}}}\n")
    config = read_config(file)
    (cell,) = cells(config)
    versions = {task.label: row_settings(cell, task)["code"].get("mirroring") for task in tasks_of(config)}
    victims = {"none": None, "reference": None}
    assert versions == victims | dict.fromkeys(versions.keys() - victims, None if flip else 1)
    assert len(versions) > 2


@dataclass(frozen=True)
class Inner:
    """Settings within settings."""

    size: tuple[int, int] = (1, 2)
    state: object = None


def test_settings_are_json_and_what_has_no_stable_text_is_refused():
    assert json_of({"a": Inner(), "b": [Path("x"), None, True]}, "here") == {
        "a": {"size": (1, 2), "state": None},
        "b": ["x", None, True],
    }
    with pytest.raises(ClipguardError, match=r"here: <object object .* cannot be part of a row's key"):
        json_of(Inner(state=object()), "here")
