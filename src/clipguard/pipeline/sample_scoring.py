"""The scores of a scan in one call, without a run folder: for canaries and for measurements."""

import numpy as np

from clipguard.detection.early_model import early_model_scores
from clipguard.detection.entropy_map import entropy_map, first_partition, label_nll, opinion
from clipguard.detection.linear_probe import linear_probe
from clipguard.detection.sample_scores import SampleScores
from clipguard.detection.trigger_detector import trigger_scores
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed, Stream
from clipguard.types import ImageSet, Rows, Scores


def sample_scores(data: ImageSet, guide: Scores, embeddings: Rows, config: DefenseConfig) -> SampleScores:
    """Return what a scan with this configuration knows of every sample, to the last bit.

    Args:
        data: images as the small nets take them.
        guide: the guide's scores of them.
        embeddings: the guide's embeddings of them [n, d].
        config: settings, and the seed.

    Raises:
        ClipguardError: NaN scores.
    """
    seed, k = Seed(config.seed), len(data.class_names)
    guide_nll, guide_class = opinion(guide, data.labels)
    early = early_model_scores(data, guide, config.early_model, seed.child(Stream.EARLY_MODEL))
    early_nll = label_nll(early, data.labels)
    partition = first_partition(entropy_map(guide_nll, early_nll), data.labels, k, config.entropy_map)
    triggers = trigger_scores(data, partition, embeddings, config.trigger_detector, seed.child("detect"))
    nobody, no_class = np.zeros(len(data), dtype=bool), np.zeros(k, dtype=bool)
    probe = linear_probe(embeddings, data.labels, no_class, nobody, seed.child("labels"))
    return SampleScores(
        labels=data.labels,
        num_classes=k,
        guide_nll=guide_nll,
        guide_class=guide_class,
        early_nll=early_nll,
        probe_loss=probe.loss,
        probe_class=probe.likeliest,
        first_round=triggers.first_round,
        trigger_score=triggers.probability,
    )
