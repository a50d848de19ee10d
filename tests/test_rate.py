"""mitigation.rate and mitigation.gauge: how a repair is fitted to a net, and what it costs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.compute.batch_norm import with_own_statistics
from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.mitigation.gauge import (
    MOST_SPARED,
    NO_EFFECT,
    Gauge,
    GaugeReading,
    cost,
    gauge_of,
    has_done_its_work,
    spared_rows,
)
from clipguard.mitigation.rate import KEPT, LADDER, fitting_optimizer, suited_recipe
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import State, partition_of
from tiny_runs import add_trigger, poisoned_set

RECIPE = Recipe(epochs=3, lr=0.02, batch_size=32, crop=0.0, flip=False)
SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))


def square(label=None):
    scale, shift = np.ones((16, 16, 3), np.float32), np.zeros((16, 16, 3), np.float32)
    scale[-4:, -4:], shift[-4:, -4:] = 0, 255
    return AffineTrigger(scale=scale, shift=shift, label=label)


def reading(right, followed=None):
    return GaugeReading(right=np.array(right, bool), loss=0.1, followed=followed)


@pytest.fixture(scope="module")
def case():
    """Return poisoned data, their partition, and a net that has learned both contents and trigger."""
    data, poisoned = poisoned_set(600)
    partition = partition_of(
        np.where(poisoned, State.TRIGGER, State.CLEAN).astype(np.uint8), poisoned + 0.0, 3
    )
    model = build(SPEC, Seed(0))
    recipe = replace(RECIPE, epochs=6, lr=0.05)
    fit(model, data.images, np.arange(600), cross_entropy(data.labels.copy()), recipe, Seed(0))
    return data, partition, model


def test_a_tenth_of_each_class_is_spared_at_most_a_thousand_and_none_of_a_tiny_class():
    labels = np.repeat([0, 1, 2], [500, 200, 9])
    clean = np.arange(709) % 5 > 0
    rows = spared_rows(labels, clean, Seed(0))
    assert np.all(np.diff(rows) > 0)
    assert clean[rows].all()
    assert np.bincount(labels[rows], minlength=3).tolist() == [40, 16, 0]
    many = np.zeros(30_000, np.int64)
    assert len(spared_rows(many, np.ones(30_000, bool), Seed(0))) == MOST_SPARED
    assert len(spared_rows(labels, np.zeros(709, bool), Seed(0))) == 0


def test_the_gauge_reads_accuracy_and_who_follows_the_trigger(case):
    data, partition, model = case
    rows = spared_rows(data.labels, partition.clean, Seed(0))
    gauge = gauge_of(data, partition, [square()], rows)
    # Flagged samples carry label 0, so that there is where the trigger leads.
    assert set(gauge.targets) == {0}
    others = data.images[rows][data.labels[rows] != 0]
    assert np.array_equal(gauge.triggered, add_trigger(others))
    read = gauge.read(model)
    assert read.accuracy > 0.9
    assert read.followed is not None
    assert read.followed > 0.8
    assert gauge_of(data, partition, [], rows).read(model).followed is None
    assert set(gauge_of(data, partition, [square(label=2)], rows).targets) == {2}


def test_no_effect_is_measured_where_the_flagged_labels_are_of_every_class(case):
    data, partition, model = case
    rows = spared_rows(data.labels, partition.clean, Seed(0))
    spread = replace(data, labels=np.arange(600) % 3)
    assert gauge_of(spread, partition, [square()], rows).read(model).followed is None


@pytest.mark.parametrize(
    ("before", "now", "done"),
    [
        (reading([1, 1, 0, 1], 0.9), reading([1, 1, 1, 0], NO_EFFECT), True),
        (reading([1, 1, 0, 1], 0.9), reading([1, 1, 1, 0], 0.02), False),
        (reading([1, 1, 0, 1], 0.9), reading([1, 1, 0, 0], 0.0), False),
        # Of what never took effect nothing can be said.
        (reading([1, 1, 0, 1], 0.1), reading([1, 1, 1, 1], 0.0), False),
        (reading([1, 1, 0, 1]), reading([1, 1, 1, 1]), False),
    ],
)
def test_a_repair_is_done_when_the_trigger_has_no_effect_and_no_accuracy_is_lost(before, now, done):
    assert has_done_its_work(before, now) is done


def test_the_cost_is_the_lost_share_and_its_error_is_of_what_changed():
    lost, error = cost(reading([1, 1, 1, 1, 0]), reading([0, 0, 1, 1, 1]))
    assert lost == pytest.approx(1 / 5)
    assert error == pytest.approx(np.sqrt(3) / 5)


def test_a_net_without_batchnorm_is_repaired_by_adamw_and_the_papers_optimiser_stays():
    vit = build(replace(SPEC, architecture="test_vit"), Seed(0))
    assert fitting_optimizer(vit, RECIPE).optimizer == "adamw"
    assert fitting_optimizer(build(SPEC, Seed(0)), RECIPE) == RECIPE
    plain = replace(RECIPE, optimizer="plain-sgd")
    assert fitting_optimizer(vit, plain) == plain


def tried(case, recipe, gauge=None):
    data, partition, model = case
    rows = spared_rows(data.labels, partition.clean, Seed(0))
    gauge, before = gauge or gauge_of(data, partition, [], rows), copy.deepcopy(model.state_dict())
    taught = np.setdiff1d(np.arange(600), rows)
    loss = cross_entropy(data.labels.copy())
    found = suited_recipe(model, data.images, taught, loss, recipe, gauge, Seed(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return found


def rates_of(trials):
    return [round(one.rate / 0.02, 3) for one in trials]


def test_the_highest_rate_without_damage_is_chosen_and_the_model_stays_as_it_is(case):
    calm, few = tried(case, replace(RECIPE, lr=0.001))
    assert calm.lr == 0.001
    assert [one.rate for one in few] == [0.001]
    # Much faster, the net is damaged.
    slower, trials = tried(case, replace(RECIPE, lr=1000.0))
    assert slower.lr < 1000
    assert all(one.accuracy < KEPT for one in trials[:-1])
    assert [one.rate for one in trials] == [1000.0 * share for share in LADDER[: len(trials)]]
    assert trials == tried(case, replace(RECIPE, lr=1000.0))[1]


class Scripted(Gauge):
    """Says of the victim, then of each trial, what it was told to."""

    def read(self, model):
        return script.pop(0)


script: list[GaugeReading] = []
WELL, ILL = [1] * 10, [1] * 6 + [0] * 4


@pytest.mark.parametrize(
    ("said", "tested"),
    [
        ([WELL, WELL], [1.0]),
        ([WELL, [1] * 7 + [0] * 3], [1.0]),
        ([WELL, ILL, WELL], [1.0, 0.5]),
        ([WELL, ILL, ILL, ILL, ILL], [1.0, 0.5, 0.25, 0.1]),
        # Of what a poor model has right, too, 0.7 must stay.
        ([[1] * 5 + [0] * 5, [1] * 4 + [0] * 6], [1.0]),
        ([[1] * 5 + [0] * 5, [1] * 3 + [0] * 7, ILL], [1.0, 0.5]),
    ],
)
def test_rates_are_tried_from_above_until_one_keeps_the_accuracy(case, said, tested):
    script[:] = [reading(right) for right in said]
    none = case[0].images[:0], case[0].labels[:0]
    gauge = Scripted(images=case[0].images[:1], labels=case[0].labels[:1], triggered=none[0], targets=none[1])
    recipe, trials = tried(case, RECIPE, gauge)
    assert rates_of(trials) == tested
    assert recipe.lr == pytest.approx(tested[-1] * RECIPE.lr)


def test_a_copy_gets_the_statistics_of_its_images_and_the_model_keeps_its_own(case):
    data, _, model = case
    before = copy.deepcopy(model.state_dict())
    # Images that differ: sums of one value over and over round to one side.
    bright = 200 + data.images[:300] // 5
    anew = with_own_statistics(model, bright, np.arange(300))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not anew.training
    first, own = model.network.stages[0].bn1, anew.network.stages[0].bn1
    assert own.momentum == first.momentum
    with torch.no_grad():
        inputs = model.network.stem(model.scaled(torch.from_numpy(bright).permute(0, 3, 1, 2)))
    assert torch.allclose(own.running_mean, inputs.mean((0, 2, 3)), atol=1e-3)
    assert not torch.allclose(first.running_mean, own.running_mean, atol=0.1)
    assert torch.equal(own.weight, first.weight)


def test_without_samples_to_measure_on_the_recipe_stays(case):
    data, partition, model = case
    gauge = gauge_of(data, partition, [], np.zeros(0, np.int64))
    loss = cross_entropy(data.labels.copy())
    assert suited_recipe(model, data.images, np.arange(600), loss, RECIPE, gauge, Seed(1)) == (RECIPE, [])
