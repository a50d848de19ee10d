"""clipguard.pipeline: stages in order, each computed once; what is reserved is never learnt from."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.errors import ClipguardError
from clipguard.guide import ClipGuide
from clipguard.models import ModelSpec, build, load
from clipguard.pipeline import (
    Plan,
    cure,
    curing,
    learnable,
    reserved_rows,
    scan,
    scanning,
    shared_trigger,
    thumbnail_size,
    train_on,
)
from clipguard.seeds import Seed
from clipguard.sources import ImageSource
from clipguard.store import Stage, read_array, read_table
from clipguard.types import image_set
from tiny_runs import NAMES, PLAN, folder_of, other_at, poisoned_set, source_of

GUIDE = ClipGuide("mini")


def scanned(path, data, plan=PLAN, reserve=True, report=None, guide=GUIDE):
    source = source_of(data)
    return scan(source, guide, folder_of(path, source), plan, reserve, report)


@pytest.fixture(scope="module")
def poisoned():
    return poisoned_set()


@pytest.fixture(scope="module")
def found(poisoned, tmp_path_factory):
    return scanned(tmp_path_factory.mktemp("scan") / "run", poisoned[0])


@pytest.fixture
def elsewhere(found, tmp_path):
    """Return a function that gives the same scan a run folder of its own, where nothing is cached."""

    def moved(name, **changes):
        run = folder_of(tmp_path / name, source_of(found.data))
        return replace(found, run=run, stages=dict(found.stages), **changes)

    return moved


def weights(stage):
    return (stage.path / "model.safetensors").read_bytes()


@hypothesis_settings(max_examples=50)
@given(st.integers(0, 3000), st.integers(0, 2**32))
def test_a_random_twentieth_is_reserved_and_the_seed_repeats_it(n, seed):
    mask = reserved_rows(n, Seed(seed))
    assert mask.shape == (n,)
    assert mask.sum() == round(n / 20)
    assert np.array_equal(mask, reserved_rows(n, Seed(seed)))


def test_another_seed_reserves_others():
    assert not np.array_equal(reserved_rows(1000, Seed(0)), reserved_rows(1000, Seed(1)))


@pytest.mark.parametrize(
    ("size", "shown"), [((32, 32), (32, 32)), ((128, 96), (64, 48)), ((300, 30), (64, 8)), ((4, 6), (8, 8))]
)
def test_small_nets_see_the_commonest_size_within_its_bounds(size, shown):
    images = np.zeros((4, *size, 3), np.uint8)
    images[::2] = 200
    assert thumbnail_size(ImageSource.open((images, np.arange(4) % 2), classes=NAMES[:2])) == shown


def test_a_scan_finds_the_poison(found, poisoned):
    truth = poisoned[1]
    part = found.split
    assert part.triggered[truth].mean() > 0.7
    assert part.triggered[~truth].mean() < 0.1
    assert part.clean[truth].mean() < 0.2
    assert not (part.clean & part.triggered).any()


def test_a_row_a_sample_is_written_and_ranked_by_suspicion(found):
    rows = read_table(found.run.path / "samples.parquet")
    assert list(rows["id"]) == list(found.data.ids)
    assert sorted(rows["rank"]) == list(range(1, 241))
    by_rank = np.argsort(rows["rank"])
    assert (np.diff(rows["suspicion_score"][by_rank]) <= 0).all()
    assert list(rows["label_name"]) == [NAMES[label] for label in found.data.labels]
    for name, value in asdict(found.entropy).items():
        assert np.array_equal(rows[name], value)
    for name in ("clean", "triggered"):
        assert np.array_equal(rows[f"is_{name}"], getattr(found.split, name))
    assert np.array_equal(rows["is_reserved"], found.reserved)
    assert found.reserved.sum() == 12


@pytest.mark.parametrize("seed", range(3))
def test_ties_are_ranked_by_name_whatever_the_order_of_the_rows(elsewhere, found, seed):
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(found.data))
    # Five steps of suspicion only, so that most samples tie.
    suspicion = np.floor(5 * found.split.suspicion)
    ranks = []
    for name, rows in (("straight", np.arange(len(order))), ("shuffled", order)):
        shuffled = elsewhere(
            name,
            data=found.data.take(rows),
            guide=replace(found.guide, logits=found.guide.logits[rows]),
            entropy=replace(found.entropy, **{k: v[rows] for k, v in asdict(found.entropy).items()}),
            split=replace(
                found.split,
                clean=found.split.clean[rows],
                triggered=found.split.triggered[rows],
                suspicion=suspicion[rows],
            ),
            reserved=found.reserved[rows],
        )
        scanning._write_samples(shuffled, suspicion[rows], PLAN)
        table = read_table(shuffled.run.path / "samples.parquet")
        ranks.append(dict(zip(table["id"], table["rank"], strict=True)))
    assert ranks[0] == ranks[1]


def test_a_second_scan_reads_everything_back(found, poisoned):
    heard = []
    again = scanned(found.run.path, poisoned[0], report=lambda *step: heard.append(step))
    assert {name: stage.cached for name, stage in again.stages.items()} == dict.fromkeys(found.stages, True)
    assert {name: stage.key for name, stage in again.stages.items()} == {
        name: stage.key for name, stage in found.stages.items()
    }
    assert np.array_equal(again.split.suspicion, found.split.suspicion)
    assert heard == []


CHANGES = {
    "nothing": (PLAN, {"read", "suspect", "detect", "labels", "samples"}),
    # Its second look learns from what the first one finds, by these thresholds.
    "detector": (replace(PLAN, detector=replace(PLAN.detector, clean=0.4)), {"read", "suspect", "labels"}),
    "when labels look planted": (
        replace(PLAN, noise=replace(PLAN.noise, surplus=5.0)),
        {"read", "suspect", "detect", "labels"},
    ),
    "a threshold of the split": (
        replace(PLAN, rule=replace(PLAN.rule, triggered=0.12)),
        {"read", "suspect", "labels"},
    ),
    "the suspicious model": (replace(PLAN, suspect=replace(PLAN.suspect, runs=2)), {"read", "labels"}),
    "the seed": (replace(PLAN, seed=1), {"read"}),
    "the image size": (replace(PLAN, size=(12, 12)), set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_recomputes_what_stands_on_it_and_nothing_else(found, poisoned, tmp_path, change):
    shutil.copytree(found.run.path, tmp_path / "run")
    plan, kept = CHANGES[change]
    again = scanned(tmp_path / "run", poisoned[0], plan)
    assert {name for name, stage in again.stages.items() if stage.cached} == kept


def test_other_prompts_leave_the_pass_over_the_images_as_it_is(found, poisoned, tmp_path):
    shutil.copytree(found.run.path, tmp_path / "run")
    guide = ClipGuide("mini", templates=("a drawing of a {}",))
    again = scanned(tmp_path / "run", poisoned[0], guide=guide)
    assert {name for name, stage in again.stages.items() if stage.cached} == {"read", "suspect", "labels"}


def test_a_class_that_the_detector_leaves_without_clean_samples_is_named(found, poisoned, tmp_path):
    shutil.copytree(found.run.path, tmp_path / "run")
    assert found.split.starved == ()
    doubtful = replace(PLAN, detector=replace(PLAN.detector, clean=0.0))
    assert scanned(tmp_path / "run", poisoned[0], doubtful).split.starved == NAMES


@pytest.mark.parametrize("triggered", [PLAN.detector.triggered, 1.0])
def test_progress_counts_every_stage_to_its_end(poisoned, tmp_path, triggered):
    heard: dict[str, list[tuple[int, int]]] = {}
    plan, steps_of = replace(PLAN, detector=replace(PLAN.detector, triggered=triggered)), heard.setdefault
    scanned(tmp_path / "run", poisoned[0], plan, report=lambda name, *step: steps_of(name, []).append(step))
    assert list(heard) == ["read", "suspect", "detect"]
    for steps in heard.values():
        done, total = zip(*steps, strict=True)
        assert list(done) == sorted(done)
        assert done[-1] == total[-1]
        assert len(set(total)) == 1


def test_the_suspicious_model_has_not_learnt_what_is_reserved(found, poisoned, tmp_path):
    other = scanned(tmp_path / "run", other_at(poisoned[0], found.reserved))
    assert np.array_equal(other.reserved, found.reserved)
    one, two = (read_array(part.stages["suspect"].path / "logits.npy") for part in (found, other))
    assert np.array_equal(one[~found.reserved], two[~found.reserved])
    assert not np.array_equal(one[found.reserved], two[found.reserved])


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
    learnt, real = [], curing.fit

    def recorded(model, images, rows, *rest):
        learnt.append(set(rows.tolist()))
        return real(model, images, rows, *rest)

    monkeypatch.setattr(curing, "fit", recorded)
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


def test_a_class_that_never_had_a_sample_is_no_loss(elsewhere, found):
    data = image_set(found.data.images, found.data.labels, (*NAMES, "newt"), found.data.ids)
    spec, _ = train_on(elsewhere("run", data=data), ~found.reserved, "victim", PLAN, None)
    assert spec.num_classes == 4


class Killed(BaseException):
    """Stands for the end of a process: nothing in clipguard may catch it."""


def test_a_killed_cure_is_done_again_and_gives_the_same_model(elsewhere):
    whole = cure(elsewhere("whole"), *small_victim(), "origin", PLAN)
    here = elsewhere("killed")

    def kill(stage, done, _total):
        if (stage, done) == ("cure", 1):
            raise Killed

    with pytest.raises(Killed):
        cure(here, *small_victim(), "origin", PLAN, kill)
    assert here.run.finished("cure") is None
    stage = cure(here, *small_victim(), "origin", PLAN)
    assert not stage.cached
    assert weights(stage) == weights(whole)
    assert cure(here, *small_victim(), "origin", PLAN).cached


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


def test_a_plan_can_be_made_without_arguments_and_compared():
    assert Plan() == Plan()
    assert Plan(by="retrain") != Plan()
    assert Path(Plan().architecture).name == Plan().architecture


def test_what_the_flagged_samples_share_is_recovered_once_and_kept(found, monkeypatch):
    monkeypatch.setattr("clipguard.evidence.FEWEST", 10)
    trigger = shared_trigger(found, replace(PLAN, seed=11))
    assert trigger is not None
    white = trigger.put(np.full((1, 16, 16, 3), 60, np.uint8))[0]
    assert (white[-4:, -4:] == 255).all()
    assert np.abs(white[:-4].astype(int) - 60).mean() < 40
    kept = np.load(found.stages["evidence"].path / "trigger.npy")
    assert np.array_equal(kept, np.stack([trigger.scale, trigger.shift]))
    assert not found.stages["evidence"].cached
    again = shared_trigger(found, replace(PLAN, seed=11))
    assert found.stages["evidence"].cached
    assert again is not None
    assert np.array_equal(again.shift, trigger.shift)


def test_with_too_few_flagged_samples_there_is_no_shared_trigger(found, monkeypatch):
    monkeypatch.setattr("clipguard.evidence.FEWEST", 200)
    assert shared_trigger(found, replace(PLAN, seed=12)) is None


def test_the_cure_learns_copies_that_carry_the_shared_trigger(found, monkeypatch):
    monkeypatch.setattr("clipguard.evidence.FEWEST", 10)
    plan = replace(PLAN, seed=13)
    spec = ModelSpec(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))
    model, sizes = build(spec, Seed(0)), []
    for share in (0.0, 0.5):
        stage = cure(found, model, spec, "a victim", replace(plan, cure=replace(PLAN.cure, stamp=share)))
        sizes.append(read_table(stage.path / "history.parquet")["clean"][0])
    clean = found.split.clean & ~found.reserved
    assert sizes == [clean.sum(), clean.sum() + round(0.5 * clean.sum())]
