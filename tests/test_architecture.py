"""What the linters do not check of the house: sizes, names, nothing unpickled, a frame that fits together."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
CODE = SOURCES + sorted(
    file for folder in ("tests", "benchmarks", "tools") for file in (ROOT / folder).rglob("*.py")
)
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "base", "manager", "misc", "common"}
UNPICKLERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "webdataset",
}
SWITCHES_THAT_UNPICKLE = {"allow_pickle": False, "weights_only": True, "trust_remote_code": False}

# Only the converter of other people's records, in a process of its own, with torch's list of allowed names.
MAY_UNPICKLE = {"src/clipguard/lab/backdoorbench.py": ["torch.load"]}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def unpickling(code: str) -> list[str]:
    """Return what in the code can unpickle or run what a file contains, in order of lines."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] if module.partition(".")[0] in UNPICKLERS else []
            found += ["torch.load"] if module == "torch" and "load" in {a.name for a in node.names} else []
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "torch.load",
            "torch.jit.load",
            "torch.hub.load",
        ):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            found.append(node.id)
        elif isinstance(node, ast.keyword) and node.arg in SWITCHES_THAT_UNPICKLE:
            safe = (
                isinstance(node.value, ast.Constant) and node.value.value is SWITCHES_THAT_UNPICKLE[node.arg]
            )
            found += [] if safe else [node.arg]
    return found


def make_targets() -> set[str]:
    """Return the Makefile's phony targets that have a recipe."""
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY:(.*)$", text, re.MULTILINE)
    assert phony is not None
    return {name for name in phony[1].split() if re.search(rf"^{name}:", text, re.MULTILINE)}


def requirements() -> list[Requirement]:
    """Return every requirement of pyproject.toml, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for listed in lists for line in listed]


def pins() -> dict[str, list[Requirement]]:
    """Return the constraints by canonical name."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_a_file_has_at_most_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_or_folder_has_a_name_that_says_something(path):
    assert not {path.stem, *path.relative_to(ROOT).parts} & NAMES_THAT_SAY_NOTHING


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_source_unpickles_or_runs_what_a_file_contains(path):
    assert unpickling(path.read_text()) == MAY_UNPICKLE.get(relative(path), [])


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\nstate = torch.load('x')",
        "from torch import load",
        "np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "load(path, weights_only=False)",
        "import webdataset as wds",
        "eval(text)",
    ],
)
def test_the_check_for_unpickling_sees_it(code):
    assert unpickling(code)


@pytest.mark.parametrize("code", ["np.load('x', allow_pickle=False)", "model.eval()", "json.load(file)"])
def test_the_check_for_unpickling_lets_safe_code_pass(code):
    assert unpickling(code) == []


def test_the_commands_that_the_readme_names_exist_in_the_makefile():
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", "\n".join(code_of((ROOT / "README.md").read_text()))))
    assert {"demo", "test"} <= named
    assert named <= make_targets()


def code_of(markdown: str) -> list[str]:
    """Return the fenced blocks and inline code of a Markdown text."""
    fence = r"^```.*?^```"
    blocks = re.findall(fence, markdown, re.MULTILINE | re.DOTALL)
    return blocks + re.findall(r"`[^`\n]+`", re.sub(fence, "", markdown, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("target", ["lint", "docs", "tests"])
def test_ci_runs_what_make_test_runs_and_builds_the_site(target):
    assert re.search(rf"^make [^#\n]*\b{target}\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert target in make_targets()


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_direct_dependency_is_pinned_within_its_range(requirement):
    for pin in pins()[canonicalize_name(requirement.name)]:
        (version,) = [spec.version for spec in pin.specifier if spec.operator == "=="]
        assert requirement.specifier.contains(version), f"{pin} is outside {requirement}"


def test_every_constraint_names_one_exact_version():
    for same_name in pins().values():
        assert all([spec.operator for spec in pin.specifier] == ["=="] for pin in same_name)
        assert len(same_name) == 1 or all(pin.marker for pin in same_name)


def test_every_dependency_is_accounted_for_in_the_documentation():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    assert not [r.name for r in requirements() if f"| `{r.name}` |" not in text]


def test_the_version_and_the_licence_are_the_same_everywhere():
    version = re.search(r'__version__ = "(.*)"', (ROOT / "src" / "clipguard" / "__init__.py").read_text())
    assert version is not None
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version[1]}\n" in citation
    assert version[1] in (ROOT / "CHANGELOG.md").read_text()
    assert "\nlicense: Apache-2.0\n" in citation
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert licence.rstrip().endswith("limitations under the License.")
