"""Trigger detector: what the flagged samples share in their pixels and the others lack."""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Shaped
from scipy.special import expit

from clipguard.compute.cross_validation import SmallNetConfig, binary_loss, train_small_nets
from clipguard.compute.training import EpochHook, Recipe
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Split


def _shallow() -> SmallNetConfig:
    """Return the default probe; two folds, since memorised labels would flag themselves."""
    recipe = Recipe(epochs=6, batch_size=32, lr=0.05, crop=0.0, flip=False)
    return SmallNetConfig(architecture="shallow-32", recipe=recipe, folds=2, fewest_steps=600)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerDetectorConfig:
    """The net and its two thresholds on the probability of carrying a trigger.

    Attributes:
        probe: net and training.
        second: epochs of the second look, which goes on from the first look's nets at half their learning
            rate; 0 turns it off.
        triggered: above it, a sample is unlearnt.
        clean: above it, a sample is not learnt from either, until the half-cured model believes its label.
    """

    probe: SmallNetConfig = field(default_factory=_shallow)
    second: int = 3
    triggered: float = 0.8
    clean: float = 0.5

    def __post_init__(self) -> None:
        """Refuse thresholds that would put a sample into both sets, and looks that take less than no time."""
        if not 0 <= self.clean <= self.triggered <= 1:
            raise ClipguardError(
                f"detector thresholds clean {self.clean} and triggered {self.triggered}: "
                "give 0 <= clean <= triggered <= 1"
            )
        if self.second < 0:
            raise ClipguardError(f"second look of {self.second} epochs: give 0 or more")

    def epochs(self, trainable: int) -> int:
        """Return the epochs of both looks and all their nets, for a number of samples to learn from."""
        return (self.probe.epochs(trainable) + self.second) * self.probe.runs * self.probe.folds


LARGEST_WEIGHT: Final = 10.0
"""Of a sample, and its inverse the smallest: a handful must not rule a batch."""

FOLDS: Final = 5
"""Likeness is judged by a regression that has not seen the sample."""

MOST: Final = 10_000
"""Flagged samples, and clean ones, that one regression learns from: more only take time."""

FEWEST: Final = 10
"""Flagged samples that a second look can learn from; fewer are no lesson."""

SHARE: Final = 0.2
"""Least share of the flagged samples in the loss of the second look: about that of the first."""


def propensity_weights(
    split: Split,
    embeddings: Shaped[np.ndarray, "n d"],
    reserved: Bool[np.ndarray, "n"],
    seed: Seed,
) -> Float64[np.ndarray, " n"]:
    """Return weights under which `clean` shows the same contents as `triggered` does.

    `embeddings` say what the guide sees in each image, whatever its label. Objects that are learnt early,
    such as parachutes before a plain sky, crowd into `triggered`, and a net would take the sky for the
    trigger. So a clean sample weighs as much as the odds that something that looks like it is flagged
    (propensity weighting), by logistic regression on the embeddings, each sample judged without its fold.
    Weights are 1 outside `clean`, and 1 on average in it; all are 1 where there are too few samples to tell.
    """
    weights = np.ones(len(embeddings))
    clean = np.flatnonzero(split.clean & ~reserved)
    told = np.flatnonzero((split.clean | split.triggered) & ~reserved)
    if min(len(clean), len(told) - len(clean)) < FOLDS * FEWEST:
        return weights
    odds = np.exp(_log_odds(embeddings[told], split.triggered[told], seed))
    odds = odds[split.clean[told]]
    for _ in range(20):
        # A bound on what is then divided by its mean has to be met anew.
        odds = np.clip(odds / odds.mean(), 1 / LARGEST_WEIGHT, LARGEST_WEIGHT)
    weights[clean] = odds / odds.mean()
    return weights


def _log_odds(
    embeddings: Shaped[np.ndarray, "m d"], flagged: Bool[np.ndarray, " m"], seed: Seed
) -> Float64[np.ndarray, " m"]:
    """Return each sample's log-odds of being flagged, given what it looks like, up to a constant."""
    from sklearn.linear_model import LogisticRegression

    out, draw = np.empty(len(flagged)), seed.numpy()
    fold = draw.permutation(np.arange(len(flagged)) % FOLDS)
    for number in range(FOLDS):
        judged = fold == number
        # As many of both kinds as there may be: that moves all log-odds alike, and only their ratios matter.
        kinds = (np.flatnonzero(~judged & kind) for kind in (flagged, ~flagged))
        few = (rows if len(rows) <= MOST else draw.choice(rows, MOST, replace=False) for rows in kinds)
        learnt = np.sort(np.concatenate(list(few)))
        # Embeddings have length 1, so that their differences are small: C has to be large for them to count.
        judge = LogisticRegression(C=16.0, max_iter=300)
        judge.fit(embeddings[learnt].astype(np.float64), flagged[learnt])
        out[judged] = judge.decision_function(embeddings[judged].astype(np.float64))
    return out.clip(-30, 30)


def trigger_scores(  # noqa: PLR0913  # what is learnt, from what, how, and who watches: no two belong together
    data: ImageSet,
    split: Split,
    embeddings: Shaped[np.ndarray, "n d"],
    reserved: Bool[np.ndarray, "n"],
    detector: TriggerDetectorConfig,
    seed: Seed,
    on_epoch: EpochHook | None = None,
) -> Float64[np.ndarray, " n"]:
    """Return each sample's probability of carrying what `triggered` shares and `clean` lacks, by its pixels.

    First look: a net is trained to tell the two sets of the split apart. Most of `triggered` is innocent and
    differs from `clean` in nothing, so that the best the net can say of it is the base rate. What poison
    shares, its trigger, is nearly absent from `clean`: there the probability goes to one.

    Second look: the nets go on, now told what the first look has flagged, against all that it has not, the
    innocent part of `triggered` included. What was flagged by mistake then stands against its likes.

    Reserved samples are scored but not learnt. `embeddings` balance the two sets, see `propensity_weights`.
    """
    told = (split.clean | split.triggered) & ~reserved
    loss = binary_loss(
        split.triggered, propensity_weights(split, embeddings, reserved, seed.child("likeness"))
    )
    first = train_small_nets(detector.probe, data.images, 1, loss, told, seed, on_epoch)
    scores: Float64[np.ndarray, " n"] = expit(first.logits[:, 0].astype(np.float64))
    flagged = scores > detector.triggered
    if detector.second == 0 or (flagged & ~reserved).sum() < FEWEST:
        return scores
    doubtful = split.triggered & (scores > detector.clean)
    again = replace(split, triggered=flagged, clean=~flagged & ~doubtful)
    weights = propensity_weights(again, embeddings, reserved, seed.child("likeness again"))
    against = (again.clean & ~reserved).sum() / (flagged & ~reserved).sum()
    weights[flagged] = max(1.0, SHARE / (1 - SHARE) * against)
    told, recipe = (again.clean | flagged) & ~reserved, detector.probe.recipe
    gentler = replace(recipe, epochs=detector.second, lr=recipe.lr / 2)
    probe = replace(detector.probe, recipe=gentler, fewest_steps=0)
    loss = binary_loss(flagged, weights)
    second = train_small_nets(probe, data.images, 1, loss, told, seed, on_epoch, first.nets)
    surer: Float64[np.ndarray, " n"] = expit(second.logits[:, 0].astype(np.float64))
    return surer


def refine(split: Split, trigger: Float64[np.ndarray, " n"], detector: TriggerDetectorConfig) -> Split:
    """Return the split after the detector's word.

    Only what carries a trigger stays `triggered`; only what the first split trusts and the detector does not
    doubt stays `clean`. The rest is for the half-cured model to judge. Suspicion becomes the mean of both.
    """
    return replace(
        split,
        clean=split.clean & (trigger <= detector.clean),
        triggered=trigger > detector.triggered,
        suspicion=(split.suspicion + trigger) / 2,
    )
