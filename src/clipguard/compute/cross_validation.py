"""Out-of-fold scores: every sample is scored by something that was fitted without it."""

import heapq
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from clipguard.types import Rows, chunks

ScoreFold = Callable[[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]], Shaped[np.ndarray, "m ..."]]
"""(samples outside the fold, samples of the fold) -> scores of the samples of the fold."""


Groups = Int64[np.ndarray, "n"]
"""Number of each sample's group, such as the video that a frame is of."""


def fold_numbers(
    n: int, folds: int, draw: np.random.Generator, groups: Groups | None = None
) -> Int64[np.ndarray, "n"]:
    """Return a fold 0..folds - 1 for each of n samples, at random; sizes differ by at most one.

    With groups, samples of one group share a fold. Sizes then differ as far as groups do, and folds may be
    empty where there are few groups.
    """
    from sklearn.model_selection import KFold

    if groups is not None and folds > 1:
        return _grouped(groups, folds, draw)
    numbers = np.arange(n) % folds
    if 1 < folds <= n:
        split = KFold(folds, shuffle=True, random_state=int(draw.integers(2**31))).split(numbers)
        for number, (_, inside) in enumerate(split):
            numbers[inside] = number
    return numbers


def _grouped(groups: Groups, folds: int, draw: np.random.Generator) -> Int64[np.ndarray, "n"]:
    """Return the fold of each sample: groups in random order, largest first, go to the emptiest fold."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = draw.permutation(len(sizes))
    fold_of = np.zeros(len(sizes), np.int64)
    emptiest = [(0, fold) for fold in range(folds)]
    for number in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        filled, fold_of[number] = emptiest[0]
        heapq.heapreplace(emptiest, (filled + int(sizes[number]), int(fold_of[number])))
    return fold_of[group]


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

    A fold without a sample is passed over: there are some where samples come in few groups.

    Args:
        fold: number of each sample, as `fold_numbers` draws them.
        score: fits on the samples outside a fold and scores those of it.
        start: what stands for samples of a fold that nothing could be fitted for.
    """
    scores = start.copy()
    for number in range(int(fold.max(initial=-1)) + 1):
        inside = fold == number
        if inside.any():
            scores[inside] = score(~inside, inside)
    return scores
