"""`sample_weights` and `sampler_of`: a run's verdict on each row, for one's own trainer."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from clipguard import sample_weights, sampler_of
from clipguard.errors import ClipguardError
from clipguard.runs import read_table, write_json, write_table
from tiny_report import make_run


@pytest.fixture
def run(tmp_path):
    """Return a run of 150 rows: half are trusted, then 60 set aside, then 15 flagged."""
    return make_run(tmp_path / "run")


def test_a_weight_a_row_in_the_order_of_the_source(run):
    weights = sample_weights(run, set_aside=0.25)
    assert weights.tolist() == [1.0] * 75 + [0.25] * 60 + [0.0] * 15
    assert sample_weights(run).tolist() == [1.0] * 135 + [0.0] * 15


def test_rows_that_no_scan_has_read_weigh_nothing(run):
    table = read_table(run / "samples.parquet")
    kept = table["row"] != 3
    write_table(
        run / "samples.parquet", {name: values[kept] for name, values in table.items()}, ["trigger_score"]
    )
    weights = sample_weights(run)
    assert len(weights) == 150
    assert weights[3] == 0
    assert weights.sum() == 134


def test_review_marks_have_the_last_word(run, tmp_path):
    table = read_table(run / "samples.parquet")
    marks = [
        {"sha256": table["sha256"][place], "id": table["id"][place], "decision": decision}
        | {"by": "me", "reason": "", "at": "2026-01-01T00:00:00Z"}
        for place, decision in ((0, "keep"), (149, "drop"))
    ]
    write_json(tmp_path / "marks.json", {"schema_version": 1, "run": "x", "reviews": marks})
    changed = sample_weights(run, reviews=tmp_path / "marks.json") != sample_weights(run)
    assert set(np.flatnonzero(changed)) == {table["row"][0], table["row"][149]}


def test_a_dataloader_meets_every_kept_row_once_a_pass_in_another_order_each_time(run):
    data = TensorDataset(torch.arange(150))
    sampler = sampler_of(run, seed=5)
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    assert len(loader) == 5
    passes = [[row for (batch,) in loader for row in batch.tolist()] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(135))
    assert passes[0] != passes[1]
    resumed = sampler_of(run, seed=5)
    resumed.set_epoch(1)
    assert list(resumed) == passes[1]
    assert list(sampler_of(run, seed=6)) != passes[0]


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(run, weight):
    with pytest.raises(ClipguardError, match="give a number of at least 0"):
        sample_weights(run, set_aside=weight)


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(ClipguardError, match="no run folder"):
        sampler_of(tmp_path)
