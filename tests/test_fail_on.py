"""Exit codes of the commands that end with a verdict, and what --fail-on makes of them."""

import msgspec
import pytest

from clipguard.cli import defence
from clipguard.cli.outcome import EXIT_CODES, exit_code
from clipguard.runs.summary import Verdict
from tiny_data import image_folder


def test_exit_codes_of_verdicts_are_none_of_an_error():
    assert EXIT_CODES == {"clean": 0, "suspicious": 1, "undecided": 3}


@pytest.mark.parametrize(
    ("answer", "codes"), [("clean", (0, 0, 0)), ("suspicious", (1, 1, 0)), ("undecided", (3, 0, 0))]
)
def test_each_choice_has_its_failures(answer, codes):
    verdict = Verdict(answer=answer, reasons=[])
    assert tuple(exit_code(verdict, choice) for choice in ("undecided", "suspicious", "never")) == codes
    assert exit_code(verdict) == codes[0]


@pytest.mark.parametrize(("answer", "code"), [("clean", 3), ("suspicious", 1), ("undecided", 3)])
@pytest.mark.parametrize("choice", ["undecided", "suspicious", "never"])
def test_what_was_not_all_read_fails_whatever_the_choice(answer, code, choice):
    assert exit_code(Verdict(answer=answer, reasons=[], complete=False), choice) == code


@pytest.fixture
def with_verdict(monkeypatch):
    """Return what makes the commands end with a verdict."""
    finish = defence._finish

    def set_verdict(verdict):
        def finished(*args, **measured):
            return msgspec.structs.replace(finish(*args, **measured), verdict=verdict)

        monkeypatch.setattr(defence, "_finish", finished)

    return set_verdict


@pytest.mark.parametrize(("answer", "code"), [("clean", 0), ("suspicious", 1), ("undecided", 3)])
def test_a_scan_exits_with_its_verdict(clipguard, with_verdict, tmp_path, answer, code):
    with_verdict(Verdict(answer=answer, reasons=["so it is"]))
    source = image_folder(tmp_path / "data", n=16)
    scan = ("scan", source, "-o", tmp_path / "run", "--guide", "mini", "--json")
    ran = clipguard(*scan)
    assert ran.code == code
    assert ran.json["verdict"]["answer"] == answer
    assert ran.json["verdict"]["reasons"] == ["so it is"]
    assert clipguard(*scan, "--fail-on", "suspicious").code == (1 if answer == "suspicious" else 0)
    assert clipguard(*scan, "--fail-on", "never").code == 0


def test_an_image_that_cannot_be_read_fails_the_scan_and_the_reason_says_so(clipguard, tmp_path):
    source = image_folder(tmp_path / "data", n=16)
    first = sorted(source.rglob("*.png"))[0]
    first.write_bytes(first.read_bytes()[:40])
    ran = clipguard(
        *("scan", source, "-o", tmp_path / "run", "--guide", "mini", "--fail-on", "never", "--json")
    )
    assert ran.code == 3
    assert ran.json["verdict"]["complete"] is False
    assert ran.json["verdict"]["reasons"][-1].startswith("1 images could not be read")


def test_another_choice_is_wrong_usage(refused, tmp_path):
    refused("scan", tmp_path, "-o", tmp_path / "run", "--fail-on", "clean", expected=["--fail-on", "clean"])


def test_a_negative_number_of_copies_is_refused(refused, tmp_path):
    refused("scan", tmp_path, "-o", tmp_path / "run", "--power", "-1", expected=["power -1", "0 for none"])
    refused("demo", "-o", tmp_path / "run", "--power", "-1", expected=["power -1"])


def test_dropping_anyway_is_for_retraining(refused, tmp_path):
    refused("defend", tmp_path, "-o", tmp_path / "run", "--drop-anyway", expected=["--by retrain"])
