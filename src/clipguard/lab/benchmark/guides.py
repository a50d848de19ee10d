"""Guides of a benchmark: with a memory for embeddings, and degraded on purpose where a file says so."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64

from clipguard.clip.loading import FOLDER_PREFIX
from clipguard.clip.zero_shot import ClipGuide, guide_from_name
from clipguard.lab.benchmark.config import GuideChoice
from clipguard.lab.benchmark.embeddings import RememberingClip, remembering
from clipguard.types import ImageSet

SHARD: Final = 1024
"""Images that are embedded and kept at once: what a killed pass loses at most."""


@dataclass(frozen=True)
class BenchGuide(ClipGuide):
    """A guide that a defence takes for an ordinary one.

    Attributes:
        memory: folder in which image embeddings are kept.
        degrade: share of each image embedding that is replaced by noise, see `embeddings.degraded`. Logits,
            propensity weights and linear probes all follow from the degraded embeddings. At 1 nothing is
            left of the images.
    """

    memory: Path = field(default=Path(), kw_only=True)
    degrade: float = field(default=0.0, kw_only=True)

    @property
    def name(self) -> str:
        """The guide in words."""
        return super().name + (f" degraded by {self.degrade:g}" if self.degrade else "")

    @functools.cached_property
    def clip(self) -> RememberingClip:
        """The loaded model, with a memory."""
        return remembering(super().clip, self.memory, self.degrade)

    @property
    def weights_verified_by(self) -> str | None:
        """Whose hash the weights have; None for a degraded guide, which nobody released."""
        return None if self.degrade else super().weights_verified_by


def guide_of(choice: GuideChoice, memory: Path, beside: Path) -> BenchGuide:
    """Return the guide of a choice; `beside` is the folder that a relative `local-dir:` starts from."""
    name = choice.name
    if name.startswith(FOLDER_PREFIX):
        folder = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
        name = f"{FOLDER_PREFIX}{beside / folder}"
    plain = guide_from_name(name)
    return BenchGuide(
        plain.model,
        plain.pretrained,
        templates=choice.templates or None,
        use_logit_scale=choice.logit_scale,
        memory=memory,
        degrade=choice.degrade,
    )


def accuracy(guide: BenchGuide, data: ImageSet, labels: Int64[np.ndarray, "n"]) -> float:
    """Return the share of images to which the guide gives their label of `labels`."""
    starts = range(0, len(data), SHARD)
    shards = [guide.clip.embed_images(np.asarray(data.images[start : start + SHARD])) for start in starts]
    scores = guide.logits(np.concatenate(shards), data.class_names)
    return float(np.mean(scores.logits.argmax(1) == labels))
