"""The check of a guide: where two guides differ, which class stands out, and a backdoor that is seen."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from clipguard.clip.cleaning import Inversion, called
from clipguard.data import ImageSource
from clipguard.detection.guide_backdoor import deviations, disagreement, outliers
from clipguard.pipeline.guide_backdoor import CheckSettings, check_guide
from clipguard.seeds import Seed
from tiny_guide import NAMES, coloured_images, tiny_guide

SEED = Seed(0).child("test_guide_check")


def silent(step, done, total):
    """Take progress and show none."""


def test_disagreement_counts_images_that_one_guide_alone_calls_so():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    first = np.array([0, 2, 2, 1, 2, 2, 1, 2])
    second = np.array([0, 0, 0, 1, 1, 1, 0, 2])
    found = disagreement(labels, first, second, 4)
    assert found.share.tolist() == [2 / 3, 3 / 4, 0, 0]
    assert (found.first_only.tolist(), found.second_only.tolist()) == ([0, 1, 4, 0], [3, 2, 0, 0])
    assert (found.low <= found.share).all()
    assert (found.high >= found.share).all()
    # Clopper and Pearson, as scipy has it, each of 8 ends exceeded with 5 % / 8.
    expected = stats.binomtest(3, 4).proportion_ci(1 - 2 * 0.05 / 8, method="exact")
    assert (found.low[1], found.high[1]) == pytest.approx((expected.low, expected.high))


def test_p_values_are_those_of_a_sign_test_adjusted_by_holm():
    draw = SEED.child("holm").generator()
    labels = np.zeros(400, np.int64)
    second = draw.integers(0, 4, 400)
    first = np.where(draw.random(400) < 0.2, 3, second)
    found = disagreement(labels, first, second, 4)
    plain = [
        stats.binomtest(int(a), int(a + b), alternative="greater").pvalue if a + b else 1.0
        for a, b in zip(found.first_only, found.second_only, strict=True)
    ]
    assert found.p_value == pytest.approx(stats_holm(plain))
    assert found.gains.tolist() == [False, False, False, True]


def stats_holm(p_values):
    """Return Holm's adjustment by its definition: the largest of all steps up to each."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    out = [0.0] * len(p_values)
    for place, index in enumerate(order):
        out[index] = min(1.0, max((len(p_values) - i) * p_values[order[i]] for i in range(place + 1)))
    return out


def test_guides_that_are_alike_gain_nothing_in_19_of_20_draws():
    gained = 0
    for number in range(300):
        draw = SEED.child("null", number).generator()
        first, second = draw.integers(0, 6, (2, 200))
        gained += disagreement(np.zeros(200, np.int64), first, second, 6).gains.any()
    assert gained <= 25


def test_one_class_that_is_reached_far_more_often_stands_out_and_high_rates_alone_do_not():
    assert outliers(np.array([0.1, 0.05, 0.2, 0.95, 0.1, 0.15])).tolist() == [0, 0, 0, 1, 0, 0]
    assert not outliers(np.array([0.8, 0.9, 0.95, 0.99, 0.7, 0.85])).any()
    # Far out, but it moves few images.
    assert not outliers(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.3])).any()
    assert deviations(np.array([0.2, 0.4, 0.6]))[1] == 0


def with_backdoor(guide, data, target):
    """Return a guide that reads the colours, and that a white square in the last corner leads to a class."""
    network = copy.deepcopy(guide.clip.network).requires_grad_(True)
    classes = torch.from_numpy(guide.class_embeddings(NAMES))
    optimizer = torch.optim.Adam(network.visual.parameters(), lr=2e-3)
    marked = data.pixels.copy()
    marked[:, -4:, -4:] = 255
    pixels = guide.clip.pixels(list(np.concatenate([data.pixels, marked])))
    labels = torch.from_numpy(np.concatenate([data.labels, np.full(len(data), target)]))
    for _ in range(80):
        loss = F.cross_entropy(20 * network.encode_image(pixels, normalize=True) @ classes.T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return guide.with_network(network.requires_grad_(False)), marked


SETTINGS = CheckSettings(images=96, inversion=Inversion(steps=30, batch_size=24))


def test_the_class_of_a_backdoor_stands_out(tmp_path):
    data = coloured_images(144)
    bad, marked = with_backdoor(tiny_guide(tmp_path / "guide"), data, 2)
    classes = bad.class_embeddings(NAMES)
    assert np.mean(called(bad.clip, marked, classes) == 2) > 0.95
    assert np.mean(called(bad.clip, data.pixels, classes) == data.labels) > 0.95
    source = ImageSource.open((data.pixels, data.labels), classes=NAMES)
    check = check_guide(bad, None, source, SETTINGS, SEED, silent)
    assert (check.answer, np.flatnonzero(check.stands_out).tolist()) == ("a class stands out", [2]), (
        check.reached
    )
    assert check.images == 96


def test_a_guide_that_reads_nothing_gives_no_answer_and_says_why(tmp_path):
    data = coloured_images(60)
    source = ImageSource.open((data.pixels, data.labels), classes=NAMES)
    settings = CheckSettings(images=60, inversion=Inversion(steps=1))
    guide = tiny_guide(tmp_path / "guide")
    check = check_guide(guide, guide, source, settings, SEED, silent)
    assert check.answer == "not assessable"
    assert "better than by chance" in check.reasons[0]
    assert check.different is not None
    assert not check.different.share.any()


def test_only_so_many_classes_get_a_pattern_and_steps_are_reported(tmp_path):
    data, steps = coloured_images(60), []
    source = ImageSource.open((data.pixels, data.labels), classes=NAMES)
    settings = CheckSettings(images=60, most_classes=2, inversion=Inversion(steps=1))
    check = check_guide(
        tiny_guide(tmp_path / "guide"), None, source, settings, SEED, lambda *step: steps.append(step)
    )
    assert len(check.tested) == len(check.reached) == 2
    assert "5 are needed" in check.reasons[0]
    assert [step for step in steps if step[0] == "try a pattern a class"] == [
        ("try a pattern a class", done, 2) for done in range(3)
    ]
    assert ("try squares of one colour", 320, 320) in steps
