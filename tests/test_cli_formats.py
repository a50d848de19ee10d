"""The result in the formats of other tools, as these tools read them; names from the data are hostile."""

import json
import re
import string
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.cli.format_files import FORMATS, formats_from
from clipguard.errors import ClipguardError
from clipguard.outputs.formats import FILES, FlaggedSample, flagged_samples, github, junit, markdown, sarif
from clipguard.outputs.formats.flagged import file_of
from clipguard.runs.summary import RunSummary
from tiny_report import FULL, VERDICT

HOSTILE = "a|b\n::error::x%0A[x](http://e.vil) {0} <img src=x> @you `c` ]]>&\x1b[31m\u202e"


def summary_of(location="data", **verdict):
    data = FULL["data"] | {"location": location, "classes": ["cat", "dog", "ship", HOSTILE]}
    return msgspec.convert(FULL | {"verdict": VERDICT | verdict, "data": data}, RunSummary)


def sample_of(**changes):
    values = {
        **{"id": "cat/1.png", "path": "cat/1.png", "sha256": "ab" * 32},
        **{"given_label": "cat", "predicted_label": "dog", "reason": "trigger"},
        **{"poison_score": 0.875, "rank": 1, "trigger": 1},
    }
    return FlaggedSample(**values | changes)


EVERYWHERE = sample_of(id=HOSTILE, path=HOSTILE, given_label=HOSTILE, predicted_label=HOSTILE, sha256="")


def results_of(*samples, **verdict):
    (run,) = json.loads(sarif(summary_of(**verdict), samples))["runs"]
    return run, [result for result in run["results"] if result["ruleId"] != "poisoned-class"]


def test_flagged_samples_are_those_rows_by_rank():
    columns = {name: [value] * 3 for name, value in sample_of()._asdict().items() if name != "new"}
    columns |= {"status": ["flagged", "trusted", "flagged"], "rank": [2, 3, 1], "id": ["b", "c", "a"]}
    assert [sample.id for sample in flagged_samples(columns)] == ["a", "b"]
    news = flagged_samples(columns | {"new": [True, True, False]})
    assert [sample.new for sample in news] == [False, True]


@pytest.mark.parametrize(
    ("location", "path", "file"),
    [
        ("data", "cat/1.png", "data/cat/1.png"),
        ("/abs/data/", "cat/1.png", "/abs/data/cat/1.png"),
        ("in/a.tar", "a.tar/1.png", "in/a.tar/1.png"),
        ("in/a-{000..009}.tar", "a-003.tar/1.png", "in/a-003.tar/1.png"),
        ("in/t.parquet", "", "in/t.parquet"),
        ("a.tar", "a.tar/1.png", "a.tar/1.png"),
    ],
)
def test_a_sample_lies_where_the_source_was_given(location, path, file):
    assert file_of(sample_of(path=path), summary_of(location)) == file


def test_sarif_has_a_result_for_each_finding_and_each_sample():
    run, (first,) = results_of(sample_of())
    assert len(run["results"]) == 1 + len(VERDICT["findings"])
    assert (first["ruleId"], first["level"], first["rank"]) == ("trigger", "error", 87.5)
    assert run["tool"]["driver"]["rules"][first["ruleIndex"]]["id"] == "trigger"
    (place,) = first["locations"]
    assert place["physicalLocation"]["artifactLocation"] == {"uri": "data/cat/1.png"}
    assert place["logicalLocations"][0]["fullyQualifiedName"] == "cat/1.png"
    assert first["partialFingerprints"] == {"imageAndLabel/v1": f"{'ab' * 32}:cat"}
    assert "baselineState" not in first


def test_sarif_says_which_results_are_new():
    _, results = results_of(sample_of(new=True), sample_of(new=False))
    assert [result["baselineState"] for result in results] == ["new", "unchanged"]


def test_a_sample_is_a_warning_where_the_verdict_is_not_suspicious():
    run, (first,) = results_of(sample_of(reason="label"), answer="undecided", findings=[])
    assert (first["ruleId"], first["level"]) == ("label", "warning")
    assert run["invocations"][0]["exitCode"] == 3


def test_sarif_takes_nothing_from_a_name_for_a_link_or_a_place_holder():
    _, (first,) = results_of(EVERYWHERE)
    text = first["message"]["text"]
    assert text.isprintable()
    assert not re.search(r"(?<!\\)\[", text)
    assert "{0}" not in text.replace("{{0}}", "")
    uri = first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote(uri) == f"data/{HOSTILE}"
    assert not set(uri) & set(" <>[]{}|\n:")


def test_junit_has_a_case_for_the_verdict_and_each_class():
    suite = ET.fromstring(junit(summary_of(), [sample_of()]))[0]
    cases = {case.get("name"): [part.tag for part in case] for case in suite}
    assert list(cases) == ["verdict", "cat", "dog", "ship", *list(cases)[4:]]
    assert cases["verdict"] == cases["cat"] == cases["dog"] == ["failure"]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("5", "4", "0")
    text = next(case for case in suite if case.get("name") == "cat")[0].text
    assert text == "data/cat/1.png: trigger; the guide says dog, score 0.875"


def test_junit_names_every_finding_of_a_class():
    two = [VERDICT["findings"][0], VERDICT["findings"][1] | {"class_name": "dog"}]
    suite = ET.fromstring(junit(summary_of(findings=two), []))[0]
    (message,) = [case[0].get("message") for case in suite if case.get("name") == "dog"]
    assert "share a pattern" in message
    assert "labels that belong to class cat" in message


def test_junit_skips_what_says_nothing():
    suite = ET.fromstring(junit(summary_of(answer="undecided", findings=[]), []))[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "2")


@given(st.text(st.characters(exclude_categories=())))
def test_junit_is_xml_whatever_the_names(text):
    summary = msgspec.structs.replace(
        summary_of(), data=msgspec.structs.replace(summary_of().data, classes=[text])
    )
    sample = sample_of(id=text, path="", given_label=text)
    suite = ET.fromstring(junit(summary, [sample]).encode())[0]
    assert len(suite) == 2


def test_github_commands_are_one_line_each():
    lines = github(summary_of(), [sample_of(), EVERYWHERE]).splitlines()
    assert all(re.match(r"::(error|warning|notice) (file=[^,:]*,)?title=[^,:]*::", line) for line in lines)
    assert lines[0].startswith("::error title=clipguard%3A Suspicious::")
    assert "::warning file=data/cat/1.png,title=Flagged for its trigger::" in lines[-2]
    assert "%0A" not in lines[-1].replace("%250A", "")


def test_github_shows_no_more_annotations_than_the_site_does():
    samples = [sample_of(rank=rank) for rank in range(1, 40)]
    lines = github(summary_of(), samples).splitlines()
    assert sum(line.startswith("::warning") for line in lines) < 10
    assert "39 of 150 images are flagged" in lines[0]


@pytest.mark.parametrize(
    ("answer", "level"), [("clean", "notice"), ("suspicious", "error"), ("undecided", "warning")]
)
def test_the_level_of_a_github_annotation_is_that_of_the_verdict(answer, level):
    assert github(summary_of(answer=answer, findings=[]), []).startswith(f"::{level} ")


def test_markdown_names_verdict_findings_and_files():
    text = markdown(summary_of(), [sample_of()])
    assert text.startswith("## clipguard: Suspicious\n")
    assert "**1 of 150 images (0.7 %) are flagged**" in text
    assert "| <code>dog</code> | trigger | 234 | 180 |" in text
    assert "| <code>data/cat/1.png</code> | <code>cat</code> | <code>dog</code> | trigger | 0.875 |" in text


def test_markdown_takes_nothing_from_a_name_for_markup():
    row = (
        markdown(summary_of(), [EVERYWHERE]).partition("score |\n|---|---|---|---|---|\n")[2].splitlines()[0]
    )
    cells = row.strip("|").split("|")
    assert len(cells) == 5
    for cell in cells[:3]:
        inner = cell.strip().removeprefix("<code>").removesuffix("</code>").replace("<!-- -->", "")
        assert not set(re.sub(r"&#\d+;", "", inner)) & set(string.punctuation) - set("/-_.,")


def test_markdown_shows_some_files_and_counts_the_others():
    text = markdown(summary_of(), [sample_of(rank=rank) for rank in range(1, 31)])
    assert "… and 10 more: samples.parquet lists all." in text


def test_formats_are_named_with_commas_or_one_by_one():
    assert formats_from(["sarif,junit", "github", "sarif"]) == ("sarif", "junit", "github")
    assert set(FILES) < set(FORMATS)


@pytest.mark.parametrize("text", ["", "xml", "sarif,", "Sarif"])
def test_another_format_is_refused(text):
    with pytest.raises(ClipguardError, match=r"--format .* github, json, junit, markdown, sarif"):
        formats_from([text])
