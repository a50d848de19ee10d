"""Guided unlearning: the backdoored model forgets what the triggered samples taught it."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.inference import classifier_logits
from clipguard.compute.training import LossFunction, Recipe, fit
from clipguard.errors import ClipguardError
from clipguard.models.spec import Normalized
from clipguard.runs import read_array, write_array
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import History, Images, ImageSet, Scores, Split, image_set


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningConfig:
    """How a model is cured.

    Attributes:
        loss: `unlikelihood` punishes -log(1 - p(given label)), whose gradient is largest where the backdoor
            is planted; `reference` is CGD's + log p(given label), whose gradient vanishes there.
        recipe: schedule of the fine-tuning; fixed, since no test data may stop it. The long warm-up softens
            the first steps, which unlearn the backdoor: with a short one, cures differ more by chance.
        unlearn: b, weight of the unlearning term, per triggered sample relative to a clean one.
        mislabelled: share of that weight for samples of which it is known what they show instead.
        relabel: weight of the cross-entropy to what those show.
        guide: a, weight of KL(guide || model) on triggered samples at `temperature`.
        temperature: T of the guide term.
        distill: share of the clean loss that follows the uncured model instead of the labels.
        readmit: after each pass, samples outside `clean` whose given label the half-cured model believes with
            more than this probability join `clean`, unless they are `doubted` or their class is `closed`; 1
            turns it off.
        balance: weigh clean samples so that every class keeps the share that its honest labels have outside
            `triggered`.
        stamp: share of the clean samples of which a copy with the recovered trigger (with each, where there
            are several) is learnt under the sample's own label: unlearning says what a triggered image is
            not, this says what it is.
    """

    loss: Literal["unlikelihood", "reference"] = "unlikelihood"
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=3, lr=0.02, warmup=0.3, crop=0.0625))
    unlearn: float = 1.0
    mislabelled: float = 0.5
    relabel: float = 1.0
    guide: float = 0.0
    temperature: float = 3.0
    distill: float = 0.0
    readmit: float = 0.5
    balance: bool = True
    stamp: float = 0.3


REFERENCE = UnlearningConfig(
    loss="reference",
    recipe=Recipe(epochs=10, lr=0.01, batch_size=256, optimizer="plain-sgd", warmup=0.0, constant=True),
    unlearn=0.025,
    guide=0.0005,
    mislabelled=1.0,
    relabel=0.0,
    readmit=1.0,
    stamp=0.0,
)
"""CGD's own values [code]; its class resampling is class weights here, its stop on test accuracy left out.

An epoch is a whole pass here, where CGD ends it after 200 steps of 256 samples.
"""

_PIECE = 64
"""Images that are moved or stamped together."""

Join = Callable[[int, Iterator[Images]], Images]
"""Makes one array of so many images that come in pieces: in memory, or on disk where they might not fit."""


def _in_memory(_: int, pieces: Iterator[Images]) -> Images:
    return np.concatenate(list(pieces))


def trigger_augmented(  # noqa: PLR0913  # what is copied, with what on it, how and where to: no two belong together
    data: ImageSet,
    split: Split,
    guide: Scores,
    triggers: Sequence[AffineTrigger],
    cure: UnlearningConfig,
    seed: Seed,
    join: Join = _in_memory,
) -> tuple[ImageSet, Split, Scores]:
    """Return all three, longer by copies of clean samples that carry a trigger and count as clean.

    A class is copied the less, the larger its share of the flagged labels: the class that the trigger leads
    to needs no lesson in following it.
    """
    chosen = [_to_stamp(data, split, trigger, cure.stamp, seed) for trigger in triggers]
    rows = np.concatenate([*chosen, np.zeros(0, np.int64)])
    plain = (data.images[i : i + _PIECE] for i in range(0, len(data), _PIECE))
    stamped = (
        trigger.apply(data.images[some[i : i + _PIECE]])
        for trigger, some in zip(triggers, chosen, strict=True)
        for i in range(0, len(some), _PIECE)
    )
    images = join(len(data) + len(rows), chain(plain, stamped))
    marks = (
        f"{data.ids[row]} with recovered trigger {number}"
        for number, some in enumerate(chosen)
        for row in some
    )
    ids = (*data.ids, *marks)
    longer = image_set(images, np.concatenate([data.labels, data.labels[rows]]), data.class_names, ids)
    part = replace(
        split,
        clean=np.concatenate([split.clean, np.ones(len(rows), bool)]),
        triggered=np.concatenate([split.triggered, np.zeros(len(rows), bool)]),
        suspicion=np.concatenate([split.suspicion, split.suspicion[rows]]),
        doubted=np.concatenate([~split.admissible & ~split.triggered, np.zeros(len(rows), bool)]),
        shown=None if split.shown is None else np.pad(split.shown, ((0, len(rows)), (0, 0))),
    )
    return longer, part, replace(guide, logits=np.concatenate([guide.logits, guide.logits[rows]]))


def _to_stamp(
    data: ImageSet, split: Split, trigger: AffineTrigger, share: float, seed: Seed
) -> Int64[np.ndarray, "m"]:
    """Return the clean samples that are copied with the trigger."""
    clean = np.flatnonzero(split.clean)
    if trigger.label is not None:
        wanted = (data.labels[clean] != trigger.label).astype(np.float64)
        seed = seed.child("label", trigger.label)
    else:
        flagged = np.bincount(data.labels[split.triggered], minlength=len(data.class_names))
        wanted = 1 - flagged[data.labels[clean]] / max(1, flagged.sum())
    count = min(round(share * len(clean)), int((wanted > 0).sum()))
    return seed.numpy().choice(clean, count, replace=False, p=wanted / wanted.sum() if count else None)


def class_weights(
    clean: Bool[np.ndarray, "n"],
    kept: Bool[np.ndarray, "n"],
    labels: Int64[np.ndarray, "n"],
    honest: Float64[np.ndarray, "k"],
) -> Float64[np.ndarray, "k"]:
    """Return a weight a class: its count in `kept` over its count in `clean`, scaled to mean 1 over `clean`.

    Of the count in `kept` only the share `honest` is taken. A class without clean samples gets 0. Weights are
    bounded by 10, so that a few samples cannot rule.
    """
    k = len(honest)
    have = np.bincount(labels[clean], minlength=k)
    want = np.bincount(labels[kept], minlength=k) * honest
    raw = np.where(have > 0, want / np.maximum(have, 1), 0.0)
    scale = have.sum() / max((raw * have).sum(), 1e-12)
    weights: Float64[np.ndarray, " k"] = np.minimum(raw * scale, 10.0)
    return weights


def _unlikelihood(logits: Tensor, given: Tensor) -> Tensor:
    """Return -log(1 - p(given)) a sample, by log-sum-exp over the other classes."""
    others = logits.scatter(1, given[:, None], -torch.inf)
    return torch.logsumexp(logits, 1) - torch.logsumexp(others, 1)


def _log_likelihood(logits: Tensor, given: Tensor) -> Tensor:
    """Return log(p(given) + 1e-6) a sample: the reference's unlearning term."""
    return torch.log(logits.softmax(1).gather(1, given[:, None])[:, 0] + 1e-6)


_UNLEARNING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unlikelihood": _unlikelihood,
    "reference": _log_likelihood,
}


@dataclass(slots=True)
class _State:
    """The sets as they stand in the current pass, and how clean samples are weighted."""

    clean: Tensor
    triggered: Tensor
    weight: Tensor


def _cure_loss(
    state: _State,
    labels: Tensor,
    guide: Tensor,
    shown: Tensor,
    teacher: Normalized | None,
    cure: UnlearningConfig,
) -> LossFunction:
    forget = _UNLEARNING[cure.loss]

    def clean_loss(logits: Tensor, given: Tensor, batch: Tensor) -> Tensor:
        hard = F.cross_entropy(logits, given, reduction="none")
        if teacher is None:
            return hard
        with torch.no_grad():
            soft = (teacher(batch) / 2).softmax(1)
        # The factor T^2 = 4 keeps the gradient's size independent of the temperature (Hinton et al. 2015).
        matched = 4 * F.kl_div((logits / 2).log_softmax(1), soft, reduction="none").sum(1)
        return (1 - cure.distill) * hard + cure.distill * matched

    def loss(logits: Tensor, rows: Tensor, batch: Tensor) -> Tensor:
        given = labels[rows]
        clean, triggered = state.clean[rows], state.triggered[rows]
        total = (state.weight[rows][clean] * clean_loss(logits[clean], given[clean], batch[clean])).sum()
        if bool(triggered.any()):
            wrong = logits[triggered]
            told = shown[rows][triggered]
            known = told.sum(1)
            weight = cure.unlearn * (1 - known * (1 - cure.mislabelled))
            total = total + (weight * forget(wrong, given[triggered])).sum()
            total = total - cure.relabel * (told * wrong.log_softmax(1)).sum()
            if cure.guide > 0:
                t = cure.temperature
                opinion = (guide[rows][triggered] / t).softmax(1)
                gap = F.kl_div((wrong / t).log_softmax(1), opinion, reduction="none").sum()
                total = total + cure.guide * t * t * gap
        return total / len(rows)

    return loss


def unlearn(  # noqa: PLR0913  # what is learnt from, how, and who watches: no two belong together
    model: Normalized,
    data: ImageSet,
    split: Split,
    guide: Scores,
    cure: UnlearningConfig,
    seed: Seed,
    *,
    on_epoch: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
) -> History:
    """UnlearningConfig `model` in place (CGD, unlearning) and return the history, with the sizes of the sets a pass.

    Samples in neither set do not reach the loss or BatchNorm's statistics, unless they are re-admitted. With
    a `checkpoint`, a killed cure goes on after its last whole pass; beside it is noted who was admitted.
    """
    labels = torch.from_numpy(data.labels)
    scaled = torch.from_numpy(guide.logits) * guide.scale
    teacher = copy.deepcopy(model).eval() if cure.distill > 0 else None
    admitted = _Admitted(split.clean, checkpoint)
    admissible = split.admissible & ~np.isin(data.labels, split.closed)
    honest = np.ones(len(data.class_names)) if split.honest is None else split.honest
    state = _State(*(torch.zeros(0),) * 3)

    def choose(epoch: int) -> Int64[np.ndarray, "m"]:
        believed = np.zeros(len(data), dtype=bool)
        if epoch > 0 and cure.readmit < 1:
            belief = _softmax_given(classifier_logits(model, data.images), data.labels)
            believed = (belief > cure.readmit) & admissible
        clean = admitted.note(epoch, believed)
        triggered = split.triggered & ~clean
        weights = np.ones(len(data.class_names))
        if cure.balance:
            weights = class_weights(clean, ~triggered, data.labels, honest)
        state.clean, state.triggered = torch.from_numpy(clean), torch.from_numpy(triggered)
        state.weight = torch.from_numpy(weights[data.labels].astype(np.float32))
        return np.flatnonzero(clean | triggered)

    shown = torch.zeros_like(scaled) if split.shown is None else torch.from_numpy(split.shown)
    loss = _cure_loss(state, labels, scaled, shown, teacher, cure)
    history = fit(model, data.images, choose, loss, cure.recipe, seed, on_epoch, checkpoint)
    sizes = {
        "clean": tuple(float(clean.sum()) for clean in admitted.passes),
        "triggered": tuple(float((split.triggered & ~clean).sum()) for clean in admitted.passes),
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
            except ClipguardError:  # Without this file, which may be damaged, a checkpoint tells half of it.
                checkpoint.unlink(missing_ok=True)

    def note(self, epoch: int, believed: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        """Return the clean samples of the pass `epoch`: those of the one before it, and who is `believed`."""
        before = self.passes[epoch - 1] if epoch else self.first
        # A pass that was killed was noted when it began; it begins anew.
        clean: Bool[np.ndarray, " n"] = before | believed
        self.passes = [*self.passes[:epoch], clean]
        if self.file is not None:
            write_array(self.file, np.array(self.passes))
        return clean.copy()


def _softmax_given(logits: np.ndarray, labels: Int64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    belief: Float64[np.ndarray, " n"] = shifted[np.arange(len(labels)), labels] / shifted.sum(1)
    return belief
