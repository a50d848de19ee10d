"""What a run says of itself: the one schema of summary.json, read by command line, page and exports."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from clipguard.errors import ClipguardError, reason_of
from clipguard.runs.files import read_json
from clipguard.runs.reviews import ReviewSummary

SUMMARY: Final = "summary.json"


CONFIDENCE: Final = 0.95
"""Of every bound that a verdict gives, the customary value."""

Answer = Literal["clean", "suspicious", "undecided"]
Kind = Literal["trigger", "label-only poison", "shortcut"]
Family = Literal["patch", "blend", "sinusoid", "clean-label"]


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is wrong with one class; None is not known, or makes no sense for the kind.

    Attributes:
        class_name: of the class.
        label: its number.
        kind: `trigger`: samples share a pattern that a network takes for the class.
            `label-only poison`: labels of other classes were changed to it.
            `shortcut`: samples share a pattern whose labels the guide does not contradict: intent unknown.
        flagged: samples of the class that are flagged.
        at_least: lower bound of its poisoned samples, simultaneous over all classes; of triggers only.
        strength: largest odds ratio of an unmeasured cause at which the class still stands out
            (Rosenbaum 2002, sensitivity analysis).
        p_value: of the class without such a cause.
        from_class: where most of the changed labels come from; of label-only poison.
        deep_share: of the samples deep inside that class with its label or this one, those with this one
            (`clipguard.detection.one_way_labels`).
        believed_with: mean probability of the given label by an early-training model that has learned from
            other samples of the group.
        believed_without: the same by one that has met none of the group.
    """

    class_name: str
    label: int
    kind: Kind
    flagged: int
    at_least: int | None = None
    strength: float | None = None
    p_value: float | None = None
    from_class: str | None = None
    deep_share: float | None = None
    believed_with: float | None = None
    believed_without: float | None = None


class Canary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A known trigger in a copy of the data: its class, its samples, and whether the class was identified."""

    family: Family
    class_name: str
    samples: int
    identified: bool


class Power(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What canaries show of this very data set. The last two fields follow from the others, also when read.

    Attributes:
        copies: of the data that canaries were put into.
        canaries: all of them, identified or missed.
        floors: by family, the samples from which on the power holds: those of its largest canary, since more
            samples are never harder to identify. A family without an identified canary has none.
        lower_bound: of the probability that such a trigger is identified, at `CONFIDENCE`, from all canaries
            together (Clopper and Pearson 1934).
    """

    copies: int
    canaries: list[Canary]
    floors: dict[Family, int] = {}
    lower_bound: float = 0.0

    def __post_init__(self) -> None:
        """Set what follows from the canaries."""
        from scipy.special import betaincinv

        floors: dict[Family, int] = {}
        for family in dict.fromkeys(canary.family for canary in self.canaries if canary.identified):
            floors[family] = max(canary.samples for canary in self.canaries if canary.family == family)
        hits, n = self.identified, len(self.canaries)
        bound = float(betaincinv(hits, n - hits + 1, 1 - CONFIDENCE)) if hits else 0.0
        msgspec.structs.force_setattr(self, "floors", floors)
        msgspec.structs.force_setattr(self, "lower_bound", bound)

    @property
    def identified(self) -> int:
        """The number of canaries that were identified."""
        return sum(canary.identified for canary in self.canaries)


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer, and what it rests on.

    Attributes:
        answer: clean, suspicious or undecided.
        reasons: for the answer, as sentences.
        findings: one for each class that makes the answer suspicious.
        power: what canaries show; None without any.
        not_assessable: names of classes that the guide cannot read.
        limits: what could not have been detected, as sentences.
        complete: whether everything of the source was read; see `limited_to_read`.
    """

    answer: Answer
    reasons: list[str]
    findings: list[Finding] = []
    power: Power | None = None
    not_assessable: list[str] = []
    limits: list[str] = []
    complete: bool = True


def limited_to_read(verdict: Verdict, unreadable: int) -> Verdict:
    """Return the verdict of a scan that left unreadable images out: it is never clean."""
    if not unreadable:
        return verdict
    answer: Answer = "undecided" if verdict.answer == "clean" else verdict.answer
    reason = f"{unreadable} images could not be read: the poison may lie there"
    return msgspec.structs.replace(verdict, answer=answer, reasons=[*verdict.reasons, reason], complete=False)


class Competence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well the guide reads a class; see `clipguard.detection.competence`.

    Attributes:
        class_name: of the class.
        n: its samples.
        agreement: share of them that the guide, too, calls so.
        low: lower end of an interval of that share, simultaneous over the classes.
        high: upper end.
        elsewhere: share of all other samples that the guide calls so.
        assessable: whether the first share is above the second for certain.
    """

    class_name: str
    n: int
    agreement: float
    low: float
    high: float
    elsewhere: float
    assessable: bool


class ClassDifference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A class with whose labels two readings agree to different shares: the guide's, then the other's."""

    class_name: str
    first: float
    second: float


class OtherReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a second guide, or one of the guide's prompts alone, reads the labels.

    Attributes:
        name: of the guide, or the prompt itself.
        agreement: share of labels that it would give as well.
        same: share of samples that it and the guide call the same.
        differs: classes that it reads better or worse than the guide, for certain; see
            `clipguard.detection.competence.compared_guides`.
    """

    name: str
    agreement: float
    same: float
    differs: list[ClassDifference] = []


class DataSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The data set: where it lies, its readable and unreadable images, and the size they were seen at.

    `skipped` counts by reason the files that are no part of it by the rules of `docs/inputs.md`.
    """

    location: str
    n: int
    classes: list[str]
    empty_classes: list[str]
    unreadable: int
    size: tuple[int, int]
    skipped: dict[str, int] = {}


class GuideSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The guide: name, logit scale, the share of labels that it would give as well, and that by class.

    `second` is the second guide, if there is one; `prompts` are those of the guide, if there are several.
    """

    name: str
    scale: float
    agreement: float
    competence: list[Competence] = []
    second: OtherReading | None = None
    prompts: list[OtherReading] = []


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


class QualitySummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Issues of data quality, which are no sign of an attack; `clipguard.quality.issues` names them.

    Attributes:
        counts: samples with each issue, by its kind; kinds without any are left out.
        samples: those with any.
        limits: what was not looked for, and why, as sentences.
    """

    counts: dict[str, int]
    samples: int
    limits: list[str] = []


class StageSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stage: what it is called in words, and the seconds that it took."""

    title: str
    seconds: float


class ClassChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A class with flagged samples: how many there are, and how many of them the baseline lacks."""

    class_name: str
    flagged: int
    new: int


class BaselineSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is new since an earlier run, by hash and given label.

    Attributes:
        run_dir: folder of the earlier run.
        new: samples that it lacks: the batch.
        known: samples that it has, whose embeddings were taken from it.
        flagged_new: flagged samples among the new ones.
        verdict: of the batch.
        classes: those with flagged samples, most new ones first.
    """

    run_dir: str
    new: int
    known: int
    flagged_new: int
    verdict: Verdict
    classes: list[ClassChange] = []


class RunSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run says of itself.

    Attributes:
        schema_version: of this schema.
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
        files: published files by what they are: report, samples, flagged, model, card, labels.
        before: the model as given; None for a scan.
        after: the repaired model; None for a scan.
        quality: issues of data quality; None where they were not looked for.
        detection: how the scan compares with the ground truth, where a test set came with it.
        baseline: what is new since the run of `--baseline`; None without one.
        reviews: review marks that moved samples; None without any.
    """

    schema_version: Literal[1] = 1
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
    quality: QualitySummary | None = None
    detection: dict[str, Any] | None = None
    baseline: BaselineSummary | None = None
    reviews: ReviewSummary | None = None


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
