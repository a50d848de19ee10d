"""The verdict of a scan, in words: what stands out, what was tested, and what could not have been seen."""

from typing import Any, Final

import numpy as np

from clipguard.data.folder_layout import unread_images
from clipguard.data.provenance import UNREADABLE
from clipguard.detection.class_evidence import FEWEST_SAMPLES, ClassEvidence
from clipguard.detection.competence import class_competence
from clipguard.detection.removal import Belief, Cause, agreements
from clipguard.detection.verdict import Open, Tested, answer, kinds
from clipguard.pipeline.judging import scores_of
from clipguard.pipeline.scan import Scan
from clipguard.runs import read_json
from clipguard.runs.summary import Canary, Competence, Finding, Kind, Power, Verdict, limited_to_read
from clipguard.triggers.canaries import FAMILIES
from clipguard.types import State

_WORDS: Final = {
    "trigger": "carry a trigger",
    "label-only poison": "hold labels that belong to others",
    "shortcut": "share a pattern, the intent is unknown",
}


def verdict(scan: Scan) -> Verdict:
    """Return the verdict, which review marks do not change.

    That of a scan that could not read every image is never clean.
    """
    scan = scan.without_reviews
    tests = scan.tests
    suspicious = {} if tests is None else _kinds(scan, tests)
    read = competence(scan)
    power = _power(scan)
    tested = Tested(
        samples=len(scan.data),
        copies=scan.context.config.power,
        # Poison with its own labels may need more samples than fit into a copy: then it is named as a limit.
        identified=tuple(one.suspected for one in scan.canaries if one.family != "clean-label"),
        unread=sum(entry.n for entry in read if not entry.assessable) / max(1, len(scan.data)),
        left_out=_left_out(scan)[0] / max(1, _left_out(scan)[1]),
    )
    what, why = answer(suspicious, tested)
    findings = [] if tests is None else [_finding(scan, tests, *one) for one in suspicious.items()]
    made = Verdict(
        answer=what,
        reasons=_suspicions(findings) or [_nothing(scan), *(_open(reason, scan) for reason in why)],
        findings=sorted(findings, key=lambda finding: -finding.flagged),
        power=power,
        not_assessable=[entry.class_name for entry in read if not entry.assessable],
        limits=_limits(scan, power),
    )
    return limited_to_read(made, len(unreadable(scan)))


def _kinds(scan: Scan, tests: ClassEvidence) -> dict[int, Kind]:
    labels, flagged = scan.data.labels, tests.flagged
    by_label = np.bincount(labels[scan.partition.has(State.LABEL)], minlength=scan.num_classes) > 0
    of_guide = agreements(scores_of(scan), flagged)
    classes = np.unique(labels[flagged]).tolist()
    return kinds(tests, by_label, _causes(scan), dict(zip(classes, of_guide, strict=True)))


def _causes(scan: Scan) -> dict[int, tuple[Belief, Cause]]:
    pairs = zip(scan.beliefs, scan.causes, strict=True)
    return {belief.label: (belief, cause) for belief, cause in pairs}


def _finding(scan: Scan, tests: ClassEvidence, label: int, kind: Kind) -> Finding:
    belief = _causes(scan).get(label, (None, None))[0] if kind != "label-only poison" else None
    of_kind = _of_labels if kind == "label-only poison" else _of_trigger
    return Finding(
        class_name=scan.data.class_names[label],
        label=label,
        kind=kind,
        flagged=int((scan.partition.flagged & (scan.data.labels == label)).sum()),
        at_least=int(tests.at_least[label]) if kind == "trigger" else None,
        believed_with=belief.group_with if belief else None,
        believed_without=belief.group_without if belief else None,
        **of_kind(scan, tests, label),
    )


def _of_trigger(scan: Scan, tests: ClassEvidence, label: int) -> dict[str, Any]:
    """Return the strength of the axis that says more, and its p-value if that is early belief."""
    if tests.pixel_strength[label] > tests.early.strength[label]:
        return {"strength": float(tests.pixel_strength[label])}
    return {"strength": float(tests.early.strength[label]), "p_value": float(tests.early.p_value[label])}


def _of_labels(scan: Scan, tests: ClassEvidence, label: int) -> dict[str, Any]:
    """Return what the test of labels says that rejects the class; label flow has thresholds and no level."""
    names, scores = scan.data.class_names, scores_of(scan)
    if tests.one_way[label]:
        one_way = scores.one_way
        return {
            "p_value": float(one_way.p_value[label]),
            "from_class": names[one_way.source[label]],
            "deep_share": float(one_way.share[label]),
        }
    exchange = scores.exchange
    one_source = exchange.one_source[label] and exchange.source[label] >= 0
    source = {"from_class": names[exchange.source[label]]} if one_source else {}
    if not tests.wrong_labels[label]:
        return source
    return source | {"strength": float(exchange.strength[label]), "p_value": float(exchange.p_value[label])}


def _suspicions(findings: list[Finding]) -> list[str]:
    """Return one sentence for each kind of finding."""
    sentences = []
    for kind, words in _WORDS.items():
        names = [finding.class_name for finding in findings if finding.kind == kind]
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            flagged = sum(finding.flagged for finding in findings if finding.kind == kind)
            classes = "class" if len(names) == 1 else f"{len(names)} classes"
            verb = words.replace("hold", "holds").replace("carry", "carries").replace("share ", "shares ")
            sentences.append(
                f"{classes} {some} {verb if len(names) == 1 else words}: {flagged:,} samples are flagged"
            )
    return sentences


def _nothing(scan: Scan) -> str:
    return f"no class of {scan.num_classes:,} stands out among {len(scan.data):,} samples"


def _open(reason: Open, scan: Scan) -> str:
    missed = list(dict.fromkeys(one.family for one in scan.canaries if not one.suspected))
    guide, chance = agreement(scan), 1 / scan.num_classes
    left, images = _left_out(scan)
    return {
        Open.TOO_FEW: f"too few samples: {len(scan.data):,}, and {FEWEST_SAMPLES:,} are needed",
        Open.NO_POWER: "power was not measured: only a power of 1 or more can call a data set clean",
        Open.NO_CANARY: "no class is large enough for known triggers, so power could not be measured",
        Open.MISSED: f"known triggers were missed in a copy of this data: {', '.join(missed)}",
        Open.UNREAD: f"the guide agrees with only {100 * guide:.1f} % of the labels "
        f"(chance: {100 * chance:.1f} %)",
        Open.LEFT_OUT: f"{left:,} of {images:,} images were left out, for their format or their place: "
        "convert them to PNG, move them into the class folders, or take them away",
    }[reason]


def _left_out(scan: Scan) -> tuple[int, int]:
    """Return how many images of the source were left out, and how many it has in all."""
    source = scan.context.source
    left = unread_images(source.skipped)
    return left, left + source.listed


def _limits(scan: Scan, power: Power | None) -> list[str]:
    """Return what could not have been seen, as sentences."""
    limits = []
    if power is not None:
        tested = {canary.family for canary in power.canaries}
        if untested := [family for family in FAMILIES if family not in tested]:
            # Where no class can hold a canary, none in any further copy can, either.
            more = " A higher power tests more." if power.canaries else ""
            limits.append(f"Not tested in this data: {', '.join(untested)}.{more}")
        if any(one.family == "clean-label" and not one.identified for one in power.canaries):
            limits.append("Poison that keeps its labels was missed in a copy: this answer does not cover it.")
        if power.floors:
            limits.append("Fewer samples with a trigger than the counts above may stay unseen.")
    limits.append("Patterns unlike those of the tested kinds may stay unseen.")
    return limits


def _power(scan: Scan) -> Power | None:
    if not scan.context.config.power:
        return None
    canaries = [
        Canary(
            family=one.family,
            class_name=scan.data.class_names[one.label],
            samples=one.samples,
            identified=one.suspected,
        )
        for one in scan.canaries
    ]
    return Power(copies=len({one.copy for one in scan.canaries}), canaries=canaries)


def competence(scan: Scan) -> list[Competence]:
    """Return how well the guide reads each class that has samples."""
    read = class_competence(scan.data.labels, scan.likeliest, scan.num_classes)
    return [
        Competence(
            class_name=name,
            n=int(read.n[label]),
            agreement=float(read.agreement[label]),
            low=float(read.low[label]),
            high=float(read.high[label]),
            elsewhere=float(read.elsewhere[label]),
            assessable=bool(read.assessable[label]),
        )
        for label, name in enumerate(scan.data.class_names)
        if read.n[label]
    ]


def agreement(scan: Scan) -> float:
    """Return the share of samples of which the guide says what their label says."""
    return float(np.mean(scan.likeliest == scan.data.labels))


def unreadable(scan: Scan) -> list[dict[str, str]]:
    """Return the images that could not be read, each with its reason."""
    listed: list[dict[str, str]] = read_json(scan.context.finished["embeddings"].path / UNREADABLE)
    return listed
