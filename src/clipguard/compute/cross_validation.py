"""Out-of-fold scores: every sample is scored by something that was fitted without it."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from clipguard.types import Rows, chunks

ScoreFold = Callable[[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]], Shaped[np.ndarray, "m ..."]]
"""(samples outside the fold, samples of the fold) -> scores of the samples of the fold."""


def fold_numbers(n: int, folds: int, draw: np.random.Generator) -> Int64[np.ndarray, "n"]:
    """Return a fold 0..folds - 1 for each of n samples, at random; sizes differ by at most one."""
    from sklearn.model_selection import KFold

    numbers = np.arange(n) % folds
    if 1 < folds <= n:
        split = KFold(folds, shuffle=True, random_state=int(draw.integers(2**31))).split(numbers)
        for number, (_, inside) in enumerate(split):
            numbers[inside] = number
    return numbers


def double(values: Rows, rows: Int64[np.ndarray, "m"]) -> Float64[np.ndarray, "m d"]:
    """Return some rows of single-precision values in float64, without a copy of all in single precision."""
    out = np.empty((len(rows), *values.shape[1:]))
    for part in chunks(len(rows)):
        out[part] = values[rows[part]]
    return out


def out_of_fold(
    fold: Int64[np.ndarray, "n"], score: ScoreFold, start: Shaped[np.ndarray, "n ..."]
) -> Shaped[np.ndarray, "n ..."]:
    """Return `start` with the scores of each fold in its rows; `score` is asked once a fold, in order.

    Args:
        fold: number of each sample, as `fold_numbers` draws them.
        score: fits on the samples outside a fold and scores those of it.
        start: what stands for samples of a fold that nothing could be fitted for.
    """
    scores = start.copy()
    for number in range(int(fold.max(initial=-1)) + 1):
        inside = fold == number
        scores[inside] = score(~inside, inside)
    return scores
