"""All settings of a defence, and how its progress is told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from clipguard.compute.cross_validation import SmallNetConfig
from clipguard.compute.training import VICTIM, Recipe
from clipguard.detection.early_model import EARLY_MODELS
from clipguard.detection.entropy_map import EntropyMapConfig
from clipguard.detection.feature_separation import FeatureSeparationConfig
from clipguard.detection.label_flow import LabelFlowConfig
from clipguard.detection.trigger_detector import TriggerDetectorConfig
from clipguard.mitigation.unlearning import UnlearningConfig

Report = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenseConfig:
    """All settings of a defence; what changes a stage's result is part of its cache key.

    Attributes:
        size: height and width at which the small nets and a victim trained here see the images; None takes
            the commonest size of the data, at most 64 a side. Never larger than the input of a given model.
        suspect: the suspicious model.
        rule: thresholds of the split.
        detector: the trigger detector.
        noise: when labels look planted.
        activations: how the model to cure judges the labels of a class that some were planted into.
        architecture: of the victim that is trained here when no model is given.
        victim: its recipe, also that of `retrain`.
        by: `unlearn` cures the model, `retrain` drops the flagged samples and trains from scratch.
        cure: how unlearning is done.
        seed: root of all randomness.
    """

    size: tuple[int, int] | None = None
    suspect: SmallNetConfig = field(default_factory=lambda: EARLY_MODELS["shallow"])
    rule: EntropyMapConfig = field(default_factory=EntropyMapConfig)
    detector: TriggerDetectorConfig = field(default_factory=TriggerDetectorConfig)
    noise: LabelFlowConfig = field(default_factory=LabelFlowConfig)
    activations: FeatureSeparationConfig = field(default_factory=FeatureSeparationConfig)
    architecture: str = "preactresnet18-16"
    victim: Recipe = VICTIM
    by: Literal["unlearn", "retrain"] = "unlearn"
    cure: UnlearningConfig = field(default_factory=UnlearningConfig)
    seed: int = 0


class Count:
    """Turns a kernel's epoch numbers, which start anew for each net of a stage, into progress."""

    def __init__(self, stage: str, total: int, tell: Report) -> None:
        self.stage, self.total, self.done, self.tell = stage, total, 0, tell
        tell(stage, 0, total)

    def __call__(self, _: int) -> None:
        """Tell that one more epoch is done."""
        self.done += 1
        self.tell(self.stage, self.done, self.total)

    def finish(self) -> None:
        """Tell that the stage is done, in fewer epochs than it might have taken."""
        if self.done < self.total:
            self.tell(self.stage, self.total, self.total)
