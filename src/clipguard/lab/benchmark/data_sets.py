"""The data sets of a benchmark's cells, decoded once for all cells that share them."""

import functools
from dataclasses import replace
from pathlib import Path

from clipguard.data import ImageSource, columns_of_test
from clipguard.data.catalog import NAMED, Part, open_named
from clipguard.data.decode import common_size, read_images
from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.config import DataChoice
from clipguard.lab.benchmark.longtail import long_tailed
from clipguard.lab.benchmark.places import BenchmarkPaths
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Preprocessing


def sources(choice: DataChoice, paths: BenchmarkPaths) -> tuple[ImageSource, ImageSource]:
    """Return training and test set of a choice, not yet decoded.

    Raises:
        ClipguardError: they cannot be had, or name other classes than each other.
    """
    train, test = (_source(choice, part, paths) for part in ("train", "test"))
    if train.class_names != test.class_names:
        raise ClipguardError(
            f"data set {choice.name}: {test.location} names other classes than {train.location}: give both "
            "the same, or key classes"
        )
    return train, test


@functools.lru_cache(maxsize=2)
def image_sets(choice: DataChoice, paths: BenchmarkPaths) -> tuple[ImageSet, ImageSet, int]:
    """Return decoded training and test set of a choice, and how many images could not be read.

    Raises:
        ClipguardError: they cannot be had, or name other classes than each other.
    """
    train_source, test_source = sources(choice, paths)
    size = choice.size or common_size(train_source)
    train, unreadable = read_images(train_source, Preprocessing(size=size))
    test, unreadable_tests = read_images(test_source, Preprocessing(size=size))
    if choice.imbalance > 1:
        train = long_tailed(train, choice.imbalance, Seed(0).child("long tail"))
    return train, test, len(unreadable) + len(unreadable_tests)


@functools.lru_cache(maxsize=2)
def clean_set(choice: DataChoice, paths: BenchmarkPaths) -> ImageSet | None:
    """Return the known clean samples of a choice, at the size of its training images; None without any.

    Raises:
        ClipguardError: they cannot be had, or some are among the training rows.
    """
    if choice.clean_rows is None:
        return None
    (first, end), train = choice.clean_rows, choice.train_rows
    if train is None or (first < train[1] and train[0] < end):
        raise ClipguardError(
            f"data set {choice.name}: clean_rows {first} to {end - 1} are training rows: give others"
        )
    size = choice.size or common_size(_source(choice, "train", paths))
    return read_images(_rows(choice, choice.clean_rows, paths), Preprocessing(size=size))[0]


def _rows(choice: DataChoice, rows: tuple[int, int], paths: BenchmarkPaths) -> ImageSource:
    """Return other rows of the training file."""
    return _source(replace(choice, train_rows=rows), "train", paths)


def _source(choice: DataChoice, part: Part, paths: BenchmarkPaths) -> ImageSource:
    path, rows = {"train": (choice.train, choice.train_rows), "test": (choice.test, choice.test_rows)}[part]
    classes = choice.classes or None
    if path is None:
        return open_named(choice.name, part, paths.data, download=paths.download, rows=rows, classes=classes)
    if choice.name in NAMED:
        classes = classes or NAMED[choice.name].names
    place = paths.beside / Path(path).expanduser()
    columns = choice.columns if part == "train" else columns_of_test(place, choice.columns)
    return ImageSource.open(place, rows=rows, classes=classes, columns=columns)
