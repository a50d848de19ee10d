import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipguard.outputs.rates import rate_rows
from clipguard.outputs.report import entropy_map, entropy_map_svg, render, summarize, write_report
from clipguard.outputs.text import duration, percent
from clipguard.runs import read_json
from clipguard.runs.summary import Rates, plain
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import STATES, State, partition_of
from tiny_report import FULL, SCAN, add_triggers, images_of, make_run


class Page(HTMLParser):
    """Collects tags, attributes and text as a browser would."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text, self.inside = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        if tag in ("td", "span", "small", "dt", "dd"):
            self.text += " "  # they stand apart on the page
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag):
        self.inside = ""


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


def test_the_flagged_come_first_then_the_most_suspicious_others_each_with_its_own_picture(tmp_path):
    samples = summarize(make_run(tmp_path / "run"))["samples"]
    assert [sample["rank"] for sample in samples] == list(range(1, 101))
    assert [sample["status"] == "flagged" for sample in samples] == [True] * 15 + [False] * 85
    first = samples[0]
    assert (first["id"], first["path"], first["sha256"]) == (
        "train/149.png",
        "train/149.png",
        hashlib.sha256(b"train/149.png").hexdigest(),
    )
    assert (first["given"], first["predicted"]) == ("ship", "cat")
    assert (first["poison_score"], first["trigger_score"], first["q_value"]) == (1.0, None, 0.0)
    assert [(one["reason"], one["trigger"], one["cause"]) for one in samples[:3]] == [
        ("trigger", 1, 0),
        ("label", 0, 1),
        ("trigger", 1, 0),
    ]
    assert {one["cause"] for one in samples[15:]} == {-1}
    pixels = images_of(tmp_path / "run")
    for row, sample in zip(range(149, 49, -1), samples, strict=True):
        assert np.array_equal(opened(sample["thumbnail"]), pixels[row])


def test_many_flagged_samples_are_cut_at_a_thousand_and_lossless_at_a_hundred(tmp_path):
    run = make_run(tmp_path / "run", n=12_000)
    summary = summarize(run)
    samples, pixels = summary["samples"], images_of(run)
    assert summary["flagged"] == 1200
    assert [one["status"] for one in samples].count("flagged") == 1000
    assert len(samples) == 1048
    exact = [np.array_equal(opened(s["thumbnail"]), pixels[12_000 - s["rank"]]) for s in samples]
    assert all(exact[:100])
    assert not any(exact[100:])  # noise never survives a lossy format
    assert "The 1,000 most suspicious of 1,200 flagged samples" in render(summary)


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
    assert page.count(" with reconstructed trigger ") == 6 * len(labels)
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
    encoded = uri.removeprefix("data:image/webp;base64,")
    return np.array(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_pictures_are_found_by_id_whatever_the_order_of_the_table(tmp_path):
    straight = summarize(make_run(tmp_path / "a"))["samples"]
    run = make_run(tmp_path / "b")
    import pyarrow.parquet as pq

    table = pq.read_table(run / "samples.parquet")
    pq.write_table(table.take(np.random.default_rng(1).permutation(table.num_rows)), run / "samples.parquet")
    assert summarize(run)["samples"] == straight


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
        "15 of 150 samples are flagged (10.0 %).",
        "All 15 flagged samples",
        "Not flagged: the 85 most suspicious of the others",
        "14 of 150 samples share one pattern; 5 of them are labelled cat",
        "1 of 150 samples have a label that does not fit",
        "samples: runs/tiny/samples.parquet",
        "clipguard 0.1.0, seed 7, threads 2, device cpu.",
    ):
        assert expected in text, expected
    assert page.tags.count("img") == 100 + 12 + 1 + 1  # the gallery, two causes, the dialog


@pytest.mark.parametrize("answer", ["clean", "suspicious", "undecided"])
def test_a_scan_without_a_repair_has_no_table(tmp_path, answer):
    bare = SCAN | {"verdict": {"answer": answer, "reasons": []}, "stages": {}, "warnings": []}
    page = Page(render(summarize(make_run(tmp_path / "run", run=bare))))
    assert answer.capitalize() in page.text
    assert "before and after" not in page.text
    assert page.tags.count("table") == 2  # flagged by class, files and hashes


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
    assert page.tags.count("img") == 1  # the dialog's
    assert page.text.count("no image kept") == 100 + 13


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
