"""Columns by name in every command that opens data: one definition, one refusal, also for a test set."""

import json
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipguard.cli import options
from clipguard.cli.measuring import open_test
from clipguard.data import Columns, ImageSource
from clipguard.data.writer import png
from clipguard.defenses.clipguard import unfitted
from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.cells import CellRunner, cell_name
from clipguard.lab.benchmark.config import cells, config_from
from clipguard.lab.benchmark.data_sets import sources
from clipguard.lab.benchmark.places import BenchmarkPaths
from clipguard.pipeline.config import DefenseConfig
from test_backdoorbench import folder, parts  # noqa: F401  # fixtures: a record
from tiny_data import image_folder, pictures

SEVERAL = "has several columns for a label, target, category: choose one with --label-column"
BY_KIND = ("--label-column", "kind")


def table(path, n=30):
    """Write images with three columns that may be the labels, two of them by a usual name."""
    kinds = [("cat", "dog", "frog")[row % 3] for row in range(n)]
    columns = {
        "image": [png(pixels) for pixels in pictures(n)],
        "target": np.arange(n) % 2,
        "category": ["a", "b"] * (n // 2),
        "kind": kinds,
        "video": np.arange(n) // 3,
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("command", ["scan", "defend", "doctor", "attack", "convert"])
def test_several_candidates_for_the_labels_are_refused_alike(clipguard, request, tmp_path, command):
    data, out = table(tmp_path / "x.parquet"), ("-o", tmp_path / "out")
    arguments = {
        "scan": (data, *out),
        "defend": (data, *out),
        "doctor": (data, "--guide", "mini"),
        "attack": (data, *out, "--attack", "badnets"),
        "convert": (tmp_path / "record", "--source", data, *out),
    }[command]
    if command == "convert":
        request.getfixturevalue("folder")
    ran = clipguard(command, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == f"clipguard: {data} {SEVERAL}"
    assert not (tmp_path / "out").exists()
    missing = clipguard(command, *arguments, "--label-column", "species")
    assert "lacks the column 'species' of --label-column" in missing.err


def test_every_command_that_opens_data_takes_the_same_columns():
    openers = ("ScanOptions", "DefendOptions", "DoctorOptions", "AttackOptions", "ConvertOptions")
    with_columns = {
        name
        for name, kind in vars(options).items()
        if name.endswith("Options") and any(field.type is options.ColumnOptions for field in fields(kind))
    }
    assert with_columns == set(openers)


def test_an_attack_on_a_table_keeps_labels_and_groups_and_its_test_set_takes_the_same_columns(
    clipguard, tmp_path
):
    data, out = table(tmp_path / "x.parquet"), tmp_path / "out"
    more = ("--attack", "badnets", "--rate", "0.1", "--test", table(tmp_path / "test.parquet", 12))
    ran = clipguard("attack", data, "-o", out, *BY_KIND, "--group-column", "video", *more, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["classes"] == ["cat", "dog", "frog"]
    train = ImageSource.open(out / "train.parquet", columns=Columns(group="group"))
    assert train.groups.tolist() == (np.arange(30) // 3).tolist()
    test = ImageSource.open(out / "test.parquet")
    assert (len(test), test.groups) == (12, None)
    assert pq.read_schema(out / "test.parquet").names == ["image", "label"]


def test_a_record_is_converted_by_the_column_that_is_named(clipguard, folder, tmp_path):  # noqa: F811
    data, out = table(tmp_path / "x.parquet"), tmp_path / "out"
    options = (*BY_KIND, "--group-column", "video", "--json")
    ran = clipguard("convert", folder, "--source", data, "-o", out, *options)
    assert ran.code == 0, ran.err
    train = ImageSource.open(out / "train.parquet", columns=Columns(group="group"))
    assert train.class_names == ("cat", "dog", "frog")
    assert train.groups.tolist() == (np.arange(30) // 3).tolist()


def test_a_test_set_takes_the_columns_of_its_training_set_as_far_as_it_has_any(tmp_path):
    columns = Columns(label="kind", group="video")
    train = ImageSource.open(table(tmp_path / "x.parquet"), columns=columns)
    same = open_test(table(tmp_path / "test.parquet", 12), train, None, None)
    assert same.clean.labels.tolist() == (np.arange(12) % 3).tolist()
    classes = image_folder(tmp_path / "folder", 12, names=("cat", "dog", "frog"))
    assert open_test(classes, train, None, None).clean.class_names == train.class_names


def test_a_benchmark_names_columns_in_its_file(tmp_path):
    def config(**columns):
        files = {"train": "x.parquet", "test": "test.parquet"}
        return config_from({"data": [{"name": "mine", **files, "columns": columns}]}, "bench.toml")

    table(tmp_path / "x.parquet")
    table(tmp_path / "test.parquet", 12)
    paths = BenchmarkPaths(run=tmp_path, cache=tmp_path, data=tmp_path, beside=tmp_path)
    (cell,) = cells(config(label="kind"))
    assert [len(source) for source in sources(cell.data, paths)] == [30, 12]
    (usual,) = cells(config())
    with pytest.raises(ClipguardError, match="has several columns for a label, target, category"):
        sources(usual.data, paths)
    assert cell_name(cell) != cell_name(usual)
    (grouped,) = cells(config(label="kind", group="video"))
    runner = CellRunner(grouped, paths, (0,))
    assert runner.poisoned[0].groups.tolist() == (np.arange(30) // 3).tolist()
    assert unfitted(runner.case(), DefenseConfig())[1].groups.tolist() == (np.arange(30) // 3).tolist()
    with pytest.raises(ClipguardError, match="unknown key 'labels'"):
        config(labels="kind")


def test_a_file_of_options_names_columns_and_verify_and_apply_know_them(clipguard, tmp_path):
    data, run = table(tmp_path / "x.parquet", 60), tmp_path / "run"
    file = tmp_path / "clipguard.toml"
    file.write_text('[scan]\nguide = "mini"\npower = 0\nlabel-column = "kind"\nfail-on = "never"\n')
    ran = clipguard("scan", data, "-o", run, "--config", file, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["data"]["classes"] == ["cat", "dog", "frog"]
    assert clipguard("report", run).code == 0
    assert clipguard("verify", run, "--data", data).code == 0
    copied = clipguard("apply", run, data, "-o", tmp_path / "copy", "--json")
    assert copied.code == 0, copied.err
    assert json.loads(copied.out)["kept"] == 60
