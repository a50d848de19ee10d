"""The one place that seeds: a tree of names, so that a new stage shifts no other stream."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Seed:
    """A root number and a path of names; each path is an independent stream."""

    root: int
    path: tuple[str, ...] = ()

    def child(self, *names: str | int) -> "Seed":
        """Return the seed below this one at `names`."""
        return Seed(self.root, self.path + tuple(str(name) for name in names))

    @property
    def value(self) -> int:
        """The 63-bit number of this path: a hash, so that sibling streams share nothing."""
        text = "/".join((str(self.root), *self.path))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self) -> np.random.Generator:
        """Return a fresh numpy generator for this path."""
        return np.random.default_rng(self.value)

    def torch(self) -> "torch.Generator":
        """Return a fresh CPU torch generator for this path."""
        import torch

        return torch.Generator().manual_seed(self.value)

    @contextmanager
    def torch_global(self) -> Iterator[None]:
        """Seed torch's global generator inside the block and restore it after.

        Weight initialisation reads the global generator, so that it cannot be passed as an argument.
        """
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(self.value)
            yield


class Stream:
    """Names of random streams that were given before the present vocabulary.

    A stream's name decides what it draws, so that renaming one would change every result. The values
    therefore stay as they were first written.
    """

    ATTACK_FIT: Final = "helper"
    EARLY_MODEL: Final = "suspect"
    FEATURE_SEPARATION: Final = "activations"
    HELD_OUT: Final = "reserved"
    PROPENSITY: Final = "likeness"
    PROPENSITY_SECOND_ROUND: Final = "likeness again"
    TRIGGER_INVERSION: Final = "evidence"
    UNLEARNING: Final = "cure"
