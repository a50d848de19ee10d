"""Guided unlearning: the backdoored model forgets what the flagged samples taught it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.device import array, tensor
from clipguard.compute.inference import classifier_logits
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import LossFunction, fit
from clipguard.errors import ClipguardError
from clipguard.models.spec import Normalized
from clipguard.runs import read_array, write_array
from clipguard.seeds import Seed
from clipguard.types import History, ImageSet, Partition, Scores, State, chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningConfig:
    """How a model is repaired.

    Attributes:
        loss: `unlikelihood` punishes -log(1 - p(given label)), whose gradient is largest where the backdoor
            is strong; `cgd` is CGD's + log p(given label), whose gradient vanishes there, and its pull
            towards the guide.
        recipe: schedule of the fine-tuning. The long warm-up softens the first steps, which unlearn the
            backdoor: with a short one, repairs differ more by chance.
        weight: b, weight of the unlearning term, per flagged sample relative to a clean one.
        label_only_weight: share of that weight for samples with a soft label.
        readmit: after each pass, uncertain samples whose given label the model predicts with more than this
            probability become clean, unless their class is quarantined; 1 turns it off.
        augment: share of the clean samples of which a copy with the reconstructed trigger (with each, where
            there are several) is learnt under the sample's own label. Unlearning says what a triggered image
            is not, this says what it is.
        rate: learning rate; None finds one at or below the recipe's by a range test, and with it an optimiser
            that suits the net.
    """

    loss: Literal["unlikelihood", "cgd"] = "unlikelihood"
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=3, lr=0.02, warmup=0.3, crop=0.0625))
    weight: float = 1.0
    label_only_weight: float = 0.5
    readmit: float = 0.5
    augment: float = 0.3
    rate: float | None = None


CGD: Final = UnlearningConfig(
    loss="cgd",
    recipe=Recipe(epochs=10, lr=0.01, batch_size=256, optimizer="plain-sgd", warmup=0.0, constant=True),
    weight=0.025,
    label_only_weight=1.0,
    readmit=1.0,
    augment=0.0,
    rate=0.01,
)
"""CGD's own values [code]; its class resampling is class weights here, its stop on test accuracy left out.

An epoch is a whole pass here, where CGD ends it after 200 steps of 256 samples.
"""

GUIDE_WEIGHT: Final = {"unlikelihood": 0.0, "cgd": 0.0005}
"""CGD's a, weight of KL(guide || model) on flagged samples, by loss."""

RELABEL_WEIGHT: Final = {"unlikelihood": 1.0, "cgd": 0.0}
"""Weight of the cross-entropy to soft labels, by loss: CGD has none."""

AT_ONCE: Final = 10_000
"""Samples whose logits are in memory together: a multiple of all batches, which stay what they would be."""

TEMPERATURE: Final = 3.0
"""CGD's T of that term."""


def class_weights(
    clean: Bool[np.ndarray, "n"],
    kept: Bool[np.ndarray, "n"],
    labels: Int64[np.ndarray, "n"],
    clean_share: Float64[np.ndarray, "k"],
) -> Float64[np.ndarray, "k"]:
    """Return a weight a class: its count in `kept` over its count in `clean`, scaled to mean 1 over `clean`.

    Of the count in `kept` only the `clean_share` is taken. A class without clean samples gets 0. Weights are
    bounded by 10, so that a few samples cannot rule.
    """
    k = len(clean_share)
    have = np.bincount(labels[clean], minlength=k)
    want = np.bincount(labels[kept], minlength=k) * clean_share
    raw = np.where(have > 0, want / np.maximum(have, 1), 0.0)
    scale = have.sum() / max((raw * have).sum(), 1e-12)
    weights: Float64[np.ndarray, " k"] = np.minimum(raw * scale, 10.0)
    return weights


def _unlikelihood(logits: Tensor, given: Tensor) -> Tensor:
    """Return -log(1 - p(given)) a sample, by log-sum-exp over the other classes."""
    others = logits.scatter(1, given[:, None], -torch.inf)
    return torch.logsumexp(logits, 1) - torch.logsumexp(others, 1)


def _log_likelihood(logits: Tensor, given: Tensor) -> Tensor:
    """Return log(p(given) + 1e-6) a sample: CGD's unlearning term."""
    return torch.log(logits.softmax(1).gather(1, given[:, None])[:, 0] + 1e-6)


_UNLEARNING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unlikelihood": _unlikelihood,
    "cgd": _log_likelihood,
}


@dataclass(slots=True)
class _Sets:
    """The sets as they stand in the current pass, and how clean samples are weighted."""

    clean: Tensor
    flagged: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Targets:
    """What the loss compares with: given labels, the guide's scores, soft labels by row."""

    labels: Tensor
    guide: Scores
    soft_labels: Tensor
    soft_index: Tensor
    """Place of each sample in `soft_labels`, whose last row is zero: that of samples without one."""


def _targets(data: ImageSet, partition: Partition, guide: Scores) -> _Targets:
    k = len(data.class_names)
    index = np.full(len(data), len(partition.soft_rows))
    index[partition.soft_rows] = np.arange(len(partition.soft_rows))
    soft_labels = np.concatenate([partition.soft_labels, np.zeros((1, k), np.float32)])
    return _Targets(
        labels=tensor(data.labels),
        guide=guide,
        soft_labels=tensor(soft_labels),
        soft_index=tensor(index),
    )


def _unlearning_loss(sets: _Sets, targets: _Targets, config: UnlearningConfig) -> LossFunction:
    forget, guide_weight = _UNLEARNING[config.loss], GUIDE_WEIGHT[config.loss]

    def loss(logits: Tensor, rows: Tensor, _: Tensor) -> Tensor:
        device = logits.device
        given, weights = targets.labels[rows].to(device), sets.weight[rows].to(device)
        clean, flagged = (side[rows].nonzero()[:, 0] for side in (sets.clean, sets.flagged))
        learnt = F.cross_entropy(logits[clean], given[clean], reduction="none")
        # CGD has a mean of each side; clipguard's is one, by which a batch with more poison unlearns more.
        sides = [len(rows) / max(1, len(side)) if config.loss == "cgd" else 1.0 for side in (clean, flagged)]
        total = sides[0] * (weights[clean] * learnt).sum()
        if len(flagged):
            wrong = logits[flagged]
            soft = targets.soft_labels[targets.soft_index[rows][flagged]].to(device)
            weight = sides[1] * config.weight * (1 - soft.sum(1) * (1 - config.label_only_weight))
            total = total + (weight * forget(wrong, given[flagged])).sum()
            total = total - sides[1] * RELABEL_WEIGHT[config.loss] * (soft * wrong.log_softmax(1)).sum()
            if guide_weight > 0:
                scores = targets.guide.scale * tensor(targets.guide.logits[array(rows[flagged])])
                posterior = (scores / TEMPERATURE).softmax(1).to(device)
                gap = F.kl_div((wrong / TEMPERATURE).log_softmax(1), posterior, reduction="none").sum()
                total = total + sides[1] * guide_weight * TEMPERATURE * TEMPERATURE * gap
        return total / len(rows)

    return loss


def lesson(
    data: ImageSet, partition: Partition, guide: Scores, config: UnlearningConfig
) -> tuple[Int64[np.ndarray, "m"], LossFunction]:
    """Return the rows of the first pass and the loss: what a trial of the repair learns."""
    sets = _Sets(*(torch.zeros(0),) * 3)
    rows = _set(sets, data, partition, partition.clean)
    return rows, _unlearning_loss(sets, _targets(data, partition, guide), config)


def _set(
    sets: _Sets, data: ImageSet, partition: Partition, clean: Bool[np.ndarray, "n"]
) -> Int64[np.ndarray, "m"]:
    """Return the rows that carry loss while these samples count as clean, and note it in the sets."""
    flagged = partition.flagged & ~clean
    kept = ~flagged & ~partition.has(State.HELD_OUT)
    weights = class_weights(clean, kept, data.labels, partition.clean_share)
    sets.clean, sets.flagged = tensor(clean), tensor(flagged)
    sets.weight = tensor(weights[data.labels].astype(np.float32))
    return np.flatnonzero(clean | flagged)


def unlearn(  # noqa: PLR0913  # what is learnt from, how, and who watches: no two belong together
    model: Normalized,
    data: ImageSet,
    partition: Partition,
    guide: Scores,
    config: UnlearningConfig,
    seed: Seed,
    *,
    on_epoch: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    done: Callable[[Normalized], bool] = lambda model: False,
) -> History:
    """Repair `model` in place (CGD, unlearning) and return the history, with the sizes of the sets a pass.

    Other samples than clean and flagged ones do not reach the loss or BatchNorm's statistics, unless they are
    re-admitted. With a `checkpoint`, a killed repair goes on after its last whole pass; beside it is noted
    which samples were re-admitted. A repair that is `done` after a pass ends there.
    """
    admitted = _Admitted(partition.clean, checkpoint)
    admissible = partition.has(State.UNCERTAIN) & ~np.isin(data.labels, partition.quarantined)
    sets = _Sets(*(torch.zeros(0),) * 3)

    def choose(epoch: int) -> Int64[np.ndarray, "m"] | None:
        if epoch > 0 and done(model):
            return None
        confident = np.zeros(len(data), dtype=bool)
        if epoch > 0 and config.readmit < 1:
            confident = (_probability(model, data) > config.readmit) & admissible
        return _set(sets, data, partition, admitted.note(epoch, confident))

    loss = _unlearning_loss(sets, _targets(data, partition, guide), config)
    history = fit(model, data.images, choose, loss, config.recipe, seed, on_epoch, checkpoint)
    sizes = {
        "clean": tuple(float(clean.sum()) for clean in admitted.passes),
        "flagged": tuple(float((partition.flagged & ~clean).sum()) for clean in admitted.passes),
    }
    return History(columns={**history.columns, **sizes}, seconds=history.seconds)


class _Admitted:
    """Which samples counted as clean in each pass so far, also in those that a killed attempt has made."""

    def __init__(self, clean: Bool[np.ndarray, "n"], checkpoint: Path | None) -> None:
        self.first = clean
        self.file = None if checkpoint is None else checkpoint.with_name("admitted.npy")
        self.passes: list[Bool[np.ndarray, " n"]] = []
        if checkpoint is not None and self.file is not None:
            try:
                self.passes = list(read_array(self.file))
            except ClipguardError:  # Without this file, which may be damaged, a checkpoint is half of it.
                checkpoint.unlink(missing_ok=True)

    def note(self, epoch: int, confident: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        """Return the clean samples of the pass `epoch`: those of the one before it, and the `confident`."""
        before = self.passes[epoch - 1] if epoch else self.first
        # A pass that was killed was noted when it began; it begins anew.
        clean: Bool[np.ndarray, " n"] = before | confident
        self.passes = [*self.passes[:epoch], clean]
        if self.file is not None:
            write_array(self.file, np.array(self.passes))
        return clean.copy()


def _probability(model: Normalized, data: ImageSet) -> Float64[np.ndarray, "n"]:
    """Return the softmax probability of each given label; few logits are in memory together."""

    def of(part: slice) -> Float64[np.ndarray, "m"]:
        logits, labels = classifier_logits(model, data.images[part]), data.labels[part]
        shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
        given: Float64[np.ndarray, " m"] = shifted[np.arange(len(labels)), labels] / shifted.sum(1)
        return given

    return np.concatenate([of(part) for part in chunks(len(data), AT_ONCE)])
