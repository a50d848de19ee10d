"""Guides of a benchmark: with a memory for embeddings, and worse on purpose where that is asked for."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from clipguard.clip.loading import FOLDER_PREFIX
from clipguard.clip.model import Clip
from clipguard.clip.zero_shot import ClipGuide, guide_from_name
from clipguard.lab.benchmark.config import GuideChoice
from clipguard.lab.benchmark.embeddings import RememberingClip, remembering
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Scores


@dataclass(frozen=True)
class BenchGuide(ClipGuide):
    """A guide that a defence takes for an ordinary one.

    Attributes:
        memory: folder in which image embeddings are kept.
        degrade: share of each cosine that is replaced by noise with the spread that the cosines have; at 1
            nothing is left of the guide but its logit scale.
    """

    memory: Path = field(default=Path(), kw_only=True)
    degrade: float = field(default=0.0, kw_only=True)

    @property
    def name(self) -> str:
        """The guide in words."""
        return super().name + (f" degraded by {self.degrade:g}" if self.degrade else "")

    @functools.cached_property
    def clip(self) -> Clip:
        """The loaded model, with a memory."""
        return remembering(super().clip, self.memory)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The guide's fingerprint, with the degradation."""
        return hashlib.sha256(f"{super().fingerprint} {self.degrade}".encode()).hexdigest()

    def logits(self, image_embeddings: Float32[np.ndarray, "n d"], class_names: Sequence[str]) -> Scores:
        """Return the convex mix of the guide's cosines and seeded noise of the same spread."""
        told = super().logits(image_embeddings, class_names)
        if not self.degrade:
            return told
        cosines = told.logits
        means = cosines.mean(1, keepdims=True)
        noise = Seed(0).child("degrade").numpy().standard_normal(cosines.shape) * (cosines - means).std()
        mixed = (1 - self.degrade) * cosines + self.degrade * (means + noise)
        return replace(told, logits=mixed.astype(np.float32))

    def foresee(self, data: ImageSet) -> None:
        """Tell the memory which images are coming."""
        if isinstance(self.clip, RememberingClip):
            self.clip.foresee(np.asarray(data.images))

    def pass_seconds(self, n: int) -> float | None:
        """Return what a pass over n images takes without the memory, which makes it look free."""
        pace = self.clip.pace if isinstance(self.clip, RememberingClip) else None
        return None if pace is None else pace * n


def guide_of(choice: GuideChoice, memory: Path, beside: Path) -> BenchGuide:
    """Return the guide of a choice; `beside` is the folder that a relative `local-dir:` starts from."""
    name = choice.name
    if name.startswith(FOLDER_PREFIX):
        folder = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
        name = f"{FOLDER_PREFIX}{beside / folder}"
    plain: Any = guide_from_name(name, templates=choice.templates or None, use_logit_scale=choice.logit_scale)
    return BenchGuide(
        plain.model,
        plain.pretrained,
        templates=plain.templates,
        use_logit_scale=plain.use_logit_scale,
        memory=memory,
        degrade=choice.degrade,
    )


def accuracy(guide: BenchGuide, data: ImageSet, labels: Int64[np.ndarray, "n"]) -> float:
    """Return how many images the guide gives the label of `labels`: what a degradation is measured by."""
    scores = guide.logits(guide.clip.embed_images(np.asarray(data.images)), data.class_names)
    return float(np.mean(scores.logits.argmax(1) == labels))
