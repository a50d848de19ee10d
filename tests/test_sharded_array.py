"""runs.sharded_array: rows in many files are what one array of them would be."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipguard.errors import ClipguardError
from clipguard.runs import ShardedArray, write_array
from clipguard.runs import sharded_array as module
from clipguard.types import Rows


def sharded(
    folder: Path, sizes: list[int], row: tuple[int, ...] = (2, 3), dtype: type = np.float32
) -> np.ndarray:
    """Write files of those numbers of rows, and return all rows."""
    whole = np.arange(sum(sizes) * np.prod(row, dtype=int)).reshape(-1, *row).astype(dtype)
    for number, part in enumerate(np.split(whole, np.cumsum(sizes)[:-1])):
        write_array(folder / f"a_{number:06d}.npy", part)
    return whole


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    row=st.sampled_from([(), (1,), (2, 3), (2, 2, 3)]),
    dtype=st.sampled_from([np.uint8, np.int64, np.float32, np.bool_]),
    data=st.data(),
)
def test_any_rows_are_those_of_the_plain_array(sizes, row, dtype, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    whole = sharded(folder, sizes, row, dtype)
    rows, n = ShardedArray.of(folder), sum(sizes)
    assert (rows.shape, rows.dtype, len(rows)) == (whole.shape, whole.dtype, n)
    edge = st.none() | st.integers(-n - 2, n + 2)
    cut = slice(data.draw(edge), data.draw(edge))
    chosen = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=9) if n else st.just([])), np.int64)
    for part in (cut, chosen, slice(None)):
        found = rows[part]
        assert (found.dtype, found.shape) == (whole.dtype, whole[part].shape)
        assert found.tobytes() == whole[part].tobytes()
        found[...] = 0
    # What is given is a copy: no file changed.
    assert rows[:].tobytes() == whole.tobytes()


def test_it_is_rows_as_the_product_asks_for_them_and_nothing_else(tmp_path):
    whole = sharded(tmp_path, [3, 4])
    rows = ShardedArray.of(tmp_path)
    assert isinstance(rows, Rows)
    for asked in (np.arange(7) > 2, slice(0, 6, 2), slice(None, None, -1), np.zeros((2, 1), np.int64)):
        with pytest.raises(TypeError):
            rows[asked]
    for beyond in (7, -1):
        with pytest.raises(IndexError):
            rows[np.array([0, beyond])]
    assert np.array_equal(rows[np.array([6, 0, 6])], whole[[6, 0, 6]])


@pytest.mark.parametrize("sizes", [[0], [0, 0], [0, 3, 0]])
def test_files_without_rows_may_have_another_shape(tmp_path, sizes):
    whole = sharded(tmp_path, sizes)
    write_array(tmp_path / "a_000000.npy", np.zeros((0, 1), np.float32))
    rows = ShardedArray.of(tmp_path)
    assert len(rows) == len(whole)
    assert np.array_equal(rows[:].reshape(whole.shape), whole)


def test_what_no_array_of_rows_can_be_is_one_clear_error_that_names_the_file(tmp_path):
    sharded(tmp_path, [3, 4, 2])
    file, good = tmp_path / "a_000001.npy", (tmp_path / "a_000001.npy").read_bytes()
    fortran, version_2 = tmp_path / "fortran.npy", tmp_path / "version2.npy"
    np.save(fortran, np.asfortranarray(np.zeros((4, 2, 3), np.float32)))
    with version_2.open("wb") as opened:
        np.lib.format.write_array(opened, np.zeros((4, 2, 3), np.float32), version=(2, 0))
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{}, {}], dtype=object), allow_pickle=True)
    bad = [good[:-1], good + b"\0", good[:40], b"", fortran.read_bytes(), version_2.read_bytes()]
    for other in (fortran, version_2):
        other.unlink()
    bad.append(pickled.read_bytes())
    pickled.unlink()
    for content in bad:
        file.write_bytes(content)
        with pytest.raises(ClipguardError, match=r"a_000001.npy cannot be read \(.+\): delete it") as caught:
            ShardedArray.of(tmp_path)
        assert "\n" not in str(caught.value)
    for values in (np.zeros((4, 2, 3)), np.zeros((4, 3, 2), np.float32)):
        write_array(file, values)
        with pytest.raises(ClipguardError, match=r"a_000001.npy holds .* unlike .*a_000000.npy"):
            ShardedArray.of(tmp_path)
    file.unlink()
    with pytest.raises(ClipguardError, match=r"a_000001.npy is missing"):
        ShardedArray([tmp_path / f"a_{number:06d}.npy" for number in range(3)])


def test_a_folder_without_any_file_is_one_clear_error(tmp_path):
    with pytest.raises(ClipguardError, match=r"holds no \.npy file"):
        ShardedArray.of(tmp_path)


def test_a_file_that_is_cut_short_or_removed_later_is_an_error_and_not_zeros(tmp_path):
    whole = sharded(tmp_path, [3, 4])
    rows = ShardedArray.of(tmp_path)
    last = tmp_path / "a_000001.npy"
    assert np.array_equal(rows[3:7], whole[3:7])
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(ClipguardError, match=r"a_000001.npy is shorter than it was"):
        rows[np.array([6])]
    assert np.array_equal(rows[:6], whole[:6])
    again = ShardedArray([tmp_path / "a_000000.npy"])
    (tmp_path / "a_000000.npy").unlink()
    with pytest.raises(ClipguardError, match=r"a_000000.npy cannot be read"):
        again[:]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not list open files")
def test_of_many_files_only_some_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEEP_OPEN", 4)
    whole = sharded(tmp_path, [1] * 50)
    rows, before = ShardedArray.of(tmp_path), descriptors()
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 3))
    assert np.array_equal(rows[order], whole[order])
    assert np.array_equal(rows[:], whole)
    assert descriptors() - before == 4


def test_threads_read_side_by_side_while_files_are_opened_and_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEEP_OPEN", 2)
    whole = sharded(tmp_path, [3] * 12, (64,))
    rows = ShardedArray.of(tmp_path)

    def asks(seed: int) -> bool:
        draw = np.random.default_rng(seed)
        orders = [draw.integers(0, 36, 40) for _ in range(25)]
        return all(np.array_equal(rows[order], whole[order]) for order in orders)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(asks, range(8)))
