"""mitigation.repair_words: what a repair cost, and what it left undone."""

import numpy as np
import pytest

from clipguard.mitigation.gauge import GaugeReading
from clipguard.mitigation.repair_words import repair_words


def reading(right: int, followed: float | None) -> GaugeReading:
    return GaugeReading(right=np.arange(200) < right, loss=0.1, followed=followed)


@pytest.mark.parametrize(("right_after", "told"), [(150, True), (198, False)])
def test_a_repair_that_costs_more_than_little_and_than_chance_says_so(right_after, told):
    notes = [*repair_words(reading(200, 0.9), reading(right_after, 0.004), 0.02, learned=False)]
    assert len(notes) == told
    if told:
        assert notes[0].startswith("the repair costs 25.0 points: of 200 trusted samples that neither has ")
        assert "100.0% are right before and 75.0% after" in notes[0]
        assert "a rate below 0.02" in notes[0]
        assert "retraining trains another one" in notes[0]


def test_of_samples_that_a_model_knows_by_heart_the_cost_is_an_upper_bound():
    (note,) = repair_words(reading(200, 0.9), reading(150, 0.004), 0.02, learned=True)
    assert note.startswith("the repair may cost up to 25.0 points")
    assert "a test set tells" in note


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(0.9, 0.25, True), (0.9, 0.05, False), (0.1, 0.15, False), (None, None, False)],
)
def test_a_trigger_that_still_takes_effect_is_told_with_what_to_do(before, after, told):
    notes = [*repair_words(reading(200, before), reading(200, after), 0.02, learned=True)]
    assert len(notes) == told
    if told:
        assert notes[0].startswith("the repair is not complete: 25.0% of the trusted samples still follow")
        assert "retrain without the flagged samples" in notes[0]
