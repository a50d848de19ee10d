"""Losses of given labels, sample by sample, by which defences rank their samples."""

from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int64

from clipguard.detection.entropy_map import label_nll
from clipguard.types import Scores

_CROSS_ENTROPY: Final = 0.1
"""Weight of cross-entropy beside reverse cross-entropy."""

_ZERO: Final = 1e-4
"""Stands for probability 0 in the logarithm."""


def cross_entropies(
    logits: Float32[np.ndarray, "n k"], labels: Int64[np.ndarray, "n"]
) -> Float64[np.ndarray, "n"]:
    """Return the cross-entropy of each given label, in nats."""
    return label_nll(Scores(logits=logits, scale=1.0, source=""), labels)


def symmetric_cross_entropies(
    logits: Float32[np.ndarray, "n k"], labels: Int64[np.ndarray, "n"]
) -> Float64[np.ndarray, "n"]:
    """Return 0.1 cross-entropy + reverse cross-entropy (SCE, Wang et al., ICCV 2019) of each given label.

    In the reverse one, model and label change places, with 1e-4 for the label's zeros: it is -log(1e-4)
    times the probability of all other classes.
    """
    nats = cross_entropies(logits, labels)
    losses: np.ndarray = _CROSS_ENTROPY * nats + np.log(_ZERO) * np.expm1(-nats)
    return losses
