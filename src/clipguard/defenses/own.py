"""The product as a defence, and the controls beside it."""

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from jaxtyping import Int64

from clipguard.compute.classifiers import ClassifierConfig, trained
from clipguard.compute.training import cross_entropy, fit
from clipguard.data import ImageSource
from clipguard.defenses.protocol import Case, Repaired
from clipguard.pipeline.computing import FEATURES_FILE
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.runs import read_table
from clipguard.seeds import Seed
from clipguard.types import State


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDefense:
    """The victim as it is."""

    def defend(self, case: Case) -> Repaired:
        """Return the victim."""
        return Repaired(model=case.victim, seconds={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipguard:
    """Scan and guided unlearning, as `clipguard defend` does them; the seed of `config` is the case's."""

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return the repaired model, the partition and the seconds of each stage."""
        defender = _fitted(case, self.config)
        return Repaired(
            model=defender.model_,
            seconds={name: stage.seconds for name, stage in defender.stages_.items()},
            entropy_map=defender.scan_.entropy,
            partition=defender.partition_,
            notes={"flagged": int(defender.partition_.flagged.sum()), **_by_features(defender)},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """Drops what clipguard flags or excludes and trains from scratch on the rest, by the victim's recipe."""

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return the new model and the partition."""
        # Without unlearning, which is no part of it; a scan of the row before is read back.
        defender, source = _defender(case, self.config)
        partition = defender.scan(source).partition_
        keep = partition.has(State.CLEAN, State.UNCERTAIN)
        classifier = ClassifierConfig(
            spec=case.spec, recipe=case.recipe, seed=Seed(case.seed).child("victim")
        )
        model, seconds = trained(case.data, classifier, case.cache, keep)
        stages = {name: stage.seconds for name, stage in defender.stages_.items()}
        return Repaired(
            model=model,
            seconds={**stages, "retraining": seconds},
            entropy_map=defender.scan_.entropy,
            partition=partition,
            notes={"dropped": int((~keep).sum())},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Control: the victim trained on everything with unlearning's schedule, flagged samples or not.

    It takes as many samples a pass as unlearning took, so that it shows what the mere training does.
    """

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return the fine-tuned victim."""
        history = _fitted(case, self.config).history_
        sizes = (history["clean"] + history["flagged"]).astype(int)
        model, seed = copy.deepcopy(case.victim), Seed(case.seed).child("control")

        def rows(epoch: int) -> Int64[np.ndarray, "m"]:
            drawn: Int64[np.ndarray, " m"] = seed.child("rows", epoch).numpy().permutation(len(case.data))
            return drawn[: sizes[epoch]]

        loss, recipe = cross_entropy(case.data.labels), self.config.unlearning.recipe
        done = fit(model, case.data.images, rows, loss, recipe, seed)
        return Repaired(model=model, seconds={"finetune": done.seconds})


def _defender(case: Case, config: DefenseConfig) -> tuple[Defender, ImageSource]:
    """Return a defender and its source; every row of the case with these settings shares its stages."""
    config = replace(config, seed=case.seed)
    source = ImageSource.open((case.data.images, case.data.labels), classes=case.data.class_names)
    run = case.run_dir / f"clipguard-{_digest(config)}"
    return Defender(case.guide, run, config=config, progress=case.progress), source


def _fitted(case: Case, config: DefenseConfig) -> Defender:
    """Return the fitted defender."""
    defender, source = _defender(case, config)
    return defender.fit(source, model=case.victim, spec=case.spec)


def _digest(config: DefenseConfig) -> str:
    """Return a short name of the settings: two of them in one run folder would replace each other's stages."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:8]


def _by_features(defender: Defender) -> dict[str, int]:
    """Return how many samples of quarantined classes the victim's features flag and trust."""
    stage = defender.stages_.get("feature_separation")
    if stage is None:
        return {}
    status = read_table(stage.path / FEATURES_FILE)["status"]
    return {f"{name}_by_features": int((status == name).sum()) for name in ("flagged", "trusted")}
