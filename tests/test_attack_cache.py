"""lab.attacks.cache: an attack learns once; a damaged file is named; nothing diverged is kept."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import VERSION, cached, key_of, restore, state_of, version_of
from clipguard.seeds import Seed
from tiny_attacks import tiny_set


@dataclass(frozen=True)
class Recipe:
    rate: float = 0.1
    epochs: int = 3
    weights: torch.Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class OtherRecipe(Recipe):
    pass


def numbers():
    return {"weights": torch.arange(6.0).view(2, 3), "rows": torch.tensor([1, 2])}


def never():
    pytest.fail("trained again")


def test_a_key_depends_on_recipe_data_and_seed_but_not_on_what_is_left_out():
    data, seed = tiny_set(6), Seed(0).child("attack")
    key = key_of(Recipe(), data, seed)
    fitted = Recipe(rate=0.9, weights=torch.ones(2))
    assert key == key_of(fitted, tiny_set(6), Seed(0).child("attack"))
    others = {
        key_of(Recipe(epochs=4), data, seed),
        key_of(OtherRecipe(), data, seed),
        key_of(Recipe(), tiny_set(6, seed=1), seed),
        key_of(Recipe(), data, Seed(1).child("attack")),
        key_of(Recipe(), data, Seed(0).child("other")),
        key_of(Recipe(rate=0.9), data, seed, without=()),
    }
    assert len(others | {key}) == 7


def test_what_was_learned_is_read_and_not_learned_again(tmp_path):
    first = cached("name", tmp_path / "new", numbers)
    again = cached("name", tmp_path / "new", never)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["name.safetensors"]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached("name", None, numbers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda raw: raw[:-5], lambda raw: b"\x80\x04" + raw, lambda raw: b""])
def test_a_damaged_file_is_one_clear_error(tmp_path, damage):
    cached("name", tmp_path, numbers)
    file = tmp_path / "name.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ClipguardError, match="delete it and run again") as caught:
        cached("name", tmp_path, never)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_training_that_diverged_is_refused_and_not_kept(tmp_path):
    with pytest.raises(ClipguardError, match=r"diverged \(NaN or Inf in weights\)"):
        cached("name", tmp_path, lambda: {"weights": torch.tensor([1.0, float("nan")])})
    assert not list(tmp_path.iterdir())


def test_states_of_several_nets_go_back_to_their_own_net():
    with Seed(0).torch_global():
        one, other, fresh = (torch.nn.Linear(2, 2) for _ in range(3))
    tensors = state_of(one=one, other=other)
    restore(fresh, "other", tensors)
    assert torch.equal(fresh.weight, other.weight)
    assert not fresh.weight.requires_grad
    with pytest.raises(ClipguardError, match="does not hold the net 'third'"):
        restore(fresh, "third", tensors)


def test_replacing_the_recipe_by_an_equal_one_keeps_the_key():
    data = tiny_set(6)
    assert key_of(Recipe(), data, Seed(0)) == key_of(replace(Recipe(), epochs=3), data, Seed(0))


def test_a_new_version_of_one_attack_leaves_the_fits_of_the_others():
    class Newer(Recipe):
        fit_version = 1

    assert version_of(Recipe()) == VERSION
    assert version_of(Newer()) == f"{VERSION}.1"
    data = tiny_set(6)
    Newer.__name__ = Recipe.__name__
    assert key_of(Newer(), data, Seed(0)) != key_of(Recipe(), data, Seed(0))
