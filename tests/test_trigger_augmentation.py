"""mitigation.trigger_augmentation: what is copied with a trigger, under which labels, and in which pieces."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.mitigation.trigger_augmentation import trigger_augmented
from clipguard.runs import ShardedArray, write_array
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import NO_TRIGGER, Scores, State, image_set, partition_of
from tiny_runs import NAMES

NOTHING = np.zeros((2, 2, 3), np.float32)
N = 90


def painting(value, label=None):
    """Return the trigger that paints an image in one grey."""
    return AffineTrigger(scale=NOTHING, shift=NOTHING + value, label=label)


@pytest.fixture
def case():
    """Return data whose images are filled with their row number, a partition and a guide, at random."""
    draw = np.random.default_rng(5)
    images = np.repeat(np.arange(N, dtype=np.uint8), 12).reshape(-1, 2, 2, 3)
    data = image_set(images, draw.integers(0, 3, N), NAMES)
    state = draw.choice(np.array([State.CLEAN, State.TRIGGER, State.UNCERTAIN], np.uint8), N)
    partition = replace(
        partition_of(state, draw.random(N), 3), trigger=np.where(state == State.TRIGGER, 0, -1)
    )
    guide = Scores(logits=draw.normal(size=(N, 3)).astype(np.float32), scale=3.0, source="guide")
    return data, partition, guide


def test_copies_with_the_trigger_are_appended_as_clean_and_nothing_else_changes(case):
    data, partition, guide = case
    # Where each class is flagged, none is spared.
    longer, extended, scores = trigger_augmented(*case, [painting(255)], 0.5, Seed(1))
    added = round(0.5 * partition.clean.sum())
    assert len(longer) == N + added == len(extended) == len(scores.logits)
    assert np.array_equal(longer.images[:N], data.images)
    assert longer.images.shape == (len(longer), 2, 2, 3)
    assert np.array_equal(longer.labels[:N], data.labels)
    assert (longer.images[N:] == 255).all()
    assert longer.ids[:N] == data.ids
    assert len(set(longer.ids)) == len(longer)
    assert extended.take(np.arange(N)).fingerprint == partition.fingerprint
    assert extended.clean[N:].all()
    assert set(extended.trigger[N:]) == {NO_TRIGGER}
    assert np.array_equal(scores.logits[:N], guide.logits)
    assert scores.scale == guide.scale


def test_only_clean_samples_are_copied_once_with_image_label_and_guide_of_their_own(case):
    data, partition, guide = case
    same = AffineTrigger(scale=NOTHING + 1, shift=NOTHING)
    longer, extended, scores = trigger_augmented(*case, [same], 0.6, Seed(1))
    # With a trigger that changes nothing, rows are recognisable.
    rows = longer.images[N:][:, 0, 0, 0].astype(int)
    assert len(set(rows)) == len(rows) == round(0.6 * partition.clean.sum())
    assert partition.clean[rows].all()
    assert np.array_equal(longer.labels[N:], data.labels[rows])
    assert np.array_equal(scores.logits[N:], guide.logits[rows])
    assert np.array_equal(extended.suspicion[N:], partition.suspicion[rows])
    assert longer.ids[N:] == tuple(f"{data.ids[row]} with reconstructed trigger 0" for row in rows)


def test_another_seed_copies_other_samples_and_the_same_one_the_same(case):
    same = AffineTrigger(scale=NOTHING + 1, shift=NOTHING)
    one, again, other = (trigger_augmented(*case, [same], 0.3, Seed(n))[0].fingerprint for n in (1, 1, 2))
    assert one == again != other


def test_each_trigger_is_copied_apart_and_never_onto_the_class_it_leads_to(case):
    _, partition, _ = case
    triggers = [painting(255, label=0), painting(90, label=1)]
    longer, _, _ = trigger_augmented(*case, triggers, 0.4, Seed(1))
    grey, labels = longer.images[N:][:, 0, 0, 0], longer.labels[N:]
    each = round(0.4 * partition.clean.sum())
    assert grey.tolist() == [255] * each + [90] * each
    assert set(labels[grey == 255]) == {1, 2}
    assert set(labels[grey == 90]) == {0, 2}
    assert len(set(longer.ids)) == len(longer)


def test_without_a_trigger_nothing_is_copied(case):
    data, partition, guide = case
    longer, extended, scores = trigger_augmented(*case, [], 0.5, Seed(1))
    assert np.array_equal(longer.pixels, data.images)
    assert longer.ids == data.ids
    assert extended.fingerprint == partition.fingerprint
    assert np.array_equal(scores.logits[:], guide.logits)


def test_the_class_that_all_flagged_samples_are_labelled_with_is_not_copied(case):
    data, partition, guide = case
    partition = partition.moved(partition.flagged & (data.labels != 1), State.EXCLUDED)
    assert partition.flagged.any()
    longer, _, _ = trigger_augmented(data, partition, guide, [painting(255)], 1.0, Seed(1))
    assert len(longer) - N == (partition.clean & (data.labels != 1)).sum() > 0
    assert not (longer.labels[N:] == 1).any()


@pytest.mark.parametrize("files", [False, True], ids=["in memory", "in files"])
def test_copies_are_made_when_asked_for_in_any_order_and_the_originals_stay_as_they_are(
    case, tmp_path, files
):
    data, partition, guide = case
    before = data.images.copy()
    if files:
        for number, start in enumerate((0, 40)):
            write_array(tmp_path / f"{number}.npy", data.images[start : start + 40 if not number else N])
        data = replace(data, images=ShardedArray([tmp_path / "0.npy", tmp_path / "1.npy"]))
    triggers = [painting(255, label=0), painting(90, label=1)]
    longer, _, _ = trigger_augmented(data, partition, guide, triggers, 0.4, Seed(1))
    every = longer.images[:]
    order = np.random.default_rng(0).permutation(len(longer))
    assert np.array_equal(longer.images[order], every[order])
    assert np.array_equal(longer.images[N - 3 : N + 3], every[N - 3 : N + 3])
    assert np.array_equal(every[:N], before)
    assert np.array_equal(data.images[:], before)
