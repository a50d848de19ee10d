"""A scan as far as it has come, and how its stages are run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int64, Shaped

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.engine import Engine, LocalEngine
from clipguard.data import ImageSource
from clipguard.detection.class_evidence import ClassEvidence
from clipguard.detection.competence import GuideComparison
from clipguard.detection.removal import Belief, Cause
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.power import CanaryOutcome
from clipguard.runs import FinishedStage, RunFolder, ShardedArray, Stage, read_array, read_json, write_json
from clipguard.runs.reviews import ReviewSummary
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import EntropyMap, ImageSet, Partition, Preprocessing, Progress, Scores, StepProgress

if TYPE_CHECKING:
    from clipguard.pipeline.reviewing import GivenReviews

NOTES: Final = "notes.json"
"""What a stage could not do as it should, one sentence each: they become warnings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all stages of a run share.

    Attributes:
        run: where stages are kept.
        source: the untrusted data set.
        common_size: of its images.
        guide: who reads the labels.
        second_guide: who reads them, too, to check the first one.
        baseline: run folder of an earlier scan, whose images are not embedded again.
        reviews: review marks, which have the last word on what becomes of a sample.
        config: all settings.
        progress: told as work goes on.
        engine: runs the reading pass over the shards of the data.
        model_view: preprocessing of the model to repair, where it is known: its images are then made in the
            one pass over the source that makes the others.
        quality: whether issues of data quality are looked for, too; they move no other result.
        embeddings_from: folder of embeddings that the guide has computed elsewhere.
        finished: the finished stages by name, in their order.
    """

    run: RunFolder
    source: ImageSource
    common_size: tuple[int, int]
    guide: ClipGuide
    config: DefenseConfig
    progress: Progress
    engine: Engine = field(default_factory=LocalEngine)
    model_view: Preprocessing | None = None
    quality: bool = False
    embeddings_from: Path | None = None
    second_guide: ClipGuide | None = None
    baseline: Path | None = None
    reviews: "GivenReviews | None" = None
    finished: dict[str, FinishedStage] = field(default_factory=dict)

    @property
    def view(self) -> Preprocessing:
        """How the small nets see the images: by default at the commonest size, at most 64 a side."""
        if self.config.size is not None:
            return Preprocessing(size=self.config.size)
        return Preprocessing.thumbnail(self.common_size)

    def finish(self, stage: Stage[Any], given: Any) -> FinishedStage:
        """Return the finished stage, computed now unless the run folder has it."""
        self.finished[stage.name] = finished = stage.run(self.run, given, self.progress)
        return finished

    def key(self, *names: str) -> list[str]:
        """Return the keys of finished stages."""
        return [self.finished[name].key for name in names]

    def array(self, stage: str, file: str, *, mmap: bool = False) -> Shaped[np.ndarray, "..."]:
        """Return an array that a finished stage holds."""
        return read_array(self.finished[stage].path / file, mmap=mmap)

    @property
    def embeddings(self) -> ShardedArray:
        """The guide's embeddings, one row a readable image."""
        return ShardedArray.of(self.finished["embeddings"].path / "img_emb")

    def seed(self, stream: str) -> Seed:
        """Return the random stream of a stage."""
        return Seed(self.config.seed).child(stream)

    def notes(self) -> list[str]:
        """Return what the finished stages could not do as they should."""
        return list(dict.fromkeys(note for stage in self.finished.values() for note in notes_of(stage)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What is known of a data set: every signal returns one that knows more.

    Attributes:
        context: what all stages share.
        data: the readable images at the size at which the small nets see them.
        images_key: of the stage that holds them.
        guide: the guide's scores.
        likeliest: the class that the guide finds likeliest in each image.
        entropy: both losses of every label, and their ranks.
        partition: what becomes of every sample.
        columns: further columns of samples.parquet.
        triggers: the reconstructed ones.
        tests: what the scores say of each class, once all signals have given theirs.
        beliefs: what short trainings with and without the flagged samples say of the suspected classes.
        causes: why the flagged samples of the same classes are believed early.
        canaries: what the scans of copies with known triggers say.
        second_guide: how well the second guide reads each class, against the guide.
        prompts: the same of each of the guide's prompts alone, where there are several.
        before_review: the partition as the signals left it, where review marks have moved it since.
        reviews: what these marks did.
    """

    context: Context
    data: ImageSet
    images_key: str
    guide: Scores
    likeliest: Int64[np.ndarray, "n"]
    entropy: EntropyMap
    partition: Partition
    columns: Mapping[str, Shaped[np.ndarray, "n"]]
    triggers: tuple[AffineTrigger, ...] = ()
    tests: ClassEvidence | None = None
    beliefs: tuple[Belief, ...] = ()
    causes: tuple[Cause, ...] = ()
    canaries: tuple[CanaryOutcome, ...] = ()
    second_guide: GuideComparison | None = None
    prompts: tuple[GuideComparison, ...] = ()
    before_review: Partition | None = None
    reviews: ReviewSummary | None = None

    @property
    def num_classes(self) -> int:
        """Return k."""
        return len(self.data.class_names)

    @property
    def without_reviews(self) -> "Scan":
        """The same scan as if there were no review marks."""
        if self.before_review is None:
            return self
        return replace(self, partition=self.before_review, before_review=None, reviews=None)


class EpochProgress:
    """Turns a kernel's epoch numbers, which start anew for each net of a stage, into progress."""

    def __init__(self, total: int, progress: StepProgress) -> None:
        self.total, self.done, self.progress = total, 0, progress
        progress(0, total)

    def __call__(self, _: int) -> None:
        """Say that one more epoch is done."""
        self.done += 1
        self.progress(min(self.done, self.total), self.total)

    def finish(self) -> None:
        """Say that the stage is done, in fewer epochs than it might have taken."""
        if self.done < self.total:
            self.progress(self.total, self.total)


def notes_of(stage: FinishedStage) -> list[str]:
    """Return what a stage could not do as it should."""
    file = stage.path / NOTES
    notes: list[str] = read_json(file) if file.exists() else []
    return notes


def write_notes(folder: Path, notes: tuple[str, ...] | list[str]) -> None:
    """Write what a stage could not do as it should, if anything."""
    if notes:
        write_json(folder / NOTES, list(notes))
