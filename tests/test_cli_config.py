"""Options from a file, error objects, and how much is printed."""

import json

import pytest

from clipguard.cli import defence
from clipguard.cli.outcome import SCHEMA_VERSION, Outcome
from clipguard.runs.summary import RunSummary
from tiny_data import image_folder


@pytest.fixture
def given(monkeypatch):
    """Return the options that `scan` and `defend` were given."""
    options = []

    def run(opening, given_options):
        options.append(given_options)
        return Outcome(value={}, show=lambda console: None, as_json=given_options.json)

    monkeypatch.setattr(defence, "run_scan", run)
    monkeypatch.setattr(defence, "run_defend", run)
    return options


@pytest.fixture
def source(tmp_path):
    return image_folder(tmp_path / "data", n=12)


def config(tmp_path, text):
    path = tmp_path / "clipguard.toml"
    path.write_text(text)
    return path


FILE = """
[scan]
out = "runs/a"
guide = "mini"
power = 2
template = ["a {}", "the {}"]
[scan.limits]
seconds = 5.0
[defend]
power = 3
[defend.limits]
crashes = 7
"""


def test_options_come_from_the_file_and_what_is_typed_goes_before(clipguard, given, source, tmp_path):
    path = config(tmp_path, FILE)
    assert clipguard("scan", source, "--config", path, "--guide", "ViT-B-16", "-q").code == 0
    (options,) = given
    assert (options.guide, options.power, str(options.out)) == ("ViT-B-16", 2, "runs/a")
    assert options.template == ("a {}", "the {}")
    assert (options.limits.seconds, options.limits.crashes) == (5.0, 100)


def test_options_of_scan_hold_for_defend_too(clipguard, given, source, tmp_path):
    path = config(tmp_path, FILE)
    assert clipguard("defend", source, f"--config={path}", "-q").code == 0
    (options,) = given
    assert (options.guide, options.power) == ("mini", 3)
    assert (options.limits.seconds, options.limits.crashes) == (5.0, 7)


def test_a_file_of_one_call_does_not_hold_for_the_next(clipguard, given, source, tmp_path):
    path = config(tmp_path, FILE)
    clipguard("scan", source, "--config", path, "-q")
    clipguard("scan", source, "-o", tmp_path / "run", "-q")
    assert given[1].guide == "ViT-B-32"


def test_json_may_be_asked_for_in_the_file(clipguard, given, source, tmp_path):
    path = config(tmp_path, '[scan]\nout = "r"\njson = true\n')
    assert clipguard("scan", source, "--config", path).json == {"schema_version": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[scan]\nguid = "mini"', "guid"),
        ("[scan.limits]\npixel = 3", "pixel"),
        ("[scam]\nseed = 1", "'scam' is no table"),
        ("seed = 1", "'seed' is no table"),
        ("[scan]\nlimits = 3", "write [scan.limits]"),
        ('[scan]\nconfig = "other.toml"', "leave config out"),
        ("[scan", "cannot be read as TOML"),
        ('[scan]\nseed = "x"', "seed"),
        ('[scan]\nfail-on = "clean"', "clean"),
    ],
)
def test_what_a_file_says_wrongly_is_refused_in_one_line(refused, source, tmp_path, text, words):
    path = config(tmp_path, text)
    refused("scan", source, "-o", tmp_path / "run", "--config", path, expected=[words])


def test_a_missing_file_is_refused(refused, source, tmp_path):
    refused(
        "scan", source, "-o", tmp_path / "run", "--config", tmp_path / "gone.toml", expected=["gone.toml"]
    )


def test_a_file_beside_the_data_is_not_looked_for(clipguard, given, source, tmp_path, monkeypatch):
    config(tmp_path, '[scan]\nfail-on = "never"')
    monkeypatch.chdir(tmp_path)
    clipguard("scan", source, "-o", tmp_path / "run", "-q")
    assert given[0].fail_on == "undecided"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("scan", "gone", "-o", "run", "--json"), "input", "gone"),
        (("scan", "gone", "-o", "run", "--format", "sarif,json"), "input", "gone"),
        (("scan", "--json", "--no-such-option"), "usage", "no-such-option"),
        (("report", "gone", "--json"), "input", "gone"),
    ],
)
def test_an_error_is_one_object_on_stdout_and_one_line_on_stderr(
    clipguard, tmp_path, monkeypatch, arguments, kind, words
):
    monkeypatch.chdir(tmp_path)
    ran = clipguard(*arguments)
    assert ran.code == 2
    error = ran.json["error"]
    assert ran.json["schema_version"] == SCHEMA_VERSION
    assert (error["kind"], error["exit_code"]) == (kind, 2)
    assert words in error["message"]
    assert ran.err.splitlines()[-1] == f"clipguard: {error['message']}"


def test_an_interrupted_run_says_so_in_its_object(clipguard, monkeypatch, source, tmp_path):
    def interrupted(opening, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(defence, "run_scan", interrupted)
    ran = clipguard("scan", source, "-o", tmp_path / "run", "--json")
    assert (ran.code, ran.json["error"]["kind"], ran.json["error"]["exit_code"]) == (130, "interrupted", 130)


def test_verbose_shows_where_an_internal_error_arises(clipguard, monkeypatch, source, tmp_path):
    def broken(opening, options):
        raise IndexError("out of bounds")

    monkeypatch.setattr(defence, "run_scan", broken)
    assert "Traceback" in clipguard("scan", source, "-o", tmp_path / "run", "-v").err
    assert "Traceback" not in clipguard("scan", source, "-o", tmp_path / "run").err


def test_quiet_and_verbose_contradict_each_other(refused, source, tmp_path):
    refused("scan", source, "-o", tmp_path / "run", "-q", "-v", expected=["--quiet and --verbose"])


def test_the_schema_of_the_summary_is_that_of_every_object():
    assert RunSummary.__struct_defaults__[0] == SCHEMA_VERSION


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("few") / "data", n=16)


def test_a_scan_writes_the_formats_and_prints_one_object(clipguard, folder, tmp_path, monkeypatch):
    scan = ("scan", folder, "-o", tmp_path / "run", "--guide", "mini", "--power", "0")
    ran = clipguard(*scan, "--format", "sarif,junit,markdown,github,json")
    files = {name: tmp_path / "run" / file for name, file in ran.json["files"].items() if name in FILES}
    assert {name: file.name for name, file in files.items()} == FILES
    assert json.loads(files["sarif"].read_text())["version"] == "2.1.0"
    assert "::warning title=clipguard%3A Undecided::" in ran.err
    assert ran.err.splitlines()[0].startswith("clipguard: 16 images, 2 classes, about ")
    assert clipguard("verify", tmp_path / "run").code == 0

    quiet = clipguard(*scan, "-q", "--format", "junit")
    assert quiet.out == f"Undecided: 0 of 16 images (0.0 %) are flagged; {tmp_path / 'run' / 'report.html'}\n"
    assert "step" not in quiet.err
    # Those of an earlier command may tell of other results.
    assert [file.exists() for file in files.values()] == [False, True, False]


FILES = {"sarif": "results.sarif", "junit": "junit.xml", "markdown": "summary.md"}
