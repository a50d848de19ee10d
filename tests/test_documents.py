"""The documents: short sentences, links that lead somewhere, and names of files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROSE = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")] + sorted(
    ROOT.glob("docs/*.md")
)
DOCUMENTS = PROSE + sorted(ROOT.glob("benchmarks/**/*.md"))
LONGEST_SENTENCE = 35
PLACES = ("", "src/clipguard", "benchmarks", "benchmarks/results/0")
"""Folders that names of files in the documents are relative to, beside the document's own."""

FILE = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|toml|md|svg|png)|(?:[\w.-]+/)+[\w.-]+\.(?:json|parquet)")
ELSEWHERE = ("stages/", "DATA/", "poisoned/")
"""Beginnings of files in a run folder, or in the user's."""

EXAMPLES = {"detection/brightness.py", "clipguard.toml", "summary.md"}
"""Files of worked examples, and of run folders."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    """Return Markdown without fenced and indented blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4,}\S.*$", "", text, flags=re.MULTILINE)


def sentences(text: str) -> list[str]:
    """Return the sentences of a Markdown text outside code blocks, tables and headings."""
    kept = re.sub(r"^(?:\||#|<!--).*$", "", without_code(text), flags=re.MULTILINE)
    blocks = re.split(r"\n\s*\n|\n\s*(?:[*-]|\d+\.)\s+", "\n" + kept)
    return [
        sentence
        for block in blocks
        for sentence in re.split(r"(?<=[.!?:;])[*_)\"]*\s+", " ".join(block.split()))
    ]


def files_named(text: str) -> set[str]:
    """Return what looks like a file of the project in the inline code of a Markdown text."""
    codes = re.findall(r"`([^`\n]+)`", without_code(text))
    words = {word for code in codes for word in code.split() if FILE.fullmatch(word)}
    return {word for word in words if not word.startswith(ELSEWHERE)}


@pytest.mark.parametrize("path", PROSE, ids=relative)
def test_no_sentence_is_longer_than_35_words(path):
    assert [text for text in sentences(path.read_text()) if len(text.split()) > LONGEST_SENTENCE] == []


def test_a_long_sentence_is_seen_wherever_it_stands():
    long = " ".join(["word"] * 36)
    for text in (long, f"Short. {long}.", f"# Title\n\n* one\n* {long}\n", f"1. {long}", f"**Bold.** {long}"):
        assert any(len(sentence.split()) > LONGEST_SENTENCE for sentence in sentences(text))
    for text in (f"| {long} |", f"```\n{long}\n```", f"# {long}", f"{long[:90]}. {long[:90]}"):
        assert all(len(sentence.split()) <= LONGEST_SENTENCE for sentence in sentences(text))


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_every_relative_link_leads_somewhere(path):
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", without_code(path.read_text()))
    assert [link for link in links if ":" not in link and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PROSE, ids=relative)
def test_every_file_that_a_document_names_exists(path):
    places = [path.parent, *(ROOT / place for place in PLACES)]
    named = files_named(path.read_text()) - EXAMPLES
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


def test_a_file_that_is_named_is_seen():
    text = (
        "`tests/test_x.py`, `python benchmarks/y.py 0`, `a/b.json`; `samples.parquet`, `stages/read/a.json`"
    )
    assert files_named(text) == {"tests/test_x.py", "benchmarks/y.py", "a/b.json"}
