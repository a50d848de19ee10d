"""outputs.report: the page in a real browser."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from clipguard.outputs.report import write_report
from test_report import Page, hostile_run


def browse(page: Path, profile: Path, *arguments: str) -> str:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a real browser")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet += ["--disable-sync", "--disable-background-networking", "--disable-component-update"]
    quiet += [f"--user-data-dir={profile}"]
    command = [browser, *quiet, *arguments, page.as_uri()]
    environment = os.environ | {"HOME": str(profile)}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120, env=environment
    ).stdout


def test_a_browser_draws_the_hostile_page_and_runs_nothing_of_it(tmp_path):
    page = write_report(hostile_run(tmp_path / "run"))
    dom = browse(page, tmp_path / "profile", "--dump-dom")
    parsed = Page(dom)
    assert "script" not in parsed.tags
    assert "onerror" not in {name for _, name, _ in parsed.attributes}
    assert parsed.tags.count("img") == 100
    shot = tmp_path / "page.png"
    browse(page, tmp_path / "second", f"--screenshot={shot}", "--window-size=1200,1600")
    with Image.open(shot) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 200  # more than an empty or a text-only page
