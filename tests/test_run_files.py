import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clipguard.errors import ClipguardError
from clipguard.runs import (
    read_array,
    read_image_set,
    read_json,
    read_table,
    write_array,
    write_image_set,
    write_json,
    write_table,
)
from clipguard.types import image_set

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


@settings(max_examples=40, deadline=None)
@given(data=st.data(), ids=st.lists(TEXTS, min_size=1, max_size=5, unique=True))
def test_image_sets_come_back_equal_with_their_images_on_disk(data, ids, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    n = len(ids)
    images = data.draw(hnp.arrays(np.uint8, (n, 2, 3, 3)))
    labels = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, 1)))
    written = image_set(images, labels, ("<b>cat</b>", "dog\n\u202e"), tuple(ids))
    write_image_set(folder, written)
    back = read_image_set(folder)
    assert isinstance(back.images, np.memmap)
    assert np.array_equal(back.images, images)
    assert np.array_equal(back.labels, labels)
    assert (back.ids, back.class_names, back.fingerprint) == (
        written.ids,
        written.class_names,
        written.fingerprint,
    )


def test_images_decoded_into_the_folder_itself_are_not_copied(tmp_path):
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (4, 2, 2, 3))
    images[:] = 7
    inode = os.stat(tmp_path / "images.npy").st_ino
    write_image_set(tmp_path, image_set(images, np.zeros(4, np.int64), ("a",)))
    assert os.stat(tmp_path / "images.npy").st_ino == inode
    assert (read_image_set(tmp_path).images == 7).all()


def test_a_part_of_a_mapped_file_is_not_taken_for_the_whole(tmp_path):
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (4, 2, 2, 3))
    images[:] = np.arange(4, dtype=np.uint8)[:, None, None, None]
    write_image_set(tmp_path, image_set(images[2:], np.zeros(2, np.int64), ("a",)))
    assert read_image_set(tmp_path).images[:, 0, 0, 0].tolist() == [2, 3]


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


def test_image_sets_whose_files_disagree_are_refused(tmp_path):
    write_image_set(tmp_path, image_set(np.zeros((2, 2, 2, 3), np.uint8), np.array([0, 1]), ("a", "b")))
    write_array(tmp_path / "images.npy", np.zeros((3, 2, 2, 3), np.uint8))
    with pytest.raises(ClipguardError, match="2 rows"):
        read_image_set(tmp_path)
    write_array(tmp_path / "images.npy", np.zeros((2, 2, 2, 3), np.uint8))
    meta = json.loads((tmp_path / "meta.json").read_text())
    write_json(tmp_path / "meta.json", meta | {"class_names": ["a"]})
    with pytest.raises(ClipguardError, match="labels outside the 1 class names"):
        read_image_set(tmp_path)
