"""lab.benchmark.machine: which code a figure was made with."""

import subprocess
from pathlib import Path

import pytest

import clipguard
from clipguard.lab.benchmark import machine
from clipguard.lab.benchmark.machine import commit


def test_the_code_of_a_figure_is_the_whole_package():
    assert Path(clipguard.__file__).parent == machine._CODE


def git(folder, *arguments):
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.com")
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A repository with a package in it, of which `commit` believes to be a part."""
    package = tmp_path / "src"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "results.json").write_text("{}")
    git(tmp_path, "init", "--quiet")
    monkeypatch.setattr(machine, "_CODE", package)
    return package


def committed(package):
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "--message", "first")
    return git(package.parent, "rev-parse", "--short", "HEAD")


def test_changes_of_the_code_are_told_and_those_of_other_files_are_not(code):
    head = committed(code)
    assert commit() == head
    (code.parent / "results.json").write_text("[]")
    (code.parent / "more.json").write_text("[]")
    assert commit() == head
    (code / "new.py").write_text("")
    assert commit() == f"{head}-dirty"
    (code / "new.py").unlink()
    (code / "__init__.py").write_text("changed = True")
    assert commit() == f"{head}-dirty"


def test_a_repository_around_an_installation_is_not_taken_for_its_own(code):
    assert commit() is None
    (code.parent / ".gitignore").write_text("src\n")
    committed(code)
    assert commit() is None


def test_code_outside_of_any_repository_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CODE", tmp_path)
    assert commit() is None
