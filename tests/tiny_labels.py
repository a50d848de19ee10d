"""Clouds of embeddings whose labels are partly wrong, and what a linear probe makes of them."""

import numpy as np

from clipguard.detection.label_flow import LabelFlowConfig, LabelView, class_log_probs
from clipguard.seeds import Seed

K = 4
CONFIG = LabelFlowConfig()


def nobody(labels):
    return np.zeros(len(labels), dtype=bool)


def blobs(sizes=(300,) * K, spread=1.0, seed=0):
    """Return embeddings and true labels: one cloud a class, neighbours overlapping."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = 3 * np.eye(len(sizes), 12)
    return (centres[labels] + spread * draw.normal(size=(len(labels), 12))).astype(np.float32), labels


def view_of(labels, guide_nll=None, unexplained=None):
    """Return the view under a guide that believes no label, if none is given, and without a trigger."""
    return LabelView(
        labels=labels,
        guide_nll=np.full(len(labels), 9.0) if guide_nll is None else guide_nll,
        unexplained=~nobody(labels) if unexplained is None else unexplained,
    )


def probe_of(embeddings, labels):
    """Return the log-probabilities of the linear probe, and its losses of the labels."""
    log_probs = class_log_probs(embeddings, labels, K, nobody(labels), Seed(0))
    return log_probs, -log_probs[np.arange(len(labels)), labels]


def relabelled(labels, count, target=0, seed=1):
    """Return labels of which `count` of other classes became `target`, and which."""
    rows = np.random.default_rng(seed).choice(np.flatnonzero(labels != target), count, replace=False)
    changed, poisoned = labels.copy(), nobody(labels)
    changed[rows], poisoned[rows] = target, True
    return changed, poisoned
