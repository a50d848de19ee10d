"""pipeline.repair: victims, retraining, unlearning; what is held out is never learnt; killed stages go on."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.compute import classifiers, training
from clipguard.detection.feature_separation import separated_by_features
from clipguard.errors import ClipguardError
from clipguard.mitigation.gauge import spared_rows
from clipguard.mitigation.unlearning import unlearn
from clipguard.models.spec import ModelSpec, build, load
from clipguard.pipeline import computing, unlearning_stage
from clipguard.pipeline.computing import FEATURES_FILE
from clipguard.pipeline.repair import for_model, held_out_rows, repair, train, with_held_out
from clipguard.pipeline.scanning import with_triggers
from clipguard.pipeline.stages import RETRAINING, TRIGGER_INVERSION, UNLEARNING, VICTIM
from clipguard.runs import read_table
from clipguard.seeds import Seed
from clipguard.types import Preprocessing, State, image_set
from tiny_runs import CONFIG, NAMES, configured, moved, other_at, poisoned_set, scanned

UNLEARN = CONFIG.unlearning
FEATURES = CONFIG.feature_separation
SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Return a scan of which a twentieth is held out, as where a victim is trained."""
    return with_held_out(scanned(tmp_path_factory.mktemp("scan") / "run", poisoned_set()[0]))


@pytest.fixture
def elsewhere(result, tmp_path):
    return lambda name, **changes: moved(result, tmp_path / name, **changes)


def weights(stage):
    return (stage.path / "model.safetensors").read_bytes()


def held_out(scan):
    return scan.partition.has(State.HELD_OUT)


def small_victim():
    return build(SPEC, Seed(3))


def unlearnt(scan, config=CONFIG, origin="origin", progress=None):
    """Return the stage of a small victim after unlearning."""
    given = configured(scan, config) if progress is None else configured(scan, config, progress)
    return repair(given, small_victim(), SPEC, origin)


def spared(scan):
    """Return how many clean samples the repair of a given model is measured on, and not taught."""
    return sum(int(0.1 * count) for count in np.bincount(scan.data.labels[scan.partition.clean]))


def with_unlearning(**changes):
    return replace(CONFIG, unlearning=replace(UNLEARN, **changes))


@hypothesis_settings(max_examples=50)
@given(st.integers(0, 3000), st.integers(0, 2**32))
def test_a_random_twentieth_is_held_out_and_the_seed_repeats_it(n, seed):
    labels = np.arange(n) % 3
    mask = held_out_rows(labels, Seed(seed))
    assert mask.shape == (n,)
    assert mask.sum() == round(n / 20)
    assert np.array_equal(mask, held_out_rows(labels, Seed(seed)))


@hypothesis_settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=30), st.integers(0, 2**32))
def test_only_classes_that_would_lose_most_of_their_samples_keep_them_all(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    mask = held_out_rows(labels, Seed(seed))
    # A set of one class never loses most of it: there, the draw is as it was made.
    drawn = held_out_rows(np.zeros_like(labels), Seed(seed))
    assert drawn.sum() == round(len(labels) / 20)
    for number, size in enumerate(sizes):
        own = labels == number
        assert np.array_equal(mask[own], drawn[own] if 2 * drawn[own].sum() <= size else np.zeros(size, bool))


def test_another_seed_holds_out_others():
    labels = np.arange(1000) % 3
    assert not np.array_equal(held_out_rows(labels, Seed(0)), held_out_rows(labels, Seed(1)))


def test_holding_out_changes_nothing_but_the_state_of_those_samples(tmp_path):
    scan = scanned(tmp_path / "run", poisoned_set(60)[0])
    other = with_held_out(scan)
    rows = held_out(other)
    assert rows.sum() == 3
    assert np.array_equal(other.partition.state[~rows], scan.partition.state[~rows])
    assert other.data is scan.data
    restored = replace(other, partition=replace(other.partition, state=scan.partition.state))
    assert restored.partition.fingerprint == scan.partition.fingerprint


def test_victim_retraining_and_unlearning_do_not_depend_on_held_out_samples(elsewhere, result):
    rows = held_out(result)
    logits = np.where(rows[:, None], np.float32(0.5), result.guide.logits[:])
    changes = {"data": other_at(result.data, rows), "guide": replace(result.guide, logits=logits)}
    config = with_unlearning(readmit=0.2, loss="cgd")
    made = []
    for name, changed in (("one", {}), ("other", changes)):
        here = configured(elsewhere(name, **changed), config)
        victim = train(here, ~rows, SPEC, VICTIM)
        again = train(here, result.partition.has(State.CLEAN, State.UNCERTAIN), SPEC, RETRAINING)
        made.append([weights(stage) for stage in (victim, again, unlearnt(here, config))])
    assert made[0] == made[1]
    assert len(set(made[0])) == 3


def test_unlearning_does_depend_on_samples_that_are_not_held_out(elsewhere, result):
    rows = np.flatnonzero(result.partition.clean)
    one = unlearnt(elsewhere("one"))
    other = unlearnt(elsewhere("other", data=other_at(result.data, rows)))
    assert weights(one) != weights(other)


def test_the_model_to_repair_stays_as_it_was(elsewhere):
    victim = small_victim()
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    stage = repair(elsewhere("run"), victim, SPEC, "origin")
    assert all(torch.equal(before[name], value) for name, value in victim.state_dict().items())
    repaired = load(stage.path / "model.safetensors", SPEC)
    assert not torch.equal(repaired.network.head.weight, victim.network.head.weight)


@pytest.mark.parametrize("stage", [VICTIM, RETRAINING], ids=lambda stage: stage.name)
def test_training_uses_exactly_the_rows_that_are_kept(elsewhere, result, monkeypatch, stage):
    learnt_rows, real = [], classifiers.fit

    def recorded(model, images, rows, *rest):
        learnt_rows.append(set(rows.tolist()))
        return real(model, images, rows, *rest)

    monkeypatch.setattr(classifiers, "fit", recorded)
    keep = result.partition.has(State.CLEAN, State.UNCERTAIN)
    finished = train(elsewhere("run"), keep, SPEC, stage)
    assert learnt_rows == [set(np.flatnonzero(keep))]
    assert load(finished.path / "model.safetensors", SPEC).training is False


def test_a_class_that_would_lose_all_its_samples_is_named_and_nothing_is_trained(elsewhere, result):
    here = elsewhere("run")
    with pytest.raises(ClipguardError, match="class 'dog' has no sample left to train on"):
        train(here, result.data.labels != 1, SPEC, RETRAINING)
    assert not here.context.run.path.exists()


def test_another_spec_trains_another_model(elsewhere, result):
    other = replace(SPEC, preprocessing=Preprocessing(size=(16, 16), mean=(0.1, 0.2, 0.3)))
    here, keep = elsewhere("run"), ~held_out(result)
    assert weights(train(here, keep, SPEC, VICTIM)) != weights(train(here, keep, other, VICTIM))


def test_a_training_that_ends_in_another_kind_of_model_leaves_nothing(elsewhere, result, monkeypatch):
    loss = training.cross_entropy(result.data.labels)
    arguments = (result.data.images, np.arange(40), loss, CONFIG.victim, Seed(0))
    history = training.fit(small_victim(), *arguments)

    def spoilt(model, *rest):
        with torch.no_grad():
            model.network.head.weight.fill_(torch.nan)
        return history

    monkeypatch.setattr(classifiers, "fit", spoilt)
    here = elsewhere("run")
    with pytest.raises(ClipguardError, match="NaN or Inf weights in 'head"):
        train(here, ~held_out(result), SPEC, VICTIM)
    assert not here.context.run.path.exists()


def test_a_class_that_never_had_a_sample_is_no_loss(elsewhere, result):
    data = image_set(result.data.pixels, result.data.labels, (*NAMES, "newt"), result.data.ids)
    spec = replace(SPEC, num_classes=4)
    stage = train(elsewhere("run", data=data), ~held_out(result), spec, VICTIM)
    assert load(stage.path / "model.safetensors", spec).network.head.out_features == 4


def test_a_model_of_the_same_input_size_is_given_the_scan_as_it_is(result):
    assert for_model(result, SPEC.preprocessing) is result
    # Its normalisation comes later, and is none of the images' business.
    assert for_model(result, replace(SPEC.preprocessing, mean=(0.1, 0.2, 0.3))) is result


class Killed(BaseException):
    """Stands for the end of a process: nothing in clipguard may catch it."""


def killer(stage, when):
    """Return progress that ends the process after so many epochs of a stage."""

    def kill(title, done, _total):
        if (title, done) == (stage.title, when):
            raise Killed

    return kill


@pytest.mark.parametrize("when", [1, 2])
def test_killed_unlearning_keeps_its_passes_and_gives_the_same_model(elsewhere, monkeypatch, when):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 10)
    # From the second pass on, each re-admits what the model predicts.
    config = with_unlearning(recipe=replace(UNLEARN.recipe, epochs=4), readmit=0.34)
    triggered = with_triggers(elsewhere("triggers"), TRIGGER_INVERSION)
    assert len(triggered.triggers) == 1
    whole = unlearnt(elsewhere("whole", triggers=triggered.triggers), config)
    here = elsewhere("killed", triggers=triggered.triggers)
    with pytest.raises(Killed):
        unlearnt(here, config, progress=killer(UNLEARNING, when))
    run = here.context.run
    assert run.finished("unlearning") is None
    kept = {file.name for file in run.path.rglob("resume.part/*")}
    assert {"checkpoint.safetensors", "admitted.npy"} <= kept
    passes, real = [], training._pass

    def counted(*args):
        passes.append(1)
        return real(*args)

    monkeypatch.setattr(training, "_pass", counted)
    stage = unlearnt(here, config)
    assert len(passes) == 4 - when
    assert not stage.cached
    assert weights(stage) == weights(whole)
    one, two = (read_table(of.path / "history.parquet") for of in (stage, whole))
    for column in ("loss", "clean", "flagged"):
        assert one[column].tolist() == two[column].tolist()
    assert len(set(one["clean"].tolist())) > 1
    assert not list(run.path.rglob("resume.part"))
    assert unlearnt(here, config).cached


def test_killed_unlearning_whose_record_is_damaged_begins_anew(elsewhere):
    whole, here = unlearnt(elsewhere("whole")), elsewhere("killed")
    with pytest.raises(Killed):
        unlearnt(here, progress=killer(UNLEARNING, 1))
    (record,) = here.context.run.path.rglob("admitted.npy")
    record.write_bytes(b"torn")
    assert weights(unlearnt(here)) == weights(whole)


@pytest.mark.parametrize("stage", [VICTIM, RETRAINING], ids=lambda stage: stage.name)
def test_a_killed_training_keeps_its_epochs_and_gives_the_same_model(elsewhere, result, stage):
    keep = ~held_out(result)
    whole, here = train(elsewhere("whole"), keep, SPEC, stage), elsewhere("killed")
    with pytest.raises(Killed):
        train(configured(here, CONFIG, killer(stage, 1)), keep, SPEC, stage)
    (kept,) = here.context.run.path.rglob("checkpoint.safetensors")
    assert kept.parts[-3].startswith(f".{stage.name}-")
    finished = train(here, keep, SPEC, stage)
    assert weights(finished) == weights(whole)
    losses = [read_table(of.path / "history.parquet")["loss"].tolist() for of in (finished, whole)]
    assert losses[0] == losses[1]
    assert not list(here.context.run.path.rglob("checkpoint.safetensors"))


def test_unlearning_is_done_anew_for_another_victim_or_other_settings(elsewhere):
    here = elsewhere("run")
    assert not unlearnt(here, origin="one").cached
    assert unlearnt(here, origin="one").cached
    assert not unlearnt(here, origin="two").cached
    assert not unlearnt(here, with_unlearning(weight=0.5), origin="two").cached


def inverted(scan, seed):
    return with_triggers(configured(scan, replace(CONFIG, seed=seed)), TRIGGER_INVERSION)


def test_what_the_flagged_samples_share_is_reconstructed_once_and_kept(elsewhere, monkeypatch):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 10)
    first = inverted(elsewhere("run"), 11)
    (trigger,) = first.triggers
    pasted = trigger.apply(np.full((1, 16, 16, 3), 60, np.uint8))[0]
    assert (pasted[-4:, -4:] == 255).all()
    assert np.abs(pasted[:-4].astype(int) - 60).mean() < 40
    assert not first.context.finished["trigger_inversion"].cached
    again = inverted(first, 11)
    assert again.context.finished["trigger_inversion"].cached
    assert again.triggers[0].label is trigger.label is None
    assert np.array_equal(again.triggers[0].scale, trigger.scale)
    assert np.array_equal(again.triggers[0].shift, trigger.shift)


def test_with_too_few_flagged_samples_there_is_no_shared_trigger(elsewhere, monkeypatch):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 200)
    assert inverted(elsewhere("run"), 12).triggers == ()


def test_unlearning_learns_copies_that_carry_the_shared_triggers(elsewhere, monkeypatch):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 10)
    scan, sizes = inverted(elsewhere("run"), 13), []
    for share in (0.0, 0.5):
        stage = unlearnt(scan, with_unlearning(augment=share))
        sizes.append(read_table(stage.path / "history.parquet")["clean"][0])
    clean = scan.partition.clean.sum() - spared(scan)
    assert sizes == [clean, clean + round(0.5 * clean)]


def with_label_flags(scan):
    """Return a scan that has flagged some labels of the first class for themselves, and quarantined it."""
    rows = np.flatnonzero((scan.data.labels == 0) & ~scan.partition.has(State.TRIGGER, State.HELD_OUT))
    state = scan.partition.state.copy()
    state[rows[:12]], state[rows[12:36]], state[rows[36:]] = State.LABEL, State.CLEAN, State.EXCLUDED
    partition = replace(
        scan.partition,
        state=state,
        quarantined=(0,),
        clean_share=np.array([0.5, 1.0, 1.0]),
        soft_rows=rows,
        soft_labels=np.tile(np.array([0, 1, 0], np.float32), (len(rows), 1)),
    )
    return replace(scan, partition=partition)


def test_the_victims_features_judge_quarantined_classes_before_unlearning_and_the_result_is_published(
    elsewhere, monkeypatch
):
    here, unlearnt_partitions = with_label_flags(elsewhere("run")), []
    data, partition = here.data, here.partition
    flagged, clean = np.flatnonzero(partition.has(State.LABEL)), partition.clean

    def features(_model, images, rows):
        # A model that has learnt every second excluded sample with those that were flagged.
        apart = np.isin(rows, flagged) | (rows % 2 == 0)
        noise = np.random.default_rng(0).normal(size=(len(images), 3))[rows]
        return noise + 9 * (apart & ~clean[rows])[:, None]

    def recorded(*args, **more):
        unlearnt_partitions.append(args[2])
        return unlearn(*args, **more)

    monkeypatch.setattr(computing, "features_of", features)
    monkeypatch.setattr(unlearning_stage, "unlearn", recorded)
    unlearnt(here)
    expected = separated_by_features(
        partition,
        data.labels,
        partial(features, None, data.images),
        FEATURES,
        Seed(CONFIG.seed).child("activations"),
    )
    assert (expected.flagged & ~partition.flagged).any()
    assert (expected.clean & ~partition.clean).any()
    rows = spared_rows(data.labels, expected.clean, Seed(CONFIG.seed).child("cure", "spared"))
    taught = expected.moved(rows, State.HELD_OUT)
    assert [one.fingerprint for one in unlearnt_partitions] == [taught.fingerprint]
    table = read_table(here.context.run.path / FEATURES_FILE)
    rows = np.flatnonzero((data.labels == 0) & ~held_out(here))
    assert table["id"].tolist() == [data.ids[row] for row in rows]
    assert set(table["given_label"]) == {NAMES[0]}
    assert set(table["label"]) == {0}
    assert np.array_equal(table["status"] == "flagged", expected.flagged[rows])
    assert np.array_equal(table["status"] == "trusted", expected.clean[rows])
    assert np.array_equal(table["reason"] == "label", expected.has(State.LABEL)[rows])


def test_feature_separation_is_kept_and_done_anew_for_another_model_or_other_settings(elsewhere):
    here = with_label_flags(elsewhere("run"))

    def cached(origin, config=CONFIG, spec=SPEC) -> bool:
        scan = configured(here, config)
        repair(scan, small_victim(), spec, origin)
        return scan.context.finished["feature_separation"].cached

    assert not cached("one")
    assert cached("one")
    assert not cached("two")
    assert not cached("two", replace(CONFIG, feature_separation=replace(FEATURES, flag_log_odds=9.0)))
    assert not cached(
        "one", spec=replace(SPEC, preprocessing=Preprocessing(size=(16, 16), mean=(0.1, 0.2, 0.3)))
    )


def test_without_flagged_labels_or_rounds_there_is_no_feature_separation(elsewhere):
    none_flagged, no_rounds = elsewhere("none"), with_label_flags(elsewhere("rounds"))
    unlearnt(none_flagged)
    unlearnt(no_rounds, replace(CONFIG, feature_separation=replace(FEATURES, rounds=0)))
    for here in (none_flagged, no_rounds):
        assert "feature_separation" not in here.context.finished
        assert not (here.context.run.path / FEATURES_FILE).exists()
