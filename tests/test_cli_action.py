"""The composite action: its script is run here as the runner of GitHub Actions runs it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from clipguard.cli.format_files import FORMATS
from tiny_data import image_folder

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]
SCAN = next(step for step in STEPS if step.get("id") == "scan")


@pytest.fixture
def run(tmp_path):
    """Return what runs the action's scan with some inputs, and the files that it hands to the runner."""
    command = tmp_path / "bin" / "clipguard"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom clipguard.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)

    def step(**inputs):
        known = {
            name.upper().replace("-", "_"): value.get("default", "")
            for name, value in ACTION["inputs"].items()
        }
        output, summary = tmp_path / "output", tmp_path / "summary"
        environment = {
            **os.environ,
            **{name: known[name] for name in SCAN["env"]},
            **inputs,
            "PATH": f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
        }
        # As the runner does: an error in any line ends the step.
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", SCAN["run"]]
        done = subprocess.run(
            shell, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        lines = output.read_text().splitlines() if output.exists() else []
        return done, dict(line.split("=", 1) for line in lines), summary

    return step


def test_the_action_scans_and_hands_over_answer_and_files(run, tmp_path):
    image_folder(tmp_path / "my data", n=16)
    done, outputs, summary = run(SOURCE="my data", ARGUMENTS="--power 0 --seed 3", FAIL_ON="never")
    assert done.returncode == 0, done.stderr
    assert outputs == {
        **{"exit-code": "0", "answer": "undecided"},
        "sarif": "clipguard-run/results.sarif",
    }
    assert summary.read_text().startswith("## clipguard: Undecided")
    assert done.stdout.startswith("::warning title=clipguard%3A Undecided::")
    assert (tmp_path / outputs["sarif"]).is_file()


def test_a_failed_scan_fails_the_action_and_an_input_is_no_code(run, tmp_path):
    done, outputs, summary = run(SOURCE="$(touch pwned); gone", OUT="run")
    assert (done.returncode, outputs) == (2, {"exit-code": "2"})
    assert "gone" in done.stderr.splitlines()[-1]
    assert not summary.exists()
    assert not (tmp_path / "pwned").exists()


def test_scripts_hold_no_expression_that_would_be_code():
    assert [step["run"] for step in STEPS if "${{" in step.get("run", "")] == []


def test_every_output_is_made_by_the_script():
    for name, output in ACTION["outputs"].items():
        assert name == "run" or f"steps.scan.outputs.{name}" in output["value"]
        assert name == "run" or f"{name}=" in SCAN["run"]


def test_action_and_container_take_a_python_that_clipguard_supports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, ACTION["inputs"]["python-version"]["default"].split("."))) >= least
    assert (
        f"python:{ACTION['inputs']['python-version']['default']}-slim" in (ROOT / "Containerfile").read_text()
    )


def test_the_container_copies_all_that_the_build_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "Containerfile").read_text()
    assert all(name in text for name in ("pyproject.toml", project["readme"], *project["license-files"]))


def test_the_page_on_ci_names_every_format_and_input():
    text = (ROOT / "docs" / "ci.md").read_text()
    assert [name for name in (*FORMATS, *ACTION["inputs"]) if f"`{name}`" not in text] == []
