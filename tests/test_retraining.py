"""pipeline.retraining: what --by retrain may drop without being told to."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.clip.zero_shot import ClipGuide
from clipguard.errors import ClipguardError
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.retraining import check_drop
from clipguard.types import State, image_set, partition_of
from tiny_runs import CONFIG, poisoned_set, source_of


def drop(*, cats, dogs, state=State.TRIGGER, others=State.UNCERTAIN):
    """Check what drops so many of 100 cats and 300 dogs."""
    labels = np.repeat([0, 1], [100, 300])
    states = np.full(400, others, np.uint8)
    states[:cats] = states[100 : 100 + dogs] = state
    images = np.zeros((400, 1, 1, 3), np.uint8)
    check_drop(image_set(images, labels, ("cat", "dog")), partition_of(states, np.zeros(400), 2))


@pytest.mark.parametrize("state", [State.TRIGGER, State.LABEL, State.EXCLUDED])
def test_a_fifth_of_the_data_or_half_of_a_class_is_the_most_that_may_go(state):
    drop(cats=50, dogs=30, state=state)
    with pytest.raises(ClipguardError, match=r"81 of 400 samples \(20%\), of class 'cat' 50 of 100"):
        drop(cats=50, dogs=31, state=state)
    with pytest.raises(ClipguardError, match=r"51 of 400 .* of class 'cat' 51 of 100: .*drop_anyway"):
        drop(cats=51, dogs=0, state=state)


@pytest.mark.parametrize("others", [State.CLEAN, State.UNCERTAIN, State.HELD_OUT])
def test_what_is_not_flagged_or_excluded_does_not_count(others):
    drop(cats=0, dogs=0, others=others)


def test_an_empty_class_loses_nothing():
    data = image_set(np.zeros((4, 1, 1, 3), np.uint8), np.zeros(4, np.int64), ("cat", "dog"))
    check_drop(data, partition_of(np.zeros(4, np.uint8), np.zeros(4), 2))


def test_a_defence_that_would_drop_much_trains_nothing_unless_told_to(tmp_path, monkeypatch):
    def trains(self, config):
        raise RuntimeError("a victim is trained")

    monkeypatch.setattr(Defender, "_train_victim", trains)
    monkeypatch.setattr("clipguard.pipeline.retraining.LARGEST_CLASS_DROP", 0.0)
    source, config = source_of(poisoned_set()[0]), replace(CONFIG, by="retrain")
    defender = Defender(ClipGuide("mini"), tmp_path / "run", config=config)
    with pytest.raises(ClipguardError, match="retraining would drop"):
        defender.fit(source)
    for told in (replace(config, drop_anyway=True), CONFIG):
        defender.config = told
        with pytest.raises(RuntimeError, match="a victim is trained"):
            defender.fit(source)


def test_a_negative_number_of_copies_is_refused():
    with pytest.raises(ClipguardError, match="power -1: give the number of copies with canaries, 0 for none"):
        DefenseConfig(power=-1)
    assert DefenseConfig(power=0).power == 0
