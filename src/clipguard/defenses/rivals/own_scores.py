"""Scores of clipguard's own scan as detectors: what its parts find alone, and what they find together."""

from dataclasses import dataclass, field

from clipguard.defenses.clipguard import scanned, stage_seconds
from clipguard.defenses.protocol import Case, Detected
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideLoss:
    """The guide's zero-shot loss of the given label, in nats."""

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Detected:
        """Return the losses."""
        defender = scanned(case, self.config)
        return Detected(scores=defender.scan_.entropy.guide_nll, seconds=_seconds(defender, "embeddings"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyLoss:
    """Minus the early-training model's loss of the given label, in nats: poison is learned early."""

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Detected:
        """Return the losses, negated."""
        defender = scanned(case, self.config)
        return Detected(
            scores=-defender.scan_.entropy.early_nll, seconds=_seconds(defender, "images", "early_model")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipguardScan:
    """The scan as it is: its suspicion of each sample, and what it flags."""

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Detected:
        """Return suspicion and flags."""
        defender = scanned(case, self.config)
        partition = defender.partition_
        return Detected(
            scores=partition.suspicion,
            flagged=partition.flagged,
            seconds=stage_seconds(defender),
        )


def _seconds(defender: Defender, *stages: str) -> dict[str, float]:
    return {name: defender.stages_[name].seconds for name in stages}
