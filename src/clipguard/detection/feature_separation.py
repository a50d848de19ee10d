"""FeatureSeparationConfig: the backdoored model itself tells which labels of a class it has learnt for their trigger."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from clipguard.seeds import Seed
from clipguard.types import Split

WIDEST: Final = 512
"""Dimensions of activations; of more, their principal components are taken, since a discriminant's time grows
with the cube of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSeparationConfig:
    """How the labels of closed classes are judged by the activations of the model that is to be cured.

    Attributes:
        folds: each sample is judged by a discriminant that was fitted without its fold.
        looks: how often, each time with what the look before has flagged and trusted; 0 turns it off.
        sure: nats; a doubted sample is flagged above these log-odds, planted against honest, and trusted
            below their negative, down to which a flagged one stays flagged.
        keep: nats; a trusted sample stays so up to these log-odds.
    """

    folds: int = 5
    looks: int = 6
    sure: float = 2.0
    keep: float = 1.0


def separated_by_features(
    split: Split,
    labels: Int64[np.ndarray, "n"],
    seen: Callable[[Int64[np.ndarray, "m"]], Shaped[np.ndarray, "m d"]],
    settings: FeatureSeparationConfig,
    seed: Seed,
) -> Split:
    """Return the split in which the closed classes are judged by a model's activations.

    In the last layer of a backdoored model, what it learnt for a trigger lies apart from what it learnt for
    what the image shows (Tran et al. 2018; Chen et al. 2018, who look for two clusters in every class). Where
    labels were flagged as planted, it is known which side is which: linear discriminant analysis, with
    Ledoit-Wolf shrinkage and equal priors, learns flagged against trusted labels of one class and judges all
    of its samples, also those that were doubted. Once flagged or trusted, a sample changes sides by way of
    the doubted, so that it takes two looks. A class with too few of either kind is left as it is; so are
    samples that were flagged for a trigger.

    Args:
        split: what a scan has found.
        labels: as given.
        seen: returns the model's activations of the samples of some rows.
        settings: how to judge.
        seed: of the folds.
    """
    if not settings.looks or split.shown is None or split.honest is None:
        return split
    clean, triggered, honest = split.clean.copy(), split.triggered.copy(), split.honest.copy()
    doubted, for_its_label = ~split.admissible & ~triggered, ~triggered | split.shown.any(1)
    for c in split.closed:
        rows = np.flatnonzero((labels == c) & for_its_label)
        planted, trusted = triggered[rows], clean[rows]
        if min(planted.sum(), trusted.sum()) < 2 * settings.folds:
            continue
        thought_honest = honest[c] * (~planted).sum()
        planted, trusted = _sides(seen(rows), planted, trusted, settings, seed.child(c))
        triggered[rows], clean[rows], doubted[rows] = planted, trusted, ~planted & ~trusted
        # What is flagged now is taken from those that were thought to be planted, as far as it goes.
        honest[c] = min(1.0, thought_honest / max(1, (~planted).sum()))
    return replace(split, clean=clean, triggered=triggered, doubted=doubted, honest=honest)


def _sides(
    activations: Shaped[np.ndarray, "m d"],
    planted: Bool[np.ndarray, "m"],
    trusted: Bool[np.ndarray, "m"],
    settings: FeatureSeparationConfig,
    seed: Seed,
) -> tuple[Bool[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    """Return which of a class's samples are planted, and which are to be trusted."""
    told = planted, trusted
    activations = _reduced(activations.astype(np.float64), seed.child("reduced"))
    for look in range(settings.looks):
        odds = _calibrated(_log_odds(activations, planted, trusted, settings.folds, seed.child(look)), *told)
        undecided = ~planted & ~trusted
        planted, trusted = (
            (planted & (odds > -settings.sure)) | (undecided & (odds > settings.sure)),
            (trusted & (odds < settings.keep)) | (undecided & (odds < -settings.sure)),
        )
    return planted, trusted


def _log_odds(
    activations: Float64[np.ndarray, "m d"],
    planted: Bool[np.ndarray, "m"],
    trusted: Bool[np.ndarray, "m"],
    folds: int,
    seed: Seed,
) -> Float64[np.ndarray, "m"]:
    """Return log p(planted) - log p(honest), each sample by a discriminant that has not learnt it."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    out = np.zeros(len(activations))
    fold = seed.numpy().permutation(np.arange(len(activations)) % folds)
    for number in range(folds):
        learnt, judged = (planted | trusted) & (fold != number), fold == number
        if judged.any() and len(np.unique(planted[learnt])) == 2:
            sides = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
            sides.fit(activations[learnt], planted[learnt])
            out[judged] = sides.decision_function(activations[judged])
    return out


def _reduced(activations: Float64[np.ndarray, "m d"], seed: Seed) -> Float64[np.ndarray, "m w"]:
    """Return the principal components of activations that are wider than `WIDEST`, and others as they are."""
    from sklearn.decomposition import PCA

    m, d = activations.shape
    if d <= WIDEST:
        return activations
    axes = PCA(min(WIDEST, m), svd_solver="randomized", random_state=int(seed.numpy().integers(2**31)))
    return np.asarray(axes.fit_transform(activations), dtype=np.float64)


def _calibrated(
    odds: Float64[np.ndarray, "m"], planted: Bool[np.ndarray, "m"], trusted: Bool[np.ndarray, "m"]
) -> Float64[np.ndarray, "m"]:
    """Return log-odds that are as large as the two sides lie apart that a scan has told.

    Where activations tell nothing, a discriminant of many dimensions is still sure, and what it flags would
    teach the next one the same. Of two normal distributions with equal variance, the log-odds of x are
    (m1 - m0) / s^2 times x less the middle; medians and median absolute deviations stand wrongly told
    samples. They are not made larger than they are.
    """
    m1, m0 = np.median(odds[planted]), np.median(odds[trusted])
    deviation = np.concatenate([np.abs(odds[planted] - m1), np.abs(odds[trusted] - m0)])
    variance = max((1.4826 * float(np.median(deviation))) ** 2, 1e-12)
    slope = float(np.clip((m1 - m0) / variance, 0.0, 1.0))
    return np.asarray(slope * (odds - (m1 + m0) / 2))
