"""What every defence is given and gives back. It never sees which samples are poisoned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.recipes import Recipe
from clipguard.models.spec import ModelSpec, Normalized
from clipguard.types import EntropyMap, ImageSet, Partition, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a defender has: an untrusted set, a model trained on it, and a guide.

    Attributes:
        data: the poisoned set.
        train_victim: gives a copy of the `victim`, which is trained unless a cache has it.
        train_on: trains another model as the victim was, on the samples that a mask keeps; returns it and the
            seconds that took, also where a cache had it.
        spec: how the victim is built.
        recipe: how the victim was trained.
        guide: the CLIP that the benchmark gives to whoever wants one.
        seed: root of all randomness.
        run_dir: a folder for the defence's own files; the same case finds them again.
        clean: other samples that are known to be clean, where somebody gives any; clipguard asks for none.
        guide_pass_seconds: what it takes to embed all images, where a cache has them already.
        progress: called as work goes on.
    """

    data: ImageSet
    train_victim: Callable[[], Normalized]
    train_on: Callable[[Bool[np.ndarray, "n"]], tuple[Normalized, float]]
    spec: ModelSpec
    recipe: Recipe
    guide: ClipGuide
    seed: int
    run_dir: Path
    clean: ImageSet | None = None
    guide_pass_seconds: float = 0.0
    progress: Progress | None = None

    @property
    def victim(self) -> Normalized:
        """The model trained on all of the data, when a defence first asks: a copy of its own."""
        return self.train_victim()


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a defence gives back.

    Attributes:
        model: the model that is to be judged.
        seconds: by stage.
        entropy_map: where it placed each sample; None without an entropy map.
        partition: what it flagged; None where it flags nothing.
        notes: numbers worth a column.
    """

    model: Normalized
    seconds: dict[str, float]
    entropy_map: EntropyMap | None = None
    partition: Partition | None = None
    notes: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """What a detector gives back: it finds samples and repairs nothing.

    Attributes:
        scores: of each sample; the higher, the likelier it is poisoned. NaN where it has no opinion.
        seconds: by stage.
        flagged: which samples it would drop, where it decides that.
        notes: numbers worth a column.
    """

    scores: Float64[np.ndarray, "n"]
    seconds: dict[str, float]
    flagged: Bool[np.ndarray, "n"] | None = None
    notes: Mapping[str, float | int] = field(default_factory=dict)


@runtime_checkable
class Defense(Protocol):
    """A frozen dataclass with one method."""

    def defend(self, case: Case) -> Repaired | Detected:
        """Return the repaired model, or what a detector says of the samples."""
        ...
