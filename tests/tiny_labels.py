"""Clouds of embeddings whose labels are partly wrong, and what a linear probe makes of them."""

import numpy as np
from scipy.special import softmax

from clipguard.detection.label_exchange import LabelExchange
from clipguard.detection.label_flow import LabelFlow, LabelFlowConfig, LabelView
from clipguard.detection.linear_probe import FOLDS, NO_LOG_PROB, FittedProbe, Probe, linear_probe
from clipguard.detection.one_way_labels import OneWayLabels
from clipguard.detection.sample_scores import SampleScores
from clipguard.seeds import Seed

K = 4
CONFIG = LabelFlowConfig()


def no_exchange(k):
    """Return label exchange without anything to say of k classes."""
    zero = np.zeros(k)
    return LabelExchange(
        p_value=zero + 1,
        tail=zero + 1,
        source=np.full(k, -1),
        one_source=zero > 0,
        strength=zero,
        excess=zero,
        wrong_labels=zero,
    )


def no_one_way(k):
    """Return one-way labels without anything to say of k classes."""
    return OneWayLabels(p_value=np.ones(k), source=np.full(k, -1), share=np.zeros(k))


def scores_of(labels, num_classes, **known):
    """Return scores that say nothing of any sample, but for what is known."""
    zero = np.zeros(len(labels))
    losses = ("guide_nll", "early_nll", "late_nll", "probe_loss", "first_round", "trigger_score")
    values = dict.fromkeys(losses, zero) | {"guide_class": labels, "probe_class": labels} | known
    tests = {"exchange": no_exchange(num_classes), "one_way": no_one_way(num_classes)}
    return SampleScores(labels=labels, num_classes=num_classes, **values | tests)


def nobody(labels):
    return np.zeros(len(labels), dtype=bool)


def blobs(sizes=(300,) * K, spread=1.0, seed=0):
    """Return embeddings and true labels: one cloud a class, neighbours overlapping."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = 3 * np.eye(len(sizes), 12)
    return (centres[labels] + spread * draw.normal(size=(len(labels), 12))).astype(np.float32), labels


class Stub:
    """A discriminant whose embeddings are the log-probabilities of its classes."""

    def __init__(self, classes):
        self.classes_ = classes

    def predict_log_proba(self, log_probs):
        return log_probs[:, self.classes_]

    def decision_function(self, log_probs):
        # Asked for where there are two classes.
        first, second = self.classes_
        return log_probs[:, second] - log_probs[:, first]


def stub_probe(n, k, classes=None):
    classes = np.arange(k) if classes is None else classes
    return FittedProbe(fold=np.arange(n) % FOLDS, discriminants=(Stub(classes),) * FOLDS, num_classes=k)


def view_of(labels, guide_nll=None, unexplained=None, k=None):
    """Return the view under a guide that believes no label, if none is given, and without a trigger."""
    return LabelView(
        labels=labels,
        num_classes=int(labels.max()) + 1 if k is None else k,
        guide_nll=np.full(len(labels), 9.0) if guide_nll is None else guide_nll,
        unexplained=~nobody(labels) if unexplained is None else unexplained,
    )


def probe_of(embeddings, labels, left_out=None, seed=0):
    """Return the linear probe, with soft labels of every sample."""
    left_out = nobody(labels) if left_out is None else left_out
    return linear_probe(embeddings, labels, np.ones(K, dtype=bool), left_out, Seed(seed))


def probe_from(log_probs, labels):
    """Return the probe that gives these log-probabilities [n, k], with soft labels of every sample."""
    own = log_probs[np.arange(len(labels)), labels]
    others = log_probs.copy()
    others[np.arange(len(labels)), labels] = NO_LOG_PROB
    soft = softmax(others, axis=1).astype(np.float32)
    loss = np.where(own > NO_LOG_PROB, -own, 0.0)
    return Probe(loss, log_probs.argmax(1), np.arange(len(labels)), soft)


def flow_of(flagged, excluded, log_probs, labels):
    """Return the flow of a probe that gives these log-probabilities."""
    probe = probe_from(log_probs, labels)
    return LabelFlow(flagged, excluded, probe.loss, probe.soft_rows, probe.soft_labels)


def relabelled(labels, count, target=0, seed=1):
    """Return labels of which `count` of other classes became `target`, and which."""
    rows = np.random.default_rng(seed).choice(np.flatnonzero(labels != target), count, replace=False)
    changed, poisoned = labels.copy(), nobody(labels)
    changed[rows], poisoned[rows] = target, True
    return changed, poisoned
