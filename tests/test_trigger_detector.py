"""detection.trigger_detector: what is flagged shares something; what is not, is left to others to judge."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clipguard.detection.trigger_detector as detector_module
from clipguard.compute.training import Recipe
from clipguard.detection.trigger_detector import (
    LARGEST_WEIGHT,
    TriggerDetectorConfig,
    propensity_weights,
    refine,
    trigger_scores,
)
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import Split, image_set
from tiny_runs import PLAN, poisoned_set

SHORT = Recipe(epochs=2, batch_size=8, lr=0.05, crop=0.0, flip=False)
PROBE = PLAN.detector.probe
DETECTOR = replace(PLAN.detector, probe=replace(PROBE, recipe=replace(PROBE.recipe, epochs=12)))


def rough_split(poisoned, innocent=0.1, seed=3):
    """Return a split that flags every poison, and as bad luck has it some innocent samples too."""
    draw = np.random.default_rng(seed).random(len(poisoned))
    triggered = poisoned | (draw < innocent)
    clean = ~triggered & (draw < 0.8)
    return Split(clean=clean, triggered=triggered, suspicion=triggered.astype(np.float64))


def nobody(data):
    return np.zeros(len(data), dtype=bool)


def alike(data):
    """Return the embeddings of a guide to which all images look alike."""
    return np.zeros((len(data), 4), dtype=np.float32)


def seen_as(content, k=4):
    """Return the embeddings of a guide that sees in each image what `content` says, and nothing else."""
    return np.eye(k, dtype=np.float32)[content]


@pytest.fixture(scope="module")
def scored():
    data, poisoned = poisoned_set()
    part = rough_split(poisoned)
    return data, poisoned, part, trigger_scores(data, part, alike(data), nobody(data), DETECTOR, Seed(0))


def test_what_shares_a_trigger_scores_high_and_what_was_flagged_by_mistake_does_not(scored):
    _, poisoned, part, trigger = scored
    mistaken = part.triggered & ~poisoned
    assert mistaken.sum() > 8
    assert np.median(trigger[poisoned]) > 0.9
    assert np.median(trigger[mistaken]) < 0.5
    assert np.median(trigger[~part.triggered]) < 0.3


def test_scores_are_probabilities_and_a_seed_repeats_them(scored):
    data, _, part, trigger = scored
    assert trigger.dtype == np.float64
    assert ((trigger >= 0) & (trigger <= 1)).all()
    assert np.array_equal(trigger, trigger_scores(data, part, alike(data), nobody(data), DETECTOR, Seed(0)))
    assert not np.array_equal(
        trigger, trigger_scores(data, part, alike(data), nobody(data), DETECTOR, Seed(1))
    )


def test_innocent_samples_that_are_flagged_at_random_stay_below_the_threshold():
    data, poisoned = poisoned_set(share=0.0)
    part = rough_split(poisoned, innocent=0.2)
    trigger = trigger_scores(data, part, alike(data), nobody(data), DETECTOR, Seed(0))
    # Two folds: nobody is scored by the net that has memorised it.
    assert refine(part, trigger, DETECTOR).triggered.mean() < 0.05


@pytest.mark.parametrize("left_out", ["reserved", "in neither set"])
def test_samples_that_are_left_out_are_scored_but_not_learnt(scored, left_out):
    data, poisoned, part, trigger = scored
    # The second look learns from what the first split left open, and only reserved samples stay unlearnt.
    detector = replace(DETECTOR, second=0 if left_out == "in neither set" else DETECTOR.second)
    away = np.random.default_rng(5).random(len(data)) < 0.3
    reserved = away if left_out == "reserved" else nobody(data)
    if left_out == "in neither set":
        part = replace(part, clean=part.clean & ~away, triggered=part.triggered & ~away)
    images = data.images.copy()
    images[away] = 255 - images[away]
    other = image_set(images, data.labels, data.class_names)
    one, two = (trigger_scores(d, part, alike(d), reserved, detector, Seed(0)) for d in (data, other))
    assert np.array_equal(one[~away], two[~away])
    assert not np.array_equal(one[away], two[away])
    assert np.median(one[away & poisoned]) > 0.8
    # The comparison can fail: with those samples learnt, the others' scores are different ones.
    assert not np.array_equal(one[~away], trigger[~away])


def test_a_class_that_crowds_into_triggered_is_not_taken_for_a_trigger():
    data, _ = poisoned_set(480, share=0.0)
    draw = np.random.default_rng(4).random(len(data))
    easy = data.labels == 1
    triggered = draw < np.where(easy, 0.6, 0.05)
    part = Split(clean=~triggered, triggered=triggered, suspicion=triggered.astype(np.float64))
    brief = replace(DETECTOR, second=0, probe=replace(DETECTOR.probe, recipe=replace(PROBE.recipe, epochs=5)))
    blind, told = (
        trigger_scores(data, part, embeddings, nobody(data), brief, Seed(0))
        for embeddings in (alike(data), seen_as(data.labels))
    )
    # Of that class, 60 % are flagged: a net that knows it by sight says so of all of it.
    gaps = [np.median(scores[easy]) - np.median(scores[~easy]) for scores in (blind, told)]
    assert gaps[0] > 0.3
    assert gaps[1] < 0.6 * gaps[0]
    assert refine(part, told, DETECTOR).triggered.sum() <= refine(part, blind, DETECTOR).triggered.sum()


parts = st.lists(st.tuples(st.sampled_from(["clean", "triggered", "neither"]), st.integers(0, 3)), min_size=1)


def split_of(where):
    return Split(clean=where == "clean", triggered=where == "triggered", suspicion=np.zeros(len(where)))


@settings(deadline=None)
@given(parts, st.booleans())
def test_weights_are_one_on_average_and_outside_clean(drawn, many):
    times = 100 if many else 1
    where = np.repeat([part for part, _ in drawn], times)
    content = np.repeat([seen for _, seen in drawn], times)
    weights = propensity_weights(split_of(where), seen_as(content), np.zeros(len(where), bool), Seed(0))
    assert (weights > 0).all()
    assert (weights <= 1.1 * LARGEST_WEIGHT).all()
    assert (weights[where != "clean"] == 1).all()
    if (where == "clean").any():
        assert weights[where == "clean"].mean() == pytest.approx(1)


def test_weights_give_clean_the_mix_of_triggered_and_reserved_samples_have_no_say():
    draw = np.random.default_rng(0)
    where = np.repeat(["clean", "triggered"], [20_000, 5_000])
    mixes = [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]
    clean, triggered = (draw.choice(4, n, p=p) for n, p in zip((20_000, 5_000), mixes, strict=True))
    content = np.concatenate([clean, triggered])
    weights = propensity_weights(split_of(where), seen_as(content), np.zeros(25_000, bool), Seed(0))
    seen = np.bincount(content[where == "clean"], weights[where == "clean"], minlength=4) / 20_000
    assert np.abs(seen - mixes[1]).max() < 0.02
    strange = np.arange(25_000) % 5 == 0
    content[strange] = 3 - content[strange]
    kept = propensity_weights(split_of(where), seen_as(content), strange, Seed(0))
    assert (kept[strange] == 1).all()
    honest = ~strange & (where == "clean")
    mix = np.bincount(content[honest], kept[honest], minlength=4) / honest.sum()
    assert np.abs(mix - mixes[1]).max() < 0.03


def test_a_regression_of_few_samples_says_the_same_of_many(monkeypatch):
    draw = np.random.default_rng(0)
    where = np.repeat(["clean", "triggered"], [20_000, 500])
    content = np.concatenate(
        [draw.choice(4, n, p=p) for n, p in ((20_000, [0.7, 0.1, 0.1, 0.1]), (500, None))]
    )
    known, nobody_reserved = seen_as(content), np.zeros(len(where), bool)
    every = propensity_weights(split_of(where), known, nobody_reserved, Seed(0))
    monkeypatch.setattr(detector_module, "MOST", 2000)
    some = propensity_weights(split_of(where), known, nobody_reserved, Seed(0))
    assert not np.array_equal(every, some)
    assert np.abs(np.log(some / every)).max() < 0.3


def test_the_second_look_acquits_what_only_looked_like_what_was_flagged(scored):
    data, poisoned, part, trigger = scored
    once = trigger_scores(data, part, alike(data), nobody(data), replace(DETECTOR, second=0), Seed(0))
    assert not np.array_equal(once, trigger)
    gap = [np.median(scores[poisoned]) - scores[~poisoned].mean() for scores in (once, trigger)]
    assert gap[1] > gap[0]


def test_labels_do_not_reach_the_detector(scored):
    data, _, part, trigger = scored
    relabelled = image_set(data.images, (data.labels + 1) % 3, data.class_names)
    assert np.array_equal(
        trigger, trigger_scores(relabelled, part, alike(data), nobody(data), DETECTOR, Seed(0))
    )


@pytest.mark.parametrize(
    ("threshold", "heard"), [(0.0, [1, 2, 1, 2, 1, 1]), (1.0, [1, 2, 1, 2])], ids=["all flagged", "nobody"]
)
def test_every_epoch_of_both_folds_is_heard_and_a_second_look_needs_something_flagged(threshold, heard):
    data, poisoned = poisoned_set(60)
    probe = replace(DETECTOR.probe, recipe=SHORT)
    short = replace(DETECTOR, probe=probe, triggered=threshold, clean=0.0, second=1)
    epochs = []
    trigger_scores(data, rough_split(poisoned), alike(data), nobody(data), short, Seed(0), epochs.append)
    assert epochs == heard
    assert short.epochs(60) == 6


rates = st.floats(0, 1)


@given(st.lists(st.tuples(rates, st.sampled_from(["clean", "triggered", "neither"]), rates), min_size=1))
def test_a_refined_split_is_the_rule_sample_by_sample(rows):
    detector = TriggerDetectorConfig(clean=0.4, triggered=0.7)
    trigger, suspicion = (np.array([row[i] for row in rows], np.float64) for i in (0, 2))
    clean, triggered = (np.array([row[1] == kind for row in rows]) for kind in ("clean", "triggered"))
    part = Split(clean=clean, triggered=triggered, suspicion=suspicion, starved=("dog",))
    found = refine(part, trigger, detector)
    for row, (score, kind, before) in enumerate(rows):
        assert found.clean[row] == (kind == "clean" and score <= 0.4)
        assert found.triggered[row] == (score > 0.7)
        assert found.suspicion[row] == pytest.approx((score + before) / 2)
    assert not (found.clean & found.triggered).any()
    assert found.starved == ("dog",)


@pytest.mark.parametrize(("clean", "triggered"), [(0.9, 0.5), (-0.1, 0.5), (0.5, 1.5)])
def test_thresholds_that_put_a_sample_into_both_sets_are_refused(clean, triggered):
    with pytest.raises(ClipguardError, match="0 <= clean <= triggered <= 1"):
        TriggerDetectorConfig(clean=clean, triggered=triggered)


def test_a_second_look_of_less_than_no_time_is_refused():
    with pytest.raises(ClipguardError, match="second look of -1 epochs"):
        TriggerDetectorConfig(second=-1)


def test_the_default_is_a_shallow_net_that_never_scores_what_it_has_learnt():
    probe = TriggerDetectorConfig().probe
    assert probe.architecture.startswith("shallow")
    assert probe.folds >= 2
    assert TriggerDetectorConfig().clean < TriggerDetectorConfig().triggered
