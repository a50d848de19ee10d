"""The scores of a scan in one call, without a run folder: for canaries and for measurements."""

from clipguard.compute.training import EpochHook
from clipguard.detection.competence import second_axis
from clipguard.detection.early_model import early_losses
from clipguard.detection.entropy_map import entropy_map, first_partition, opinion
from clipguard.detection.probed_labels import probed_labels
from clipguard.detection.sample_scores import SampleScores
from clipguard.detection.trigger_detector import trigger_scores
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed, Stream
from clipguard.types import ImageSet, Rows, Scores


def sample_scores(
    data: ImageSet,
    guide: Scores,
    embeddings: Rows,
    config: DefenseConfig,
    on_epoch: EpochHook | None = None,
) -> SampleScores:
    """Return what a scan with this configuration knows of every sample, to the last bit.

    Args:
        data: images as the small nets take them.
        guide: the guide's scores of them.
        embeddings: the guide's embeddings of them [n, d].
        config: settings, and the seed.
        on_epoch: called with the number of finished epochs of each net.

    Raises:
        ClipguardError: NaN scores.
    """
    seed, k = Seed(config.seed), len(data.class_names)
    guide_nll, guide_class = opinion(guide, data.labels)
    losses = early_losses(data, guide, config.early_model, seed.child(Stream.EARLY_MODEL), on_epoch)
    probe, exchange, one_way = probed_labels(embeddings, data.labels, k, seed.child("labels"), data.groups)
    axis = second_axis(data.labels, guide_class, probe.loss, probe.likeliest)
    partition = first_partition(
        entropy_map(guide_nll, losses.early), data.labels, k, config.entropy_map, axis
    )
    triggers = trigger_scores(
        data, partition, embeddings, config.trigger_detector, seed.child("detect"), on_epoch
    )
    return SampleScores(
        labels=data.labels,
        num_classes=k,
        guide_nll=guide_nll,
        guide_class=guide_class,
        early_nll=losses.early,
        late_nll=losses.late,
        probe_loss=probe.loss,
        probe_class=probe.likeliest,
        first_round=triggers.first_round,
        trigger_score=triggers.probability,
        exchange=exchange,
        one_way=one_way,
    )
