from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clipguard.errors import ClipguardError
from clipguard.runs import (
    read_array,
    read_json,
    read_table,
    write_array,
    write_json,
    write_table,
)
from clipguard.runs.files import new_folder

NUMBERS = hnp.arrays(
    st.sampled_from([np.uint8, np.int64, np.bool_, np.float32, np.float64]),
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
    elements={"allow_nan": False, "allow_infinity": False},
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(array=NUMBERS, mmap=st.booleans())
def test_arrays_come_back_bit_for_bit(array, mmap, tmp_path_factory):
    path = tmp_path_factory.mktemp("array") / "a.npy"
    write_array(path, array)
    back = read_array(path, mmap=mmap)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), ids=st.lists(TEXTS, max_size=6))
def test_tables_come_back_with_their_types(data, ids, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    n = len(ids)
    columns = {
        "id": ids,
        "label": data.draw(hnp.arrays(np.int64, n)),
        "is_clean": data.draw(hnp.arrays(np.bool_, n)),
        "score": data.draw(hnp.arrays(np.float64, n, elements={"allow_nan": False, "allow_infinity": False})),
    }
    write_table(path, columns)
    back = read_table(path)
    assert list(back) == list(columns)
    assert list(back["id"]) == ids
    for name in ("label", "is_clean", "score"):
        assert back[name].dtype == columns[name].dtype
        assert np.array_equal(back[name], columns[name])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_and_nothing_is_written(tmp_path, bad):
    values = np.array([0.5, bad])
    with pytest.raises(ClipguardError, match="1 NaN or Inf"):
        write_array(tmp_path / "a.npy", values)
    with pytest.raises(ClipguardError, match=r"column score of t.parquet would hold 1 NaN or Inf"):
        write_table(tmp_path / "t.parquet", {"score": values})
    with pytest.raises(ClipguardError, match="NaN or Inf"):
        write_json(tmp_path / "j.json", {"x": [bad]})
    assert list(tmp_path.iterdir()) == []


def test_an_optional_column_keeps_its_gaps(tmp_path):
    write_table(tmp_path / "t.parquet", {"score": np.array([0.5, np.nan])}, optional=["score"])
    back = read_table(tmp_path / "t.parquet")["score"]
    assert back[0] == 0.5
    assert np.isnan(back[1])


def test_an_id_that_is_not_unicode_is_one_clear_error(tmp_path):
    with pytest.raises(ClipguardError, match=r"column id of t.parquet: 'a.udcff' is not Unicode"):
        write_table(tmp_path / "t.parquet", {"id": ["a\udcff"]})


def test_objects_are_never_pickled_nor_unpickled(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_array(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ClipguardError, match=r"evil.npy cannot be read"):
        read_array(tmp_path / "evil.npy")


def test_missing_and_torn_files_are_one_clear_error(tmp_path):
    write_array(tmp_path / "a.npy", np.arange(100))
    write_table(tmp_path / "t.parquet", {"x": np.arange(100)})
    write_json(tmp_path / "j.json", {"x": 1})
    for name, read in (("a.npy", read_array), ("t.parquet", read_table), ("j.json", read_json)):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-9])
        for wanted in ("cannot be read", "is missing"):
            with pytest.raises(ClipguardError, match=wanted) as caught:
                read(file)
            assert "\n" not in str(caught.value)
            file.unlink(missing_ok=True)


def test_a_table_in_another_order_is_written_in_parts_of_the_same_types(tmp_path, monkeypatch):
    monkeypatch.setattr("clipguard.runs.files.GROUP_ROWS", 4)
    ids = [f"name {number}\0" for number in range(10)]
    columns = {"id": ids, "n": np.arange(10), "score": np.array([np.nan] * 4 + [0.5] * 6)}
    order = np.random.default_rng(0).permutation(10)
    write_table(tmp_path / "t.parquet", columns, ["score"], {"n": "a number"}, order)
    back = read_table(tmp_path / "t.parquet")
    assert back["id"].tolist() == [ids[row] for row in order]
    assert back["n"].tolist() == order.tolist()
    assert np.array_equal(back["score"], columns["score"][order], equal_nan=True)
    with pq.ParquetFile(tmp_path / "t.parquet") as file:
        assert file.metadata.num_row_groups == 3
        assert file.schema_arrow.field("n").metadata == {b"description": b"a number"}


# ---- new folders


def filled(path):
    with new_folder(path) as part:
        (part / "sub").mkdir()
        (part / "sub" / "a").write_text("a")


@pytest.mark.parametrize("name", [".", "./", "new", "new/deeper", "../beside"])
def test_a_new_folder_may_be_given_in_any_way(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    filled(Path(name))
    # Also whoever works in it sees what is there now.
    assert (Path(name) / "sub" / "a").read_text() == "a"
    assert (tmp_path / "here" / name / "sub" / "a").exists()
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_a_folder_that_cannot_be_filled_stays_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError), new_folder(Path()) as part:
        part.write_text("no folder")
    assert list(tmp_path.iterdir()) == []
    filled(Path())
    with pytest.raises(ClipguardError, match="not an empty folder"):
        filled(Path())
