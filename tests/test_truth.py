"""lab.ground_truth: the secret comes back as it was written, or not at all."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.errors import ClipguardError
from clipguard.lab.ground_truth import PoisonTruth, read_truth, write_truth


def truth_of(rows, attack="badnets", target=0):
    poisoned, cover, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return PoisonTruth(
        poisoned=np.array(poisoned, dtype=bool),
        cover=np.array(cover, dtype=bool),
        original_labels=np.array(labels, dtype=np.int64),
        attack=attack,
        target=target,
    )


SOME = truth_of([(True, False, 3), (False, True, 1), (False, False, 0)])


@hypothesis_settings(max_examples=30)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 2**40)), max_size=20),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=10),
    st.none() | st.integers(0, 10**6),
)
def test_what_was_written_is_read_back(tmp_path_factory, rows, attack, target):
    path = tmp_path_factory.mktemp("truth") / "truth.parquet"
    truth = truth_of(rows, attack, target)
    write_truth(truth, path)
    result = read_truth(path)
    for name in ("poisoned", "cover", "original_labels"):
        assert np.array_equal(getattr(result, name), getattr(truth, name))
        assert getattr(result, name).dtype == getattr(truth, name).dtype
        assert getattr(result, name).flags.writeable
    assert (result.attack, result.target) == (attack, target)


def test_writing_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "truth.parquet"
    path.write_bytes(b"older")
    write_truth(SOME, path)
    assert [file.name for file in tmp_path.iterdir()] == ["truth.parquet"]
    assert read_truth(path).poisoned.tolist() == [True, False, False]


def columns(**changed):
    table = {
        "poisoned": pa.array([True, False]),
        "cover": pa.array([False, False]),
        "original_labels": pa.array([1, 2]),
        **changed,
    }
    return pa.table({name: column for name, column in table.items() if column is not None})


NOTES = {"attack": "badnets", "target": "0"}
BROKEN = {
    "no column of flags": (columns(poisoned=None), NOTES),
    "no notes": (columns(), None),
    "no attack": (columns(), {"target": "0"}),
    "a target that is no number": (columns(), {**NOTES, "target": "cat"}),
    "flags that are texts": (columns(poisoned=pa.array(["False", "no"])), NOTES),
    "a flag that is null": (columns(cover=pa.array([None, True])), NOTES),
    "a label that is a fraction": (columns(original_labels=pa.array([0.5, 1.0])), NOTES),
}


@pytest.mark.parametrize(("table", "notes"), BROKEN.values(), ids=BROKEN)
def test_a_table_that_is_no_truth_is_refused(tmp_path, table, notes):
    path = tmp_path / "truth.parquet"
    pq.write_table(table.replace_schema_metadata(notes), path)
    with pytest.raises(ClipguardError, match=r"truth file .*truth\.parquet cannot be read") as caught:
        read_truth(path)
    assert "\n" not in str(caught.value)


def be_missing(path):
    pass


def be_a_folder(path):
    path.mkdir()


def be_text(path):
    path.write_text("poisoned,cover\n1,0\n")


def be_cut_short(path):
    write_truth(SOME, path)
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [be_missing, be_a_folder, be_text, be_cut_short])
def test_a_file_that_is_no_parquet_is_refused(tmp_path, damage):
    path = tmp_path / "truth.parquet"
    damage(path)
    with pytest.raises(ClipguardError, match="cannot be read") as caught:
        read_truth(path)
    assert "\n" not in str(caught.value)
