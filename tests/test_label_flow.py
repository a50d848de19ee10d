"""detection.label_flow: labels planted into one class are told from noise that goes both ways."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipguard.detection.label_flow import (
    NO_LOG_PROB,
    LabelFlow,
    LabelFlowConfig,
    class_log_probs,
    label_flow_z,
    label_only_poison,
    refitted_label_flow,
    with_label_flags,
)
from clipguard.seeds import Seed
from clipguard.types import Split

K = 4
NOISE = LabelFlowConfig()


def blobs(sizes=(300,) * K, spread=1.0, seed=0):
    """Return embeddings and true labels: one cloud a class, neighbours overlapping."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = 3 * np.eye(len(sizes), 12)
    return (centres[labels] + spread * draw.normal(size=(len(labels), 12))).astype(np.float32), labels


def judged(embeddings, labels, guide_nll=None, unexplained=None):
    everyone = np.ones(len(labels), dtype=bool)
    odds = class_log_probs(embeddings, labels, K, ~everyone, NOISE, Seed(0))
    own = -odds[np.arange(len(labels)), labels] if guide_nll is None else guide_nll
    return label_only_poison(own, odds, labels, everyone if unexplained is None else unexplained, NOISE)[0]


def flipped(labels, count, target=0, seed=1):
    """Return labels of which `count` of other classes became `target`, and which."""
    rows = np.random.default_rng(seed).choice(np.flatnonzero(labels != target), count, replace=False)
    changed, bad = labels.copy(), np.zeros(len(labels), dtype=bool)
    changed[rows], bad[rows] = target, True
    return changed, bad


@pytest.mark.parametrize("target", [0, 2])
def test_labels_planted_into_one_class_are_found(target):
    embeddings, labels = blobs(spread=0.8)
    changed, bad = flipped(labels, 60, target)
    found = judged(embeddings, changed)
    assert found[bad].mean() > 0.7
    assert found[~bad].mean() < 0.01


def test_an_untouched_set_has_no_planted_label_even_if_classes_overlap_and_differ_in_size():
    for seed in range(5):
        embeddings, labels = blobs((600, 200, 60, 20), spread=2.0, seed=seed)
        assert not judged(embeddings, labels).any()


def test_a_leaning_that_all_classes_share_in_some_measure_is_no_attack_however_large_the_set():
    # Each class is taken for its lower neighbour more often than the other way round, more or less so.
    draw = np.random.default_rng(4)
    n, k = 80_000, 10
    labels = draw.integers(0, k, n)
    leaning = draw.uniform(0.0, 0.04, k)
    odds = np.where(np.eye(k, dtype=bool)[labels], 0.0, -9.0)
    wrong = draw.random(n) < leaning[labels]
    odds[wrong] = np.where(np.eye(k, dtype=bool)[(labels[wrong] - 1) % k], 0.0, -9.0)
    everyone = np.ones(n, bool)
    assert label_flow_z(everyone, odds, labels, everyone).max() > NOISE.label_flow_z
    for noise, called in ((NOISE, False), (LabelFlowConfig(outlier=-1e9), True)):
        assert label_only_poison(np.full(n, 9.0), odds, labels, everyone, noise)[0].any() == called


def test_few_planted_labels_stand_out_among_the_most_absurd_where_leanings_hide_them_from_the_rest():
    # Every class but the first leans one way or the other, a little: by 6 nats, where planted labels reach 9.
    n, k = 20_000, 10
    eye = np.eye(k, dtype=bool)
    labels = np.arange(n) % k
    said, depth = labels.copy(), np.zeros(n)
    draw = np.random.default_rng(5)
    leaning = np.array([0, 0.02, -0.02, 0.02, -0.02, 0.02, -0.02, 0.02, -0.02, 0])
    for one in range(1, 9, 2):
        leaning_rows = (labels == one) & (draw.random(n) < leaning[one])
        said[leaning_rows], depth[leaning_rows] = one + 1, 6.0
    planted = (labels == 0) & (draw.random(n) < 0.04)
    said[planted], depth[planted] = draw.integers(1, k, planted.sum()), 9.0
    odds = np.where(eye[said], 0.0, -np.where(said == labels, 9.0, depth)[:, None])
    everyone = np.ones(n, bool)
    found, *_ = label_only_poison(np.full(n, 9.0), odds, labels, everyone, LabelFlowConfig(absurd=0.003))
    assert found[planted].all()
    assert not found[~planted].any()
    blunt = LabelFlowConfig(absurd=0.5)
    assert not label_only_poison(np.full(n, 9.0), odds, labels, everyone, blunt)[0].any()


def test_labels_that_are_all_as_absurd_are_all_counted():
    # More of them than are looked for: none is the most absurd.
    n, k = 4000, 10
    labels, planted = np.arange(n) % k, np.arange(n) % 40 == 0
    odds = np.where(np.eye(k, dtype=bool)[np.where(planted, 1 + np.arange(n) // 40 % 9, labels)], 0.0, -9.0)
    found, *_ = label_only_poison(np.full(n, 9.0), odds, labels, np.ones(n, bool), NOISE)
    assert np.array_equal(found, planted)


def test_a_class_that_nobody_is_flagged_in_is_not_doubted_either():
    embeddings, labels = blobs()
    changed, _ = flipped(labels, 60)
    everyone = np.ones(len(labels), bool)
    odds = class_log_probs(embeddings, changed, K, ~everyone, NOISE, Seed(0))
    believing = np.zeros(len(labels))
    assert not label_only_poison(believing, odds, changed, everyone, NOISE)[1].any()


def test_labels_of_one_class_alone_that_became_another_are_found_by_the_pair():
    n, k = 6000, 6
    draw = np.random.default_rng(3)
    labels = np.arange(n) % k
    # All classes are a little unlike each other in how absurd their mistakes are, and one gives a fifth away.
    said = np.where(draw.random(n) < 0.1, draw.integers(0, k, n), labels)
    depth = np.where(said == labels, 0.0, draw.exponential(6, n))
    given = (labels == 5) & (draw.random(n) < 0.2)
    changed = np.where(given, 2, labels)
    said[given], depth[given] = 5, 7.0
    odds = np.where(np.eye(k, dtype=bool)[said], 0.0, -np.where(said == changed, 9.0, depth)[:, None])
    everyone, guide = np.ones(n, bool), np.full(n, 9.0)
    found, *_ = label_only_poison(guide, odds, changed, everyone, NOISE)
    assert np.array_equal(np.unique(changed[found]), [2])
    assert found[given].all()
    assert not label_only_poison(guide, odds, changed, everyone, LabelFlowConfig(pair=1e9))[0].any()
    # Two such pairs are not far ahead of each other: confusion, of which there may be more.
    also = (labels == 4) & (draw.random(n) < 0.2)
    twice, other = np.where(also, 1, changed), np.where(also, 4, said)
    odds = np.where(
        np.eye(k, dtype=bool)[other], 0.0, -np.where(other == twice, 9.0, np.where(also, 7, depth))[:, None]
    )
    assert not label_only_poison(guide, odds, twice, everyone, NOISE)[0].any()


def test_symmetric_noise_is_not_called_an_attack():
    embeddings, labels = blobs()
    draw = np.random.default_rng(3)
    noisy = draw.random(len(labels)) < 0.1
    labels = np.where(noisy, (labels + draw.integers(1, K, len(labels))) % K, labels)
    assert not judged(embeddings, labels).any()


def test_labels_that_the_guide_believes_are_left_alone():
    embeddings, labels = blobs()
    changed, _ = flipped(labels, 60)
    assert not judged(embeddings, changed, guide_nll=np.zeros(len(labels))).any()


def test_where_a_trigger_explains_the_wrong_labels_no_more_are_flagged():
    embeddings, labels = blobs()
    changed, bad = flipped(labels, 60)
    explained = bad & (np.random.default_rng(2).random(len(bad)) < 0.95)
    assert not judged(embeddings, changed, unexplained=~explained).any()


def test_a_class_in_which_a_trigger_explains_more_than_looks_planted_is_left_alone():
    embeddings, labels = blobs()
    changed, bad = flipped(labels, 60)
    found = judged(embeddings, changed)
    others = np.flatnonzero((changed == 0) & ~bad & ~found)
    as_many = np.isin(np.arange(len(labels)), others[: found.sum()])
    assert judged(embeddings, changed, unexplained=~as_many).any()
    more = np.isin(np.arange(len(labels)), others[: found.sum() + 5])
    assert not judged(embeddings, changed, unexplained=~more).any()


def test_a_sample_is_judged_by_a_probe_that_has_not_seen_it():
    # A lone sample far from all others: whoever has learnt it believes its label.
    embeddings, labels = blobs((40,) * K)
    embeddings[5] = 1000
    before = class_log_probs(embeddings, labels, K, np.zeros(len(labels), bool), NOISE, Seed(0))
    changed = labels.copy()
    changed[5] = 3
    after = class_log_probs(embeddings, changed, K, np.zeros(len(labels), bool), NOISE, Seed(0))
    assert np.array_equal(before[5], after[5])


def test_reserved_samples_are_judged_but_not_learnt():
    embeddings, labels = blobs((40,) * K)
    reserved = np.arange(len(labels)) % 10 == 0
    odds = class_log_probs(embeddings, labels, K, reserved, NOISE, Seed(0))
    embeddings_moved = embeddings.copy()
    embeddings_moved[reserved] += 5
    moved = class_log_probs(embeddings_moved, labels, K, reserved, NOISE, Seed(0))
    assert np.array_equal(odds[~reserved], moved[~reserved])
    assert not np.array_equal(odds[reserved], moved[reserved])


def test_a_class_of_a_few_samples_is_given_no_opinion():
    embeddings, labels = blobs((40, 40, 40, 6))
    found = judged(embeddings, labels)
    odds = class_log_probs(embeddings, labels, K, np.zeros(len(labels), bool), NOISE, Seed(0))
    assert (odds[:, 3] == NO_LOG_PROB).all()
    assert (odds[:, :3] > NO_LOG_PROB).all()
    assert not found[labels == 3].any()


def test_one_class_alone_gives_no_opinion_at_all():
    embeddings, labels = blobs((40, 4, 4, 4))
    everyone = np.ones(len(labels), bool)
    odds = class_log_probs(embeddings, labels, K, ~everyone, NOISE, Seed(0))
    assert not judged(embeddings, labels).any()
    assert np.isfinite(label_flow_z(everyone, odds, labels, everyone)).all()


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_the_surplus_is_the_difference_of_rates_in_standard_errors(seed, k):
    draw = np.random.default_rng(seed)
    n = 50
    labels = draw.integers(0, k, n)
    odds, guide = draw.normal(-3, 3, (n, k)), draw.exponential(4, n)
    left, disbelieved = draw.random(n) < 0.8, draw.random(n) < 0.6
    # Every class is fed that takes in more than it gives out, so that something is flagged.
    eager = LabelFlowConfig(label_flow_z=0.0, outlier=-1e9)
    found, doubted, _ = label_only_poison(guide, odds, labels, left, eager)
    excess = label_flow_z(disbelieved & left, odds, labels, left)
    size = [max(1, sum(left & (labels == c))) for c in range(k)]
    for c in range(k):
        into, out, variance = 0.0, 0.0, 0.0
        for i in range(n):
            said = int(np.argmax(odds[i]))
            if left[i] and disbelieved[i] and said != labels[i]:
                if labels[i] == c:
                    into += 1 / size[c]
                    variance += 1 / size[c] ** 2
                if said == c:
                    out += 1 / size[labels[i]]
                    variance += 1 / size[labels[i]] ** 2
        variance += sum(1 / k / size[c] ** 2 for _ in range(k)) + sum(1 / k / s**2 for s in size)
        assert excess[c] == pytest.approx((into - out) / variance**0.5)
    own = odds[np.arange(n), labels]
    assert not found[~left | (guide <= NOISE.unbelieved) | (-own <= NOISE.implausible)].any()
    assert not doubted[~left | (-own <= NOISE.doubt) | found].any()


def test_in_a_fed_class_alone_what_the_probe_doubts_is_not_learnt_from():
    embeddings, labels = blobs()
    changed, bad = flipped(labels, 60, 2)
    everyone = np.ones(len(labels), bool)
    odds = class_log_probs(embeddings, changed, K, ~everyone, NOISE, Seed(0))
    own = -odds[np.arange(len(labels)), changed]
    # A guide that believes every second label, whatever it is: half of the planted ones are plausible.
    guide = np.where(np.arange(len(labels)) % 2, own, 0.0)
    found, doubted, _ = label_only_poison(guide, odds, changed, everyone, NOISE)
    assert 0.3 < found[bad].mean() < 0.7
    assert (found | doubted)[bad].mean() > 0.9
    assert np.array_equal(doubted, (changed == 2) & (own > NOISE.doubt) & ~found)
    assert not label_only_poison(guide, odds, labels, everyone, NOISE)[1].any()


def test_planted_labels_leave_clean_join_triggered_and_rise_in_the_ranking():
    part = Split(
        clean=np.array([True, True, False, False]),
        triggered=np.array([False, False, True, False]),
        suspicion=np.array([0.2, 0.4, 0.9, 0.5]),
    )
    assert part.admissible.tolist() == [True, True, False, True]
    assert part.closed == ()
    odds = np.log(np.array([[0.1, 0.2, 0.3, 0.4]] * 4))
    judged = LabelFlow(np.array([True, False, True, False]), np.array([False, True, True, False]), odds)
    before = odds.copy()
    more = with_label_flags(part, np.array([3, 1, 3, 0]), judged, NOISE)
    assert np.array_equal(odds, before)
    assert more.clean.tolist() == [False, False, False, False]
    assert more.triggered.tolist() == [True, False, True, False]
    assert more.suspicion.tolist() == [0.6, 0.4, 0.95, 0.5]
    assert more.admissible.tolist() == [False, False, False, True]
    # A class in which another look only doubts is closed, too.
    assert more.closed == (1, 3)
    # What the labels of class 3 leave to the others, as a distribution.
    assert more.shown[[0, 2]] == pytest.approx(np.array([[1 / 6, 1 / 3, 1 / 2, 0]] * 2))
    # So of one that is only doubted: a later stage may flag it. Of an open class nothing is told.
    assert more.shown[1] == pytest.approx(np.array([1 / 8, 0, 3 / 8, 1 / 2]))
    assert not more.shown[3].any()
    nobody = np.zeros(4, bool)
    assert (
        with_label_flags(part, np.array([3, 1, 3, 0]), LabelFlow(nobody, nobody, odds), NOISE).shown is None
    )


def marked(count):
    """Return embeddings, labels and which are planted: those have something in common that the probe sees."""
    embeddings, labels = blobs(spread=0.8)
    changed, bad = flipped(labels, count)
    embeddings[bad, -1] += 3
    return embeddings, changed, bad


def opinion(embeddings, labels, seed=0):
    everyone = np.ones(len(labels), bool)
    odds = class_log_probs(embeddings, labels, K, ~everyone, NOISE, Seed(seed))
    guide = -odds[np.arange(len(labels)), labels]
    return label_only_poison(guide, odds, labels, everyone, NOISE), guide


def again(embeddings, labels, judged, guide, noise=NOISE):
    everyone = np.ones(len(labels), bool)
    return refitted_label_flow(embeddings, guide, labels, K, everyone, ~everyone, judged, noise, Seed(0))


def test_a_probe_that_has_not_learnt_the_flagged_labels_finds_more_of_their_like():
    embeddings, labels, bad = marked(150)
    first, guide = opinion(embeddings, labels)
    second = again(embeddings, labels, first, guide)
    assert first.planted[bad].sum() < second.planted[bad].sum()
    left = [(bad & ~judged.planted & ~judged.doubted).sum() for judged in (first, second)]
    assert left[1] < left[0] / 2
    assert second.planted[~bad].mean() < 0.02
    assert not (second.planted & second.doubted).any()
    assert set(labels[second.planted | second.doubted]) == {0}


def test_a_closed_class_counts_for_as_many_as_are_thought_honest():
    embeddings, labels, bad = marked(150)
    nothing = np.zeros(len(labels), bool)
    part = Split(clean=~nothing, triggered=nothing, suspicion=np.zeros(len(labels)))
    first, guide = opinion(embeddings, labels)
    flagged = again(embeddings, labels, first, guide)
    honest = np.bincount(labels[~bad])
    assert (labels[flagged.planted] == 0).all()
    # Planted labels that are not flagged do not count either, unless they are more than those that are.
    for share in (1.0, 0.6, 0.2):
        kept = flagged.planted & (np.random.default_rng(0).random(len(labels)) < share)
        more = with_label_flags(part, labels, flagged._replace(planted=kept), NOISE)
        rest = np.bincount(labels[~more.triggered], minlength=K)
        least = rest - np.array([kept.sum(), 0, 0, 0])
        assert more.honest * rest == pytest.approx(np.maximum(honest, least), rel=0.1)
        assert (more.honest[1:] == 1).all()
    assert with_label_flags(part, labels, LabelFlow(nothing, nothing, first.odds), NOISE).honest is None


def test_a_class_that_is_hard_and_next_to_nothing_of_it_planted_counts_almost_whole():
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 1000)
    own = np.where(draw.random(3000) < np.where(labels == 0, 0.3, 0.05), 0.1, 0.9)
    odds = np.log(np.full((3000, 3), 0.05))
    odds[np.arange(3000), labels] = np.log(own)
    nothing, two = np.zeros(3000, bool), np.arange(3000) < 2
    part = Split(clean=~nothing, triggered=nothing, suspicion=np.zeros(3000))
    more = with_label_flags(part, labels, LabelFlow(two, nothing, odds), NOISE)
    assert more.honest == pytest.approx(np.array([996 / 998, 1, 1]))


def test_the_honest_share_is_a_number_where_nothing_is_left_to_compare_with():
    labels, everyone = np.array([0, 0, 0, 1]), np.ones(4, bool)
    part = Split(clean=~everyone, triggered=labels == 1, suspicion=np.zeros(4))
    odds = np.log(np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]))
    more = with_label_flags(
        part, labels, LabelFlow(np.array([False, True, False, False]), ~everyone, odds), NOISE
    )
    assert more.honest.tolist() == [0.5, 1.0]


def test_without_another_look_the_first_one_stands():
    embeddings, labels, _ = marked(150)
    first, guide = opinion(embeddings, labels)
    for same in (
        again(embeddings, labels, first, guide, LabelFlowConfig(looks=0)),
        # A class of which next to nothing is left cannot be learnt anew.
        again(embeddings, labels, LabelFlow(labels == 0, first.doubted, first.odds), guide),
    ):
        assert np.array_equal(same.doubted, first.doubted)


def test_on_another_look_reserved_samples_are_judged_and_explained_ones_are_not():
    embeddings, labels, bad = marked(150)
    first, guide = opinion(embeddings, labels)
    everyone = np.ones(len(labels), bool)
    reserved = bad & (np.arange(len(labels)) % 2 == 0)
    scene = (embeddings, guide, labels, K)
    judged = refitted_label_flow(*scene, ~reserved, reserved, first, NOISE, Seed(0))
    assert not (judged.planted | judged.doubted)[reserved].any()
    judged = refitted_label_flow(*scene, everyone, reserved, first, NOISE, Seed(0))
    assert (judged.planted | judged.doubted)[reserved].mean() > 0.5
