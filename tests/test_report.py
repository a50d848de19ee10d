import base64
import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipguard.outputs.rates import rate_rows
from clipguard.outputs.report import entropy_map, entropy_map_svg, render, summarize, write_report
from clipguard.outputs.report.templates import visible
from clipguard.outputs.text import duration, percent
from clipguard.runs import read_json
from clipguard.runs.summary import Rates, plain
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import STATES, State, partition_of
from tiny_report import FULL, SCAN, add_triggers, images_of, make_run

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "</style></svg></title><b>",
    "a\u202egnp.exe\u200f\nb\r\t\x00\x1b[31m",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(3)&lt;i&gt;",
    "x" * 5000,
)
BIDI = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\x00-\x09\x0b-\x1f\x7f]")


class Page(HTMLParser):
    """Collects tags, attributes and text as a browser would."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("td", "span", "small"):
            self.text += " "  # they stand apart on the page
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data


# ---- the numbers


def test_the_summary_counts_what_the_table_holds(tmp_path):
    summary = summarize(make_run(tmp_path / "run"))
    assert summary["n"] == 150
    assert summary["statuses"] == {
        "trusted": {"count": 75, "share": 0.5, "reasons": {}},
        "set aside": {"count": 60, "share": 0.4, "reasons": {"uncertain": 56, "excluded": 3, "held out": 1}},
        "flagged": {"count": 15, "share": 0.1, "reasons": {"trigger": 14, "label": 1}},
    }
    assert [entry["name"] for entry in summary["classes"]["listed"]] == ["cat", "dog", "ship"]
    for entry in summary["classes"]["listed"]:
        assert (entry["size"], entry["flagged"], entry["share"]) == (50, 5, 0.1)
        assert entry["few_clean"] == (entry["name"] == "dog")
    json.dumps(summary | {"run": plain(summary["run"])}, allow_nan=False)


def test_the_most_suspicious_come_first_each_with_its_own_picture(tmp_path):
    top = summarize(make_run(tmp_path / "run"))["top"]
    assert [sample["rank"] for sample in top] == list(range(1, 101))
    assert top[0]["id"] == "train/149.png"
    assert (top[0]["poison_score"], top[0]["trigger_score"]) == (1.0, None)
    states = [(sample["status"], sample["reason"], sample["trigger"]) for sample in top]
    assert states[:3] == [("flagged", "trigger", 1), ("flagged", "label", 0), ("flagged", "trigger", 1)]
    assert states[-1] == ("trusted", "", 0) or states[-1][0] == "set aside"
    pixels = images_of(tmp_path / "run")
    for row, sample in zip(range(149, 49, -1), top, strict=True):
        assert np.array_equal(opened(sample["thumbnail"]), pixels[row])


@pytest.mark.parametrize("labels", [[None], [0, 2]])
def test_each_reconstructed_trigger_is_shown_alone_and_on_the_least_suspicious_clean_samples(
    tmp_path, labels
):
    run = make_run(tmp_path / "run")
    assert summarize(run)["triggers"] == []
    grey = np.zeros((8, 8, 3), np.float32)
    add_triggers(run, [AffineTrigger(scale=grey, shift=grey + 200, label=label) for label in labels])
    triggers = summarize(run)["triggers"]
    pixels = images_of(run)
    assert [one["label"] for one in triggers] == labels
    assert [(one["number"], one["flagged"]) for one in triggers] == [(1, 14), (2, 0)][: len(labels)]
    for one in triggers:
        assert len(one["examples"]) == 6
        for row, example in enumerate(one["examples"]):
            assert np.array_equal(opened(example["without"]), pixels[row])
            assert (opened(example["with"]) == 200).all()
        assert one["change"] == pytest.approx(np.abs(200.0 - pixels[:6]).mean())
    page = render(summarize(run))
    assert page.count("with reconstructed trigger") == 6 * len(labels)
    assert ("2, of samples labelled <bdi>ship</bdi>" in page) == (len(labels) == 2)


def test_a_faint_trigger_alone_is_shown_at_full_contrast(tmp_path):
    run = make_run(tmp_path / "run")
    scale, shift = np.ones((8, 8, 3), np.float32), np.zeros((8, 8, 3), np.float32)
    shift[0, 0], shift[1, 1] = 2, -1
    add_triggers(run, [AffineTrigger(scale=scale, shift=shift)])
    alone = opened(summarize(run)["triggers"][0]["alone"])
    assert (alone[0, 0] == 255).all()
    assert (alone[1, 1] == 64).all()
    assert (np.delete(alone.reshape(64, 3), [0, 9], axis=0) == 128).all()


def opened(uri):
    encoded = uri.removeprefix("data:image/png;base64,")
    return np.array(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_pictures_are_found_by_id_whatever_the_order_of_the_table(tmp_path):
    straight = summarize(make_run(tmp_path / "a"))["top"]
    run = make_run(tmp_path / "b")
    import pyarrow.parquet as pq

    table = pq.read_table(run / "samples.parquet")
    pq.write_table(table.take(np.random.default_rng(1).permutation(table.num_rows)), run / "samples.parquet")
    assert summarize(run)["top"] == straight


def test_classes_are_ordered_by_their_flagged_share_and_many_are_cut(tmp_path):
    names = tuple(f"class {i}" for i in range(50))
    classes = summarize(make_run(tmp_path / "run", names=names))["classes"]
    shares = [entry["share"] for entry in classes["listed"]]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0
    assert (len(shares), classes["others"]) == (40, 10)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 400), seed=st.integers(0, 99))
def test_every_sample_is_in_exactly_one_square_of_its_status(n, seed):
    rng = np.random.default_rng(seed)
    x, y, state = 1 - rng.random(n), 1 - rng.random(n), rng.integers(0, len(STATES), n).astype(np.uint8)
    order = rng.permutation(n)
    marked = np.arange(min(n, 5))
    drawn = entropy_map(x, y, partition_of(state, x, 0), marked, "five")
    statuses = [STATES[State(value)].status for value in state]
    assert {name: np.sum(cells) for name, cells in drawn["cells"].items()} == {
        name: statuses.count(name) for name in ("trusted", "set aside", "flagged")
    }
    shuffled = entropy_map(x[order], y[order], partition_of(state[order], x, 0), marked, "five")
    assert shuffled["cells"] == drawn["cells"]


def test_the_map_is_the_right_way_up():
    one, state = np.array([0.99]), np.array([State.TRIGGER], np.uint8)
    drawn = entropy_map(one, np.array([0.01]), partition_of(state, one, 0), np.array([0]), "one")
    assert drawn["cells"]["flagged"][0][-1] == 1
    circle = re.search(r'<circle class="mark" cx="([\d.]+)" cy="([\d.]+)"', entropy_map_svg(drawn))
    assert circle
    frame = re.search(
        r'class="frame" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', entropy_map_svg(drawn)
    )
    assert frame
    left, top, width, height = map(int, frame.groups())
    assert float(circle[1]) == pytest.approx(left + 0.99 * width, abs=0.1)
    assert float(circle[2]) == pytest.approx(top + 0.99 * height, abs=0.1)


# ---- the page


def test_the_page_says_the_verdict_the_rates_and_the_times(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run")).read_text())
    text = " ".join(page.text.split())
    for expected in (
        "Suspicious : this data set probably carries a backdoor",
        "many samples were learnt early",
        "77.4 % 77.2 % −0.2",
        "95.1 % 1.8 % −93.3",
        "Measured on: test set",
        "15 flagged, 10.0 % 14 trigger, 1 label",
        "60 set aside, 40.0 % 56 uncertain, 3 excluded, 1 held out",
        "55.0 % of labels the guide agrees with",
        "train the early-training model 1 min 20 s",
        "10.0 % 5 of 50",
        "too few clean",
        "Classes without any image: unicorn.",
        "3 unreadable images left out",
        "the images are much larger",
        "The 100 most suspicious samples",
        "samples: runs/tiny/samples.parquet",
        "clipguard 0.1.0, seed 7, threads 2.",
    ):
        assert expected in text, expected
    assert page.tags.count("img") == 100
    assert page.tags.count("figure") == 100


@pytest.mark.parametrize("answer", ["clean", "suspicious", "undecided"])
def test_a_scan_without_a_repair_has_no_table(tmp_path, answer):
    bare = SCAN | {"verdict": {"answer": answer, "reasons": []}, "stages": {}, "warnings": []}
    page = Page(render(summarize(make_run(tmp_path / "run", run=bare))))
    assert answer.capitalize() in page.text
    assert "before and after" not in page.text
    assert page.tags.count("table") == 0
    assert page.tags.count("svg") == 2  # the mark and the map


def test_a_rate_that_was_not_measured_is_a_dash_or_no_row():
    before, after = Rates(measured_on="a", accuracy=0.8), Rates(measured_on="a", accuracy=0.5)
    assert [(row.metric.title, row.change, row.tone) for row in rate_rows(before, after)] == [
        ("Accuracy", "−30.0", "bad")
    ]
    (row,) = rate_rows(None, after)
    assert (percent(row.before), percent(row.after), row.change) == ("–", "50.0 %", "–")
    assert rate_rows(None, None) == []


def test_less_attack_success_is_good_and_half_a_point_is_chance():
    before = Rates(measured_on="a", accuracy=0.5, attack_success=0.9)
    after = Rates(measured_on="a", accuracy=0.504, attack_success=0.1)
    assert [(row.change, row.tone) for row in rate_rows(before, after)] == [("+0.4", ""), ("−80.0", "good")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (59.9, "1 min 00 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")],
)
def test_durations_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def hostile_run(path: Path) -> Path:
    names = [name.replace("\x00", "") for name in HOSTILE]
    run = FULL | {
        "command": HOSTILE[0],
        "verdict": {"answer": "undecided", "reasons": list(HOSTILE)},
        "guide": {"name": HOSTILE[1], "scale": 1.0, "agreement": 0.5},
        "warnings": list(HOSTILE) * 10,
        "version": HOSTILE[2],
        "stages": {HOSTILE[1]: {"title": HOSTILE[0], "seconds": 1.0}},
        "before": {"accuracy": 0.5, "measured_on": HOSTILE[0]},
        "after": None,
        "files": {HOSTILE[0]: HOSTILE[1]},
        "few_clean": list(HOSTILE),
        "data": FULL["data"] | {"location": HOSTILE[0], "empty_classes": list(HOSTILE)},
    }
    return make_run(
        path,
        names=names,
        ids=[f"{names[i % len(names)]}{i}" for i in range(150)],
        run=run,
    )


def test_hostile_names_never_become_tags_attributes_or_control_characters(tmp_path):
    plain = Page(render(summarize(make_run(tmp_path / "plain", names=tuple("abcdefg")))))
    html = render(summarize(hostile_run(tmp_path / "hostile")))
    page = Page(html)
    assert set(page.tags) <= set(plain.tags) | {"circle"}
    assert "script" not in page.tags
    assert {(tag, name) for tag, name, _ in page.attributes} <= {(t, n) for t, n, _ in plain.attributes}
    assert not BIDI.search(html)
    assert "<script>alert(1)</script>" in page.text
    assert "\\u202e" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "x" * 300 not in html
    for _, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:image/png;base64,")


def test_what_is_no_picture_is_not_put_into_an_image(tmp_path):
    summary = summarize(make_run(tmp_path / "run"))
    for bad in ('data:image/png;base64,"><script>', "https://example.org/a.png", "javascript:alert(1)"):
        summary["top"][0]["thumbnail"] = bad
        html = render(summary)
        assert bad not in html
        assert 'src="data:,"' in html


@given(st.text(max_size=300))
def test_shown_texts_are_short_printable_and_encodable(text):
    short = visible(text)
    assert short.isprintable()
    assert short == text or len(text) > 200 or not text.isprintable()
    assert len(short) <= 10 * 204
    short.encode()


def test_the_page_loads_nothing(tmp_path):
    html = write_report(make_run(tmp_path / "run")).read_text()
    page = Page(html)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and name == "content")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    addresses = set(re.findall(r"(?:https?:)?//[^\s\"'<>)]+", html.replace("http://www.w3.org/2000/svg", "")))
    assert not {a for a in addresses if a.startswith("http")}
    assert not re.search(r"url\(|@import|<link|<script|<iframe", html)


def test_the_page_stays_below_three_megabytes_whatever_the_images(tmp_path):
    names = tuple("n" * 300 + str(i) for i in range(400))
    run = make_run(
        tmp_path / "run", n=2000, names=names, side=96, run=FULL | {"warnings": ["w" * 999] * 5000}
    )
    assert write_report(run).stat().st_size < 3_000_000


def test_images_gone_from_the_run_folder_leave_a_page_that_says_so(tmp_path):
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "stages/images")
    page = Page(render(summarize(run)))
    assert page.tags.count("img") == 0
    assert page.text.count("no image kept") == 100


def test_the_same_run_gives_the_same_page(tmp_path):
    run = make_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert read_json(run / "summary.json")["command"] == "defend"


def test_the_map_is_well_formed_svg_of_its_own(tmp_path):
    summary = summarize(make_run(tmp_path / "run"))
    root = ET.fromstring(entropy_map_svg(summary["map"], title="<&>"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].text == "<&>"


def test_the_report_starts_without_torch():
    code = "import sys, clipguard.outputs.report; print('torch' in sys.modules)"
    completed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert completed.stdout.strip() == "False"
