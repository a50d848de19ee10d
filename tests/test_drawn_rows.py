"""detection.drawn_rows: of many samples some are drawn, class by class; what learns from them scores all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.compute import small_nets
from clipguard.detection import drawn_rows, early_model, trigger_detector
from clipguard.detection.drawn_rows import drawn_by_class
from clipguard.detection.early_model import early_model_scores
from clipguard.detection.entropy_map import label_nll
from clipguard.detection.trigger_detector import TriggerDetectorConfig, compared_rows, trigger_scores
from clipguard.seeds import Seed
from clipguard.types import Scores, State, partition_of
from tiny_runs import CONFIG, NET, poisoned_set, scanned

sizes_of_classes = st.lists(st.integers(0, 60), min_size=1, max_size=8)


@given(sizes_of_classes, st.integers(0, 200), st.integers(0, 20), st.integers(0, 2**32))
def test_so_many_are_drawn_and_every_class_keeps_its_share_and_its_fewest(sizes, most, fewest, seed):
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = np.flatnonzero(draw.random(len(labels)) < 0.8)
    have = np.bincount(labels[rows], minlength=len(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_rows, "FEWEST_OF_A_CLASS", fewest)
        drawn = drawn_by_class(labels, rows, most, Seed(seed))
    assert len(drawn) == min(len(rows), most)
    assert (np.diff(drawn) > 0).all()
    assert np.isin(drawn, rows).all()
    kept = np.bincount(labels[drawn], minlength=len(sizes))
    present = int(np.flatnonzero(have)[-1]) + 1 if len(rows) else 1
    assert (kept >= np.minimum(have, min(fewest, most // present))).all()
    if fewest == 0 and len(rows) > most:
        assert (np.abs(kept - most * have / have.sum()) < 1).all()


def test_a_draw_depends_on_its_seed_alone():
    labels, rows = np.arange(1000) % 3, np.arange(1000)
    one, again, other = (drawn_by_class(labels, rows, 100, Seed(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.fixture
def learned(monkeypatch):
    """Return a list that fills with the rows that each small net learns from."""
    rows, fit = [], small_nets.fit

    def recorded(model, images, chosen, *others, **named):
        rows.append(chosen)
        return fit(model, images, chosen, *others, **named)

    monkeypatch.setattr(small_nets, "fit", recorded)
    return rows


def test_the_early_training_model_learns_from_the_most_and_scores_all(monkeypatch, learned):
    data, poisoned = poisoned_set(share=0.1)
    guide = Scores(logits=np.zeros((240, 3), np.float32), scale=1.0, source="guide")
    every = label_nll(early_model_scores(data, guide, NET, Seed(0)), data.labels)
    monkeypatch.setattr(early_model, "MOST_ROWS", 150)
    monkeypatch.setattr(drawn_rows, "FEWEST_OF_A_CLASS", 10)
    some = label_nll(early_model_scores(data, guide, NET, Seed(0)), data.labels)
    assert [len(rows) for rows in learned] == [240, 150]
    share = np.bincount(data.labels[learned[1]]) / np.bincount(data.labels)
    assert np.abs(share - 150 / 240).max() < 0.02
    assert not np.array_equal(some, every)
    left_out = np.setdiff1d(np.arange(240), learned[1])
    # Poison is learnt before anything else, also that which the net has not met.
    carries = poisoned[left_out]
    assert np.median(some[left_out][carries]) < np.median(some[left_out][~carries])


def split(data, poisoned):
    """Return the partition in which poison and a fifth of the others are flagged, and the embeddings."""
    flagged = poisoned | (np.random.default_rng(3).random(len(data)) < 0.2)
    state = np.where(flagged, State.TRIGGER, State.CLEAN).astype(np.uint8)
    state[:20] = State.UNCERTAIN
    return partition_of(state, flagged.astype(float), 3), np.zeros((len(data), 4), np.float32)


@pytest.mark.parametrize("most", [200, 60])
def test_flagged_samples_are_drawn_only_where_they_are_more_than_half_of_the_most(monkeypatch, most):
    data, poisoned = poisoned_set(400)
    partition, _ = split(data, poisoned)
    assert np.array_equal(compared_rows(data.labels, partition, Seed(0)), np.arange(400))
    monkeypatch.setattr(trigger_detector, "MOST_ROWS", most)
    rows = compared_rows(data.labels, partition, Seed(0))
    flagged = partition.has(State.TRIGGER)
    assert len(rows) == most
    assert (np.diff(rows) > 0).all()
    assert flagged[rows].sum() == min(flagged.sum(), most // 2)
    assert partition.has(State.UNCERTAIN)[rows].any()


def test_the_detector_learns_from_the_most_and_scores_all_as_if_it_had_learned_from_all(monkeypatch, learned):
    data, poisoned = poisoned_set(600)
    partition, embeddings = split(data, poisoned)
    config = TriggerDetectorConfig(net=replace(NET, epochs=12, folds=2))
    every = trigger_scores(data, partition, embeddings, config, Seed(0))
    assert every.notes == ()
    learned.clear()
    monkeypatch.setattr(trigger_detector, "MOST_ROWS", 360)
    some = trigger_scores(data, partition, embeddings, config, Seed(0))
    assert len(np.unique(np.concatenate(learned))) <= 360
    assert some.notes == ("the trigger detector has learned from 360 of 600 samples",)
    assert np.median(some.probability[poisoned]) > 0.9
    innocent = ~poisoned & partition.flagged
    # Half of what it learned from was flagged; an innocent sample is no likelier to be so for that.
    assert np.median(some.probability[innocent]) < 0.5
    assert (some.probability > 0).all()


def test_weights_restore_the_shares_that_both_sides_had():
    state = np.repeat([State.TRIGGER, State.CLEAN, State.UNCERTAIN], [100, 300, 50]).astype(np.uint8)
    partition = partition_of(state, np.zeros(450), 3)
    drawn = np.isin(np.arange(450), [*range(80), *range(100, 140), *range(400, 420)])
    weights = trigger_detector._thinned(np.ones(450), partition, drawn)
    of_flagged, of_clean = (weights[partition.has(side) & drawn] for side in (State.TRIGGER, State.CLEAN))
    assert of_flagged.sum() / of_clean.sum() == pytest.approx(100 / 300)
    assert np.concatenate([of_flagged, of_clean]).mean() == pytest.approx(1)
    assert (trigger_detector._thinned(weights, partition, np.ones(450, bool)) == weights).all()


MODELS = ("early-training model", "trigger detector")


def test_a_scan_of_more_than_the_most_says_so_and_one_of_fewer_does_not(monkeypatch, tmp_path):
    data, _ = poisoned_set()
    notes = scanned(tmp_path / "whole", data).context.notes()
    for module in ("early_model", "trigger_detector", "linear_probe"):
        monkeypatch.setattr(f"clipguard.detection.{module}.MOST_ROWS", 180)
    monkeypatch.setattr("clipguard.pipeline.computing.MOST_ROWS", 180)
    result = scanned(tmp_path / "drawn", data, CONFIG)
    assert len(result.partition) == 240
    says = {f"the {model} has learned from 180 of 240 samples" for model in MODELS}
    assert says <= set(result.context.notes())
    assert not says & set(notes)
