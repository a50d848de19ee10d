"""What a scan's scores say of each class: is there a trigger, in which samples, and in how many at least.

Two axes are independent of each other. The *pixel axis* asks whether the trigger detector's samples are
candidates of the entropy map more often than their content explains (`sensitivity`). The *dirty-label axis*
asks whether labels that the guide finds improbable are believed early (`early_belief`). A class is suspected
of a trigger where either axis rejects it and flags samples: without any, nobody could look at them, and no
cause could be tested. Flags outside suspected classes are released: a small data set has them by chance.
Labels alone may betray a class, too (`label_exchange`, `one_way_labels`).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from clipguard.detection.early_belief import EarlyBelief, early_belief
from clipguard.detection.entropy_map import EntropyMapConfig
from clipguard.detection.net_configs import TriggerDetectorConfig
from clipguard.detection.sample_scores import SampleScores
from clipguard.detection.sensitivity import Sides, at_least, class_strengths, false_shares
from clipguard.detection.trigger_detector import HANDFUL
from clipguard.types import Partition, State

ALPHA: Final = 0.05
"""Probability that an unpoisoned data set is called suspicious, as far as the nulls hold.

The customary value. The pixel axis has a half of it, the dirty-label axis a quarter, label exchange a fifth
and one-way labels, whose p-values are extreme if anything, a twentieth.
"""

PIXEL_ALPHA: Final = ALPHA / 2
EARLY_ALPHA: Final = ALPHA / 4
LABEL_ALPHA: Final = ALPHA / 5
ONE_WAY_ALPHA: Final = ALPHA / 20

LEAST_STRENGTH: Final = 4.0
"""Strength on the pixel axis from which a class is suspected.

Frozen on development draws: classes without a trigger have at most 1.8 in the smaller of both contents,
targets whose trigger the detector identifies at least 12.
"""

LEAST_EXCESS: Final = 0.001
"""Share of all samples by which certain labels of a class must exceed the expected ones.

A test alone rejects ever smaller effects: of 12,000 images in 100 classes, seven telephones labelled
"keyboard" are one, at 0.0005. Of development draws with 1 % of labels flipped to one class, none that is
rejected has less than 0.0011.
"""

FEWEST_SAMPLES: Final = 200
"""Samples below which nothing is suspected: the nets have too little to learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassEvidence:
    """What both axes say of k classes and n samples.

    Attributes:
        pixel_strength: largest odds ratio at which the pixel axis rejects the class.
        early: what the dirty-label axis says.
        triggered: classes that either axis rejects and in which samples are flagged.
        one_way: classes that hold labels of one other class from deep inside it.
        wrong_labels: these, and classes that label exchange rejects by enough labels to matter.
        flagged: samples of these classes that are flagged for a trigger.
        at_least: lower bound of the samples of each of them with a trigger, at `ALPHA` over all classes.
        q_value: estimated share of samples without a trigger among those of the same class that are at least
            as suspicious; 1 outside these classes.
    """

    pixel_strength: Float64[np.ndarray, "k"]
    early: EarlyBelief
    triggered: Bool[np.ndarray, "k"]
    one_way: Bool[np.ndarray, "k"]
    wrong_labels: Bool[np.ndarray, "k"]
    flagged: Bool[np.ndarray, "n"]
    at_least: Int64[np.ndarray, "k"]
    q_value: Float64[np.ndarray, "n"]

    @property
    def suspected(self) -> Bool[np.ndarray, "k"]:
        """Classes that any evidence rejects."""
        return np.asarray(self.triggered | self.wrong_labels)


def class_evidence(
    scores: SampleScores, entropy_map: EntropyMapConfig, detector: TriggerDetectorConfig
) -> ClassEvidence:
    """Return what the scores of a scan say of every class; settings are those of the scan."""
    sides = sides_of(scores, entropy_map, detector)
    strength = np.minimum(*(class_strengths(some, PIXEL_ALPHA) for some in sides))
    enough = len(scores) >= FEWEST_SAMPLES
    by_pixels = (strength >= LEAST_STRENGTH) & enough
    early = early_belief(
        scores.guide_nll, scores.late_nll, scores.labels, scores.num_classes, enough * EARLY_ALPHA
    )
    one_way = enough & (scores.one_way.p_value <= ONE_WAY_ALPHA)
    matters = scores.exchange.excess >= LEAST_EXCESS * len(scores)
    by_detector = sides[0].positive & by_pixels[scores.labels]
    # Where the detector has identified a trigger, its judgement is the finer one.
    by_early = early.flagged & ~by_pixels[scores.labels]
    flagged = by_detector | by_early
    bounds = np.minimum(*(at_least(some, PIXEL_ALPHA) for some in sides))
    shares = np.maximum(*(false_shares(some, scores.trigger_score) for some in sides))
    q_value = np.where(by_pixels[scores.labels], shares, np.where(by_early, early.false_share, 1.0))
    return ClassEvidence(
        pixel_strength=strength,
        early=early,
        triggered=np.bincount(scores.labels[flagged], minlength=scores.num_classes) > 0,
        one_way=one_way,
        wrong_labels=one_way | (matters & (scores.exchange.p_value <= enough * LABEL_ALPHA)),
        flagged=flagged,
        at_least=np.maximum(np.where(by_pixels, bounds, 0), early.at_least),
        q_value=q_value,
    )


def sides_of(
    scores: SampleScores, entropy_map: EntropyMapConfig, detector: TriggerDetectorConfig
) -> tuple[Sides, Sides]:
    """Return both sides of the entropy map, with the content that the guide reads and that of the probe."""
    partition = scores.first_partition(entropy_map)
    positive = scores.trigger_score > detector.flagged
    if positive.sum() < HANDFUL:
        positive = np.zeros_like(positive)
    guide, probe = (
        Sides(
            candidates=partition.has(State.TRIGGER),
            trusted=partition.clean,
            positive=positive,
            content=content,
            labels=scores.labels,
            num_classes=scores.num_classes,
        )
        for content in (scores.guide_class, scores.probe_class)
    )
    return guide, probe


def with_evidence(partition: Partition, tests: ClassEvidence) -> Partition:
    """Return the partition in which exactly what the evidence flags is flagged for a trigger."""
    released = partition.has(State.TRIGGER) & ~tests.flagged
    return partition.moved(released, State.UNCERTAIN).moved(tests.flagged, State.TRIGGER)
