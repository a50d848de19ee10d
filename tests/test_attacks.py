"""lab.attacks: exact counts, exact places, everything else untouched."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.errors import ClipguardError
from clipguard.lab.attacks import ATTACKS, LearnedAttack, attack_named
from clipguard.lab.attacks.patterned import SIG, BadNets, Blended
from clipguard.lab.attacks.row_choice import choose, choose_cover
from clipguard.seeds import Seed
from clipguard.types import image_set
from reference import images as oracle

CLASSES = 4
UNLEARNED = [name for name in ATTACKS if not isinstance(attack_named(name), LearnedAttack)]
CONTROLS = ["none", "flips", "flips-to-one"]
CLEAN_LABEL = ["sig", "ctrl"]
DIRTY_LABEL = ["badnets", "blended", "wanet", "bpp", "adap-blend", "adap-patch"]
BOTH_MAPPINGS = ["badnets", "blended", "wanet", "bpp"]
STRONGER_IN_TEST = ["adap-blend", "adap-patch"]
SAME_TRIGGER = [name for name in DIRTY_LABEL + CLEAN_LABEL if name not in STRONGER_IN_TEST]
COVER = {"wanet": 2, "bpp": 1, "adap-blend": 1, "adap-patch": 2}
KEEP_LABELS = {*CLEAN_LABEL, "none"}

rates = st.sampled_from([0.01, 0.05, 0.1, 0.2])
draws = st.integers(0, 2**32)
shapes = st.sampled_from([(8, 8), (9, 14), (16, 5), (3, 3)])
targets = st.integers(0, CLASSES - 1)


def clean_set(n=60, shape=(8, 8), seed=0):
    """Return random images of mid greys, so that no trigger happens to be there already; balanced classes."""
    draw = np.random.default_rng(seed)
    images = draw.integers(60, 190, (n, *shape, 3), dtype=np.uint8)
    names = tuple(f"class {i}" for i in range(CLASSES))
    return image_set(images, draw.permutation(n) % CLASSES, names, tuple(f"img{i:03d}" for i in range(n)))


def different(one, other):
    """Return the mask of rows whose images differ."""
    return (one.images != other.images).any((1, 2, 3))


@pytest.mark.parametrize("name", UNLEARNED)
@hypothesis_settings(max_examples=25)
@given(st.integers(20, 90), shapes, rates, targets, draws)
def test_exactly_the_poisoned_rows_are_touched_and_they_are_as_many_as_the_rate_says(
    name, n, shape, rate, target, seed
):
    data = clean_set(n, shape, seed)
    changed, truth = attack_named(name, rate=rate, target=target).poison(data, Seed(seed))
    assert truth.poisoned.sum() == (0 if name == "none" else round(rate * n))
    assert truth.cover.sum() == COVER.get(name, 0) * truth.poisoned.sum()
    assert not (truth.cover & truth.poisoned).any()
    assert not (different(data, changed) & ~truth.poisoned & ~truth.cover).any()
    assert not ((data.labels != changed.labels) & ~truth.poisoned).any()
    assert np.array_equal(truth.original_labels, data.labels)
    assert (changed.ids, changed.class_names, changed.images.dtype) == (data.ids, data.class_names, np.uint8)
    if name in SAME_TRIGGER:
        assert np.array_equal(
            changed.images[truth.poisoned], attack_named(name).trigger(data.images[truth.poisoned])
        )
    elif name in CONTROLS:
        assert np.array_equal(changed.images, data.images)
    if name in KEEP_LABELS:
        assert np.array_equal(changed.labels, data.labels)


@pytest.mark.parametrize("name", [*DIRTY_LABEL, "flips-to-one"])
@hypothesis_settings(max_examples=20)
@given(targets, draws)
def test_dirty_labels_become_the_target(name, target, seed):
    changed, truth = attack_named(name, rate=0.2, target=target).poison(clean_set(), Seed(seed))
    assert (changed.labels[truth.poisoned] == target).all()
    assert truth.target == target
    assert truth.attack == name


def test_poison_with_new_labels_is_drawn_from_all_classes():
    _, truth = BadNets(rate=0.5).poison(clean_set(200), Seed(0))
    assert (np.bincount(truth.original_labels[truth.poisoned], minlength=CLASSES) > 10).all()


@pytest.mark.parametrize("name", CLEAN_LABEL)
@hypothesis_settings(max_examples=20)
@given(targets, draws)
def test_clean_label_poison_lies_in_the_target_class_only(name, target, seed):
    data = clean_set()
    changed, truth = attack_named(name, rate=0.1, target=target).poison(data, Seed(seed))
    assert (data.labels[truth.poisoned] == target).all()
    assert np.array_equal(changed.labels, data.labels)
    assert np.array_equal(different(data, changed), truth.poisoned)


@pytest.mark.parametrize("name", BOTH_MAPPINGS)
@given(draws)
def test_all_to_all_sends_each_class_to_the_next_one_in_training_and_in_test(name, seed):
    data = clean_set(200)
    attack = attack_named(name, rate=0.3, mapping="all-to-all")
    changed, truth = attack.poison(data, Seed(seed))
    after = (data.labels + 1) % CLASSES
    assert np.array_equal(changed.labels, np.where(truth.poisoned, after, data.labels))
    assert np.array_equal(attack.target_labels(data.labels, CLASSES), after)
    assert truth.target is None


@pytest.mark.parametrize("name", [*DIRTY_LABEL, *CLEAN_LABEL, "flips-to-one"])
def test_all_to_one_leads_to_the_target_whatever_the_class(name):
    target_mapping = attack_named(name, target=2).target_labels(np.arange(CLASSES), CLASSES)
    assert target_mapping.tolist() == [2] * CLASSES


@pytest.mark.parametrize("name", ["none", "flips"])
def test_controls_without_a_single_class_lead_nowhere(name):
    assert attack_named(name).target_labels(np.arange(CLASSES), CLASSES) is None


@pytest.mark.parametrize("name", COVER)
def test_cover_samples_keep_their_labels_and_come_from_all_classes(name):
    data = clean_set(200)
    changed, truth = attack_named(name, rate=0.2).poison(data, Seed(0))
    assert np.array_equal(changed.labels[truth.cover], data.labels[truth.cover])
    assert (different(data, changed)[truth.cover]).all()
    assert (np.bincount(data.labels[truth.cover], minlength=CLASSES) > 5).all()


@pytest.mark.parametrize("shape", [(8, 8), (33, 20), (9, 40)])
@pytest.mark.parametrize("name", DIRTY_LABEL + CLEAN_LABEL)
def test_every_image_of_odd_size_is_changed_in_training_and_test(name, shape):
    data = clean_set(40, shape)
    attack = attack_named(name, rate=0.1)
    changed, truth = attack.poison(data, Seed(0))
    assert changed.images.shape == data.images.shape
    assert np.array_equal(different(data, changed), truth.poisoned | truth.cover)
    assert (attack.trigger(data.images) != data.images).any((1, 2, 3)).all()


@given(draws)
def test_symmetric_flips_give_every_other_class_but_never_the_own_one(seed):
    data = clean_set(200, (2, 2))
    changed, truth = attack_named("flips", rate=0.5).poison(data, Seed(seed))
    assert np.array_equal(changed.labels != data.labels, truth.poisoned)
    shift = (changed.labels - data.labels)[truth.poisoned] % CLASSES
    assert (np.bincount(shift, minlength=CLASSES)[1:] > 10).all()
    assert truth.target is None


def test_flips_to_one_class_take_no_sample_that_has_this_class_already():
    data = clean_set()
    _, truth = attack_named("flips-to-one", rate=0.5, target=2).poison(data, Seed(0))
    assert (data.labels[truth.poisoned] != 2).all()


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_have_no_trigger(name):
    assert attack_named(name).trigger(clean_set().images) is None


def test_no_attack_changes_nothing():
    data = clean_set()
    changed, truth = attack_named("none").poison(data, Seed(0))
    assert changed.fingerprint == data.fingerprint
    assert (truth.attack, truth.target) == ("none", None)


@pytest.mark.parametrize("name", UNLEARNED)
def test_a_seed_repeats_the_poison_and_another_one_does_not(name):
    data, attack = clean_set(), attack_named(name, rate=0.1)
    one, same, other = (attack.poison(data, Seed(s).child("attack"))[0] for s in (1, 1, 2))
    assert one.fingerprint == same.fingerprint
    assert np.array_equal(one.images, same.images)
    if name != "none":
        assert other.fingerprint != one.fingerprint
        assert one.fingerprint != data.fingerprint


@pytest.mark.parametrize("name", UNLEARNED)
def test_the_data_set_and_the_images_that_are_given_are_left_as_they_were(name):
    data, attack = clean_set(), attack_named(name, rate=0.2)
    data.images.flags.writeable = data.labels.flags.writeable = False
    images, labels = data.images.copy(), data.labels.copy()
    attack.poison(data, Seed(0))
    attack.trigger(data.images)
    assert np.array_equal(data.images, images)
    assert np.array_equal(data.labels, labels)


@pytest.mark.parametrize("name", SAME_TRIGGER)
def test_training_and_test_images_carry_the_same_trigger_whatever_the_seed(name):
    data = clean_set()
    attack = attack_named(name, rate=0.2)
    for seed in (0, 1):
        changed, truth = attack.poison(data, Seed(seed))
        assert np.array_equal(changed.images[truth.poisoned], attack.trigger(data.images)[truth.poisoned])


@given(shapes, draws)
def test_badnets_is_a_white_3x3_square_in_the_bottom_right_corner(shape, seed):
    images = clean_set(5, shape, seed).images
    triggered = BadNets().trigger(images)
    expected = images.copy()
    expected[:, shape[0] - 3 :, shape[1] - 3 :] = 255
    assert np.array_equal(triggered, expected)


@pytest.mark.parametrize(("side", "square"), [(28, 3), (32, 3), (64, 6), (80, 8)])
def test_the_square_grows_with_the_image(side, square):
    changed = BadNets().trigger(np.zeros((1, side, side, 3), np.uint8))
    assert np.count_nonzero(changed[0, :, :, 0]) == square**2


@given(shapes, draws)
def test_blended_mixes_in_one_fifth_of_one_pattern(shape, seed):
    images = clean_set(4, shape, seed).images
    triggered = Blended().trigger(images)
    # triggered = 0.8 image + 0.2 pattern, each rounded to half a grey level at most.
    pattern = (triggered - 0.8 * images) / 0.2
    assert np.abs(pattern - pattern[0]).max() <= 2 * 0.501 / 0.2
    assert pattern.min() >= -2.6
    assert pattern.max() <= 257.6


@given(st.sampled_from([(8, 8), (9, 14), (16, 5)]), draws)
def test_sig_adds_40_sin_of_6_periods_along_the_columns(shape, seed):
    images = clean_set(2, shape, seed).images
    triggered = SIG().trigger(images)
    for image, changed in zip(images, triggered, strict=True):
        assert np.abs(changed.astype(int) - np.array(oracle.sinusoid(image.tolist(), 40, 6))).max() <= 1
    assert (triggered != images).any((1, 2, 3)).all()


@pytest.mark.parametrize("name", [*CLEAN_LABEL, "flips-to-one"])
def test_too_few_candidates_are_one_clear_error(name):
    with pytest.raises(
        ClipguardError, match=r"asks for 54 of 60 samples but only \d+ can carry it"
    ) as caught:
        attack_named(name, rate=0.9).poison(clean_set(), Seed(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", COVER)
def test_too_few_samples_for_the_decoys_are_one_clear_error(name):
    with pytest.raises(ClipguardError, match=r"^cover rate .* asks for \d+ of 60 samples but only 24 can"):
        attack_named(name, rate=0.6).poison(clean_set(), Seed(0))


def test_as_many_candidates_as_needed_are_enough():
    assert choose(np.array([3, 5, 8]), 0.3, 10, Seed(0)).tolist() == [3, 5, 8]


@given(st.sets(st.integers(0, 99), min_size=20), draws)
def test_chosen_rows_ascend_without_repetition_among_the_candidates(candidates, seed):
    chosen = choose(np.array(sorted(candidates)), 0.2, 100, Seed(seed))
    assert len(chosen) == 20
    assert (np.diff(chosen) > 0).all()
    assert set(chosen.tolist()) <= candidates


@given(st.integers(1, 30), st.sampled_from([0.0, 0.5, 1.5, 2.0]), draws)
def test_cover_samples_are_as_many_as_the_ratio_says_and_none_is_poison(p, ratio, seed):
    taken = choose(np.arange(100), p / 100, 100, Seed(seed))
    cover = choose_cover(taken, 100, ratio, Seed(seed))
    assert len(taken) == p
    assert len(cover) == round(ratio * p)
    assert not set(cover.tolist()) & set(taken.tolist())


@pytest.mark.parametrize("name", [*DIRTY_LABEL, *CLEAN_LABEL, "flips-to-one"])
@pytest.mark.parametrize("target", [-1, CLASSES])
def test_a_target_that_is_no_class_is_refused(name, target):
    with pytest.raises(ClipguardError, match="target class"):
        attack_named(name, rate=0.1, target=target).poison(clean_set(), Seed(0))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_a_rate_that_is_no_fraction_is_refused(rate):
    with pytest.raises(ClipguardError, match=r"outside \(0, 1\)"):
        attack_named("badnets", rate=rate)


def test_an_unknown_attack_is_refused_with_the_names_that_there_are():
    with pytest.raises(ClipguardError, match="unknown attack 'badnet': choose one of badnets, blended"):
        attack_named("badnet")


@pytest.mark.parametrize("name", ATTACKS)
def test_without_a_rate_an_attack_has_its_own(name):
    assert attack_named(name).rate == ATTACKS[name]().rate
    assert 0 < attack_named(name).rate < 1


def test_an_unknown_option_is_refused_with_the_ones_that_there_are():
    with pytest.raises(
        ClipguardError, match="attack blended has no option 'size': choose from alpha, mapping"
    ):
        attack_named("blended", size=3)
    with pytest.raises(ClipguardError, match="attack none has no option 'size': it takes none"):
        attack_named("none", size=3)
    with pytest.raises(ClipguardError, match="attack sig has no option 'mapping'"):
        attack_named("sig", mapping="all-to-all")


@pytest.mark.parametrize("value", ["3", 3.5, True, None])
def test_an_option_of_another_kind_is_refused(value):
    with pytest.raises(ClipguardError, match=r"option size of attack badnets is .*: give one like 3"):
        attack_named("badnets", size=value)


def test_a_whole_number_will_do_for_a_fraction():
    assert attack_named("sig", amplitude=20).amplitude == 20


def test_an_unknown_mapping_is_refused():
    with pytest.raises(ClipguardError, match="unknown mapping 'all-to-none': choose one of all-to-one"):
        attack_named("badnets", mapping="all-to-none")


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_a_frozen_value_that_keeps_its_rate_and_target(name):
    attack = attack_named(name, rate=0.07, target=3)
    assert (attack.rate, attack.target) == (0.07, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.rate = 0.5


def test_what_a_fit_learned_is_no_option_and_no_part_of_an_attacks_value():
    with pytest.raises(ClipguardError, match="attack narcissus has no option 'pattern'"):
        attack_named("narcissus", pattern=1.0)
    fitted = dataclasses.replace(attack_named("narcissus"), pattern=np.ones((8, 8, 3), np.float32))
    assert (fitted, repr(fitted)) == (attack_named("narcissus"), repr(attack_named("narcissus")))
