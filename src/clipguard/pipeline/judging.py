"""What the verdict rests on: scores of a scan, trainings with and without what is flagged, canaries."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from jaxtyping import Bool

from clipguard.data.provenance import recorded_source
from clipguard.detection.class_evidence import ClassEvidence, class_evidence
from clipguard.detection.drawn_rows import MOST_ROWS
from clipguard.detection.label_exchange import LabelExchange
from clipguard.detection.label_flow import LabelView, label_only_poison
from clipguard.detection.linear_probe import Probe
from clipguard.detection.net_configs import LATER
from clipguard.detection.one_way_labels import OneWayLabels
from clipguard.detection.removal import Belief, beliefs, trusted_samples
from clipguard.detection.sample_scores import SampleScores
from clipguard.pipeline.power import CanaryOutcome, Scanned, canary_sets, originals, power
from clipguard.pipeline.scan import EpochProgress, Scan, write_notes
from clipguard.runs import read_json, read_table, write_json
from clipguard.types import State, StepProgress

BELIEFS: Final = "beliefs.json"
CANARIES: Final = "canaries.json"


def scores_of(scan: Scan) -> SampleScores:
    """Return what the finished stages of a scan say of every sample."""
    array, labels = scan.context.array, scan.context.finished["label_flow"].path
    return SampleScores(
        labels=scan.data.labels,
        num_classes=scan.num_classes,
        guide_nll=scan.entropy.guide_nll,
        guide_class=scan.likeliest,
        early_nll=scan.entropy.early_nll,
        late_nll=array("early_model", "late_nll.npy"),
        probe_loss=array("label_flow", "loss.npy"),
        probe_class=array("label_flow", "likeliest.npy"),
        first_round=array("trigger_detector", "first_round.npy"),
        trigger_score=array("trigger_detector", "probability.npy"),
        exchange=LabelExchange(**read_table(labels / "exchange.parquet")),
        one_way=OneWayLabels(**read_table(labels / "one_way.parquet")),
    )


def evidence_of(scan: Scan, scores: SampleScores) -> ClassEvidence:
    """Return what scores say of every class, with the settings of the scan."""
    config = scan.context.config
    return class_evidence(scores, config.entropy_map, config.trigger_detector)


def compare_beliefs(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write what two short trainings say of each class with samples that are flagged for a trigger."""
    config, flagged = scan.context.config, scan.partition.has(State.TRIGGER)
    trusted = trusted_samples(scores_of(scan), flagged, config.entropy_map, config.trigger_detector)
    counter = EpochProgress(2 * config.early_model.total_epochs(min(len(scan.data), MOST_ROWS)), progress)
    seed = scan.context.seed("removal")
    results = beliefs(scan.data, trusted, flagged, config.early_model, seed, counter)
    counter.finish()
    write_json(folder / BELIEFS, [asdict(one) for one in results])
    if not results:
        write_notes(folder, ["why flagged samples are believed was not tested: no trusted sample is left"])


def read_beliefs(folder: Path) -> tuple[Belief, ...]:
    """Return what the short trainings say, read back."""
    return msgspec.convert(read_json(folder / BELIEFS), tuple[Belief, ...])


def measure_power(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write what the scans of copies with canaries say."""
    context, config = scan.context, scan.context.config
    lost = recorded_source(context.finished["embeddings"].path)["unreadable_rows"]
    source = context.source
    kept = source.take(np.delete(np.arange(len(source)), lost)) if lost else source
    scanned = Scanned(
        data=scan.data,
        embeddings=context.embeddings,
        guide=context.guide,
        config=config,
        originals=originals(kept, context.common_size),
        view=context.view,
        untouched=~scan.partition.flagged,
        unsuspected=~suspected_classes(scan),
    )
    learned = min(len(scan.data), MOST_ROWS)
    nets = config.early_model, config.trigger_detector
    epochs = LATER * nets[0].total_epochs(learned) * nets[0].runs * nets[0].folds + nets[1].total_epochs(
        learned
    )
    counter = EpochProgress(config.power * epochs, progress)
    identified = partial(_suspected, scan)
    sets = canary_sets(len(scan.data))
    outcomes = list(power(scanned, sets, identified, config.power, context.seed("canaries"), counter))
    counter.finish()
    write_json(folder / CANARIES, [asdict(one) for one in outcomes])


def _suspected(scan: Scan, scores: SampleScores) -> Bool[np.ndarray, "k"]:
    """Return the classes of a copy that its scan would call suspicious, by any test or by label flow."""
    tests = evidence_of(scan, scores)
    nothing = np.zeros(0, np.int64), np.zeros((0, scores.num_classes), np.float32)
    view = LabelView(
        labels=scores.labels,
        num_classes=scores.num_classes,
        guide_nll=scores.guide_nll,
        unexplained=~tests.flagged,
    )
    probe = Probe(scores.probe_loss, scores.probe_class, *nothing)
    targets = tests.wrong_labels & ~tests.triggered
    flow = label_only_poison(view, probe, scan.context.config.label_flow, targets)
    by_label = np.bincount(scores.labels[flow.flagged], minlength=scores.num_classes) > 0
    return np.asarray(tests.suspected | by_label)


def suspected_classes(scan: Scan) -> Bool[np.ndarray, "k"]:
    """Return the classes that any test makes suspected, or in which a sample is flagged."""
    flagged = np.bincount(scan.data.labels[scan.partition.flagged], minlength=scan.num_classes) > 0
    return flagged if scan.tests is None else flagged | scan.tests.suspected


def read_outcomes(folder: Path) -> tuple[CanaryOutcome, ...]:
    """Return what the scans of the copies say, read back."""
    return msgspec.convert(read_json(folder / CANARIES), tuple[CanaryOutcome, ...])
