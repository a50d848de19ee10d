"""The product as a defence, and the controls it is held against."""

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from jaxtyping import Int64

from clipguard.compute.classifiers import ClassifierConfig, cached_classifier
from clipguard.compute.training import cross_entropy, fit
from clipguard.data import ImageSource
from clipguard.defenses.protocol import Case, Repaired
from clipguard.pipeline import FEATURES_FILE, DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.runs import read_table
from clipguard.seeds import Seed


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDefense:
    """The victim as it is."""

    def defend(self, case: Case) -> Repaired:
        """Return the victim."""
        return Repaired(model=case.victim, seconds={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipguard:
    """Scan and guided unlearning, as `clipguard defend` does them; the seed of `plan` is the case's."""

    plan: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return the cured model, the refined split and the seconds of each stage."""
        return _cured(_fitted(case, self.plan))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """Drops what clipguard flags or doubts and trains from scratch on the rest, by the victim's recipe."""

    plan: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return the new model and the split."""
        # Without a cure, which is no part of it; a scan of the row before is found again.
        defender, source = _defender(case, self.plan)
        found = defender.scan(source, model_size=case.spec.input_size).found_
        keep = found.split.admissible
        schooling = ClassifierConfig(spec=case.spec, recipe=case.recipe, seed=Seed(case.seed).child("victim"))
        model, seconds = cached_classifier(schooling, case.data, case.cache, keep)
        stages = {name: stage.seconds for name, stage in defender.stages_.items()}
        return Repaired(
            model=model,
            seconds={**stages, "retrain": seconds},
            entropy=found.entropy,
            split=found.split,
            notes={"dropped": int((~keep).sum())},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Control: the victim trained on everything with the cure's schedule, flagged samples or not.

    It takes as many samples a pass as the cure took, so that it shows what the mere training does.
    """

    plan: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return the fine-tuned victim."""
        history = _fitted(case, self.plan).history_
        sizes = (history["clean"] + history["triggered"]).astype(int)
        model, seed = copy.deepcopy(case.victim), Seed(case.seed).child("control")

        def rows(epoch: int) -> Int64[np.ndarray, "m"]:
            drawn: Int64[np.ndarray, " m"] = seed.child("rows", epoch).numpy().permutation(len(case.data))
            return drawn[: sizes[epoch]]

        loss = cross_entropy(case.data.labels)
        done = fit(model, case.data.images, rows, loss, self.plan.cure.recipe, seed)
        return Repaired(model=model, seconds={"finetune": done.seconds})


def _defender(case: Case, plan: DefenseConfig) -> tuple[Defender, ImageSource]:
    """Return a defender and what it is to look at; every row of the case with this plan shares its stages."""
    plan = replace(plan, seed=case.seed)
    source = ImageSource.open((case.data.images, case.data.labels), classes=case.data.class_names)
    run = case.run_dir / f"clipguard-{_digest(plan)}"
    return Defender(case.guide, run, plan=plan, report=case.report), source


def _fitted(case: Case, plan: DefenseConfig) -> Defender:
    """Return the fitted defender."""
    defender, source = _defender(case, plan)
    return defender.fit(source, model=case.victim, spec=case.spec)


def _digest(plan: DefenseConfig) -> str:
    """Return a short name of a plan: two plans in one run folder would replace each other's stages."""
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()[:8]


def _cured(defender: Defender) -> Repaired:
    found, notes = defender.found_, {"flagged": int(defender.found_.split.triggered.sum())}
    if "activations" in defender.stages_:
        said = read_table(defender.stages_["activations"].path / FEATURES_FILE)
        notes |= {f"{name}_by_the_victim": int(said[f"is_{name}"].sum()) for name in ("planted", "trusted")}
    return Repaired(
        model=defender.model_,
        seconds={name: stage.seconds for name, stage in defender.stages_.items()},
        entropy=found.entropy,
        split=found.split,
        notes=notes,
    )
