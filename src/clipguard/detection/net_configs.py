"""How early-training model and trigger detector are trained, as values alone: no torch here."""

from dataclasses import asdict, dataclass, field
from typing import Final

from clipguard.compute.recipes import SmallNetConfig
from clipguard.errors import ClipguardError


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualConfig(SmallNetConfig):
    """An early-training model that learns of each label only what the guide does not read in the image."""


LATER: Final = 3
"""Times the epochs after which the model is asked again, for the dirty-label axis of the verdict.

Chosen on development draws: `docs/experiments.md`, section 22.
"""

_SHALLOW: Final = SmallNetConfig(
    architecture="shallow-32",
    epochs=5,
    batch_size=64,
    optimizer="adam",
    lr=2e-3,
    schedule="constant",
    fewest_steps=300,
)

_CGD: Final = SmallNetConfig(
    architecture="preactresnet18-64",
    epochs=5,
    batch_size=256,
    optimizer="adam",
    lr=3e-4,
    schedule="constant",
    runs=3,
)

EARLY_MODELS: dict[str, SmallNetConfig] = {
    "shallow": _SHALLOW,
    "residual": ResidualConfig(**asdict(_SHALLOW)),
    "cgd": _CGD,
}
"""Choices by name. `shallow` is the default: a net too small to learn objects in that time learns triggers
all the sooner, in a fifth of the time. `residual` is for a guide that reads the classes well, and for sets in
which a class is learnt as early as a trigger. `cgd` is CGD's: three runs of width 64."""

REFINEMENT_EPOCHS: Final = 3
"""In a refinement, the nets of the round before go on at half the first learning rate."""


def _shallow() -> SmallNetConfig:
    """Return the default net; two folds, since memorised labels would flag themselves."""
    return SmallNetConfig(
        architecture="shallow-32",
        epochs=6,
        batch_size=32,
        optimizer="sgd",
        lr=0.05,
        schedule="one-cycle",
        folds=2,
        fewest_steps=600,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerDetectorConfig:
    """The net, and its two thresholds on the probability of carrying a trigger.

    Attributes:
        net: the small net and its training.
        refinements: rounds after the first, at most; 0 turns them off.
        flagged: above it, a sample is flagged.
        clean: above it, a sample is not learnt from either, until unlearning re-admits it.
    """

    net: SmallNetConfig = field(default_factory=_shallow)
    refinements: int = 3
    flagged: float = 0.8
    clean: float = 0.5

    def __post_init__(self) -> None:
        """Refuse thresholds that would put a sample into both sets, and rounds of less than no epoch."""
        if not 0 <= self.clean <= self.flagged <= 1:
            raise ClipguardError(
                f"trigger detector thresholds clean {self.clean} and flagged {self.flagged}: "
                "give 0 <= clean <= flagged <= 1"
            )
        if self.refinements < 0:
            raise ClipguardError(f"{self.refinements} refinements of the trigger detector: give 0 or more")

    def total_epochs(self, trainable: int) -> int:
        """Return the epochs of all rounds and nets, at most, for a number of samples to learn from."""
        epochs = self.net.total_epochs(trainable) + self.refinements * REFINEMENT_EPOCHS
        return epochs * self.net.runs * self.net.folds
