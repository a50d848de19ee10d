"""SCAn, the statistical contamination analyzer (Tang et al., "Demon in the Variant", USENIX Security 2021).

Published: a feature is the sum of what its class has in common and of a variation whose covariance all
classes share. Both covariances are estimated by expectation maximisation on a few clean samples. Then the
samples of each class are cut in two groups, so that two means explain them best under the shared covariance.
The gain in likelihood is the class's statistic. A class is contaminated if its distance from the median of
all classes is above e^2, in units of 1.4826 times the median absolute deviation.

The formulas were held against the authors' code as other projects republish it. There, too, the statistic is
taken a sample, and the two means are found by turns of cutting and averaging in whitened features. It differs
in three points: the one mean of an uncut class is shrunk towards the mean of all classes, any distance from
the median counts, and a pseudo-inverse stands where this module has a ridge of 1 % of the mean variance. The
results were not held against the paper's figures.

Left open, and chosen here. Only a distance above the median counts: a class that is more uniform than others
is no sign of an attack. Of the two groups, the one whose mean is farther from the clean samples of the class
is the attack's; without such samples, the smaller one. The method decides by group. The score here is a
sample's log-likelihood ratio of the attack's group against the other, times two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from clipguard.defenses.clean_slice import Origin, clean_slice
from clipguard.defenses.protocol import Case, Detected
from clipguard.defenses.rivals.laps import Laps
from clipguard.defenses.rivals.victim_features import features_of, rows_by_class
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed

FEWEST: Final = 10
"""Samples of a class below which it is not judged."""

RIDGE: Final = 0.01
ROUNDS: Final = 50
CONVERGED: Final = 1e-4
"""Relative change of both covariances at which expectation maximisation ends."""


class Covariances(NamedTuple):
    """Of what the samples of a class have in common, and of how they vary around it."""

    between: Float64[np.ndarray, "d d"]
    within: Float64[np.ndarray, "d d"]


class Groups(NamedTuple):
    """A class cut in two: what it gains a sample, the group of each sample, and the means of both."""

    statistic: float
    group: Int64[np.ndarray, "m"]
    means: Float64[np.ndarray, "2 d"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContaminationAnalyzer:
    """A detector of classes that are made of two groups, by the victim's features.

    Attributes:
        threshold: of the distance from the median of all classes; e^2, as published.
        origin: of the clean samples.
        config: of the scan that finds them.
    """

    threshold: float = float(np.exp(2))
    origin: Origin = "split"
    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Detected:
        """Return log-likelihood ratios, and the attack's group of contaminated classes.

        Raises:
            ClipguardError: there are too few clean samples.
        """
        known_clean = clean_slice(case, self.origin, self.config)
        clean, scan_seconds = known_clean.samples, sum(known_clean.scan.values(), 0.0)
        victim, laps, labels = case.victim, Laps(), case.data.labels
        features, known = features_of(victim, case.data), features_of(victim, clean)
        laps.end("features")
        centre = features.mean(0)
        whitening = whitening_of(covariances(known - centre, clean.labels).within)
        laps.end("covariances")
        white, known = (features - centre) @ whitening, (known - centre) @ whitening
        seed = Seed(case.seed).child("contamination")
        classes = {
            label: two_groups(white[rows], seed.child(label)) for label, rows in rows_by_class(labels, FEWEST)
        }
        distance = dict(zip(classes, distances([one.statistic for one in classes.values()]), strict=True))
        scores, flagged = np.full(len(labels), np.nan), np.zeros(len(labels), dtype=bool)
        for label, groups in classes.items():
            rows = labels == label
            ratio = log_ratios(white[rows], groups, known[clean.labels == label])
            scores[rows] = ratio
            flagged[rows] = (ratio > 0) & (distance[label] > self.threshold)
        laps.end("groups")
        contaminated = sum(value > self.threshold for value in distance.values())
        return Detected(
            scores=scores,
            flagged=flagged,
            seconds={"clean samples": scan_seconds, **laps.seconds},
            notes={"contaminated_classes": contaminated},
        )


def covariances(features: Float64[np.ndarray, "n d"], labels: Int64[np.ndarray, "n"]) -> Covariances:
    """Return both covariances by expectation maximisation; a class's samples share one normal mean."""
    groups = [features[labels == label] for label in np.unique(labels)]
    residuals = np.concatenate([group - group.mean(0) for group in groups])
    means = np.stack([group.mean(0) for group in groups])
    estimate = Covariances(
        _ridged(means.T @ means / len(means)), _ridged(residuals.T @ residuals / len(features))
    )
    for _ in range(ROUNDS):
        before, estimate = estimate, maximised(groups, estimate)
        change = max(_relative(new, old) for new, old in zip(estimate, before, strict=True))
        if change < CONVERGED:
            break
    return estimate


def maximised(groups: list[Float64[np.ndarray, "_ d"]], old: Covariances) -> Covariances:
    """Return the covariances after one round of expectation maximisation."""
    between, within = np.zeros_like(old.between), np.zeros_like(old.within)
    for mean, spread, group in expectations(groups, old):
        between += np.outer(mean, mean) + spread
        residuals = group - mean
        within += residuals.T @ residuals + len(group) * spread
    n = sum(map(len, groups))
    return Covariances(_ridged(between / len(groups)), _ridged(within / n))


def expectations(
    groups: list[Float64[np.ndarray, "_ d"]], given: Covariances
) -> Iterator[tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d d"], Float64[np.ndarray, "_ d"]]]:
    """Yield the posterior mean and covariance of what each group has in common, and the group."""
    for group in groups:
        gain = np.linalg.solve(given.between + given.within / len(group), given.between).T
        yield gain @ group.mean(0), given.between - gain @ given.between, group


def whitening_of(within: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d d"]:
    """Return what makes features vary alike in all directions, from the right."""
    variances, axes = np.linalg.eigh(within)
    whitening: Float64[np.ndarray, "d d"] = axes / np.sqrt(np.maximum(variances, np.finfo(float).tiny))
    return whitening


def two_groups(white: Float64[np.ndarray, "m d"], seed: Seed) -> Groups:
    """Return the samples of a class cut in two: in white features, 2-means finds the likeliest means."""
    from sklearn.cluster import KMeans

    means = KMeans(2, n_init=10, random_state=seed.value % 2**32).fit(white)
    one = float(((white - white.mean(0)) ** 2).sum())
    return Groups((one - means.inertia_) / len(white), means.labels_.astype(np.int64), means.cluster_centers_)


def distances(statistics: list[float]) -> list[float]:
    """Return how far each class's statistic lies above the median, in robust deviations."""
    values = np.array(statistics)
    if not len(values):
        return []
    above = values - np.median(values)
    deviation = 1.4826 * np.median(np.abs(above))
    scaled: list[float] = (above / max(deviation, np.finfo(float).tiny)).tolist()
    return scaled


def log_ratios(
    white: Float64[np.ndarray, "m d"], groups: Groups, known: Float64[np.ndarray, "q d"]
) -> Float64[np.ndarray, "m"]:
    """Return twice the log-likelihood ratio of the attack's group against the other, for each sample."""
    attack = int(np.bincount(groups.group, minlength=2).argmin())
    if len(known):
        attack = int(((groups.means - known.mean(0)) ** 2).sum(1).argmax())
    lengths = ((white[:, None] - groups.means) ** 2).sum(2)
    ratios: Float64[np.ndarray, " m"] = lengths[:, 1 - attack] - lengths[:, attack]
    return ratios


def _ridged(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d d"]:
    floor = RIDGE * max(float(np.trace(covariance)) / len(covariance), np.finfo(float).eps)
    return covariance + floor * np.eye(len(covariance))


def _relative(new: Float64[np.ndarray, "d d"], old: Float64[np.ndarray, "d d"]) -> float:
    return float(np.linalg.norm(new - old) / np.linalg.norm(old))
