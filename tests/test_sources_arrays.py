"""data: arrays in memory and in .npz files, without pickles."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits

NAMES = ("cat", "dog", "frog")


def refusal(what, **options) -> str:
    """Return the one line with which `what` is refused."""
    with pytest.raises(ClipguardError) as caught:
        ImageSource.open(what, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arrays_in_memory_and_in_a_file_are_the_same_source(tmp_path):
    images = np.arange(4 * 3 * 2 * 3, dtype=np.uint8).reshape(4, 3, 2, 3)
    labels = np.array([0, 1, 2, 1], np.int16)
    np.savez_compressed(tmp_path / "x.npz", images=images, labels=labels, class_names=np.array(NAMES))
    memory = ImageSource.open((images, labels), classes=NAMES)
    file = ImageSource.open(tmp_path / "x.npz")
    assert (memory.kind, memory.ids) == ("arrays", ("0", "1", "2", "3"))
    assert memory.fingerprint == file.fingerprint
    assert all((a == b).all() for a, b in zip(file.read(range(4)), images, strict=True))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), [0, 1], "float64"),
        (np.zeros((2, 4), np.uint8), [0, 1], "[2, 4]"),
        (np.zeros((2, 3, 4, 2), np.uint8), [0, 1], "[2, 3, 4, 2]"),
        (np.uint8(3), [0, 1], "uint8 []"),
        ([np.zeros((4, 4), np.uint8), np.zeros((4, 5, 2), np.uint8)], [0, 1], "image 1 of arrays"),
        ([np.zeros((4, 4), np.uint8), [[0]]], [0, 1], "int64 [1, 1]"),
        (
            [np.zeros((4, 4)), np.zeros((4, 4))],
            [0, 1],
            "[h, w, 1, 3 or 4], not float64 [4, 4]",
        ),
        (np.array(None, dtype=object), [0, 1], "object []"),
        ([], [], "no images"),
        (np.zeros((2, 0, 4), np.uint8), [0, 1], "[2, 0, 4]"),
        (np.zeros((0, 4, 4), np.uint8), [], "no images"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1, 1], "2 images but 3 labels"),
        (np.zeros((2, 4, 4), np.uint8), [0.5, 1], "one integer a row"),
        (np.zeros((2, 4, 4), np.uint8), [[0, 1], [1, 0]], "one-hot"),
        (np.zeros((2, 4, 4), np.uint8), [0, None], "null labels"),
        (np.zeros((2, 4, 4), np.uint8), [0, [1]], "no list of labels"),
        (np.zeros((2, 4, 4), np.uint8), [0, 2**63], "integer"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(images, labels, message):
    assert message in refusal((images, labels), classes=NAMES)


def test_a_list_may_hold_images_of_any_size_and_of_pillow():
    grey, rgba = np.full((2, 3), 7, np.uint8), np.full((4, 5, 4), 9, np.uint8)
    pillow = Image.fromarray(np.full((6, 2, 3), 8, np.uint8))
    source = ImageSource.open(
        ([grey, rgba, pillow, torch.zeros((3, 3), dtype=torch.uint8)], [0, 1, 1, 0]), classes=NAMES
    )
    assert [np.asarray(item).shape for item in source.read(range(4))] == [
        (2, 3),
        (4, 5, 4),
        (6, 2, 3),
        (3, 3),
    ]
    other = ImageSource.open(
        ([grey, rgba + 1, pillow, np.zeros((3, 3), np.uint8)], [0, 1, 1, 0]), classes=NAMES
    )
    assert source.fingerprint != other.fingerprint


def test_an_npz_file_with_a_pickle_in_it_is_refused(tmp_path):
    labels = np.array([0, "surprise"], object)
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4), np.uint8), labels=labels)
    assert "without pickles" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 torn", b"\x80\x04]\x94(K\x01K\x02e.", b"\x93NUMPY\x01"]
)
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    assert "cannot be read as .npz" in refusal(tmp_path / "x.npz")


def test_a_bare_array_saved_as_npz_is_refused(tmp_path):
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, np.zeros(3))
    assert "cannot be read as .npz" in refusal(tmp_path / "x.npz")


def test_an_npz_file_that_lacks_labels_or_has_odd_names_is_refused(tmp_path):
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    assert "lacks the column 'label'" in refusal(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", images=images, labels=[0, 1], class_names=np.arange(2))
    assert "class_names" in refusal(tmp_path / "y.npz")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(members=3), "images has 4 rows, more than the limit of 3"),
        (Limits(classes=1), "class_names has 2"),
    ],
)
def test_an_npz_file_of_more_rows_than_the_limit_is_refused_before_unpacking(tmp_path, limits, message):
    np.savez(
        tmp_path / "x.npz", images=np.zeros((4, 2, 2), np.uint8), labels=[0, 1, 0, 1], class_names=["a", "b"]
    )
    with pytest.raises(ClipguardError, match=message):
        ImageSource.open(tmp_path / "x.npz", limits=limits)


def test_an_array_of_another_version_of_the_format_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("images.npy", "labels.npy"):
            with archive.open(name, "w") as opened:
                np.lib.format.write_array(opened, np.zeros(2, np.uint8), version=(3, 0))
    assert "images has version 3.0 of the format" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["images.npy", "labels.npy", "images"], "holds 'images', which is no array NAME.npy"),
        (["images.npy", "labels.npy", "notes.txt"], "holds 'notes.txt', which is no array NAME.npy"),
        (["images.npy", "labels.npy", "images.npy"], "holds two arrays called 'images'"),
        (["images.npy", "labels.npy", "images.npy.npy"], "holds two arrays called 'images.npy'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_file_that_numpy_may_read_otherwise_is_refused(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for member in members:
            buffer = io.BytesIO()
            np.save(buffer, np.arange(4) % 2 if "labels" in member else np.zeros((4, 5, 5, 3), np.uint8))
            archive.writestr(member, buffer.getvalue())
    with pytest.raises(ClipguardError) as caught:
        ImageSource.open(tmp_path / "x.npz", classes=["a", "b"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
