"""Activation clustering (Chen et al., SafeAI 2019) by the Adversarial Robustness Toolbox.

Published: the features of each class, reduced to ten dimensions, are cut in two by k-means. A class is
poisoned if its smaller cluster is small (below 35 %) and the clusters lie well apart (a mean silhouette
above 0.1); that cluster is dropped. The paper reduces by independent components. The toolbox does so
by principal components, which is the default here.

The method decides and gives no score. The score here is a sample's own silhouette, negative in the larger
cluster. Of the toolbox only the clusters are used, not its two rules that decide. In version 1.20.1 the one
by silhouettes leaves part of its answer unset, and the one by size fails where no cluster is small.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from clipguard.defenses.protocol import Case, Detected
from clipguard.defenses.rivals.laps import Laps
from clipguard.defenses.rivals.toolbox import toolbox
from clipguard.defenses.rivals.victim_features import features_of, rows_by_class
from clipguard.seeds import Seed

FEWEST = 20
"""Samples of a class below which it is not cut in two: twice the dimensions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationClustering:
    """A detector by two clusters of the victim's features in each class.

    Attributes:
        reduce: how features become ten dimensions: `PCA` or, as published, `FastICA`.
        size: share of a class below which a cluster is small.
        silhouette: mean of a class above which its clusters lie well apart.
    """

    reduce: Literal["PCA", "FastICA"] = "PCA"
    size: float = 0.35
    silhouette: float = 0.1

    def defend(self, case: Case) -> Detected:
        """Return signed silhouettes, and the small clusters that lie well apart."""
        toolbox("defences")
        victim, laps, seed = case.victim, Laps(), Seed(case.seed).child("activation clustering")
        features = features_of(victim, case.data)
        laps.end("features")
        scores = np.full(len(features), np.nan)
        flagged = np.zeros(len(features), dtype=bool)
        for label, rows in rows_by_class(case.data.labels, FEWEST):
            two = two_clusters(features[rows], self.reduce, seed.child(label))
            if two is not None:
                scores[rows], flagged[rows] = self._judged(*two)
        laps.end("clusters")
        return Detected(scores=scores, flagged=flagged, seconds=laps.seconds)

    def _judged(
        self, clusters: Int[np.ndarray, "m"], reduced: Float64[np.ndarray, "m q"]
    ) -> tuple[Float64[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
        """Return the scores of a class's samples, and which it flags."""
        from sklearn.metrics import silhouette_samples

        silhouettes = silhouette_samples(reduced, clusters)
        smaller = clusters == np.bincount(clusters).argmin()
        poisoned = smaller.mean() < self.size and silhouettes.mean() > self.silhouette
        return np.where(smaller, silhouettes, -silhouettes), smaller & poisoned


def two_clusters(
    features: Float64[np.ndarray, "m d"], reduce: str, seed: Seed
) -> tuple[Int[np.ndarray, "m"], Float64[np.ndarray, "m q"]] | None:
    """Return the cluster of each sample of a class, and its reduced features; None where all are equal."""
    if not np.ptp(features, axis=0).any():
        return None
    cluster = toolbox("defences.detector.poison.activation_defence").cluster_activations
    # The toolbox takes no generator.
    with seed.numpy_global():
        (clusters,), (reduced,) = cluster([features], nb_clusters=2, nb_dims=10, reduce=reduce)
    return (clusters, reduced) if clusters.any() else None
