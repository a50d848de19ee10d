"""outputs.report: texts of a data set that want to be markup, script or something to download."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.outputs.report import render, summarize, write_report
from clipguard.outputs.report.templates import visible
from test_report import Page
from tiny_report import FULL, VERDICT, make_run

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


def hostile_run(path: Path) -> Path:
    names = [name.replace("\x00", "") for name in HOSTILE]
    finding = VERDICT["findings"][0] | {"class_name": HOSTILE[1], "label": 1, "from_class": HOSTILE[0]}
    run = FULL | {
        "command": HOSTILE[0],
        "verdict": {"answer": "undecided", "reasons": list(HOSTILE), "findings": [finding]},
        "guide": {"name": HOSTILE[1], "scale": 1.0, "agreement": 0.5},
        "warnings": list(HOSTILE) * 10,
        "version": HOSTILE[2],
        "device": HOSTILE[1],
        "run_dir": "run; rm -rf " + HOSTILE[1],
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


@pytest.mark.parametrize("static", [False, True])
def test_hostile_names_never_become_tags_attributes_or_control_characters(tmp_path, static):
    usual = Page(render(summarize(make_run(tmp_path / "plain", names=tuple("abcdefg"))), static=static))
    html = render(summarize(hostile_run(tmp_path / "hostile")), static=static)
    page = Page(html)
    assert set(page.tags) <= set(usual.tags) | {"circle"}
    assert page.tags.count("script") == (0 if static else 2)
    assert {(tag, name) for tag, name, _ in page.attributes} <= {(t, n) for t, n, _ in usual.attributes}
    assert not BIDI.search(html)
    assert "<script>alert(1)</script>" in page.text
    assert "\\u202e" in page.text
    assert "{{ 7 * 7 }}" in page.text
    for _, name, value in page.attributes:
        if name == "src":
            assert value.startswith("data:image/webp;base64,")
        if name == "href":
            assert value.startswith("#")


def test_what_the_script_is_given_is_json_without_markup_and_comes_back_whole(tmp_path):
    html = render(summarize(hostile_run(tmp_path / "run")))
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert block
    assert block[1].isascii()
    assert not set("<>&") & set(block[1])
    data = json.loads(block[1])
    assert data["samples"]["id"][0] == HOSTILE[149 % 7] + "149"  # whole, so that a review mark names it
    assert set(data["texts"]) >= {name.replace("\x00", "") for name in HOSTILE}


def test_a_long_text_is_cut_where_it_is_read_and_whole_for_the_script_alone(tmp_path):
    html = render(summarize(hostile_run(tmp_path / "run")), static=True)
    assert "x" * 300 not in html.partition('id="files"')[0]
    assert "x" * 1001 not in html


def test_commands_to_copy_are_quoted_for_a_shell(tmp_path):
    page = Page(render(summarize(hostile_run(tmp_path / "run"))))
    assert """clipguard export 'run; rm -rf "'"'"'><img src=x onerror=alert(2)>' --to csv""" in page.text


def test_what_is_no_picture_is_not_put_into_an_image(tmp_path):
    summary = summarize(make_run(tmp_path / "run"))
    for bad in ('data:image/webp;base64,"><script>', "https://example.org/a.png", "javascript:alert(1)"):
        summary["samples"][0]["thumbnail"] = bad
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


def hashes_of(html: str, tag: str) -> set[str]:
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return {f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in texts}


@pytest.mark.parametrize("static", [False, True])
def test_the_page_loads_nothing_and_its_policy_holds_the_hash_of_all_that_runs(tmp_path, static):
    html = write_report(make_run(tmp_path / "run"), static=static).read_text()
    page = Page(html)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and name == "content")
    rules = {rule.split()[0]: set(rule.split()[1:]) for rule in policy.split("; ")}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == {"'none'"}
    assert rules["img-src"] == {"data:"}
    assert rules["style-src"] == hashes_of(html, "style")
    assert rules.get("script-src", set()) == hashes_of(html, "script")
    assert len(hashes_of(html, "script")) == (0 if static else 1)
    assert "style" not in {name for _, name, _ in page.attributes}
    addresses = set(re.findall(r"(?:https?:)?//[^\s\"'<>)]+", html.replace("http://www.w3.org/2000/svg", "")))
    assert not {a for a in addresses if a.startswith("http")}
    assert not re.search(r"url\(|@import|<link|<iframe", html)
