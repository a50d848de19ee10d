"""detection.feature_separation: what a model learnt for a trigger lies apart."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.detection.feature_separation import (
    FOLDS,
    WIDEST,
    FeatureSeparationConfig,
    separated_by_features,
    too_few_to_separate,
)
from clipguard.seeds import Seed
from clipguard.types import State, partition_of

N, POISON = 600, 200
LABELS = np.repeat([0, 1], N // 2)
BAD = np.arange(N) < POISON
"""Two thirds of the first class are poison; the second is not quarantined."""
QUARANTINED = LABELS == 0


def features_of(apart=3.0, seed=0):
    """Return features in which poison lies `apart` standard deviations from clean samples."""
    noise = np.random.default_rng(seed).normal(size=(N, 20)).astype(np.float32)
    noise[:, 0] += apart * BAD
    return noise


def scanned(flagged=0.3, clean=0.3, wrong=0.1, seed=1):
    """Return a partition in which a part of the first class is flagged or clean, some of it wrongly."""
    draw = np.random.default_rng(seed).random((2, N))
    seems_bad = np.where(draw[0] < wrong, ~BAD, BAD)
    by_label = QUARANTINED & seems_bad & (draw[1] < flagged)
    state = np.where(QUARANTINED, State.EXCLUDED, State.CLEAN).astype(np.uint8)
    state[QUARANTINED & ~seems_bad & (draw[1] < clean)] = State.CLEAN
    state[by_label] = State.LABEL
    rows = np.flatnonzero(QUARANTINED)
    return replace(
        partition_of(state, by_label.astype(np.float64), 2),
        quarantined=(0,),
        clean_share=np.array([100 / (QUARANTINED & ~by_label).sum(), 1.0]),
        soft_rows=rows,
        soft_labels=np.tile(np.array([0, 1], np.float32), (len(rows), 1)),
    )


def separate(partition, features, **settings):
    return separated_by_features(
        partition, LABELS, lambda rows: features[rows], FeatureSeparationConfig(**settings), Seed(0)
    )


@pytest.mark.parametrize("apart", [4.0, 6.0])
def test_most_labels_find_their_side_though_few_were_judged_and_some_of_those_wrongly(apart):
    before = scanned()
    after = separate(before, features_of(apart))
    assert before.flagged[BAD].mean() < 0.35
    assert after.flagged[BAD].mean() > 0.8
    assert after.clean[QUARANTINED & ~BAD].mean() > 0.8
    assert after.flagged[~BAD].mean() < 0.02
    assert after.clean[BAD].mean() < 0.02
    # A hundred were estimated to be clean, and about so many are left.
    assert after.clean_share[0] == pytest.approx(100 / (QUARANTINED & ~after.flagged).sum())


def test_other_classes_ranking_and_soft_labels_stay_as_they_were():
    before = scanned()
    fingerprint = before.fingerprint
    after = separate(before, features_of())
    assert before.fingerprint == fingerprint
    assert np.array_equal(after.state[~QUARANTINED], before.state[~QUARANTINED])
    assert after.clean_share[1] == 1.0
    # The only fields that may differ are the states and the shares.
    assert replace(after, state=before.state, clean_share=before.clean_share).fingerprint == fingerprint
    assert not np.array_equal(after.state, before.state)


def test_every_sample_of_a_quarantined_class_is_flagged_clean_or_excluded():
    state = scanned().state.copy()
    state[QUARANTINED & (state == State.EXCLUDED) & (np.arange(N) % 2 == 0)] = State.UNCERTAIN
    after = separate(replace(scanned(), state=state), features_of(1.0))
    assert set(after.state[QUARANTINED]) == {State.LABEL, State.CLEAN, State.EXCLUDED}


def test_a_model_that_tells_nothing_apart_flags_and_trusts_nobody_else():
    before = scanned()
    after = separate(before, features_of(0.0))
    assert not (after.flagged & ~before.flagged).any()
    assert not (after.clean & ~before.clean).any()


def test_clean_samples_that_lie_with_the_poison_are_flagged_by_way_of_the_excluded():
    before, features = scanned(clean=0.9), features_of(8.0)
    strays = before.clean & BAD
    assert strays.sum() > 5
    first, later = (separate(before, features, rounds=rounds) for rounds in (1, 6))
    assert not first.flagged[strays].any()
    assert first.has(State.EXCLUDED)[strays].any()
    assert later.flagged[strays].all()


@pytest.mark.parametrize("state", [State.TRIGGER, State.HELD_OUT])
def test_what_is_flagged_for_a_trigger_or_held_out_stays_so_and_is_not_learnt_from(state):
    features = features_of()
    marked = QUARANTINED & ~BAD & (np.arange(N) % 3 == 0)
    before = scanned().moved(marked, state)
    after = separate(before, features)
    assert (after.state[marked] == state).all()
    features[marked] += 1000
    assert separate(before, features).fingerprint == after.fingerprint
    # The comparison can fail: as clean samples, they are learnt from.
    as_clean = scanned().moved(marked, State.CLEAN)
    assert not np.array_equal(separate(as_clean, features).state[~marked], after.state[~marked])


@pytest.mark.parametrize("few", [State.LABEL, State.CLEAN])
@pytest.mark.parametrize("kept", [2 * FOLDS - 1, 2 * FOLDS])
def test_a_class_with_too_few_of_either_kind_is_left_as_it_is(few, kept):
    before, features = scanned(), features_of(6.0)
    surplus = np.flatnonzero(before.has(few) & QUARANTINED)[kept:]
    scarce = before.moved(surplus, State.EXCLUDED)
    after = separate(scarce, features)
    too_few = kept < 2 * FOLDS
    assert (after.fingerprint == scarce.fingerprint) == too_few
    sides = scarce.has(State.LABEL)[QUARANTINED], scarce.clean[QUARANTINED]
    assert too_few_to_separate(*sides) == too_few


def test_nothing_is_separated_in_no_rounds_or_without_flagged_labels():
    before = scanned()
    assert separate(before, features_of(), rounds=0) is before
    nothing = replace(before, soft_rows=before.soft_rows[:0], soft_labels=before.soft_labels[:0])
    assert separate(nothing, features_of()) is nothing


def test_only_the_features_of_quarantined_classes_are_computed():
    rows = []

    def features(given):
        rows.extend(given.tolist())
        return features_of()[given]

    separated_by_features(scanned(), LABELS, features, FeatureSeparationConfig(), Seed(0))
    assert rows == np.flatnonzero(QUARANTINED).tolist()


def test_the_same_seed_gives_the_same_partition():
    one, other = (separate(scanned(), features_of(2.0)) for _ in range(2))
    assert one.fingerprint == other.fingerprint


def test_wide_features_are_separated_by_their_principal_components():
    wide = np.random.default_rng(3).normal(size=(N, WIDEST + 88)).astype(np.float32)
    wide[:, :20] = 5 * features_of(6.0)
    before = scanned()
    after = separate(before, wide)
    assert after.flagged[BAD].mean() > before.flagged[BAD].mean() + 0.2
    assert after.flagged[~BAD].mean() < 0.02
