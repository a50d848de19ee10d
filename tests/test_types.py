"""types: frozen values with checked shapes, and a fingerprint of the contents."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard import types
from clipguard.types import History, ImageSet, Scores, Split, image_set

CLASSES = ("cat", "dog", "frog")
VALUES = (ImageSet, Scores, types.EntropyMap, Split, History)


def a_set(n: int = 6, seed: int = 0) -> ImageSet:
    """Return a small random image set."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (n, 4, 5, 3), dtype=np.uint8)
    return image_set(images, draw.integers(0, 3, n), CLASSES, tuple(f"img{i}" for i in range(n)))


@pytest.mark.parametrize("value", VALUES)
def test_values_are_frozen_slotted_and_named_when_built(value):
    parameters = value.__dataclass_params__
    assert parameters.frozen
    assert "__slots__" in vars(value)
    assert all(field.kw_only for field in dataclasses.fields(value))


def test_equal_contents_have_equal_fingerprints():
    assert a_set().fingerprint == a_set().fingerprint


def test_every_part_of_the_contents_changes_the_fingerprint():
    whole = a_set()
    images = whole.images.copy()
    images[2, 1, 1, 0] ^= 1
    labels = whole.labels.copy()
    labels[0] = (labels[0] + 1) % 3
    reshaped = whole.images.reshape(6, 5, 4, 3)
    changed = [
        image_set(images, whole.labels, CLASSES, whole.ids),
        image_set(whole.images, labels, CLASSES, whole.ids),
        image_set(whole.images, whole.labels, ("cat", "dog", "toad"), whole.ids),
        image_set(whole.images, whole.labels, CLASSES, (*whole.ids[:-1], "other")),
        image_set(reshaped, whole.labels, CLASSES, whole.ids),
    ]
    assert len({whole.fingerprint, *(other.fingerprint for other in changed)}) == 6


def test_the_fingerprint_does_not_depend_on_how_the_images_lie_in_memory(tmp_path):
    whole = a_set()
    np.save(tmp_path / "images.npy", whole.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    transposed = np.asfortranarray(whole.images)
    assert image_set(mapped, whole.labels, CLASSES, whole.ids).fingerprint == whole.fingerprint
    assert image_set(transposed, whole.labels, CLASSES, whole.ids).fingerprint == whole.fingerprint


def test_names_that_look_alike_when_joined_have_different_fingerprints():
    images, labels = np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64)
    alike = [(("a", "b"), ("c",)), (("a", "bc"), ("",)), (("a\0b",), ("c",)), (("a",), ("b\0c",))]
    assert len({image_set(images, labels, names, ids).fingerprint for names, ids in alike}) == 4


def test_ids_default_to_row_numbers():
    whole = a_set()
    assert image_set(whole.images, whole.labels, CLASSES).ids == ("0", "1", "2", "3", "4", "5")


def test_ids_from_file_names_that_are_no_valid_utf8_are_accepted():
    whole = a_set(1)
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert image_set(whole.images, whole.labels, CLASSES, (name,)).ids == (name,)
    assert image_set(whole.images, whole.labels, (name, "dog", "frog")).class_names[0] == name


@given(st.lists(st.integers(0, 5), max_size=10))
def test_taking_rows_takes_image_label_and_id_together(rows):
    whole = a_set()
    part = whole.take(np.array(rows, dtype=np.int64))
    assert len(part) == len(rows)
    assert part.class_names == whole.class_names
    for at, row in enumerate(rows):
        assert np.array_equal(part.images[at], whole.images[row])
        assert part.labels[at] == whole.labels[row]
        assert part.ids[at] == whole.ids[row]


@given(st.permutations(range(6)))
def test_a_shuffled_set_is_another_set_and_shuffling_back_gives_the_first(order):
    whole = a_set()
    order = np.array(order)
    shuffled = whole.take(order)
    assert shuffled.take(np.argsort(order)).fingerprint == whole.fingerprint
    assert (shuffled.fingerprint == whole.fingerprint) == np.array_equal(order, np.arange(6))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 4, 4, 4), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.float64)),
    ],
    ids=["float images", "no channels", "four channels", "more labels than images", "float labels"],
)
def test_wrong_shapes_and_kinds_are_refused_while_tests_run(images, labels):
    with pytest.raises(TypeError):
        image_set(images, labels, CLASSES)


def test_logits_must_be_single_precision_matrices_while_tests_run():
    Scores(logits=np.zeros((2, 3), np.float32), scale=1.0, source="net")
    with pytest.raises(TypeError):
        Scores(logits=np.zeros((2, 3), np.float64), scale=1.0, source="net")
