"""What one linear probe tells of the labels: of each sample, and of each class by two tests."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from clipguard.compute.cross_validation import Groups
from clipguard.detection.certain_labels import certain_labels
from clipguard.detection.label_exchange import LabelExchange, label_exchange
from clipguard.detection.linear_probe import Probe, fitted_probe, scored_labels
from clipguard.detection.one_way_labels import OneWayLabels, one_way_labels
from clipguard.seeds import Seed
from clipguard.types import Rows


class ProbedLabels(NamedTuple):
    """What the probe says of every label, and both tests of every class."""

    probe: Probe
    exchange: LabelExchange
    one_way: OneWayLabels


def probed_labels(
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    num_classes: int,
    seed: Seed,
    groups: Groups | None = None,
) -> ProbedLabels:
    """Return what a linear probe of the embeddings [n, d] says of labels and classes.

    There are no soft labels: no class is suspected yet.
    """
    nobody, no_class = np.zeros(len(labels), dtype=bool), np.zeros(num_classes, dtype=bool)
    fitted = fitted_probe(embeddings, labels, num_classes, nobody, seed, groups)
    certain = certain_labels(embeddings, labels, ~nobody, fitted, seed.child("recalibration"))
    exchange = label_exchange(certain, seed.child("exchange"))
    probe = scored_labels(fitted, embeddings, labels, no_class)
    one_way = one_way_labels(
        embeddings, labels, probe.likeliest, fitted, certain.noise, seed.child("one way")
    )
    return ProbedLabels(probe, exchange, one_way)
