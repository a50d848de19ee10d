"""Models of a cell, trained when they are first needed."""

import copy
import functools
from pathlib import Path

from clipguard.compute.classifiers import ClassifierConfig, cached_classifier
from clipguard.compute.training import EpochHook
from clipguard.models.spec import Normalized, weights_digest
from clipguard.types import ImageSet


class LazyModel:
    """A classifier of one set. It refers to that set and to nothing else of its cell.

    A defence is given the method `copied`. From that it cannot come to the truth by accident, which the
    cell's runner holds. Code that means harm can: it runs in this process.
    """

    def __init__(self, data: ImageSet, config: ClassifierConfig, cache: Path, on_epoch: EpochHook) -> None:
        self.data, self.config, self.cache, self.on_epoch = data, config, cache, on_epoch
        self.copies = 0

    @functools.cached_property
    def trained(self) -> tuple[Normalized, float]:
        """The model itself, not to be changed, and the seconds of its training, also where a cache had it."""
        return cached_classifier(self.config, self.data, self.cache, on_epoch=self.on_epoch)

    @property
    def digest(self) -> str | None:
        """The hash of its weights; None where nothing has needed the model yet."""
        return weights_digest(self.trained[0]) if "trained" in vars(self) else None

    def copied(self) -> Normalized:
        """Return a copy, and count it. A defence may change its own: other rows are of the model as it is."""
        self.copies += 1
        return copy.deepcopy(self.trained[0])
