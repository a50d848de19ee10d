"""detection.trigger_inversion: a trigger that is affine comes back, whatever else was flagged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipguard.detection.trigger_inversion import FEWEST, invert_trigger, invert_triggers
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.triggers.patterns import add_sinusoid, blend, noise_pattern, paste_patch
from clipguard.types import Scores, Split, image_set

NAMES = ("dark", "bright")


def flagged_set(trigger, *, clean_label=False, innocent=0.0, n=2400, seed=0):
    """Return data, split and a guide that knows both classes; a third of the samples carries the trigger."""
    draw = np.random.default_rng(seed)
    shown = draw.integers(0, 2, n)
    images = (draw.integers(20, 170, (n, 6, 10, 3)) + 60 * shown[:, None, None, None]).astype(np.uint8)
    flagged = (draw.random(n) < 1 / 3) & ((shown == 1) | (not clean_label))
    carries = flagged & (draw.random(n) >= innocent)
    images[carries] = trigger(images[carries])
    data = image_set(images, np.where(flagged, 1, shown), NAMES)
    logits = np.stack([1.0 - shown, shown], axis=1).astype(np.float32)
    part = Split(clean=~flagged, triggered=flagged, suspicion=flagged.astype(np.float64))
    return data, part, Scores(logits=logits, scale=8.0, source="guide")


def two_attackers(share=0.5, n=2400):
    """Return the same with a patch to class 1 and, in a share of the flagged, a wave to class 0."""
    draw = np.random.default_rng(1)
    data, part, guide = flagged_set(lambda x: x, n=n)
    second = part.triggered & (draw.random(n) < share)
    images, labels = data.images.copy(), data.labels.copy()
    first = part.triggered & ~second
    images[first], images[second] = paste_patch(images[first], 3), add_sinusoid(images[second], 60.0, 3.0)
    labels[second] = 0
    return image_set(images, labels, NAMES), part, guide


def error(trigger, put):
    images = plain()
    wanted = put(images).astype(float)
    return np.abs(trigger.apply(images) - wanted).mean() / np.abs(images - wanted).mean()


def test_two_attackers_with_a_target_each_are_told_apart():
    wave, patch = invert_triggers(*two_attackers(), Seed(1))
    assert (wave.label, patch.label) == (0, 1)
    assert error(patch, lambda x: paste_patch(x, 3)) < 0.2
    assert error(wave, lambda x: add_sinusoid(x, 60.0, 3.0)) < 0.4


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_a_label_that_is_seldom_flagged_has_no_trigger_of_its_own(share):
    case = two_attackers(share)
    (one,) = invert_triggers(*case, Seed(1))
    together = invert_trigger(*case, Seed(1))
    assert one.label is None
    assert np.array_equal(one.shift, together.shift)
    assert np.array_equal(one.scale, together.scale)


def test_too_few_flagged_samples_share_nothing():
    data, part, guide = flagged_set(lambda x: paste_patch(x, 3))
    few = np.flatnonzero(part.triggered)[: FEWEST - 1]
    triggered = np.isin(np.arange(len(data)), few)
    part = Split(clean=part.clean, triggered=triggered, suspicion=part.suspicion)
    assert invert_triggers(data, part, guide, Seed(1)) == ()


def plain(n=200, seed=9):
    return np.random.default_rng(seed).integers(20, 230, (n, 6, 10, 3)).astype(np.uint8)


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
    data, part, guide = flagged_set(trigger, clean_label=clean_label, innocent=innocent)
    found = invert_trigger(data, part, guide, Seed(1))
    assert found is not None
    images = plain()
    wanted = trigger(images).astype(float)
    assert np.abs(found.apply(images) - wanted).mean() < 0.4 * np.abs(images - wanted).mean()


def test_a_patch_is_recovered_to_the_value_although_a_third_was_flagged_by_mistake():
    data, part, guide = flagged_set(lambda x: paste_patch(x, 2), innocent=0.33)
    found = invert_trigger(data, part, guide, Seed(1))
    assert found is not None
    assert (found.apply(plain())[:, -2:, -2:] == 255).all()


def test_what_is_flagged_without_a_trigger_gives_next_to_nothing_even_if_it_is_all_one_class():
    data, part, guide = flagged_set(lambda x: x, clean_label=True)
    found = invert_trigger(data, part, guide, Seed(1))
    assert found is not None
    images = plain()
    assert np.abs(found.apply(images).astype(float) - images).mean() < 7


def test_strokes_on_black_survive_a_patch_elsewhere():
    # Most values are 0: a median deviation of 0 must not be read as a trigger that hides them.
    data, part, guide = flagged_set(lambda x: x, n=2400)
    draw = np.random.default_rng(8)
    images = np.where(draw.random(data.images.shape) < 0.48, 230, 0).astype(np.uint8)
    images[:, -2:, -2:] = 0
    images[part.triggered] = paste_patch(images[part.triggered], 2)
    found = invert_trigger(image_set(images, data.labels, NAMES), part, guide, Seed(1))
    assert found is not None
    moved = found.apply(images[part.clean])
    assert (moved[:, -2:, -2:] == 255).all()
    assert np.abs(moved[:, :-2].astype(float) - images[part.clean][:, :-2]).mean() < 12


@pytest.mark.parametrize("side", ["triggered", "clean"])
def test_too_few_samples_on_either_side_say_nothing(side):
    data, part, guide = flagged_set(lambda x: paste_patch(x, 2))
    few = np.zeros(len(data), dtype=bool)
    few[np.flatnonzero(getattr(part, side))[: FEWEST - 1]] = True
    masks = {"clean": part.clean, "triggered": part.triggered} | {side: few}
    assert invert_trigger(data, Split(suspicion=part.suspicion, **masks), guide, Seed(1)) is None


def test_the_same_seed_recovers_the_same_trigger():
    case = flagged_set(lambda x: paste_patch(x, 2))
    first, second = (invert_trigger(*case, Seed(4)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert np.array_equal(first.scale, second.scale)
    assert np.array_equal(first.shift, second.shift)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.floats(-1, 2), st.floats(-300, 300))
def test_an_affine_trigger_stays_within_grey_levels_and_leaves_its_input(seed, scale, shift):
    images = np.random.default_rng(seed).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    before = images.copy()
    full = np.full((4, 5, 3), scale, np.float32), np.full((4, 5, 3), shift, np.float32)
    moved = AffineTrigger(scale=full[0], shift=full[1]).apply(images)
    assert np.array_equal(images, before)
    assert np.abs(moved - np.clip(scale * images.astype(float) + shift, 0, 255)).max() <= 0.51
