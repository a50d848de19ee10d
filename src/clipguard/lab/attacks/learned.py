"""Attacks whose trigger, or choice of labels, is learned from the data before they can poison."""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
from torch import nn

from clipguard.compute.device import here
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import Tensors, cached, key_of, restore, state_of
from clipguard.lab.attacks.poisoning import check_classes
from clipguard.lab.attacks.row_choice import count_of
from clipguard.lab.attacks.targeted import TargetedAttack
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Progress

T = TypeVar("T")

FITTING: Final = "fit the attack"
"""The step that a fit reports its progress as."""


@dataclass(frozen=True, kw_only=True)
class LearnedAttack(TargetedAttack):
    """An attack that has to be fitted.

    What it learned are fields with `default=None, compare=False, repr=False`: no options, and no part of what
    a fit is cached by. Without them, `poison` and `trigger` refuse.

    Attributes:
        fitted_to: the data that it was fitted to; learned.
    """

    fitted_to: ImageSet | None = field(default=None, compare=False, repr=False)
    not_learned: ClassVar[tuple[str, ...]] = ("rate",)
    """Settings on which what is learned does not depend, so that they share one fit."""
    fit_version: ClassVar[int] = 0
    """Raised with this attack's own training, so that the fits of the others stay."""

    def fit(self, data: ImageSet, seed: Seed, cache: Path | None, progress: Progress) -> "LearnedAttack":
        """Return the same attack with what it learned from `data`, or from an earlier fit in `cache`.

        Raises:
            ClipguardError: the rate asks for no sample at all, there is no such target, it has too few
                samples, or the training diverged.
        """
        k = len(data.class_names)
        if self.rate and not round(self.rate * len(data)):
            raise ClipguardError(
                f"poison rate {self.rate:g} of {len(data)} images is none: give a higher rate"
            )
        target_mapping = self.target_labels(np.arange(k), k)
        assert target_mapping is not None
        check_classes(target_mapping, k)
        count_of(self.rate, len(data), len(self.candidates(data)))
        key = key_of(self, data, seed, self.not_learned)
        learned = self.restored(cached(key, cache, lambda: self.learn(data, seed, progress)), seed)
        return replace(self, fitted_to=data, **learned)

    @abstractmethod
    def learn(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
        """Return what is learned from `data`, by the names of the fields, for the cache."""

    def restored(self, tensors: Tensors, seed: Seed) -> dict[str, Any]:
        """Return the fields that hold what was learned: arrays."""
        return {name: tensor.numpy() for name, tensor in tensors.items()}


class NetAttack(LearnedAttack):
    """An attack that learns nets, each a field."""

    @abstractmethod
    def nets(self, seed: Seed) -> dict[str, nn.Module]:
        """Return the untrained nets by the names of their fields."""

    @abstractmethod
    def train(self, data: ImageSet, seed: Seed, progress: Progress) -> None:
        """Train the nets in the attack's fields in place."""

    def learn(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
        """Return the state of the trained nets."""
        nets: dict[str, Any] = {name: net.to(here()) for name, net in self.nets(seed).items()}
        replace(self, **nets).train(data, seed, progress)
        return state_of(**nets)

    def restored(self, tensors: Tensors, seed: Seed) -> dict[str, Any]:
        """Return the nets on the current device, for use only: evaluation, no gradients."""
        nets = self.nets(seed)
        for name, net in nets.items():
            restore(net.to(here()), name, tensors)
        return nets


def required(state: T | None) -> T:
    """Return what a fit learned.

    Raises:
        ClipguardError: the attack has not been fitted.
    """
    if state is None:
        raise ClipguardError("the attack has learned nothing yet: call its fit first")
    return state
