"""Copies and frames of a video: what was learned of one sample of a group never scores another of it."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.small_nets import train_small_nets
from clipguard.compute.training import cross_entropy
from clipguard.data import Columns, ImageSource
from clipguard.detection.linear_probe import linear_probe
from clipguard.detection.removal import removal
from clipguard.detection.trigger_detector import propensity_weights
from clipguard.errors import ClipguardError
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.power import Canaries, Scanned, canary_copy
from clipguard.pipeline.repair import held_out_rows
from clipguard.seeds import Seed
from clipguard.types import Preprocessing, array_digest
from tiny_data import pictures
from tiny_runs import CONFIG, GUIDE, poisoned_set

GROUPS = np.repeat(np.arange(60), 5)
REMOVAL, HELD_OUT = "bd26ddb3fc807929", "0c73d841eb1ea3ec"


def test_a_probe_has_not_learned_the_copies_of_what_it_scores():
    draw = np.random.default_rng(0)
    embeddings = np.repeat(draw.normal(size=(60, 40)), 5, axis=0).astype(np.float32)
    # Labels that nothing but the copies themselves can tell.
    labels = np.repeat(draw.permutation(np.arange(60) % 2), 5)
    nobody, no_class = np.zeros(300, bool), np.zeros(2, bool)
    apart = linear_probe(embeddings, labels, no_class, nobody, Seed(0))
    together = linear_probe(embeddings, labels, no_class, nobody, Seed(0), GROUPS)
    assert (apart.likeliest == labels).mean() > 0.8
    assert (together.likeliest == labels).mean() < 0.7


def test_small_nets_leave_whole_groups_out():
    images = pictures(60, size=8)
    labels, groups = np.arange(60) % 2, np.arange(60) // 6
    config = replace(CONFIG.trigger_detector.net, epochs=1, folds=3, runs=2)
    everyone, loss = np.ones(60, bool), cross_entropy(labels)
    nets = train_small_nets(config, images, 2, loss, everyone, Seed(0), groups=groups)
    for fold in nets.logits.fold:
        assert len(set(zip(groups.tolist(), fold.tolist(), strict=True))) == 10


def test_flagged_samples_of_a_single_group_leave_finite_weights():
    embeddings = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    flagged = np.arange(300) < 150
    groups = np.where(flagged, 0, np.arange(300))
    weights = propensity_weights(~flagged, flagged, embeddings, Seed(0), groups)
    assert weights is not None
    assert np.isfinite(weights).all()


def test_samples_of_one_single_group_are_refused_before_anything_is_read(tmp_path):
    table = {"images": pictures(60), "labels": ["cat", "dog"] * 30, "video": np.zeros(60, int)}
    source = ImageSource.open(table, columns=Columns(group="video"))
    with pytest.raises(ClipguardError, match=r"all samples of .* are of one group"):
        Defender(GUIDE, tmp_path / "run").scan(source)
    assert not (tmp_path / "run").exists()


def test_a_scan_is_given_its_groups(tmp_path):
    table = {"images": pictures(60), "labels": ["cat", "dog"] * 30, "video": np.arange(60) // 4}
    source = ImageSource.open(table, columns=Columns(group="video"))
    defender = Defender(ClipGuide("mini"), tmp_path / "run", config=replace(CONFIG, power=0)).scan(source)
    assert defender.scan_.data.groups.tolist() == table["video"].tolist()


draws = st.integers(0, 2**32)


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 4), draws)
def test_no_net_that_tells_the_cause_has_met_a_group_of_what_it_judges(n, count, k, seed):
    draw = np.random.default_rng(seed)
    groups, labels = draw.integers(0, count, n), draw.integers(0, k, n)
    flagged = draw.random(n) < 0.3
    trusted = (draw.random(n) < 0.8) & ~flagged
    split, torn = (removal(labels, trusted, flagged, Seed(seed), some) for some in (groups, None))
    scored = split.group | split.trusted
    learned = split.with_group | split.without_group
    assert not (scored & learned).any()
    for label in np.unique(labels[flagged]):
        assert (split.group & (labels == label)).any()
    # Where groups cannot be kept, the split is the one without any.
    if not np.array_equal(split.with_group, torn.with_group):
        assert set(groups[scored]).isdisjoint(groups[learned])
        for label in np.unique(labels[flagged]):
            assert (split.with_group & flagged & (labels == label)).any()


def test_flagged_frames_of_many_videos_are_split_by_video_and_those_of_one_by_frame():
    labels, flagged = np.zeros(300, np.int64), np.arange(300) < 100
    split = removal(labels, ~flagged, flagged, Seed(0), GROUPS)
    assert split.group.sum() == 50
    assert set(GROUPS[split.group]).isdisjoint(GROUPS[split.with_group])
    of_one = np.where(flagged, 0, GROUPS)
    split = removal(labels, ~flagged, flagged, Seed(0), of_one)
    assert (split.with_group & flagged).sum() == split.group.sum() == 50


def test_a_victim_is_measured_on_videos_that_it_has_not_seen():
    labels = np.arange(300) % 3
    mask = held_out_rows(labels, Seed(0), GROUPS)
    assert mask.sum() == 15
    assert set(GROUPS[mask]).isdisjoint(GROUPS[~mask])
    assert not np.array_equal(mask, held_out_rows(labels, Seed(1), GROUPS))
    # Of few videos, one would be too large a share.
    assert not held_out_rows(labels, Seed(0), np.arange(300) // 30).any()
    # A class that is most of a video's loses nothing, and neither does that video.
    labels = np.where(mask, 4, labels)
    assert not held_out_rows(labels, Seed(0), GROUPS).any()


def test_without_groups_draws_are_those_of_before():
    """Digests of what was drawn before there were groups: their results are published."""
    labels = np.arange(500) % 7
    flagged = np.arange(500) % 5 == 0
    split = removal(labels, ~flagged, flagged, Seed(3))
    held_out = held_out_rows(labels, Seed(3))
    assert array_digest(*(getattr(split, one.name) for one in fields(split)))[:16] == REMOVAL
    assert array_digest(held_out)[:16] == HELD_OUT


def test_a_copy_with_canaries_has_the_groups_of_the_data():
    data = replace(poisoned_set(60)[0], groups=np.arange(60) // 4)
    scanned = Scanned(
        data=data,
        embeddings=np.zeros((60, GUIDE.clip.embed_images(data.pixels[:1]).shape[1]), np.float32),
        guide=GUIDE,
        config=CONFIG,
        originals=lambda rows: data.images[rows],
        view=Preprocessing(size=(16, 16)),
        untouched=np.ones(60, bool),
        unsuspected=np.ones(3, bool),
    )
    one = Canaries(family="blend", label=0, rows=np.array([1]), seed=Seed(0))
    assert np.array_equal(canary_copy(scanned, (one,))[0].groups, data.groups)
