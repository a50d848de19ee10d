"""clipguard: the public names, nothing else."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import clipguard
from clipguard.clip.zero_shot import ClipGuide
from clipguard.data import Columns, ImageSource
from clipguard.errors import ClipguardError
from clipguard.estimator import Defender
from clipguard.lab.benchmark.running import run_benchmark
from clipguard.outputs.weights import sample_weights, sampler_of
from clipguard.pipeline.config import DefenseConfig

ROOT = Path(__file__).parents[1]
HOMES = {
    "ClipGuide": ClipGuide,
    "ClipguardError": ClipguardError,
    "Columns": Columns,
    "Defender": Defender,
    "ImageSource": ImageSource,
    "DefenseConfig": DefenseConfig,
    "sample_weights": sample_weights,
    "sampler_of": sampler_of,
    "run_benchmark": run_benchmark,
}


@pytest.mark.parametrize("name", HOMES)
def test_a_public_name_is_the_thing_itself_and_has_a_docstring(name):
    assert getattr(clipguard, name) is HOMES[name]
    assert inspect.getdoc(HOMES[name])


def test_the_list_of_public_names_is_complete_and_sorted():
    assert clipguard.__all__ == sorted(HOMES)


def test_a_star_import_brings_exactly_the_public_names():
    brought: dict[str, object] = {}
    exec("from clipguard import *", brought)
    assert {name: brought[name] for name in brought if name != "__builtins__"} == HOMES


def test_an_unknown_name_is_an_ordinary_attribute_error():
    with pytest.raises(AttributeError, match=r"'clipguard' has no attribute 'Attacker'"):
        clipguard.Attacker  # noqa: B018  # the look-up itself fails
    assert not hasattr(clipguard, "attack_everything")


def test_the_version_looks_like_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+([ab]\d+|rc\d+)?", clipguard.__version__)


def test_the_readme_imports_only_public_names():
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^from clipguard import (.*)$", text, re.MULTILINE)
    assert lines
    assert {name.strip() for line in lines for name in line.split(",")} <= set(clipguard.__all__)


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "src" / "clipguard" / "py.typed").exists()


PRODUCT = [
    path
    for path in (ROOT / "src" / "clipguard").rglob("*.py")
    if path.relative_to(ROOT / "src" / "clipguard").parts[0] not in ("cli", "lab")
    # It writes command lines to be copied.
    and path.name != "next_steps.py"
]


def options_in(code: str) -> list[str]:
    """Return what looks like an option of a command line in the texts of some code, docstrings left out.

    A text that names the way in Python, too, speaks to both.
    """
    tree = ast.parse(code)
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
    )
    both = (text for text in texts if "in Python" not in text)
    return [option for text in both for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)]


def test_no_message_of_the_product_speaks_of_command_line_options():
    assert {path.name: found for path in PRODUCT if (found := options_in(path.read_text()))} == {}


def test_an_option_in_a_message_is_seen_and_one_in_a_docstring_is_not():
    assert options_in('raise E(f"{x}: give --classes")') == ["--classes"]
    assert options_in('raise E("give --classes (in Python: classes)")') == []
    assert options_in('def f():\n    """As --classes."""\n    return "a -- b"') == []
