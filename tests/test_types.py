"""types: frozen values with checked shapes, and a fingerprint of the contents."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.triggers.affine import AffineTrigger
from clipguard.types import (
    NO_TRIGGER,
    STATES,
    EntropyMap,
    History,
    ImageSet,
    Partition,
    Rows,
    RowsAt,
    Scores,
    State,
    array_digest,
    image_set,
    partition_of,
)

CLASSES = ("cat", "dog", "frog")
VALUES = (ImageSet, RowsAt, Scores, EntropyMap, Partition, AffineTrigger, History)


def a_set(n: int = 6, seed: int = 0) -> ImageSet:
    """Return a small random image set."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (n, 4, 5, 3), dtype=np.uint8)
    return image_set(images, draw.integers(0, 3, n), CLASSES, tuple(f"img{i}" for i in range(n)))


@pytest.mark.parametrize("value", VALUES)
def test_values_are_frozen_slotted_and_named_when_built(value):
    parameters = value.__dataclass_params__
    assert parameters.frozen
    assert "__slots__" in vars(value)
    assert all(field.kw_only for field in dataclasses.fields(value))


def test_equal_contents_have_equal_fingerprints():
    assert a_set().fingerprint == a_set().fingerprint


def test_every_part_of_the_contents_changes_the_fingerprint():
    whole = a_set()
    images = whole.images.copy()
    images[2, 1, 1, 0] ^= 1
    labels = whole.labels.copy()
    labels[0] = (labels[0] + 1) % 3
    reshaped = whole.images.reshape(6, 5, 4, 3)
    changed = [
        image_set(images, whole.labels, CLASSES, whole.ids),
        image_set(whole.images, labels, CLASSES, whole.ids),
        image_set(whole.images, whole.labels, ("cat", "dog", "toad"), whole.ids),
        image_set(whole.images, whole.labels, CLASSES, (*whole.ids[:-1], "other")),
        image_set(reshaped, whole.labels, CLASSES, whole.ids),
    ]
    assert len({whole.fingerprint, *(other.fingerprint for other in changed)}) == 6


def test_the_fingerprint_does_not_depend_on_how_the_images_lie_in_memory(tmp_path):
    whole = a_set()
    np.save(tmp_path / "images.npy", whole.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    transposed = np.asfortranarray(whole.images)
    assert image_set(mapped, whole.labels, CLASSES, whole.ids).fingerprint == whole.fingerprint
    assert image_set(transposed, whole.labels, CLASSES, whole.ids).fingerprint == whole.fingerprint


def test_names_that_look_alike_when_joined_have_different_fingerprints():
    images, labels = np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64)
    alike = [(("a", "b"), ("c",)), (("a", "bc"), ("",)), (("a\0b",), ("c",)), (("a",), ("b\0c",))]
    assert len({image_set(images, labels, names, ids).fingerprint for names, ids in alike}) == 4


def test_ids_default_to_row_numbers():
    whole = a_set()
    assert image_set(whole.images, whole.labels, CLASSES).ids == ("0", "1", "2", "3", "4", "5")


def test_ids_from_file_names_that_are_no_valid_utf8_are_accepted():
    whole = a_set(1)
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert image_set(whole.images, whole.labels, CLASSES, (name,)).ids == (name,)
    assert image_set(whole.images, whole.labels, (name, "dog", "frog")).class_names[0] == name


@given(st.lists(st.integers(0, 5), max_size=10))
def test_taking_rows_takes_image_label_and_id_together(rows):
    whole = a_set()
    part = whole.take(np.array(rows, dtype=np.int64))
    assert len(part) == len(rows)
    assert part.class_names == whole.class_names
    for at, row in enumerate(rows):
        assert np.array_equal(part.images[at], whole.images[row])
        assert part.labels[at] == whole.labels[row]
        assert part.ids[at] == whole.ids[row]


@given(st.permutations(range(6)))
def test_a_shuffled_set_is_another_set_and_shuffling_back_gives_the_first(order):
    whole = a_set()
    order = np.array(order)
    shuffled = whole.take(order)
    assert shuffled.take(np.argsort(order)).fingerprint == whole.fingerprint
    assert (shuffled.fingerprint == whole.fingerprint) == np.array_equal(order, np.arange(6))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 4, 4, 4), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.float64)),
    ],
    ids=["float images", "no channels", "four channels", "more labels than images", "float labels"],
)
def test_wrong_shapes_and_kinds_are_refused_while_tests_run(images, labels):
    with pytest.raises(TypeError):
        image_set(images, labels, CLASSES)


def test_logits_are_rows_while_tests_run():
    Scores(logits=np.zeros((2, 3), np.float32), scale=1.0, source="net")
    with pytest.raises(TypeError):
        Scores(logits=3.0, scale=1.0, source="net")


@given(st.lists(st.integers(0, 4), max_size=9), st.integers(0, 9), st.integers(0, 9))
def test_rows_at_some_places_are_those_rows(places, start, stop):
    values, at = np.arange(15).reshape(5, 3), np.array(places, np.int64)
    rows = RowsAt(rows=values, at=at)
    assert isinstance(rows, Rows)
    assert len(rows) == len(places)
    assert rows.shape == (len(places), 3)
    assert np.array_equal(rows[start:stop], values[at][start:stop])
    some = np.arange(len(places))[::-2]
    assert np.array_equal(rows[some], values[at][some])


states_and_seed = st.tuples(st.lists(st.sampled_from(State), max_size=12), st.integers(0, 2**32))


def a_partition(states: list[State], seed: int) -> Partition:
    """Return a partition of samples in these states, some with a trigger and some with a soft label."""
    draw, n = np.random.default_rng(seed), len(states)
    soft_rows = np.flatnonzero(draw.random(n) < 0.5)
    return Partition(
        state=np.array(states, dtype=np.uint8),
        suspicion=draw.random(n),
        trigger=draw.integers(-1, 3, n),
        quarantined=tuple(np.flatnonzero(draw.random(3) < 0.5).tolist()),
        clean_share=draw.random(3),
        soft_rows=soft_rows,
        soft_labels=draw.random((len(soft_rows), 3)).astype(np.float32),
    )


def mask_of(partition: Partition, data: st.DataObject) -> np.ndarray:
    """Draw a mask of the samples."""
    n = len(partition)
    return np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)


def samples_of(partition):
    """Return the state, suspicion, trigger and soft label (None for none) of each sample."""
    soft = dict(zip(partition.soft_rows.tolist(), partition.soft_labels.tolist(), strict=True))
    columns = (partition.state.tolist(), partition.suspicion.tolist(), partition.trigger.tolist())
    return [(*values, soft.get(row)) for row, values in enumerate(zip(*columns, strict=True))]


@given(states_and_seed, st.sets(st.sampled_from(State)))
def test_has_is_true_of_the_samples_in_one_of_the_states(drawn, states):
    partition = a_partition(*drawn)
    assert partition.has(*states).tolist() == [State(state) in states for state in partition.state]


@given(states_and_seed)
def test_clean_and_flagged_samples_are_told_apart_and_no_other_is_either(drawn):
    partition = a_partition(*drawn)
    status = [STATES[state].status for state in drawn[0]]
    assert partition.clean.tolist() == [name == "trusted" for name in status]
    assert partition.flagged.tolist() == [name == "flagged" for name in status]
    assert not (partition.clean & partition.flagged).any()


@given(states_and_seed)
def test_the_counts_are_those_of_each_state_and_sum_to_the_number_of_samples(drawn):
    counts = a_partition(*drawn).counts
    assert sum(counts.values()) == len(drawn[0])
    for state, name in STATES.items():
        assert counts[name.counted_as] == drawn[0].count(state)


def test_every_state_has_a_name_and_no_two_are_told_alike():
    assert set(STATES) == set(State)
    assert len({(name.status, name.reason) for name in STATES.values()}) == len(State)
    assert len({name.counted_as for name in STATES.values()}) == len(State)


@given(states_and_seed, st.data())
def test_taking_rows_takes_everything_that_is_known_of_a_sample(drawn, data):
    partition = a_partition(*drawn)
    rows = np.flatnonzero(mask_of(partition, data))
    part, whole = partition.take(rows), samples_of(partition)
    assert samples_of(part) == [whole[row] for row in rows]
    assert part.quarantined == partition.quarantined
    assert part.clean_share is partition.clean_share
    assert (np.diff(part.soft_rows) > 0).all()


@given(states_and_seed, st.data())
def test_taking_rows_of_taken_rows_is_taking_them_at_once_and_all_rows_are_the_whole(drawn, data):
    partition = a_partition(*drawn)
    rows = np.flatnonzero(mask_of(partition, data))
    again = np.flatnonzero(mask_of(partition, data)[: len(rows)])
    assert partition.take(rows).take(again).fingerprint == partition.take(rows[again]).fingerprint
    assert partition.take(np.arange(len(partition))).fingerprint == partition.fingerprint


@given(states_and_seed, st.lists(st.integers(0, 11), max_size=20))
def test_an_extended_partition_has_clean_copies_behind_the_samples_as_they_were(drawn, numbers):
    partition = a_partition(*drawn)
    n = len(partition)
    rows = np.array([number for number in numbers if number < n], dtype=np.int64)
    longer = partition.extend(rows)
    assert longer.take(np.arange(n)).fingerprint == partition.fingerprint
    copies = [(State.CLEAN, partition.suspicion[row], NO_TRIGGER, None) for row in rows]
    assert samples_of(longer)[n:] == copies


@given(states_and_seed, st.sampled_from(State), st.booleans(), st.data())
def test_moved_samples_change_their_state_and_nothing_else(drawn, state, by_number, data):
    partition = a_partition(*drawn)
    mask, before = mask_of(partition, data), partition.fingerprint
    moved = partition.moved(np.flatnonzero(mask) if by_number else mask, state)
    assert moved.state.tolist() == np.where(mask, state, partition.state).tolist()
    assert dataclasses.replace(moved, state=partition.state).fingerprint == before
    assert partition.fingerprint == before


def with_a_bit_flipped(array):
    """Return the array with one bit of its last value changed."""
    out = array.copy()
    out.reshape(-1)[-1:].view(np.uint8)[0] ^= 1
    return out


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Partition)])
@given(drawn=states_and_seed)
def test_every_field_of_a_partition_changes_its_fingerprint(field, drawn):
    some = {"soft_rows": np.arange(2), "soft_labels": np.ones((2, 3), np.float32)}
    partition = dataclasses.replace(a_partition([State.CLEAN, State.LABEL, *drawn[0]], drawn[1]), **some)
    value = getattr(partition, field)
    other = (*value, 7) if isinstance(value, tuple) else with_a_bit_flipped(value)
    assert dataclasses.replace(partition, **{field: other}).fingerprint != partition.fingerprint


@given(states_and_seed)
def test_equal_partitions_have_equal_fingerprints(drawn):
    assert a_partition(*drawn).fingerprint == a_partition(*drawn).fingerprint


def test_equal_bytes_of_other_types_or_shapes_or_in_other_arrays_have_another_digest():
    bytes_ = np.arange(6, dtype=np.uint8)
    alike = [
        (bytes_,),
        (bytes_.view(np.int8),),
        (bytes_.view(np.uint16),),
        (bytes_.reshape(2, 3),),
        (bytes_.reshape(3, 2),),
        (bytes_[:3], bytes_[3:]),
        (bytes_[:2], bytes_[2:]),
        (bytes_, bytes_[:0]),
    ]
    assert len({array_digest(*arrays) for arrays in alike}) == len(alike)


def test_numbers_that_lie_in_other_fields_have_another_fingerprint():
    zeros = [partition_of(np.zeros(n, np.uint8), np.zeros(n), k) for n in (0, 1, 2) for k in (2, 3)]
    assert len({partition.fingerprint for partition in zeros}) == 6


@given(states_and_seed)
def test_a_partition_of_states_and_suspicion_knows_nothing_else(drawn):
    partition = a_partition(*drawn)
    bare = partition_of(partition.state, partition.suspicion, 3)
    assert samples_of(bare) == [(*sample[:2], NO_TRIGGER, None) for sample in samples_of(partition)]
    assert bare.quarantined == ()
    assert bare.clean_share.tolist() == [1.0, 1.0, 1.0]
    assert bare.soft_labels.shape == (0, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": np.zeros(3, np.uint8)},
        {"state": np.zeros(2, np.int64)},
        {"trigger": np.zeros(3, np.int64)},
        {"soft_rows": np.zeros(1, np.int64)},
        {"soft_labels": np.zeros((0, 2), np.float32)},
    ],
    ids=["more states", "wide states", "more triggers", "rows without labels", "labels of fewer classes"],
)
def test_fields_of_a_partition_that_do_not_fit_are_refused_while_tests_run(changes):
    with pytest.raises(TypeError):
        dataclasses.replace(partition_of(np.zeros(2, np.uint8), np.zeros(2), 3), **changes)


@given(st.integers(0, 2**32), st.floats(-1, 2), st.floats(-300, 300))
def test_an_affine_trigger_stays_within_grey_levels_and_leaves_its_input(seed, scale, shift):
    images = np.random.default_rng(seed).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    before = images.copy()
    full = np.full((4, 5, 3), scale, np.float32), np.full((4, 5, 3), shift, np.float32)
    moved = AffineTrigger(scale=full[0], shift=full[1]).apply(images)
    assert np.array_equal(images, before)
    assert np.abs(moved - np.clip(scale * images.astype(float) + shift, 0, 255)).max() <= 0.51
