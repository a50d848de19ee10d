"""detection.trigger_inversion: a trigger that is affine comes back, whatever else was flagged."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.detection.trigger_inversion import FEWEST, assigned, invert_trigger, invert_triggers
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.triggers.patterns import add_sinusoid, blend, noise_pattern, paste_patch
from clipguard.types import NO_TRIGGER, Scores, State, image_set, partition_of

NAMES = ("dark", "bright")


def flagged_set(trigger, *, clean_label=False, innocent=0.0, n=2400, seed=0):
    """Return data, partition and a guide that knows both classes; a third of the samples is flagged."""
    draw = np.random.default_rng(seed)
    content = draw.integers(0, 2, n)
    images = (draw.integers(20, 170, (n, 6, 10, 3)) + 60 * content[:, None, None, None]).astype(np.uint8)
    flagged = (draw.random(n) < 1 / 3) & ((content == 1) | (not clean_label))
    carries = flagged & (draw.random(n) >= innocent)
    images[carries] = trigger(images[carries])
    data = image_set(images, np.where(flagged, 1, content), NAMES)
    logits = np.stack([1.0 - content, content], axis=1).astype(np.float32)
    guide = Scores(logits=logits, scale=8.0, source="guide")
    state = np.where(flagged, State.TRIGGER, State.CLEAN).astype(np.uint8)
    return data, partition_of(state, flagged.astype(np.float64), 2), guide


def two_attackers(share=0.5, n=2400):
    """Return the same with a patch to class 1 and, in a share of the flagged, a wave to class 0."""
    draw = np.random.default_rng(1)
    data, part, guide = flagged_set(lambda x: x, n=n)
    second = part.flagged & (draw.random(n) < share)
    images, labels = data.images.copy(), data.labels.copy()
    first = part.flagged & ~second
    images[first], images[second] = paste_patch(images[first], 3), add_sinusoid(images[second], 60.0, 3.0)
    labels[second] = 0
    return image_set(images, labels, NAMES), part, guide


def plain(n=200, seed=9):
    return np.random.default_rng(seed).integers(20, 230, (n, 6, 10, 3)).astype(np.uint8)


def error(trigger, apply):
    """Return how far the reconstructed trigger is off, as a share of what the true one changes."""
    images = plain()
    expected = apply(images).astype(float)
    return np.abs(trigger.apply(images) - expected).mean() / np.abs(images - expected).mean()


def inverted(data, part, guide, seed=1):
    """Return the one trigger of all flagged samples."""
    trigger = invert_trigger(data, part.flagged, part.clean, guide, Seed(seed))
    assert trigger is not None
    return trigger


def test_two_attackers_with_a_target_each_are_told_apart():
    wave, patch = invert_triggers(*two_attackers(), Seed(1))
    assert (wave.label, patch.label) == (0, 1)
    assert error(patch, lambda x: paste_patch(x, 3)) < 0.2
    assert error(wave, lambda x: add_sinusoid(x, 60.0, 3.0)) < 0.4


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_a_label_that_is_seldom_flagged_has_no_trigger_of_its_own(share):
    case = two_attackers(share)
    (one,) = invert_triggers(*case, Seed(1))
    together = inverted(*case)
    assert one.label is None
    assert np.array_equal(one.shift, together.shift)
    assert np.array_equal(one.scale, together.scale)


def test_too_few_flagged_samples_share_nothing():
    data, part, guide = flagged_set(lambda x: paste_patch(x, 3))
    all_but_some = np.flatnonzero(part.flagged)[FEWEST - 1 :]
    few = part.moved(all_but_some, State.UNCERTAIN)
    assert invert_triggers(data, few, guide, Seed(1)) == ()
    one_more = part.moved(all_but_some[1:], State.UNCERTAIN)
    assert len(invert_triggers(data, one_more, guide, Seed(1))) == 1


def test_samples_that_are_flagged_for_their_label_say_nothing_of_a_trigger():
    data, part, guide = two_attackers()
    by_label = part.flagged & (data.labels == 0)
    (one,) = invert_triggers(data, part.moved(by_label, State.LABEL), guide, Seed(1))
    (without,) = invert_triggers(data, part.moved(by_label, State.EXCLUDED), guide, Seed(1))
    assert one.label is None
    assert np.array_equal(one.shift, without.shift)
    assert error(one, lambda x: paste_patch(x, 3)) < 0.2


labels_of_triggers = st.sampled_from([(), (None,), (0,), (1,), (0, 1), (1, 0), (2, 0)])


@given(st.lists(st.tuples(st.sampled_from(State), st.integers(0, 2), st.integers(-1, 4))), labels_of_triggers)
def test_a_flagged_sample_is_assigned_the_trigger_of_its_label_or_the_only_one(samples, labels):
    states, given_labels, before = (np.array([s[i] for s in samples], np.int64) for i in range(3))
    part = replace(partition_of(states.astype(np.uint8), np.zeros(len(samples)), 3), trigger=before)
    still = np.zeros((2, 2, 3), np.float32)
    triggers = [AffineTrigger(scale=still, shift=still, label=label) for label in labels]
    after = assigned(part, given_labels, triggers)
    for number, state, label in zip(after.trigger, states, given_labels, strict=True):
        if state != State.TRIGGER or not labels:
            assert number == NO_TRIGGER
        elif labels == (None,):
            assert number == 0
        else:
            assert number == (labels.index(label) if label in labels else NO_TRIGGER)
    assert replace(after, trigger=before).fingerprint == part.fingerprint


def test_the_triggers_of_two_attackers_are_assigned_to_what_each_has_flagged():
    data, part, guide = two_attackers()
    after = assigned(part, data.labels, invert_triggers(data, part, guide, Seed(1)))
    assert np.array_equal(after.trigger, np.where(part.flagged, data.labels, NO_TRIGGER))


@pytest.mark.parametrize("innocent", [0.0, 0.3])
@pytest.mark.parametrize("clean_label", [False, True])
@pytest.mark.parametrize(
    "trigger",
    [
        lambda x: paste_patch(x, 3),
        lambda x: blend(x, noise_pattern(6, 10, Seed(3)), 0.4),
        lambda x: add_sinusoid(x, 40.0, 3.0),
    ],
    ids=["patch", "blend", "wave"],
)
def test_an_affine_trigger_is_recovered_from_what_is_flagged(trigger, clean_label, innocent):
    case = flagged_set(trigger, clean_label=clean_label, innocent=innocent)
    assert error(inverted(*case), trigger) < 0.4


def test_a_patch_is_recovered_to_the_value_although_a_third_was_flagged_by_mistake():
    trigger = inverted(*flagged_set(lambda x: paste_patch(x, 2), innocent=0.33))
    assert (trigger.apply(plain())[:, -2:, -2:] == 255).all()


def test_what_is_flagged_without_a_trigger_gives_next_to_nothing_even_if_it_is_all_one_class():
    trigger, images = inverted(*flagged_set(lambda x: x, clean_label=True)), plain()
    assert np.abs(trigger.apply(images).astype(float) - images).mean() < 7


def test_strokes_on_black_survive_a_patch_elsewhere():
    # Most values are 0: a median deviation of 0 must not be read as a trigger that hides them.
    data, part, guide = flagged_set(lambda x: x, n=2400)
    draw = np.random.default_rng(8)
    images = np.where(draw.random(data.images.shape) < 0.48, 230, 0).astype(np.uint8)
    images[:, -2:, -2:] = 0
    images[part.flagged] = paste_patch(images[part.flagged], 2)
    trigger = inverted(image_set(images, data.labels, NAMES), part, guide)
    moved = trigger.apply(images[part.clean])
    assert (moved[:, -2:, -2:] == 255).all()
    assert np.abs(moved[:, :-2].astype(float) - images[part.clean][:, :-2]).mean() < 12


@pytest.mark.parametrize("side", ["flagged", "clean"])
def test_too_few_samples_on_either_side_say_nothing(side):
    data, part, guide = flagged_set(lambda x: paste_patch(x, 2))
    masks = {"flagged": part.flagged, "clean": part.clean}
    for kept in (FEWEST - 1, FEWEST):
        few = np.zeros(len(data), dtype=bool)
        few[np.flatnonzero(masks[side])[:kept]] = True
        trigger = invert_trigger(data, **masks | {side: few}, guide=guide, seed=Seed(1))
        assert (trigger is None) == (kept < FEWEST)


def test_the_same_seed_recovers_the_same_trigger():
    case = flagged_set(lambda x: paste_patch(x, 2))
    first, second, other = (inverted(*case, seed) for seed in (4, 4, 5))
    assert np.array_equal(first.scale, second.scale)
    assert np.array_equal(first.shift, second.shift)
    assert not np.array_equal(first.shift, other.shift)
