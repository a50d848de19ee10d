"""A run's samples for one's own trainer: weights of all rows, and a sampler of those that are kept."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from clipguard.errors import ClipguardError
from clipguard.outputs.kept import kept_samples
from clipguard.runs import RunFolder
from clipguard.runs.reviews import read_reviews, reviews_file


def sample_weights(
    run: str | Path, *, set_aside: int | float = 1.0, reviews: str | Path | None = None
) -> Float64[np.ndarray, "n"]:
    """Return a weight for each row of the scanned source, in its order: 0 for what is flagged or unreadable.

    With other rows than all (`--rows`), it ends after the last one that was scanned.

    Args:
        run: the run folder.
        set_aside: weight of samples that are set aside; trusted ones have 1.
        reviews: file of review marks, which have the last word; None takes reviews.json of the run, if there.

    Raises:
        ClipguardError: a run that is not finished, damaged files, or a weight below 0.
    """
    if not (np.isfinite(set_aside) and set_aside >= 0):
        raise ClipguardError(f"weight {set_aside} of what is set aside: give a number of at least 0")
    folder = RunFolder.read(run)
    file = reviews_file(folder.path) if reviews is None else Path(reviews)
    marks = [] if file is None else read_reviews(file).reviews
    choice = kept_samples(folder.path, reviews=marks)
    rows, aside = choice.samples["row"], choice.samples["status"] == "set aside"
    scanned = folder.manifest["source"].get("n", 0)
    weights = np.zeros(max(int(rows.max(initial=-1)) + 1, scanned if isinstance(scanned, int) else 0))
    weights[rows[choice.kept]] = np.where(aside, set_aside, 1.0)[choice.kept]
    return weights


class KeptRows:
    """The kept rows of a source in random order, another one each time: what a DataLoader takes as sampler.

    Args:
        rows: row numbers.
        seed: of the order; the k-th pass is the same in every process.
    """

    def __init__(self, rows: Int64[np.ndarray, "m"], seed: int = 0) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which pass comes next, as after resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return how many rows are kept."""
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        """Return the rows in the order of the next pass."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))
        self.epoch += 1
        return iter(self.rows[order].tolist())


def sampler_of(run: str | Path, *, seed: int = 0, reviews: str | Path | None = None) -> KeptRows:
    """Return a sampler of the rows that a run does not flag, for `DataLoader(data, sampler=...)`.

    Raises:
        ClipguardError: a run that is not finished, or damaged files.
    """
    return KeptRows(np.flatnonzero(sample_weights(run, reviews=reviews)), seed)
