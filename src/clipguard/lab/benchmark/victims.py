"""Models of a cell, trained when they are first needed; a defence gets copies through a closure."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

from clipguard.compute.classifiers import ClassifierConfig, cached_classifier
from clipguard.models.spec import Normalized, weights_digest
from clipguard.types import ImageSet


class LazyModel:
    """A classifier of one set. It refers to that set and to nothing else of its cell."""

    def __init__(
        self, data: ImageSet, config: ClassifierConfig, cache: Path, progress: Callable[[int, int], None]
    ) -> None:
        self.data, self.config, self.cache, self.progress = data, config, cache, progress
        self.copies = 0

    @functools.cached_property
    def _trained(self) -> tuple[Normalized, float]:
        epochs = self.config.recipe.epochs
        return cached_classifier(
            self.config, self.data, self.cache, on_epoch=lambda done: self.progress(done, epochs)
        )

    @property
    def is_trained(self) -> bool:
        """Whether anything has needed the model yet."""
        return "_trained" in vars(self)

    @property
    def model(self) -> Normalized:
        """The model itself: do not change it."""
        return self._trained[0]

    @property
    def seconds(self) -> float:
        """Seconds that its training took, also where a cache had it."""
        return self._trained[1]

    @property
    def digest(self) -> str:
        """The hash of its weights."""
        return weights_digest(self.model)


def train_victim_of(victim: LazyModel) -> Callable[[], Normalized]:
    """Return `Case.train_victim`: a closure that gives a copy of the victim at each call and counts it.

    It is no method of the cell's runner, which holds the truth: a defence cannot come from what it is given
    to the truth by accident. Code that means harm can: it runs in this process.
    """

    def train_victim() -> Normalized:
        victim.copies += 1
        # A defence may change its copy; the other rows are of the victim as it is.
        return copy.deepcopy(victim.model)

    return train_victim
