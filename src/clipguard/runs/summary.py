"""What a run says of itself: the one schema of summary.json, read by command line, page and exports."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from clipguard.errors import ClipguardError, reason_of
from clipguard.runs.files import read_json

SUMMARY: Final = "summary.json"


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer, and its reasons as sentences."""

    answer: Literal["clean", "suspicious", "undecided"]
    reasons: list[str]


class DataSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The data set: where it lies, its readable and unreadable images, and the size they were seen at."""

    location: str
    n: int
    classes: list[str]
    empty_classes: list[str]
    unreadable: int
    size: tuple[int, int]


class GuideSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The guide: name, logit scale, and the share of given labels that it would give as well."""

    name: str
    scale: float
    agreement: float


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates of one model as fractions, and what they were measured on; None was not measured.

    Attributes:
        measured_on: which images, in words.
        accuracy: clean accuracy (CA).
        target_recall: clean accuracy on the class that the backdoor leads to.
        attack_success: attack success rate (ASR).
        robust_accuracy: triggered images that are given their true class (RA).
        n: clean images.
        attack_n: triggered images that `attack_success` and `robust_accuracy` are rates of.
    """

    measured_on: str
    accuracy: float | None = None
    target_recall: float | None = None
    attack_success: float | None = None
    robust_accuracy: float | None = None
    n: int | None = None
    attack_n: int | None = None


class Metric(NamedTuple):
    """A rate of `Rates`, as every table shows it; `better` is 1 where more is better, -1 where less is."""

    name: str
    title: str
    meaning: str
    better: Literal[1, -1]
    short: str = ""
    """The title in tables of many columns, if it has another there."""

    def worst(self, values: Iterable[float]) -> float | None:
        """Return the worst of some values; None without any."""
        return min(values, default=None) if self.better > 0 else max(values, default=None)


METRICS: Final = (
    Metric("accuracy", "Accuracy", "ordinary images given their true class", 1, "CA"),
    Metric(
        "attack_success", "Attack success", "images with the trigger given the attacker’s class", -1, "ASR"
    ),
    Metric("robust_accuracy", "Robust accuracy", "images with the trigger given their true class", 1, "RA"),
    Metric(
        "target_recall",
        "Recall of the target class",
        "ordinary images of the attacker’s class",
        1,
        "target recall",
    ),
)
"""The rates in the order of all tables. A further one is a field of `Rates`, a line here, and its computation
in `clipguard.lab.evaluation`."""


class StageSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stage: what it is called in words, and the seconds that it took."""

    title: str
    seconds: float


class RunSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run says of itself.

    Attributes:
        command: scan, defend or demo.
        version: of clipguard.
        seed: root of all randomness.
        threads: of the processor that trained one large net, whose weights depend on their number.
        device: that computed.
        run_dir: the run folder.
        verdict: the answer, with reasons.
        data: the data set.
        guide: who read the labels.
        partition: samples of each state, by its name.
        few_clean: names of classes with too few clean samples to trust.
        stages: the stages by name, in their order.
        warnings: sentences.
        model: the given model in words: architecture, and how its images are prepared by whose word.
        files: published files by what they are: report, samples, model, labels.
        before: the model as given; None for a scan.
        after: the repaired model; None for a scan.
        detection: how the scan compares with the ground truth, where a test set came with it.
    """

    command: str
    version: str
    seed: int
    threads: int
    device: str
    run_dir: str
    verdict: Verdict
    data: DataSummary
    guide: GuideSummary
    partition: dict[str, int]
    few_clean: list[str]
    stages: dict[str, StageSummary]
    warnings: list[str]
    files: dict[str, str]
    model: str | None = None
    before: Rates | None = None
    after: Rates | None = None
    detection: dict[str, Any] | None = None


def plain(summary: RunSummary) -> dict[str, Any]:
    """Return the summary as JSON values."""
    values: dict[str, Any] = msgspec.to_builtins(summary)
    return values


def read_summary(run: Path) -> RunSummary:
    """Return the summary in a run folder, which may be anybody's, with values that can all be shown.

    Raises:
        ClipguardError: it is missing, damaged, or of another version.
    """
    path = run / SUMMARY
    if not path.is_file():
        raise ClipguardError(f"run folder {run} has no {SUMMARY}: the run is not finished, run it again")
    try:
        summary = msgspec.convert(read_json(path), RunSummary)
        json.dumps(plain(summary), allow_nan=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise ClipguardError(f"{path} is damaged ({reason_of(error)}): delete it and run again") from error
    return summary
