"""pipeline.power: canaries in a copy; what is not a canary stays as it is, and is never read to make one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.data import ImageSource
from clipguard.data.decode import prepared
from clipguard.errors import ClipguardError
from clipguard.pipeline import power as power_module
from clipguard.pipeline.power import (
    SHARE,
    Canaries,
    ReplacedRows,
    Scanned,
    canary_copy,
    canary_sets,
    chosen_canaries,
    embedded,
    originals,
    power,
    triggered,
)
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.triggers.canaries import FAMILIES
from clipguard.types import Preprocessing, image_set
from tiny_data import image_folder
from tiny_labels import scores_of
from tiny_runs import CONFIG, GUIDE, poisoned_set

draws = st.integers(0, 2**32)
VIEW = Preprocessing(size=(16, 16))


class CountedRows:
    """Rows that remember which of them were read."""

    def __init__(self, array):
        self.array, self.read = array, []

    @property
    def shape(self):
        return self.array.shape

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        self.read += np.arange(len(self.array))[rows].tolist()
        return self.array[rows]


def scanned_set(n=240):
    data = poisoned_set(n, share=0.0)[0]
    embeddings = np.random.default_rng(1).standard_normal((n, GUIDE.clip.width)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Scanned(
        data=data,
        embeddings=embeddings,
        guide=GUIDE,
        config=CONFIG,
        originals=lambda rows: data.images[rows],
        view=VIEW,
        untouched=np.ones(n, dtype=bool),
        unsuspected=np.ones(3, dtype=bool),
    )


@given(st.integers(1, 40), st.integers(0, 40), draws)
def test_replaced_rows_are_an_array_with_rows_replaced_and_only_what_is_asked_for_is_read(n, replaced, seed):
    draw = np.random.default_rng(seed)
    array = draw.integers(0, 256, (n, 2, 3), dtype=np.uint8)
    at = np.sort(draw.choice(n, min(n, replaced), replace=False))
    by = draw.integers(0, 256, (len(at), 2, 3), dtype=np.uint8)
    expected = array.copy()
    expected[at] = by
    counted = CountedRows(array)
    rows = ReplacedRows(rows=counted, at=at, by=by)
    some, start = draw.integers(0, n, 7), int(draw.integers(0, n))
    assert np.array_equal(rows[some], expected[some])
    assert np.array_equal(rows[start : start + 5], expected[start : start + 5])
    assert sorted(counted.read) == sorted([*some.tolist(), *range(start, min(n, start + 5))])
    assert (len(rows), rows.shape) == (n, (n, 2, 3))


def test_replacing_rows_leaves_the_original_as_it_was():
    array = np.zeros((4, 2), dtype=np.float32)
    rows = ReplacedRows(rows=array, at=np.array([2]), by=np.ones((1, 2), dtype=np.float32))
    assert rows[:].sum() == 2
    assert array.sum() == 0


@given(
    st.integers(2, 12),
    st.lists(st.integers(0, 30), min_size=4, max_size=4),
    st.floats(0.3, 1.0),
    draws,
)
def test_canaries_have_a_class_of_their_own_and_leave_alone_what_is_flagged_or_suspected(k, many, free, seed):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, k, 300)
    untouched, unsuspected = draw.random(300) < free, draw.random(k) < 0.7
    counts = dict(zip(FAMILIES, many, strict=True))
    chosen = chosen_canaries(labels, counts, untouched, unsuspected, Seed(seed))
    classes = [some.label for some in chosen]
    rows = np.concatenate([some.rows for some in chosen]) if chosen else np.zeros(0, np.int64)
    assert len(set(classes)) == len(classes)
    assert len(set(rows.tolist())) == len(rows)
    assert untouched[rows].all()
    assert unsuspected[classes].all()
    for some in chosen:
        assert len(some.rows) == counts[some.family] > 0
        assert ((labels[some.rows] == some.label) == (some.family == "clean-label")).all()
        rest = untouched & (labels == some.label)
        if some.family == "clean-label":
            rest[some.rows] = False
        assert rest.sum() >= len(some.rows)


def test_every_family_gets_canaries_where_there_are_classes_and_samples_enough():
    labels = np.arange(400) % 4
    everyone, counts = np.ones(400, dtype=bool), dict.fromkeys(FAMILIES, 10)
    drawn = [chosen_canaries(labels, counts, everyone, everyone[:4], Seed(seed)) for seed in (0, 0, 1)]
    assert {some.family for some in drawn[0]} == set(FAMILIES)
    keys = [[(some.family, some.label, some.rows.tolist()) for some in chosen] for chosen in drawn]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("n", [50, 300, 3000, 12_000, 10**6])
def test_canaries_are_a_small_share_of_any_copy(n):
    sets = canary_sets(n)
    assert all(0 < sum(counts.values()) <= SHARE * n for counts in sets)
    families = [family for counts in sets for family in counts]
    assert len(set(families)) == len(families)


def test_a_copy_has_the_families_that_fit_and_further_copies_have_the_others():
    assert canary_sets(500) == ()
    assert canary_sets(1000) == ({"patch": 30},)
    assert canary_sets(3000) == ({"patch": 30, "sinusoid": 60}, {"blend": 90}, {"clean-label": 75})
    assert canary_sets(12_000) == ({"patch": 60, "sinusoid": 96, "blend": 144}, {"clean-label": 216})


def test_small_nets_learn_from_so_many_samples_at_most_and_more_canaries_are_of_no_use():
    assert canary_sets(10**6) == canary_sets(100_000)


def test_a_copy_differs_from_the_data_by_its_canaries_alone(monkeypatch):
    scanned = scanned_set()
    canaries = chosen_canaries(
        scanned.data.labels, {"patch": 5, "clean-label": 7}, scanned.untouched, scanned.unsuspected, Seed(3)
    )
    before = scanned.data.pixels.copy()
    passed = []
    embed = type(GUIDE.clip).embed_crops
    monkeypatch.setattr(
        type(GUIDE.clip), "embed_crops", lambda clip, crops: passed.append(len(crops)) or embed(clip, crops)
    )
    data, embeddings = canary_copy(scanned, canaries)
    # Each family fills one chunk of the guide.
    assert passed == [GUIDE.clip.chunk] * 2
    assert np.array_equal(scanned.data.pixels, before)
    rows = np.concatenate([some.rows for some in canaries])
    others = np.setdiff1d(np.arange(len(data)), rows)
    assert np.array_equal(data.images[others], before[others])
    assert np.array_equal(data.labels[others], scanned.data.labels[others])
    assert np.array_equal(embeddings[others], scanned.embeddings[others])
    for some in canaries:
        images = triggered(some, before[some.rows])
        assert (images != before[some.rows]).any((1, 2, 3)).all()
        assert np.array_equal(data.images[some.rows], images)
        assert (data.labels[some.rows] == some.label).all()
        assert np.array_equal(embeddings[some.rows], embedded(GUIDE.clip, images))


def test_an_embedding_does_not_depend_on_how_many_canaries_there_are():
    images = poisoned_set(40)[0].pixels
    assert np.array_equal(embedded(GUIDE.clip, images)[:7], embedded(GUIDE.clip, images[:7]))
    assert np.array_equal(embedded(GUIDE.clip, images)[:32], GUIDE.clip.embed_images(images[:32]))


def test_guide_and_small_nets_each_shrink_the_large_image_that_carries_the_trigger():
    large = np.random.default_rng(0).integers(0, 256, (240, 64, 96, 3), dtype=np.uint8)
    scanned = replace(scanned_set(), originals=lambda rows: large[rows])
    one = Canaries(family="patch", label=0, rows=np.array([1, 5]), seed=Seed(0))
    data, embeddings = canary_copy(scanned, (one,))
    images = triggered(one, large[one.rows])
    assert np.array_equal(data.images[one.rows], np.stack([prepared(image, VIEW) for image in images]))
    assert np.array_equal(embeddings[one.rows], embedded(GUIDE.clip, images))


def test_originals_come_at_their_size_or_at_the_largest_one(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 20, 3), dtype=np.uint8)
    source = ImageSource.open((images, np.arange(6) % 2), classes=("cat", "dog"))
    rows = np.array([1, 4])
    assert np.array_equal(originals(source, (40, 20))(rows), images[rows])
    monkeypatch.setattr(power_module, "LARGEST_SIDE", 20)
    assert originals(source, (40, 20))(rows).shape == (2, 20, 10, 3)


def test_an_image_that_vanished_since_it_was_read_ends_the_scan_in_one_line(tmp_path):
    source = ImageSource.open(image_folder(tmp_path / "data", n=20))
    read = originals(source, (16, 16))
    assert len(read(np.arange(20))) == 20
    next((tmp_path / "data").rglob("*.png")).unlink()
    with pytest.raises(ClipguardError, match="can no longer be read: the data changed"):
        read(np.arange(20))


THRESHOLD = CONFIG.trigger_detector.flagged


def test_each_copy_is_scanned_once_with_canaries_of_its_own(monkeypatch):
    scanned, seeds, scanned_labels = scanned_set(), [], []

    def scan(data, guide, embeddings, config, on_epoch):
        seeds.append(config.seed)
        scanned_labels.append(data.labels)
        return scores_of(data.labels, 3)

    monkeypatch.setattr(power_module, "sample_scores", scan)
    sets = ({"patch": 6, "blend": 6},)
    result = list(power(scanned, sets, lambda scores: scores.labels[:3] > 3, 2, Seed(0)))
    assert [outcome.copy for outcome in result] == [0, 0, 1, 1]
    assert len(set(seeds)) == 2
    assert [int((labels != scanned.data.labels).sum()) for labels in scanned_labels] == [12, 12]
    assert (scanned_labels[0] != scanned_labels[1]).any()


def test_without_a_class_large_enough_nothing_is_scanned(monkeypatch):
    scanned = replace(scanned_set(), unsuspected=np.zeros(3, dtype=bool))
    monkeypatch.delattr(power_module, "sample_scores")
    assert list(power(scanned, [{"patch": 6}], lambda scores: np.zeros(3, dtype=bool), 2, Seed(0))) == []


def test_a_loud_canary_is_flagged_by_the_scan_of_its_copy(monkeypatch):
    scale, shift = np.ones((16, 16, 3), np.float32), np.zeros((16, 16, 3), np.float32)
    scale[-4:, -4:], shift[-4:, -4:] = 0, 255
    loud = AffineTrigger(scale=scale, shift=shift)
    monkeypatch.setattr(power_module, "canary_trigger", lambda family, height, width, seed: loud)
    scanned = scanned_set()
    embeddings = embedded(GUIDE.clip, scanned.data.pixels)
    (outcome,) = power(
        replace(scanned, embeddings=embeddings),
        [{"patch": 14}],
        lambda scores: np.bincount(scores.labels[scores.trigger_score > THRESHOLD], minlength=3) >= 10,
        1,
        Seed(0),
    )
    assert outcome.suspected


def test_labels_of_the_data_are_not_changed_by_a_copy():
    data = image_set(poisoned_set(60)[0].pixels, np.arange(60) % 3, ("cat", "dog", "frog"))
    scanned = replace(scanned_set(60), data=data)
    one = Canaries(family="blend", label=0, rows=np.array([1]), seed=Seed(0))
    canary_copy(scanned, (one,))
    assert np.array_equal(data.labels, np.arange(60) % 3)


def test_copies_take_turns_with_the_sets_of_families(monkeypatch):
    monkeypatch.setattr(power_module, "sample_scores", lambda data, *_: scores_of(data.labels, 3))
    sets = [{"patch": 6}, {"blend": 6, "sinusoid": 5}]
    result = power(scanned_set(), sets, lambda scores: np.zeros(3, dtype=bool), 3, Seed(0))
    families = [(outcome.copy, outcome.family) for outcome in result]
    assert families == [(0, "patch"), (1, "blend"), (1, "sinusoid"), (2, "patch")]


def test_large_images_are_in_memory_a_few_at_a_time_and_nothing_depends_on_how_many(monkeypatch):
    scanned, sizes = scanned_set(), []
    counted = replace(scanned, originals=lambda rows: sizes.append(len(rows)) or scanned.data.images[rows])
    one = Canaries(family="patch", label=0, rows=np.arange(0, 80, 2), seed=Seed(0))
    data, embeddings = canary_copy(scanned, (one,))
    monkeypatch.setattr(power_module, "TOGETHER", 32)
    again, same = canary_copy(counted, (one,))
    assert sizes == [32, 8]
    assert np.array_equal(again.images[:], data.images[:])
    assert np.array_equal(same[:], embeddings[:])
