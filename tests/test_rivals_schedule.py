"""defenses.rivals.schedule: a published schedule, cut by one share."""

from collections.abc import Sequence

import numpy as np
import pytest

from clipguard.defenses.budget import seconds_left
from clipguard.defenses.rivals.schedule import (
    inference_seconds,
    portions,
    rows_of_passes,
    share_of_schedule,
    training_seconds,
)
from clipguard.models.spec import build
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from tiny_rivals import RECIPE, case_of, faint_set


@pytest.mark.parametrize(
    ("passes", "share", "expected"),
    [
        (10, 1.0, [1] * 10),
        (10, 0.25, [1, 1, 0.5]),
        (10, 0.03, [0.3]),
        (3, 1 / 3, [1]),
        (10, 0.0, [0]),
    ],
)
def test_a_share_of_the_passes_is_whole_ones_and_a_part(passes: int, share: float, expected: Sequence[float]):
    assert portions(passes, share) == pytest.approx(expected)


def test_a_part_of_a_pass_draws_other_rows_each_time_and_never_hardly_any():
    rows = np.arange(1000, 2000)
    choose = rows_of_passes(rows, (1.0, 0.3, 0.3, 0.0), Seed(1))
    whole, part, other, least = (choose(epoch) for epoch in range(4))
    assert np.array_equal(whole, rows)
    assert len(part) == len(other) == 300
    assert len(set(part)) == 300
    assert set(part) <= set(rows)
    assert set(part) != set(other)
    assert len(least) == 32
    assert np.array_equal(rows_of_passes(rows[:5], (0.1,), Seed(1))(0), rows[:5])


def test_without_a_budget_nothing_is_measured_and_everything_is_run(tmp_path):
    case = case_of(faint_set(60)[0], tmp_path)
    assert seconds_left(case, DefenseConfig(), None, {}) is None
    assert share_of_schedule(None, lambda: pytest.fail("it was measured")) == 1.0
    assert share_of_schedule(5.0, lambda: 20.0) == 0.25


def test_what_is_measured_is_a_pass_over_all_of_the_data(monkeypatch, tmp_path):
    sizes = list[int]()

    def timed(step):
        step()
        return 1.0

    monkeypatch.setattr("clipguard.defenses.rivals.schedule.step_seconds", timed)
    data, _ = faint_set(640)
    model = build(case_of(data, tmp_path).spec, Seed(0))
    before = [value.clone() for value in model.state_dict().values()]
    model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    assert training_seconds(model, data, RECIPE, Seed(0)) == 640 / 32
    assert inference_seconds(model, data.images) == 640 / 500
    assert sizes == [32, 250, 250]
    after = model.state_dict().values()
    assert all((one == other).all() for one, other in zip(before, after, strict=True))
