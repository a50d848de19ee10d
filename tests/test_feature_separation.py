"""detection.feature_separation: what a model learnt for a trigger lies apart."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.detection.feature_separation import WIDEST, FeatureSeparationConfig, separated_by_features
from clipguard.seeds import Seed
from clipguard.types import Split

N, FEATURES_FILE = 600, 200
LABELS = np.repeat([0, 1], N // 2)
BAD = np.arange(N) < FEATURES_FILE
"""Two thirds of the first class are planted; the second is open."""


def activations(apart=3.0, seed=0):
    """Return activations in which planted labels lie `apart` standard deviations from honest ones."""
    noise = np.random.default_rng(seed).normal(size=(N, 20)).astype(np.float32)
    noise[:, 0] += apart * BAD
    return noise


def told(flagged=0.3, trusted=0.3, wrong=0.1, seed=1):
    """Return a split that has flagged and trusted a part of the first class, some of it wrongly."""
    draw = np.random.default_rng(seed).random((2, N))
    seems_bad = np.where(draw[0] < wrong, ~BAD, BAD)
    fed = LABELS == 0
    triggered = fed & seems_bad & (draw[1] < flagged)
    clean = (fed & ~seems_bad & (draw[1] < trusted)) | ~fed
    shown = np.zeros((N, 2), np.float32)
    shown[fed, 1] = 1.0
    return Split(
        clean=clean,
        triggered=triggered,
        suspicion=triggered.astype(np.float64),
        doubted=fed & ~triggered & ~clean,
        closed=(0,),
        honest=np.array([100 / (fed & ~triggered).sum(), 1.0]),
        shown=shown,
    )


def judge(split, seen, **settings):
    return separated_by_features(
        split, LABELS, lambda rows: seen[rows], FeatureSeparationConfig(**settings), Seed(0)
    )


@pytest.mark.parametrize("apart", [4.0, 6.0])
def test_most_labels_find_their_side_though_few_were_judged_and_some_of_those_wrongly(apart):
    before = told()
    after = judge(before, activations(apart))
    assert before.triggered[BAD].mean() < 0.35
    assert after.triggered[BAD].mean() > 0.8
    assert after.clean[(LABELS == 0) & ~BAD].mean() > 0.8
    assert after.triggered[~BAD].mean() < 0.02
    assert after.clean[BAD].mean() < 0.02
    # A hundred were thought to be honest, and about so many are left.
    assert after.honest[0] == pytest.approx(100 / (LABELS[~after.triggered] == 0).sum())


def test_open_classes_ranking_and_what_images_show_stay_as_they_were():
    before = told()
    after = judge(before, activations())
    open_class = LABELS == 1
    for name in ("clean", "triggered", "doubted"):
        assert np.array_equal(getattr(after, name)[open_class], getattr(before, name)[open_class])
    assert after.honest[1] == 1.0
    assert after.suspicion is before.suspicion
    assert after.shown is before.shown
    assert after.closed == before.closed


def test_every_sample_of_a_closed_class_is_flagged_trusted_or_doubted_and_only_one_of_them():
    after = judge(told(), activations(1.0))
    sides = np.stack([after.clean, after.triggered, after.doubted])[:, LABELS == 0]
    assert (sides.sum(0) == 1).all()
    assert sides.any(1).all()
    assert not (after.admissible & (after.doubted | after.triggered)).any()


def test_a_model_that_tells_nothing_apart_flags_and_trusts_nobody_else():
    before = told()
    after = judge(before, activations(0.0))
    assert not (after.triggered & ~before.triggered).any()
    assert not (after.clean & ~before.clean).any()


def test_trusted_samples_that_lie_with_the_planted_ones_are_flagged_by_way_of_the_doubted():
    before, seen = told(trusted=0.9), activations(8.0)
    strays = before.clean & BAD
    assert strays.sum() > 5
    first, later = (judge(before, seen, looks=looks) for looks in (1, 6))
    assert not first.triggered[strays].any()
    assert first.doubted[strays].any()
    assert later.triggered[strays].all()


def test_what_was_flagged_for_a_trigger_stays_flagged_and_teaches_nothing():
    before, seen = told(), activations()
    marked = (LABELS == 0) & ~BAD & (np.arange(N) % 3 == 0)
    triggered = replace(
        before,
        triggered=before.triggered | marked,
        clean=before.clean & ~marked,
        doubted=before.doubted & ~marked,
        shown=np.where(marked[:, None], 0, before.shown).astype(np.float32),
    )
    after = judge(triggered, seen)
    assert after.triggered[marked].all()
    seen[marked] += 1000
    again = judge(triggered, seen)
    assert np.array_equal(again.triggered, after.triggered)
    assert np.array_equal(again.clean, after.clean)


@pytest.mark.parametrize(("few", "other"), [("triggered", "clean"), ("clean", "triggered")])
def test_a_class_with_too_few_of_either_kind_is_left_as_it_is(few, other):
    before = told()
    kept = np.flatnonzero(getattr(before, few) & (LABELS == 0))[:9]
    rare = np.isin(np.arange(N), kept)
    scarce = replace(before, **{few: np.where(LABELS == 0, rare, getattr(before, few))})
    after = judge(scarce, activations())
    assert np.array_equal(getattr(after, few), getattr(scarce, few))
    assert np.array_equal(getattr(after, other), getattr(scarce, other))
    assert after.honest is not None
    assert np.array_equal(after.honest, scarce.honest)


def test_nothing_is_judged_without_a_look_or_without_planted_labels():
    before = told()
    assert judge(before, activations(), looks=0) is before
    nothing = replace(before, shown=None)
    assert judge(nothing, activations()) is nothing


def test_the_same_seed_gives_the_same_split():
    one, other = (judge(told(), activations(2.0)) for _ in range(2))
    assert np.array_equal(one.triggered, other.triggered)
    assert np.array_equal(one.honest, other.honest)


def test_wide_activations_are_judged_by_their_principal_components():
    wide = np.random.default_rng(3).normal(size=(N, WIDEST + 88)).astype(np.float32)
    wide[:, :20] = 5 * activations(6.0)
    before = told()
    after = judge(before, wide)
    assert after.triggered[BAD].mean() > before.triggered[BAD].mean() + 0.2
    assert after.triggered[~BAD].mean() < 0.02
