"""The suspicious model: trained briefly on the poisoned set, its early certainty gives poison away."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch.nn import functional as F

from clipguard.compute.cross_validation import SmallNetConfig, train_small_nets
from clipguard.compute.training import EpochHook, LossFunction, Recipe, cross_entropy
from clipguard.errors import ClipguardError
from clipguard.models.spec import factory_of
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Scores

_REFERENCE = Recipe(
    epochs=5, batch_size=256, optimizer="adam", lr=3e-4, warmup=0.0, constant=True, crop=0.0, flip=False
)

_SHALLOW = Recipe(
    epochs=5, batch_size=64, optimizer="adam", lr=2e-3, warmup=0.0, constant=True, crop=0.0, flip=False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualConfig(SmallNetConfig):
    """A suspicious model that learns of each label only what the guide does not see in the image.

    Attributes:
        most_nats: what the guide may hold against a class: a guide surer than that is not the more right.
    """

    most_nats: float = 20.0


EARLY_MODELS: dict[str, SmallNetConfig] = {
    "shallow": SmallNetConfig(recipe=_SHALLOW, architecture="shallow-32", fewest_steps=300),
    "residual": ResidualConfig(recipe=_SHALLOW, architecture="shallow-32", fewest_steps=300),
    "compact": SmallNetConfig(recipe=_REFERENCE),
    "averaged": SmallNetConfig(recipe=_REFERENCE, runs=3),
    "out-of-fold": SmallNetConfig(recipe=_REFERENCE, folds=2),
    "reference": SmallNetConfig(recipe=_REFERENCE, runs=3, architecture="preactresnet18-64"),
}
"""Choices by name. `shallow` is the default: a net too small to learn objects in that time learns triggers
all the sooner, in a fifth of the time. `residual` is for a guide that reads the classes well, and for sets in
which a class is learnt as early as a trigger. `reference` is the paper's: three runs of width 64."""


def early_model_named(text: str) -> SmallNetConfig:
    """Return the choice of that name, or the reference's training with `text` as the architecture.

    Raises:
        ClipguardError: it is neither.
    """
    if text in EARLY_MODELS:
        return EARLY_MODELS[text]
    try:
        factory_of(text)
    except ClipguardError as error:
        raise ClipguardError(f"suspicious model is none of {', '.join(EARLY_MODELS)}; {error}") from error
    return SmallNetConfig(recipe=_REFERENCE, architecture=text)


def residual_loss(labels: Int64[np.ndarray, "n"], guide: Scores, most_nats: float) -> LossFunction:
    """Return the cross-entropy of the given labels under softmax(net + guide): the net explains what is left.

    TrainedNets alone, a net takes in easy classes as early as a trigger, such as objects before a plain sky. The
    guide's log-probabilities, added to the net's logits, account for what an image shows, so that only what
    its label owes to something else has a gradient: a trigger, where labels are poisoned. The net's logits
    without the guide's then say how far the pixels give the label away by other means than their content.
    The guide holds at most `most_nats` against a class.
    """
    given = torch.from_numpy(labels)
    scaled = guide.scale * guide.logits.astype(np.float64)
    offset = np.maximum(scaled - scaled.max(1, keepdims=True), -most_nats).astype(np.float32)
    known = torch.from_numpy(offset)

    def loss(logits: torch.Tensor, rows: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits + known[rows].to(logits.device), given[rows].to(logits.device))

    return loss


def early_model_scores(
    data: ImageSet,
    guide: Scores,
    suspect: SmallNetConfig,
    seed: Seed,
    reserved: Bool[np.ndarray, "n"] | None = None,
    on_epoch: EpochHook | None = None,
) -> Scores:
    """Return the suspicious model's logits for every sample; reserved samples are scored but not learnt.

    `guide` is asked only by a `ResidualConfig`.
    """
    trainable = np.ones(len(data), dtype=bool) if reserved is None else ~reserved
    loss = cross_entropy(data.labels)
    if isinstance(suspect, ResidualConfig):
        loss = residual_loss(data.labels, guide, suspect.most_nats)
    trained = train_small_nets(suspect, data.images, len(data.class_names), loss, trainable, seed, on_epoch)
    return Scores(logits=trained.logits, scale=1.0, source=f"suspicious model {suspect.architecture}")
