"""A real Chromium that opens a page and remembers what it said, asked for and drew."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright


@dataclass
class Opened:
    """A page in a browser; `faults` are errors and warnings of its console, `requests` what it asked for."""

    page: Page
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def value(self, script: str) -> Any:
        return self.page.evaluate(script)

    def shown(self, gallery: str = "#flagged") -> list[str]:
        """Return the ranks in a gallery, in the order in which they stand."""
        return self.page.locator(f"{gallery} > li:visible .row span").all_text_contents()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a real browser")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Browser, path: Path, address: str = "", **options: Any) -> Opened:
    """Open a file in a new window, with `address` after its name; options are Playwright's of a context."""
    context = browser.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
    window = Opened(context.new_page())
    window.page.on("console", lambda message: window.faults.append(message.text))
    window.page.on("pageerror", lambda error: window.faults.append(str(error)))
    window.page.on("request", lambda request: window.requests.append(request.url))
    window.page.goto(path.absolute().as_uri() + address)
    return window


def marked(window: Opened, folder: Path) -> Path:
    """Drop the first flagged sample, keep the second, and return the reviews.json that the page gives."""
    page = window.page
    page.locator(".reviews summary").click()
    page.get_by_label("Your name").fill("Ada, auditor")
    page.locator("#why").fill("=cmd|' /C calc'!A0")
    page.locator("#flagged button").first.click()
    for button in ("#drop", "#after", "#keep", "#close"):
        page.locator(button).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save reviews.json").click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file
