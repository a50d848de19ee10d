"""The command line: what it prints where, its exit codes, its options, its progress."""

import io
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from typing import get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress

from clipguard import __version__
from clipguard.cli import defence, main
from clipguard.cli.commands import app
from clipguard.cli.help_pages import EXAMPLES
from clipguard.cli.options import AttackOptions, DefendOptions, ScanOptions
from clipguard.cli.tables import show_run
from clipguard.cli.text import channels_from, rows_from, size_from
from clipguard.detection.early_model import EARLY_MODELS
from clipguard.errors import ClipguardError, one_line
from clipguard.lab.attacks import ATTACKS
from clipguard.outputs.progress import Lines, bars, warn, working
from clipguard.runs.summary import RunSummary
from tiny_data import image_folder, tree
from tiny_report import SCAN

COMMANDS = (
    *(
        "apply",
        "attack",
        "bench",
        "bench-report",
        "clean",
        "completion",
        "convert",
        "defend",
        "demo",
        "doctor",
    ),
    *("export", "report"),
    *("scan", "verify"),
)
SUMMARY = SCAN | {"verdict": {"answer": "undecided", "reasons": ["a [bold]reason[/bold]"]}}
SAMPLES = {
    "id": ["a\x1b[31m.png", "[red]b.png"],
    "given_label": ["cat", "dog\n"],
    "predicted_label": ["dog", "dog"],
    "poison_score": [0.25, 0.75],
    "rank": [2, 1],
}


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def printed(summary, samples=SAMPLES, flagged=(), detail="normal"):
    stream, run = io.StringIO(), msgspec.convert(summary, RunSummary)
    show_run(run, samples, Console(file=stream, width=100), flagged, detail)
    return stream.getvalue()


def test_help_names_every_command(clipguard):
    ran = clipguard("--help")
    assert ran.code == 0
    assert all(f" {name} " in ran.out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_with_examples_and_its_exit_codes(clipguard, command):
    ran = clipguard(command, "--help")
    assert ran.code == 0
    assert "--json" in ran.out
    after = ran.out.partition("Examples:\n")[2]
    assert f"  clipguard {command}" in after
    assert "Exit codes: 0 " in after


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_every_example_is_a_command_line_that_is_understood(command):
    for example in EXAMPLES[command]:
        app.parse_args(shlex.split(example)[1:], print_error=False, exit_on_error=False)


def test_the_exit_codes_of_a_verdict_stand_below_the_commands_that_have_one(clipguard):
    codes = "0 clean, 1 suspicious, 2 error, 3 undecided"
    having = [name for name in COMMANDS if codes in " ".join(clipguard(name, "--help").out.split())]
    assert having == ["defend", "scan"]


def test_limits_on_hostile_input_come_last(clipguard):
    text = clipguard("scan", "--help").out
    assert text.rindex("--json") < text.index("Limits on hostile input") < text.index("--limits.pixels")


def test_stars_of_a_pattern_are_not_taken_for_markup(clipguard):
    assert "such as *-sig-*" in " ".join(clipguard("bench", "--help").out.replace("│", " ").split())


def test_version_is_that_of_the_package(clipguard):
    ran = clipguard("--version")
    assert (ran.code, ran.out.strip()) == (0, __version__)


def test_help_loads_none_of_the_packages_that_take_long():
    completed = in_a_new_process(
        "import sys; from clipguard.cli import main; main(['--help'])\n"
        "slow = {'torch', 'numpy', 'pyarrow', 'jinja2', 'timm', 'scipy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'loaded {slow}' if slow else 0)"
    )
    assert completed.returncode == 0, completed.stderr


def test_the_choices_are_those_that_exist():
    hints = get_type_hints(AttackOptions)
    assert get_args(hints["attack"]) == tuple(ATTACKS)
    # Any architecture is taken too, so that the choices stand in the help alone.
    assert f"early_model: {', '.join(EARLY_MODELS)}, or an architecture" in ScanOptions.__doc__


def test_a_terminated_run_exits_with_143_in_one_line(clipguard, monkeypatch, tmp_path):
    def terminated(opening, options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(defence, "run_scan", terminated)
    ran = clipguard("scan", tmp_path, "-o", tmp_path / "run")
    expected = "clipguard: terminated by SIGTERM: the same command resumes where it stopped\n"
    assert (ran.code, ran.out, ran.err) == (143, "", expected)


def test_an_interrupted_run_exits_with_130_in_one_line(clipguard, monkeypatch, tmp_path):
    def interrupted(opening, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(defence, "run_scan", interrupted)
    ran = clipguard("scan", tmp_path, "-o", tmp_path / "run")
    assert ran.code == 130
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(("debug", "lines"), [("", 1), ("1", 2)])
def test_an_internal_error_is_no_verdict(clipguard, monkeypatch, tmp_path, debug, lines):
    def broken(opening, options):
        raise IndexError("Target 2 is out of bounds")

    monkeypatch.setattr(defence, "run_scan", broken)
    monkeypatch.setenv("CLIPGUARD_DEBUG", debug)
    ran = clipguard("scan", tmp_path, "-o", tmp_path / "run")
    assert ran.code == 2
    assert "clipguard: internal error, IndexError: Target 2 is out of bounds" in ran.err.splitlines()[-1]
    assert ran.err.count("\n") >= lines
    assert ("Traceback" in ran.err) == bool(debug)


def test_a_lack_of_memory_says_what_to_do(clipguard, monkeypatch, tmp_path):
    def swollen(opening, options):
        raise MemoryError

    monkeypatch.setattr(defence, "run_scan", swollen)
    ran = clipguard("scan", tmp_path, "-o", tmp_path / "run")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "clipguard: out of memory: free some, take fewer --rows, or lower the --limits\n"


def test_an_interrupted_attack_leaves_nothing(clipguard, monkeypatch, tmp_path):
    def interrupted(truth, path):
        raise KeyboardInterrupt

    source = image_folder(tmp_path / "data", n=20)
    before = tree(tmp_path)
    monkeypatch.setattr("clipguard.cli.poisoned.write_truth", interrupted)
    assert clipguard("attack", source, "-o", tmp_path / "out", "--attack", "badnets").code == 130
    assert tree(tmp_path) == before


def test_a_full_disk_is_one_line_and_exit_code_2(clipguard, monkeypatch, tmp_path):
    def full(truth, path):
        raise OSError(28, "No space left on device", "truth.parquet")

    source = image_folder(tmp_path / "data", n=20)
    monkeypatch.setattr("clipguard.cli.poisoned.write_truth", full)
    ran = clipguard("attack", source, "-o", tmp_path / "out", "--attack", "badnets")
    assert ran.code == 2
    line = (
        "clipguard: No space left on device (truth.parquet): free some space and run the same command again"
    )
    assert ran.err.splitlines()[-1] == line


def test_a_reader_that_goes_away_is_no_traceback():
    completed = in_a_new_process(
        "import os, sys; from clipguard.cli import main\n"
        "reading, writing = os.pipe(); os.close(reading); os.dup2(writing, 1)\n"
        "sys.exit(main(['--help']))"
    )
    assert "Traceback" not in completed.stderr
    assert "Exception ignored" not in completed.stderr


def test_what_libraries_print_does_not_reach_stdout(capsys):
    with working():
        sys.stdout.write("a model factory says hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


def test_a_warning_is_one_line_on_stderr_whatever_it_quotes(capsys):
    warn(["class 'a\nb\x1b[2J' is empty"])
    assert capsys.readouterr().err == "clipguard: warning: class 'a\\nb\\x1b[2J' is empty\n"


@given(st.text())
def test_one_line_is_one_printable_line(text):
    assert one_line(text).isprintable()


@given(st.text(st.characters(categories=("L", "N", "P"))))
def test_one_line_leaves_plain_text_alone(text):
    assert one_line(text) == text


@given(st.integers(8, 4096), st.integers(8, 4096))
def test_a_size_is_height_and_width(height, width):
    assert size_from(f"{height}x{width}", "--size") == (height, width)
    assert size_from(f"{height}", "--size") == (height, height)


@pytest.mark.parametrize("text", ["", "x", "32x", "x32", "7", "32x7", "5000", "-32", "3.5", "32x32x3", "٣٢٣"])
def test_another_size_is_refused_by_its_option(text):
    with pytest.raises(ClipguardError, match="--input-size"):
        size_from(text, "--input-size")


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_rows_are_first_and_end(first, end):
    assert rows_from(f"{first}:{end}", "--rows") == (first, end)


@pytest.mark.parametrize("text", ["", "5", ":5", "5:", "-1:5", "a:b", "1:2:3"])
def test_other_rows_are_refused(text):
    with pytest.raises(ClipguardError, match="--test-rows"):
        rows_from(text, "--test-rows")


def test_channels_are_three_numbers():
    assert channels_from("0.1, 0.2,3", "--mean") == (0.1, 0.2, 3.0)


@pytest.mark.parametrize("text", ["", "0.5", "1,2", "1,2,3,4", "a,b,c", "nan,0,0", "inf,0,0"])
def test_other_channels_are_refused(text):
    with pytest.raises(ClipguardError, match="--mean"):
        channels_from(text, "--mean")


def test_options_reach_the_settings(tmp_path):
    options = DefendOptions(
        out=tmp_path,
        size="24x16",
        early_model="residual",
        rank_within="class",
        architecture="preactresnet18-4",
        loss="cgd",
        epochs=2,
        flip=False,
        seed=9,
        power=3,
    )
    config = defence._defend_config(options)
    assert (config.size, config.early_model) == ((24, 16), EARLY_MODELS["residual"])
    assert (config.entropy_map.by, config.architecture) == ("class", "preactresnet18-4")
    assert (config.by, config.unlearning.loss, config.power) == ("unlearn", "cgd", 3)
    retrain = defence._defend_config(replace(options, loss="unlikelihood", by="retrain", drop_anyway=True))
    assert (retrain.by, retrain.drop_anyway) == ("retrain", True)
    assert (config.victim.epochs, config.victim.flip, config.seed) == (2, False, 9)
    assert not config.unlearning.recipe.flip


def test_a_line_comes_once_a_minute_and_when_a_step_ends():
    stream, now = io.StringIO(), iter([0, 10, 59, 61, 90, 100, 100.5, 110])
    lines = Lines(stream.write, lambda: next(now))
    for done in (1, 2, 3, 4):
        lines("train the model", done, 5)
    lines("train the model", 5, 5)
    lines("unlearn", 1, 3)
    lines("unlearn", 3, 3)
    assert stream.getvalue().splitlines() == [
        "clipguard: train the model: 3 of 5, 41 s left",
        "clipguard: train the model: 5 of 5 in 1 min 40 s",
        "clipguard: unlearn: 3 of 3 in 10 s",
    ]


def test_a_step_that_took_no_time_gets_no_line():
    stream, now = io.StringIO(), iter([0, 0.5, 5.5])
    lines = Lines(stream.write, lambda: next(now))
    lines("hash the data", 7, 7)
    lines("read the images", 7, 7)
    assert stream.getvalue() == "clipguard: read the images: 7 of 7 in 5 s\n"


def test_a_step_that_starts_again_begins_anew():
    stream, now = io.StringIO(), iter([0, 1, 3, 40, 40.2])
    lines = Lines(stream.write, lambda: next(now))
    for done in (0, 7, 0, 7):
        lines("hash the data", done, 7)
    assert stream.getvalue() == "clipguard: hash the data: 7 of 7 in 2 s\n"


def test_a_step_that_announces_its_start_begins_then_and_short_ones_do_not_add_up():
    stream, now = io.StringIO(), iter([0, 50, 55, 55.5, 56.2, 56.9])
    lines = Lines(stream.write, lambda: next(now))
    lines("hash the data", 0, 7)
    lines("hash the data", 7, 7)
    for step in ("one", "two", "three"):
        lines(step, 1, 1)
    assert stream.getvalue() == "clipguard: hash the data: 7 of 7 in 5 s\n"


def test_a_step_that_announces_its_start_needs_no_time_left():
    stream, now = io.StringIO(), iter([0.0, 120.0])
    Lines(stream.write, lambda: next(now))("read the images", 0, 5)
    assert stream.getvalue() == "clipguard: read the images: 0 of 5\n"


def test_bars_show_the_time_left_from_the_beginning_of_the_step():
    now = [0.0]
    display = Progress(console=Console(file=io.StringIO(), force_terminal=True, width=80))
    progress = bars(display, lambda: now[0])
    now[0] = 10.0
    progress("read", 1, 4)
    (read,) = display.tasks
    assert read.fields["left"] == "30 s left"
    progress("read", 4, 4)
    now[0] = 30.0
    progress("train", 1, 5)
    read, train = display.tasks
    assert (read.finished, read.fields["left"]) == (True, "in 10 s")
    assert (train.completed, train.total, train.fields["left"]) == (1, 5, "1 min 20 s left")


def test_a_terminal_gets_bars(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with working() as progress:
        progress("unlearn [red]", 1, 3)
    assert "unlearn [red]" in stream.getvalue()
    assert "left" in stream.getvalue()


def test_names_from_the_data_neither_style_nor_control_the_terminal():
    text = printed(SUMMARY)
    assert "[red]b.png" in text
    assert "a\\x1b[31m.png" in text
    assert "a [bold]reason[/bold]" in text
    assert "dog\\n" in text
    assert "\x1b" not in text


def test_the_most_suspicious_sample_comes_first():
    text = printed(SUMMARY)
    assert text.index("[red]b.png") < text.index("a\\x1b")


def test_the_table_has_before_after_and_change_of_what_was_measured():
    before = {"accuracy": 0.9, "attack_success": 1.0, "measured_on": "test set t"}
    text = printed(SUMMARY | {"before": before, "after": before | {"attack_success": 0.01}})
    row = next(line for line in text.splitlines() if "Attack success" in line)
    assert " ".join(row.split()) == "Attack success 100.0 % 1.0 % −99.0"
    assert "Recall" not in text
    assert "test set t" in text


def test_the_files_of_a_run_are_named_and_a_long_path_is_not_broken_into_lines():
    path = "runs/" + "x" * 300 + "/file"
    assert f"Labels   {path}\n" in printed(SUMMARY | {"files": {"report": "a", "labels": path}})


def test_report_prints_the_path_of_the_page(clipguard, monkeypatch, tmp_path):
    monkeypatch.setattr("clipguard.outputs.report.write_report", lambda run, static: run / "report.html")
    assert clipguard("report", tmp_path).out.strip() == str(tmp_path / "report.html")
    expected = {"schema_version": 1, "report": str(tmp_path / "report.html"), "cleaned": None}
    assert clipguard("report", tmp_path, "--json").json == expected


def test_main_reads_the_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["clipguard", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.strip() == __version__
