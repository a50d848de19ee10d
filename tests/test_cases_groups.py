"""Copies and frames of a video: what was learned of one sample of a group never scores another of it."""

from dataclasses import replace

import numpy as np

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.small_nets import train_small_nets
from clipguard.compute.training import cross_entropy
from clipguard.data import Columns, ImageSource
from clipguard.detection.linear_probe import linear_probe
from clipguard.detection.trigger_detector import propensity_weights
from clipguard.pipeline.defender import Defender
from clipguard.seeds import Seed
from tiny_data import pictures
from tiny_runs import CONFIG

GROUPS = np.repeat(np.arange(60), 5)


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


def test_a_scan_is_given_its_groups(tmp_path):
    table = {"images": pictures(60), "labels": ["cat", "dog"] * 30, "video": np.arange(60) // 4}
    source = ImageSource.open(table, columns=Columns(group="video"))
    defender = Defender(ClipGuide("mini"), tmp_path / "run", config=replace(CONFIG, power=0)).scan(source)
    assert defender.scan_.data.groups.tolist() == table["video"].tolist()
