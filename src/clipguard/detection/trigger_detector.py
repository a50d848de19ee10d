"""Trigger detector: what the flagged samples share in their pixels and the clean ones lack."""

from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit

from clipguard.compute.cross_validation import Groups, double, fold_numbers, out_of_fold
from clipguard.compute.small_nets import TrainedNets, binary_loss, continued, train_small_nets
from clipguard.compute.training import EpochHook
from clipguard.detection.drawn_rows import MOST_ROWS, drawn_by_class
from clipguard.detection.net_configs import REFINEMENT_EPOCHS, TriggerDetectorConfig
from clipguard.seeds import Seed, Stream
from clipguard.types import ImageSet, Partition, Rows, State, chunks

LARGEST_WEIGHT: Final = 10.0
"""Of a sample, and its inverse the smallest: a handful must not rule a batch."""

FOLDS: Final = 5
"""The propensity of a sample comes from a regression that was fitted without it."""

MOST: Final = 10_000
"""Flagged samples, and clean ones, that one regression learns from: more only take time."""

FEWEST: Final = 10
"""Flagged samples that a refinement can learn from; fewer are no lesson."""

HANDFUL: Final = 10
"""Samples with a trigger below which none is flagged: chance gives up to seven of 2,000 unpoisoned ones."""

SETTLED: Final = 0.02
"""Share of the flagged: a refinement that changes fewer is the last one, one that loses more is discarded."""

SHARE: Final = 0.2
"""Least share of the flagged samples in the loss of a refinement: about that of the first round."""


class TriggerScores(NamedTuple):
    """Each sample's probability of carrying a trigger.

    Attributes:
        probability: after the last round.
        first_round: after the first, whose nets learned from the entropy map alone: nets of later rounds
            start from both folds' flags, so that a sample's own flag has a way into its score.
        notes: what could not be done as it should, in words.
    """

    probability: Float64[np.ndarray, "n"]
    first_round: Float64[np.ndarray, "n"]
    notes: tuple[str, ...]


def propensity_weights(
    clean: Bool[np.ndarray, "n"],
    flagged: Bool[np.ndarray, "n"],
    embeddings: Rows,
    seed: Seed,
    groups: Groups | None = None,
) -> Float64[np.ndarray, " n"] | None:
    """Return weights under which `clean` shows the same contents as `flagged` does; None for too few samples.

    `embeddings` say what the guide sees in each image, whatever its label. Objects that are learnt early,
    such as parachutes before a plain sky, crowd into `flagged`, and a net would take the sky for the trigger.
    So a clean sample weighs as much as the odds that something with its content is flagged (propensity
    weighting), by logistic regression on the embeddings, each sample scored out of fold. Weights are 1
    outside `clean`, and 1 on average in it.
    """
    if min(int(clean.sum()), int(flagged.sum())) < FOLDS * FEWEST:
        return None
    rows = np.flatnonzero(clean | flagged)
    some = None if groups is None else groups[rows]
    odds = np.exp(_log_odds(embeddings, rows, flagged[rows], seed, some))[clean[rows]]
    for _ in range(20):
        # A bound on what is then divided by its mean has to be met anew.
        odds = np.clip(odds / odds.mean(), 1 / LARGEST_WEIGHT, LARGEST_WEIGHT)
    weights = np.ones(len(embeddings))
    weights[clean] = odds / odds.mean()
    return weights


def _log_odds(
    embeddings: Rows,
    samples: Int64[np.ndarray, " m"],
    flagged: Bool[np.ndarray, " m"],
    seed: Seed,
    groups: Groups | None,
) -> Float64[np.ndarray, " m"]:
    """Return the log-odds of some samples of being flagged, given their content, up to a constant."""
    from sklearn.linear_model import LogisticRegression

    draw = seed.generator()

    def score(outside: Bool[np.ndarray, "m"], inside: Bool[np.ndarray, "m"]) -> Float64[np.ndarray, "f"]:
        if len(np.unique(flagged[outside])) < 2:
            # All flagged samples may be of one group: then nothing is known of it.
            return np.zeros(int(inside.sum()))
        # As many of both kinds as there may be: that moves all log-odds alike, and only their ratios matter.
        kinds = (np.flatnonzero(outside & kind) for kind in (flagged, ~flagged))
        few = (rows if len(rows) <= MOST else draw.choice(rows, MOST, replace=False) for rows in kinds)
        rows = np.sort(np.concatenate(list(few)))
        # Embeddings have length 1, so that their differences are small: C has to be large for them to count.
        regression = LogisticRegression(C=16.0, max_iter=300)
        regression.fit(double(embeddings, samples[rows]), flagged[rows])
        scored = samples[inside]
        parts = (double(embeddings, scored[part]) for part in chunks(len(scored)))
        return np.concatenate([regression.decision_function(part) for part in parts])

    folds = fold_numbers(len(flagged), FOLDS, draw, groups)
    return out_of_fold(folds, score, np.empty(len(flagged))).clip(-30, 30)


def trigger_scores(
    data: ImageSet,
    partition: Partition,
    embeddings: Rows,
    config: TriggerDetectorConfig,
    seed: Seed,
    on_epoch: EpochHook | None = None,
) -> TriggerScores:
    """Return each sample's probability of carrying what the flagged samples share and the clean ones lack.

    First round: a net is trained to tell the two sets of the first partition apart. Most flagged samples are
    innocent and differ from the clean ones in nothing, so that the best the net can say of them is the base
    rate. What poison shares, its trigger, is nearly absent from the clean set: there the probability goes to
    one.

    Refinements: the nets go on with what the round before has flagged as one set, against all that it has
    not, the innocent part of the first flagged set included. What was flagged by mistake then stands against
    its likes, and poison that was missed meets a cleaner lesson. A sample that was ever flagged and still is
    likelier than not to carry a trigger is in neither set. The refinements end where the flagged set settles.
    A further one that flags fewer is discarded: it has begun to learn missed poison as clean.

    `embeddings` balance the two sets, see `propensity_weights`.

    Of more than `MOST_ROWS` samples, so many are drawn, see `compared_rows`. All rounds are about these, and
    the nets of the last round score the others as well.
    """
    rows = compared_rows(data.labels, partition, seed.child("rows"))
    drawn = np.zeros(len(data), dtype=bool)
    drawn[rows] = True
    clean, flagged = partition.clean & drawn, partition.has(State.TRIGGER) & drawn
    weights = propensity_weights(clean, flagged, embeddings, seed.child(Stream.PROPENSITY), data.groups)
    notes: tuple[str, ...] = () if weights is not None else (_unbalanced(clean, flagged),)
    loss = binary_loss(
        flagged, _thinned(np.ones(len(data)) if weights is None else weights, partition, drawn)
    )
    train = partial(train_small_nets, images=data.images, outputs=1, groups=data.groups, on_epoch=on_epoch)
    nets = train(config.net, loss=loss, trainable=clean | flagged, seed=seed)
    probability, ever = _probability(nets, rows), flagged
    first_round, first_nets = probability, nets
    for number in range(config.refinements):
        carrying = probability > config.flagged
        if carrying.sum() < FEWEST:
            notes += _unrefined(int(carrying.sum())) if number == 0 else ()
            break
        rest, ever = drawn & ~carrying & ~(ever & (probability > config.clean)), ever | carrying
        loss = binary_loss(carrying, _refinement_weights(rest, carrying, embeddings, seed, data.groups))
        again = continued(config.net, REFINEMENT_EPOCHS)
        refined = train(again, loss=loss, trainable=rest | carrying, seed=seed, start=nets.nets)
        scores = _probability(refined, rows)
        if number > 0 and (scores > config.flagged).sum() < (1 - SETTLED) * carrying.sum():
            break
        nets, probability = refined, scores
        if (carrying ^ (probability > config.flagged)).sum() <= SETTLED * carrying.sum():
            break
    if len(rows) < len(data):
        every = np.arange(len(data))
        probability, first_round = _probability(nets, every), _probability(first_nets, every)
        notes += (f"the trigger detector has learned from {len(rows):,} of {len(data):,} samples",)
    return TriggerScores(probability, first_round, notes)


def compared_rows(labels: Int64[np.ndarray, "n"], partition: Partition, seed: Seed) -> Int64[np.ndarray, "m"]:
    """Return the samples that all rounds are about: all, or `MOST_ROWS` of them, drawn class by class.

    Those flagged for a trigger, among which poison may be rare, are drawn only where they are more than half
    of that.
    """
    if len(labels) <= MOST_ROWS:
        return np.arange(len(labels))
    flagged = partition.has(State.TRIGGER)
    first = drawn_by_class(labels, np.flatnonzero(flagged), MOST_ROWS // 2, seed.child("flagged"))
    left = MOST_ROWS - len(first)
    others = drawn_by_class(labels, np.flatnonzero(~flagged), left, seed.child("others"))
    return np.sort(np.concatenate([first, others]))


def _thinned(
    weights: Float64[np.ndarray, "n"], partition: Partition, drawn: Bool[np.ndarray, "n"]
) -> Float64[np.ndarray, "n"]:
    """Return weights by which clean and flagged samples have the shares that they had before the draw.

    The probability of an innocent sample is the share of the flagged ones: the draw must not raise it.
    """
    sides = partition.clean, partition.has(State.TRIGGER)
    sizes, kept = (np.array([(side & some).sum() for side in sides]) for some in (True, drawn))
    factors = (sizes / max(1, sizes.sum())) / np.maximum(kept / max(1, kept.sum()), 1e-12)
    return np.asarray(weights * np.select(sides, factors.tolist(), 1.0))


def _probability(nets: TrainedNets, rows: Int64[np.ndarray, "m"]) -> Float64[np.ndarray, " n"]:
    """Return the probability of some samples, 0 elsewhere."""
    probability = np.zeros(len(nets.logits))
    probability[rows] = expit(nets.logits[rows][:, 0].astype(np.float64))
    return probability


def _refinement_weights(
    rest: Bool[np.ndarray, "n"],
    carrying: Bool[np.ndarray, "n"],
    embeddings: Rows,
    seed: Seed,
    groups: Groups | None,
) -> Float64[np.ndarray, " n"]:
    stream = seed.child(Stream.PROPENSITY_SECOND_ROUND)
    weights = propensity_weights(rest, carrying, embeddings, stream, groups)
    weights = np.ones(len(rest)) if weights is None else weights
    weights[carrying] = max(1.0, SHARE / (1 - SHARE) * (rest.sum() / carrying.sum()))
    return weights


def _unbalanced(clean: Bool[np.ndarray, "n"], flagged: Bool[np.ndarray, "n"]) -> str:
    return (
        f"the trigger detector could not balance contents: {int(clean.sum())} clean and {int(flagged.sum())} "
        f"flagged samples after the entropy map, {FOLDS * FEWEST} of each are needed"
    )


def _unrefined(carrying: int) -> tuple[str, ...]:
    if carrying == 0:
        return ()
    return (f"the trigger detector was not refined: it flags {carrying} samples, {FEWEST} are needed",)


def refine(
    partition: Partition, probability: Float64[np.ndarray, " n"], config: TriggerDetectorConfig
) -> Partition:
    """Return the partition after the trigger detector.

    Only what carries a trigger stays flagged, and nothing where it is a handful: chance flags as many. Only
    what was clean and does not look like a trigger stays clean. The rest is uncertain. Suspicion becomes the
    mean of both.
    """
    state = np.full(len(partition), State.UNCERTAIN, np.uint8)
    state[partition.clean & (probability <= config.clean)] = State.CLEAN
    carrying = probability > config.flagged
    if carrying.sum() >= HANDFUL:
        state[carrying] = State.TRIGGER
    return replace(partition, state=state, suspicion=(partition.suspicion + probability) / 2)
