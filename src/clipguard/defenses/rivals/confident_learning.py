"""Confident learning (Northcutt, Jiang and Chuang, JAIR 2021) by cleanlab.

A linear probe of the guide's image embeddings gives the probabilities of all classes, each sample out of
fold. cleanlab counts the labels that are wrong by them and names as many samples, those whose given label is
least probable. The score is one minus that probability. cleanlab's count and scores by batches are used, so
that nothing of n x k values is in memory; its count of a whole matrix is some samples higher.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from clipguard.clip.zero_shot import ClipGuide
from clipguard.defenses.protocol import Case, Detected
from clipguard.defenses.rivals.laps import Laps
from clipguard.detection.linear_probe import FittedProbe, fitted_probe
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import Rows, chunks

Batch = tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"], Float64[np.ndarray, "m c"]]
"""Rows, their given labels and the probabilities of every class, among those that the probe knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidentLearning:
    """A detector of wrong labels by probabilities that were found without the sample."""

    def defend(self, case: Case) -> Detected:
        """Return how improbable each given label is, and the label errors that cleanlab names.

        Of classes that are too small for the probe it has no opinion.

        Raises:
            ClipguardError: cleanlab is not installed, or the guide gives NaN.
        """
        # Loaded before the clock starts, as the victim is trained before.
        inspector_of, data, _ = _inspector(), case.data, case.guide.clip
        laps = Laps()
        embeddings = embeddings_of(case.guide, data.images)
        laps.end("embeddings")
        n, k, seed = len(data), len(data.class_names), Seed(case.seed).child("confident learning")
        fitted = fitted_probe(embeddings, data.labels, k, np.zeros(n, dtype=bool), seed, data.groups)
        laps.end("linear probe")
        scores, flagged = np.full(n, np.nan), np.zeros(n, dtype=bool)
        if fitted.discriminants:
            inspector = inspector_of(
                num_class=len(fitted.known), store_results=False, verbose=False, n_jobs=1
            )
            for _, labels, probabilities in out_of_fold(fitted, embeddings, data.labels):
                inspector.update_confident_thresholds(labels, probabilities)
            for rows, labels, probabilities in out_of_fold(fitted, embeddings, data.labels):
                scores[rows] = 1 - inspector.score_label_quality(labels, probabilities)
            flagged[np.argsort(-scores, kind="stable")[: inspector.get_num_issues()]] = True
        laps.end("label errors")
        return Detected(scores=scores, flagged=flagged, seconds=laps.seconds)


def embeddings_of(guide: ClipGuide, images: Rows) -> Float32[np.ndarray, "n d"]:
    """Return the guide's embeddings of all images."""
    return np.concatenate([guide.clip.embed_images(images[part]) for part in chunks(len(images))])


def out_of_fold(fitted: FittedProbe, embeddings: Rows, labels: Int64[np.ndarray, "n"]) -> Iterator[Batch]:
    """Yield what the probe says of the samples of the classes that it knows, some of a fold at a time."""
    known = fitted.known
    place = np.full(fitted.num_classes, -1)
    place[known] = np.arange(len(known))
    for rows, log_probs in fitted.by_fold(embeddings, np.flatnonzero(place[labels] >= 0)):
        yield rows, place[labels[rows]], np.exp(log_probs[:, known])


def _inspector() -> Any:
    """Return cleanlab's count of label errors by batches."""
    try:
        from cleanlab.experimental.label_issues_batched import LabelInspector
    except ImportError as error:
        raise ClipguardError('this detector needs cleanlab: pip install "clipguard[quality]"') from error
    return LabelInspector
