"""Review marks in a real browser: from the page to `apply` and the next scan, and back into the page."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from clipguard.outputs.report import render, summarize, write_report
from clipguard.outputs.report.marks import EMBEDDED
from clipguard.runs import read_table, verify_run
from clipguard.runs.reviews import REVIEWS, read_reviews
from tiny_browser import Opened, chromium, marked, opened
from tiny_report import make_run
from tiny_runs import scanned_folder

HOSTILE = "=cmd|' /C calc'!A0\r\n</script><img src=x onerror=alert(1)>\u202egnp"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture
def used(poisoned_folder_and_run, tmp_path):
    """Return the folder of data, and a copy of the run folder."""
    source, run = poisoned_folder_and_run
    return source, shutil.copytree(run, tmp_path / "run")


def saved(window: Opened, folder: Path) -> Path:
    """Return the reviews.json that the page gives now."""
    if not window.page.get_by_role("button", name="Save reviews.json").is_visible():
        window.page.locator(".reviews summary").click()
    with window.page.expect_download() as download:
        window.page.get_by_role("button", name="Save reviews.json").click()
    file = folder / "again.json"
    download.value.save_as(file)
    return file


def by_rank(run: Path) -> dict[int, dict[str, str]]:
    names = ("rank", "path", "status", "reason")
    table = read_table(run / "samples.parquet", names)
    rows = zip(*(table[name].tolist() for name in names), strict=True)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


@dataclass(frozen=True)
class Decided:
    """A run with marks that were made in its page: two flagged samples and another one, by rank."""

    source: Path
    run: Path
    dropped: int
    kept: int
    other: int


@pytest.fixture
def decided(browser, used, tmp_path) -> Decided:
    source, run = used
    window = opened(browser, write_report(run))
    dropped, kept = (int(rank) for rank in window.shown()[:2])
    other = int(window.shown("#others")[0])
    marked(window, tmp_path).unlink()
    window.page.locator("#others button").first.click()
    window.page.locator("#drop").click()
    window.page.locator("#close").click()
    shutil.move(saved(window, tmp_path), run / REVIEWS)
    window.page.context.close()
    return Decided(source, run, dropped, kept, other)


def test_apply_respects_the_marks_that_the_page_saves(clipguard, decided, tmp_path):
    ran = clipguard("apply", decided.run, decided.source, "--out", tmp_path / "clean", "--json")
    there = {path.relative_to(tmp_path / "clean").as_posix() for path in (tmp_path / "clean").rglob("*.png")}
    paths = {rank: row["path"] for rank, row in by_rank(decided.run).items()}
    assert paths[decided.kept] in there
    assert there.isdisjoint({paths[decided.dropped], paths[decided.other]})
    assert (ran.json["reviews"]["kept_though_flagged"], ran.json["dropped"]["review"]) == (1, 1)


def test_a_page_that_is_written_again_has_new_marks_and_seals_them(clipguard, decided):
    assert [one.path for one in verify_run(decided.run) if one.status != "ok"] == [REVIEWS]
    assert clipguard("report", decided.run).code == 0
    page = (decided.run / "report.html").read_text()
    assert "The scan has not respected these marks yet" in page
    assert [one.path for one in verify_run(decided.run) if one.status != "ok"] == []


def test_the_next_scan_respects_them_and_its_page_begins_with_them(browser, decided, tmp_path):
    scanned_folder(decided.source, decided.run)
    after = by_rank(decided.run)
    states = [tuple(after[rank].values())[2:] for rank in (decided.kept, decided.other)]
    assert states == [("trusted", "reviewed"), ("flagged", "reviewed")]
    reader = opened(browser, write_report(decided.run))
    expect(reader.page.locator("#marks")).to_have_text("1 keep, 2 drop")
    assert str(decided.other) in reader.shown()
    assert str(decided.kept) in reader.shown("#others")
    listed = reader.page.locator("#decisions").text_content()
    for text in ("Ada, auditor", after[decided.kept]["path"], "1 sample kept, 2 dropped", "UTC"):
        assert text in listed
    # Going on: a mark that is cleared is gone, the others stay, and the file says so.
    reader.page.locator("#others li[data-mark=keep] button").click()
    reader.page.locator("#keep").click()
    reader.page.locator("#close").click()
    marks = read_reviews(saved(reader, tmp_path)).reviews
    assert {mark.id for mark in marks} == {after[rank]["path"] for rank in (decided.dropped, decided.other)}
    reader.page.reload()
    expect(reader.page.locator("#marks")).to_have_text("0 keep, 2 drop")
    assert reader.faults == []
    reader.page.context.close()


def entry(name, sha256, at="2026-01-01T10:00:00Z", **values):
    mark = {"id": name, "sha256": sha256, "decision": "keep", "by": HOSTILE, "reason": HOSTILE, "at": at}
    return {**mark, **values}


def with_marks(run: Path, marks) -> Path:
    (run / REVIEWS).write_text(json.dumps({"schema_version": 1, "run": "k1", "reviews": marks}))
    return run


def test_marks_of_samples_that_are_not_on_the_page_are_saved_with_the_others(browser, tmp_path):
    run = make_run(tmp_path / "run")
    table = read_table(run / "samples.parquet", ("id", "sha256", "rank"))
    by = {rank: (name, sha256) for name, sha256, rank in zip(*table.values(), strict=True)}
    marks = [entry(*by[1]), entry(*by[150], given_label="cat"), entry("gone.png", "0" * 64)]
    window = opened(browser, write_report(with_marks(run, marks)))
    words = "1 keep, 0 drop, 2 of samples that are not on this page"
    expect(window.page.locator("#marks")).to_have_text(words)
    assert "(no sample of this run)" in window.page.locator("#decisions").text_content()
    again = read_reviews(saved(window, tmp_path)).reviews
    assert {(mark.id, mark.reason) for mark in again} == {(mark["id"], HOSTILE) for mark in marks}
    # Of two marks of a sample the later one stays, whichever came first.
    for at, decision in (("2027-01-01T00:00:00Z", "drop"), ("2025-01-01T00:00:00Z", "keep")):
        file = tmp_path / "other.json"
        other = [entry(*by[1], at=at, decision=decision, given_label="ship", place=0)]
        file.write_text(json.dumps({"schema_version": 1, "run": "k1", "reviews": other}))
        window.page.locator("#open").set_input_files(file)
        expect(window.page.locator("#marks")).to_contain_text("0 keep, 1 drop")
    assert window.faults == []
    assert Axe().run(window.page).response["violations"] == []
    window.page.context.close()


def test_a_static_page_lists_marks_and_too_many_for_a_page_are_told(tmp_path):
    run = make_run(tmp_path / "run")
    many = [entry(f"{row}", f"{row:064d}") for row in range(EMBEDDED // 300)]
    with_marks(run, many)
    static = render(summarize(run), static=True)
    assert static.count("(no sample of this run)") == 100
    assert f"The latest 100 of {len(many):,} marks" in static
    page = write_report(run).read_text()
    assert "marks of reviews.json are too many for this page" in page
    assert len(page) < 3_000_000
    assert "<img src=x" not in page


def test_what_is_shown_is_saved_as_a_table_without_formulas(browser, tmp_path):
    names = [f"train/{i}.png" for i in range(150)]
    names[149], names[148] = HOSTILE, '-1+2,"x"'
    run = make_run(tmp_path / "run", ids=names)
    window = opened(browser, write_report(run))
    marked(window, tmp_path)
    window.page.locator("#status").select_option("flagged")
    window.page.locator("#sort").select_option("path")
    with window.page.expect_download() as download:
        window.page.get_by_role("button", name="Save these as CSV").click()
    download.value.save_as(tmp_path / "samples.csv")
    text = (tmp_path / "samples.csv").read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert download.value.suggested_filename == "samples.csv"
    assert [row["rank"] for row in rows] == window.shown()
    table = read_table(run / "samples.parquet")
    place = {rank: row for row, rank in enumerate(table["rank"].tolist())}
    for row in rows:
        at = place[int(row["rank"])]
        for name in ("row", "sha256", "given_label", "predicted_label", "status", "reason", "trigger"):
            assert row[name] == str(table[name][at])
        assert float(row["poison_score"]) == pytest.approx(table["poison_score"][at], abs=1e-5)
    by = {row["rank"]: row for row in rows}
    assert by["1"]["id"].startswith("'=cmd|")
    assert by["2"]["path"] == '\'-1+2,"x"'
    assert {by[rank]["decision"] for rank in ("1", "2")} == {"drop", "keep"}
    assert by["1"]["decision_reason"].startswith("'=cmd|")
    assert by["1"]["decided_by"] == "Ada, auditor"
    assert text.count("\n") == len(rows) + 1
    assert window.faults == []
    window.page.context.close()
