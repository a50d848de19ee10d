"""ASD: where it begins, how its pool is split, what its copy learns, and that the attack takes no hold."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.defenses.clipguard import unfitted
from clipguard.defenses.rivals import asd
from clipguard.defenses.rivals.asd import AdaptiveSplitting, last_blocks, lowest_of_each_class
from clipguard.defenses.rivals.clean_seeds import JoinedRows, SeededSet, seeded_set
from clipguard.defenses.rivals.mixmatch import MixMatchConfig
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import image_set
from test_defenses import DATA, case  # noqa: F401  # a fixture
from tiny_rivals import accuracy_and_attack_success, case_of, faint_set
from tiny_runs import CONFIG

GIVEN, _ = faint_set(100, share=0.0, seed=5, contrast=60)
SMALL = MixMatchConfig(batch_size=32)


def test_seeds_of_a_scan_are_ten_of_each_class_that_it_trusts(case):  # noqa: F811
    defender, source = unfitted(case, CONFIG)
    trusted = np.flatnonzero(defender.scan(source).partition_.clean)
    seeded = seeded_set(case, "split", 10, CONFIG)
    assert set(seeded.seeds) <= set(trusted)
    assert np.bincount(DATA.labels[seeded.seeds]).tolist() == [10] * 3
    assert seeded.untrusted == len(seeded.labels) == len(DATA)
    assert set(seeded.seconds) == set(defender.stages_)
    every = seeded_set(case, "split", 10**6, CONFIG)
    assert np.array_equal(every.seeds, trusted)


def test_given_seeds_stand_behind_the_data_and_fewer_where_a_class_has_fewer(tmp_path):
    data, _ = faint_set(60)
    few = GIVEN.take(np.concatenate([np.arange(4), np.flatnonzero(GIVEN.labels == 2)]))
    seeded = seeded_set(replace(case_of(data, tmp_path), clean=few), "given", 10, DefenseConfig())
    counts = [min(10, int((few.labels == label).sum())) for label in range(3)]
    assert np.bincount(seeded.labels[seeded.seeds]).tolist() == counts
    assert min(seeded.seeds) == seeded.untrusted == 60
    assert seeded.images.shape == (60 + sum(counts), 16, 16, 3)
    known = {(image.tobytes(), label) for image, label in zip(few.pixels, few.labels, strict=True)}
    taken = zip(seeded.images[seeded.seeds], seeded.labels[seeded.seeds], strict=True)
    assert {(image.tobytes(), label) for image, label in taken} <= known


def test_what_cannot_be_begun_from_is_refused(tmp_path):
    bare = case_of(faint_set(60)[0], tmp_path)
    large = image_set(np.zeros((3, 20, 20, 3), np.uint8), np.arange(3), GIVEN.class_names)
    for clean, message in (
        (None, "no clean samples were given"),
        (large, "another size than the data"),
        (GIVEN.take(np.zeros(0, np.int64)), "no clean sample is there to begin from"),
    ):
        with pytest.raises(ClipguardError, match=message):
            seeded_set(replace(bare, clean=clean), "given", 10, DefenseConfig())


def test_joined_rows_are_those_of_both():
    first, second = np.arange(12).reshape(6, 2), np.arange(100, 108).reshape(4, 2)
    both, joined = np.concatenate([first, second]), JoinedRows(first=first, second=second)
    for rows in (slice(0, 10), slice(4, 8), slice(7, 20), np.array([9, 0, 6, 6, 2]), np.zeros(0, np.int64)):
        assert np.array_equal(joined[rows], both[rows])
    assert joined.shape == both.shape


def test_each_class_lends_what_has_its_lowest_losses_beside_the_seeds():
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1])
    losses = np.array([0.0, 5, 4, 3, 2, 1, 9, 8, 7, 6])
    seeded = SeededSet(
        images=np.zeros((12, 1, 1, 3), np.uint8),
        labels=labels,
        untrusted=10,
        seeds=np.array([0, 11]),
        seconds={},
    )
    assert lowest_of_each_class(losses, seeded, 1).tolist() == [0, 5, 9, 11]
    # At most half of a class.
    assert lowest_of_each_class(losses, seeded, 9).tolist() == [0, 3, 4, 5, 8, 9, 11]


@pytest.mark.parametrize(
    ("architecture", "first"),
    [
        ("preactresnet18-4", "stages.4."),
        ("resnet18", "layer3.0."),
        ("vit_tiny_patch16_224", "blocks.6."),
        ("regnetx_002", "s3."),
        ("densenet121", "features.transition2."),
        ("shallow-4", "features.4"),
    ],
)
def test_the_copy_learns_in_the_second_half_of_its_blocks_and_behind(architecture, first):
    network = build(
        ModelSpec.sized(architecture=architecture, num_classes=3, input_size=(32, 32)), Seed(0)
    ).network
    learning = {id(weight) for module in last_blocks(network) for weight in module.parameters()}
    names = [name for name, weight in network.named_parameters() if id(weight) in learning]
    every = [name for name, _ in network.named_parameters()]
    assert names[0].startswith(first)
    assert names == every[every.index(names[0]) :]


def test_the_attack_takes_no_hold_and_the_pool_is_split_as_published(monkeypatch, tmp_path):
    data, poisoned = faint_set(contrast=60)
    pools, real = [], AdaptiveSplitting._pool

    def recorded(*arguments):
        pools.append(real(*arguments))
        return pools[-1]

    monkeypatch.setattr(AdaptiveSplitting, "_pool", recorded)
    tiny = replace(case_of(data, tmp_path), clean=GIVEN)
    assert accuracy_and_attack_success(tiny.victim, 60)[1] > 0.9
    defense = AdaptiveSplitting(origin="given", passes=12, steps=15, mixmatch=SMALL)
    repaired = defense.defend(tiny)
    # Half of class 0 is more than it can ever lend; halves of the others are not.
    halves = [int((data.labels == label).sum()) // 2 for label in range(3)]
    growth = [sum(min(20 * number, half) for half in halves) for number in range(6)]
    assert [len(pool) for pool in pools] == [*(30 + one for one in growth), *[240] * 6]
    assert max(pools[6]) < len(data)
    assert poisoned[pools[-1]].sum() <= 2
    assert repaired.notes == {"schedule_share": 1.0, "seeds": 30, "pool": 240}
    accuracy, attack_success = accuracy_and_attack_success(repaired.model, 60)
    assert accuracy > 0.9
    assert attack_success < 0.1


@pytest.mark.parametrize(
    ("allowed", "passes", "steps"),
    [
        (None, 120, 1000),
        (1e9, 120, 1000),
        (60 * 101.0, 60, 1000),
        # 12 passes are scored in 12 seconds; 240 are left for steps of a tenth.
        (252.0, 12, 200),
        (1.0, 12, 1),
    ],
)
def test_a_budget_cuts_passes_and_then_the_steps_that_scoring_leaves(
    monkeypatch, tmp_path, allowed, passes, steps
):
    monkeypatch.setattr(asd, "inference_seconds", lambda *_: 1.0)
    monkeypatch.setattr(asd, "training_seconds", lambda *_: 0.0)
    monkeypatch.setattr(AdaptiveSplitting, "_step_seconds", lambda *_: 0.1)
    tiny = case_of(faint_set(60)[0], tmp_path)
    schedule = AdaptiveSplitting(steps=1000)._schedule(tiny, build(tiny.spec, Seed(0)), allowed)
    assert (schedule.passes, schedule.steps) == (passes, steps)


def test_what_is_measured_is_a_step_and_the_model_stays_as_it_is(tmp_path):
    tiny = case_of(faint_set(60)[0], tmp_path)
    model = build(tiny.spec, Seed(0))
    before = [value.clone() for value in model.state_dict().values()]
    schedule = AdaptiveSplitting(mixmatch=SMALL)._schedule(tiny, model, 1e-6)
    assert (schedule.passes, schedule.steps, schedule.part) == (12, 1, 0.0)
    assert all((one == other).all() for one, other in zip(before, model.state_dict().values(), strict=True))
