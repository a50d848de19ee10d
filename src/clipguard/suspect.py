"""The suspicious model: trained briefly on the poisoned set, its early certainty gives poison away."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch.nn import functional as F

from clipguard.errors import ClipguardError
from clipguard.models import factory_of
from clipguard.probes import Probe, probe_logits
from clipguard.seeds import Seed
from clipguard.training import EpochHook, LossFunction, Recipe, cross_entropy
from clipguard.types import ImageSet, Scores

_REFERENCE = Recipe(
    epochs=5, batch_size=256, optimizer="adam", lr=3e-4, warmup=0.0, constant=True, crop=0.0, flip=False
)

_SHALLOW = Recipe(
    epochs=5, batch_size=64, optimizer="adam", lr=2e-3, warmup=0.0, constant=True, crop=0.0, flip=False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect(Probe):
    """How the suspicious model is trained.

    Attributes:
        beyond_guide: learn of each label only what the guide does not see in the image, see `residual_loss`.
    """

    beyond_guide: bool = False


SUSPECTS: dict[str, Suspect] = {
    "residual": Suspect(recipe=_SHALLOW, architecture="shallow-32", fewest_steps=300, beyond_guide=True),
    "shallow": Suspect(recipe=_SHALLOW, architecture="shallow-32", fewest_steps=300),
    "compact": Suspect(recipe=_REFERENCE),
    "averaged": Suspect(recipe=_REFERENCE, runs=3),
    "out-of-fold": Suspect(recipe=_REFERENCE, folds=2),
    "reference": Suspect(recipe=_REFERENCE, runs=3, architecture="preactresnet18-64"),
}
"""Choices by name. `residual` is the default: a net too small to learn objects in a short time, which is
told what the guide sees besides, learns triggers all the sooner. `reference` is the paper's: three runs of
width 64."""

MOST_NATS: Final = 20.0
"""What the guide may hold against a class: a guide surer than that is not the more right."""


def suspect_named(text: str) -> Suspect:
    """Return the choice of that name, or the reference's training with `text` as the architecture.

    Raises:
        ClipguardError: it is neither.
    """
    if text in SUSPECTS:
        return SUSPECTS[text]
    try:
        factory_of(text)
    except ClipguardError as error:
        raise ClipguardError(f"suspicious model is none of {', '.join(SUSPECTS)}; {error}") from error
    return Suspect(recipe=_REFERENCE, architecture=text)


def residual_loss(labels: Int64[np.ndarray, "n"], guide: Scores) -> LossFunction:
    """Return the cross-entropy of the given labels under softmax(net + guide): the net explains what is left.

    Trained alone, a net takes in easy classes as early as a trigger, such as objects before a plain sky. The
    guide's log-probabilities, added to the net's logits, account for what an image shows, so that only what
    its label owes to something else has a gradient: a trigger, where labels are poisoned. The net's logits
    without the guide's then say how far the pixels give the label away by other means than their content.
    """
    given = torch.from_numpy(labels)
    scaled = guide.scale * guide.logits.astype(np.float64)
    offset = np.maximum(scaled - scaled.max(1, keepdims=True), -MOST_NATS).astype(np.float32)
    known: torch.Tensor = torch.from_numpy(offset)

    def loss(logits: torch.Tensor, rows: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits + known[rows].to(logits.device), given[rows].to(logits.device))

    return loss


def suspect_scores(
    data: ImageSet,
    guide: Scores,
    suspect: Suspect,
    seed: Seed,
    reserved: Bool[np.ndarray, "n"] | None = None,
    on_epoch: EpochHook | None = None,
) -> Scores:
    """Return the suspicious model's logits for every sample; reserved samples are scored but not learnt.

    `guide` is asked only where `suspect.beyond_guide`.
    """
    trainable = np.ones(len(data), dtype=bool) if reserved is None else ~reserved
    loss = residual_loss(data.labels, guide) if suspect.beyond_guide else cross_entropy(data.labels)
    logits: Float32[np.ndarray, " n k"] = probe_logits(
        suspect, data.images, len(data.class_names), loss, trainable, seed, on_epoch
    )
    return Scores(logits=logits, scale=1.0, source=f"suspicious model {suspect.architecture}")
