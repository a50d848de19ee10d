"""What is new since an earlier run: samples whose hash and label it does not have, and their verdict."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from clipguard.clip.zero_shot import ClipGuide
from clipguard.data.provenance import ROWS
from clipguard.errors import ClipguardError
from clipguard.pipeline.scan import Scan
from clipguard.runs import FinishedStage, RunFolder, read_table
from clipguard.runs.samples_table import NEW
from clipguard.runs.summary import BaselineSummary, ClassChange, Verdict


def baseline_stage(run: Path) -> FinishedStage:
    """Return the reading stage of the earlier run.

    Raises:
        ClipguardError: no run folder, or its reading is not finished.
    """
    stage = RunFolder.read(run).finished("embeddings")
    if stage is None:
        raise ClipguardError(f"baseline {run} has no finished embeddings: give the folder of a finished scan")
    return stage


def check_baseline(run: Path, own: Path, guide: ClipGuide) -> None:
    """Return nothing where embeddings of the earlier run can stand beside new ones.

    Raises:
        ClipguardError: it is this run, is not finished, or was read by another guide.
    """
    if run.resolve() == own.resolve():
        raise ClipguardError(f"baseline {run} is the run folder itself: give another folder")
    baseline_stage(run)
    known = RunFolder.read(run).manifest.get("guide") or {}
    clip = guide.clip
    if (known.get("sha256"), known.get("preprocessing_sha256")) != (
        clip.fingerprint,
        clip.preprocessing_sha256,
    ):
        raise ClipguardError(
            f"baseline {run} was read by the guide {known.get('name')}, which is not {guide.name}, or has "
            "other weights: give the same guide, or leave the baseline out"
        )


def mark_new(scan: Scan) -> Scan:
    """Return the scan with the column `new`, where there is a baseline."""
    if scan.context.baseline is None:
        return scan
    new = new_samples(scan, scan.context.baseline)
    return replace(scan, columns={**scan.columns, NEW: new})


def new_samples(scan: Scan, baseline: Path) -> Bool[np.ndarray, "n"]:
    """Return which samples the earlier run does not have with the same bytes and the same label."""
    names = RunFolder.read(baseline).manifest["source"].get("class_names", ())
    known = set(_samples(baseline_stage(baseline).path, tuple(names)))
    own = _samples(scan.context.finished["embeddings"].path, scan.data.class_names)
    return np.array([sample not in known for sample in own], dtype=bool)


def _samples(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[bytes, str]]:
    """Return hash and class name of each readable sample, in the order of the source."""
    for file in sorted((folder / ROWS).glob("*.parquet")):
        table = read_table(file, ("sha256", "label", "reason"))
        for sha256, label, reason in zip(table["sha256"], table["label"], table["reason"], strict=True):
            if not reason:
                yield bytes(sha256), names[int(label)] if int(label) < len(names) else ""


def since_baseline(scan: Scan, whole: Verdict) -> BaselineSummary | None:
    """Return what is new and flagged; None without a baseline."""
    baseline = scan.context.baseline
    if baseline is None:
        return None
    new = np.asarray(scan.columns[NEW], dtype=bool)
    flagged = scan.partition.flagged
    names = scan.data.class_names
    counts = Counter(scan.data.labels[flagged].tolist())
    news = Counter(scan.data.labels[flagged & new].tolist())
    classes = [
        ClassChange(class_name=names[label], flagged=count, new=news[label])
        for label, count in sorted(counts.items(), key=lambda pair: (-news[pair[0]], -pair[1]))
    ]
    return BaselineSummary(
        run_dir=str(baseline),
        new=int(new.sum()),
        known=int((~new).sum()),
        flagged_new=int((flagged & new).sum()),
        verdict=_of_batch(whole, classes),
        classes=classes,
    )


def _of_batch(whole: Verdict, classes: list[ClassChange]) -> Verdict:
    """Return the verdict of the new samples: suspicious where they are part of a finding.

    Where only known samples are, the new ones are undecided: a scan of them alone was not made.
    """
    if whole.answer != "suspicious":
        return Verdict(answer=whole.answer, reasons=whole.reasons, complete=whole.complete)
    changes = {change.class_name: change for change in classes if change.new}
    findings = [finding for finding in whole.findings if finding.class_name in changes]
    if not findings:
        reason = "no new sample is flagged in a class that stands out: the baseline had what is suspicious"
        return Verdict(answer="undecided", reasons=[reason], complete=whole.complete)
    # Review marks count in both numbers, as they do not in a finding.
    reasons = [
        f"{one.new:,} of {one.flagged:,} flagged samples of class {one.class_name} are new"
        for one in (changes[finding.class_name] for finding in findings)
    ]
    return Verdict(answer="suspicious", reasons=reasons, findings=findings, complete=whole.complete)
