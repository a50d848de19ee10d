"""The command line as shells call it: empty variables, expanded patterns, terminals that take ASCII alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clipguard.runs.summary import read_summary
from tiny_data import image_folder, pictures, tree

MAIN = "import sys; from clipguard.cli import main; sys.exit(main())"

# 9 and 15: what a shell made of an argument


@pytest.mark.parametrize(
    "arguments",
    [("scan", ""), ("scan", " ", "--out", "run"), ("scan", ".", "--out", ""), ("scan", ".", "--out=")],
)
def test_an_empty_argument_is_refused_and_not_the_current_folder(clipguard, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(image_folder(tmp_path / "data", 6))
    before = tree(tmp_path)
    ran = clipguard(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "is empty" in ran.err
    assert "variable of the shell may not be set" in ran.err
    assert tree(tmp_path) == before


def test_a_pattern_that_the_shell_expanded_is_explained(clipguard, tmp_path):
    files = [tmp_path / f"train-0000{number}-of-00002.parquet" for number in range(2)]
    for file in files:
        file.write_bytes(b"x")
    ran = clipguard("scan", *files, "--out", tmp_path / "run")
    assert ran.code == 2
    assert "the shell expanded a pattern; put it in quotes" in ran.err


# 8: a terminal that takes ASCII alone


def test_what_stdout_cannot_encode_is_escaped_and_the_exit_code_stays():
    code = "from clipguard.cli.process import escape_unwritable as e; e(); print('caf\\u00e9 \\u732b')"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, b"caf\\xe9 \\u732b\n")


# 4, 6 and 8 together: a whole scan


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    """Return 60 images of 12 bits beside files that are none, a class called in Greek."""
    root = tmp_path_factory.mktemp("odd") / "data"
    for row, pixels in enumerate(pictures(60)):
        file = root / ("cat", "γάτα")[row % 2] / f"{row:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0].astype(np.uint16) << 4).save(file)
        file.with_suffix(".heic").write_bytes(b"x")
    return root


def test_what_was_left_out_and_scaled_is_said_everywhere_also_in_ascii(odd_folder, tmp_path):
    run = tmp_path / "run"
    options = ["--guide", "mini", "--power", "0", "--fail-on", "never"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    def clipguard(*arguments):
        command = [sys.executable, "-c", MAIN, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    scanned = clipguard("scan", odd_folder, "--out", run, *options)
    assert scanned.returncode == 0, scanned.stderr
    left = "60 files left out: 60 .heic, a format that is not read"
    summary = read_summary(run)
    assert summary.data.skipped == {".heic, a format that is not read": 60}
    assert any(left in warning for warning in summary.warnings)
    assert any("60 by 12" in warning for warning in summary.warnings)
    assert left in " ".join(scanned.stderr.split())
    assert left in (run / "report.html").read_text()
    verified = clipguard("verify", run, "--data", odd_folder)
    assert verified.returncode == 0
    assert "inputs: 60 ok" in verified.stdout
    assert f"inputs: {left}" in verified.stdout
