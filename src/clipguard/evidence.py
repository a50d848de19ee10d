"""Evidence: what the flagged samples share, recovered as a trigger that can be put on other images."""

import numpy as np
from jaxtyping import Float32, Int64
from scipy.special import softmax

from clipguard.seeds import Seed
from clipguard.types import AffineTrigger, Images, ImageSet, Scores, Split

FEWEST = 30
"""Flagged samples below which a median says too little."""

MOST = 2000
"""Samples drawn a side; more would not change a median visibly."""


def recover_trigger(data: ImageSet, split: Split, guide: Scores, seed: Seed) -> AffineTrigger | None:
    """Return the affine trigger that turns clean images into flagged ones, or None if too few are flagged.

    A patch (scale 0), a blended pattern (scale 1 - alpha) and an added wave (scale 1) are all of the form
    x' = a x + b, value by value. Then median(x') = a median(x) + b and MAD(x') = a MAD(x), from which a and b
    follow. Medians stand innocent samples among the flagged as long as these are fewer than half. A warp or
    any other trigger that is not affine comes out as next to nothing.

    Flagged images all show one class where the attack is clean-label, and any class where it is not. The
    clean images to compare with are drawn so that the guide sees the same mix of classes in both.
    """
    flagged, trusted = np.flatnonzero(split.triggered), np.flatnonzero(split.clean)
    if min(len(flagged), len(trusted)) < FEWEST:
        return None
    shown = softmax(guide.scale * guide.logits.astype(np.float64), axis=1)
    mix = shown[flagged].mean(0) / np.maximum(shown[trusted].mean(0), 1e-12)
    weight = shown[trusted] @ mix
    draw = seed.numpy()
    flagged = draw.permutation(flagged)[:MOST]
    reference = draw.choice(trusted, MOST, p=weight / weight.sum())
    middle, spread = _median_and_mad(data.images, flagged)
    plain_middle, plain_spread = _median_and_mad(data.images, reference)
    # A trigger hides what is beneath; it does not add contrast. A dead pixel has no contrast to compare.
    scale = np.minimum(spread / np.maximum(plain_spread, 1), 1)
    return AffineTrigger(scale=scale, shift=middle - scale * plain_middle)


def _median_and_mad(
    images: Images, rows: Int64[np.ndarray, "m"]
) -> tuple[Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w 3"]]:
    """Return the median and the median absolute deviation of each value, line by line to save memory."""
    middle, spread = np.empty((2, *images.shape[1:]), dtype=np.float32)
    for line in range(images.shape[1]):
        values = images[rows, line].astype(np.float32)
        middle[line] = np.median(values, axis=0)
        spread[line] = np.median(np.abs(values - middle[line]), axis=0)
    return middle, spread
