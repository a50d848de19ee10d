"""Spectral signatures (Tran, Li and Madry, NeurIPS 2018) by the Adversarial Robustness Toolbox.

Published: of each class, the score is the length of a sample's centred features along their first singular
vector. The highest 1.5 e of each class are dropped, e being the expected share of poison in a class.

The toolbox takes the singular vector of centred features, but the lengths of the features as they are. The
features are therefore centred before it is given them: the scores are then those of the paper. Left open is
how scores of two classes compare: they are taken as they are.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from clipguard.defenses.protocol import Case, Detected
from clipguard.defenses.rivals.laps import Laps
from clipguard.defenses.rivals.toolbox import toolbox
from clipguard.defenses.rivals.victim_features import features_of, rows_by_class


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralSignatures:
    """A detector by outliers of the victim's features in each class.

    Attributes:
        expected_share: of poison in a class; the toolbox's default, near what 5 % of ten classes make of one.
        multiplier: so many times that share are flagged.
    """

    expected_share: float = 0.33
    multiplier: float = 1.5

    def defend(self, case: Case) -> Detected:
        """Return the outlier scores, and which samples have the highest of their class."""
        toolbox("defences")
        victim, laps = case.victim, Laps()
        features = features_of(victim, case.data)
        laps.end("features")
        scores = np.full(len(features), np.nan)
        flagged = np.zeros(len(features), dtype=bool)
        for _, rows in rows_by_class(case.data.labels, fewest=2):
            scores[rows] = spectral_scores(features[rows])
            flagged[rows] = self._highest(scores[rows])
        laps.end("scores")
        return Detected(scores=scores, flagged=flagged, seconds=laps.seconds)

    def _highest(self, scores: Float64[np.ndarray, "m"]) -> Bool[np.ndarray, "m"]:
        kept = np.clip(1 - self.multiplier * self.expected_share, 0, 1)
        high: Bool[np.ndarray, " m"] = scores >= np.quantile(scores, kept)
        return high


def spectral_scores(features: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "m"]:
    """Return the scores of the samples of one class."""
    defense = toolbox("defences.detector.poison.spectral_signature_defense").SpectralSignatureDefense
    scores: Float64[np.ndarray, "m 1"] = defense.spectral_signature_scores(features - features.mean(0))
    return scores[:, 0]
