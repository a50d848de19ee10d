"""lab.attacks.combined: several attackers, disjoint rows, exact counts, each measured on its own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.errors import ClipguardError
from clipguard.lab.attacks import Together, attack_named, fit_attack, parts_of
from clipguard.lab.attacks.patterned import BadNets
from clipguard.lab.ground_truth import read_truth, write_truth
from clipguard.seeds import Seed
from clipguard.types import image_set

N, CLASSES = 90, 3


def clean_set(n=N, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.integers(60, 190, (n, 8, 8, 3), dtype=np.uint8)
    return image_set(images, np.arange(n) % CLASSES, ("a", "b", "c"), tuple(f"img{i:02d}" for i in range(n)))


names = st.lists(
    st.sampled_from(["badnets", "blended", "wanet", "bpp", "sig", "flips-to-one", "none"]),
    min_size=2,
    max_size=3,
)


@hypothesis_settings(max_examples=30)
@given(names, st.integers(60, 90), st.sampled_from([0.05, 0.07, 0.1]), st.integers(0, 2**32))
def test_each_attack_poisons_as_many_rows_as_alone_and_none_of_anothers(chosen, n, rate, seed):
    data = clean_set(n)
    attack = attack_named("together:" + "+".join(chosen), rate=rate)
    changed, truth = attack.poison(data, Seed(seed))
    assert not (truth.poisoned & truth.cover).any()
    for i, part in enumerate(parts_of(attack)):
        _, alone = part.poison(data, Seed(seed))
        own = truth.part == i
        assert (
            truth.poisoned[own].sum()
            == alone.poisoned.sum()
            == (0 if chosen[i] == "none" else round(rate * n))
        )
        assert truth.cover[own].sum() == alone.cover.sum()
        if chosen[i] in ("badnets", "blended", "wanet", "bpp"):
            mine = own & truth.poisoned
            assert np.array_equal(changed.images[mine], part.trigger(data.images[mine]))
            assert np.array_equal(changed.labels[mine], part.target_labels(data.labels[mine], CLASSES))
    untouched = truth.part < 0
    assert np.array_equal(untouched, ~truth.poisoned & ~truth.cover)
    assert np.array_equal(changed.images[untouched], data.images[untouched])
    assert np.array_equal(changed.labels[~truth.poisoned], data.labels[~truth.poisoned])
    assert np.array_equal(truth.original_labels, data.labels)
    assert (changed.ids, changed.class_names) == (data.ids, data.class_names)
    assert truth.attack == "together:" + "+".join(chosen)


def test_the_parts_lead_to_classes_of_their_own_and_the_whole_has_no_trigger():
    attack = attack_named("together:badnets+blended", rate=0.1, target=1)
    assert [part.target for part in parts_of(attack)] == [1, 2]
    assert (attack.rate, attack.target) == (0.2, 1)
    labels = np.arange(CLASSES)
    assert attack.target_labels(labels, CLASSES) is attack.trigger(clean_set().images) is None
    assert attack.poison(clean_set(), Seed(0))[1].target is None


def test_a_single_attack_is_its_own_only_part():
    attack = attack_named("badnets")
    assert parts_of(attack) == (attack,)
    assert attack.poison(clean_set(), Seed(0))[1].part is None


def test_options_reach_every_part():
    attack = attack_named("together:badnets+wanet", mapping="all-to-all")
    assert [part.mapping for part in parts_of(attack)] == ["all-to-all"] * 2
    assert [part.rate for part in parts_of(attack)] == [0.05, 0.1]
    with pytest.raises(ClipguardError, match="attack blended has no option 'size'"):
        attack_named("together:badnets+blended", size=2)


def test_a_seed_repeats_and_another_one_does_not():
    data, attack = clean_set(), attack_named("together:badnets+blended", rate=0.1)
    one, same, other = (attack.poison(data, Seed(seed))[0].fingerprint for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    "name", ["together:", "together:badnets", "together:badnets+", "together:trojan+sig"]
)
def test_less_than_two_attacks_or_unknown_ones_are_refused(name):
    with pytest.raises(ClipguardError, match="attack") as caught:
        attack_named(name)
    assert "\n" not in str(caught.value)


def test_a_target_beyond_the_classes_is_refused():
    with pytest.raises(ClipguardError, match="target class 3 does not exist"):
        attack_named("together:badnets+blended", rate=0.1, target=2).poison(clean_set(), Seed(0))


def test_attacks_that_take_more_than_there_is_are_refused():
    with pytest.raises(ClipguardError, match="lower the rate"):
        attack_named("together:badnets+blended", rate=0.6).poison(clean_set(), Seed(0))


def test_every_part_is_fitted():
    class Learned(BadNets):
        def fit(self, data, seed, cache, progress):
            assert data is whole
            return attack_named("blended")

    whole = clean_set()
    fitted = fit_attack(Together(attacks=(attack_named("badnets"), Learned())), whole, Seed(0))
    assert fitted.attacks == (attack_named("badnets"), attack_named("blended"))


def test_the_truth_of_several_attacks_comes_back_from_its_file(tmp_path):
    _, truth = attack_named("together:badnets+wanet", rate=0.1).poison(clean_set(), Seed(0))
    write_truth(truth, tmp_path / "truth.parquet")
    again = read_truth(tmp_path / "truth.parquet")
    assert np.array_equal(again.part, truth.part)
    assert set(again.part.tolist()) == {-1, 0, 1}
    assert again.attack == "together:badnets+wanet"
