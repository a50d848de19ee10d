"""Feature separation: in a backdoored model's penultimate layer, poison and clean samples lie apart."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from clipguard.compute.cross_validation import Groups, fold_numbers, out_of_fold
from clipguard.seeds import Seed
from clipguard.types import Partition, State

FOLDS: Final = 5
"""Every sample is scored by a discriminant that was fitted without its fold."""

WIDEST: Final = 512
"""Dimensions of features; of more, their principal components are taken, since a discriminant's time grows
with the cube of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSeparationConfig:
    """How a model's features judge the labels of quarantined classes.

    Attributes:
        rounds: how often the discriminant is fitted, each time on what the round before has flagged and
            trusted; 0 turns it off.
        flag_log_odds: nats, poison against clean; an excluded sample is flagged above it and becomes clean
            below its negative. A flagged one stays flagged down to the negative.
        keep_log_odds: nats; a clean sample stays clean up to these log-odds.
    """

    rounds: int = 6
    flag_log_odds: float = 2.0
    keep_log_odds: float = 1.0


def separated_by_features(
    partition: Partition,
    labels: Int64[np.ndarray, "n"],
    features: Callable[[Int64[np.ndarray, "m"]], Shaped[np.ndarray, "m d"]],
    config: FeatureSeparationConfig,
    seed: Seed,
    groups: Groups | None = None,
) -> Partition:
    """Return the partition in which a model's features judge the quarantined classes.

    In the last layers of a backdoored model, what it learnt for a trigger lies apart from what it learnt for
    the image's content (Tran et al. 2018; Chen et al. 2018, who look for two clusters in every class). Where
    labels were flagged, it is known which side is which. Linear discriminant analysis, with Ledoit-Wolf
    shrinkage and equal priors, learns flagged against clean samples of one class and scores all of them out
    of fold, also those that were excluded or uncertain. Once flagged or clean, a sample changes sides by way
    of the excluded, so that it takes two rounds. A class with too few of either kind is left as it is; so are
    samples that were flagged for a trigger.

    Args:
        partition: of a scan.
        labels: as given.
        features: returns the model's penultimate features of the samples of some rows.
        config: thresholds.
        seed: of the folds.
        groups: of the samples, which no fold tears apart.
    """
    if not config.rounds or not len(partition.soft_rows):
        return partition
    state, clean_share = partition.state.copy(), partition.clean_share.copy()
    by_label = ~partition.has(State.TRIGGER, State.HELD_OUT, State.KEPT, State.DROPPED)
    for c in partition.quarantined:
        rows = np.flatnonzero((labels == c) & by_label)
        flagged, clean = state[rows] == State.LABEL, state[rows] == State.CLEAN
        if too_few_to_separate(flagged, clean):
            continue
        estimated_clean = clean_share[c] * (~flagged).sum()
        some = None if groups is None else groups[rows]
        flagged, clean = _sides(features(rows), flagged, clean, config, seed.child(c), some)
        state[rows] = np.select([flagged, clean], [State.LABEL, State.CLEAN], State.EXCLUDED)
        # What is flagged now is taken from what was estimated as poison, as far as that goes.
        clean_share[c] = min(1.0, estimated_clean / max(1, (~flagged).sum()))
    return replace(partition, state=state, clean_share=clean_share)


def too_few_to_separate(flagged: Bool[np.ndarray, "m"], clean: Bool[np.ndarray, "m"]) -> bool:
    """Return whether a class has too few flagged or clean samples for the folds of a discriminant."""
    return bool(min(flagged.sum(), clean.sum()) < 2 * FOLDS)


def _sides(
    features: Shaped[np.ndarray, "m d"],
    flagged: Bool[np.ndarray, "m"],
    clean: Bool[np.ndarray, "m"],
    config: FeatureSeparationConfig,
    seed: Seed,
    groups: Groups | None,
) -> tuple[Bool[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    """Return which of a class's samples are poison, and which are clean."""
    scan = flagged, clean
    features = _reduced(features.astype(np.float64), seed.child("reduced"))
    for number in range(config.rounds):
        log_odds = _calibrated(_log_odds(features, flagged, clean, seed.child(number), groups), *scan)
        undecided = ~flagged & ~clean
        flagged, clean = (
            (flagged & (log_odds > -config.flag_log_odds)) | (undecided & (log_odds > config.flag_log_odds)),
            (clean & (log_odds < config.keep_log_odds)) | (undecided & (log_odds < -config.flag_log_odds)),
        )
    return flagged, clean


def _log_odds(
    features: Float64[np.ndarray, "m d"],
    flagged: Bool[np.ndarray, "m"],
    clean: Bool[np.ndarray, "m"],
    seed: Seed,
    groups: Groups | None,
) -> Float64[np.ndarray, "m"]:
    """Return log p(poison) - log p(clean), each sample out of fold."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    def score(outside: Bool[np.ndarray, "m"], inside: Bool[np.ndarray, "m"]) -> Float64[np.ndarray, "f"]:
        rows = (flagged | clean) & outside
        if not inside.any() or len(np.unique(flagged[rows])) < 2:
            return np.zeros(int(inside.sum()))
        discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
        discriminant.fit(features[rows], flagged[rows])
        log_odds: Float64[np.ndarray, " f"] = discriminant.decision_function(features[inside])
        return log_odds

    folds = fold_numbers(len(features), FOLDS, seed.generator(), groups)
    return out_of_fold(folds, score, np.zeros(len(features)))


def _reduced(features: Float64[np.ndarray, "m d"], seed: Seed) -> Float64[np.ndarray, "m w"]:
    """Return the principal components of features that are wider than `WIDEST`, and others as they are."""
    from sklearn.decomposition import PCA

    m, d = features.shape
    if d <= WIDEST:
        return features
    axes = PCA(min(WIDEST, m), svd_solver="randomized", random_state=int(seed.generator().integers(2**31)))
    return np.asarray(axes.fit_transform(features), dtype=np.float64)


def _calibrated(
    log_odds: Float64[np.ndarray, "m"], flagged: Bool[np.ndarray, "m"], clean: Bool[np.ndarray, "m"]
) -> Float64[np.ndarray, "m"]:
    """Return log-odds that are no larger than the distance between the scan's two sides supports.

    Where features say nothing, a discriminant of many dimensions is still certain, and what it flags would
    teach the next round the same. Of two normal distributions with equal variance, the log-odds of x are
    (m1 - m0) / s^2 times x less the middle. Medians and median absolute deviations tolerate wrongly flagged
    samples. The middle is moved to 0, and distances from it are never made larger than they are.
    """
    m1, m0 = np.median(log_odds[flagged]), np.median(log_odds[clean])
    deviation = np.concatenate([np.abs(log_odds[flagged] - m1), np.abs(log_odds[clean] - m0)])
    variance = max((1.4826 * float(np.median(deviation))) ** 2, 1e-12)
    slope = float(np.clip((m1 - m0) / variance, 0.0, 1.0))
    return np.asarray(slope * (log_odds - (m1 + m0) / 2))
