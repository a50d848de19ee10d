"""lab.benchmark.rates, .longtail and .nets: the worst of several triggers, class sizes, shapes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clipguard.lab.attacks import attack_named
from clipguard.lab.benchmark.longtail import long_tailed
from clipguard.lab.benchmark.rates import (
    attack_succeeded,
    mean_row,
    of_target,
    paired,
    rates_of,
    triggered_tests,
)
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.types import Preprocessing, image_set

NAMES = ("a", "b", "c")


class Corner(nn.Module):
    """Predicts class 1, and class 0 where the last pixel is white."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        white = (x[:, :, -1, -1].amin(1) > 0.9).float()
        return torch.stack([2 * white, torch.ones(len(x)), torch.zeros(len(x))], 1)


def model() -> Normalized:
    plain = Preprocessing(size=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    spec = ModelSpec(num_classes=3, preprocessing=plain)
    return Normalized(Corner(), spec).eval()


def test_rates_are_those_counted_by_hand():
    test = image_set(np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1, 1, 2]), NAMES)
    rates = rates_of(model(), test, triggered_tests(attack_named("badnets", rate=0.1), test))
    assert rates["accuracy"] == 0.5
    assert rates["class_recalls"] == [0.0, 1.0, 0.0]
    assert (rates["attack_success"], rates["robust_accuracy"], rates["target_recall"]) == (1.0, 0.0, 0.0)
    assert rates["attack_successes"] == [1.0]
    assert (rates["n"], rates["attack_n"]) == (6, 4)


def test_pairs_are_counted_by_hand():
    before, after = np.array([1, 1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 1, 0, 1], bool)
    target = np.array([0, 0, 1, 1, 0, 1], bool)
    counts = {"n": 6, "lost": 2, "gained": 1, "target_n": 3, "target_lost": 1, "target_gained": 1}
    assert paired(before, after, target) == counts


def test_the_images_of_the_target_are_those_of_all_targets():
    test = image_set(np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1, 1, 2]), NAMES)
    one = triggered_tests(attack_named("badnets", rate=0.1, target=1), test)
    assert of_target(test.labels, one).tolist() == [False, False, True, True, True, False]
    two = triggered_tests(attack_named("together:badnets+sig", rate=0.1), test)
    none = triggered_tests(attack_named("none"), test)
    assert of_target(test.labels, two).tolist() == [True, True, True, True, True, False]
    # FLIP's trigger leaves images outside its source class at their own.
    flip = ((None, np.array([1, 1, 1, 1, 1, 2])),)
    assert of_target(test.labels, flip).tolist() == [False, False, True, True, True, False]
    assert not of_target(test.labels, none).any()


def test_the_reference_is_the_mean_of_its_trainings():
    first = {"accuracy": 0.7, "attack_success": 0.02, "class_recalls": [0.5, None], "n": 9, "s": {"t": 1.0}}
    second = {"accuracy": 0.8, "attack_success": 0.04, "class_recalls": [0.7, None], "n": 9, "s": {"t": 3.0}}
    row = mean_row([first, second])
    assert row["accuracy"] == pytest.approx(0.75)
    assert row["class_recalls"] == [pytest.approx(0.6), None]
    assert (row["attack_success_range"], row["trainings"], row["n"]) == ([0.02, 0.04], 2, 9)
    assert row["s"] == {"t": 2.0}


def test_of_two_triggers_the_worse_one_counts_and_both_are_given():
    test = image_set(np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1, 1, 2]), NAMES)
    tests = triggered_tests(attack_named("together:badnets+sig", rate=0.1), test)
    assert len(tests) == 2
    rates = rates_of(model(), test, tests)
    # The sinusoid changes nothing for this model: it predicts 1, the second target, for the other classes.
    assert rates["attack_successes"] == [1.0, 1.0]
    swapped = triggered_tests(attack_named("together:sig+badnets", rate=0.1), test)
    rates = rates_of(model(), test, swapped)
    assert rates["attack_successes"] == [0.0, 0.0]
    assert rates["attack_success"] == 0.0


def test_a_class_without_test_images_has_no_recall_and_a_control_no_success():
    test = image_set(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), NAMES)
    rates = rates_of(model(), test, triggered_tests(attack_named("none"), test))
    assert rates["class_recalls"] == [0.0, 1.0, None]
    assert rates["attack_successes"] == []
    assert rates["attack_success"] is None


@pytest.mark.parametrize(
    ("successes", "succeeded"), [([0.8], True), ([0.79], False), ([0.9, 0.5], False), ([], None)]
)
def test_an_attack_succeeds_from_80_per_cent_on_with_every_one_of_its_triggers(successes, succeeded):
    assert attack_succeeded(successes) is succeeded


@given(k=st.integers(2, 6), imbalance=st.floats(1, 50), seed=st.integers(0, 5))
def test_class_sizes_fall_exponentially_and_the_rows_stay_in_order(k, imbalance, seed):
    labels = np.random.default_rng(seed).permutation(np.arange(60 * k) % k)
    images = np.zeros((60 * k, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(60 * k) % 251
    data = image_set(images, labels, NAMES[:1] * k)
    kept = long_tailed(data, imbalance, Seed(seed))
    sizes = np.bincount(kept.labels, minlength=k)
    assert list(sizes) == [max(1, round(60 * imbalance ** (-i / (k - 1)))) for i in range(k)]
    rows = [int(name) for name in kept.ids]
    assert rows == sorted(set(rows))
    assert np.array_equal(kept.images, images[rows])
    assert kept.fingerprint == long_tailed(data, imbalance, Seed(seed)).fingerprint


@pytest.mark.parametrize("name", ["small_vgg", "small_mobilenet", "small_vit"])
def test_a_small_net_takes_32_pixels_and_is_no_giant(name):
    spec = ModelSpec.sized(
        architecture=f"clipguard.lab.benchmark.nets:{name}", num_classes=7, input_size=(32, 32)
    )
    made = build(spec, Seed(0))
    with torch.inference_mode():
        assert made(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 7)
    assert sum(value.numel() for value in made.parameters()) < 3e6
