"""seeds: independent, repeatable streams by name."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipguard.seeds import Seed, Stream

names = st.text(st.characters(exclude_characters="/", exclude_categories=("Cs",)), min_size=1, max_size=12)
paths = st.lists(names, max_size=4).map(tuple)
roots = st.integers(-(2**63), 2**63)


@given(roots, paths)
def test_the_value_fits_every_generator(root, path):
    assert 0 <= Seed(root, path).value < 2**63


@given(st.tuples(roots, paths), st.tuples(roots, paths))
def test_two_paths_share_a_value_only_if_they_are_the_same(one, other):
    assert (Seed(*one).value == Seed(*other).value) == (one == other)


@given(roots, names, st.integers(0, 99))
def test_children_can_be_taken_one_name_at_a_time(root, name, number):
    assert Seed(root).child(name, number) == Seed(root).child(name).child(number)


def test_the_values_are_the_same_in_every_version_and_on_every_machine():
    assert Seed(0).value == 3456079177858693020
    assert Seed(0).child(Stream.EARLY_MODEL, 2).value == 4849638210507091553


def test_a_generator_starts_anew_each_time_it_is_asked_for():
    seed = Seed(3).child("split")
    assert np.array_equal(seed.generator().random(8), seed.generator().random(8))
    assert torch.equal(torch.rand(8, generator=seed.torch()), torch.rand(8, generator=seed.torch()))


def test_siblings_draw_different_numbers():
    draws = [Seed(0).child(Stream.EARLY_MODEL, i).generator().random(4).tobytes() for i in range(50)]
    assert len(set(draws)) == 50


def test_the_global_torch_generator_is_seeded_inside_the_block_and_restored_after():
    seed = Seed(1).child("init")
    before = torch.random.get_rng_state()
    with seed.torch_global():
        first = torch.rand(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    with seed.torch_global():
        assert torch.equal(torch.rand(5), first)


def test_the_global_torch_generator_is_restored_after_an_error_too():
    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), Seed(1).torch_global():
        raise ZeroDivisionError(torch.rand(3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_numpy_generators_leave_the_global_numpy_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # the legacy state is what must not move
    Seed(0).generator().random(100)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002  # as above


def test_no_two_streams_share_a_name():
    names = [value for name, value in vars(Stream).items() if name.isupper()]
    assert len(names) > 1
    assert len(set(names)) == len(names)
