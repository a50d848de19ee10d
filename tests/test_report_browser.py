"""outputs.report: the page in a real browser, from a real run and from a hostile one."""

import json
import re
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from clipguard.outputs.report import render, summarize, write_report
from clipguard.outputs.samples import read_samples
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import write_summary
from clipguard.runs import read_table
from clipguard.triggers.affine import AffineTrigger
from test_report_hostile import hostile_run
from tiny_browser import Opened, chromium, marked, opened
from tiny_report import add_triggers, images_of, make_run
from tiny_runs import CONFIG, GUIDE, poisoned_set, source_of

PHONE = {"viewport": {"width": 375, "height": 800}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A real scan of tiny images, and its page."""
    path = tmp_path_factory.mktemp("real") / "run"
    data, _ = poisoned_set()
    defender = Defender(GUIDE, path, config=CONFIG, threads=1).scan(source_of(data))
    write_summary(defender, "scan", files={})
    write_report(path)
    return path


@pytest.fixture
def window(browser, run) -> Iterator[Opened]:
    one = opened(browser, run / "report.html")
    yield one
    assert one.faults == []
    assert {url for url in one.requests if not url.startswith(("data:", "blob:"))} == {
        (run / "report.html").as_uri()
    }
    one.page.context.close()


def flagged_ranks(run: Path) -> list[str]:
    samples, partition = read_samples(run, order="table")
    return [str(rank) for rank in sorted(samples["rank"][partition.flagged].tolist())]


def violations(window: Opened) -> list[str]:
    return [
        f"{one['id']}: {one['nodes'][0]['html']}" for one in Axe().run(window.page).response["violations"]
    ]


def test_all_flagged_samples_are_shown_first_and_their_pictures_load(window, run):
    assert window.shown() == flagged_ranks(run)
    assert len(window.shown("#others")) == 100 - len(flagged_ranks(run))
    for picture in window.page.locator("#flagged img").all():
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") == 16


def test_a_box_drawn_on_the_map_selects_the_samples_in_it(window, run):
    samples, partition = read_samples(run, order="table")
    window.page.locator(".map").scroll_into_view_if_needed()
    frame = window.page.locator(".map .frame").bounding_box()
    across = [frame["x"] + frame["width"] * share for share in (0.52, 0.98)]
    down = [frame["y"] + frame["height"] * (1 - share) for share in (0.02, 0.48)]
    window.page.mouse.move(across[0], down[1])
    window.page.mouse.down()
    window.page.mouse.move(across[1], down[0], steps=4)
    window.page.mouse.up()
    box = [float(window.page.locator(f"#{name}").input_value()) for name in ("x0", "y0", "x1", "y1")]
    assert box[0] <= 0.52 < 0.98 <= box[2]
    columns = [samples[name] for name in ("guide_rank", "early_rank")]
    bins = 12  # of so few samples; see entropy_map
    place = [np.minimum(np.floor(ranks * bins), bins - 1) / bins for ranks in columns]
    within = [place[axis] >= box[axis] - 1e-3 for axis in (0, 1)]
    within += [place[axis] < box[axis + 2] - 1e-3 for axis in (0, 1)]
    inside = np.all(within, axis=0)
    assert 0 < inside.sum() < len(partition)
    assert window.page.locator("#inside").inner_text().startswith(f"{inside.sum()} samples in the box")
    expected = sorted(samples["rank"][inside & partition.flagged].tolist())
    assert window.shown() == [str(rank) for rank in expected]
    window.page.get_by_role("button", name="Remove the box").click()
    assert window.shown() == flagged_ranks(run)


def test_filters_sorting_and_the_open_sample_are_in_the_address(window, browser, run):
    texts = read_table(run / "samples.parquet", ["id", "rank"])
    wanted = texts["id"][texts["rank"] == 1][0]
    window.page.get_by_label("Search").fill(str(wanted))
    assert "1" in window.shown()
    assert set(window.shown()) < set(flagged_ranks(run))
    window.page.get_by_role("button", name="Show all").click()
    window.page.get_by_label("Sort by").select_option("early rank")
    window.page.get_by_label("Status").select_option("flagged")
    samples, _ = read_samples(run, order="table")
    row = samples["rank"].tolist().index(int(flagged_ranks(run)[0]))
    corner = [float(samples[name][row] > 0.5) / 2 for name in ("guide_rank", "early_rank")]
    start = f"{corner[0]:g},{corner[1]:g}".replace("0.5", ".5")
    window.page.locator(f"[data-box^='{start},']").click()
    window.page.locator("#flagged li:visible button").first.click()
    address = window.page.url.partition("#")[2]
    assert {part.partition("=")[0] for part in address.split("&")} == {"sort", "status", "box", "sample"}
    again = opened(browser, run / "report.html", "#" + address)
    assert again.page.locator("dialog").is_visible()
    assert again.shown() == window.shown()
    assert again.shown("#others") == []
    title = window.page.locator("#sample-title").inner_text()
    assert again.page.locator("#sample-title").inner_text() == title
    again.page.context.close()


def test_show_all_of_a_cause_shows_its_samples(window):
    link = window.page.locator("a[data-cause='0']")
    number = int(re.sub(r"\D", "", link.inner_text()))
    link.click()
    expect(window.page.locator("#cause")).to_have_value("0")
    assert len(window.shown()) == number
    assert window.shown("#others") == []


def test_the_keyboard_alone_reaches_pictures_dialog_and_marks(window):
    page, ranks = window.page, window.shown()
    page.locator("#sort").focus()
    page.keyboard.press("Tab")
    while "shot" not in (page.evaluate("document.activeElement.className") or ""):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("#sample-title").inner_text().startswith(f"Rank {ranks[1]}:")
    page.keyboard.press("d")
    page.keyboard.press("ArrowRight")
    assert page.locator("#sample-title").inner_text().startswith(f"Rank {ranks[2]}:")
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.closest('li').dataset.n") == "2"
    assert page.locator("#marks").inner_text().startswith("1 keep, 1 drop")


def one_digit(value):
    """Return a number as a browser's toFixed(1) writes it: halves are rounded up."""
    return Decimal(float(value)).quantize(Decimal("0.1"), ROUND_HALF_UP)


def test_the_dialog_says_scores_in_words(window, run):
    window.page.locator("#flagged button").first.click()
    words = window.page.locator("#words").inner_text()
    table = read_table(run / "samples.parquet")
    row = table["rank"].tolist().index(int(flagged_ranks(run)[0]))
    for part in (
        f"rank {table['rank'][row]} of 240 samples",
        f"worse than {one_digit(100 * table['guide_rank'][row])} % of all labels fit theirs",
        f"learned the label sooner than {one_digit(100 - 100 * table['early_rank'][row])} % of all samples",
    ):
        assert part in words


PIXELS = """name => {
    const one = document.getElementById(name), canvas = document.createElement("canvas");
    canvas.width = canvas.height = 8;
    canvas.getContext("2d").drawImage(one, 0, 0);
    return [...canvas.getContext("2d").getImageData(0, 0, 8, 8).data].filter((_, i) => i % 4 < 3);
}"""


def test_the_dialog_takes_a_trigger_off_flagged_pictures_and_puts_it_on_others(browser, tmp_path):
    run = make_run(tmp_path / "run")
    scale, shift = np.full((8, 8, 3), 0.5, np.float32), np.full((8, 8, 3), 20, np.float32)
    scale[0, 0], shift[0, 0] = 0, 255
    trigger = AffineTrigger(scale=scale, shift=shift)
    add_triggers(run, [trigger])
    window = opened(browser, write_report(run))
    for gallery, row in (("#flagged", 149), ("#others", 134)):
        pixels = images_of(run)[row : row + 1]
        window.page.locator(f"{gallery} button").first.click()
        window.page.wait_for_selector("#changed:not([hidden])")
        assert window.page.evaluate(PIXELS, "asis") == pixels.ravel().tolist()
        changed = np.array(window.page.evaluate(PIXELS, "canvas")).reshape(1, 8, 8, 3)
        if gallery == "#others":
            assert np.abs(changed - trigger.apply(pixels)).max() <= 2  # scale and shift are kept in 8 bits
        else:
            assert (changed[0, 0, 0] == 128).all()  # covered: nothing is left of the picture there
            expected = ((pixels.astype(float) - 20) / 0.5).clip(0, 255)
            expected[0, 0, 0] = 128
            assert np.abs(changed - expected).max() <= 4
            assert "1.6 % is covered" in window.page.locator("#changed-words").inner_text()
        window.page.locator("#close").click()
    assert window.faults == []
    window.page.context.close()


def test_marks_are_saved_as_reviews_json_and_outlive_the_page(window, run, tmp_path):
    file = marked(window, tmp_path)
    saved = json.loads(file.read_text())
    assert (file.name, saved["schema_version"]) == ("reviews.json", 1)
    assert saved["run"] == json.loads((run / "manifest.json").read_text())["source"]["key"]
    table = read_table(run / "samples.parquet", ["id", "rank"])
    ids = dict(zip(table["rank"].tolist(), table["id"].tolist(), strict=True))
    ranks = flagged_ranks(run)
    first, second = saved["reviews"]
    assert set(first) == {"sha256", "id", "decision", "by", "reason", "at", "given_label"}
    assert (first["id"], first["decision"]) == (ids[int(ranks[0])], "drop")
    assert (second["id"], second["decision"]) == (ids[int(ranks[1])], "keep")
    assert (first["by"], first["reason"]) == ("Ada, auditor", "=cmd|' /C calc'!A0")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", first["at"])
    window.page.reload()
    assert window.page.locator("#marks").inner_text() == "1 keep, 1 drop"


def test_a_colleague_opens_the_marks_and_a_damaged_file_changes_nothing(window, browser, run, tmp_path):
    file = marked(window, tmp_path)
    other = opened(browser, run / "report.html")
    assert other.page.locator("#marks").inner_text() == "none"
    other.page.locator("#open").set_input_files(file)
    expect(other.page.locator("#marks")).to_have_text("1 keep, 1 drop")
    other.page.locator("#mark").select_option("drop")
    assert other.shown() == flagged_ranks(run)[:1]
    file.write_text('{"reviews": [{"id": 5, "decision": "explode"}, null]}')
    other.page.locator("#open").set_input_files(file)
    expect(other.page.locator("#saved")).to_contain_text("0 marks")
    assert other.page.locator("#marks").inner_text() == "1 keep, 1 drop"
    assert other.faults == []
    other.page.context.close()


def test_only_the_pinned_script_runs_on_the_hostile_page(browser, tmp_path):
    page = write_report(hostile_run(tmp_path / "run"))
    window = opened(browser, page)
    window.page.on("dialog", lambda dialog: window.faults.append("a script of the data ran"))
    assert window.value("document.documentElement.dataset.ready") == "yes"
    for button in window.page.locator("#flagged button").all():
        button.click()
        window.page.locator("#close").click()
    window.page.get_by_label("Search").fill("<img src=x onerror=alert(9)>")
    assert window.faults == []
    assert window.page.locator("script").count() == 2
    assert window.page.locator("[onerror]").count() == 0
    # Who gets a script in all the same is stopped by the policy.
    window.value(
        "(() => { const s = document.createElement('script'); s.append('document.title = 1');"
        "try { document.body.append(s); } catch { /* refused by Trusted Types already */ } })()"
    )
    assert window.page.title().startswith("clipguard: Undecided")
    assert len(window.faults) > 0
    assert window.requests == [page.as_uri()]
    assert violations(window) == []
    window.page.context.close()


@pytest.mark.parametrize("options", [{}, PHONE, {"color_scheme": "dark"}], ids=["desktop", "phone", "dark"])
def test_axe_has_nothing_to_say(browser, run, options):
    window = opened(browser, run / "report.html", bypass_csp=True, **options)
    window.page.locator(".reviews summary").click()
    assert violations(window) == []
    window.page.locator("#flagged button").first.click()
    window.page.locator("#keep").click()
    assert violations(window) == []
    window.page.context.close()


def test_on_a_phone_nothing_is_wider_than_the_screen_and_the_map_can_be_read(browser, run):
    window = opened(browser, run / "report.html", **PHONE)
    assert window.value("document.documentElement.scrollWidth") == 375
    heights = window.value(
        "[...document.querySelectorAll('.map text')].filter(e => getComputedStyle(e).display !== 'none')"
        ".map(e => e.getBBox().height * document.querySelector('.map svg').getScreenCTM().a)"
    )
    assert min(heights) > 11
    window.page.context.close()


def test_print_has_findings_first_all_hashes_and_no_controls(browser, run, tmp_path):
    window = opened(browser, run / "report.html", color_scheme="dark")
    window.page.emulate_media(media="print")
    assert window.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tops = window.value(
        "['findings', 'map', 'gallery', 'files'].map(i => document.getElementById(i).offsetTop)"
    )
    assert tops == sorted(tops)
    assert tops[0] < 500
    assert not window.page.locator("form.filters").is_visible()
    assert window.page.locator(".bar rect").first.is_visible()
    assert window.page.locator("details pre").is_visible()
    drawn = "[...document.images].filter(i => i.offsetParent).map(i => i.complete && i.naturalWidth > 0)"
    assert set(window.value(drawn)) == {True}  # no picture waits until somebody scrolls to it
    rows = window.page.locator("#files tbody tr")
    assert rows.count() == 100
    assert rows.last.is_visible()
    pdf = window.page.pdf(path=str(tmp_path / "page.pdf"))
    assert pdf.startswith(b"%PDF")
    window.page.context.close()


def test_a_static_page_has_no_script_and_says_the_same(browser, run, tmp_path):
    usual = opened(browser, run / "report.html", java_script_enabled=False)
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "static.html").write_text(render(summarize(run), static=True))
    static = opened(browser, copy / "static.html")
    assert static.page.locator("script, button, input, select").count() == 0
    assert static.page.locator(".gallery > li").count() == usual.page.locator(".gallery > li").count() == 100
    assert static.shown() == flagged_ranks(run)
    assert static.page.locator("#files tbody tr").count() == 100
    assert static.faults == usual.faults == []
    assert violations(static) == []
    for one in (usual, static):
        one.page.context.close()
