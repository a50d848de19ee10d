"""The product as a defence."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace

from clipguard.data import ImageSource
from clipguard.data.columns import Columns
from clipguard.defenses.protocol import Case, Repaired
from clipguard.detection.feature_separation import FeatureSeparationConfig
from clipguard.mitigation.unlearning import UnlearningConfig
from clipguard.pipeline.computing import FEATURES_FILE
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.runs import read_table
from clipguard.types import ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipguard:
    """Scan and guided unlearning, as `clipguard defend` does them; the seed of `config` is the case's."""

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return the repaired model, the partition and the seconds of each stage."""
        defender = fitted(case, self.config)
        return Repaired(
            model=defender.model_,
            seconds=stage_seconds(defender),
            entropy_map=defender.scan_.entropy,
            partition=defender.partition_,
            notes={
                "flagged": int(defender.partition_.flagged.sum()),
                **_by_features(defender),
                **_of_verdict(defender),
            },
        )


def unfitted(case: Case, config: DefenseConfig) -> tuple[Defender, ImageSource]:
    """Return a defender and its source; every row of the case with these settings shares its stages."""
    # Power changes neither the partition nor the model, and its time is none of the defence's.
    config = replace(config, seed=case.seed, power=0)
    source = _source(case.data)
    run = case.run_dir / f"clipguard-{_scan_digest(config)}"
    return Defender(case.guide, run, config=config, progress=case.progress, quality=False), source


def scanned(case: Case, config: DefenseConfig) -> Defender:
    """Return a defender that has scanned; a scan that a row before has made is read back."""
    defender, source = unfitted(case, config)
    return defender.scan(source)


def stage_seconds(defender: Defender) -> dict[str, float]:
    """Return the seconds of each stage, also where it was read back."""
    return {name: stage.seconds for name, stage in defender.stages_.items()}


def _source(data: ImageSet) -> ImageSource:
    pair = (data.images, data.labels)
    if data.groups is None:
        return ImageSource.open(pair, classes=data.class_names)
    table = dict(zip(("image", "label", "group"), (*pair, data.groups), strict=True))
    return ImageSource.open(table, classes=data.class_names, columns=Columns(group="group"))


def fitted(case: Case, config: DefenseConfig) -> Defender:
    """Return the fitted defender."""
    defender, source = unfitted(case, config)
    return defender.fit(source, model=case.victim, spec=case.spec)


def _scan_digest(config: DefenseConfig) -> str:
    """Return a short name of the settings of a scan, which rows that repair otherwise share.

    In one run folder, two scans would replace each other's stages.
    """
    shared = replace(config, unlearning=UnlearningConfig(), feature_separation=FeatureSeparationConfig())
    return hashlib.sha256(json.dumps(asdict(shared), sort_keys=True).encode()).hexdigest()[:8]


def _by_features(defender: Defender) -> dict[str, int]:
    """Return how many samples of quarantined classes the victim's features flag and trust."""
    stage = defender.stages_.get("feature_separation")
    if stage is None:
        return {}
    status = read_table(stage.path / FEATURES_FILE)["status"]
    return {f"{name}_by_features": int((status == name).sum()) for name in ("flagged", "trusted")}


def _of_verdict(defender: Defender) -> dict[str, int]:
    """Return the number of suspicious classes, and of the first one its number and what it holds at least."""
    findings = defender.verdict_.findings
    notes = {"suspicious_classes": len(findings)}
    if findings:
        notes["suspicious_class"] = findings[0].label
        if findings[0].at_least is not None:
            notes["at_least"] = findings[0].at_least
    return notes
