"""Entropy map and first partition: two losses of every given label, as ranks (pure numpy)."""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.special import logsumexp
from scipy.stats import rankdata

from clipguard.errors import ClipguardError
from clipguard.types import EntropyMap, Partition, Scores, State, chunks, partition_of


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyMapConfig:
    """Thresholds on the ranks; the defaults are CGD's own values.

    Attributes:
        by: `class` ranks each sample among those of its given label, so that a class which the guide cannot
            read is not thrown out whole; `all` is CGD's rule, ranks among all samples.
        clean: s1; clean means guide rank <= 1 - s1 and early-training rank >= s1.
        candidate: s2; a candidate has a guide rank > 1 - s2 or an early-training rank < s2.
    """

    by: Literal["class", "all"] = "all"
    clean: float = 0.2
    candidate: float = 0.1


FEW_CLEAN: Final = 10
"""A class with fewer clean samples than this has too few to trust what is learnt of it."""


TOGETHER: Final = 2000
"""Samples that are scored together: whole batches of a net, so that its scores are those of one long pass."""

_IN_DOUBLE: Final = 250
"""Of these, samples whose losses are computed together, since that takes several copies in float64."""


class Opinion(NamedTuple):
    """A scorer's negative log-likelihood of each given label, in nats, and the class it finds likeliest."""

    nll: Float64[np.ndarray, "n"]
    likeliest: Int64[np.ndarray, "n"]


def opinion(scores: Scores, labels: Int64[np.ndarray, "n"]) -> Opinion:
    """Return what a scorer says of every sample, in one pass that holds the scores of a few at a time.

    Raises:
        ClipguardError: a score is NaN or infinite.
    """
    nll, likeliest = np.empty(len(labels)), np.empty(len(labels), dtype=np.int64)
    broken: list[int] = []
    for part in chunks(len(labels), TOGETHER):
        logits = scores.logits[part]
        finite = np.isfinite(logits).all(1)
        broken += (part.start + np.flatnonzero(~finite)).tolist()
        likeliest[part] = logits.argmax(1)
        logits = np.where(finite[:, None], logits, 0)
        pieces = chunks(len(logits), _IN_DOUBLE)
        nll[part] = np.concatenate([_nll(logits[some], scores.scale, labels[part][some]) for some in pieces])
    if broken:
        raise ClipguardError(
            f"{scores.source} gave NaN or infinite scores for {len(broken)} samples, first row {broken[0]}: "
            "check its weights and inputs"
        )
    return Opinion(nll, likeliest)


def label_nll(scores: Scores, labels: Int64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Return the negative log-likelihood of the given labels alone, see `opinion`."""
    return opinion(scores, labels).nll


def _nll(
    logits: Float32[np.ndarray, "m k"], scale: float, labels: Int64[np.ndarray, "m"]
) -> Float64[np.ndarray, "m"]:
    """Return the losses, in float64 and as log(1 + odds of the others): confident ones would tie at 0."""
    scaled = scale * logits.astype(np.float64)
    given = np.arange(len(labels)), labels
    own = scaled[given]
    scaled[given] = -np.inf
    nll: Float64[np.ndarray, " m"] = np.logaddexp(0.0, logsumexp(scaled, axis=1) - own)
    return nll


def rank(values: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Return ranks in (0, 1], ties averaged: they do not depend on the order of the rows."""
    ranks: np.ndarray = rankdata(values, method="average")
    return ranks / max(1, len(values))


def entropy_map(guide_nll: Float64[np.ndarray, "n"], early_nll: Float64[np.ndarray, "n"]) -> EntropyMap:
    """Return both models' losses of the given labels with their ranks among all samples."""
    return EntropyMap(
        guide_nll=guide_nll, early_nll=early_nll, guide_rank=rank(guide_nll), early_rank=rank(early_nll)
    )


def class_ranks(values: Float64[np.ndarray, "n"], labels: Int64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Return ranks in (0, 1] among the samples of the same given label."""
    out = np.zeros(len(values))
    for label in np.unique(labels):
        members = labels == label
        out[members] = rank(values[members])
    return out


def classes_with_few_clean(
    clean: Bool[np.ndarray, "n"], labels: Int64[np.ndarray, "n"], class_names: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the names of classes with fewer than `FEW_CLEAN` clean samples, empty classes included."""
    counts = np.bincount(labels[clean], minlength=len(class_names))
    return tuple(name for name, count in zip(class_names, counts, strict=True) if count < FEW_CLEAN)


def first_partition(
    entropy: EntropyMap,
    labels: Int64[np.ndarray, "n"],
    num_classes: int,
    config: EntropyMapConfig,
    probe_loss: Float64[np.ndarray, "n"] | None = None,
) -> Partition:
    """Return the clean samples and the candidates of CGD's separation; the band between is uncertain.

    With a second axis, the linear probe's loss of each label, the higher of its rank and the guide's counts:
    clean is what both find probable. Suspicion is the mean of the guide's rank and one minus the
    early-training model's.
    """
    guide, early = entropy.guide_rank, entropy.early_rank
    if config.by == "class":
        guide, early = class_ranks(entropy.guide_nll, labels), class_ranks(entropy.early_nll, labels)
    if probe_loss is not None:
        ranks = class_ranks(probe_loss, labels) if config.by == "class" else rank(probe_loss)
        guide = np.maximum(guide, ranks)
    flagged = (guide > 1 - config.candidate) | (early < config.candidate)
    clean = (guide <= 1 - config.clean) & (early >= config.clean) & ~flagged
    state = np.full(len(labels), State.UNCERTAIN, np.uint8)
    state[clean], state[flagged] = State.CLEAN, State.TRIGGER
    return partition_of(state, (entropy.guide_rank + 1 - entropy.early_rank) / 2, num_classes)
