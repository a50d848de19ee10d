"""The one place that seeds: a tree of names, so that a new stage shifts no other stream."""

import hashlib
import threading
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
    def torch_global(self, gpu: int | None = None) -> Iterator[None]:
        """Seed torch's global generator inside the block and restore it after; others wait for their turn.

        Weight initialisation reads the global generator, so that it cannot be passed as an argument.

        Args:
            gpu: number of the one whose generator is seeded as well; all others stay as they are.
        """
        import torch

        gpus = [] if gpu is None else [gpu]
        with _TORCH_GLOBAL, torch.random.fork_rng(devices=gpus, device_type="cuda"):
            # Not `torch.manual_seed`: it would seed all GPUs of the machine, and nothing would restore them.
            for generator in (torch.default_generator, *(torch.cuda.default_generators[one] for one in gpus)):
                generator.manual_seed(self.value)
            yield

    @contextmanager
    def numpy_global(self) -> Iterator[None]:
        """Seed numpy's global generator inside the block and restore it after; others wait for their turn.

        For packages that take no generator.
        """
        with _NUMPY_GLOBAL:
            before = np.random.get_state()  # noqa: NPY002  # It is restored.
            np.random.seed(self.value % 2**32)  # noqa: NPY002  # what such packages draw from
            try:
                yield
            finally:
                np.random.set_state(before)  # noqa: NPY002  # so that others see nothing of it


_TORCH_GLOBAL: Final = threading.RLock()
"""The generator is the process's: two lanes must not both take it for theirs."""

_NUMPY_GLOBAL: Final = threading.RLock()
"""The same of numpy's."""


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
