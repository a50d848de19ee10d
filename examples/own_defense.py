"""A defence and a detector of your own, in one file that `clipguard bench` imports.

A defence is a class with one method, `defend(case)`. A frozen dataclass may have settings, which the file of
a benchmark gives as `options`. `clipguard.defenses.Case` says what a case has: untrusted data, the victim,
a function that trains another model as the victim was trained, the guide, a seed. Nothing in it leads to the
truth or to test data. `Repaired` is a model, which the benchmark measures; `Detected` is a score a sample.

Name the class in a benchmark's file, here `own.toml`:

    defenses = [
      {name = "own_defense:ImprobableLabels"},
      {name = "own_defense:DropImprobable", label = "drop a fifth", options = {share = 0.2}},
    ]

and run it where this file can be imported:

    PYTHONPATH=examples clipguard bench own.toml -o runs/own
"""

import time
from dataclasses import dataclass

import numpy as np

from clipguard.defenses import Case, Detected, Repaired


@dataclass(frozen=True)
class ImprobableLabels:
    """A detector: a sample is as suspicious as its label is improbable to the guide, zero-shot."""

    def defend(self, case: Case) -> Detected:
        """Return one minus the guide's probability of each given label."""
        began = time.monotonic()
        scores = improbability(case)
        return Detected(scores=scores, seconds={"guide": time.monotonic() - began})


@dataclass(frozen=True)
class DropImprobable:
    """A defence: drops the most improbable labels and trains anew on the rest.

    Attributes:
        share: of the samples that are dropped.
    """

    share: float = 0.1

    def defend(self, case: Case) -> Repaired:
        """Return the model that was trained without them."""
        began = time.monotonic()
        scores = improbability(case)
        keep = scores < np.quantile(scores, 1 - self.share)
        guide_seconds = time.monotonic() - began
        model, training_seconds = case.train_on(keep)
        return Repaired(
            model=model,
            seconds={"guide": guide_seconds, "training": training_seconds},
            notes={"dropped": int((~keep).sum())},
        )


def improbability(case: Case) -> np.ndarray:
    """Return one minus the guide's probability of the given label, for each of n samples."""
    embeddings = case.guide.clip.embed_images(case.data.pixels)
    scores = case.guide.logits(embeddings, case.data.class_names)
    logits = scores.scale * np.asarray(scores.logits[:], dtype=np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = odds / odds.sum(1, keepdims=True)
    return 1 - probabilities[np.arange(len(case.data)), case.data.labels]
