"""Controls that a defence is compared with: nothing, retraining without the flagged, mere fine-tuning."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from clipguard.compute.training import cross_entropy, fit
from clipguard.defenses.clipguard import fitted, scanned, stage_seconds
from clipguard.defenses.protocol import Case, Repaired
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.unlearning_stage import chosen_recipe
from clipguard.seeds import Seed
from clipguard.types import State


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDefense:
    """The victim as it is."""

    def defend(self, case: Case) -> Repaired:
        """Return the victim."""
        return Repaired(model=case.victim, seconds={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """Drops what clipguard flags or excludes and trains on the rest as the victim was trained."""

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return the new model and the partition."""
        # Without unlearning, which is no part of it; a scan of the row before is read back.
        defender = scanned(case, self.config)
        partition = defender.partition_
        keep = partition.clean | partition.has(State.UNCERTAIN)
        model, seconds = case.train_on(keep)
        return Repaired(
            model=model,
            seconds={**stage_seconds(defender), "retraining": seconds},
            entropy_map=defender.scan_.entropy,
            partition=partition,
            notes={"dropped": int((~keep).sum())},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Control: the victim trained on everything with unlearning's schedule, flagged samples or not.

    It takes as many passes as unlearning took, of as many samples, by the same optimiser and rate, so that it
    shows what the mere training does.
    """

    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Repaired:
        """Return the fine-tuned victim."""
        defender = fitted(case, self.config)
        model, seed = case.victim, Seed(case.seed).child("control")
        if not defender.history_:
            return Repaired(model=model, seconds={"finetune": 0.0})
        sizes = (defender.history_["clean"] + defender.history_["flagged"]).astype(int)

        def rows(epoch: int) -> Int64[np.ndarray, "m"] | None:
            if epoch == len(sizes):
                return None
            # Copies with the trigger count, too: a pass of unlearning may have more samples than there are.
            draw, n = seed.child("rows", epoch).generator(), len(case.data)
            orders = [draw.permutation(n) for _ in range(-(-sizes[epoch] // n))]
            drawn: Int64[np.ndarray, " m"] = np.concatenate(orders)[: sizes[epoch]]
            return drawn

        loss = cross_entropy(case.data.labels)
        recipe = chosen_recipe(defender.stages_["unlearning"].path, self.config.unlearning.recipe)
        done = fit(model, case.data.images, rows, loss, recipe, seed)
        return Repaired(model=model, seconds={"finetune": done.seconds})
