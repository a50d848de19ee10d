"""All settings of a defence."""

from dataclasses import dataclass, field
from typing import Literal

from clipguard.compute.recipes import DEFAULT_RECIPE, Recipe, SmallNetConfig
from clipguard.detection.entropy_map import EntropyMapConfig
from clipguard.detection.feature_separation import FeatureSeparationConfig
from clipguard.detection.label_flow import LabelFlowConfig
from clipguard.detection.net_configs import EARLY_MODELS, TriggerDetectorConfig
from clipguard.errors import ClipguardError
from clipguard.mitigation.unlearning import UnlearningConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenseConfig:
    """All settings of a defence; what changes a stage's result is part of its cache key.

    Attributes:
        size: height and width at which the small nets and a victim trained here see the images; None takes
            the commonest size of the data, at most 64 a side.
        early_model: the early-training model.
        entropy_map: thresholds of the first partition.
        trigger_detector: the trigger detector.
        label_flow: when labels are flagged without a trigger.
        feature_separation: how the features of the model to repair judge the labels of quarantined classes.
        architecture: of the victim that is trained here when no model is given.
        victim: its recipe, also that of `retrain`.
        by: `unlearn` repairs the model, `retrain` drops the flagged and excluded samples and trains anew.
        drop_anyway: whether `retrain` may drop more than `clipguard.pipeline.retraining` allows.
        unlearning: how unlearning is done.
        power: copies of the data in which known triggers (canaries) are put, to measure what the scan can
            identify here. Each costs the trainings of a scan once more. With 0, nothing is called clean.
        seed: root of all randomness.
    """

    size: tuple[int, int] | None = None
    early_model: SmallNetConfig = field(default_factory=lambda: EARLY_MODELS["shallow"])
    entropy_map: EntropyMapConfig = field(default_factory=EntropyMapConfig)
    trigger_detector: TriggerDetectorConfig = field(default_factory=TriggerDetectorConfig)
    label_flow: LabelFlowConfig = field(default_factory=LabelFlowConfig)
    feature_separation: FeatureSeparationConfig = field(default_factory=FeatureSeparationConfig)
    architecture: str = "preactresnet18-16"
    victim: Recipe = DEFAULT_RECIPE
    by: Literal["unlearn", "retrain"] = "unlearn"
    drop_anyway: bool = False
    unlearning: UnlearningConfig = field(default_factory=UnlearningConfig)
    power: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a number of copies that cannot be made."""
        if self.power < 0:
            raise ClipguardError(f"power {self.power}: give the number of copies with canaries, 0 for none")
