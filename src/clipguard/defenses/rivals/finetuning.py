"""FT: the victim is trained further on clean samples alone, the baseline of all that need such samples.

Source: BackdoorBench's schedule, 100 epochs of SGD at 0.01 with momentum 0.9, weight decay 5e-4, batches of
256, crops of 4 of 32 pixels. Its cosine is a linear fall to 0 here, which has the same mean, and its momentum
is Nesterov's. Images are mirrored where the victim's recipe does so. A net without BatchNorm takes AdamW at
1e-3, since one rate of SGD suits none of its layers.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np

from clipguard.compute.recipes import Recipe
from clipguard.compute.training import cross_entropy, fit
from clipguard.defenses.budget import cut
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.clean_start import (
    PUBLISHED_SAMPLES,
    CleanDataSettings,
    clean_start,
    seconds_of_fit,
)
from clipguard.defenses.rivals.schedule import PUBLISHED_CROP, repeated, reporting
from clipguard.mitigation.rate import fitting_optimizer
from clipguard.models.spec import Normalized


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningSettings(CleanDataSettings):
    """The settings of a training on clean samples.

    Attributes:
        epochs: passes over the clean samples, in the published schedule.
        published_samples: of that schedule; fewer are passed over as much oftener. 0 leaves `epochs`.
        batch_size: samples a step.
        lr: learning rate at the beginning; it falls to 0.
        weight_decay: L2 penalty on all weights.
        crop: padding of the random crops, as a share of the side.
    """

    epochs: int = 100
    published_samples: int = PUBLISHED_SAMPLES
    batch_size: int = 256
    lr: float = 0.01
    weight_decay: float = 5e-4
    crop: float = PUBLISHED_CROP

    def recipe(self, case: Case, model: Normalized, samples: int) -> Recipe:
        """Return the published training for a number of samples, with what suits the victim.

        Images are mirrored if the victim's were, and the optimiser is that of its kind of net.
        """
        recipe = Recipe(
            epochs=repeated(self.epochs, samples, self.published_samples),
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup=0.0,
            crop=self.crop,
            flip=case.recipe.flip,
        )
        return fitting_optimizer(model, recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning(FineTuningSettings):
    """Fine-tuning on clean samples."""

    def defend(self, case: Case) -> Repaired:
        """Return the fine-tuned victim."""
        start = clean_start(case, self, "ft")
        model, data, seed = start.model, start.learned, start.seed
        recipe, loss = self.recipe(case, model, len(data)), cross_entropy(data.labels)
        share = start.share(lambda: seconds_of_fit(copy.deepcopy(model), data, loss, recipe, seed))
        recipe = replace(recipe, epochs=cut(recipe.epochs, share))
        report = reporting(case, "fine-tune on clean samples", recipe.epochs)
        history = fit(model, data.images, np.arange(len(data)), loss, recipe, seed, report)
        return Repaired(
            model=model,
            seconds={**start.scan, "fine-tuning": history.seconds},
            notes={"schedule_share": share},
        )
