"""A linear probe of embeddings: what it says of every label, fitted without it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.special import softmax

from clipguard.compute.cross_validation import Groups, double, fold_numbers
from clipguard.detection.drawn_rows import MOST_ROWS, drawn_by_class
from clipguard.seeds import Seed
from clipguard.types import CHUNK, Rows, chunks

if TYPE_CHECKING:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

NO_LOG_PROB: Final = -1e6
"""Log-probability of a class that the linear probe could not learn: finite, so that a softmax takes it."""

FOLDS: Final = 5
"""Every sample is scored by a linear probe that was fitted without its fold."""


class Probe(NamedTuple):
    """What a linear probe says of every sample, fitted without it.

    Attributes:
        loss: of the given label, in nats; 0 where the probe has no opinion of it.
        likeliest: class.
        soft_rows: samples of some classes, ascending.
        soft_labels: of these, the probabilities of the other classes if the given label is wrong.
    """

    loss: Float64[np.ndarray, "n"]
    likeliest: Int64[np.ndarray, "n"]
    soft_rows: Int64[np.ndarray, "m"]
    soft_labels: Float32[np.ndarray, "m k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedProbe:
    """A linear probe, fitted once for each fold without it.

    Attributes:
        fold: number of each sample's fold.
        discriminants: one a fold; none where not each of them can learn two classes.
        num_classes: k, empty classes included.
    """

    fold: Int64[np.ndarray, "n"]
    discriminants: "tuple[LinearDiscriminantAnalysis, ...]"
    num_classes: int

    @property
    def known(self) -> Int64[np.ndarray, "c"]:
        """Classes that every discriminant knows: none that is a single group, which one fold alone has."""
        if not self.discriminants:
            return np.zeros(0, dtype=np.int64)
        return reduce(np.intersect1d, (one.classes_ for one in self.discriminants))

    def log_probs(
        self, embeddings: Rows, fold: int, rows: Int64[np.ndarray, "m"]
    ) -> Float64[np.ndarray, "m k"]:
        """Return what it says of samples of one fold; `NO_LOG_PROB` for classes that it does not know."""
        log_probs, discriminant = (
            np.full((len(rows), self.num_classes), NO_LOG_PROB),
            self.discriminants[fold],
        )
        known = _log_probabilities(discriminant, double(embeddings, rows))
        log_probs[:, discriminant.classes_] = np.maximum(known, NO_LOG_PROB / 2)
        return log_probs

    def by_fold(
        self, embeddings: Rows, rows: Int64[np.ndarray, "m"], size: int = CHUNK
    ) -> Iterator[tuple[Int64[np.ndarray, "l"], Float64[np.ndarray, "l k"]]]:
        """Yield the samples of `rows` fold by fold, at most `size` at once, and what it says of them."""
        for fold in range(len(self.discriminants)):
            inside = rows[self.fold[rows] == fold]
            for part in chunks(len(inside), size):
                yield inside[part], self.log_probs(embeddings, fold, inside[part])


def _log_probabilities(
    discriminant: "LinearDiscriminantAnalysis", values: Float64[np.ndarray, "m d"]
) -> Float64[np.ndarray, "m c"]:
    """Return the log-probability of each class that a discriminant knows.

    scikit-learn takes the logarithm of 1 - p where there are two: far from the border, all samples of one
    class would have the same.
    """
    if len(discriminant.classes_) > 2:  # a pair has one border
        return np.asarray(discriminant.predict_log_proba(values))
    border = discriminant.decision_function(values)
    return np.stack((-np.logaddexp(0, border), -np.logaddexp(0, -border)), axis=1)


def linear_probe(
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    softened: Bool[np.ndarray, "k"],
    left_out: Bool[np.ndarray, "n"],
    seed: Seed,
    groups: Groups | None = None,
) -> Probe:
    """Return what a linear probe of the embeddings [n, d] says, under equal priors, each row out of fold.

    The probe is linear discriminant analysis with Ledoit-Wolf shrinkage on the guide's image embeddings. It
    is exact, takes seconds, and a few per cent of wrong labels hardly move a class mean. It learns from at
    most `MOST_ROWS` samples, of each class its share. Samples that are `left_out` are scored but not learnt.
    Soft labels are given for the samples of the `softened` classes. Of a class with fewer than two samples a
    fold the probe has no opinion, nor of one that is a single group, and of none where a fold has not two.
    """
    fitted = fitted_probe(embeddings, labels, len(softened), left_out, seed, groups)
    return scored_labels(fitted, embeddings, labels, softened)


def fitted_probe(
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    num_classes: int,
    left_out: Bool[np.ndarray, "n"],
    seed: Seed,
    groups: Groups | None = None,
) -> FittedProbe:
    """Return the probe that `linear_probe` asks."""
    folds = fold_numbers(len(labels), FOLDS, seed.generator(), groups)
    classes = np.flatnonzero(np.bincount(labels[~left_out], minlength=num_classes) >= 2 * FOLDS)
    usable = ~left_out & np.isin(labels, classes)
    rows = [np.flatnonzero(usable & (folds != fold)) for fold in range(FOLDS)]
    if any(len(np.unique(labels[some])) < 2 for some in rows):
        return FittedProbe(fold=folds, discriminants=(), num_classes=num_classes)
    learned = (
        drawn_by_class(labels, some, MOST_ROWS, seed.child("rows", fold)) for fold, some in enumerate(rows)
    )
    discriminants = tuple(_fitted(embeddings, labels, some) for some in learned)
    return FittedProbe(fold=folds, discriminants=discriminants, num_classes=num_classes)


def scored_labels(
    fitted: FittedProbe,
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    softened: Bool[np.ndarray, "k"],
) -> Probe:
    """Return what a fitted probe says of every sample, as `linear_probe` does."""
    n, k, soft_rows = len(labels), len(softened), np.flatnonzero(softened[labels])
    equal = np.full((len(soft_rows), k), 1 / k, np.float32)
    probe = Probe(np.zeros(n), np.zeros(n, np.int64), soft_rows, equal)
    for some, log_probs in fitted.by_fold(embeddings, np.arange(n)):
        given = np.arange(len(some)), labels[some]
        own = log_probs[given]
        probe.loss[some] = np.where(own > NO_LOG_PROB, -own, 0.0)
        probe.likeliest[some] = log_probs.argmax(1)
        log_probs[given] = NO_LOG_PROB
        places = np.searchsorted(soft_rows, some)
        soft = places < np.searchsorted(soft_rows, some, side="right")
        probe.soft_labels[places[soft]] = softmax(log_probs[soft], axis=1).astype(np.float32)
    return probe


def _fitted(
    embeddings: Rows, labels: Int64[np.ndarray, "n"], rows: Int64[np.ndarray, "m"]
) -> "LinearDiscriminantAnalysis":
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    present = np.unique(labels[rows])
    discriminant = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage="auto", priors=np.full(len(present), 1 / len(present))
    )
    return discriminant.fit(double(embeddings, rows), labels[rows])
