"""Label errors: confident learning (Northcutt, Jiang and Chuang, JAIR 2021) by cleanlab, and its odds.

cleanlab counts labels against confident out-of-fold probabilities and names as many samples as are wrong by
that count. Where the classes overlap, it counts confusion as errors: of 10,000 CIFAR-10 rows with correct
labels, a tenth. So a sample is listed only if its label is more probably wrong than right, by a mixture of
the probe's posterior and a share of labels that are drawn from all classes alike, both fitted to the data.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from clipguard.compute.cross_validation import Groups
from clipguard.detection.certain_labels import FIT_VALUES, Recalibration, recalibrated
from clipguard.detection.linear_probe import FittedProbe, fitted_probe
from clipguard.quality.issues import Issues, issues
from clipguard.seeds import Seed
from clipguard.types import Rows

if TYPE_CHECKING:
    from cleanlab.experimental.label_issues_batched import LabelInspector

MORE_PROBABLY_WRONG: Final = 0.5
"""Probability that the label is wrong, above which a sample is listed."""

FEWEST_LABELS: Final = 200
"""Samples below which no label is judged: a scan flags none below, either."""

Batch = tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"], Float64[np.ndarray, "m k"]]
"""Rows, their given labels, and the log-probabilities of every class."""


def cleanlab_version() -> str | None:
    """Return the version of cleanlab, which is optional; None where it is not installed."""
    if importlib.util.find_spec("cleanlab") is None:
        return None
    return importlib.metadata.version("cleanlab")


def label_errors(
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    num_classes: int,
    left_out: Bool[np.ndarray, "n"],
    seed: Seed,
    groups: Groups | None = None,
) -> list[Issues]:
    """Return samples whose label is probably wrong, by a linear probe that was fitted without them.

    Samples that are `left_out`, as flagged ones are, are neither learnt from nor listed. Nor are those of
    classes that are too small for the probe. Nothing of size n x k is ever in memory.

    Args:
        embeddings: [n, d].
        labels: given ones.
        num_classes: k, empty classes included.
        left_out: samples that are not asked about.
        seed: of the folds.
        groups: of the samples, which no fold tears apart.
    """
    fitted = fitted_probe(embeddings, labels, num_classes, left_out, seed, groups)
    known = fitted.known
    rows = np.flatnonzero(~left_out & np.isin(labels, known))
    if not len(rows) or len(known) < 2:
        return []
    probe = _Scored(fitted=fitted, embeddings=embeddings, labels=labels, known=known)
    odds = probe.recalibration(rows, seed.child("recalibration"))
    candidates, likeliest, own = probe.inspected(rows, odds)
    wrong = odds.noise / len(probe.known)
    # A posterior is (1 - noise) x the chance by the content + noise / k: this is the second part's share.
    chance = wrong / np.maximum(own, np.finfo(float).tiny)
    listed = candidates & (chance > MORE_PROBABLY_WRONG) & (likeliest != labels[rows])
    return [issues("label_error", rows[listed], chance[listed], labels=likeliest[listed])]


class _Scored:
    """A fitted probe and what it is asked about; classes that it does not know are left out."""

    def __init__(
        self,
        fitted: FittedProbe,
        embeddings: Rows,
        labels: Int64[np.ndarray, "n"],
        known: Int64[np.ndarray, "c"],
    ) -> None:
        self.fitted, self.embeddings, self.labels, self.known = fitted, embeddings, labels, known
        self.place = np.full(fitted.num_classes, -1)
        self.place[known] = np.arange(len(known))

    def batches(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Batch]:
        """Yield the rows of each fold, as many at a time as fit into a few MB."""
        size = max(1, FIT_VALUES // len(self.place))
        for some, log_probs in self.fitted.by_fold(self.embeddings, rows, size):
            yield some, self.place[self.labels[some]], log_probs[:, self.known]

    def recalibration(self, rows: Int64[np.ndarray, "m"], seed: Seed) -> Recalibration:
        """Return what turns log-probabilities into chances of labels, fitted to some of the rows."""
        drawn = np.sort(seed.generator().permutation(rows)[: max(1, FIT_VALUES // len(self.place))])
        batches = list(self.batches(drawn))
        prior = np.bincount(self.place[self.labels[rows]], minlength=len(self.known)) / len(rows)
        log_probs, labels = (np.concatenate([batch[part] for batch in batches]) for part in (2, 1))
        return recalibrated(log_probs, labels, prior)

    def inspected(
        self, rows: Int64[np.ndarray, "m"], odds: Recalibration
    ) -> tuple[Bool[np.ndarray, "m"], Int64[np.ndarray, "m"], Float64[np.ndarray, "m"]]:
        """Return cleanlab's candidates, the likeliest class and the posterior of the given label, by row."""
        inspector = _inspector(len(self.known))
        for _, labels, log_probs in self.batches(rows):
            inspector.update_confident_thresholds(labels, odds.posterior(log_probs))
        quality, own = np.empty((2, len(self.labels)))
        likeliest = np.zeros(len(self.labels), dtype=np.int64)
        for some, labels, log_probs in self.batches(rows):
            posterior = odds.posterior(log_probs)
            quality[some] = inspector.score_label_quality(labels, posterior)
            likeliest[some] = self.known[posterior.argmax(1)]
            own[some] = posterior[np.arange(len(some)), labels]
        candidates = np.zeros(len(rows), dtype=bool)
        candidates[np.argsort(quality[rows], kind="stable")[: inspector.get_num_issues()]] = True
        return candidates, likeliest[rows], own[rows]


def _inspector(num_classes: int) -> "LabelInspector":
    """Return cleanlab's count of label errors by batches, which keeps nothing of them."""
    from cleanlab.experimental.label_issues_batched import LabelInspector

    return LabelInspector(num_class=num_classes, store_results=False, verbose=False, n_jobs=1)
