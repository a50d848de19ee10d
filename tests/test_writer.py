"""What is written as Parquet comes back bit for bit, in a layout that others read too."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from clipguard.data import ImageSource
from clipguard.data import writer as writer_module
from clipguard.data.decode import read_images
from clipguard.data.writer import GROUP, write_parquet
from clipguard.types import Preprocessing, image_set

NAMES = ("tench", 'a "quoted" name', "naïve ☃")


def noise(n, size=(6, 5), names=NAMES):
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (n, *size, 3), dtype=np.uint8)
    ids = tuple(f"folder/{row}.png" for row in range(n))
    return image_set(images, np.arange(n, dtype=np.int64) % len(names), names, ids)


def read_back(path, size):
    return read_images(ImageSource.open(path), Preprocessing(size=size))[0]


@given(images=arrays(np.uint8, st.tuples(st.integers(3, 9), st.just(7), st.integers(1, 9), st.just(3))))
def test_images_labels_names_and_ids_come_back_as_they_were(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "train.parquet"
    data = image_set(images, np.arange(len(images), dtype=np.int64) % 3, NAMES)
    write_parquet(data, path)
    back = read_back(path, images.shape[1:3])
    assert np.array_equal(back.images, data.images)
    assert back.fingerprint == data.fingerprint


def test_the_ids_stand_where_others_look_for_the_file_name(tmp_path):
    data = noise(4)
    write_parquet(data, tmp_path / "a.parquet")
    column = pq.read_table(tmp_path / "a.parquet")["image"].to_pylist()
    assert tuple(entry["path"] for entry in column) == data.ids


def test_a_row_group_holds_a_thousand_rows_and_the_last_one_the_rest(tmp_path):
    data = noise(2 * GROUP + 3, size=(2, 2))
    write_parquet(data, tmp_path / "a.parquet")
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sizes == [1000, 1000, 3]
    assert np.array_equal(read_back(tmp_path / "a.parquet", (2, 2)).images, data.images)


def test_every_image_is_a_png(tmp_path):
    write_parquet(noise(3), tmp_path / "a.parquet")
    for entry in pq.read_table(tmp_path / "a.parquet")["image"].to_pylist():
        assert Image.open(io.BytesIO(entry["bytes"])).format == "PNG"


def test_the_datasets_library_reads_images_and_class_names(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    data = noise(4)
    write_parquet(data, tmp_path / "a.parquet")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    assert tuple(loaded.features["label"].names) == NAMES
    assert np.array_equal(np.stack([np.asarray(row["image"]) for row in loaded]), data.images)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write_parquet(noise(4), path)
    old = path.read_bytes()
    calls = iter(range(2))

    def breaks(pixels):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return b""

    monkeypatch.setattr(writer_module, "png", breaks)
    with pytest.raises(KeyboardInterrupt):
        write_parquet(noise(5), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
