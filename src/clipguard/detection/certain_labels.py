"""Labels of samples that a linear probe is certain of, counted against the labels that it expects there.

Natural label errors lie near the border of two classes. Labels that an attacker changed lie as deep in their
true class as any other sample of it. So a sample counts as *certain* if its margin is among the larger ones
of the class that the probe finds likeliest. Counting labels against confident predictions is the confident
joint of Northcutt, Jiang and Chuang (JAIR 2021).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import minimize
from scipy.special import expit, softmax

from clipguard.detection.linear_probe import NO_LOG_PROB, FittedProbe
from clipguard.seeds import Seed
from clipguard.types import Rows

CERTAIN: Final = (0.5, 0.3)
"""Shares of each class's own samples that are certain, those with the largest margins.

Half of them have the power for few labels of many classes; the smaller share for many labels of one class, of
which the probe has learned a part. Chosen on the development draws.
"""

NOISE_FLOOR: Final = 0.005
"""Share of wrong labels that any data set has: Northcutt et al. (NeurIPS 2021) count 0.5 % in CIFAR-10."""

FIT_VALUES: Final = 4_000_000
"""Log-probabilities that the recalibration is fitted to, at most: 32 MB. More only take time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertainLabels:
    """Labels of certain samples in bands of the margin: from `CERTAIN[0]` up to the next share, and so on.

    Attributes:
        observed: samples of each band that are labelled a and likeliest b; 0 for a = b.
        expected: the same under the recalibrated posterior with noise.
        samples: certain samples of each band and likeliest class.
        own_share: share of each class's labels that lie in a band of that class.
        noise: estimated share of labels that are drawn from all classes alike.
    """

    observed: Int64[np.ndarray, "bands k k"]
    expected: Float64[np.ndarray, "bands k k"]
    samples: Int64[np.ndarray, "bands k"]
    own_share: Float64[np.ndarray, "k"]
    noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """What turns the probe's log-probabilities under equal priors into chances of labels.

    Attributes:
        prior: share of each class.
        temperature: what log-probabilities are divided by.
        noise: share of labels that are drawn from all classes alike.
    """

    prior: Float64[np.ndarray, "k"]
    temperature: float
    noise: float

    def posterior(self, log_probs: Float64[np.ndarray, "m k"]) -> Float64[np.ndarray, "m k"]:
        """Return the chance of each label; 0 of classes that the probe does not know."""
        known = log_probs > NO_LOG_PROB
        prior = np.log(np.maximum(self.prior, np.finfo(float).tiny))
        chances = softmax(np.where(known, log_probs / self.temperature + prior, -np.inf), axis=1)
        return np.asarray((1 - self.noise) * chances + self.noise * known / known.sum(1, keepdims=True))


def recalibrated(
    log_probs: Float64[np.ndarray, "m k"], labels: Int64[np.ndarray, "m"], prior: Float64[np.ndarray, "k"]
) -> Recalibration:
    """Return the temperature (Guo et al., ICML 2017) and the symmetric noise of the highest likelihood."""
    given = np.arange(len(labels)), labels

    def of(parameters: Float64[np.ndarray, "2"]) -> Recalibration:
        log_temperature, logit = np.clip(parameters, -20, 20)
        noise, temperature = float(expit(logit)), float(np.exp(log_temperature))
        return Recalibration(prior=prior, temperature=temperature, noise=noise)

    def loss(parameters: Float64[np.ndarray, "2"]) -> float:
        chance = of(parameters).posterior(log_probs)[given]
        return -float(np.log(np.maximum(chance, np.finfo(float).tiny)).mean())

    # The starting point is that of an overconfident probe on data with few errors.
    fit = minimize(loss, [np.log(2.0), -4.0], method="Nelder-Mead", options={"xatol": 0.01, "fatol": 1e-6})
    return of(fit.x)


def certain_labels(
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    unexplained: Bool[np.ndarray, "n"],
    fitted: FittedProbe,
    seed: Seed,
) -> CertainLabels:
    """Return the labels of certain samples, by the fitted probe of the embeddings [n, d].

    Only samples count that no trigger explains and whose label the probe knows. Each is scored once, a
    certain one twice, a few at a time.
    """
    k, depths = fitted.num_classes, len(CERTAIN)
    observed, expected = np.zeros((depths, k, k), dtype=np.int64), np.zeros((depths, k, k))
    samples, own_share, noise = np.zeros((depths, k), dtype=np.int64), np.ones(k), 0.0
    rows = np.flatnonzero(unexplained & np.isin(labels, fitted.known))
    if len(rows):
        recalibration = _fitted_recalibration(embeddings, labels, rows, fitted, seed)
        noise = recalibration.noise
        likeliest, margin = _margins(embeddings, rows, len(labels), fitted)
        band = _bands(labels, likeliest, margin, rows, k)
        for some, log_probs in fitted.by_fold(embeddings, rows[band[rows] >= 0]):
            chances = recalibration.posterior(log_probs) + NOISE_FLOOR / k * (log_probs > NO_LOG_PROB)
            np.add.at(observed, (band[some], labels[some], likeliest[some]), 1)
            np.add.at(samples, (band[some], likeliest[some]), 1)
            # Rows of the transpose are likeliest classes.
            np.add.at(expected.transpose(0, 2, 1), (band[some], likeliest[some]), chances)
        own = np.bincount(labels[rows], minlength=k)
        own_share = observed.sum(0).diagonal() / np.maximum(own, 1)
    diagonal = np.arange(k)
    observed[:, diagonal, diagonal], expected[:, diagonal, diagonal] = 0, 0.0
    return CertainLabels(
        observed=observed, expected=expected, samples=samples, own_share=own_share, noise=noise
    )


def _fitted_recalibration(
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    rows: Int64[np.ndarray, "m"],
    fitted: FittedProbe,
    seed: Seed,
) -> Recalibration:
    """Return the recalibration of as many of the rows, drawn at random, as `FIT_VALUES` allows."""
    k = fitted.num_classes
    drawn = np.sort(seed.generator().permutation(rows)[: max(1, FIT_VALUES // k)])
    order, log_probs = map(np.concatenate, zip(*fitted.by_fold(embeddings, drawn), strict=True))
    prior = np.bincount(labels[rows], minlength=k) / len(rows)
    return recalibrated(log_probs, labels[order], prior)


def _margins(
    embeddings: Rows, rows: Int64[np.ndarray, "m"], n: int, fitted: FittedProbe
) -> tuple[Int64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    """Return the likeliest class of the rows, and its log-odds against the second."""
    likeliest, margin = np.zeros(n, dtype=np.int64), np.zeros(n)
    for some, log_probs in fitted.by_fold(embeddings, rows):
        likeliest[some] = log_probs.argmax(1)
        second, first = np.partition(log_probs, -2, axis=1)[:, -2:].T
        margin[some] = first - second
    return likeliest, margin


def _bands(
    labels: Int64[np.ndarray, "n"],
    likeliest: Int64[np.ndarray, "n"],
    margin: Float64[np.ndarray, "n"],
    rows: Int64[np.ndarray, "m"],
    k: int,
) -> Int64[np.ndarray, "n"]:
    """Return the number of each sample's band; -1 for those that are not certain.

    The bounds are quantiles of the margin among samples whose label is the likeliest class. A class without
    such samples has no certain ones.
    """
    own = rows[labels[rows] == likeliest[rows]]
    own = own[np.argsort(labels[own], kind="stable")]
    bounds = np.full((len(CERTAIN), k), np.inf)
    for group in np.split(own, np.flatnonzero(np.diff(labels[own])) + 1):
        if len(group):
            bounds[:, labels[group[0]]] = np.quantile(margin[group], 1 - np.array(CERTAIN))
    band = np.full(len(labels), -1)
    for depth, bound in enumerate(bounds):
        band[rows[margin[rows] >= bound[likeliest[rows]]]] = depth
    return band
