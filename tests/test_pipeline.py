"""pipeline: stages in order, each computed once; what is reserved is never learnt from."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.clip.zero_shot import ClipGuide
from clipguard.data import ImageSource
from clipguard.pipeline import (
    DefenseConfig,
    held_out_rows,
    scanning,
    thumbnail_size,
)
from clipguard.runs import read_array, read_table
from clipguard.seeds import Seed
from tiny_runs import NAMES, PLAN, moved, other_at, poisoned_set, scanned

GUIDE = ClipGuide("mini")


@pytest.fixture(scope="module")
def poisoned():
    return poisoned_set()


@pytest.fixture(scope="module")
def found(poisoned, tmp_path_factory):
    return scanned(tmp_path_factory.mktemp("scan") / "run", poisoned[0])


@hypothesis_settings(max_examples=50)
@given(st.integers(0, 3000), st.integers(0, 2**32))
def test_a_random_twentieth_is_reserved_and_the_seed_repeats_it(n, seed):
    labels = np.arange(n) % 3
    mask = held_out_rows(labels, Seed(seed))
    assert mask.shape == (n,)
    assert mask.sum() == round(n / 20)
    assert np.array_equal(mask, held_out_rows(labels, Seed(seed)))


@hypothesis_settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=30), st.integers(0, 2**32))
def test_no_class_loses_most_of_its_samples_to_the_reserve(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    mask = held_out_rows(labels, Seed(seed))
    lost = np.bincount(labels[mask], minlength=len(sizes))
    assert (2 * lost <= np.array(sizes)).all()
    # Whoever is large enough gives what was drawn.
    large = np.array(sizes) >= 2 * max(1, round(len(labels) / 20))
    drawn = np.zeros(len(labels), bool)
    drawn[Seed(seed).numpy().choice(len(labels), round(len(labels) / 20), replace=False)] = True
    assert np.array_equal(mask[large[labels]], drawn[large[labels]])


def test_another_seed_reserves_others():
    labels = np.arange(1000) % 3
    assert not np.array_equal(held_out_rows(labels, Seed(0)), held_out_rows(labels, Seed(1)))


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
def test_ties_are_ranked_by_name_whatever_the_order_of_the_rows(tmp_path, found, seed):
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(found.data))
    # Five steps of suspicion only, so that most samples tie.
    suspicion = np.floor(5 * found.split.suspicion)
    ranks = []
    for name, rows in (("straight", np.arange(len(order))), ("shuffled", order)):
        shuffled = moved(
            found,
            tmp_path / name,
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
        replace(PLAN, noise=replace(PLAN.noise, label_flow_z=5.0)),
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


def test_a_plan_can_be_made_without_arguments_and_compared():
    assert DefenseConfig() == DefenseConfig()
    assert DefenseConfig(by="retrain") != DefenseConfig()
    assert Path(DefenseConfig().architecture).name == DefenseConfig().architecture


def test_labels_planted_without_a_mark_are_looked_at_again_closed_and_shown_for_what_they_are(tmp_path):
    clean, _ = poisoned_set(600, 0.0)
    rows = np.random.default_rng(3).choice(np.flatnonzero(clean.labels != 0), 60, replace=False)
    planted = np.isin(np.arange(600), rows)
    data = replace(clean, labels=np.where(planted, 0, clean.labels))
    # The guide, which knows none of these classes, disbelieves no label, and the probe has few to learn from.
    noise = replace(PLAN.noise, unbelieved=0.1, implausible=3.0, sure=3.0)
    quick = replace(PLAN, noise=noise)
    found = scanned(tmp_path / "run", data, plan=quick)
    assert found.mislabelled[planted].mean() > 0.6
    assert found.mislabelled[~planted].mean() < 0.02
    assert found.split.closed == (0,)
    assert found.split.shown is not None
    shown = found.split.shown[found.mislabelled & planted].argmax(1)
    assert (shown == clean.labels[found.mislabelled & planted]).mean() > 0.9
    assert not found.split.shown[data.labels != 0].any()
    again = scanned(tmp_path / "run", data, plan=quick)
    assert again.stages["reprobe"].cached
    assert np.array_equal(again.split.shown, found.split.shown)
    longer = scanned(tmp_path / "run", data, plan=replace(quick, noise=replace(noise, looks=2)))
    assert not longer.stages["reprobe"].cached
