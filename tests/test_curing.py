"""pipeline, what is made of a scan: victims, retraining, cures; killed ones go on."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from clipguard.compute import training
from clipguard.detection.feature_separation import separated_by_features
from clipguard.errors import ClipguardError
from clipguard.mitigation.unlearning import unlearn
from clipguard.models.spec import ModelSpec, build, load
from clipguard.pipeline import cure, inverted_triggers, learnable, repairing, train_on
from clipguard.runs import Stage, read_table
from clipguard.seeds import Seed
from clipguard.types import image_set
from tiny_runs import NAMES, PLAN, moved, other_at, poisoned_set, scanned


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return scanned(tmp_path_factory.mktemp("scan") / "run", poisoned_set()[0])


@pytest.fixture
def elsewhere(found, tmp_path):
    return lambda name, **changes: moved(found, tmp_path / name, **changes)


def weights(stage):
    return (stage.path / "model.safetensors").read_bytes()


def test_what_is_learnt_from_leaves_the_reserved_rows_out_of_everything(found):
    data, part, guide = learnable(found)
    rows = np.flatnonzero(~found.reserved)
    assert data.ids == tuple(found.data.ids[row] for row in rows)
    assert np.array_equal(data.images, found.data.images[rows])
    assert np.array_equal(data.labels, found.data.labels[rows])
    assert np.array_equal(part.clean, found.split.clean[rows])
    assert np.array_equal(part.triggered, found.split.triggered[rows])
    assert np.array_equal(part.suspicion, found.split.suspicion[rows])
    assert np.array_equal(guide.logits, found.guide.logits[rows])
    assert guide.scale == found.guide.scale


def test_what_mislabelled_samples_show_goes_with_them(found):
    shown = np.arange(3 * len(found.data), dtype=np.float32).reshape(-1, 3)
    marked = replace(found, split=replace(found.split, shown=shown, closed=(1,)))
    _, part, _ = learnable(marked)
    assert np.array_equal(part.shown, shown[~found.reserved])
    assert part.closed == (1,)


def test_without_a_reserve_everything_may_be_learnt(found):
    nobody = replace(found, reserved=np.zeros(len(found.data), bool))
    data, part, guide = learnable(nobody)
    assert data is found.data
    assert part is found.split
    assert guide is found.guide


def small_victim():
    spec = ModelSpec(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))
    return build(spec, Seed(3)), spec


def test_victim_retraining_and_cure_do_not_depend_on_reserved_samples(elsewhere, found):
    rows = found.reserved
    logits = np.where(rows[:, None], np.float32(0.5), found.guide.logits)
    changes = {"data": other_at(found.data, rows), "guide": replace(found.guide, logits=logits)}
    # Also not on what the split says of them.
    changes["split"] = replace(found.split, triggered=found.split.triggered ^ rows)
    plan = replace(PLAN, cure=replace(PLAN.cure, readmit=0.2, guide=0.1))
    made = []
    for name, changed in (("one", {}), ("other", changes)):
        here = elsewhere(name, **changed)
        _, victim = train_on(here, ~here.reserved, "victim", plan, None)
        _, again = train_on(here, ~here.reserved & ~found.split.triggered, "retrain", plan, None)
        cured = cure(here, *small_victim(), "origin", plan)
        made.append([weights(stage) for stage in (victim, again, cured)])
    assert made[0] == made[1]
    assert len(set(made[0])) == 3


def test_the_cure_does_depend_on_samples_that_are_not_reserved(elsewhere, found):
    row = np.flatnonzero(found.split.clean & ~found.reserved)[:1]
    one = cure(elsewhere("one"), *small_victim(), "origin", PLAN)
    other = cure(elsewhere("other", data=other_at(found.data, row)), *small_victim(), "origin", PLAN)
    assert weights(one) != weights(other)


def test_the_model_to_be_cured_stays_as_it_was(elsewhere):
    victim, spec = small_victim()
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    stage = cure(elsewhere("run"), victim, spec, "origin", PLAN)
    assert all(torch.equal(before[name], value) for name, value in victim.state_dict().items())
    cured = load(stage.path / "model.safetensors", spec)
    assert not torch.equal(cured.network.head.weight, victim.network.head.weight)


def test_the_history_of_the_cure_has_the_sizes_of_its_sets(elsewhere, found):
    history = read_table(cure(elsewhere("run"), *small_victim(), "origin", PLAN).path / "history.parquet")
    _, part, _ = learnable(found)
    assert list(history["epoch"]) == [1, 2]
    assert history["clean"][0] == part.clean.sum()
    assert history["triggered"][0] == part.triggered.sum()


@pytest.mark.parametrize("name", ["victim", "retrain"])
def test_training_uses_exactly_the_rows_that_are_kept(elsewhere, found, monkeypatch, name):
    learnt, real = [], repairing.fit

    def recorded(model, images, rows, *rest):
        learnt.append(set(rows.tolist()))
        return real(model, images, rows, *rest)

    monkeypatch.setattr(repairing, "fit", recorded)
    keep = ~found.reserved & ~found.split.triggered
    spec, stage = train_on(elsewhere("run"), keep, name, PLAN, None)
    assert learnt == [set(np.flatnonzero(keep))]
    assert (spec.num_classes, spec.input_size) == (3, (16, 16))
    assert load(stage.path / "model.safetensors", spec).training is False


def test_a_class_that_would_lose_all_its_samples_is_named_and_nothing_is_trained(elsewhere, found):
    here = elsewhere("run")
    with pytest.raises(ClipguardError, match="class 'dog' has no sample left to train on"):
        train_on(here, found.data.labels != 1, "retrain", PLAN, None)
    assert not here.run.path.exists()


def test_what_is_retrained_sees_images_as_the_given_model_does(elsewhere, found):
    spec = replace(small_victim()[1], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    keep = ~found.reserved
    made, stage = train_on(elsewhere("like"), keep, "retrain", PLAN, None, spec)
    assert made == replace(spec, architecture=PLAN.architecture)
    assert weights(stage) != weights(train_on(elsewhere("unlike"), keep, "retrain", PLAN, None)[1])


def test_a_training_that_ends_in_another_kind_of_model_leaves_nothing(elsewhere, found, monkeypatch):
    def spoilt(model, *rest):
        with torch.no_grad():
            model.network.head.weight.fill_(torch.nan)
        return history

    history = repairing.fit(*small_fit(found))
    monkeypatch.setattr(repairing, "fit", spoilt)
    here = elsewhere("run")
    with pytest.raises(ClipguardError, match="NaN or Inf weights in 'head"):
        train_on(here, ~found.reserved, "victim", PLAN, None)
    assert not here.run.path.exists()


def small_fit(found):
    loss = training.cross_entropy(found.data.labels)
    return small_victim()[0], found.data.images, np.arange(40), loss, PLAN.victim, Seed(0)


def test_a_class_that_never_had_a_sample_is_no_loss(elsewhere, found):
    data = image_set(found.data.images, found.data.labels, (*NAMES, "newt"), found.data.ids)
    spec, _ = train_on(elsewhere("run", data=data), ~found.reserved, "victim", PLAN, None)
    assert spec.num_classes == 4


class Killed(BaseException):
    """Stands for the end of a process: nothing in clipguard may catch it."""


@pytest.mark.parametrize("when", [1, 2])
def test_a_killed_cure_keeps_its_passes_and_gives_the_same_model(elsewhere, monkeypatch, when):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 10)
    # From the second pass on, each re-admits whom the model believes.
    recipe = replace(PLAN.cure.recipe, epochs=4)
    plan = replace(PLAN, cure=replace(PLAN.cure, recipe=recipe, readmit=0.34))
    whole = cure(elsewhere("whole"), *small_victim(), "origin", plan)
    here = elsewhere("killed")

    def kill(stage, done, _total):
        if (stage, done) == ("cure", when):
            raise Killed

    with pytest.raises(Killed):
        cure(here, *small_victim(), "origin", plan, kill)
    assert here.run.finished("cure") is None
    kept = {file.name for file in here.run.path.rglob("resume.part/*")}
    assert {"checkpoint.safetensors", "admitted.npy", "images.npy"} <= kept
    passes, real = [], training._pass

    def counted(*args):
        passes.append(1)
        return real(*args)

    monkeypatch.setattr(training, "_pass", counted)
    stage = cure(here, *small_victim(), "origin", plan)
    assert len(passes) == 4 - when
    assert not stage.cached
    assert weights(stage) == weights(whole)
    one, two = (read_table(of.path / "history.parquet") for of in (stage, whole))
    for column in ("loss", "clean", "triggered"):
        assert one[column].tolist() == two[column].tolist()
    assert len(set(one["clean"].tolist())) > 1
    assert not list(here.run.path.rglob("resume.part"))
    assert cure(here, *small_victim(), "origin", plan).cached


def test_a_killed_cure_whose_notes_are_damaged_begins_anew(elsewhere):
    whole = cure(elsewhere("whole"), *small_victim(), "origin", PLAN)
    here = elsewhere("killed")

    def kill(stage, done, _total):
        if (stage, done) == ("cure", 1):
            raise Killed

    with pytest.raises(Killed):
        cure(here, *small_victim(), "origin", PLAN, kill)
    (notes,) = here.run.path.rglob("admitted.npy")
    notes.write_bytes(b"torn")
    assert weights(cure(here, *small_victim(), "origin", PLAN)) == weights(whole)


@pytest.mark.parametrize("name", ["victim", "retrain"])
def test_a_killed_training_keeps_its_epochs_and_gives_the_same_model(elsewhere, found, name):
    _, whole = train_on(elsewhere("whole"), ~found.reserved, name, PLAN, None)
    here = elsewhere("killed")

    def kill(stage, done, _total):
        if (stage, done) == (name, 1):
            raise Killed

    with pytest.raises(Killed):
        train_on(here, ~found.reserved, name, PLAN, kill)
    (kept,) = here.run.path.rglob("checkpoint.safetensors")
    assert kept.parts[-3].startswith(f".{name}-")
    _, stage = train_on(here, ~found.reserved, name, PLAN, None)
    assert weights(stage) == weights(whole)
    losses = [read_table(of.path / "history.parquet")["loss"].tolist() for of in (stage, whole)]
    assert losses[0] == losses[1]
    assert not list(here.run.path.rglob("checkpoint.safetensors"))


def test_a_cure_is_done_anew_for_another_victim_or_other_settings(elsewhere):
    here = elsewhere("run")

    def cached(origin, plan) -> bool:
        stage: Stage = cure(here, *small_victim(), origin, plan)
        return stage.cached

    assert not cached("one", PLAN)
    assert cached("one", PLAN)
    assert not cached("two", PLAN)
    assert not cached("two", replace(PLAN, cure=replace(PLAN.cure, unlearn=0.5)))


def test_what_the_flagged_samples_share_is_recovered_once_and_kept(found, monkeypatch):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 10)
    (trigger,) = inverted_triggers(found, replace(PLAN, seed=11))
    white = trigger.apply(np.full((1, 16, 16, 3), 60, np.uint8))[0]
    assert (white[-4:, -4:] == 255).all()
    assert np.abs(white[:-4].astype(int) - 60).mean() < 40
    assert not found.stages["evidence"].cached
    (again,) = inverted_triggers(found, replace(PLAN, seed=11))
    assert found.stages["evidence"].cached
    assert again.label is trigger.label is None
    assert np.array_equal(again.scale, trigger.scale)
    assert np.array_equal(again.shift, trigger.shift)


def test_with_too_few_flagged_samples_there_is_no_shared_triggers(found, monkeypatch):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 200)
    assert inverted_triggers(found, replace(PLAN, seed=12)) == ()


def test_the_cure_learns_copies_that_carry_the_shared_triggers(found, monkeypatch):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 10)
    plan = replace(PLAN, seed=13)
    spec = ModelSpec(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))
    model, sizes = build(spec, Seed(0)), []
    for share in (0.0, 0.5):
        stage = cure(found, model, spec, "a victim", replace(plan, cure=replace(PLAN.cure, stamp=share)))
        sizes.append(read_table(stage.path / "history.parquet")["clean"][0])
    clean = found.split.clean & ~found.reserved
    assert sizes == [clean.sum(), clean.sum() + round(0.5 * clean.sum())]


def fed(found):
    """Return a scan that has flagged some labels of the first class for themselves, and closed it."""
    rows = np.flatnonzero((found.data.labels == 0) & ~found.reserved & ~found.split.triggered)
    planted, trusted = (np.isin(np.arange(len(found.data)), some) for some in (rows[:12], rows[12:36]))
    shown = np.zeros((len(found.data), 3), np.float32)
    shown[rows, 1] = 1.0
    part = replace(
        found.split,
        clean=(found.split.clean & (found.data.labels != 0)) | trusted,
        triggered=found.split.triggered | planted,
        doubted=np.isin(np.arange(len(found.data)), rows[36:]),
        closed=(0,),
        honest=np.array([0.5, 1.0, 1.0]),
        shown=shown,
    )
    return replace(found, split=part, mislabelled=planted)


def test_the_victim_judges_closed_classes_before_it_is_cured_and_what_became_of_them_is_published(
    elsewhere, monkeypatch
):
    here, given = fed(elsewhere("run")), []
    told = np.flatnonzero(here.mislabelled[~here.reserved])

    def seen(_model, images, rows):
        # A model that has learnt every second doubted sample with those that were flagged.
        apart = np.isin(rows, told) | (rows % 2 == 0)
        noise = np.random.default_rng(0).normal(size=(len(images), 3))[rows]
        return noise + 9 * (apart & ~learnable(here)[1].clean[rows])[:, None]

    monkeypatch.setattr(repairing, "activations", seen)
    monkeypatch.setattr(
        repairing, "unlearn", lambda *args, **more: given.append(args[2]) or unlearn(*args, **more)
    )
    model, spec = small_victim()
    cure(here, model, spec, "a victim", PLAN)
    data, part, _ = learnable(here)
    judged = separated_by_features(
        part,
        data.labels,
        partial(seen, model, data.images),
        PLAN.activations,
        Seed(PLAN.seed).child("activations"),
    )
    assert (judged.triggered & ~part.triggered).any()
    assert (judged.clean & ~part.clean).any()
    n = len(data)
    for name in ("clean", "triggered", "doubted"):
        assert np.array_equal(getattr(given[0], name)[:n], getattr(judged, name)), name
    assert np.array_equal(given[0].honest, judged.honest)
    table = read_table(here.run.path / "planted.parquet")
    closed = np.flatnonzero(data.labels == 0)
    assert table["id"].tolist() == [data.ids[row] for row in closed]
    assert set(table["label_name"]) == {NAMES[0]}
    assert np.array_equal(table["is_planted"], judged.triggered[closed])
    assert np.array_equal(table["is_trusted"], judged.clean[closed])


def test_what_the_victim_said_is_kept_and_asked_anew_of_another_one_or_with_other_settings(elsewhere):
    here = fed(elsewhere("run"))

    def cached(origin, plan) -> bool:
        cure(here, *small_victim(), origin, plan)
        return here.stages["activations"].cached

    assert not cached("one", PLAN)
    assert cached("one", PLAN)
    assert not cached("two", PLAN)
    assert not cached("two", replace(PLAN, activations=replace(PLAN.activations, sure=9.0)))
    _, spec = small_victim()
    cure(here, small_victim()[0], replace(spec, mean=(0.1, 0.2, 0.3)), "one", PLAN)
    assert not here.stages["activations"].cached


def test_without_a_closed_class_or_without_a_look_the_victim_is_not_asked(elsewhere):
    open_only, closed = elsewhere("open"), fed(elsewhere("closed"))
    cure(open_only, *small_victim(), "a victim", PLAN)
    never = replace(PLAN, activations=replace(PLAN.activations, looks=0))
    cure(closed, *small_victim(), "a victim", never)
    for here in (open_only, closed):
        assert "activations" not in here.stages
        assert not (here.run.path / "planted.parquet").exists()
