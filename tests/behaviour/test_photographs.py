"""The method with default settings on 2,000 photographs: backdoors go, and unpoisoned data stay unflagged.

What changes the method or a default has to pass this: a real CLIP, real images, real models, one thread.
"""

from pathlib import Path

import pytest

from clipguard.clip.zero_shot import guide_from_name
from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.lab.attacks import attack_named
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Preprocessing

from .rates import TARGET, rates

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10" / "train.parquet"
TRAIN, TEST = (40_000, 42_000), (42_000, 44_000)
"""Rows on which no figure of a table rests."""


def cifar(rows: tuple[int, int]) -> ImageSet:
    if not CIFAR.exists():
        pytest.skip("shared/data/cifar10 is missing: the method is not tested on photographs")
    return read_images(ImageSource.open(CIFAR, rows=rows), Preprocessing(size=(32, 32)))[0]


def without_canaries(run: Path) -> Defender:
    """What canaries find changes neither a flag nor the repair, and would take half of the time."""
    return Defender(guide_from_name("mini"), run, config=DefenseConfig(power=0))


def source(data: ImageSet) -> ImageSource:
    return ImageSource.open((data.images, data.labels), classes=data.class_names)


def test_without_poison_nothing_is_flagged(tmp_path):
    defender = Defender(guide_from_name("mini"), tmp_path / "run").scan(source(cifar(TRAIN)))
    assert defender.verdict_.answer != "suspicious"
    partition = defender.partition_
    assert not partition.flagged.any()
    assert partition.clean.mean() > 0.5


def test_most_of_the_label_only_poison_is_found(tmp_path):
    attack = attack_named("flips-to-one", rate=0.1, target=TARGET)
    data, truth = attack.poison(cifar(TRAIN), Seed(0).child("quality"))
    flagged = without_canaries(tmp_path / "run").scan(source(data)).partition_.flagged
    assert flagged[truth.poisoned].mean() >= 0.7
    assert flagged[~truth.poisoned].mean() <= 0.02


def test_a_backdoor_is_found_and_removed(tmp_path):
    attack = attack_named("blended", rate=0.1, target=TARGET)
    data, truth = attack.poison(cifar(TRAIN), Seed(0).child("quality"))
    defender = without_canaries(tmp_path / "run").fit(source(data))
    flagged = defender.partition_.flagged
    assert flagged[truth.poisoned].mean() >= 0.9
    assert flagged[~truth.poisoned].mean() <= 0.01
    test = cifar(TEST)
    before, after = rates(defender, test, attack.trigger(test.images))
    assert before.attack_success >= 0.8
    assert after.attack_success <= 0.1
    assert after.accuracy >= before.accuracy - 0.02
