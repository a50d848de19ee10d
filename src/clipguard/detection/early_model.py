"""The early-training model (CGD: suspicious model): what it is sure of after seconds is learnt too early."""

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch.nn import functional as F

from clipguard.compute.device import array, tensor
from clipguard.compute.recipes import SmallNetConfig
from clipguard.compute.small_nets import NetLogits, TrainedNets, train_small_nets
from clipguard.compute.training import EpochHook, LossFunction, cross_entropy
from clipguard.detection.drawn_rows import MOST_ROWS, drawn_by_class
from clipguard.detection.entropy_map import label_nll
from clipguard.detection.net_configs import EARLY_MODELS, LATER, ResidualConfig
from clipguard.errors import ClipguardError
from clipguard.models.spec import factory_of
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Scores

MOST_NATS: Final = 20.0
"""What the guide may hold against a class: a guide surer than that is not the more right."""

AVERAGED: Final = 3
"""Epochs whose late losses are averaged: whether a rare trigger is known changes from one to the next."""


def early_model_named(text: str) -> SmallNetConfig:
    """Return the choice of that name, or one run of CGD's training with `text` as the architecture.

    Raises:
        ClipguardError: it is neither.
    """
    if text in EARLY_MODELS:
        return EARLY_MODELS[text]
    try:
        factory_of(text)
    except ClipguardError as error:
        raise ClipguardError(f"early-training model is none of {', '.join(EARLY_MODELS)}; {error}") from error
    return replace(EARLY_MODELS["cgd"], architecture=text, runs=1)


def residual_loss(labels: Int64[np.ndarray, "n"], guide: Scores) -> LossFunction:
    """Return the cross-entropy of the given labels under softmax(net + guide): the net explains what is left.

    Without the guide, a net learns easy classes as early as a trigger, such as objects before a plain sky.
    The guide's log-probabilities, added to the net's logits, account for what an image shows. Only what a
    label owes to something else then has a gradient: a trigger, where labels are poisoned. The net's logits
    alone say how far the pixels give the label away by other means than their content. The guide holds at
    most `MOST_NATS` against a class.
    """
    given = tensor(labels)

    def loss(logits: torch.Tensor, rows: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        scaled = guide.scale * guide.logits[array(rows)].astype(np.float64)
        bounded = np.maximum(scaled - scaled.max(1, keepdims=True), -MOST_NATS).astype(np.float32)
        return F.cross_entropy(logits + tensor(bounded).to(logits.device), given[rows].to(logits.device))

    return loss


class EarlyLosses(NamedTuple):
    """The early-training model's loss of every given label, in nats, at two times of its training.

    Attributes:
        early: when a trigger is learned and most objects are not.
        late: after `LATER` times as many epochs, when a rare or faint trigger is learned, too: the mean of
            the last `AVERAGED` epochs.
    """

    early: Float64[np.ndarray, "n"]
    late: Float64[np.ndarray, "n"]


def early_model_scores(
    data: ImageSet, guide: Scores, config: SmallNetConfig, seed: Seed, on_epoch: EpochHook | None = None
) -> Scores:
    """Return the model's logits of every sample; `guide` counts only with `ResidualConfig`.

    The model learns from at most `MOST_ROWS` samples, of each class its share.
    """
    return _scores(config, _trained(data, guide, config, seed, on_epoch).logits)


def early_losses(
    data: ImageSet, guide: Scores, config: SmallNetConfig, seed: Seed, on_epoch: EpochHook | None = None
) -> EarlyLosses:
    """Return the losses of the given labels after the model's epochs, and after `LATER` times as many."""
    epochs = config.total_epochs(min(len(data), MOST_ROWS))
    last = LATER * epochs
    longer, late = replace(config, epochs=last, fewest_steps=0), range(last - AVERAGED + 1, last)
    trained = _trained(data, guide, longer, seed, on_epoch, (epochs, *late))
    logits = (*trained.earlier, trained.logits)
    early_nll, *late_nll = (label_nll(_scores(config, some), data.labels) for some in logits)
    return EarlyLosses(early_nll, np.mean(late_nll, axis=0))


def _trained(
    data: ImageSet,
    guide: Scores,
    config: SmallNetConfig,
    seed: Seed,
    on_epoch: EpochHook | None,
    keep_at: tuple[int, ...] = (),
) -> TrainedNets:
    trainable = np.zeros(len(data), dtype=bool)
    trainable[drawn_by_class(data.labels, np.arange(len(data)), MOST_ROWS, seed.child("rows"))] = True
    residual = isinstance(config, ResidualConfig)
    loss = residual_loss(data.labels, guide) if residual else cross_entropy(data.labels)
    k = len(data.class_names)
    return train_small_nets(
        config, data.images, k, loss, trainable, seed, on_epoch, keep_at=keep_at, groups=data.groups
    )


def _scores(config: SmallNetConfig, logits: NetLogits) -> Scores:
    return Scores(logits=logits, scale=1.0, source=f"early-training model {config.architecture}")
