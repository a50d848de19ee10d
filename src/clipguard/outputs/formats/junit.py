"""JUnit XML, as test dashboards read it: the verdict and each class are a test case."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree as ET

from clipguard.errors import one_line
from clipguard.outputs.findings import NOT_ASSESSABLE, finding_rows
from clipguard.outputs.formats.flagged import FlaggedSample, file_of
from clipguard.outputs.text import VERDICTS
from clipguard.runs.summary import RunSummary

SUITE: Final = "clipguard"


def junit(summary: RunSummary, flagged: Sequence[FlaggedSample]) -> str:
    """Return a test suite: the verdict first, then the classes in their order.

    A suspicious verdict and a class with findings or flagged samples are failures; the latter list files. An
    undecided verdict and a class that the guide cannot read are skipped, as tests that say nothing.
    """
    suite = ET.Element("testsuite", name=SUITE)
    _add_verdict(suite, summary)
    by_class: dict[str, list[FlaggedSample]] = defaultdict(list)
    for sample in flagged:
        by_class[sample.given_label].append(sample)
    meanings: dict[str, list[str]] = defaultdict(list)
    for finding in summary.verdict.findings:
        meanings[finding.class_name] += [row.meaning for row in finding_rows([finding])]
    for name in summary.data.classes:
        case = ET.SubElement(suite, "testcase", classname=f"{SUITE}.class", name=one_line(name))
        samples = by_class[name]
        if samples or name in meanings:
            message = "; ".join([f"{len(samples):,} samples are flagged", *meanings[name]])
            failure = ET.SubElement(case, "failure", type="flagged", message=one_line(message))
            failure.text = "\n".join(_line(sample, summary) for sample in samples)
        elif name in summary.verdict.not_assessable:
            ET.SubElement(case, "skipped", message=NOT_ASSESSABLE)
    for kind, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        suite.set(kind, str(sum(1 for _ in suite.iter(tag))))
    suite.set("errors", "0")
    suite.set("time", f"{sum(stage.seconds for stage in summary.stages.values()):.2f}")
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _add_verdict(suite: ET.Element, summary: RunSummary) -> None:
    words, verdict = VERDICTS[summary.verdict.answer], summary.verdict
    case = ET.SubElement(suite, "testcase", classname=SUITE, name="verdict")
    if verdict.answer != "clean":
        tag = "failure" if verdict.answer == "suspicious" else "skipped"
        part = ET.SubElement(case, tag, message=f"{words.title}: {words.sentence}")
        part.text = "\n".join(one_line(reason) for reason in verdict.reasons)
        if tag == "failure":
            part.set("type", verdict.answer)


def _line(sample: FlaggedSample, summary: RunSummary) -> str:
    says = f"the guide says {sample.predicted_label}, score {sample.poison_score:.3f}"
    name = file_of(sample, summary) if sample.path else sample.id
    return one_line(f"{name}: {sample.reason}; {says}")
