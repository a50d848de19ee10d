"""Attacks that learn from the data: what all of them promise, whatever they have learned."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.errors import ClipguardError
from clipguard.lab.attacks import LearnedAttack, fit_attack
from clipguard.seeds import Seed
from tiny_attacks import TRAINED, tiny_set

LABEL_ONLY = {"flip", "gcb"}
CLEAN_LABEL = {"lc", "narcissus"}
FOR_ONE_SET = ("lc", "flip")
FOR_ONE_SIZE = ("trojan-nn", "lf", "narcissus")
ALL_CAN_CARRY = ("ssba", "flip", "trojan-nn", "lf")


@pytest.fixture(scope="module")
def data():
    made = tiny_set()
    made.images.flags.writeable = made.labels.flags.writeable = False
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("attacks")


@pytest.fixture(scope="module")
def steps():
    return {}


@pytest.fixture(scope="module")
def fitted(data, folder, steps):
    def fit(name):
        steps[name] = []
        return fit_attack(TRAINED[name], data, Seed(3), folder, lambda *step: steps[name].append(step))

    return {name: fit(name) for name in TRAINED}


@pytest.mark.parametrize("name", TRAINED)
def test_a_fit_gives_the_same_attack_and_without_it_none_poisons(name, fitted, data):
    assert isinstance(TRAINED[name], LearnedAttack)
    assert type(fitted[name]) is type(TRAINED[name])
    assert fitted[name] == TRAINED[name]
    with pytest.raises(ClipguardError, match="learned nothing yet: call its fit first"):
        TRAINED[name].poison(data, Seed(1))


@pytest.mark.parametrize("name", TRAINED)
def test_progress_is_reported_in_order_up_to_the_end(name, fitted, steps):
    titles, done, totals = zip(*steps[name], strict=True)
    assert set(titles) == {"fit the attack"}
    assert set(totals) == {len(done)}
    assert list(done) == list(range(1, len(done) + 1))


@pytest.mark.parametrize("name", TRAINED)
def test_exactly_the_poison_and_the_cover_are_touched(name, fitted, data):
    changed, truth = fitted[name].poison(data, Seed(1))
    assert truth.poisoned.sum() == 6
    assert truth.cover.sum() == (6 if name == "input-aware" else 0)
    assert not (truth.poisoned & truth.cover).any()
    other_image = (changed.images != data.images).any((1, 2, 3))
    other_label = changed.labels != data.labels
    assert not ((other_image | other_label) & ~(truth.poisoned | truth.cover)).any()
    assert not (other_label & truth.cover).any()
    assert np.array_equal(truth.original_labels, data.labels)
    assert (truth.attack, truth.target) == (name, 0)
    assert (changed.ids, changed.images.dtype) == (data.ids, np.uint8)


@pytest.mark.parametrize("name", TRAINED)
def test_poison_carries_the_target(name, fitted, data):
    changed, truth = fitted[name].poison(data, Seed(1))
    # FLIP's flips go wherever its soft labels lean.
    assert name == "flip" or (changed.labels[truth.poisoned] == 0).all()
    if name in CLEAN_LABEL:
        assert np.array_equal(changed.labels, data.labels)
    if name in LABEL_ONLY:
        assert np.array_equal(changed.images, data.images)
        assert (data.labels != changed.labels)[truth.poisoned].all()
    else:
        assert (changed.images != data.images).any((1, 2, 3))[truth.poisoned].all()


@pytest.mark.parametrize("name", TRAINED)
def test_the_trigger_repeats_and_keeps_shape_and_input(name, fitted, data):
    before = data.images.copy()
    triggered = fitted[name].trigger(data.images)
    assert (triggered.shape, triggered.dtype) == (data.images.shape, np.uint8)
    assert np.array_equal(triggered, fitted[name].trigger(data.images))
    assert (triggered != data.images).any((1, 2, 3)).all()
    assert np.array_equal(data.images, before)


@pytest.mark.parametrize("name", TRAINED)
def test_every_test_image_is_to_become_the_target(name, fitted, data):
    target_labels = fitted[name].target_labels(data.labels, 3)
    assert target_labels.dtype == np.int64
    # FLIP's trigger is for images of one class.
    attacked = np.isin(data.labels, [0, 2]) if name == "flip" else np.ones(len(data), bool)
    assert target_labels.tolist() == np.where(attacked, 0, data.labels).tolist()


@pytest.mark.parametrize("name", TRAINED)
def test_a_seed_repeats_all_bytes_from_the_cache_or_trained_anew(name, fitted, data, folder):
    def never(*step):
        pytest.fail("trained again")

    first = fitted[name].poison(data, Seed(1))[0]
    cached = fit_attack(TRAINED[name], data, Seed(3), folder, never)
    anew = fit_attack(TRAINED[name], data, Seed(3))
    for again in (cached, anew):
        assert again.poison(data, Seed(1))[0].fingerprint == first.fingerprint
        assert np.array_equal(again.trigger(data.images), fitted[name].trigger(data.images))


@pytest.mark.parametrize("name", ["ssba", "input-aware", "gcb", "trojan-nn", "lf", "narcissus"])
def test_another_seed_learns_another_trigger(name, fitted, data):
    other = fit_attack(TRAINED[name], data, Seed(4))
    assert not np.array_equal(other.trigger(data.images), fitted[name].trigger(data.images))


@pytest.mark.parametrize("name", TRAINED)
def test_the_poison_rate_does_not_need_another_fit(name, fitted, data, folder):
    before = {path.name for path in folder.iterdir()}
    more = fit_attack(replace(TRAINED[name], rate=0.2), data, Seed(3), folder)
    assert {path.name for path in folder.iterdir()} == before
    assert more.poison(data, Seed(1))[1].poisoned.sum() == 12


@pytest.mark.parametrize("name", FOR_ONE_SET)
def test_what_was_learned_of_one_set_does_not_poison_another(name, fitted):
    with pytest.raises(ClipguardError, match="fitted to another data set"):
        fitted[name].poison(tiny_set(63), Seed(0))


@pytest.mark.parametrize("name", FOR_ONE_SIZE)
def test_what_was_learned_at_one_size_is_not_put_on_images_of_another(name, fitted):
    wide = tiny_set(60, (16, 18))
    message = "made for images of 16x16 pixels, these have 16x18: give images of one size"
    with pytest.raises(ClipguardError, match=message):
        fitted[name].trigger(wide.images)
    with pytest.raises(ClipguardError, match=message):
        fitted[name].poison(wide, Seed(0))


@pytest.mark.parametrize("name", TRAINED)
def test_another_rate_and_a_part_of_the_data_can_be_poisoned_too(name, fitted, data):
    # What several attackers at once ask for: each takes from what the ones before it have left.
    part = data.take(np.flatnonzero(np.arange(60) % 4 != 0))
    changed, truth = replace(fitted[name], rate=0.2).poison(part, Seed(1))
    assert truth.poisoned.sum() == 9
    assert name == "flip" or (changed.labels[truth.poisoned] == 0).all()


@pytest.mark.parametrize("name", TRAINED)
def test_a_rate_beyond_what_can_carry_the_poison_is_refused(name, data, folder):
    greedy = replace(TRAINED[name], rate=0.95)
    if name in ALL_CAN_CARRY:
        attack = fit_attack(greedy, data, Seed(3), folder)
        assert attack.poison(data, Seed(0))[1].poisoned.sum() == 57
        return
    with pytest.raises(ClipguardError, match=r"asks for 57 of 60 samples but only \d+ can carry it"):
        fit_attack(greedy, data, Seed(3), folder).poison(data, Seed(0))


@pytest.mark.parametrize("name", TRAINED)
def test_a_rate_that_asks_for_nobody_is_refused_before_anything_is_trained(name, data, tmp_path):
    with pytest.raises(ClipguardError, match=r"poison rate 0\.001 of 60 images is none"):
        fit_attack(replace(TRAINED[name], rate=0.001), data, Seed(0), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lc", "narcissus"])
def test_a_target_class_that_is_too_small_is_refused_before_anything_is_trained(name, data, tmp_path):
    rest = data.take(np.flatnonzero(data.labels != 0))
    with pytest.raises(ClipguardError, match="only 0 can carry it"):
        fit_attack(TRAINED[name], rest, Seed(0), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_that_is_no_class_is_refused_before_anything_is_trained(name, target, data, tmp_path):
    with pytest.raises(ClipguardError, match=rf"target class {target} does not exist: choose one of 0 to 2"):
        fit_attack(replace(TRAINED[name], target=target), data, Seed(0), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TRAINED)
def test_odd_sizes_work(name):
    odd = tiny_set(24, (17, 22))
    attack = fit_attack(TRAINED[name], odd, Seed(0))
    changed, _ = attack.poison(odd, Seed(0))
    assert changed.images.shape == odd.images.shape
    assert attack.trigger(odd.images).shape == odd.images.shape


@pytest.mark.parametrize("name", ["ssba", "input-aware"])
def test_all_to_all_sends_each_class_to_the_next_one_in_training_and_in_test(name, data):
    attack = fit_attack(replace(TRAINED[name], mapping="all-to-all"), data, Seed(3))
    changed, truth = attack.poison(data, Seed(1))
    after = (data.labels + 1) % 3
    assert np.array_equal(changed.labels, np.where(truth.poisoned, after, data.labels))
    assert np.array_equal(attack.target_labels(data.labels, 3), after)
    assert truth.target is None


def test_a_generator_learns_to_send_each_class_to_its_target_label(data):
    """With another mapping another net is trained, not only another label written."""
    one, all_ = (
        fit_attack(replace(TRAINED["input-aware"], mapping=mapping), data, Seed(3))
        for mapping in ("all-to-one", "all-to-all")
    )
    images = data.images[:8]
    assert not np.array_equal(one.trigger(images), all_.trigger(images))
