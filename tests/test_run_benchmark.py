"""run_benchmark: the command `bench` from Python, with a file or a mapping of the same keys."""

import tomllib

import pytest

from clipguard import ClipguardError, run_benchmark
from tiny_bench import tiny_bench


def test_a_mapping_and_its_file_name_the_same_rows_and_finished_ones_are_kept(tmp_path, monkeypatch, capsys):
    tiny = tiny_bench(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = {"cache": tiny.cache, "only": ("none",)}
    done = run_benchmark(tomllib.loads(tiny.file.read_text()), tiny.out, **settings)
    assert "clipguard: " in capsys.readouterr().err
    assert (done.summary.rows, done.summary.computed, done.summary.failed) == (1, 1, 0)
    (row,) = done.rows
    assert (row["data"], row["attack"], row["row"]) == ("tiny", "badnets", "none")
    assert 0 <= row["accuracy"] <= 1
    assert row["command"].startswith("clipguard.run_benchmark('config'")
    assert done.table.read_text().count("badnets") >= 1
    frame = done.to_pandas()
    assert list(frame["accuracy"]) == [row["accuracy"]]
    again = run_benchmark(tiny.file, tiny.out, progress=False, **settings)
    assert (again.summary.rows, again.summary.computed) == (1, 0)
    assert again.rows == done.rows
    assert capsys.readouterr().err == ""


def test_a_wrong_key_is_refused_by_its_name(tmp_path):
    with pytest.raises(ClipguardError, match="config: unknown key 'atacks': give one of"):
        run_benchmark({"atacks": ["badnets"]}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
