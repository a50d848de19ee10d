"""CGD as published: what clipguard began from, with the values of its authors' repository.

Source: Xu et al., ACM MM 2025. Two losses of every given label, of CLIP and of a net that is trained briefly
on the poisoned set, are ranked among all samples. What neither finds odd is clean. What either finds odd is
unlearned: cross-entropy on the clean part, the guide's softened posterior and + log p on the other. Here that
is put together of clipguard's own stages.
"""

import copy
import time
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Int64

from clipguard.compute.recipes import SmallNetConfig
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.confident_learning import embeddings_of
from clipguard.defenses.rivals.schedule import PUBLISHED_CROP, repeated, reporting
from clipguard.defenses.rivals.thresholds import held_out_accuracy
from clipguard.detection.early_model import early_model_scores
from clipguard.detection.entropy_map import EntropyMapConfig, entropy_map, first_partition, label_nll
from clipguard.detection.net_configs import EARLY_MODELS
from clipguard.mitigation.unlearning import CGD, unlearn
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Partition, State

HELD_OUT: Final = 0.05
"""Share of the clean part that tells when to stop, where the authors take test data."""

FALL: Final = 0.01
"""The repair ends where its accuracy is this far below the best so far, and two of its standard errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedMethod:
    """CLIP-guided defence with the values of the authors' repository.

    Three nets of five passes, Adam at 3e-4, score the samples that they were trained on. Clean: the guide's
    rank is at most 0.8 and the nets' at least 0.2. Unlearned: above 0.9, or below 0.1. Then at most ten
    passes of plain SGD at 0.01, batches of 256. The guide's cosines have no logit scale.

    Left open and chosen here: the nets are built as the victim is, and so are the authors', of width 64.
    Images are mirrored where the victim's recipe does so. Classes are weighted, not resampled. The accuracy
    that ends the repair is of 5 % of the clean part, where the authors take all test data: it has to fall by
    more than its own error, too. A pass of the repair is over all samples, where the authors end it after 200
    steps: the same, up to 51,200 samples.

    Attributes:
        architecture: of the nets that are trained briefly; none takes the victim's.
        runs: how many of them.
        published_samples: of the schedule; fewer are passed over as much oftener in the repair, not in the
            brief training. 0 leaves the passes.
        crop: padding of the random crops, as a share of the side.
    """

    version: ClassVar[int] = 2

    architecture: str = ""
    runs: int = 3
    published_samples: int = 50_000
    crop: float = PUBLISHED_CROP

    def defend(self, case: Case) -> Repaired:
        """Return the victim after unlearning, and the partition."""
        data, seed, began = case.data, Seed(case.seed).child("cgd"), time.monotonic()
        guide = case.guide.logits(embeddings_of(case.guide, data.images), data.class_names)
        guide = replace(guide, scale=1.0)
        guided = time.monotonic()
        nets = self._nets(case)
        report = reporting(case, "train the early-training models", nets.epochs * nets.runs)
        early = early_model_scores(data, guide, nets, seed.child("nets"), report)
        entropy = entropy_map(label_nll(guide, data.labels), label_nll(early, data.labels))
        partition = first_partition(entropy, data.labels, len(data.class_names), EntropyMapConfig())
        trained = time.monotonic()
        model, held_out = case.victim, _held_out(partition, seed.child("held out"))
        watch = _Watch(data.take(held_out))
        part = partition.moved(held_out, State.HELD_OUT)
        passes = repeated(CGD.recipe.epochs, len(data), self.published_samples)
        recipe = replace(CGD.recipe, epochs=passes, crop=self.crop, flip=case.recipe.flip)
        config, report = replace(CGD, recipe=recipe), reporting(case, "unlearn, CGD", recipe.epochs)
        unlearn(model, data, part, guide, config, seed.child("unlearning"), on_epoch=report, done=watch.ends)
        watch.ends(model)
        return Repaired(
            model=watch.kept or model,
            seconds={
                "embeddings": guided - began,
                "early models": trained - guided,
                "unlearning": time.monotonic() - trained,
            },
            entropy_map=entropy,
            partition=partition,
            notes={"passes": watch.passes},
        )

    def _nets(self, case: Case) -> SmallNetConfig:
        architecture = self.architecture or case.spec.architecture
        return replace(EARLY_MODELS["cgd"], architecture=architecture, runs=self.runs)


class _Watch:
    """Ends a repair whose held-out accuracy falls, and keeps the weights before that."""

    def __init__(self, held_out: ImageSet) -> None:
        self.held_out, self.best, self.passes, self.fell = held_out, 0.0, 0, False
        self.kept: Normalized | None = None

    def ends(self, model: Normalized) -> bool:
        """Return whether accuracy has fallen after a pass; if not, the model is the one to keep."""
        accuracy = 0.0 if self.fell else held_out_accuracy(model, self.held_out)
        error = (self.best * (1 - self.best) / len(self.held_out)) ** 0.5
        self.fell = accuracy < self.best - max(FALL, 2 * error)
        if self.fell:
            return True
        self.best, self.passes = max(self.best, accuracy), self.passes + 1
        self.kept = copy.deepcopy(model)
        return False


def _held_out(partition: Partition, seed: Seed) -> Int64[np.ndarray, "m"]:
    """Return the rows of the clean part that only tell when to stop, ascending."""
    clean = np.flatnonzero(partition.clean)
    count = max(1, round(HELD_OUT * len(clean)))
    return np.sort(seed.generator().choice(clean, count, replace=False))
