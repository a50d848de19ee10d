"""What a verdict rests on, as the schema holds it, the command line prints it and the page shows it."""

import io
import json

import msgspec
import pytest
from rich.console import Console

from clipguard.cli.tables import show_run
from clipguard.errors import ClipguardError
from clipguard.outputs.findings import LISTED, finding_rows, power_words
from clipguard.outputs.report import render, summarize
from clipguard.outputs.report.templates import visible
from clipguard.outputs.text import VERDICTS
from clipguard.runs.summary import (
    Canary,
    Finding,
    Power,
    RunSummary,
    Verdict,
    limited_to_read,
    plain,
    read_summary,
)
from test_report import Page
from test_report_hostile import HOSTILE
from tiny_report import SCAN, VERDICT, make_run

SAMPLES = {"id": [], "given_label": [], "predicted_label": [], "poison_score": [], "rank": []}


def canaries(family, *, identified, missed, samples=60):
    return [
        Canary(family=family, class_name="cat", samples=samples, identified=number < identified)
        for number in range(identified + missed)
    ]


@pytest.mark.parametrize(
    ("identified", "missed", "bound"),
    # Clopper and Pearson's lower limits; with no miss, the n-th root of 5 %.
    [(4, 0, 0.05 ** (1 / 4)), (10, 0, 0.741), (59, 2, 0.900), (29, 0, 0.902), (0, 4, 0), (0, 0, 0)],
)
def test_the_power_is_the_exact_lower_limit_of_all_canaries(identified, missed, bound):
    power = Power(copies=1, canaries=canaries("patch", identified=identified, missed=missed))
    assert power.lower_bound == pytest.approx(bound, abs=0.001)
    assert power.identified == identified


def test_the_floor_of_a_family_is_its_largest_canary_and_one_without_a_hit_has_none():
    small = canaries("patch", identified=1, missed=0, samples=40)
    large = canaries("patch", identified=0, missed=1, samples=90)
    power = Power(copies=2, canaries=[*small, *large, *canaries("blend", identified=0, missed=2)])
    assert power.floors == {"patch": 90}


def test_what_follows_from_the_canaries_is_written_and_what_a_file_says_of_it_is_not_believed(tmp_path):
    run = make_run(tmp_path / "run", run=SCAN | {"verdict": VERDICT})
    values = plain(read_summary(run))
    power = values["verdict"]["power"]
    assert power["floors"] == {"patch": 60, "blend": 55, "sinusoid": 60}
    assert 0.2 < power["lower_bound"] < 0.3
    forged = values["verdict"] | {"power": power | {"floors": {"clean-label": 1}, "lower_bound": 0.99}}
    (run / "summary.json").write_text(json.dumps(values | {"verdict": forged}))
    assert plain(read_summary(run)) == values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("findings", 0, "kind"), "ghost"),
        (("findings", 0, "flagged"), "many"),
        (("power", "canaries", 0, "family"), "ghost"),
        (("power", "copies"), 1.5),
    ],
)
def test_a_part_of_another_kind_is_refused(tmp_path, path, value):
    verdict = json.loads(json.dumps(VERDICT))
    holder = verdict
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = value
    run = make_run(tmp_path / "run", run=SCAN | {"verdict": verdict})
    with pytest.raises(ClipguardError, match=r"summary.json is damaged"):
        read_summary(run)


@pytest.mark.parametrize(
    ("answer", "expected"), [("clean", "undecided"), ("suspicious",) * 2, ("undecided",) * 2]
)
def test_a_scan_that_could_not_read_everything_is_never_clean(answer, expected):
    whole = Verdict(answer=answer, reasons=["so it is"])
    assert limited_to_read(whole, 0) == whole
    part = limited_to_read(whole, 3)
    assert (part.answer, part.complete, part.reasons[0]) == (expected, False, "so it is")
    assert part.reasons[1].startswith("3 images could not be read")


def printed(verdict):
    stream = io.StringIO()
    summary = msgspec.convert(SCAN | {"verdict": verdict}, RunSummary)
    show_run(summary, SAMPLES, Console(file=stream, width=120))
    return " ".join(stream.getvalue().split())


def page_of(folder, verdict):
    return Page(render(summarize(make_run(folder, run=SCAN | {"verdict": verdict}))))


SAID = (
    "this data set probably carries a backdoor",
    "Look at the flagged samples of the classes below.",
    "class dog stands out by its pixels",
    "its flagged samples share a pattern that alone carries the label",
    "believes the label of the others to 100.0 %, one that met none to 2.0 %",
    "it was given labels that belong to class cat",
    "a watermark, say, or an attack that changes no label",
    "3 of 4 canaries (known triggers in a copy of this data) were found.",
    "at least 24 % (at 95 % confidence): patch 60, blend 55, sinusoid 60.",
    "None was found of clean-label.",
    "Not assessable, since the guide does not tell these classes from others: ship",
    "a trigger of under 2 pixels a side leaves no trace",
)


def test_terminal_and_page_say_the_same_of_findings_power_and_limits(tmp_path):
    text = printed(VERDICT)
    page = " ".join(page_of(tmp_path / "run", VERDICT).text.split())
    for expected in SAID:
        assert expected in text, expected
        assert expected in page, expected
    assert "dog trigger 234 180 12.3" in text
    assert "ship label-only poison 1,045 – –" in text
    assert "Flagged 234 Poisoned, at least 180 Strength 12.3" in page
    assert "Flagged 1,045 Poisoned, at least – Strength –" in page
    assert "By chance alone, a class stands out like this with a probability of under 0.001." in page


@pytest.mark.parametrize("answer", ["clean", "suspicious", "undecided"])
def test_without_canaries_no_power_is_claimed(tmp_path, answer):
    bare = {"answer": answer, "reasons": []}
    for text in (printed(bare), page_of(tmp_path / "run", bare).text):
        assert "Power was not measured" in text
        assert VERDICTS[answer].advice in " ".join(text.split())
        assert "strength" not in text


def test_where_no_canary_fits_this_is_said_and_nothing_is_counted():
    (words,) = power_words(Power(copies=0, canaries=[]))
    assert "No class is large enough" in words
    assert "0 of 0" not in words


def test_without_a_hit_no_probability_is_claimed():
    power = Power(copies=3, canaries=canaries("patch", identified=0, missed=3))
    assert power_words(power) == [
        "0 of 3 canaries (known triggers in 3 copies of this data) were found.",
        "None was found of patch.",
    ]


def test_no_text_of_ours_is_so_long_that_the_page_would_cut_it():
    families = ("patch", "blend", "sinusoid", "clean-label")
    every = [one for family in families for one in canaries(family, identified=1, missed=1, samples=10**6)]
    texts = [text for answer in VERDICTS.values() for text in (answer.sentence, answer.advice)]
    texts += power_words(Power(copies=9, canaries=every))
    findings = msgspec.convert(VERDICT["findings"], list[Finding])
    texts += [text for row in finding_rows(findings) for text in row]
    assert [text for text in texts if visible(text) != text] == []


def test_many_findings_names_and_limits_are_cut_and_hostile_ones_stay_text(tmp_path):
    one = VERDICT["findings"][0] | {"class_name": HOSTILE[0], "from_class": HOSTILE[3]}
    many = VERDICT | {
        "findings": [one | {"kind": "label-only poison"}] * 500,
        "not_assessable": list(HOSTILE) * 50,
        "limits": list(HOSTILE) * 50,
    }
    page = page_of(tmp_path / "run", many)
    assert page.tags.count("script") == 2
    assert page.text.count("<script>alert(1)</script>") < 80
    assert f"and {500 - LISTED} more in summary.json" in page.text
    assert f"and {350 - LISTED} more in summary.json" in page.text
    text = printed(many)
    assert "\x1b" not in text.replace("\\x1b", "")
    assert text.count("label-only poison") == LISTED
