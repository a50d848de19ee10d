"""detection.trigger_detector: what is flagged shares something; the rest is left to other stages."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clipguard.detection.trigger_detector as detector_module
from clipguard.compute.small_nets import SmallNetConfig
from clipguard.detection.trigger_detector import (
    FEWEST,
    FOLDS,
    LARGEST_WEIGHT,
    TriggerDetectorConfig,
    propensity_weights,
    refine,
    trigger_scores,
)
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import State, image_set, partition_of
from tiny_runs import poisoned_set

NET = SmallNetConfig(
    architecture="shallow-8",
    epochs=12,
    batch_size=8,
    optimizer="sgd",
    lr=0.05,
    schedule="one-cycle",
    folds=2,
)
CONFIG = TriggerDetectorConfig(net=NET)


def partition(clean, flagged):
    """Return the partition of two masks; the rest is uncertain."""
    state = np.full(len(clean), State.UNCERTAIN, np.uint8)
    state[clean], state[flagged] = State.CLEAN, State.TRIGGER
    return partition_of(state, flagged.astype(np.float64), 3)


def rough_partition(poisoned, innocent=0.1, seed=3):
    """Return a partition that flags every poison, and as bad luck has it some innocent samples too."""
    draw = np.random.default_rng(seed).random(len(poisoned))
    flagged = poisoned | (draw < innocent)
    return partition(~flagged & (draw < 0.8), flagged)


def equal_embeddings(data):
    """Return the embeddings of a guide to which all images look alike."""
    return np.zeros((len(data), 4), dtype=np.float32)


def embeddings_of(content, k=4):
    """Return the embeddings of a guide that sees in each image its content, and nothing else."""
    return np.eye(k, dtype=np.float32)[content]


def scores_of(data, part, config=CONFIG, seed=0):
    """Return the scores with a guide to which all images look alike."""
    return trigger_scores(data, part, equal_embeddings(data), config, Seed(seed))


@pytest.fixture(scope="module")
def scored():
    data, poisoned = poisoned_set(share=0.1)
    part = rough_partition(poisoned)
    return data, poisoned, part, scores_of(data, part).probability


def test_what_shares_a_trigger_scores_high_and_what_was_flagged_by_mistake_does_not(scored):
    _, poisoned, part, probability = scored
    mistaken = part.flagged & ~poisoned
    assert mistaken.sum() > 8
    assert np.median(probability[poisoned]) > 0.9
    assert np.median(probability[mistaken]) < 0.5
    assert np.median(probability[~part.flagged]) < 0.3


def test_with_the_default_settings_the_poison_is_flagged_and_little_else():
    data, poisoned = poisoned_set(share=0.1, seed=1)
    part, config = rough_partition(poisoned), TriggerDetectorConfig()
    refined = refine(part, scores_of(data, part, config).probability, config)
    assert refined.flagged[poisoned].mean() > 0.9
    assert refined.flagged[~poisoned].mean() < 0.1
    assert part.flagged[~poisoned].mean() > 0.08


def test_scores_are_probabilities_and_a_seed_repeats_them(scored):
    data, _, part, probability = scored
    assert probability.dtype == np.float64
    assert ((probability >= 0) & (probability <= 1)).all()
    assert np.array_equal(probability, scores_of(data, part).probability)
    assert not np.array_equal(probability, scores_of(data, part, seed=1).probability)


def test_innocent_samples_that_are_flagged_at_random_stay_below_the_threshold():
    data, poisoned = poisoned_set(share=0.0)
    part = rough_partition(poisoned, innocent=0.2)
    # Two folds: nobody is scored by the net that has memorised it.
    assert refine(part, scores_of(data, part).probability, CONFIG).flagged.mean() < 0.05


def test_uncertain_samples_are_scored_but_not_learnt_in_the_first_round(scored):
    data, poisoned, part, _ = scored
    # A refinement learns from what the first partition left open.
    config = replace(CONFIG, refinements=0)
    everyone = scores_of(data, part, config).probability
    away = np.random.default_rng(5).random(len(data)) < 0.3
    part = part.moved(away, State.UNCERTAIN)
    images = data.images.copy()
    images[away] = 255 - images[away]
    other = image_set(images, data.labels, data.class_names)
    one, two = (scores_of(d, part, config).probability for d in (data, other))
    assert np.array_equal(one[~away], two[~away])
    assert not np.array_equal(one[away], two[away])
    assert np.median(one[away & poisoned]) > 0.8
    # The comparison can fail: with those samples learnt, the others' scores are different ones.
    assert not np.array_equal(one[~away], everyone[~away])


def test_a_class_that_crowds_into_the_flagged_is_not_taken_for_a_trigger():
    data, _ = poisoned_set(480, share=0.0)
    draw = np.random.default_rng(4).random(len(data))
    easy = data.labels == 1
    flagged = draw < np.where(easy, 0.6, 0.05)
    part = partition(~flagged, flagged)
    brief = replace(CONFIG, refinements=0, net=replace(NET, epochs=5))
    without, balanced = (
        trigger_scores(data, part, embeddings, brief, Seed(0)).probability
        for embeddings in (equal_embeddings(data), embeddings_of(data.labels))
    )
    # Of that class, 60 % are flagged: a net that knows it by sight gives all of it a high score.
    gaps = [np.median(scores[easy]) - np.median(scores[~easy]) for scores in (without, balanced)]
    assert gaps[0] > 0.3
    assert gaps[1] < 0.6 * gaps[0]
    assert refine(part, balanced, CONFIG).flagged.sum() <= refine(part, without, CONFIG).flagged.sum()


parts = st.lists(st.tuples(st.sampled_from(["clean", "flagged", "neither"]), st.integers(0, 3)), min_size=1)


def weights_of(where, content):
    """Return the propensity weights of samples that are `clean`, `flagged` or neither, with this content."""
    return propensity_weights(where == "clean", where == "flagged", embeddings_of(content), Seed(0))


@settings(deadline=None)
@given(parts, st.booleans())
def test_weights_are_one_on_average_and_outside_clean_and_none_where_either_side_is_small(drawn, many):
    times = 100 if many else 1
    where = np.repeat([part for part, _ in drawn], times)
    weights = weights_of(where, np.repeat([content for _, content in drawn], times))
    if min((where == "clean").sum(), (where == "flagged").sum()) < FOLDS * FEWEST:
        assert weights is None
        return
    assert (weights > 0).all()
    assert (weights <= 1.1 * LARGEST_WEIGHT).all()
    assert (weights[where != "clean"] == 1).all()
    assert weights[where == "clean"].mean() == pytest.approx(1)


@pytest.mark.parametrize("sizes", [(50, 200), (200, 50)])
def test_weights_need_fifty_samples_on_either_side(sizes):
    where = np.repeat(["clean", "flagged"], sizes)
    content = np.arange(len(where)) % 4
    assert weights_of(where, content) is not None
    last_of_the_smaller = np.flatnonzero(where == ("clean" if sizes[0] == 50 else "flagged"))[-1]
    where[last_of_the_smaller] = "neither"
    assert weights_of(where, content) is None


def test_weights_give_clean_the_mix_of_flagged_and_samples_in_neither_have_no_say():
    draw = np.random.default_rng(0)
    where = np.repeat(["clean", "flagged"], [20_000, 5_000])
    mixes = [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]
    clean, flagged = (draw.choice(4, n, p=p) for n, p in zip((20_000, 5_000), mixes, strict=True))
    content = np.concatenate([clean, flagged])
    weights = weights_of(where, content)
    mix = np.bincount(content[where == "clean"], weights[where == "clean"], minlength=4) / 20_000
    assert np.abs(mix - mixes[1]).max() < 0.02
    away = np.arange(25_000) % 5 == 0
    content[away] = 3 - content[away]
    where = np.where(away, "neither", where)
    kept = weights_of(where, content)
    assert (kept[away] == 1).all()
    mix = np.bincount(content[where == "clean"], kept[where == "clean"], minlength=4)
    assert np.abs(mix / (where == "clean").sum() - mixes[1]).max() < 0.03


def test_a_regression_of_few_samples_gives_the_same_weights_as_one_of_many(monkeypatch):
    draw = np.random.default_rng(0)
    where = np.repeat(["clean", "flagged"], [20_000, 500])
    content = np.concatenate(
        [draw.choice(4, n, p=p) for n, p in ((20_000, [0.7, 0.1, 0.1, 0.1]), (500, None))]
    )
    every = weights_of(where, content)
    monkeypatch.setattr(detector_module, "MOST", 2000)
    some = weights_of(where, content)
    assert not np.array_equal(every, some)
    assert np.abs(np.log(some / every)).max() < 0.3


def test_refinements_acquit_what_only_looked_like_what_was_flagged(scored):
    data, poisoned, part, probability = scored
    once = scores_of(data, part, replace(CONFIG, refinements=0)).probability
    assert not np.array_equal(once, probability)
    gap = [np.median(scores[poisoned]) - scores[~poisoned].mean() for scores in (once, probability)]
    assert gap[1] > gap[0]


def test_labels_do_not_reach_the_detector(scored):
    data, _, part, probability = scored
    relabelled = image_set(data.images, (data.labels + 1) % 3, data.class_names)
    assert np.array_equal(probability, scores_of(relabelled, part).probability)


SHORT = replace(CONFIG, net=replace(NET, epochs=2), refinements=1)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.0, [1, 2, 1, 2, 1, 2, 3, 1, 2, 3]), (1.0, [1, 2, 1, 2])],
    ids=["all flagged", "nobody"],
)
def test_the_hook_is_called_for_every_epoch_of_both_folds_and_of_a_refinement(threshold, expected):
    data, poisoned = poisoned_set(60, share=0.1)
    short = replace(SHORT, flagged=threshold, clean=0.0)
    epochs = []
    trigger_scores(data, rough_partition(poisoned), equal_embeddings(data), short, Seed(0), epochs.append)
    assert epochs == expected
    assert short.total_epochs(60) == 10


def fifty_of_each():
    """Return a set of 120 samples, and a partition with 60 clean and 50 flagged ones."""
    data, poisoned = poisoned_set(120, share=0.1)
    order = np.argsort(~poisoned, kind="stable")
    rank = np.argsort(order)
    return data, partition(rank >= 60, rank < 50)


def test_where_all_goes_as_it_should_there_is_no_note():
    data, part = fifty_of_each()
    assert scores_of(data, part, replace(SHORT, flagged=0.0, clean=0.0)).notes == ()


def test_samples_that_are_too_few_to_balance_are_noted_with_their_numbers():
    data, part = fifty_of_each()
    one_less = part.moved(np.flatnonzero(part.flagged)[:1], State.UNCERTAIN)
    (note,) = scores_of(data, one_less, replace(SHORT, refinements=0)).notes
    assert note == (
        "the trigger detector could not balance contents: 60 clean and 49 flagged samples after the entropy "
        "map, 50 of each are needed"
    )


@pytest.mark.parametrize("carrying", [0, 1, 9, 10])
def test_a_refinement_that_flagged_samples_were_too_few_for_is_noted_unless_there_were_none(carrying):
    data, part = fifty_of_each()
    once = scores_of(data, part, replace(SHORT, refinements=0))
    assert once.notes == ()
    # As many carry a trigger after the first round as score above the threshold.
    ordered = np.sort(once.probability)[::-1]
    threshold = float(ordered[:carrying][-1] + ordered[carrying]) / 2 if carrying else 1.0
    scores = scores_of(data, part, replace(SHORT, flagged=threshold, clean=0.0))
    took_place = not np.array_equal(scores.probability, once.probability)
    assert took_place == (carrying == 10)
    assert scores.notes == (
        (f"the trigger detector was not refined: it flags {carrying} samples, 10 are needed",)
        if carrying in (1, 9)
        else ()
    )


def test_both_notes_may_be_given():
    data, poisoned = poisoned_set(60, share=0.1)
    part = rough_partition(poisoned)
    once = scores_of(data, part, replace(SHORT, refinements=0)).probability
    threshold = float(np.sort(once)[-2:].mean())
    balance, refinement = scores_of(data, part, replace(SHORT, flagged=threshold, clean=0.0)).notes
    assert "could not balance contents" in balance
    assert "flags 1 samples" in refinement


rates = st.floats(0, 1)


@given(st.lists(st.tuples(rates, st.sampled_from(State), rates), min_size=1))
def test_a_refined_partition_is_the_rule_sample_by_sample(rows):
    config = TriggerDetectorConfig(clean=0.4, flagged=0.7)
    probability, suspicion = (np.array([row[i] for row in rows], np.float64) for i in (0, 2))
    states = np.array([row[1] for row in rows], np.uint8)
    before = replace(partition_of(states, suspicion, 3), quarantined=(2,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_module, "HANDFUL", 0)
        after = refine(before, probability, config)
    for row, (score, state, suspicion_before) in enumerate(rows):
        kept = State.CLEAN if state in (State.CLEAN, State.KEPT) and score <= 0.4 else State.UNCERTAIN
        assert after.state[row] == (State.TRIGGER if score > 0.7 else kept)
        assert after.suspicion[row] == pytest.approx((score + suspicion_before) / 2)
    assert replace(after, state=before.state, suspicion=suspicion).fingerprint == before.fingerprint


@pytest.mark.parametrize(("clean", "flagged"), [(0.9, 0.5), (-0.1, 0.5), (0.5, 1.5)])
def test_thresholds_that_put_a_sample_into_both_sets_are_refused(clean, flagged):
    with pytest.raises(ClipguardError, match="0 <= clean <= flagged <= 1"):
        TriggerDetectorConfig(clean=clean, flagged=flagged)


def test_fewer_refinements_than_none_are_refused():
    with pytest.raises(ClipguardError, match="-1 refinements"):
        TriggerDetectorConfig(refinements=-1)


def test_refinements_end_where_the_flagged_set_settles(scored, monkeypatch):
    data, _, part, _ = scored
    epochs = []
    monkeypatch.setattr(detector_module, "SETTLED", 1e9)
    trigger_scores(data, part, equal_embeddings(data), CONFIG, Seed(0), epochs.append)
    # Two nets go on once: any change counts as none.
    assert len(epochs) == 2 * (CONFIG.net.total_epochs(len(data)) + detector_module.REFINEMENT_EPOCHS)


def test_a_further_refinement_that_flags_fewer_is_discarded(scored, monkeypatch):
    data, _, part, _ = scored
    once = scores_of(data, part, replace(CONFIG, refinements=1)).probability
    # No set is settled, and every further one counts as smaller.
    monkeypatch.setattr(detector_module, "SETTLED", -1e9)
    assert np.array_equal(scores_of(data, part).probability, once)
    monkeypatch.setattr(detector_module, "SETTLED", 0.0)
    twice = scores_of(data, part, replace(CONFIG, refinements=2)).probability
    assert (twice > CONFIG.flagged).sum() >= (once > CONFIG.flagged).sum()


@pytest.mark.parametrize(("carrying", "flagged"), [(0, 0), (9, 0), (10, 10), (60, 60)])
def test_a_handful_of_samples_with_a_trigger_is_not_flagged_but_not_learnt_from_either(carrying, flagged):
    before = partition_of(np.full(100, State.CLEAN, np.uint8), np.zeros(100), 3)
    probability = np.where(np.arange(100) < carrying, 0.9, 0.1)
    after = refine(before, probability, TriggerDetectorConfig())
    assert after.flagged.sum() == flagged
    assert after.clean.sum() == 100 - carrying
