"""The language of the code: the field's terms, no private ones; and tensors that stay in `compute`."""

import ast
import io
import re
import tokenize
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "clipguard"
SOURCES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".j2"))
MODULES = [path for path in SOURCES if path.suffix == ".py"]

TERMS = {
    r"suspicious model(?!\))": "early-training model",
    r"\bsuspects?\b": "early-training model, or suspected target class",
    r"\bcur(e|es|ed|ing)\b": "repair, unlearning, mitigation",
    r"\boracles?\b": "clean-trained reference",
    r"\bplant(s|ed|ing)?\b": "apply_poison, attack_succeeded, label-only poison",
    r"\bfed\b": "suspected target class",
    r"\bclosed class": "quarantined class",
    r"\bsurplus\b": "label-flow z-score",
    r"\b(absurd|implausible)\b": "out-of-fold loss",
    r"\bdoubt(s|ed|ful)?\b": "excluded, or moderate out-of-fold loss",
    r"\bhonest": "estimated clean",
    r"\bstamp(s|ed|ing)?\b": "trigger augmentation, paste",
    r"\blikeness": "propensity",
    r"\bstarved\b": "class with too few clean samples",
    r"\bdecoys?\b": "cover samples",
    r"\b(aim|aims|aimed)\b": "target labels, target mapping",
    r"\bhelpers?\b": "surrogate, generator",
    r"\bcustody\b": "provenance",
    r"\b(confined?|confines)\b": "sandbox",
    r"\b(known_as|voucher|vouched)\b": "weights_verified_by",
    r"\brecovery\b": "robust accuracy",
    r"\bReady[A-Z]": "fitted attack",
    r"\bnonsense\b": "protocol error",
    r"\b(house|rooms?)\b": "architecture, package",
    r"mislabelled\b": "flagged for its label",
    r"is_triggered|is_clean\b": "status, reason",
}
"""Earlier terms, as regular expressions over code, comments and texts, and what to say instead."""

NAMES = {
    *("told", "tell", "tells", "asked", "ask", "seen", "shown", "found", "said", "wanted", "heard", "greet"),
    *(
        "evidence",
        "looks",
        "look",
        "sure",
        "judged",
        "Lab",
        "Work",
        "Share",
        "Done",
        "Trial",
        "Plan",
        "Cure",
        "Split",
    ),
}
"""Identifiers that say what was done to a value and not what it is, and names of earlier classes."""

FROZEN = PACKAGE / "seeds.py"
"""Names of random streams stay as they were first written: renaming one would change every result."""

TENSORS = {"cuda", "numpy", "from_numpy"}
"""How a tensor comes to a device and leaves it; only `compute` may decide that in the product."""

DEVICE_FREE = ("compute", "lab", "cli")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_with_old_terms(text: str) -> list[str]:
    return [
        f"line {number}: {found[0]!r}: say {term}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, term in TERMS.items()
        if (found := re.search(pattern, line, re.IGNORECASE if pattern[0] != r"\bReady"[0] else 0))
    ]


def vague_names(text: str) -> list[str]:
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    # A method of somebody else's class, such as a file's `tell`, has the name that it has.
    own = [after for before, after in pairwise(tokens) if before.string != "."]
    return [f"line {t.start[0]}: {t.string}" for t in own if t.type == tokenize.NAME and t.string in NAMES]


def device_calls(text: str) -> list[str]:
    return [
        f"line {node.lineno}: .{node.func.attr}("
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TENSORS
    ]


@pytest.mark.parametrize("path", [path for path in SOURCES if path != FROZEN], ids=relative)
def test_no_file_speaks_the_earlier_dialect(path):
    assert lines_with_old_terms(path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_value_is_named_by_what_it_is(path):
    assert vague_names(path.read_text()) == []


@pytest.mark.parametrize(
    "text", ["# the cure", 'COLUMN = "is_triggered"', "planted = 1", "the suspicious model", "x = a.oracle"]
)
def test_the_check_sees_an_earlier_term(text):
    assert lines_with_old_terms(text)


@pytest.mark.parametrize("text", ["suspected target class", "obscure", "secure", "closed()", "unplanned"])
def test_the_check_lets_other_words_pass(text):
    assert lines_with_old_terms(text) == []


def test_the_check_sees_a_vague_name_and_lets_prose_pass():
    assert vague_names("\nfound = file.tell()") == ["line 2: found"]
    assert vague_names('"""What is found."""  # found') == []


PRODUCT = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] not in DEVICE_FREE]


@pytest.mark.parametrize("path", PRODUCT, ids=relative)
def test_the_product_moves_tensors_in_compute_only(path):
    assert device_calls(path.read_text()) == []


def test_the_device_check_sees_a_call():
    assert device_calls("x = t.cpu().numpy()\ny = torch.from_numpy(x)\nz = t.cuda()") == [
        "line 1: .numpy(",
        "line 2: .from_numpy(",
        "line 3: .cuda(",
    ]
