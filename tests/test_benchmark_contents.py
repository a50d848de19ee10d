"""lab.benchmark.contents: a row is of what the files held, whatever they are called."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from clipguard.lab.benchmark.config import cells, read_config
from clipguard.lab.benchmark.contents import contents_of
from clipguard.lab.benchmark.places import BenchmarkPaths
from tiny_bench import tiny_bench
from tiny_data import CommandLine


def places(folder):
    return BenchmarkPaths(run=folder, cache=folder, data=folder / "data", beside=folder)


def test_a_set_that_is_known_by_name_has_the_hash_of_its_file_wherever_the_command_runs(
    tmp_path, monkeypatch
):
    (tmp_path / "bench.toml").write_text('data = ["cifar10"]\n')
    (cell,) = cells(read_config(tmp_path / "bench.toml"))
    assert contents_of(cell, places(tmp_path), guided=True) == {}
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    (tmp_path / "data" / "cifar10" / "test.parquet").write_text("as it was")
    before = contents_of(cell, places(tmp_path), guided=True)
    assert set(before) == {"test"}
    monkeypatch.chdir(tmp_path)
    here = replace(places(tmp_path), data=Path("data"), beside=tmp_path / "elsewhere")
    assert contents_of(cell, here, guided=True) == before
    (tmp_path / "data" / "cifar10" / "test.parquet").write_text("something else")
    assert contents_of(cell, here, guided=True) != before


def test_each_file_and_the_guides_folder_have_a_hash_of_their_contents(tmp_path):
    for name in ("train", "test", "weights"):
        (tmp_path / name).write_text("as it was")
    (tmp_path / "guide" / "inner").mkdir(parents=True)
    (tmp_path / "guide" / "inner" / "tower").write_text("as it was")
    file = tmp_path / "bench.toml"
    file.write_text(
        """data = [{name = "own", train = "train", test = "test"}]
guides = ["local-dir:guide"]
nets = [{name = "resnet18", weights = "weights"}]
"""
    )
    (cell,) = cells(read_config(file))
    before = contents_of(cell, places(tmp_path), guided=True)
    assert before == contents_of(cell, places(tmp_path), guided=True)
    assert set(before) == {"train", "test", "weights", "guide"}
    assert set(contents_of(cell, places(tmp_path), guided=False)) == {"train", "test", "weights"}
    for name, changed in [("train", "train"), ("weights", "weights"), ("guide/inner/tower", "guide")]:
        (tmp_path / name).write_text("something else")
        after = contents_of(cell, places(tmp_path), guided=True)
        assert {one for one in before if before[one] != after[one]} == {changed}
        before = after
    assert contents_of(cell, places(tmp_path / "elsewhere"), guided=True) == {}


def test_a_row_is_computed_again_when_a_file_holds_something_else(tmp_path, capsys):
    tiny = tiny_bench(tmp_path)
    only = ("--only", "none", "--json")
    clipguard = CommandLine(capsys)
    assert clipguard(*tiny.arguments, *only).json["computed"] == 1
    assert clipguard(*tiny.arguments, *only).json["computed"] == 0
    with np.load(tmp_path / "train.npz") as opened:
        arrays = dict(opened)
    np.savez(tmp_path / "train.npz", **arrays | {"images": 255 - arrays["images"]})
    assert clipguard(*tiny.arguments, *only).json["computed"] == 1
    (tmp_path / "train.npz").unlink()
    assert clipguard(*tiny.arguments, *only).json["computed"] == 0
